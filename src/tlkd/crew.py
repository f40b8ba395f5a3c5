"""A crew: the processes that `accelerate launch` or `torchrun` starts, which train each network together.

The main process runs the study as if it were alone. Whenever it is about to train it calls the others, which have been
waiting: each makes the same training ready for itself, all enter the loop, and in every step each takes its part of the
batch. Nothing else is done by all, so that nothing else can fail in one process and hang in another.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tlkd.errors import BadInput, RunFailed, missing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")

# What launchers call the number of processes, and this one's among them: torchrun's names, then those of MPI.
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
PATIENCE = timedelta(days=7)  # that the others wait while the main process does what it does alone


class Parted(BaseException):
    """One process left a training that the others are still in: only a new start of all mends that.

    No `Exception`, since nothing that keeps the failure of one run and goes on to the next may catch it.
    """


def size() -> int:
    """The number of processes that were started together: 1 alone."""
    return _number(SIZES, 1) if "MASTER_ADDR" in os.environ else 1  # MPI's names alone may belong to a batch system


def rank() -> int:
    """The number of this process among them; the main process has 0."""
    return _number(RANKS, 0) if size() > 1 else 0


def follows() -> bool:
    """Whether another process leads."""
    return rank() > 0


def _number(names: tuple[str, ...], otherwise: int) -> int:
    found = next((os.environ[name] for name in names if name in os.environ), "")
    return int(found) if found.isdigit() else otherwise


@dataclass(frozen=True)
class Crew:
    """Those who are at work on one training, and what they tell each other; alone all of it is the identity."""

    size: int = 1
    rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of `count` samples are this process's: no part of one, since batch norm has no variance of one.

        Parts are equal to the nearest sample; where there are too few samples the last processes get none.
        """
        parts = max(1, min(self.size, count // 2))
        if self.rank >= parts:
            return slice(count, count)
        return slice(*((count * number + parts - 1) // parts for number in (self.rank, self.rank + 1)))

    def summed(self, values: "Tensor") -> "Tensor":
        """The sum over all processes, the same bits in each."""
        if self.size == 1:
            return values
        from accelerate.utils import reduce

        with _heard():
            total: Tensor = reduce(values, reduction="sum")
        return total

    def told(self, say: Callable[[], Value]) -> Value:
        """What the main process has to say, which it alone is asked for."""
        return _tell(say() if self.main else None) if self.size > 1 else say()

    def gathered(self, value: Value) -> list[Value]:
        """What each process has, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed

        found: list[Any] = [None] * self.size
        with _heard():
            torch.distributed.all_gather_object(found, value, group=_joined.channel)
        return found


ALONE = Crew()


@dataclass
class _Joined:
    """What this process knows of its crew."""

    there: bool = False
    channel: Any = None  # a group for words rather than tensors: on gloo, so that no GPU is kept busy by waiting
    context: Any = None  # what every order comes with
    order: str = ""  # the address of what is to be trained
    at_work: Crew = ALONE
    deaf: bool = False  # called to a training, and not through it: nobody listens to anything else meanwhile


_joined = _Joined()


def at_work() -> Crew:
    """The crew in the middle of a training that all were called to; otherwise this process alone."""
    return _joined.at_work


def note() -> dict[str, int]:
    """What a manifest says of a training's processes: nothing where there was one."""
    return {"processes": size()} if _joined.there else {}


def join(device: "torch.device") -> "torch.device":
    """Meet the other processes, which do the same, and return this one's device of the same type.

    Raises `BadInput` without accelerate, and where there are fewer GPUs than processes.
    """
    import torch

    if device.type == "cuda" and _number(("LOCAL_WORLD_SIZE",), 1) > torch.cuda.device_count():
        raise BadInput(f"{_number(('LOCAL_WORLD_SIZE',), 1)} processes were started, but torch sees "
                       f"{torch.cuda.device_count()} GPUs here; allowed: a GPU for each, or --device cpu")
    try:
        from accelerate import PartialState
        from accelerate.utils import DistributedType, InitProcessGroupKwargs
    except ImportError:
        raise missing(f"training by {size()} processes that were started together", "accelerate") from None
    state = PartialState(cpu=device.type == "cpu", **InitProcessGroupKwargs(timeout=PATIENCE).to_kwargs())
    if state.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise BadInput(f"accelerate's configuration asks for {state.distributed_type.value}; allowed: MULTI_GPU and "
                       "MULTI_CPU (see `accelerate config`)")
    _joined.channel = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    _joined.there = True
    own: torch.device = state.device
    return own


def _tell(value: Any) -> Any:
    """The main process's value, in all processes."""
    import torch.distributed

    found = [value]
    with _heard():
        torch.distributed.broadcast_object_list(found, src=0, group=_joined.channel)
    return found[0]


@contextmanager
def _heard() -> Iterator[None]:
    """Say in words what a broken connection means; the other process has to say what broke it."""
    try:
        yield
    except RuntimeError as error:
        raise Parted(f"another process is gone, it seems ({_line(error)[:200]})") from None


# --- the main process -------------------------------------------------------------------------------------------------


def lead(context: Any) -> None:
    """Have every order come with `context` from now on."""
    _joined.context = context


@contextmanager
def call(do: Callable[..., Any], what: Any, where: str) -> Iterator[None]:
    """What all processes do in step: where the main process comes to this, it calls the others.

    `do`, a function that can be imported, leads another process to this same place when it is called with `what`;
    `where` is the address of what is made. `RunFailed` must be met by all alike. What one process meets alone ends all
    of them: `BadInput` as it is, anything else as `Parted`.
    """
    if not _joined.there:
        yield
        return
    if not follows():
        _tell((_joined.context, do, what, where))
    elif where != _joined.order:
        raise BadInput(f"it came to train {where} where the main process trains {_joined.order}: the processes see "
                       "other data, weights or results; several machines need one TLKD_CACHE and one --out")
    _joined.at_work, _joined.deaf = Crew(size(), rank()), True
    try:
        yield
    except RunFailed:
        _joined.deaf = False
        raise
    except BadInput:  # a full disk, say
        raise
    except Exception as error:
        raise Parted(_line(error)) from error
    else:
        _joined.deaf = False
    finally:
        _joined.at_work = ALONE


def dismiss() -> None:
    """Let the others go, if they listen; the launcher ends those that do not when this process ends."""
    if _joined.there and not _joined.deaf:
        _tell(None)
        _leave()


# --- the others -------------------------------------------------------------------------------------------------------


def follow(take: Callable[[Any, Callable[..., Any], Any], Any]) -> None:
    """Have `take` carry out the main process's orders, context, function and what to call it with, until it lets go."""
    while (order := _tell(None)) is not None:
        context, do, what, _joined.order = order
        _joined.deaf = True
        try:
            take(context, do, what)
        except RunFailed as error:
            if _joined.deaf:  # it was not the training that failed, in all processes, but the way to it, here
                raise Parted(_line(error)) from error
        if _joined.deaf:
            raise Parted(f"called to train {_joined.order}, it found nothing to do")
    _leave()


def ordered(where: str) -> bool:
    """Whether this process was called to train what has this address, which the main process will publish."""
    return follows() and _joined.there and where == _joined.order


def _leave() -> None:
    from accelerate import PartialState

    _joined.there = False
    PartialState().destroy_process_group()


# --- words ------------------------------------------------------------------------------------------------------------


def misled() -> str:
    """Why several processes were asked for and this one is alone, or nothing where that is not so."""
    by_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    if not by_accelerate or not os.environ.keys().isdisjoint(SIZES):
        return ""
    return ("accelerate starts one process only where it finds no GPU and no --mpirun_hostfile, whatever "
            "--num_processes says; allowed: accelerate launch --multi_gpu --num_processes N -m tlkd ... --device cpu "
            "(it starts N processes without a GPU, too), torchrun, or --num_processes 1")


def signature() -> str:
    """What goes before a line of this process: nothing for the main process, its number for another."""
    return f"process {rank()} of {size()}: " if follows() else ""


def silent() -> bool:
    """Whether another process of this machine meets the same error and says it for all."""
    return follows() and not _joined.there and _number(("LOCAL_RANK",), 0) > 0


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
