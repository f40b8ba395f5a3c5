"""Deep SHAP: additive attributions of a network's outputs to the pixels of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import one_hot

from tlkd.compositions import output_softmax
from tlkd.errors import BadInput, RunFailed
from tlkd.pairs import Pairs, no_rule
from tlkd.program import Constants, Program, operator_name, run, trace
from tlkd.rules import kept, rule_of

Targets = Literal["winner", "all"] | int | Sequence[int] | Tensor
Output = Literal["logit", "probability"]
Seed = Callable[[slice, Tensor, Tensor], Tensor]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""How far attributions may miss the output, as a fraction of the range of outputs, or of 1 where that is smaller."""


@dataclass(frozen=True, eq=False)
class Attributions:
    """What each pixel contributes to an output: `values` sum to `output - expected`, up to `residual`.

    The residual is nan where the explainer is not additive.
    """

    values: Tensor  # [image, channel, height, width], or with targets "all" [image, class, channel, height, width]
    output: Tensor  # [image] or [image, class]
    expected: Tensor  # as `output`: the mean output on the background
    residual: Tensor  # as `output`: sum of values + expected - output, in float64


@dataclass(eq=False)
class _Found:
    """The attributions of one head's chosen classes, beside what they should sum to, `[image, target, ...]`."""

    values: Tensor
    output: Tensor
    expected: Tensor
    classes: Tensor
    span: Tensor  # [image, 1]: the range of an image's outputs and the background's, or 1 where that is smaller

    @property
    def residual(self) -> Tensor:
        return self.values.flatten(2).double().sum(2) + self.expected - self.output

    def missed(self, dtype: torch.dtype) -> Tensor:
        """Which images' attributions miss their outputs by more than may be, `[image]`; not even nan may pass."""
        return ~(self.residual.abs() <= TOLERANCE[dtype] * self.span).all(1)

    def put(self, rows: Tensor, better: "_Found") -> None:
        """Replace some images' attributions and what they should sum to."""
        for name in ("values", "output", "expected"):
            getattr(self, name)[rows] = getattr(better, name).to(getattr(self, name).dtype)

    def shaped(self, targets: Targets) -> Attributions:
        """As the caller wants it: without the axis of targets where each image has one."""
        every = (self.values, self.output, self.expected, self.residual)
        return Attributions(*every) if isinstance(targets, str) and targets == "all" else Attributions(
            *(each[:, 0] for each in every))


def deep_shap(model: nn.Module, images: Tensor, background: Tensor, targets: Targets = "winner",
              output: Output = "logit", chunk_size: int = 32, program: Program | None = None) -> Attributions:
    """Deep SHAP values: the mean over the background of the DeepLIFT contributions of each pixel.

    `images` and `background` are `[B, channel, height, width]` as the network takes them. `targets` names the outputs:
    each image's largest, all of them, one class for all images, or one for each. `chunk_size` counts the pairs of image
    and reference that are held in memory at a time. `program` is the network as `trace` gives it, where it is at hand.

    Raises `NoRule` for an operator without a rule, and `RunFailed` where the values of an image miss its output by more
    than `TOLERANCE`, in float64 too. Lundberg & Lee, "A unified approach to interpreting model predictions", 2017,
    section 4.2; the rules stand in `rules`.
    """
    return deep_shap_of_heads(model, [None], images, background, [targets], output, chunk_size, program)[0]


@torch.no_grad()
def deep_shap_of_heads(backbone: nn.Module, heads: Sequence[nn.Linear | None], images: Tensor, background: Tensor,
                       targets: Sequence[Targets], output: Output = "logit", chunk_size: int = 32,
                       program: Program | None = None) -> list[Attributions]:
    """Deep SHAP values of several networks that share a backbone: as `deep_shap` of each, at less than its cost.

    Each head maps the backbone's outputs to logits, None takes them as they are; `targets` names the outputs of each.
    The backbone's activations, and all that the rules make of them, are computed once for all heads.
    """
    if program is None:
        program = trace(backbone, tuple(images.shape[1:]))
    _check(program, heads, images, background, targets, output, chunk_size)
    constants = Constants.of(program, backbone)
    if constants.dtype not in TOLERANCE:  # half precision has no rules of its own
        constants = Constants.of(program, backbone, torch.float32)
    images, background = constants.cast(images), constants.cast(background)
    found = _explained(program, constants, heads, images, background, targets, output, chunk_size)
    missed = torch.stack([each.missed(constants.dtype) for each in found]).any(0)
    if missed.any() and constants.dtype != torch.float64:
        exact = Constants.of(program, backbone, torch.float64)
        better = _explained(program, exact, heads, images[missed], background, targets, output, chunk_size,
                            [each.classes[missed] for each in found])
        for old, new in zip(found, better, strict=True):
            old.put(missed, new)
        missed = torch.stack([each.missed(constants.dtype) for each in found]).any(0)  # as they are given back
    if missed.any():
        row = int(missed.nonzero()[0])
        worst = max(float(each.residual[row].abs().max()) for each in found)
        raise RunFailed(f"{program.name}: the attributions of image {row} miss its output by {worst:.3g}, "
                        "in float64 too: they are not additive")
    return [each.shaped(chosen) for each, chosen in zip(found, targets, strict=True)]


