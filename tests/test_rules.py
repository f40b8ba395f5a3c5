"""Each rule against a literal twin: matrices of multipliers written down one number at a time, and multiplied."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tlkd.attribution import propagate
from tlkd.errors import BadInput
from tlkd.pairs import NoRule
from tlkd.program import Constants, run, trace
from tlkd.rules import BLOCK, RULES, kept

SHAPE = (2, 3, 4)


class Calls(nn.Module):
    """A function of images as a network whose outputs are all its numbers."""

    def __init__(self, function, module=None):
        super().__init__()
        self.function, self.module = function, copy.deepcopy(module)
        self.register_buffer("anchor", torch.zeros(1, dtype=torch.float64))

    def forward(self, images):
        result = self.function(images) if self.module is None else self.function(self.module, images)
        return result.flatten(1)


def draw(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def explained(model, images, references, targets=None, dtype=None):
    """Multipliers `[image, reference, output, *shape]` of all outputs, and the outputs themselves."""
    program = trace(model, tuple(images.shape[1:]))
    constants = Constants.of(program, model, dtype)
    above, below = (run(program, constants, constants.cast(each), kept(program)) for each in (images, references))
    outputs = above[program.output], below[program.output]
    width = outputs[0].shape[1]
    counts = (len(images), len(references), width)
    seeds = torch.eye(width, dtype=constants.dtype).expand(*counts, width).flatten(0, 2)
    return propagate(program, constants, above, below, counts, seeds).reshape(*counts, *images.shape[1:]), outputs


def check(model, twin, shape=SHAPE, draws=None, tolerance=1e-9):
    """Additive for every pair of two images and three references, and the twin's multipliers."""
    images, references = draws or (draw(1, 2, *shape), draw(2, 3, *shape))
    model = model.double().eval()
    found, (above, below) = explained(model, images, references)
    with torch.no_grad():
        torch.testing.assert_close(above, model(images), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(below, model(references), rtol=1e-10, atol=1e-10)
    sums = (found * (images[:, None] - references)[:, :, None]).flatten(3).sum(3)
    torch.testing.assert_close(sums, above[:, None] - below, rtol=0, atol=1e-9)
    for (row, image), (column, reference) in itertools.product(enumerate(images), enumerate(references)):
        expected = twin(image.numpy(), reference.numpy())
        np.testing.assert_allclose(found[row, column].flatten(1).numpy(), expected, rtol=tolerance, atol=tolerance)


# The twins: matrices [output, input] of one pair


def rescale(function, x, r):
    """Change of output over change of input; the slope where there is none."""
    step = 1e-6
    found = np.zeros((x.size, x.size))
    for place, (a, b) in enumerate(zip(x.ravel(), r.ravel(), strict=True)):
        found[place, place] = ((function(a) - function(b)) / (a - b) if a != b
                               else (function(a + step) - function(a - step)) / (2 * step))
    return found


def product(left, right, x_left, r_left, x_right, r_right, rows):
    """Rows sum_k left_i(k) * right_j(k): each factor's matrix times the mean of the other."""
    found = []
    for pairs in rows:
        row = 0.0
        for i, j in pairs:
            row = row + left[i] * (x_right[j] + r_right[j]) / 2 + right[j] * (x_left[i] + r_left[i]) / 2
        found.append(row)
    return np.array(found)


def of_softmax(x, r):
    """exp(x - log(sum(exp(x)))), by the rescale rule at exp, log and exp."""
    exps = rescale(math.exp, x, r)
    total = rescale(math.log, np.exp(x).sum(keepdims=True), np.exp(r).sum(keepdims=True)) @ exps.sum(0, keepdims=True)
    logs = x - math.log(np.exp(x).sum()), r - math.log(np.exp(r).sum())
    return rescale(math.exp, *logs) @ (np.eye(x.size) - np.repeat(total, x.size, 0))


def of_norm(x, r, epsilon):
    """(x - mean) * rsqrt(mean((x - mean)^2) + epsilon): centring, a square, rsqrt, a product."""
    centring = np.eye(x.size) - 1 / x.size
    x, r = centring @ x, centring @ r
    variance = rescale(lambda value: value**2, x, r).mean(0, keepdims=True) @ centring
    spreads = np.array([(x**2).mean() + epsilon]), np.array([(r**2).mean() + epsilon])
    scale = rescale(lambda value: value**-0.5, *spreads) @ variance
    return product(centring, scale, x, r, spreads[0]**-0.5, spreads[1]**-0.5, [[(i, 0)] for i in range(x.size)])


def blocks(groups, size, matrix):
    """Matrices of groups of places, each on its own."""
    found = np.zeros((size, size))
    for group in groups:
        found[np.ix_(group, group)] = matrix(group)
    return found


def along(axis, shape):
    """The places that lie along an axis, for each of the others."""
    places = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1)
    return list(places.reshape(-1, shape[axis]))


