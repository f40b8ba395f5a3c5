"""Explainers beside Deep SHAP: against closed forms and literal twins; whether they keep what they claim and touch."""

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from tlkd import explainers
from tlkd.attribution import Attributions
from tlkd.errors import BadInput, RunFailed
from tlkd.explainers import EXPLAINERS, Explainer, explain, last_spatial_layer
from tlkd.specs import Explanation

pytest.importorskip("captum")

NAMES = sorted(EXPLAINERS)
CAPTUMS = [name for name in NAMES if not name.startswith("deep")]
SIDE = 16


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


def small_network(side=SIDE):
    """Convolutions, BatchNorm with statistics of its own, an in-place ReLU, max-pooling, dropout, two linear layers."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    with torch.no_grad():
        network[-1].weight.mul_(100)  # outputs that differ by far more than what may be missed
    return network.eval()


def linear_network(classes=2, side=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))


def images_of(number, side=SIDE):
    return torch.randn(number, 3, side, side)


def by_names(*names):
    return pytest.mark.parametrize("name", names)


def test_the_table_has_the_names_of_the_spec():
    assert tuple(EXPLAINERS) == get_args(Explanation.model_fields["explainer"].annotation)
    for name, each in EXPLAINERS.items():
        assert each.name == name
        assert each.sentence.endswith(").") and any(year.isdigit() for year in each.sentence.split()[-1][:4])
    assert [name for name in EXPLAINERS if EXPLAINERS[name].additive] == [
        "deep_shap", "deep_lift", "integrated_gradients"]


# One interface

@pytest.fixture(scope="module")
def everything():
    """What each explainer says of all outputs on three images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network, images, background = small_network(), images_of(3), images_of(4)

    class Found(dict):
        def __missing__(self, name):
            self[name] = {output: explain(name, network, images, background, "all", output)
                          for output in ("logit", "probability")}
            return self[name]

    return network, images, background, Found()


@pytest.mark.parametrize("output", ["logit", "probability"])
@by_names(*NAMES)
def test_shapes_outputs_and_residuals(everything, name, output):
    network, images, background, found = everything
    found = found[name][output]
    assert found.values.shape == (3, 3, 3, SIDE, SIDE)
    with torch.no_grad():
        reference = background.mean(0, keepdim=True) if name == "deep_lift" else background
        logits, below = network(images).double(), network(reference).double()
        if output == "probability":
            logits, below = logits.softmax(1), below.softmax(1)
    torch.testing.assert_close(found.output, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.expected, below.mean(0).expand(3, -1), rtol=0, atol=1e-5)
    assert found.values.abs().max() > 1e-3
    assert not found.values.requires_grad and not found.residual.requires_grad
    if not EXPLAINERS[name].additive:
        assert found.residual.isnan().all()
        return
    sums = found.values.double().sum((2, 3, 4))
    torch.testing.assert_close(found.residual, sums + found.expected - found.output, rtol=0, atol=1e-5)
    both = torch.cat([logits, below])
    ranges = both.amax(0) - both.amin(0)
    assert (found.residual.abs() <= (0.01 if name == "integrated_gradients" else 1e-4) * ranges.clamp(min=1)).all()
    assert ((found.output - found.expected).abs().amax(0) > 0.2 * ranges).all()


@by_names(*NAMES)
def test_targets_choose_outputs(everything, name):
    network, images, background, found = everything
    found = found[name]["logit"]
    winner = explain(name, network, images, background)
    rows, classes = torch.arange(3), found.output.argmax(1)
    for got, given in ((winner, classes), (explain(name, network, images, background, [2, 0, 1]), [2, 0, 1]),
                       (explain(name, network, images, background, 1), [1, 1, 1])):
        for part in ("values", "output", "expected", "residual"):
            torch.testing.assert_close(getattr(got, part), getattr(found, part)[rows, given], equal_nan=True,
                                       rtol=1e-4, atol=1e-5)


@by_names(*NAMES)
def test_other_images_and_chunks_change_nothing(everything, name):
    network, images, background, found = everything
    found = found[name]["logit"].values[1:2, 2]
    for chunk_size in (1, 3, 50):
        alone = explain(name, network, images[1:2], background, 2, chunk_size=chunk_size)
        torch.testing.assert_close(alone.values, found, rtol=1e-3, atol=1e-5)


@by_names(*CAPTUMS)
def test_equal_bits_whatever_the_other_images(everything, name):
    network, images, background, found = everything
    others = torch.cat([images_of(2), images[1:2]])
    assert torch.equal(explain(name, network, others, background, 2).values[2], found[name]["logit"].values[1, 2])


