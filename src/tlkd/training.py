"""One visible training loop. It never sees a teacher: only a loss, and batches that may carry soft labels."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tlkd import crew, seeding, store
from tlkd.batches import Indices, Source, predict
from tlkd.crew import Crew
from tlkd.draws import Draw
from tlkd.errors import RunFailed
from tlkd.losses import Loss
from tlkd.models import Network, load_trained, trained_state
from tlkd.progress import say
from tlkd.specs import Training

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Task:
    """What is learnt from and what is looked at after each epoch (dev; test only to repeat the thesis)."""

    inputs: Source
    draw: Draw  # which samples, under which labels, in which of a corruption's variants
    views: int  # without the variants
    soft_labels: Source | None
    check_name: str  # "dev" or "test", as the history's columns call it
    check_inputs: Source
    check_labels: NDArray[np.int64]  # [sample]


@dataclass
class Fit:
    """How a training went; the network holds the weights of the reported epoch."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0

    @property
    def epochs(self) -> int:
        """The number of epochs trained."""
        return len(self.history)


def fit(  # noqa: PLR0915 (one loop, read from top to bottom)
        network: Network, forward: Callable[[Tensor], Tensor], loss: Loss, task: Task, training: Training, seed: int,
        device: torch.device, checkpoint: Path | None = None, on_epoch: Callable[[Fit], None] | None = None) -> Fit:
    """Train what is trainable of `network`, in place, and leave it in eval mode with the reported epoch's weights.

    `forward` maps a batch of `task.inputs` to logits: the network itself, or its head where features are banked. Order
    of samples, views and dropout follow from `seed` and the epoch's number, so a training that goes on from
    `checkpoint` is bit-identical, on the CPU, to one that was never stopped. Raises `RunFailed` at a loss that is not
    finite.

    Called by all processes of a crew together, each takes its part of every batch, and the sum of their gradients is
    that of the whole batch. Dropout is drawn by each for itself, and batch norm in train mode sees each part alone.
    """
    us = crew.at_work()
    with threads(training.threads):
        optimiser = _optimiser(network, training)
        scheduler = _scheduler(optimiser, training)
        scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16" and device.type == "cuda")
        result, best = _begin(us, checkpoint, network, optimiser, scheduler, scaler)
        while result.epochs < training.epochs and not _stopped(result, training):
            started = time.perf_counter()
            epoch = result.epochs + 1
            rate = optimiser.param_groups[0]["lr"]
            labels = torch.from_numpy(task.draw.labels(epoch)).to(device)
            variants = task.draw.variants(epoch)
            network.train()
            losses, taken = [], 0
            with torch.random.fork_rng(_devices(device)):
                _seed(device, seeding.seed_from("dropout", seed, epoch, *([us.rank] if us.rank else [])))
                for batch, seen_in in epoch_batches(seed, epoch, len(variants), task.views, training.batch_size):
                    part = us.part(len(batch))
                    places, which = batch[part], seen_in[part] + task.views * variants[batch[part]]
                    value = torch.zeros((), device=device)
                    if len(places):  # else there are fewer samples than this crew has processes
                        logits, soft_labels = _seen(forward, task, places, which, device, training.precision)
                        value = loss(logits, labels[torch.from_numpy(places).to(device)], soft_labels)
                        taken += 1
                    if len(places) < len(batch):
                        value = value * (len(places) / len(batch))  # so that the sum is the whole batch's mean
                    optimiser.zero_grad(set_to_none=True)
                    scaled = scaler.scale(value)
                    if len(places):
                        scaled.backward()  # type: ignore[no-untyped-call]
                    _sum_gradients(us, optimiser)
                    scaler.step(optimiser)
                    scaler.update()
                    losses.append(value.detach())
            train_loss = _mean_of_finite(us.summed(torch.stack(losses)), epoch)
            _average_statistics(us, network, taken)
            network.eval()
            check_loss, accuracy = _check(us, forward, task, device, training.precision)
            if not math.isfinite(check_loss):  # the last step spoiled the weights, which no training loss will tell
                raise _failed(epoch, len(losses), f"{task.check_name} loss after it", check_loss)
            _advance(scheduler, accuracy)
            result.history.append({"epoch": epoch, "learning_rate": rate, "train_loss": train_loss,
                                   f"{task.check_name}_loss": check_loss, f"{task.check_name}_accuracy": accuracy,
                                   "seconds": time.perf_counter() - started})
            if accuracy > result.best_accuracy:
                result.best_epoch, result.best_accuracy = epoch, accuracy
                best = trained_state(network)
            if checkpoint is not None and us.main:
                _save(checkpoint, network, optimiser, scheduler, scaler, result, best)
            if on_epoch is not None:
                on_epoch(result)
        if training.report_epoch == "best":
            load_trained(network, best)
        network.eval()
    return result