def linear_twin(model):
    """The matrix of an affine function, a column at a time."""
    def twin(x, r):
        with torch.no_grad():
            zero = model(torch.zeros(1, *x.shape, dtype=torch.float64))
            return np.stack([(model(each.reshape(1, *x.shape)) - zero)[0].numpy()
                             for each in torch.eye(x.size, dtype=torch.float64)], axis=1)
    return twin


# Element-wise functions


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


ELEMENTWISE = {
    "relu": (F.relu, lambda x: max(x, 0)),
    "relu6": (lambda x: F.relu6(4 * x), lambda x: min(max(4 * x, 0), 6)),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), lambda x: min(max(x, -0.5), 0.7)),
    "clamp_min": (lambda x: x.clamp(min=0.2), lambda x: max(x, 0.2)),
    "clamp_max": (lambda x: x.clamp(max=0.2), lambda x: min(x, 0.2)),
    "hardtanh": (nn.Hardtanh(-0.4, 0.3), lambda x: min(max(x, -0.4), 0.3)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), lambda x: x if x > 0 else 0.2 * x),
    "abs": (torch.abs, abs),
    "threshold": (lambda x: F.threshold(x, 0.1, -2.0), lambda x: x if x > 0.1 else -2.0),
    "gelu": (F.gelu, gelu),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"),
                  lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "silu": (F.silu, lambda x: x * sigmoid(x)),
    "sigmoid": (torch.sigmoid, sigmoid),
    "hardswish": (lambda x: F.hardswish(3 * x), lambda x: 3 * x * min(max(3 * x + 3, 0), 6) / 6),
    "hardsigmoid": (lambda x: F.hardsigmoid(3 * x), lambda x: min(max(3 * x + 3, 0), 6) / 6),
    "tanh": (torch.tanh, math.tanh),
    "softplus": (F.softplus, lambda x: math.log1p(math.exp(x))),
    "mish": (F.mish, lambda x: x * math.tanh(math.log1p(math.exp(x)))),
    "elu": (lambda x: F.elu(x, 0.7), lambda x: x if x > 0 else 0.7 * math.expm1(x)),
    "exp": (torch.exp, math.exp),
    "erf": (torch.erf, math.erf),
    "sin": (torch.sin, math.sin),
    "log": (lambda x: (x + 9).log(), lambda x: math.log(x + 9)),
    "sqrt": (lambda x: (x + 9).sqrt(), lambda x: math.sqrt(x + 9)),
    "rsqrt": (lambda x: (x + 9).rsqrt(), lambda x: (x + 9)**-0.5),
    "reciprocal": (lambda x: 1 / (x + 9), lambda x: 1 / (x + 9)),
    "square": (torch.square, lambda x: x**2),
    "pow": (lambda x: x**3, lambda x: x**3),
    "constant_over": (lambda x: 3 / (x + 9), lambda x: 3 / (x + 9)),
    "times_itself": (lambda x: x * x, lambda x: x * x),
    "over_itself_and_one": (lambda x: (x + 9) / (x + 9) + x, lambda x: x),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_functions_rescale(name):
    function, twin = ELEMENTWISE[name]
    draws = draw(1, 2, *SHAPE), draw(2, 3, *SHAPE)
    draws[1][0, :, 0] = draws[0][0, :, 0]  # no difference: the slope
    tolerance = 1e-4 if name == "threshold" else 1e-7  # a kink or a jump may lie within the twin's numerical slope
    check(Calls(function), lambda x, r: rescale(twin, x, r), draws=draws, tolerance=tolerance)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_windows_and_other_axes_and_layouts(name):
    """The batch's axis may hold several entries of an image, or not come first; memory may lie channels last."""
    function, twin = ELEMENTWISE[name]
    def matrix(x, r):
        return rescale(twin, x, r)

    check(Calls(lambda x: function(x.reshape(-1, *SHAPE[1:])).reshape(-1, *SHAPE)), matrix)
    check(Calls(lambda x: function(x.transpose(0, 1).contiguous()).transpose(0, 1)), matrix)
    last = tuple(each.contiguous(memory_format=torch.channels_last)
                 for each in (draw(1, 2, *SHAPE), draw(2, 3, *SHAPE)))
    check(Calls(function), matrix, draws=last)
    check(Calls(function), matrix, draws=(last[0], last[1].contiguous()))