# Against closed forms

@by_names("deep_shap", "deep_lift", "integrated_gradients")
def test_of_a_linear_network_additive_explainers_agree(name):
    network, images, background = linear_network(), images_of(2, 4), images_of(3, 4)
    found = explain(name, network, images, background, "all")
    weight = network[1].weight.detach().reshape(1, 2, 3, 4, 4)
    exact = weight * (images - background.mean(0))[:, None]
    torch.testing.assert_close(found.values, exact, rtol=1e-5, atol=1e-6)


def test_deep_lift_rescales_from_the_mean_of_the_background():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 1), nn.ReLU())
    with torch.no_grad():
        network[1].bias.fill_(0.3)
    images, background = images_of(6, 4), images_of(3, 4)
    found = explain("deep_lift", network, images, background, 0)
    reference = background.mean(0)
    with torch.no_grad():
        high, low = network[:2](images), network[:2](reference[None])
        slope = ((high.relu() - low.relu()) / (high - low))[:, :, None, None]
        exact = network[1].weight.reshape(1, 3, 4, 4) * (images - reference) * slope
    assert ((slope > 0.01) & (slope < 0.99)).any()  # the ReLU opens or closes on the way
    torch.testing.assert_close(found.values, exact, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_against_a_fine_sum():
    """The mean over the references of 2,000 midpoints' gradients, in float64."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 2)).double()
    images, background = images_of(2, 6).double() * 2, images_of(3, 6).double() * 2
    found = explain("integrated_gradients", network, images, background, 1)
    steps = (torch.arange(2000).double() + 0.5) / 2000
    for image, values in zip(images, found.values, strict=True):
        twin = torch.zeros_like(image)
        for reference in background:
            points = (reference + steps[:, None, None, None] * (image - reference)).requires_grad_()
            gradient, = torch.autograd.grad(network(points)[:, 1].sum(), points)
            twin += gradient.mean(0) * (image - reference) / 3
        torch.testing.assert_close(values, twin, rtol=0, atol=1e-5)
    assert found.residual.abs().max() < 1e-5


class Steep(nn.Module):
    """Steps up by 1 where the mean of the pixels passes 0.37, over a width of about 4 / slope."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, images):
        step = torch.sigmoid(self.slope * (images.mean((1, 2, 3)) - 0.37))
        return torch.stack([step, torch.zeros_like(step)], 1)


@pytest.fixture
def steps_taken(monkeypatch):
    from captum.attr import IntegratedGradients

    taken, attribute = [], IntegratedGradients.attribute
    monkeypatch.setattr(IntegratedGradients, "attribute",
                        lambda *args, **named: taken.append(named["n_steps"]) or attribute(*args, **named))
    return taken


def test_integrated_gradients_take_the_steps_that_they_need(steps_taken, monkeypatch):
    image, black = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    for slope, needed in ((5, [50]), (600, [50, 100, 200, 400])):
        steps_taken.clear()
        found = explain("integrated_gradients", Steep(slope), image, black, 0)
        assert found.residual.abs().item() <= 0.01
        assert steps_taken == needed
    monkeypatch.setattr(explainers, "MOST_STEPS", 200)  # of which 400 were needed
    with pytest.raises(RunFailed, match="miss"):
        explain("integrated_gradients", Steep(600), image, black, 0)


def test_integrated_gradients_that_do_not_converge_fail_and_name_the_image(steps_taken):
    images = torch.cat([torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)])
    with pytest.raises(RunFailed, match=r"Steep: integrated_gradients: the attributions of image 1 miss its output by"):
        explain("integrated_gradients", Steep(1e6), images, torch.zeros(1, 3, 4, 4), 0)
    assert steps_taken == [50, 50, 100, 200, 400, 800]


def test_gradient_shap_draws_from_the_background_with_equal_chances():
    network = linear_network(1)
    images, background = images_of(1, 4), torch.stack([torch.zeros(3, 4, 4)] * 2 + [torch.ones(3, 4, 4)])
    found = explain("gradient_shap", network, images, background, 0)
    weight = network[1].weight.detach().reshape(1, 3, 4, 4)
    white = 200 * (images - found.values / weight).double()  # so many of the 200 draws were the white image
    torch.testing.assert_close(white, white.mean().round().expand_as(white), rtol=0, atol=0.2)
    assert stats.binomtest(round(white.mean().item()), 200, 1 / 3).pvalue > 0.05
    assert round(white.mean().item()) % 10  # the tens are not all the same 20 draws