def epoch_batches(seed: int, epoch: int, count: int, views: int, size: int) -> Iterator[tuple[Indices, Indices]]:
    """The batches of one epoch: (samples, the view each is seen in), a function of the arguments alone.

    A last batch of one sample joins the batch before it, since batch norm has no variance of one.
    """
    order = seeding.generator("order", seed, epoch).permutation(count)
    which = (seeding.generator("views", seed, epoch).integers(views, size=count) if views > 1
             else np.zeros(count, np.int64))
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        samples = order[start:end]
        yield samples, which[samples]


def _optimiser(network: Network, training: Training) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if training.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum,
                               weight_decay=training.weight_decay, fused=True)
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)


def _seen(forward: Callable[[Tensor], Tensor], task: Task, places: Indices, which: Indices, device: torch.device,
          precision: str) -> tuple[Tensor, Tensor | None]:
    """What the network and the teacher say, `[sample, class]`, of the draw's samples at `places` in these views."""
    samples = task.draw.samples[places]
    soft_labels = task.soft_labels(which, samples) if task.soft_labels is not None else None
    inputs = task.inputs(which, samples)  # outside autocast, which would resize in half precision
    with _autocast(device, precision):
        return forward(inputs), soft_labels


Scheduler = torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau


def _scheduler(optimiser: torch.optim.Optimizer, training: Training) -> Scheduler:
    schedulers = torch.optim.lr_scheduler
    if training.schedule == "plateau":
        return schedulers.ReduceLROnPlateau(optimiser, mode="max", factor=training.plateau_factor,
                                            patience=training.plateau_patience, threshold=0.0)
    if training.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimiser, T_max=training.epochs)
    return schedulers.ConstantLR(optimiser, factor=1.0, total_iters=0)


def _advance(scheduler: Scheduler, accuracy: float) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(accuracy)
    else:
        scheduler.step()


def _stopped(result: Fit, training: Training) -> bool:
    """Whether `early_stopping` epochs have gone by without a better accuracy."""
    return training.early_stopping is not None and result.epochs - result.best_epoch >= training.early_stopping


def _sum_gradients(us: Crew, optimiser: torch.optim.Optimizer) -> None:
    """Give every process the sum of all gradients: in one piece, since a head's step is shorter than a message."""
    if us.size == 1:
        return
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    total = us.summed(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for parameter, part in zip(parameters, torch.split(total, [each.numel() for each in parameters]), strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))  # laid out as the parameter is


def _average_statistics(us: Crew, network: Network, taken: int) -> None:
    """Give every process the mean of all processes' batch statistics, weighed by the batches that each has seen.

    They follow a part of every batch in each process, and are linear in what they follow.
    """
    live = [buffer for name, module in network.backbone.named_modules() if name in network.live
            for buffer in module.buffers(recurse=False) if buffer.is_floating_point()]
    if us.size == 1 or not live:
        return
    weighed = torch.cat([*(buffer.reshape(-1) * taken for buffer in live), live[0].new_tensor([taken])])
    *total, count = torch.split(us.summed(weighed), [*(buffer.numel() for buffer in live), 1])
    for buffer, part in zip(live, total, strict=True):
        buffer.copy_((part / count).view(buffer.shape))


def _check(us: Crew, forward: Callable[[Tensor], Tensor], task: Task, device: torch.device,
           precision: str) -> tuple[float, float]:
    def autocast(inputs: Tensor) -> Tensor:
        with _autocast(device, precision):
            return forward(inputs)

    part = us.part(len(task.check_labels))
    mine = predict(autocast, lambda which, samples: task.check_inputs(which, samples + part.start),
                   part.stop - part.start) if part.stop > part.start else None
    logits = torch.from_numpy(np.concatenate([each for each in us.gathered(mine) if each is not None]))
    labels = torch.from_numpy(task.check_labels)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