def test_a_tiny_difference_is_not_divided_by():
    """gelu at differences of one rounding: the quotient is noise there, the slope is right."""
    image = draw(1, 1, *SHAPE)
    reference = image * (1 + 3e-16)
    found, _ = explained(Calls(F.gelu), image, reference)
    slopes = [0.5 * (1 + math.erf(x / math.sqrt(2))) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
              for x in image.flatten().tolist()]
    torch.testing.assert_close(found[0, 0].flatten(1).diagonal(), torch.tensor(slopes, dtype=torch.float64),
                               rtol=0, atol=1e-6)  # the quotient is off by a tenth


def test_blocks_join():
    """More entries than one block holds."""
    images, references = draw(1, 1, 1, 1, BLOCK + 7), draw(2, 1, 1, 1, BLOCK + 7)
    model = Calls(lambda x: F.silu(x).sum((1, 2, 3)).reshape(-1, 1))
    found, _ = explained(model, images, references)
    expected = (F.silu(images) - F.silu(references)) / (images - references)
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-9, atol=1e-9)


def test_one_constant_of_a_network_may_bend_a_function():
    """Generalised-mean pooling: the exponent is a parameter with one element."""
    exponent = nn.ParameterDict({"p": nn.Parameter(torch.tensor([3.0]))})
    draws = draw(1, 2, *SHAPE), draw(2, 3, *SHAPE)
    draws[1][0, :, 0] = draws[0][0, :, 0]
    check(Calls(lambda held, x: x.clamp(min=1e-6).pow(held["p"]), exponent),
          lambda x, r: rescale(lambda value: max(value, 1e-6)**3, x, r), draws=draws, tolerance=1e-7)


# Products


def test_products_of_two_activations():
    def twin(x, r):
        one, several = np.eye(x.size)[:12], np.eye(x.size)[12:]
        rows = [[(place, place)] for place in range(12)]
        return product(one, several, x.ravel()[:12], r.ravel()[:12], x.ravel()[12:], r.ravel()[12:], rows)

    check(Calls(lambda x: x[:, :1] * x[:, 1:]), twin)
    check(Calls(lambda x: x[:, 0] * x[:, 1]), twin)
    check(Calls(lambda x: torch.addcmul(torch.ones_like(x[:, 0]), x[:, 0], x[:, 1])), twin)
    check(Calls(lambda x: torch.addcmul(x[:, 0], x[:, 0], x[:, 1], value=-2.0)),
          lambda x, r: np.eye(24)[:12] - 2 * twin(x, r))
    check(Calls(lambda x: (x.transpose(0, 1)[:1] * x.transpose(0, 1)[1:]).transpose(0, 1)), twin)