def test_gradient_shap_is_near_integrated_gradients(everything):
    *_, found = everything
    exact, drawn = (found[name]["logit"].values for name in ("integrated_gradients", "gradient_shap"))
    assert np.corrcoef(exact.flatten(), drawn.flatten())[0, 1] > 0.9
    assert not torch.allclose(exact, drawn, rtol=0.01)


# Against literal twins

def enlarged(small, size):
    """Bilinear enlargement, pixel by pixel; places are the centres of the pixels."""
    def weights(to, of):
        place = min(max((to + 0.5) * of / size - 0.5, 0), of - 1)
        low = min(int(place), of - 1)
        return [(low, 1 - (place - low)), (min(low + 1, of - 1), place - low)]

    height, width = small.shape
    return torch.stack([torch.stack([sum(small[y, x] * a * b for y, a in weights(row, height)
                                         for x, b in weights(column, width)) for column in range(size)])
                        for row in range(size)])


@pytest.mark.parametrize("output", ["logit", "probability"])
def test_grad_cam_against_a_literal_twin(everything, output):
    network, images, _, found = everything
    seen = 0
    for image, given in zip(images, found["grad_cam"][output].values, strict=True):
        for target in range(3):
            activations = network[:7](image[None]).detach().requires_grad_()  # behind the pooling to 2 x 2
            outputs = network[7:](activations)[0]
            gradient, = torch.autograd.grad((outputs.softmax(0) if output == "probability" else outputs)[target],
                                            activations)
            small = torch.zeros(2, 2)
            for channel in range(6):
                small += gradient[0, channel].mean() * activations[0, channel].detach()
            twin = enlarged(small.clamp(min=0), SIDE)
            torch.testing.assert_close(given[target].sum(0), twin, rtol=1e-4, atol=1e-5)
            assert torch.equal(given[target, 0], given[target, 2])
            seen += 0 < (small < 0).sum() < 4
    assert seen  # maps with both signs, so that the ReLU is seen


def test_occlusion_against_a_literal_twin():
    """On 35 x 20 pixels: windows of 4 x 2 that move by 2 x 1, the last of them over the lower edge."""
    network = small_network()
    images, background = torch.randn(2, 3, 35, 20), torch.randn(3, 3, 35, 20)
    found = explain("occlusion", network, images, background, [2, 0], "probability", 7)
    filling = background.mean(0)
    for image, target, given in zip(images, (2, 0), found.values, strict=True):
        losses, covered = torch.zeros(35, 20), torch.zeros(35, 20)
        with torch.no_grad():
            whole = network(image[None]).softmax(1)[0, target]
            for top in range(0, 33, 2):
                for left in range(0, 19):
                    hidden = image.clone()
                    hidden[:, top:top + 4, left:left + 2] = filling[:, top:top + 4, left:left + 2]
                    losses[top:top + 4, left:left + 2] += whole - network(hidden[None]).softmax(1)[0, target]
                    covered[top:top + 4, left:left + 2] += 1
        torch.testing.assert_close(given.sum(0), losses / covered, rtol=1e-4, atol=1e-6)
        assert torch.equal(given[0], given[1])


@pytest.mark.parametrize("side", [4, 9])
def test_occlusion_of_small_images_moves_pixel_by_pixel(side):
    network, images = linear_network(1, side), images_of(1, side)
    found = explain("occlusion", network, images, torch.zeros(1, 3, side, side), 0)
    exact = (network[1].weight.detach().reshape(3, side, side) * images[0]).sum(0)
    torch.testing.assert_close(found.values[0].sum(0), exact, rtol=1e-4, atol=1e-5)


# Claims are checked

def found_by(values, output, expected, residual):
    return lambda *_: Attributions(values, output, expected, residual)


@pytest.mark.parametrize(("targets", "shape"), [("winner", (3, 3, 4, 4)), ("all", (3, 2, 3, 4, 4))])
def test_an_explainer_that_lies_about_additivity_fails(monkeypatch, targets, shape):
    """Its values miss the output of one image, on the last of the outputs, and it says that they miss by nothing."""
    values, zeros = torch.zeros(shape), torch.zeros(shape[:-3], dtype=torch.float64)
    args = ("liar", linear_network(), images_of(3, 4), images_of(1, 4), targets)
    for missed, fails in ((0.02, True), (-0.02, True), (float("nan"), True), (1e-4, False)):
        output = zeros.clone()
        output[1].view(-1)[-1] = missed
        honest = Explainer("liar", True, "", found_by(values, output, zeros, zeros))
        monkeypatch.setitem(EXPLAINERS, "liar", honest)
        if fails:
            with pytest.raises(RunFailed, match=r"^Sequential: liar: the attributions of image 1 miss its output by "):
                explain(*args)
        else:
            explain(*args)
        monkeypatch.setitem(EXPLAINERS, "liar", Explainer("liar", False, "", honest.function))
        explain(*args)


