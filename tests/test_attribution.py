"""Deep SHAP as a whole: against Shapley values by brute force, against captum, its invariances, and its own check."""

import copy
import csv
import itertools
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tlkd.attribution
from tlkd import models
from tlkd.attribution import TOLERANCE, deep_shap, deep_shap_of_heads
from tlkd.errors import BadInput, RunFailed
from tlkd.pairs import NoRule
from tlkd.program import trace
from tlkd.rules import RULES
from tlkd.specs import Network as Spec

SHAPE = (3, 8, 8)
PRIZES = {"A": 5, "B": 7, "C": 3, "AB": 15, "AC": 10, "BC": 13, "ABC": 21}  # the thesis's figure 1.12


def shapley(players, prize):
    """The mean of what each player adds over all orders in which they may come: the definition."""
    values = dict.fromkeys(players, 0.0)
    orders = list(itertools.permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            values[player] += (prize(frozenset(order[:place + 1])) - prize(frozenset(order[:place]))) / len(orders)
    return values


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Function(nn.Module):
    """A function of images as a network, in float64."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("anchor", torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return self.function(x)


class Convolutional(nn.Module):
    """ResNet-like: a shared in-place ReLU, a residual sum, batch norms, max-pooling."""

    def __init__(self, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.relu, self.pool, self.dropout = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.5)
        self.fc = nn.Linear(6, classes)
        for norm in (self.norm1, self.norm2):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.2, 0.5)

    def features(self, x):
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        y = self.norm2(self.conv2(x))
        y += x
        return self.relu(y).mean((2, 3))

    def forward(self, x):
        return self.fc(self.dropout(self.features(x)))


@pytest.fixture(scope="module")
def network():
    model = Convolutional().eval()
    with torch.no_grad():
        model.fc.weight.mul_(3)
    return model


@pytest.fixture(scope="module")
def program(network):
    return trace(network, SHAPE)


IMAGES, BACKGROUND = draw(1, 3, *SHAPE), draw(2, 5, *SHAPE)


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.output, expected.output, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.expected, expected.expected, rtol=0, atol=tolerance)


def additive(found, tolerance):
    sums = found.values.double().flatten(found.output.ndim).sum(-1)
    torch.testing.assert_close(sums, (found.output - found.expected).double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.residual, sums + found.expected - found.output, rtol=0, atol=1e-12)


# Shapley values by brute force


def test_the_thesis_game():
    """Figures 1.12 and 1.13: A 6.83, B 9.33, C 4.83."""
    values = shapley("ABC", lambda coalition: PRIZES.get("".join(sorted(coalition)), 0))
    assert {player: round(value, 2) for player, value in values.items()} == {"A": 6.83, "B": 9.33, "C": 4.83}
    assert sum(values.values()) == pytest.approx(PRIZES["ABC"])


def test_the_thesis_game_is_the_one_in_its_table():
    table = Path(__file__).parents[2] / "shared" / "thesis" / "shapley_game.csv"
    if not table.exists():
        pytest.skip("the thesis's tables are not here")
    with table.open() as file:
        assert {row["coalition"]: int(row["prize"]) for row in csv.DictReader(file)} == PRIZES


def test_the_thesis_game_as_a_network():
    """The game as a polynomial of who takes part: its pairs are products, so deep_shap finds the Shapley values."""
    def prize(x):
        a, b, c = x.flatten(1).unbind(1)
        pairs = 3 * a * b + 2 * a * c + 3 * b * c  # AB 15 = 5 + 7 + 3, AC 10 = 5 + 3 + 2, BC 13 = 7 + 3 + 3
        return torch.stack([5 * a + 7 * b + 3 * c + pairs, a], 1)

    everyone, nobody = torch.ones(1, 1, 1, 3).double(), torch.zeros(1, 1, 1, 3).double()
    found = deep_shap(Function(prize), everyone, nobody, 0)
    game = {"A": 5, "B": 7, "C": 3, "AB": 15, "AC": 10, "BC": 13, "ABC": 23}  # without what only three give together
    expected = shapley("ABC", lambda coalition: game.get("".join(sorted(coalition)), 0))
    torch.testing.assert_close(found.values.flatten(), torch.tensor(list(expected.values())).double())


def by_brute_force(model, image, reference, target):
    """Shapley values of pixels: a player in the coalition shows the image, one outside it the reference."""
    players = range(image.numel())

    @cache
    def prize(coalition):
        shown = reference.flatten().clone()
        for place in coalition:
            shown[place] = image.flatten()[place]
        with torch.no_grad():
            return float(model(shown.reshape(1, *image.shape))[0, target])

    return torch.tensor(list(shapley(players, prize).values()), dtype=torch.float64).reshape(image.shape)


def linear(x):
    weight = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(6, 2)
    return F.conv2d(x, weight.reshape(2, 1, 2, 3)[:, :, :1, :2]).flatten(1)[:, :6] @ weight + 1


def one_product(x):
    flat = x.flatten(1)
    return torch.stack([flat[:, 0] * flat[:, 1] + 2 * flat[:, 2], (flat[:, 3] + 1) * flat[:, 4] - flat[:, 5]], 1)


def quotient(x):
    flat = x.flatten(1)
    return torch.stack([flat[:, 0] / (flat[:, 1] + 9), 1 / (flat[:, 2] + 9)], 1)


def functions_of_one_pixel(x):
    flat = x.flatten(1)
    return torch.stack([F.gelu(flat).sum(1), F.relu(flat[:, 0]) + flat[:, 1].sigmoid() * 2 + flat[:, 2]**2], 1)


@pytest.mark.parametrize("function", [linear, one_product, quotient, functions_of_one_pixel])
@pytest.mark.parametrize("target", [0, 1])
def test_where_deep_lift_is_shapley(function, target):
    model = Function(function)
    images, background = draw(1, 2, 1, 2, 3).double(), draw(2, 3, 1, 2, 3).double()
    found = deep_shap(model, images, background, target)
    for image, values in zip(images, found.values, strict=True):
        expected = torch.stack([by_brute_force(model, image, each, target) for each in background]).mean(0)
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)


def test_brute_force_can_disagree():
    """A ReLU of a sum is no game that the rescale rule solves: additive, and not the Shapley values."""
    model = Function(lambda x: F.relu(x.flatten(1)[:, :2].sum(1, keepdim=True)))
    image, reference = (torch.tensor(row).double().reshape(1, 1, 1, 2) for row in ([3.0, -1.0], [0.0, 0.0]))
    found = deep_shap(model, image, reference, 0)
    assert found.values.flatten().tolist() == pytest.approx([3.0, -1.0])
    assert by_brute_force(model, image[0], reference[0], 0).flatten().tolist() == pytest.approx([2.5, -0.5])
    additive(found, 1e-12)


# captum


def relu_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def vgg_with_average_pooling():
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
                         nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
                         nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))


@pytest.mark.parametrize("make", [relu_network, vgg_with_average_pooling])
def test_captum_agrees_where_it_is_right(make):
    captum = pytest.importorskip("captum.attr")
    model = make().train()
    for _ in range(20):
        model(draw(7, 16, *SHAPE))  # statistics for the batch norms
    model.eval()
    with torch.no_grad():
        model[-1].weight.mul_(4)
    classes = torch.tensor([2, 0, 3])
    found = deep_shap(model, IMAGES, BACKGROUND, classes)
    expected = captum.DeepLiftShap(copy.deepcopy(model)).attribute(IMAGES, BACKGROUND, target=classes)
    assert float(expected.abs().max()) > 0.01
    torch.testing.assert_close(found.values, expected.detach(), rtol=0, atol=1e-5)
    one = deep_shap(model, IMAGES[:1], BACKGROUND[:1], 1)
    lift = captum.DeepLift(copy.deepcopy(model)).attribute(IMAGES[:1], BACKGROUND[:1], target=1)
    torch.testing.assert_close(one.values, lift.detach(), rtol=0, atol=1e-5)


# What must not matter


def test_additive_with_the_outputs_the_network_gives(network, program):
    found = deep_shap(network, IMAGES, BACKGROUND, "all", program=program)
    with torch.no_grad():
        output, expected = network(IMAGES), network(BACKGROUND).mean(0)
    assert found.values.shape == (3, 5, *SHAPE) and found.output.shape == (3, 5)
    torch.testing.assert_close(found.output.float(), output, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.expected.float(), expected.expand(3, -1), rtol=0, atol=1e-5)
    assert float((found.output - found.expected).abs().mean()) > 0.1
    additive(found, 1e-5)


def test_traced_anew_and_of_a_copy(network, program):
    expected = deep_shap(network, IMAGES, BACKGROUND, program=program)
    close(deep_shap(copy.deepcopy(network), IMAGES, BACKGROUND), expected, 0)


@pytest.mark.parametrize("output", ["logit", "probability"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 15, 1000])
def test_chunks(network, program, output, chunk_size):
    for model, tolerance in ((network, 1e-5), (copy.deepcopy(network).double(), 1e-12)):
        for targets in ("winner", "all"):
            expected = deep_shap(model, IMAGES, BACKGROUND, targets, output, program=program)
            close(deep_shap(model, IMAGES, BACKGROUND, targets, output, chunk_size, program), expected, tolerance)


def test_targets_agree(network, program):
    def explain(targets, **more):
        return deep_shap(network, IMAGES, BACKGROUND, targets, program=program, **more)

    for output in ("logit", "probability"):
        every = explain("all", output=output)
        classes = [4, 0, 2]
        for targets in (classes, torch.tensor(classes), torch.tensor(classes, dtype=torch.int32)):
            found = explain(targets, output=output)
            torch.testing.assert_close(found.values, every.values[range(3), classes], rtol=0, atol=1e-6)
            torch.testing.assert_close(found.output, every.output[range(3), classes])
        torch.testing.assert_close(explain(3, output=output).values, every.values[:, 3], rtol=0, atol=1e-6)
        winners = network(IMAGES).argmax(1)
        torch.testing.assert_close(explain("winner", output=output).values, every.values[range(3), winners], rtol=0,
                                   atol=1e-6)


def test_other_images_of_the_batch(network, program):
    together = deep_shap(network, torch.cat([IMAGES, 9 * draw(5, 4, *SHAPE)]), BACKGROUND, program=program)
    alone = deep_shap(network, IMAGES[1:2], BACKGROUND, program=program)
    torch.testing.assert_close(together.values[1:2], alone.values, rtol=0, atol=1e-6)


def test_the_background_is_a_set_and_its_mean_is_taken(network, program):
    expected = deep_shap(network, IMAGES, BACKGROUND, program=program)
    close(deep_shap(network, IMAGES, BACKGROUND[[3, 0, 4, 1, 2]], program=program), expected)
    close(deep_shap(network, IMAGES, BACKGROUND.repeat(2, 1, 1, 1), program=program), expected)
    parts = [deep_shap(network, IMAGES, part, program=program) for part in BACKGROUND.split([2, 3])]
    torch.testing.assert_close(parts[0].values * 0.4 + parts[1].values * 0.6, expected.values, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts[0].expected * 0.4 + parts[1].expected * 0.6, expected.expected)


def test_an_image_that_is_the_reference(network, program):
    found = deep_shap(network, IMAGES[:1], IMAGES[:1], program=program)
    assert not found.values.any() and found.output == found.expected


def test_layouts_in_memory(network, program):
    expected = deep_shap(network, IMAGES, BACKGROUND, "all", program=program)
    last = torch.channels_last
    for one, other in itertools.product([IMAGES, IMAGES.to(memory_format=last)],
                                        [BACKGROUND, BACKGROUND.to(memory_format=last)]):
        close(deep_shap(network, one, other, "all", program=program), expected)
        close(deep_shap(copy.deepcopy(network).to(memory_format=last), one, other, "all", program=program), expected)


def test_a_view_that_was_traced_in_another_layout():
    """VGG flattens maps of channels: what was traced contiguous must run channels last, and the other way round."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    expected = deep_shap(model, IMAGES, BACKGROUND)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for one, other in itertools.product((model, last), (model, last)):
        program = trace(one, SHAPE)
        for images in (IMAGES, IMAGES.to(memory_format=torch.channels_last)):
            close(deep_shap(other, images, BACKGROUND, program=program), expected)


def test_float64(network, program):
    exact = copy.deepcopy(network).double()
    found = deep_shap(exact, IMAGES.double(), BACKGROUND.double(), "all", program=program)
    assert found.values.dtype == torch.float64
    additive(found, 1e-12)
    close(deep_shap(exact, IMAGES, BACKGROUND, "all"), found, 1e-12)
    single = deep_shap(network, IMAGES, BACKGROUND, "all", program=program)
    assert single.values.dtype == torch.float32
    torch.testing.assert_close(single.values.double(), found.values, rtol=0, atol=1e-6)
    half = deep_shap(copy.deepcopy(network).bfloat16(), IMAGES, BACKGROUND, "all", program=program)
    additive(half, 1e-5)


def test_probabilities(network, program):
    found = deep_shap(network, IMAGES, BACKGROUND, "all", "probability", program=program)
    with torch.no_grad():
        output, below = network(IMAGES).softmax(1), network(BACKGROUND).softmax(1)
    torch.testing.assert_close(found.output.float(), output, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.expected[0].float(), below.mean(0), rtol=0, atol=1e-5)
    additive(found, 1e-6)
    logits = deep_shap(network, IMAGES, BACKGROUND, "all", program=program)
    assert float((found.values - logits.values).abs().max()) > 0.01


def test_the_probability_of_a_network_is_the_output_of_one_that_ends_in_softmax(network):
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).softmax(1)

    close(deep_shap(Ends(), IMAGES, BACKGROUND, "all"), deep_shap(network, IMAGES, BACKGROUND, "all", "probability"))


