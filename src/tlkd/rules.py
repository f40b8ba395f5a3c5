"""How a difference from a reference is shared out at each kind of operator: DeepLIFT's rules, and those it lacks.

For every pair of an image and a reference, a rule takes the multipliers of an operator's output (contribution to the
explained output per unit of difference from the reference) and gives those of its inputs, such that the sum of
multiplier times difference stays the same. The kinds:

- linear operators: ordinary backpropagation;
- element-wise functions: the rescale rule (Shrikumar et al., "Learning important features through propagating
  activation differences", 2017, section 3.5.1), the mean derivative where the difference is too small to divide by;
- products of two activations: the Shapley value of the game of two players, d(ab) = mean(b) da + mean(a) db;
- max-pooling: the gain goes to where the image has its maximum, a loss to where the reference has it;
- softmax, norms and attention: compositions of these in closed form, in `compositions`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from tlkd.compositions import attention, group_norm, instance_norm, layer_norm, softmax, vector_norm
from tlkd.pairs import SMALL, Given, Pairs, arguments, no_rule, only
from tlkd.program import Program, operator_name

BLOCK = 524288
"""Entries that the rescale rule works on at a time on a CPU, so that what it makes on the way stays in the cache."""


# --- linear operators -------------------------------------------------------------------------------------------------


def generic(pairs: Pairs, node: fx.Node, multipliers: Any) -> Given:
    """Backpropagation through an operator that is linear in all its activations together."""
    only(pairs, node, "self", "input", "other", "src", "tensors")
    if node.target._overloadname == "dtype":  # type: ignore[union-attr]
        raise no_rule(pairs, node)  # a view of the same bytes as other numbers
    return _backward(pairs, node, multipliers)


def _backward(pairs: Pairs, node: fx.Node, multipliers: Any) -> Given:
    inputs = pairs.program.inputs(node)
    zero = torch.zeros((), dtype=pairs.constants.dtype, device=pairs.constants.device)
    with torch.enable_grad():
        leaves: dict[fx.Node, Any] = {each: zero.expand(pairs.shape(each)).requires_grad_() for each in inputs}
        output = pairs.constants.call(node, pairs.batch, leaves)
    if isinstance(multipliers, dict):
        outputs, given = [output[place] for place in multipliers], list(multipliers.values())
    else:
        outputs, given = [output], [multipliers]
    return list(zip(inputs, torch.autograd.grad(outputs, list(leaves.values()), given), strict=True))


def identity(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """What gives its input as it is, if in another place; also where no gradient would pass."""
    only(pairs, node, "self")
    return [(node.args[0], multipliers)]  # type: ignore[list-item]


def copy(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Values written over others: all comes from what is written."""
    source = only(pairs, node, "self", "src")["src"]
    return [(source, multipliers.sum_to_size(pairs.shape(source)))]