def test_a_gate_that_broadcasts():
    """Squeeze and excitation: one number a channel times the channel."""
    def twin(x, r):
        gates = np.kron(np.eye(2), np.full((1, 12), 1 / 12))
        return product(gates, np.eye(24), gates @ x.ravel(), gates @ r.ravel(), x.ravel(), r.ravel(),
                       [[(place // 12, place)] for place in range(24)])

    check(Calls(lambda x: x * x.mean((2, 3), keepdim=True)), twin)
    check(Calls(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 4) * x), twin)


def test_quotients():
    def twin(x, r):
        x, r = x.ravel(), r.ravel()
        above, below = np.eye(24)[:12], np.eye(24)[12:] * -1 / ((x[12:] + 9) * (r[12:] + 9))[:, None]
        return product(above, below, x[:12], r[:12], 1 / (x[12:] + 9), 1 / (r[12:] + 9),
                       [[(place, place)] for place in range(12)])

    check(Calls(lambda x: x[:, 0] / (x[:, 1] + 9)), twin)
    check(Calls(lambda x: x[:, :1] / (x[:, 1] + 9)[:, None]), twin)
    check(Calls(lambda x: x / 3), lambda x, r: np.eye(24) / 3)
    check(Calls(lambda x: x / torch.arange(1, 5, dtype=x.dtype)), lambda x, r: np.diag(1 / np.tile([1, 2, 3, 4], 6)))


@pytest.mark.parametrize("multiply", [
    torch.matmul, torch.bmm, lambda a, b: torch.einsum("bij,bjk->bik", a, b),
    lambda a, b: (a[:, :, :, None] * b[:, None]).sum(2), lambda a, b: torch.stack([*map(torch.matmul, [a], [b])])[0],
])
def test_matrix_products(multiply):
    def twin(x, r):
        rows = [[(i * 4 + k, k * 3 + j) for k in range(4)] for i in range(3) for j in range(3)]
        left, right = np.eye(24)[:12], np.eye(24)[12:].reshape(3, 4, 24).transpose(1, 0, 2).reshape(12, 24)
        return product(left, right, x[0].ravel(), r[0].ravel(), x[1].T.ravel(), r[1].T.ravel(), rows)

    check(Calls(lambda x: multiply(x[:, 0], x[:, 1].transpose(1, 2))), twin)


def test_a_matrix_times_itself_and_by_a_constant():
    def twin(x, r):
        rows = [[(i * 4 + k, j * 4 + k) for k in range(4)] for i in range(3) for j in range(3)]
        both = np.eye(24)[:12]
        return product(both, both, x[0].ravel(), r[0].ravel(), x[0].ravel(), r[0].ravel(), rows)

    check(Calls(lambda x: x[:, 0] @ x[:, 0].transpose(1, 2)), twin)
    check(Calls(lambda x: torch.einsum("bik,bjk->bij", x[:, 0], x[:, 0])), twin)
    layer = nn.Linear(4, 4).double()
    model = Calls(lambda held, x: torch.einsum("bchw,wv,vu->buh", x, held.weight, held.weight), layer)
    check(model, linear_twin(model))


# Max-pooling


def max_pool_twin(size, stride, padding, dilation=1):
    """Up to the larger of the two maxima the gain is the image's, from there on the loss is the reference's."""
    def twin(x, r):
        channels, height, width = x.shape
        rows = []
        for channel in range(channels):
            places = np.arange(x.size).reshape(x.shape)[channel]
            starts = [range(-padding, side + padding - dilation * (size - 1), stride) for side in (height, width)]
            for top, left in itertools.product(*starts):
                inside = [places[i, j] for i in range(top, top + dilation * size, dilation)
                          for j in range(left, left + dilation * size, dilation) if 0 <= i < height and 0 <= j < width]
                of_image, of_reference = (max(inside, key=lambda place: side.ravel()[place]) for side in (x, r))
                high, low = x.ravel()[of_image], r.ravel()[of_reference]
                middle, row = max(high, low), np.zeros(x.size)
                for place, change in ((of_image, middle - low), (of_reference, high - middle)):
                    if change:
                        row[place] += change / (x.ravel()[place] - r.ravel()[place])
                rows.append(row)
        return np.array(rows)
    return twin


@pytest.mark.parametrize("settings", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0, 2)])
def test_max_pooling(settings):
    shape = (2, 5, 6)
    images, references = draw(1, 2, *shape), draw(2, 3, *shape)
    images[0, :, :2], references[0, :, :2] = 1.0, 1.0  # ties, and no change
    references[1] = references[1].round()  # ties on one side
    model = Calls(lambda x: F.max_pool2d(x, *settings))
    check(model, max_pool_twin(*settings), draws=(images, references))
    check(Calls(lambda x: F.max_pool2d(x.reshape(-1, 1, 5, 6), *settings).flatten(1).reshape(x.shape[0], -1)),
          max_pool_twin(*settings), draws=(images, references))


def test_max_pooling_goes_to_both_maxima_and_not_to_one():
    """The image's maximum at one place, the reference's at another: a plain gradient would give one of them all."""
    image, reference = (torch.tensor(row, dtype=torch.float64).reshape(1, 1, 1, 2) for row in ([3.0, 1.0], [0.0, 2.0]))
    model = Calls(lambda x: F.max_pool2d(x, (1, 2)))
    up, _ = explained(model, image, reference)
    down, _ = explained(model, reference, image)
    assert up.flatten().tolist() == pytest.approx([1 / 3, 0])
    assert down.flatten().tolist() == pytest.approx([1 / 3, 0])


# Softmax, norms, attention


def test_softmax():
    def twin(axis):
        return lambda x, r: blocks(along(axis, SHAPE), 24, lambda g: of_softmax(x.ravel()[g], r.ravel()[g]))

    for axis in (1, -1):
        check(Calls(lambda x: x.softmax(axis)), twin(axis - (axis > 0)))  # noqa: B023
    check(Calls(lambda x: x.transpose(0, 1).softmax(0).transpose(0, 1)), twin(0))
    check(Calls(lambda x: x.transpose(0, 1).softmax(-1).transpose(0, 1)), twin(-1))
    check(Calls(lambda x: x.reshape(-1, *SHAPE[1:]).softmax(-1).reshape(-1, *SHAPE)), twin(-1))


def test_softmax_of_far_logits_stays_additive():
    """Sums of e^x that differ by e^400 between image and reference; a shift of all logits changes nothing."""
    images, references = draw(1, 2, *SHAPE, scale=60.0), draw(2, 3, *SHAPE, scale=60.0)
    model = Calls(lambda x: x.softmax(-1))
    found, (above, below) = explained(model, images + 400, references)
    sums = (found * (images[:, None] + 400 - references)[:, :, None]).flatten(3).sum(3)
    torch.testing.assert_close(sums, above[:, None] - below, rtol=0, atol=1e-9)
    assert float(found.abs().max()) <= 1


@pytest.mark.parametrize("weight", [False, True])
def test_layer_norm(weight):
    module = nn.LayerNorm(SHAPE[1:] if weight else SHAPE[2:], eps=0.05, elementwise_affine=weight)
    if weight:
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(5))
        nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(6))
    groups = np.arange(24).reshape(2, 12) if weight else np.arange(24).reshape(6, 4)
    scale = np.diag(np.tile(module.weight.detach().double().ravel(), 2)) if weight else np.eye(24)

    def twin(x, r):
        return scale @ blocks(groups, 24, lambda g: of_norm(x.ravel()[g], r.ravel()[g], 0.05))

    check(Calls(lambda held, x: held(x), module), twin)
    check(Calls(lambda held, x: held(x.transpose(0, 1)).transpose(0, 1), module), twin)
    check(Calls(lambda held, x: held(x.reshape(-1, *SHAPE[1:])).reshape(-1, *SHAPE), module), twin)