# The network is left alone


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    model = Convolutional().train(training)
    model.norm1.train(not training)
    model.conv1.weight.requires_grad_(False)
    images, background = IMAGES.clone().requires_grad_(), BACKGROUND.clone()
    before = {name: (each, each.detach().clone(), each.requires_grad)
              for name, each in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    found = deep_shap(model, images, background)
    assert [module.training for module in model.modules()] == modes
    for name, each in model.state_dict(keep_vars=True).items():
        same, value, learns = before[name]
        assert each is same and torch.equal(each, value) and each.requires_grad == learns and each.grad is None, name
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)
    assert torch.equal(images, IMAGES) and torch.equal(background, BACKGROUND) and images.grad is None
    assert not found.values.requires_grad
    close(found, deep_shap(copy.deepcopy(model).eval(), IMAGES, BACKGROUND), 0)  # explained as it is evaluated


@pytest.mark.parametrize("trainable", ["head", "last:1", "all"])
def test_networks_of_a_study(trainable):
    spec = Spec(model="timm:test_resnet", weights="none", input_size=32, trainable=trainable)
    network = models.build(spec, 4, 0).train()
    live = [module.training for module in network.modules()]
    images, background = draw(1, 2, 3, 32, 32), draw(2, 3, 3, 32, 32)
    found = deep_shap(network, images, background, "all")
    assert [module.training for module in network.modules()] == live
    with torch.no_grad():
        torch.testing.assert_close(found.output.float(), network.eval()(images), rtol=0, atol=1e-5)
    additive(found, 1e-5)
    backbone = trace(network.backbone, (3, 32, 32))
    (headed,) = deep_shap_of_heads(network.backbone, [network.head], images, background, ["all"], program=backbone)
    close(headed, found, 1e-6)