def convolution(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Convolution with constant weights: the transposed convolution, without computing a forward pass."""
    given = only(pairs, node, "input")
    weight, padding = pairs.constant(given["weight"]), given["padding"]
    if isinstance(padding, str):
        return _backward(pairs, node, multipliers)
    rank = weight.ndim - 2
    stride, padding, dilation = (list(each) if len(each) == rank else list(each) * rank
                                 for each in (given["stride"], padding, given["dilation"]))
    shape = torch.empty(1, dtype=weight.dtype, device=weight.device).expand(pairs.shape(given["input"]))
    back, _, _ = torch.ops.aten.convolution_backward(multipliers, shape, weight, None, stride, padding, dilation, False,
                                                     [0] * rank, given["groups"], [True, False, False])
    return [(given["input"], back)]


def linear(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """A fully connected layer with constant weights."""
    given = only(pairs, node, "input")
    return [(given["input"], multipliers @ pairs.constant(given["weight"]))]


def batch_norm(pairs: Pairs, node: fx.Node, multipliers: dict[int, Tensor]) -> Given:
    """Batch normalisation by stored statistics: one factor a channel."""
    given = only(pairs, node, "input")
    weight, variance = (pairs.constant(given[name]) for name in ("weight", "running_var"))
    factor = torch.rsqrt(variance + given["eps"]) * (1 if weight is None else weight)
    if set(multipliers) != {0}:
        raise no_rule(pairs, node, " whose statistics are used")
    return [(given["input"], multipliers[0] * factor.reshape(-1, *[1] * (multipliers[0].ndim - 2)))]


# --- element-wise functions -------------------------------------------------------------------------------------------


def rescale(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """The rescale rule: change of output over change of input."""
    given_arguments = only(pairs, node, "self")
    source = given_arguments["self"]
    if source.meta["val"].shape != node.meta["val"].shape or any(
            isinstance(each, fx.Node) and each.meta["val"].numel() != 1
            for name, each in given_arguments.items() if name != "self"):
        raise no_rule(pairs, node, " with several values beside an activation")
    small = 0.0 if operator_name(node) in PIECEWISE_LINEAR else SMALL[pairs.constants.dtype]
    images, references = ((values[source], values[node]) for values in (pairs.images, pairs.references))
    if pairs.axis(node)[0] != 0:
        slope = _slope(pairs.image(source), pairs.reference(source), pairs.image(node), pairs.reference(node), small,
                       lambda: [side(source, _derivative(pairs, node, values[0])) for side, values in
                                ((pairs.image, images), (pairs.reference, references))])
        return [(source, pairs.join(node, pairs.split(node, multipliers) * slope))]
    layout = _layout(images[0], references[0])
    x, y = (_flat_rows(each, layout, pairs.counts[0]) for each in images)
    x_ref, y_ref = (_flat_rows(each, layout, pairs.counts[1]) for each in references)
    given = _flat_rows(multipliers, layout, pairs.batch).reshape(*pairs.counts, -1)
    back, number, width = torch.empty_like(given), len(x) * len(x_ref), given.shape[-1]
    block = max(1, BLOCK // number) if given.device.type == "cpu" else width
    spare = [given.new_empty(number * min(block, width)) for _ in range(2)]
    for at in (slice(first, min(first + block, width)) for first in range(0, width, block)):
        shape = (len(x), len(x_ref), at.stop - at.start)
        slope = _slope(x[:, None, at], x_ref[None, :, at], y[:, None, at], y_ref[None, :, at], small,
                       lambda: [_derivative(pairs, node, x[:, at])[:, None],  # noqa: B023
                                _derivative(pairs, node, x_ref[:, at])[None]],  # noqa: B023
                       *(each[:math.prod(shape)].view(shape) for each in spare))
        torch.mul(given[..., at], slope[:, :, None], out=back[..., at])
    return [(source, _unflatten_rows(back.flatten(0, 2), multipliers.shape, layout))]


def _slope(x: Tensor, x_ref: Tensor, y: Tensor, y_ref: Tensor, small: float, derivatives: Callable[[], list[Tensor]],
           change: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
    """Change of output over change of input; close to a change of nothing, the mean derivative.

    Where some change is at most `small` the two are blended by (change^2 : e^2) with e = SMALL, which misses no more
    than e / 2 of the output's change, and does so where others cannot divide. `change` and `slope` are room to work in.
    """
    change, slope = torch.sub(x, x_ref, out=change), torch.sub(y, y_ref, out=slope)
    slope.div_(change)
    if float(change.abs_().min()) > small:
        return slope
    weight = SMALL[x.dtype] ** 2
    torch.sub(x, x_ref, out=change)
    torch.sub(y, y_ref, out=slope).mul_(change)
    for each in derivatives():
        slope.add_(each, alpha=weight / 2)
    return slope.div_(change.square_().add_(weight))


def _derivative(pairs: Pairs, node: fx.Node, values: Tensor) -> Tensor:
    with torch.enable_grad():
        at = values.detach().requires_grad_()
        arguments = [at, *(pairs.constant(item) for item in node.args[1:])]
        output = node.target(*arguments, **pairs.constant(dict(node.kwargs)))  # type: ignore[operator]
    (found,) = torch.autograd.grad(output, at, torch.ones_like(output))
    return found


def _layout(*values: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if all(each.ndim == 4 and each.is_contiguous(memory_format=last) for each in values) else (
        torch.contiguous_format)


def _flat_rows(values: Tensor, layout: torch.memory_format, rows: int) -> Tensor:
    """A batch as so many rows, in the order of memory."""
    values = values.contiguous(memory_format=layout)
    return (values.permute(0, 2, 3, 1) if layout == torch.channels_last else values).reshape(rows, -1)


def _unflatten_rows(rows: Tensor, shape: torch.Size, layout: torch.memory_format) -> Tensor:
    """The inverse of `_flat_rows`."""
    if layout == torch.channels_last:
        return rows.reshape(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    return rows.reshape(shape)


# --- products ---------------------------------------------------------------------------------------------------------


def product(pairs: Pairs, node: fx.Node, multipliers: Tensor, names: tuple[str, str] = ("self", "other")) -> Given:
    """An element-wise product: each factor's change times the mean of the other."""
    given = arguments(node)
    for target, factor in ((given[one], given[other]) for one, other in (names, names[::-1])):
        if not pairs.active(target):
            continue
        if pairs.active(factor):
            back = pairs.join(node, pairs.split(node, multipliers) * _aligned(pairs, node, factor, pairs.mean(factor)))
        else:
            back = multipliers * pairs.constant(factor)
        yield target, back.sum_to_size(pairs.shape(target))


def product_sum(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """`addcmul`: a + value * b * c."""
    given = only(pairs, node, "self", "tensor1", "tensor2")
    if pairs.active(given["self"]):
        yield given["self"], multipliers.sum_to_size(pairs.shape(given["self"]))
    yield from product(pairs, node, multipliers * given["value"], ("tensor1", "tensor2"))


def _aligned(pairs: Pairs, node: fx.Node, factor: fx.Node, values: Tensor) -> Tensor:
    """A factor's values on pairs, so shaped that they broadcast against the node's split multipliers."""
    missing = node.meta["val"].ndim - factor.meta["val"].ndim
    if pairs.axis(node)[0] != pairs.axis(factor)[0] + missing:
        raise no_rule(pairs, node, " whose factors hold the batch on different axes")
    return values.reshape(*[1] * missing, *values.shape)


def quotient(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """A quotient a / b as the product of a and the reciprocal of b."""
    given = only(pairs, node, "self", "other")
    above, below = given["self"], given["other"]
    if given.get("rounding_mode") is not None:
        raise no_rule(pairs, node, " that rounds")
    if not pairs.active(below):
        yield above, (multipliers / pairs.constant(below)).sum_to_size(pairs.shape(above))
        return
    image, reference = (_aligned(pairs, node, below, each).reciprocal()
                        for each in (pairs.image(below), pairs.reference(below)))
    split = pairs.split(node, multipliers)
    if pairs.active(above):
        yield above, pairs.join(node, split * ((image + reference) / 2)).sum_to_size(pairs.shape(above))
        numerator = _aligned(pairs, node, above, pairs.mean(above))
    else:
        numerator = pairs.constant(above)
        if numerator.numel() != 1:
            raise no_rule(pairs, node, " of several constants by an activation")
        numerator = numerator.reshape(())
    yield below, pairs.join(node, split * numerator * -(image * reference)).sum_to_size(pairs.shape(below))


def bilinear(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """A product of two activations in any arrangement (matrix products, einsum): its gradient at the pairs' means.

    With one activation only it is linear.
    """
    inputs, factors = pairs.program.inputs(node), list(_flat(node.args))
    if sum(pairs.active(each) for each in factors) == 1:
        yield from _backward(pairs, node, multipliers)
        return
    if len(factors) > 2:
        raise no_rule(pairs, node, f" of {len(factors)} factors")
    with torch.enable_grad():
        leaves: dict[fx.Node, Any] = {each: pairs.means(each).detach().requires_grad_() for each in inputs}
        output = pairs.constants.call(node, pairs.batch, leaves)
    found = torch.autograd.grad(output, list(leaves.values()), multipliers)
    yield from zip(inputs, found, strict=True)


def _flat(arguments: Any) -> Iterator[fx.Node]:
    for item in arguments:
        if isinstance(item, fx.Node):
            yield item
        elif isinstance(item, list | tuple):
            yield from _flat(item)


# --- max-pooling ------------------------------------------------------------------------------------------------------


def max_pool(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Max-pooling: a gain over the reference goes to the image's maximum, a loss to the reference's.

    Each is the change between max(image, reference) and one of the two outputs, so that nothing is lost where the two
    maxima lie in different places.
    """
    source = only(pairs, node, "self")["self"]
    rest = [pairs.constant(item) for item in node.args[1:]]
    images, references, targets = pairs.counts
    flat = math.prod(source.meta["val"].shape[-2:])
    if pairs.axis(source)[0] != 0 or source.meta["val"].ndim != 4:
        raise no_rule(pairs, node, " of something else than images")

    def pooled(values: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The values, their maxima and where these lie, `[image, channel, place]`."""
        output, where = torch.ops.aten.max_pool2d_with_indices(values, *rest, **pairs.constant(dict(node.kwargs)))
        return (values.reshape(count, -1, flat), *(each.reshape(count, values.shape[1] * len(values) // count, -1)
                                                   for each in (output, where)))

    (x, high, at), (x_ref, low, low_at) = pooled(pairs.images[source], images), pooled(pairs.references[source],
                                                                                       references)
    gain = high[:, None] >= low[None]  # [image, reference, channel, place]
    where = torch.where(gain, at[:, None], low_at[None])
    there = x[:, None].expand(-1, references, -1, -1).gather(3, where)
    there -= x_ref[None].expand(images, -1, -1, -1).gather(3, where)
    slope = (high[:, None] - low[None]).div_(there)
    slope = torch.where(there == 0, torch.zeros_like(slope), slope)
    share = multipliers.reshape(images, references, targets, *slope.shape[2:]) * slope[:, :, None]
    back = share.new_zeros(*share.shape[:-1], flat)
    back.scatter_add_(4, where[:, :, None].expand_as(share), share)
    return [(source, back.reshape(pairs.shape(source)))]


# --- the table --------------------------------------------------------------------------------------------------------


Rule = Callable[[Pairs, fx.Node, Any], Given]

LINEAR = (
    "_unsafe_view", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "add", "avg_pool1d", "avg_pool2d", "cat",
    "channel_shuffle", "chunk", "constant_pad_nd", "dropout", "expand", "feature_dropout", "flatten", "flip", "im2col",
    "index", "index_select", "masked_fill", "mean", "movedim", "narrow", "native_channel_shuffle", "neg", "pad",
    "permute", "pixel_shuffle", "pixel_unshuffle", "reflection_pad2d", "repeat", "replication_pad2d", "reshape", "roll",
    "rot90", "rsub", "select", "select_scatter", "slice", "slice_scatter", "split", "split_with_sizes", "squeeze",
    "stack", "sub", "sum", "t", "transpose", "unbind", "unflatten", "unfold", "unsafe_split", "unsqueeze",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "view", "where")
IDENTITY = ("_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to")
ELEMENTWISE = (
    "abs", "acos", "asin", "atan", "celu", "clamp", "clamp_max", "clamp_min", "cos", "elu", "erf", "exp", "expm1",
    "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log", "log10", "log1p", "log2", "log_sigmoid",
    "mish", "pow", "reciprocal", "relu", "relu6", "rsqrt", "selu", "sigmoid", "silu", "sin", "softplus", "softshrink",
    "softsign", "sqrt", "square", "tan", "tanh", "threshold")
PIECEWISE_LINEAR = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu", "abs",
                              "threshold"})
"""Functions whose differences are exact however small, so that only a difference of 0 is not divided by."""
RULES: dict[str, Rule] = {
    **dict.fromkeys(LINEAR, generic),
    **dict.fromkeys(IDENTITY, identity),
    "copy": copy,
    **dict.fromkeys(ELEMENTWISE, rescale),
    "conv1d": convolution, "conv2d": convolution, "conv3d": convolution, "linear": linear,
    "_native_batch_norm_legit_no_training": batch_norm,
    "mul": product, "div": quotient, "addcmul": product_sum,
    "matmul": bilinear, "mm": bilinear, "bmm": bilinear, "einsum": bilinear,
    "max_pool2d": max_pool, "softmax": softmax, "_softmax": softmax,
    "layer_norm": layer_norm, "group_norm": group_norm, "instance_norm": instance_norm,
    "linalg_vector_norm": vector_norm, "scaled_dot_product_attention": attention,
}
"""The rule of each operator, by its plain name; what is not here is refused."""


def rule_of(pairs: Pairs, node: fx.Node) -> Rule:
    """The rule for a node. Raises `NoRule` where there is none."""
    rule = RULES.get(operator_name(node))
    if rule is None:
        raise no_rule(pairs, node)
    for each in (node, *pairs.program.inputs(node)):
        held = each.meta["val"]
        if not all(one.is_floating_point() for one in (held if isinstance(held, list | tuple) else [held])):
            raise no_rule(pairs, node, " of whole numbers")
    return rule


READS_INPUTS = (rescale, softmax, vector_norm, product, product_sum, quotient, bilinear, max_pool, layer_norm,
                group_norm, instance_norm, attention)
READS_OUTPUT = (rescale, softmax, vector_norm)


def kept(program: Program) -> frozenset[fx.Node]:
    """The nodes whose values the rules read."""
    found: set[fx.Node] = set()
    for node in program.steps:
        rule = RULES.get(operator_name(node))
        if rule in READS_OUTPUT:
            found.add(node)
        if rule in READS_INPUTS:
            found |= set(program.inputs(node))
    return frozenset(found)
