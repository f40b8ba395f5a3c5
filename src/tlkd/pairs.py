"""Pairs of images and references at one operator after the other: what the rules of Deep SHAP read and give."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tlkd.errors import BadInput
from tlkd.program import Constants, Program

Given = Iterable[tuple[fx.Node, Tensor]]  # multipliers of inputs

SMALL = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Differences up to this are not divided by; the mean derivative stands in, wrong by no more than their square."""


class NoRule(BadInput):
    """An operator that cannot be explained; the text names it and the network."""


@dataclass(eq=False)
class Pairs:
    """Pairs of images and references, each with several targets, at one node after the other.

    A multiplier's batch axis holds image x reference x target, outermost first, and inside of them what a single image
    has along that axis; `split` takes them apart, so that images `[image, 1, 1]` and references `[1, reference, 1]`
    broadcast against multipliers `[image, reference, target]`.
    """

    program: Program
    constants: Constants
    images: dict[fx.Node, Any]
    references: dict[fx.Node, Any]
    counts: tuple[int, int, int]  # images, references, targets

    @property
    def batch(self) -> int:
        """The number of pairs times targets."""
        return math.prod(self.counts)

    def axis(self, node: fx.Node) -> tuple[int, int]:
        """`Program.batch_axis` of a node whose values are read: they must lie image after image."""
        if node in self.program.interleaved:
            raise no_rule(self, node, " where the images of a batch do not lie one after the other")
        return self.program.batch_axis(node)

    def _view(self, node: fx.Node, value: Tensor, counts: tuple[int, int, int]) -> Tensor:
        axis, inner = self.axis(node)
        return value.reshape(*value.shape[:axis], *counts, inner, *value.shape[axis + 1:])

    def image(self, node: fx.Node, value: Tensor | None = None) -> Tensor:
        """A node's values on the images, `[..., image, 1, 1, inner, ...]`."""
        return self._view(node, self.images[node] if value is None else value, (self.counts[0], 1, 1))

    def reference(self, node: fx.Node, value: Tensor | None = None) -> Tensor:
        """A node's values on the references, `[..., 1, reference, 1, inner, ...]`."""
        return self._view(node, self.references[node] if value is None else value, (1, self.counts[1], 1))

    def split(self, node: fx.Node, multipliers: Tensor) -> Tensor:
        """Multipliers `[..., image, reference, target, inner, ...]`."""
        return self._view(node, multipliers, self.counts)

    def join(self, node: fx.Node, multipliers: Tensor) -> Tensor:
        """The inverse of `split`."""
        axis, _ = self.axis(node)
        return multipliers.flatten(axis, axis + 3)

    def mean(self, node: fx.Node) -> Tensor:
        """The mean of each pair's two values, `[..., image, reference, 1, inner, ...]`."""
        return (self.image(node) + self.reference(node)) / 2

    def means(self, node: fx.Node) -> Tensor:
        """The mean of each pair's two values, repeated for each target, in the layout of a batch."""
        mean = self.mean(node)
        axis, _ = self.axis(node)
        shape = list(mean.shape)
        shape[axis:axis + 3] = self.counts
        return self.join(node, mean.expand(shape))

    def constant(self, item: Any) -> Any:
        """An argument that is no activation, for a batch of all pairs."""
        return self.constants.resolve(item, self.batch, {})

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """A node's shape for a batch of all pairs."""
        axis, inner = self.program.batch_axis(node)
        shape = [int(size) if isinstance(size, int) else 0 for size in node.meta["val"].shape]
        shape[axis] = self.batch * inner
        return tuple(shape)

    def active(self, item: Any) -> bool:
        """Whether an argument depends on the image."""
        return isinstance(item, fx.Node) and item in self.program.active


def no_rule(pairs: Pairs, node: fx.Node, what: str = "") -> NoRule:
    """The error for a node that cannot be explained."""
    return NoRule(f"{pairs.program.name}: Deep SHAP has no rule for the operator {node.target}{what}")


def arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by their names, with the operator's defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((each.name for each in schema.arguments), node.args, strict=False))
    return {each.name: each.default_value for each in schema.arguments} | given | dict(node.kwargs)


def only(pairs: Pairs, node: fx.Node, *names: str) -> dict[str, Any]:
    """A node's arguments by name; refuses activations anywhere but in these."""
    found = arguments(node)
    elsewhere: list[fx.Node] = []
    fx.node.map_arg({name: item for name, item in found.items() if name not in names},
                    elsewhere.append)
    if any(each in pairs.program.active for each in elsewhere):
        raise no_rule(pairs, node, f" with an activation elsewhere than in {' and '.join(names)}")
    return found