# Several heads


class Features(Convolutional):
    def forward(self, x):
        return self.features(x)


@pytest.mark.parametrize("output", ["logit", "probability"])
def test_heads_are_networks_of_their_own(output):
    backbone = Features().eval()
    torch.manual_seed(5)
    heads = [nn.Linear(6, 4), nn.Linear(6, 7, bias=False), None]
    for head in heads[:2]:
        nn.init.normal_(head.weight, std=2)
    targets = ["winner", "all", [0, 5, 3]]
    for chunk_size in (2, 32):
        found = deep_shap_of_heads(backbone, heads, IMAGES, BACKGROUND, targets, output, chunk_size)
        for each, head, chosen in zip(found, heads, targets, strict=True):
            whole = backbone if head is None else nn.Sequential(backbone, head)
            expected = deep_shap(whole, IMAGES, BACKGROUND, chosen, output)
            assert each.values.shape == expected.values.shape
            close(each, expected, 1e-5)


# What is refused


@pytest.mark.parametrize(("change", "said"), [
    ({"images": IMAGES[0]}, r"images: found the shape \[3, 8, 8\]; allowed: \[1 or more, 3, 8, 8\]"),
    ({"images": IMAGES[:0]}, r"images: found the shape \[0, 3, 8, 8\]"),
    ({"background": BACKGROUND[:0]}, r"background: found the shape \[0, "),
    ({"background": draw(1, 2, 3, 9, 8)}, r"background: found the shape \[2, 3, 9, 8\]"),
    ({"images": torch.zeros(2, *SHAPE, dtype=torch.uint8)}, "images: found torch.uint8"),
    ({"targets": "loser"}, "targets: found 'loser'; allowed: winner, all"),
    ({"targets": 5}, "targets: found 5 to 5; allowed: 0 to 4"),
    ({"targets": -1}, "targets: found -1 to -1"),
    ({"targets": [0, 1]}, "allowed: a class, or 3 of them"),
    ({"targets": [[0], [1], [2]]}, "targets: found"),
    ({"targets": [0.0, 1.0, 2.0]}, "targets: found"),
    ({"targets": True}, "targets: found"),
    ({"targets": ["a", "b", "c"]}, "targets: found"),
    ({"targets": None}, "targets: found None"),
    ({"chunk_size": 0}, "chunk_size: found 0; allowed: 1 or more"),
    ({"output": "prob"}, "output: found 'prob'; allowed: logit, probability"),
])
def test_wrong_arguments(network, program, change, said):
    arguments = {"images": IMAGES, "background": BACKGROUND, "program": program} | change
    with pytest.raises(BadInput, match=said) as caught:
        deep_shap(network, **arguments)
    assert "\n" not in str(caught.value)


