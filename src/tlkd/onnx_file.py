"""A network as one ONNX file that takes images as they are, and the check of it against PyTorch on real images."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkd.errors import RunFailed
from tlkd.standalone import INPUT, OUTPUT, Pixels, Preparation, Refused, channels, onnx_logits, resampling
from tlkd.weights import brief

EXTRA = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # of the largest logit, at least of 1: by how much ONNX Runtime may differ from PyTorch
BATCHES = (1, 7, 32)  # sizes that are checked
SINGLE = 20  # images that are checked one at a time, and seven at a time
LARGEST = 2**31 - 2**20  # bytes: what one protocol buffer holds


@dataclass(frozen=True)
class Check:
    """ONNX Runtime beside PyTorch on the same images."""

    images: int
    batch_sizes: tuple[int, ...]
    difference: float  # the largest, of a logit
    tolerance: float
    agreeing: int  # images with the same winner


class WithPreparation(nn.Module):
    """A network behind what its input needs: uint8 squares `[image, side, side, 3]` are normalised and resized."""

    scale: Tensor
    shift: Tensor
    weights: Tensor

    def __init__(self, network: nn.Module, ready: Preparation) -> None:
        super().__init__()
        self.network = network
        self.resized = ready.decoded_side != ready.input_size
        for name, array in zip(("scale", "shift"), channels(ready), strict=True):
            self.register_buffer(name, torch.from_numpy(array))
        if self.resized:
            self.register_buffer("weights", torch.from_numpy(resampling(ready.decoded_side, ready.input_size)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[image, class]`."""
        pixels = (images.float() * self.scale + self.shift).permute(0, 3, 1, 2)
        if self.resized:
            pixels = torch.matmul(self.weights, torch.matmul(pixels, self.weights.transpose(0, 1)))
        logits: Tensor = self.network(pixels.contiguous())
        return logits


def write(network: nn.Module, ready: Preparation, path: Path, name: str) -> None:
    """Write a network and its preparation as one ONNX file for batches of any size, in which no path of ours stands.

    Raises `RunFailed` where PyTorch cannot translate the network, or where one file cannot hold it.
    """
    import onnx

    size = sum(each.numel() * each.element_size() for each in network.state_dict().values())
    if size > LARGEST:
        raise RunFailed(f"{name}: its weights take {size / 2**30:.1f} GiB, and one ONNX file holds 2")
    module = WithPreparation(network, ready).eval()
    example = torch.zeros((2, ready.decoded_side, ready.decoded_side, 3), dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                module, (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    except Exception as error:  # the exporter fails with whatever an operator sets off
        raise RunFailed(f"{name}: PyTorch cannot write it as ONNX ({brief(error)})") from error
    proto: onnx.ModelProto = program.model_proto
    _forget_paths(proto)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _forget_paths(proto: Any) -> None:
    """Take out the exporter's notes, which hold stack traces with the paths of this machine."""
    for part in (proto, proto.graph, *proto.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    for graph in (proto.graph, *proto.functions):
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


def check(path: Path, expected: NDArray[Any], squares: Pixels, ready: Preparation) -> Check:
    """Hold the ONNX file to PyTorch's logits `[image, class]` of these squares, in batches of several sizes.

    Raises `RunFailed` where a logit differs by more than the tolerance or another class wins.
    """
    try:
        logits = onnx_logits(path, ready, threads=1)
    except Refused as error:
        raise RunFailed(str(error)) from None
    tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    difference, wrong = 0.0, set()
    for size in BATCHES:
        count = len(squares) if size == max(BATCHES) else min(SINGLE, len(squares))
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            found = logits(squares[rows])
            difference = max(difference, float(np.abs(found - expected[rows]).max()))
            wrong |= set((start + np.flatnonzero(found.argmax(1) != expected[rows].argmax(1))).tolist())
    made = Check(len(squares), BATCHES, difference, tolerance, len(squares) - len(wrong))
    order = np.sort(expected, axis=1)
    ties = {row for row in wrong if order[row, -1] - order[row, -2] <= 2 * tolerance}
    if not difference <= tolerance or wrong - ties:  # a NaN is no agreement either
        raise RunFailed(f"{path.name}: differs from PyTorch by up to {difference:.2g} in a logit (allowed: "
                        f"{tolerance:.2g}) and agrees on the winner of {made.agreeing} of {made.images} images; "
                        "nothing was exported")
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes for developers to itself."""
    names = ("torch.onnx", "torch.onnx._internal.exporter", "onnxscript", "onnx_ir", "torch.export")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
