"""Deep SHAP's rules for what is composed of simpler operators, in closed form: softmax, norms, attention.

Each is the chain of the rules for its parts: rescale for element-wise functions, Shapley values for products.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from tlkd.pairs import SMALL, Given, Pairs, no_rule, only


def _ratio(change: Tensor, by: Tensor, tangent: Tensor) -> Tensor:
    """`change / by`, and the tangent where `by` is next to nothing (masked places, minus infinity twice, are that)."""
    weight, by = SMALL[by.dtype] ** 2, by.nan_to_num(0.0)
    return (change * by + weight * tangent) / (by.square() + weight)


def softmax_multipliers(logits: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor], multipliers: Tensor,
                         dim: int) -> Tensor:
    """Through softmax = exp(x - log sum exp x), where exp and log go by the rescale rule.

    `logits` and `outputs` are of image and reference. Each multiplier is a logarithmic mean of image and reference over
    another, none above 1 in size, and no shift of the logits changes them. exp(x) * (1 / sum exp x) by the product rule
    would be additive too, but 1 / sum exp x may differ by e^200 between image and reference.
    """
    image, reference = outputs
    sums = [each.logsumexp(dim, keepdim=True) for each in logits]
    gain, change = sums[0] - sums[1], logits[0] - logits[1]
    below, above = torch.exp(gain.clamp(max=0)), torch.exp(gain.neg().clamp(max=0))  # each sum over the larger one
    total = torch.sign(gain) * -torch.expm1(-gain.abs())
    of_sum = (_ratio(image * below - reference * above, change, (image * below + reference * above) / 2)
              * _ratio(gain, total, 2 / (below + above)))
    of_exp = multipliers * _ratio(image - reference, change - gain, (image + reference) / 2)
    return of_exp - of_sum * of_exp.sum(dim, keepdim=True)


def softmax(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Softmax along one axis, which is not the batch's."""
    given = only(pairs, node, "self")
    source, (axis, _) = given["self"], pairs.axis(node)
    dim = given["dim"] % node.meta["val"].ndim
    if dim == axis:
        raise no_rule(pairs, node, " along the batch")
    found = softmax_multipliers((pairs.image(source), pairs.reference(source)),
                                (pairs.image(node), pairs.reference(node)), pairs.split(node, multipliers),
                                dim + 3 * (dim > axis))
    return [(source, pairs.join(node, found))]


def output_softmax(logits: tuple[Tensor, Tensor], multipliers: Tensor) -> Tensor:
    """Multipliers of logits from multipliers of probabilities; everything `[image, reference, target, class]`."""
    return softmax_multipliers(logits, (logits[0].softmax(-1), logits[1].softmax(-1)), multipliers, -1)


def norm_multipliers(image: Tensor, reference: Tensor, epsilon: float, multipliers: Tensor) -> Tensor:
    """Through (x - mean) * rsqrt(variance + epsilon) over the last axis: centring, a square, rsqrt, a product."""
    centred = [each - each.mean(-1, keepdim=True) for each in (image, reference)]
    scales = [torch.rsqrt(each.square().mean(-1, keepdim=True) + epsilon) for each in centred]
    middle = (centred[0] + centred[1]) / 2
    slope = -(scales[0] * scales[1]).square() / (scales[0] + scales[1])  # of rsqrt, by the rescale rule
    through = (multipliers * middle).sum(-1, keepdim=True) * slope * (2 / image.shape[-1])
    back = multipliers * ((scales[0] + scales[1]) / 2) + through * middle
    return back - back.mean(-1, keepdim=True)