def choose(targets: Targets, logits: Tensor) -> Tensor:
    """The outputs to explain, `[image, target]`. Raises `BadInput` for a class that is not there."""
    number, classes = logits.shape
    if isinstance(targets, str):
        if targets not in ("winner", "all"):
            raise BadInput(f"targets: found {targets!r}; allowed: winner, all, a class, a class for each image")
        everything = torch.arange(classes, device=logits.device).expand(number, -1)
        return everything if targets == "all" else logits.argmax(1, keepdim=True)
    try:
        given = torch.as_tensor(targets, device=logits.device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadInput(f"targets: found {targets!r}; allowed: winner, all, a class, a class for each image") from error
    whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
    if not whole or given.ndim > 1 or (given.ndim == 1 and len(given) != number):
        raise BadInput(f"targets: found {list(given.shape)} of {given.dtype}; allowed: a class, or {number} of them")
    if number and not bool(((given >= 0) & (given < classes)).all()):
        raise BadInput(f"targets: found {int(given.min())} to {int(given.max())}; allowed: 0 to {classes - 1}")
    return given.long().expand(number)[:, None]


def outputs_of(program: Program, constants: Constants, images: Tensor, chunk_size: int) -> Tensor:
    """A program's outputs `[image, output]`."""
    return torch.cat([run(program, constants, constants.cast(chunk), frozenset())[program.output]
                      for chunk in torch.split(images, chunk_size)])


def contributions(program: Program, constants: Constants, images: Tensor, background: Tensor, seed: Seed, targets: int,
                  chunk_size: int) -> Tensor:
    """The mean over the background of the contributions of each image's pixels, `[image, target, *shape]`.

    `seed` gives the multipliers of the program's outputs, `[image, reference, target, output]`, for a slice of the
    images, whose outputs are `[image, 1, output]`, and a chunk of the background, `[1, reference, output]`. Chunks of
    the background lie outside, images inside: what the references need is computed once.
    """
    keep = kept(program)
    images, background = constants.cast(images), constants.cast(background)
    total = images.new_zeros(len(images), targets, *images.shape[1:])
    together = min(targets, chunk_size)  # first, since they share what the rules make of a pair
    references = min(len(background), chunk_size // together)
    step = max(1, chunk_size // (references * together))
    for chunk in torch.split(background, references):
        below = run(program, constants, chunk, keep)
        for first in range(0, len(images), step):
            rows = slice(first, first + step)
            above = run(program, constants, images[rows], keep)
            difference = images[rows][:, None] - chunk
            seeds = seed(rows, above[program.output][:, None], below[program.output][None])
            for place, part in enumerate(torch.split(seeds, together, dim=2)):
                counts = (difference.shape[0], difference.shape[1], part.shape[2])
                found = propagate(program, constants, above, below, counts, part.flatten(0, 2))
                target = slice(place * together, place * together + part.shape[2])
                total[rows, target] += torch.einsum("nrtchw,nrchw->ntchw", found.reshape(*counts, *images.shape[1:]),
                                                    difference)
    return total.div_(len(background))


def propagate(program: Program, constants: Constants, images: dict[fx.Node, Any], references: dict[fx.Node, Any],
              counts: tuple[int, int, int], multipliers: Tensor) -> Tensor:
    """Carry multipliers from a program's outputs to its input.

    `images` and `references` hold the values of the nodes that the rules read; `counts` are of images, references and
    targets; `multipliers` is `[image x reference x target, output]`. Returns `[image x reference x target, *shape]`.
    """
    pairs = Pairs(program, constants, images, references, counts)
    waiting: dict[fx.Node, Any] = {program.output: multipliers}
    for node in reversed(program.steps):
        given = waiting.pop(node, None)
        if given is None:
            continue
        if operator_name(node) == "getitem":
            parent, place = node.args
            parts = waiting.setdefault(parent, {})  # type: ignore[arg-type]
            parts[place] = parts[place] + given if place in parts else given
            continue
        passed = set()
        for source, found in rule_of(pairs, node)(pairs, node, given):
            waiting[source] = waiting[source] + found if source in waiting else found
            passed.add(source)
        if passed != set(program.inputs(node)):  # a difference from the reference would be lost
            raise no_rule(pairs, node, " with such activations")
    multipliers_of_image: Tensor = waiting[program.image]
    return multipliers_of_image


def _check(program: Program, heads: Sequence[nn.Linear | None], images: Tensor, background: Tensor,
           targets: Sequence[Targets], output: str, chunk_size: int) -> None:
    for name, each in (("images", images), ("background", background)):
        if each.ndim != 4 or tuple(each.shape[1:]) != program.shape or not len(each):
            raise BadInput(f"{name}: found the shape {list(each.shape)}; allowed: [1 or more, "
                           f"{', '.join(map(str, program.shape))}]")
        if not each.is_floating_point():
            raise BadInput(f"{name}: found {each.dtype}; allowed: floating-point numbers, normalised for the network")
        broken = ~each.isfinite().flatten(1).all(1)
        if broken.any():
            raise RunFailed(f"{program.name}: {name}: number {int(broken.nonzero()[0])} holds values that are not "
                            "finite; it cannot be explained")
    if chunk_size < 1:
        raise BadInput(f"chunk_size: found {chunk_size}; allowed: 1 or more")
    if output not in ("logit", "probability"):
        raise BadInput(f"output: found {output!r}; allowed: logit, probability")
    if len(targets) != len(heads) or not heads:
        raise BadInput(f"targets: found {len(targets)} for {len(heads)} heads; allowed: one for each head")
    width = program.output.meta["val"].shape[1]
    for head in heads:
        if head is not None and head.in_features != width:
            raise BadInput(f"heads: found one of {head.in_features} features; {program.name} gives {width}")


def _explained(program: Program, constants: Constants, heads: Sequence[nn.Linear | None], images: Tensor,
               background: Tensor, targets: Sequence[Targets], output: Output, chunk_size: int,
               classes: Sequence[Tensor] | None = None) -> list[_Found]:
    """The attributions of each head in the constants' precision, whether additive or not.

    `classes`, `[image, target]` of each head, are the chosen ones where they were chosen before.
    """
    above, below = (outputs_of(program, constants, each, chunk_size) for each in (images, background))
    logits = [(_logits(head, above), _logits(head, below)) for head in heads]
    classes = classes or [choose(each, of_images) for each, (of_images, _) in zip(targets, logits, strict=True)]
    values = _values(program, constants, heads, images, background, classes, output, chunk_size)
    return [_found(each, *both, chosen, output) for each, both, chosen in zip(values, logits, classes, strict=True)]


def _logits(head: nn.Linear | None, outputs: Tensor) -> Tensor:
    if head is None:
        return outputs
    weight, bias = _weights(head, outputs)
    return outputs @ weight.T + bias


def _weights(head: nn.Linear, like: Tensor) -> tuple[Tensor, Tensor]:
    weight = head.weight.detach().to(like)
    return weight, weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().to(like)


def _values(program: Program, constants: Constants, heads: Sequence[nn.Linear | None], images: Tensor,
            background: Tensor, classes: Sequence[Tensor], output: Output, chunk_size: int) -> list[Tensor]:
    """The attributions of each head, `[image, target, *shape]`."""
    def of_head(head: nn.Linear | None, chosen: Tensor, above: Tensor, below: Tensor) -> Tensor:
        """The multipliers of the backbone's outputs, `[image, reference, target, output]`."""
        high, low = _logits(head, above), _logits(head, below)
        found = one_hot(chosen, high.shape[-1]).to(high.dtype)[:, None].expand(-1, low.shape[1], -1, -1)
        if output == "probability":
            found = output_softmax((high[:, :, None], low[:, :, None]), found)
        return found if head is None else found @ _weights(head, above)[0]

    def seed(rows: slice, above: Tensor, below: Tensor) -> Tensor:
        return torch.cat([of_head(head, chosen[rows], above, below)
                          for head, chosen in zip(heads, classes, strict=True)], dim=2)

    counts = [each.shape[1] for each in classes]
    values = contributions(program, constants, images, background, seed, sum(counts), chunk_size)
    return list(torch.split(values, counts, dim=1))


def _found(values: Tensor, above: Tensor, below: Tensor, classes: Tensor, output: Output) -> _Found:
    """Attributions beside what they should sum to, from the logits of images and background."""
    above, below = above.double(), below.double()
    high, low = above.amax(1, keepdim=True).clamp(min=below.max()), above.amin(1, keepdim=True).clamp(max=below.min())
    span = (high - low).clamp(min=1)
    if output == "probability":
        above, below, span = above.softmax(1), below.softmax(1), torch.ones_like(span)
    return _Found(values, above.gather(1, classes), below.mean(0).expand_as(above).gather(1, classes), classes, span)