@pytest.mark.parametrize(("module", "groups"), [
    (nn.GroupNorm(2, 4, eps=0.05), 2), (nn.GroupNorm(1, 4, eps=0.05, affine=False), 1),
    (nn.InstanceNorm2d(4, eps=0.05, affine=True), 4), (nn.InstanceNorm2d(4, eps=0.05), 4)])
def test_group_and_instance_norm(module, groups):
    scale = np.eye(24)
    if module.weight is not None:
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(5))
        nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(6))
        scale = np.diag(np.repeat(module.weight.detach().double(), 6))

    def twin(x, r):
        places = np.arange(24).reshape(groups, -1)
        return scale @ blocks(places, 24, lambda g: of_norm(x.ravel()[g], r.ravel()[g], 0.05))

    check(Calls(lambda held, x: held(x), module), twin, shape=(4, 2, 3))
    # Two windows of each image beside each other in the batch.
    check(Calls(lambda held, x: held(x.reshape(-1, 4, 2, 3)).flatten(1).reshape(x.shape[0], -1), module),
          lambda x, r: np.kron(np.diag([1, 0]), twin(x[:4], r[:4])) + np.kron(np.diag([0, 1]), twin(x[4:], r[4:])),
          shape=(8, 2, 3))


def test_euclidean_norm():
    def twin(places, times=1):
        def matrix(x, r):
            rows = []
            for group in places:
                squares = rescale(lambda value: value**2, x.ravel(), r.ravel())[group].sum(0, keepdims=True)
                sums = (np.array([(each.ravel()[group]**2).sum()]) for each in (x, r))
                rows += [(rescale(math.sqrt, *sums) @ squares)[0]] * times
            return np.array(rows)
        return matrix

    check(Calls(lambda x: x.norm(dim=-1)), twin(along(-1, SHAPE)))
    check(Calls(lambda x: x.norm(dim=1, keepdim=True)), twin(along(0, SHAPE)))
    check(Calls(lambda x: torch.linalg.vector_norm(x, dim=(1, 3))), twin(
        [np.arange(24).reshape(SHAPE)[:, row].ravel() for row in range(3)]))
    check(Calls(lambda x: x.transpose(0, 1).norm(dim=-1).transpose(0, 1)), twin(along(-1, SHAPE)))


MASK = torch.tensor([[True, False, True], [True, True, True], [False, True, False], [True, True, False]])