def layer_norm(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Layer normalisation over the last axes."""
    given = only(pairs, node, "input")
    source, rank, weight = given["input"], len(given["normalized_shape"]), pairs.constant(given["weight"])
    scaled = pairs.split(node, multipliers if weight is None else multipliers * weight)
    found = norm_multipliers(pairs.image(source).flatten(-rank), pairs.reference(source).flatten(-rank), given["eps"],
                             scaled.flatten(-rank))
    return [(source, pairs.join(node, found.reshape(scaled.shape)))]


def group_norm(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Group normalisation of `[B, channel, ...]`."""
    given = only(pairs, node, "input")
    return _grouped(pairs, node, given, multipliers, pairs.constant(given["num_groups"]))


def instance_norm(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Instance normalisation: a group a channel."""
    given = only(pairs, node, "input")
    if not given["use_input_stats"]:
        raise no_rule(pairs, node, " with stored statistics")
    return _grouped(pairs, node, given, multipliers, multipliers.shape[1])


def _grouped(pairs: Pairs, node: fx.Node, given: dict[str, Any], multipliers: Tensor, groups: int) -> Given:
    source, weight = given["input"], pairs.constant(given["weight"])
    axis, inner = pairs.axis(source)
    if axis != 0:
        raise no_rule(pairs, node, " of something else than images")
    if weight is not None:
        multipliers = multipliers * weight.reshape(-1, *[1] * (multipliers.ndim - 2))
    images, references, targets = pairs.counts
    found = norm_multipliers(pairs.images[source].reshape(images, 1, 1, inner * groups, -1),
                             pairs.references[source].reshape(1, references, 1, inner * groups, -1), given["eps"],
                             multipliers.reshape(images, references, targets, inner * groups, -1))
    return [(source, found.reshape(multipliers.shape))]


def vector_norm(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """The Euclidean norm over some axes: a square, a sum, a square root."""
    given = only(pairs, node, "self")
    source, dims, rank = given["self"], given["dim"], given["self"].meta["val"].ndim
    places = sorted(dim % rank for dim in dims) if dims else list(range(rank))
    if given["ord"] != 2 or pairs.axis(source)[0] in places:
        raise no_rule(pairs, node, f" of order {given['ord']} over axes {dims}")

    def full(value: Tensor) -> Tensor:
        for place in [] if given["keepdim"] else places:
            value = value.unsqueeze(place)
        return value

    images, references = full(pairs.images[node]), full(pairs.references[node])
    both = pairs.image(source, images) + pairs.reference(source, references)
    slope = torch.where(both == 0, 0, (pairs.image(source) + pairs.reference(source)) / both)
    return [(source, pairs.join(source, pairs.split(source, full(multipliers)) * slope))]


def attention(pairs: Pairs, node: fx.Node, multipliers: Tensor) -> Given:
    """Scaled dot-product attention: product, softmax, product."""
    given = only(pairs, node, "query", "key", "value")
    query, key, value = three = given["query"], given["key"], given["value"]
    if given["is_causal"] or given["enable_gqa"] or not all(
            pairs.active(each) and pairs.axis(each) == pairs.axis(node) for each in three) or pairs.axis(node)[0] != 0:
        raise no_rule(pairs, node, " with a causal mask, shared heads, or constants for queries, keys or values")
    scale = query.meta["val"].shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    mask = pairs.constants.resolve(given["attn_mask"], 1, {})  # one for each image, or for all

    def scores(side: Callable[[fx.Node], Tensor]) -> Tensor:
        found: Tensor = side(query) @ side(key).transpose(-2, -1) * scale
        if mask is None:
            return found
        return found.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else found + mask

    logits = (scores(pairs.image), scores(pairs.reference))
    weights = (logits[0].softmax(-1), logits[1].softmax(-1))
    split = pairs.split(node, multipliers)
    of_weights = split @ pairs.mean(value).transpose(-2, -1)
    of_value = ((weights[0] + weights[1]) / 2).transpose(-2, -1) @ split
    of_scores = softmax_multipliers(logits, weights, of_weights, -1) * scale
    found = (of_scores @ pairs.mean(key), of_scores.transpose(-2, -1) @ pairs.mean(query), of_value)
    return [(each, pairs.join(each, back)) for each, back in zip(three, found, strict=True)]
