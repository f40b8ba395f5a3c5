"""What a network costs: parameters, bytes, multiplications, and the time it takes for one image on this machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tlkd.training import threads

WARM, FEWEST, MOST = 3, 20, 200  # rounds
BUDGET = 8.0  # seconds for all that is timed together


@dataclass(frozen=True)
class Latency:
    """The time of one image in seconds: the median, and between what 80 of 100 lie."""

    median: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class Size:
    """How large a network is; `macs`, multiplications with addition for one image, is None where none were counted."""

    parameters: int
    bytes: int
    macs: int | None


def size_of(module: nn.Module, input_size: int) -> Size:
    """Parameters, the bytes of all tensors, and the multiply-adds of convolutions and matrix products for one image."""
    state = module.state_dict().values()
    return Size(sum(each.numel() for each in module.parameters()),
                sum(each.numel() * each.element_size() for each in state), _macs(module, input_size))


def _macs(module: nn.Module, input_size: int) -> int | None:
    """Half of what PyTorch counts as floating-point operations."""
    image = torch.zeros(1, 3, input_size, input_size, device=next(module.parameters()).device)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels are not counted, nor are those of attention
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(image)
        return int(counter.get_total_flops()) // 2 or None
    except (RuntimeError, NotImplementedError):  # an operator that cannot be counted
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def latencies(calls: Mapping[str, Callable[[], Any]], thread_count: int = 1) -> dict[str, Latency]:
    """The time of each call, taken in turns, so that whatever else the machine does strikes all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode(), threads(thread_count):
        for call in calls.values():
            for _ in range(WARM):
                call()
        started = time.perf_counter()
        for done in range(MOST):
            if done >= FEWEST and time.perf_counter() - started > BUDGET:
                break
            for name, call in calls.items():
                before = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - before)
    found = {}
    for name, each in times.items():
        low, median, high = map(float, np.quantile(each, [0.1, 0.5, 0.9]))
        found[name] = Latency(median, low, high, len(each))
    return found