@pytest.mark.parametrize("mask", [None, MASK, torch.zeros(4, 3).masked_fill(~MASK, -torch.inf), draw(8, 2, 4, 3)])
@pytest.mark.parametrize("scale", [None, 0.9])
def test_attention(mask, scale):
    """Two heads, four queries, three keys, width two: product, softmax, product."""
    sizes = {"query": (2, 4, 2), "key": (2, 3, 2), "value": (2, 3, 2)}
    ends = np.cumsum([0, *(math.prod(each) for each in sizes.values())])
    shape = (1, 1, int(ends[-1]))
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", mask)
            self.register_buffer("anchor", torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            parts = (x.flatten(1)[:, a:b].reshape(-1, *size)
                     for a, b, size in zip(ends, ends[1:], sizes.values(), strict=False))
            return F.scaled_dot_product_attention(*parts, attn_mask=self.mask, scale=scale).flatten(1)

    bias = np.zeros((2, 4, 3)) if mask is None else np.broadcast_to(
        np.where(mask, 0, -np.inf) if mask.dtype == torch.bool else mask.numpy(), (2, 4, 3))

    def twin(x, r):
        rows = []
        for head in range(2):
            cut = [slice(a + head * (b - a) // 2, a + (head + 1) * (b - a) // 2)
                   for a, b in itertools.pairwise(ends.tolist())]
            eye = [np.eye(x.size)[each] for each in cut]
            (q, k, v), (q_ref, k_ref, v_ref) = ([side.ravel()[each] for each in cut] for side in (x, r))
            for i in range(4):
                open_keys = [j for j in range(3) if bias[head, i, j] > -np.inf]
                factor = scale or 2**-0.5
                logits = factor * product(eye[0], eye[1], q, q_ref, k, k_ref,
                                          [[(2 * i + d, 2 * j + d) for d in range(2)] for j in open_keys])
                scores, scores_ref = (np.array([factor * sum(a[2 * i + d] * b[2 * j + d] for d in range(2))
                                                + bias[head, i, j] for j in open_keys])
                                      for a, b in ((q, k), (q_ref, k_ref)))
                weights = of_softmax(scores, scores_ref) @ logits
                soft, soft_ref = (np.exp(each) / np.exp(each).sum() for each in (scores, scores_ref))
                rows.append(product(weights, eye[2], soft, soft_ref, v, v_ref,
                                    [[(place, 2 * j + d) for place, j in enumerate(open_keys)] for d in range(2)]))
        return np.concatenate(rows)

    check(Attention(), twin, shape=shape)


def test_attention_within_windows_has_a_mask_for_each():
    """Shifted windows: the mask differs between the windows of one image, and repeats from image to image."""
    mask = torch.where(draw(3, 2, 1, 3, 3) > 0, 0.0, -5.0)

    def windows(x):
        parts = x.reshape(-1, 1, 3, 4)
        bias = mask.repeat(x.shape[0], 1, 1, 1)
        return F.scaled_dot_product_attention(parts, parts, parts, attn_mask=bias).reshape(-1, *SHAPE)

    def twin(x, r):
        found = np.zeros((24, 24))
        for window in range(2):
            own = Calls(lambda y: F.scaled_dot_product_attention(y, y, y, attn_mask=mask[window]))  # noqa: B023
            part, _ = explained(own, torch.from_numpy(x[None, window:window + 1]), torch.from_numpy(
                r[None, window:window + 1]))
            found[window * 12:][:12, window * 12:window * 12 + 12] = part[0, 0].reshape(12, 12)
        return found

    check(Calls(windows), twin)


# What is linear


LINEAR = {
    "conv": (nn.Conv2d(2, 4, 3, stride=2, padding=1), lambda m, x: m(x)),
    "conv_groups_dilation": (nn.Conv2d(2, 4, (3, 2), padding=(2, 1), dilation=(2, 1), groups=2), lambda m, x: m(x)),
    "conv_same": (nn.Conv2d(2, 2, (2, 3), padding="same", bias=False), lambda m, x: m(x)),
    "conv_reflect": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), lambda m, x: m(x)),
    "conv_circular": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), lambda m, x: m(x)),
    "conv_replicate": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), lambda m, x: m(x)),
    "conv1d": (nn.Conv1d(2, 3, 3, padding=1), lambda m, x: m(x.flatten(2))),
    "conv3d": (nn.Conv3d(1, 2, 2), lambda m, x: m(x[:, None])),
    "linear": (nn.Linear(4, 5), lambda m, x: m(x)),
    "linear_windows": (nn.Linear(4, 5), lambda m, x: m(x.reshape(-1, 4)).reshape(x.shape[0], -1)),
    "batch_norm": (nn.BatchNorm2d(2), lambda m, x: m(x)),
    "batch_norm_1d": (nn.BatchNorm1d(24), lambda m, x: m(x.flatten(1))),
    "batch_norm_after_cat": (nn.BatchNorm2d(4), lambda m, x: m(torch.cat([x, 2 * x], 1))),
    "batch_norm_folded": (nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)), lambda m, x: m(x)),
    "batch_norm_folded_bare": (nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3, affine=False)),
                               lambda m, x: m(x)),
    "avg_pool": (nn.AvgPool2d(2, 1, 1), lambda m, x: m(x)),
    "avg_pool_own_count": (nn.AvgPool2d(2, 1, 1, count_include_pad=False), lambda m, x: m(x)),
    "adaptive_avg_pool": (nn.AdaptiveAvgPool2d((2, 3)), lambda m, x: m(x)),
    "arithmetic": (None, lambda x: torch.add(x, x[:, :1], alpha=-2) - 3 * x.mean(3, keepdim=True) + (1 - x) / 2 - x.sum(
        (2, 3), keepdim=True) + torch.sub(2.0, x, alpha=3) - (-x)),
    "constants": (None, lambda x: torch.arange(4, dtype=x.dtype) * x + torch.ones_like(x) * torch.linspace(0, 1, 3).to(
        x)[:, None]),
    "batched_constant": (None, lambda x: torch.cat([torch.ones(1, 1, 4).to(x).expand(x.shape[0], -1, -1), x[:, 0]], 1)),
    "pieces": (None, lambda x: torch.cat([x[:, :, 1:], x[:, :, :1].flip(3), torch.stack(x[:, 0].unbind(1), 1)[:, None]
                                          .expand(-1, 2, -1, -1), x.roll((1, 2), (2, 3))], 2)),
    "chunks": (None, lambda x: sum(place * part for place, part in enumerate(x.chunk(2, 3))) + x.split(1, 3)[0]),
    "one_piece_twice": (None, lambda x: torch.cat([x.unbind(1)[0], x.unbind(1)[0] * 2, x.split(1, 1)[1][:, 0]], 1)),
    "shapes": (None, lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], 2, -1).transpose(1, 2).unflatten(1, (3, 4))
               .squeeze().unsqueeze(1).repeat(1, 2, 1, 1, 1)),
    "pads": (None, lambda x: F.pad(F.pad(x, (1, 0, 2, 1), value=7.0), (1, 1, 0, 1), mode="reflect")),
    "index": (None, lambda x: x[:, :, [2, 0, 0]][:, [1, 0]] + x.index_select(2, torch.tensor([1, 1, 0]))),
    "where": (None, lambda x: torch.where(torch.eye(3, 4, dtype=torch.bool), x, 2 * x.flip(2)).masked_fill(
        torch.ones(3, 4).tril().bool(), 4.0)),
    "upsample": (None, lambda x: F.interpolate(F.interpolate(F.interpolate(x, scale_factor=2, mode="bilinear"),
                                                             size=(5, 5), mode="bicubic"), size=(7, 6))),
    "shuffle": (None, lambda x: F.channel_shuffle(F.pixel_unshuffle(x[..., :2, :], 2), 2)),
    "unfold": (None, lambda x: F.unfold(x, 2)),
    "detach": (None, lambda x: x.detach() + x.clone().contiguous() * 2),
    "conversions": (None, lambda x: x.to(torch.float64, copy=True).double()),
    "dropout": (nn.Dropout(0.5), lambda m, x: m(x)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operators(name):
    module, function = LINEAR[name]
    model = Calls(function, module).double().eval()
    for key, each in model.state_dict().items():
        if each.is_floating_point() and "anchor" not in key:
            each.copy_(draw(hash_of(key), *each.shape).abs() + 0.1)
    check(model, linear_twin(model))


def hash_of(key):
    return sum(map(ord, key))


def test_assignments_into_a_part():
    """Writing over a part of an activation: what was there before has no share."""
    def assign(x):
        y = x.clone()
        y[:, 0] = x[:, 1] * 2
        y[:, 1, 1:3] = 5.0
        y[:, 1, 0, :2] = x[:, 0, 0, 1:2]
        y[:, :, :, 3].mul_(3)
        return y

    check(Calls(assign), linear_twin(Calls(assign)))


# What is refused


class Conditional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.fc = function, nn.Linear(24, 4)

    def forward(self, x):
        return self.function(x, self.fc(x.flatten(1)))


REFUSED = {
    "cumsum": lambda x, y: y.cumsum(1),
    "sort": lambda x, y: y.sort(1).values,
    "fft": lambda x, y: torch.fft.rfft(x).abs().flatten(1),
    "floor": lambda x, y: y.floor(),
    "sign": lambda x, y: y * torch.sign(y),
    "maximum": lambda x, y: torch.maximum(y, 2 * y),
    "amax": lambda x, y: y + y.amax(1, keepdim=True),
    "topk": lambda x, y: y.topk(2).values,
    "where_active": lambda x, y: torch.where(y > 0, y, 2 * y),
    "mask_from_activation": lambda x, y: y.masked_fill(y < 0, 0.0),
    "mask_as_number": lambda x, y: y * (y > 0).to(y.dtype),
    "value_from_activation": lambda x, y: y.masked_fill(torch.tensor([True, False, True, False]), 0.0)
    + torch.where(y[:, :1] > 0, 1.0, 2.0),
    "index_by_activation": lambda x, y: torch.eye(4)[y.argmax(1)] + y,
    "gather_by_activation": lambda x, y: y.gather(1, y.argsort(1)),
    "embedding": lambda x, y: F.embedding((y > 0).long(), torch.eye(4)).sum(1),
    "rounding_division": lambda x, y: torch.div(y, 0.1, rounding_mode="floor"),
    "remainder": lambda x, y: y.remainder(1.0),
    "whole_numbers": lambda x, y: (100 * y).long().to(y.dtype),
    "power_of_two_activations": lambda x, y: y.abs()**y,
    "power_of_a_number": lambda x, y: 2**y,
    "exponents": lambda x, y: y.abs()**torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "bounds": lambda x, y: y.clamp(min=torch.tensor([0.0, 1.0, 2.0, 3.0])),
    "active_bounds": lambda x, y: y.clamp(min=y.mean(1, keepdim=True)),
    "dynamic_convolution": lambda x, y: F.conv2d(x.reshape(1, -1, 3, 4), x[:, :, :2, :2].reshape(-1, 1, 2, 2),
                                                 groups=x.shape[0] * 2).reshape(x.shape[0], -1),
    "dynamic_linear": lambda x, y: F.linear(torch.ones(2, 4), y),
    "three_factors": lambda x, y: torch.einsum("bi,bi,bi->bi", y, y, y),
    "causal": lambda x, y: F.scaled_dot_product_attention(x, x, x, is_causal=True).flatten(1),
    "active_attention_mask": lambda x, y: F.scaled_dot_product_attention(x, x, x, x[..., :3]).flatten(1),
    "constant_queries": lambda x, y: F.scaled_dot_product_attention(torch.ones(2, 3, 4).expand(x.shape[0], -1, -1, -1),
                                                                    x, x).flatten(1),
    "one_norm": lambda x, y: x.norm(p=1, dim=-1).flatten(1),
    "constants_over": lambda x, y: torch.arange(4.0) / (y + 9),
    "active_scale_of_a_norm": lambda x, y: F.layer_norm(x, (4,), weight=y[0]).flatten(1),
    "same_bytes": lambda x, y: y.view(torch.int32).view(torch.float32),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused(name):
    model = Conditional(REFUSED[name]).eval()
    with pytest.raises(BadInput) as caught:
        explained(model, draw(1, 2, *SHAPE).float(), draw(2, 3, *SHAPE).float())
    assert "Conditional" in str(caught.value) and "\n" not in str(caught.value)
    if name not in ("dynamic_convolution", "dynamic_linear", "active_scale_of_a_norm"):
        assert isinstance(caught.value, NoRule), caught.value


def test_the_text_names_operator_and_network():
    with pytest.raises(NoRule, match=r"^Conditional: Deep SHAP has no rule for the operator aten\.cumsum\.default$"):
        explained(Conditional(REFUSED["cumsum"]), draw(1, 1, *SHAPE).float(), draw(2, 1, *SHAPE).float())


def test_a_rule_that_loses_an_activation_is_noticed(monkeypatch):
    """A rule that forgets one of two inputs: refused, not believed."""
    original = RULES["add"]
    monkeypatch.setitem(RULES, "add", lambda *arguments: list(original(*arguments))[:1])
    with pytest.raises(NoRule, match=r"aten\.add"):
        explained(Calls(lambda x: x[:, 0] + x[:, 1]), draw(1, 1, *SHAPE), draw(2, 1, *SHAPE))


class TokensFirst(nn.Module):
    """Attention as PyTorch's own module computes it: rows of tokens, in which the images of a batch are interleaved."""

    def __init__(self, bend):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.bend = nn.Linear(4, 4), bend

    def forward(self, x):
        tokens = self.fc(x.flatten(1, 2).transpose(0, 1).reshape(-1, 4))  # [token x image, 4]
        return self.bend(tokens).reshape(6, -1, 4).transpose(0, 1).flatten(1)


def test_interleaved_images_pass_what_is_linear_and_nothing_else():
    model = TokensFirst(lambda tokens: 2 * tokens).double()
    check(model, linear_twin(model))
    with pytest.raises(NoRule, match="do not lie one after the other"):
        explained(TokensFirst(F.relu), draw(1, 2, *SHAPE).float(), draw(2, 3, *SHAPE).float())
