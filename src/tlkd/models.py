"""Networks as backbone, dropout and head: built, loaded, split, frozen where the study says so, and described."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.vision_transformer import Encoder

from tlkd import specs
from tlkd.dropout import Dropout
from tlkd.errors import BadInput
from tlkd.seeding import Name, seed_from
from tlkd.weights import Triple, Whole, brief, known_models, packaged_weights, whole_network

__all__ = ["Description", "Layer", "Network", "backbone_hash", "build", "describe", "has_frozen_backbone",
           "known_models", "load_trained", "packaged_weights", "trained_state"]

# What `last:N` looks into; torchvision's Encoder is nothing but the list of a ViT's blocks and the norm after it.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Encoder)


class Network(nn.Module):
    """A backbone that makes features, dropout, and a linear head that makes logits.

    `mean` and `sd` are the normalisation that the weights expect of pixels in [0, 1]; it is not applied here.
    `width` counts the features, `origin` says where the weights came from, `licence` theirs where it is known.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, *, name: str, classes: int, width: int, input_size: int,
                 dropout: float, mean: Triple, sd: Triple, origin: str, licence: str | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = Dropout(dropout)
        self.head = head
        self.name, self.classes, self.width, self.input_size = name, classes, width, input_size
        self.mean, self.sd, self.origin, self.licence = mean, sd, origin, licence
        # Names of the backbone's modules that may be in train mode; names, since they survive a deep copy.
        self.live: frozenset[str] = frozenset(name for name, _ in backbone.named_modules())

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes]` of normalised images `[B, 3, input_size, input_size]`."""
        return self.classify(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Features `[B, width]` of normalised images `[B, 3, input_size, input_size]`, before dropout."""
        features: Tensor = self.backbone(images)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits `[B, classes]` of features `[B, width]`: what is left to do where features are banked."""
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def train(self, mode: bool = True) -> "Network":
        """Switch what is trained between training and evaluation; what is frozen stays in eval mode always.

        Frozen BatchNorm layers are switched too where the spec says `batch_norm: train`.
        """
        super().train(mode)
        for name, module in self.backbone.named_modules():
            module.training = mode and name in self.live
        return self


@dataclass(frozen=True)
class Layer:
    """One layer as `describe` lists it: its own parameters, and its output's shape without the batch where it ran."""

    name: str
    kind: str
    output: tuple[int, ...] | None
    parameters: int
    trainable: bool


@dataclass(frozen=True)
class Description:
    """A network's layers and its counts of parameters; `trainable + frozen == total`."""

    name: str
    layers: tuple[Layer, ...]
    trainable: int
    frozen: int
    total: int


def build(spec: specs.Network, classes: int, seed: int, *, fit: bool = True) -> Network:
    """Build a network with its weights, its head and what of it is trained, in eval mode and channels-last.

    With `fit` the head is made anew from `seed` whatever the weights hold, so that all arms start alike. Without, the
    network is taken as it is: its head comes from the weights and must have `classes` outputs. `weights: none` makes
    the backbone from `seed`. PyTorch's global random numbers are left as they were. Raises BadInput for an unknown
    model, weights that are missing or do not fit, an input size that the network cannot take, and too many units.
    """
    if not fit and spec.weights == "none":
        raise BadInput(f"weights: found 'none'; {spec.model} with fit: false needs weights that hold its head")
    with _isolated("backbone", seed):
        return _assemble(whole_network(spec, classes, fit), spec, classes, seed, fit)


def renew_head(network: Network, seed: int) -> None:
    """Give a network the head that `build` would have drawn for `seed`."""
    with torch.no_grad():
        for own, new in zip(network.head.parameters(), _new_head(network.width, network.classes, seed).parameters(),
                            strict=True):
            own.copy_(new)


def trained_state(network: Network) -> dict[str, Tensor]:
    """Copies of all that training may change, on the CPU: trainable parameters, and the statistics of live BatchNorm.

    The rest of the network is what it was built from; `backbone_hash` names it.
    """
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in _trained(network).items()}


def load_trained(network: Network, state: dict[str, Tensor]) -> None:
    """Put what `trained_state` gave back into a network of the same spec; raises BadInput where it does not fit."""
    own = _trained(network)
    wrong = [name for name in {**own, **state} if name not in own or name not in state
             or (own[name].shape, own[name].dtype) != (state[name].shape, state[name].dtype)]
    if wrong:
        raise BadInput(f"trained state: {len(wrong)} tensors do not fit {network.name}: {', '.join(wrong[:3])}"
                       f"{', ...' if len(wrong) > 3 else ''} (missing, unexpected, or of another shape or type)")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def backbone_hash(network: Network) -> str:
    """SHA-256 over names, types, shapes and bytes of the backbone's tensors, as 64 hexadecimal digits.

    Taken over the whole backbone: of one with trained parts it changes in training.
    """
    return state_hash(network.backbone.state_dict())


def state_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def has_frozen_backbone(network: Network) -> bool:
    """Whether nothing in the backbone changes in training, so that its features may be banked."""
    return not network.live and not any(parameter.requires_grad for parameter in network.backbone.parameters())


def describe(name: str, classes: int, input_size: int, trainable: str = "head") -> Description:
    """List a network's layers in order of definition, and count its parameters; needs neither weights nor network."""
    try:
        spec = specs.Network(model=name, weights="none", input_size=input_size, trainable=trainable)
    except ValidationError as error:
        problem = error.errors()[0]
        pattern = problem.get("ctx", {}).get("pattern", "")
        said = specs.PATTERNS.get(pattern, problem["msg"].removeprefix("Value error, "))
        raise BadInput(f"{problem['loc'][0]}: found {problem['input']!r}; {said}") from error
    try:
        with _isolated("describe"), torch.device("meta"):
            network = _assemble(whole_network(spec, classes, True), spec, classes, 0, True)
    except (BadInput, RuntimeError, NotImplementedError):  # some networks compute with values while they are made
        network = build(spec, classes, 0)
    layers = tuple(_layers(network))
    learns = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in network.parameters())
    return Description(name, layers, learns, total - learns, total)


def _layers(network: Network) -> Iterator[Layer]:
    """The modules that own parameters or did something in a pass over one image."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            shapes.setdefault(module, tuple(first.shape[1:]))

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        _run(network, network.name, network.input_size)
    finally:
        for hook in hooks:
            hook.remove()
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        does = module in shapes and not any(True for _ in module.children()) and not isinstance(module, nn.Identity)
        if own or does:
            yield Layer(name, type(module).__name__, shapes.get(module), sum(item.numel() for item in own),
                        any(item.requires_grad for item in own))


@contextmanager
def _isolated(*names: Name) -> Iterator[None]:
    """Draw PyTorch's random numbers from a seed of its own, and put the global generator back as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every GPU as well, which the fork does not put back.
        torch.default_generator.manual_seed(seed_from(*names))
        yield


def _assemble(whole: Whole, spec: specs.Network, classes: int, seed: int, fit: bool) -> Network:
    """Split a whole network, give it its head, and lay on what is trained."""
    before = None if fit else _run(whole.module, spec.model, spec.input_size)
    fitted = None if fit else _linear(whole, spec.model)
    backbone = _split(whole, spec.model)
    features = _run(backbone, spec.model, spec.input_size)
    if features.ndim != 2:
        raise BadInput(f"model: found {spec.model!r}; it cannot be split into backbone and head: its features have "
                       f"the shape {list(features.shape[1:])}")
    width = features.shape[1]
    head = fitted or _new_head(width, classes, seed).to(features.device)
    network = Network(backbone, head, name=spec.model, classes=classes, width=width, input_size=spec.input_size,
                      dropout=spec.dropout, mean=whole.mean, sd=whole.sd, origin=whole.origin, licence=whole.licence)
    if before is not None:
        after = _run(network, spec.model, spec.input_size)
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max())):
            raise _no_linear_head(spec.model)
    _lay_trainable(network, spec)
    # One call for the layout, one for the mode: a network is evaluated until someone says that it trains.
    return network.to(memory_format=torch.channels_last).eval()


def _new_head(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer as PyTorch initialises one by default (Kaiming uniform with a = sqrt(5)), from a named seed."""
    draws = torch.Generator(device="cpu").manual_seed(seed_from("head", seed))
    head = nn.Linear(width, classes, device="cpu")
    bound = 1 / math.sqrt(width)
    nn.init.kaiming_uniform_(head.weight, a=math.sqrt(5), generator=draws)
    nn.init.uniform_(head.bias, -bound, bound, generator=draws)
    return head


def _lay_trainable(network: Network, spec: specs.Network) -> None:
    """Freeze what `trainable` does not name, and note which modules of the backbone may be in train mode."""
    modules = list(network.backbone.named_modules())
    if spec.trainable == "all":
        return
    first = len(modules)
    kept: set[int] = set()
    if spec.trainable.startswith("last:"):
        units = list(_units(network.backbone))
        count = int(spec.trainable.removeprefix("last:"))
        if count > len(units):
            raise BadInput(f"trainable: found {spec.trainable!r}; {spec.model} has {len(units)} units below its head; "
                           f"allowed: head, all, last:1 to last:{len(units)}")
        first = [name for name, _ in modules].index(units[-count][0])
        kept = {id(parameter) for _, parameters in units[-count:] for parameter in parameters}
    for parameter in network.backbone.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
    # All that is defined from the first trained unit on belongs to it or lies behind it: dropout between two trained
    # layers is on, and what contains a frozen layer is defined before.
    live = {name for name, _ in modules[first:]}
    if spec.batch_norm == "train":
        live |= {name for name, module in modules if isinstance(module, _BatchNorm)}
    network.live = frozenset(live)


def _units(module: nn.Module, path: str = "") -> Iterator[tuple[str, list[nn.Parameter]]]:
    """The units that `last:N` counts, in order of definition: modules with parameters; containers are entered.

    Parameters that a container itself owns (a class token, positions) come first: they enter at its input.
    """
    own = list(module.parameters(recurse=False))
    if own:
        yield path, own
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, CONTAINERS):
            yield from _units(child, child_path)
        elif any(True for _ in child.parameters()):
            yield child_path, list(child.parameters())


def _trained(network: Network) -> dict[str, Tensor]:
    """The network's own tensors that training may change, by name."""
    tensors: dict[str, Tensor] = {
        name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    persistent = network.state_dict(keep_vars=True)
    for name, module in network.backbone.named_modules():
        if name in network.live:
            path = f"backbone.{name}." if name else "backbone."
            tensors |= {path + key: item for key, item in module.named_buffers(recurse=False)
                        if path + key in persistent}
    return tensors


def _run(module: nn.Module, model: str, input_size: int) -> Tensor:
    """One image through a network in eval mode; raises BadInput where its size cannot pass."""
    device = next(module.parameters()).device
    image = torch.linspace(-1, 1, 3 * input_size * input_size, device=device).reshape(1, 3, input_size, input_size)
    was_training = module.training
    try:
        with torch.no_grad():
            output: Tensor = module.eval()(image)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(f"input_size: found {input_size}; {model} cannot take it: {brief(error)}") from error
    module.train(was_training)
    return output


def _split(whole: Whole, model: str) -> nn.Module:
    """Take the head off, and the dropout right before it, whose place is taken by the network's own."""
    if not model.startswith("torchvision:"):
        whole.module.reset_classifier(0)  # type: ignore[operator]
        return whole.module
    parent_name, _, name = whole.heads[0].rpartition(".")
    parent = whole.module.get_submodule(parent_name)
    setattr(parent, name, nn.Identity())
    if isinstance(parent, nn.Sequential):
        for place in reversed(range(list(dict(parent.named_children())).index(name))):
            if not isinstance(parent[place], nn.Dropout):
                break
            parent[place] = nn.Identity()
    return whole.module


def _linear(whole: Whole, model: str) -> nn.Linear:
    """The head that came with the weights, as a linear layer."""
    old = whole.module.get_submodule(whole.heads[0])
    weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
    if len(whole.heads) != 1 or not isinstance(old, nn.Linear | nn.Conv2d) or not isinstance(weight, Tensor):
        raise _no_linear_head(model)
    flat = weight.detach().reshape(weight.shape[0], -1)  # a 1 x 1 convolution after the pooling is a linear layer
    head = nn.Linear(flat.shape[1], flat.shape[0], bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(flat)
        if bias is not None:
            head.bias.copy_(bias)
    return head


def _no_linear_head(model: str) -> BadInput:
    return BadInput(f"fit: found false; the head of {model} is not one linear layer behind its features, so it cannot "
                    "be taken as it is; allowed: fit: true")