def test_what_may_be_missed_grows_with_the_range_of_outputs(monkeypatch):
    """The explained output is 0 and 10 on the images, 4 on the background; the others' ranges count for nothing."""
    class Wide(nn.Module):
        def forward(self, images):
            first = images.mean((1, 2, 3))
            return torch.stack([first, 100 * first, 0 * first], 1)

    images, zeros = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.float64)
    images[1] = 10
    for output, missed, fails in (("logit", 0.039, False), ("logit", 0.041, True), ("probability", 0.009, False),
                                  ("probability", 0.011, True)):
        found = found_by(torch.zeros(2, 3, 4, 4), zeros + missed, zeros, zeros)
        monkeypatch.setitem(EXPLAINERS, "liar", Explainer("liar", True, "", found, 0.01))
        if fails:
            with pytest.raises(RunFailed, match="image 0 miss"):
                explain("liar", Wide(), images, torch.full((1, 3, 4, 4), 4.0), 0, output)
        else:
            explain("liar", Wide(), images, torch.full((1, 3, 4, 4), 4.0), 0, output)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_fail(monkeypatch, bad):
    values, zeros = torch.zeros(3, 3, 4, 4), torch.zeros(3)
    values[2, 0, 1, 1] = bad
    monkeypatch.setitem(EXPLAINERS, "odd", Explainer("odd", False, "", found_by(values, zeros, zeros, zeros)))
    with pytest.raises(RunFailed, match="odd: the attributions of image 2 are not finite"):
        explain("odd", linear_network(), images_of(3, 4), images_of(1, 4))


# Networks and generators are left as they were

def hooks_of(network):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
               for module in network.modules())


@pytest.mark.parametrize("gradients", [True, False])
@by_names(*NAMES)
def test_all_is_left_as_it_was(name, gradients):
    # In place on the images themselves, where it is not the tracer that takes care of it.
    network = nn.Sequential(nn.ReLU(inplace=name in CAPTUMS), *small_network()).train()
    network[2].eval()
    network[1].weight.requires_grad_(False)
    network[-1].bias.grad = torch.ones(3)
    state = {key: each.clone() for key, each in network.state_dict().items()}
    images, background = images_of(2).requires_grad_(), images_of(3)
    before = images.detach().clone(), background.clone()
    numpy_state, torch_state = np.random.get_state(), torch.random.get_rng_state()
    with torch.set_grad_enabled(gradients):
        explain(name, network, images, background, 1)
        assert torch.is_grad_enabled() == gradients
    assert [module.training for module in network.modules()] == [module is not network[2]
                                                                 for module in network.modules()]
    assert [each.requires_grad for each in network.parameters()] == [False] + [True] * 9 and images.grad is None
    assert [each.grad is None for each in network.parameters()] == [True] * 9 + [False]
    assert torch.equal(network[-1].bias.grad, torch.ones(3))
    assert all(torch.equal(each, state[key]) for key, each in network.state_dict().items())
    assert torch.equal(images, before[0]) and torch.equal(background, before[1])
    assert hooks_of(network) == 0
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), numpy_state, strict=True))


@by_names(*NAMES)
def test_the_mode_of_the_network_and_of_the_generators_changes_nothing(everything, name):
    network, images, background, found = everything
    np.random.seed(5)
    torch.manual_seed(5)
    try:
        again = explain(name, network.train(), images[:1], background, 2).values
    finally:
        network.eval()
    torch.testing.assert_close(again[0], found[name]["logit"].values[0, 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CAPTUMS)
def test_a_network_that_fails_is_left_as_it_was(name):
    class Fails(nn.Module):
        calls = 0

        def forward(self, values):
            self.calls += 1
            if self.calls > 2:  # the outputs are there, the explanation begins
                raise ValueError("no more")
            return values

    network, image, background = nn.Sequential(*small_network(), Fails()).train(), images_of(1), images_of(1)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    with pytest.raises(ValueError, match="no more"):
        explain(name, network, image, background, 0)
    assert all(module.training for module in network.modules())
    assert hooks_of(network) == 0
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.random.get_rng_state(), torch_state)