def _mean_of_finite(losses: Tensor, epoch: int) -> float:
    """The epoch's mean loss; checked here, once, since a look at every step would make a GPU wait."""
    wrong = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(wrong):
        raise _failed(epoch, int(wrong[0]) + 1, "loss", losses[wrong[0]].item())
    return losses.double().mean().item()


def _failed(epoch: int, step: int, what: str, value: float) -> RunFailed:
    return RunFailed(f"epoch {epoch}, step {step}: the {what} is {value}; "
                     "a smaller training.learning_rate is the usual remedy")


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "float32")


def _seed(device: torch.device, seed: int) -> None:
    """Seed what a training on this device draws from; no other device's generator, since only its own was forked."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _devices(device: torch.device) -> list[int]:
    return [torch.cuda.current_device()] if device.type == "cuda" else []


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Hold PyTorch to this number of CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _save(path: Path, network: Network, optimiser: torch.optim.Optimizer, scheduler: Scheduler,
          scaler: torch.amp.GradScaler, result: Fit, best: dict[str, Tensor]) -> None:
    """Write the checkpoint as one safetensors file, whose metadata hold the rest as JSON; one rename puts it there."""
    tensors = {f"model/{name}": tensor for name, tensor in trained_state(network).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    state = optimiser.state_dict()
    for number, entries in state["state"].items():
        tensors |= {f"optimiser/{number}/{name}": tensor for name, tensor in entries.items() if torch.is_tensor(tensor)}
    rest = {"history": result.history, "best_epoch": result.best_epoch, "best_accuracy": result.best_accuracy,
            "groups": state["param_groups"], "scheduler": scheduler.state_dict(), "scaler": scaler.state_dict()}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(rest)
    temporary = path.with_suffix(".tmp")
    with store.guard_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(kept, temporary, metadata={"rest": text, "sha256": _digest(text, kept)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _digest(rest: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over all that a checkpoint holds: a flipped bit in it would go on into the weights."""
    digest = hashlib.sha256(rest.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _begin(us: Crew, checkpoint: Path | None, network: Network, optimiser: torch.optim.Optimizer, scheduler: Scheduler,
           scaler: torch.amp.GradScaler) -> tuple[Fit, dict[str, Tensor]]:
    """What is done already, and the best weights so far: the main process's, to the bit, in every process."""
    saved = us.told(lambda: None if checkpoint is None else _read(checkpoint))
    if saved is not None:
        return _resume(saved, network, optimiser, scheduler, scaler)
    best = us.told(lambda: trained_state(network))
    if not us.main:
        load_trained(network, best)
    return Fit(), best


Saved = tuple[dict[str, Any], dict[str, Tensor]]
"""A checkpoint: what JSON holds of it, and its tensors."""


def _read(path: Path) -> Saved | None:
    """The checkpoint if one lies there; a damaged one is removed, and the training starts anew."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no iterator)
        if said["sha256"] != _digest(said["rest"], tensors):
            raise ValueError("its checksum does not match")
        return json.loads(said["rest"]), tensors
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        say(f"{path}: cannot be read ({error}); this training starts anew")
        path.unlink()
        return None


def _resume(saved: Saved, network: Network, optimiser: torch.optim.Optimizer, scheduler: Scheduler,
            scaler: torch.amp.GradScaler) -> tuple[Fit, dict[str, Tensor]]:
    rest, tensors = saved
    load_trained(network, _under("model/", tensors))
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimiser/", tensors).items():
        number, _, key = name.partition("/")
        like = parameters[int(number)]
        # Fused optimisers walk through memory: what belongs to a channels-last parameter must lie as it does.
        laid = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        entries.setdefault(int(number), {})[key] = laid
    optimiser.load_state_dict({"state": entries, "param_groups": rest["groups"]})
    scheduler.load_state_dict(rest["scheduler"])
    scaler.load_state_dict(rest["scaler"])
    return Fit(rest["history"], rest["best_epoch"], rest["best_accuracy"]), _under("best/", tensors)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