def test_wrong_heads(network, program):
    with pytest.raises(BadInput, match="targets: found 2 for 1 heads"):
        deep_shap_of_heads(network, [None], IMAGES, BACKGROUND, [0, 1], program=program)
    with pytest.raises(BadInput, match="heads: found one of 6 features; Convolutional gives 5"):
        deep_shap_of_heads(network, [nn.Linear(6, 2)], IMAGES, BACKGROUND, [0], program=program)
    with pytest.raises(BadInput, match="heads"):
        deep_shap_of_heads(network, [], IMAGES, BACKGROUND, [], program=program)


def test_an_operator_without_a_rule():
    with pytest.raises(NoRule, match=r"^Function: Deep SHAP has no rule for the operator aten\.cumsum"):
        deep_shap(Function(lambda x: x.flatten(1).cumsum(1)), IMAGES, BACKGROUND, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_is_never_returned(network, program, value):
    images, background = IMAGES.clone(), BACKGROUND.clone()
    images[2, 1, 0, 0], background[3, 0, 0, 0] = value, value
    with pytest.raises(RunFailed, match="Convolutional: images: number 2 holds values that are not finite"):
        deep_shap(network, images, BACKGROUND, program=program)
    with pytest.raises(RunFailed, match="background: number 3"):
        deep_shap(network, IMAGES, background, program=program)


def test_a_nan_that_the_network_makes_is_never_returned():
    model = Function(lambda x: x.flatten(1)[:, :2].log())
    images = IMAGES.abs() + 0.1
    images[1, 0, 0, 0] = -1.0
    for targets in (0, "winner", "all"):
        with pytest.raises(RunFailed, match="image 1 "):
            deep_shap(model, images, BACKGROUND.abs() + 0.1, targets)
    assert deep_shap(model, images[[0, 2]], BACKGROUND.abs() + 0.1, 1).values.isfinite().all()


# The check can fire


class Cancelling(nn.Module):
    """A sum whose large parts cancel: float32 loses what float64 keeps."""

    def __init__(self, size=1e4):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.size = nn.Linear(192, 3), size

    def forward(self, x):
        flat = x.flatten(1)
        large = self.size * flat[:, :1] * flat[:, 1:2]
        return F.silu(self.fc(flat)) * 3 + (large + flat[:, :3]) - large


def test_what_float32_misses_is_done_again_in_float64(monkeypatch):
    model = Cancelling()
    images = IMAGES.clone()
    images[1:, 0, 0, :2], background = 0.0, BACKGROUND.clone()
    background[:, 0, 0, 0] = 0.0  # nothing large, but for the first image
    calls = []
    original = tlkd.attribution.contributions

    def counted(program, constants, images, *rest):
        calls.append((constants.dtype, len(images)))
        return original(program, constants, images, *rest)

    monkeypatch.setattr(tlkd.attribution, "contributions", counted)
    for targets in ("winner", "all"):
        calls.clear()
        found = deep_shap(model, images, background, targets)
        assert calls == [(torch.float32, 3), (torch.float64, 1)]
        exact = deep_shap(copy.deepcopy(model).double(), images.double(), background.double(),
                          targets if targets == "all" else model(images).argmax(1))
        assert float((found.values - exact.values)[0].abs().max()) < 1e-4
        assert float(found.residual.abs().max()) < TOLERANCE[torch.float32]
        additive(found, 1e-4)


def test_the_check_would_have_missed_nothing(monkeypatch):
    """The same network where the second attempt is as poor as the first: an error."""
    original = tlkd.attribution.Constants.of
    monkeypatch.setattr(tlkd.attribution.Constants, "of", lambda program, model, dtype=None: original(
        program, model, torch.float32))
    with pytest.raises(RunFailed, match="image 0 "):
        deep_shap(Cancelling(), IMAGES, BACKGROUND)


@pytest.mark.parametrize("operator", ["conv2d", "linear", "relu", "max_pool2d", "add", "mean"])
def test_a_rule_that_leaks_one_percent_is_an_error(network, program, monkeypatch, operator):
    original = RULES[operator]
    keep = tlkd.attribution.kept(program)
    monkeypatch.setattr(tlkd.attribution, "kept", lambda program: keep)
    monkeypatch.setitem(RULES, operator, lambda *arguments: [
        (source, 0.99 * found) for source, found in original(*arguments)])
    said = r"^Convolutional: the attributions of image \d miss its output by .*float64 too"
    with pytest.raises(RunFailed, match=said):
        deep_shap(network, IMAGES, BACKGROUND, program=program)


def test_only_the_image_that_misses_is_named(network, program, monkeypatch):
    original = tlkd.attribution.contributions

    def broken(*arguments):
        values = original(*arguments)
        values[-1] *= 2
        return values

    monkeypatch.setattr(tlkd.attribution, "contributions", broken)
    with pytest.raises(RunFailed, match="image 2 "):
        deep_shap(network, IMAGES, BACKGROUND, program=program)


def test_the_tolerance_is_relative_to_the_range_of_outputs_and_never_below_one():
    assert (TOLERANCE[torch.float32], TOLERANCE[torch.float64]) == (1e-4, 1e-9)

    def found(values, above):
        return tlkd.attribution._found(torch.tensor(values).reshape(1, 1, 1, 1, 1), torch.tensor([above]),
                                       torch.tensor([[0.0, 0.0]]), torch.tensor([[0]]), "logit")

    assert not found(0.5 + 0.9e-4, [0.5, 0.0]).missed(torch.float32).any()
    assert found(0.5 + 1.2e-4, [0.5, 0.0]).missed(torch.float32).all()
    assert not found(0.5 + 0.9e-3, [0.5, 10.0]).missed(torch.float32).any()
    assert found(0.5 + 1.2e-3, [0.5, 10.0]).missed(torch.float32).all()
    assert found(math.nan, [0.5, 10.0]).missed(torch.float32).all()