# The last spatial layer

class Tokens(nn.Module):
    """A patch embedding, whose places go on as tokens `[image, token, width]` or last-channel maps."""

    def __init__(self, as_map):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)
        self.as_map = as_map

    def forward(self, images):
        places = self.patches(images)
        places = self.norm(places.permute(0, 2, 3, 1) if self.as_map else places.flatten(2).mT)
        return self.head(places.flatten(1, -2).mean(1))


@pytest.mark.parametrize(("network", "said"), [
    (Tokens(False), r"Tokens has none: its last are \[16, 8\]"),
    (Tokens(True), r"Tokens has none: its last are \[4, 4, 8\]"),
    (linear_network(3, SIDE), "Sequential has none: no module of it gives more than a vector"),
])
def test_grad_cam_says_no_to_networks_without_a_last_spatial_layer(network, said):
    allowed = ", ".join(name for name in EXPLAINERS if name != "grad_cam")
    with pytest.raises(BadInput, match=f"explanation.explainer: grad_cam needs .*{said}; allowed for it: {allowed}$"):
        explain("grad_cam", network, images_of(1), images_of(1))
    assert hooks_of(network) == 0


class Reused(nn.Module):
    """One ReLU behind the convolution and again behind the linear layer: its last call is not a spatial one."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.hidden, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, images):
        return self.head(self.relu(self.hidden(self.relu(self.conv(images)).mean((2, 3)))))


def test_the_last_spatial_layer():
    network = small_network()
    assert last_spatial_layer(network, images_of(1)) is network[6]
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                           nn.Linear(4, 2))
    assert last_spatial_layer(pooled, images_of(1)) is pooled[1]
    reused = Reused()
    assert last_spatial_layer(reused, images_of(1)) is reused.conv
    for size in ((35, 20), (13, 29)):  # proportions hold up to rounding only
        convolutions = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        assert last_spatial_layer(convolutions, torch.randn(1, 3, *size)) is convolutions[1]


# What cannot be

def test_a_missing_captum_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    args = linear_network(), images_of(1, 4), images_of(1, 4)
    for name in CAPTUMS:
        with pytest.raises(BadInput) as caught:
            explain(name, *args)
        assert str(caught.value) == (f"explanation.explainer: {name} needs the extra explainers: pip install "
                                     "'tlkd[explainers]'")
    for name in set(NAMES) - set(CAPTUMS):
        explain(name, *args)


def test_what_cannot_be_explained_is_said():
    network, images = linear_network(), images_of(2, 4)
    with pytest.raises(BadInput, match=r"explanation.explainer: found 'deep_shop'; allowed: .*; did you mean 'deep_"):
        explain("deep_shop", network, images, images)
    for name in ("occlusion", "deep_lift"):
        with pytest.raises(BadInput, match=r"background: found the shape \[0, 3, 4, 4\]"):
            explain(name, network, images, images[:0])
        with pytest.raises(BadInput, match=r"background: found the shape \[2, 3, 5, 5\]"):
            explain(name, network, images, images_of(2, 5))
        with pytest.raises(BadInput, match=r"images: found the shape \[3, 4, 4\]"):
            explain(name, network, images[0], images)
        with pytest.raises(BadInput, match="chunk_size: found 0; allowed: 1 or more"):
            explain(name, network, images, images, chunk_size=0)
        with pytest.raises(BadInput, match="targets: found"):
            explain(name, network, images, images, 7)


def test_captum_is_only_imported_when_it_is_needed():
    code = ("import sys; from tlkd import explainers; assert 'captum' not in sys.modules; "
            "explainers._captum('grad_cam'); assert 'captum' in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.full_size
@pytest.mark.parametrize("model", ["torchvision:resnet18", "packaged:efficientnet_lite0",
                                   "timm:vit_tiny_patch16_224"])
def test_real_networks(model):
    from tlkd import specs
    from tlkd.models import build

    network = build(specs.Network(model=model, weights="none", input_size=64), 4, 0)
    images, background = images_of(1, 64), images_of(2, 64)
    for name in CAPTUMS:
        if "vit" in model and name == "grad_cam":
            with pytest.raises(BadInput, match="vit_tiny_patch16_224 has none"):
                explain(name, network, images, background)
            continue
        assert explain(name, network, images, background).values.shape == images.shape
    if "vit" not in model:
        layer = last_spatial_layer(network, images)
        assert layer is (network.backbone.layer4 if "resnet" in model else network.backbone.bn2)
