"""The explainers under one interface, Deep SHAP and others; each says whether it is additive, and is checked if so.

All but Deep SHAP and DeepLIFT come through captum (`pip install 'tlkd[explainers]'`). Those take one output of one
image at a time, so that no image's values depend on the others.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlkd.attribution import Attributions, Output, Targets, choose, deep_shap
from tlkd.errors import BadInput, RunFailed, nearest, needs
from tlkd.program import evaluating
from tlkd.seeding import seed_from

Function = Callable[[nn.Module, Tensor, Tensor, Targets, Output, int], Attributions]
Method = Callable[[Any, "Case"], Tensor]

EXACT = 1e-3
"""How far exactly additive values may miss; ten times what Deep SHAP allows itself."""
QUADRATURE = 0.01
"""How far integrated gradients may miss, whose integral is a sum of so many steps:"""
FEWEST_STEPS, MOST_STEPS = 50, 800
SAMPLES, SAMPLES_TOGETHER = 200, 20
"""GradientSHAP's draws for each image (as many as `shap` makes), and how many run at a time: the draws depend on it."""
WINDOWS = 8
"""Occlusion's windows that fit beside each other."""


@dataclass(frozen=True)
class Explainer:
    """One way to explain: `function` has the arguments and the answer of `attribution.deep_shap`.

    Of an additive one the values of an image sum to `output - expected`, up to `tolerance` times the range of that
    output on the image and the background, or times 1 where that range is smaller. Of others the residual is nan.
    """

    name: str
    additive: bool
    sentence: str
    function: Function
    tolerance: float = EXACT


@dataclass(frozen=True, eq=False)
class Case:
    """One output of a network on one image, which a method of captum explains by values `[1, *image]`."""

    layer: nn.Module | None  # where the method looks into the network, if it does
    forward: Callable[[Tensor], Tensor]  # images -> logits or probabilities [image, class]
    image: Tensor  # [1, channel, height, width]
    background: Tensor  # [reference, channel, height, width]
    target: int
    change: float  # output - expected: what additive values sum to
    allowed: float  # how far they may miss it
    chunk_size: int


def explain(name: str, model: nn.Module, images: Tensor, background: Tensor, targets: Targets = "winner",
            output: Output = "logit", chunk_size: int = 32) -> Attributions:
    """Explain a network's outputs on images by the explainer of this name; arguments are those of `deep_shap`.

    The network is left as it was. Raises `BadInput` for an explainer that is unknown, does not suit the network, or
    needs captum where that is missing, and `RunFailed` for values that are not finite, or claim to be additive and are
    not.
    """
    if name not in EXPLAINERS:
        raise BadInput(f"explanation.explainer: found {name!r}; allowed: {', '.join(EXPLAINERS)}"
                       f"{nearest(name, list(EXPLAINERS))}")
    for what, each in (("images", images), ("background", background)):
        if each.ndim != 4 or not len(each) or each.shape[1:] != images.shape[1:]:
            raise BadInput(f"{what}: found the shape {list(each.shape)}; allowed: [1 or more, channel, height, width], "
                           "alike for images and background")
    if chunk_size < 1:
        raise BadInput(f"chunk_size: found {chunk_size}; allowed: 1 or more")
    found = EXPLAINERS[name].function(model, images, background, targets, output, chunk_size)
    _check(EXPLAINERS[name], found, model, images, background, targets, output, chunk_size)
    return found


def deep_lift(model: nn.Module, images: Tensor, background: Tensor, targets: Targets = "winner",
              output: Output = "logit", chunk_size: int = 32) -> Attributions:
    """DeepLIFT with one reference, the mean of the background: `expected` is the output on that one image."""
    return deep_shap(model, images, background.mean(0, keepdim=True), targets, output, chunk_size)


def through_captum(name: str, method: Method, tolerance: float | None = None,
                   layer_of: Callable[[nn.Module, Tensor], nn.Module] | None = None) -> Function:
    """An explainer's function out of a method that is given `captum.attr` and a case; `tolerance` if it is additive.

    `layer_of` finds the layer that the method looks into, once for all cases.
    """
    def function(model: nn.Module, images: Tensor, background: Tensor, targets: Targets = "winner",
                 output: Output = "logit", chunk_size: int = 32) -> Attributions:
        captum = _captum(name)
        images, background = _fitting(model, images), _fitting(model, background)
        with evaluating(model):
            forward = _forward(model, output)
            above, below = (_outputs(forward, each, chunk_size) for each in (images, background))
            classes, expected = choose(targets, above), below.mean(0)
            layer = None if layer_of is None else layer_of(model, images[:1])
            allowed = (tolerance or 0.0) * _ranges(above, below)
            rows = []
            for row, chosen in enumerate(classes.tolist()):
                cases = (Case(layer, forward, images[row:row + 1], background, target,
                              float(above[row, target] - expected[target]), float(allowed[row, target]), chunk_size)
                         for target in chosen)
                rows.append(torch.cat([method(captum, case).detach() for case in cases]))
        values = torch.stack(rows)
        explained, expected = above.gather(1, classes), expected.expand_as(above).gather(1, classes)
        residual = values.double().flatten(2).sum(2) + expected - explained
        if tolerance is None:
            residual = torch.full_like(residual, torch.nan)
        found = (values, explained, expected, residual)
        return Attributions(*(found if targets_all(targets) else (each[:, 0] for each in found)))

    return function


def targets_all(targets: Targets) -> bool:
    """Whether all outputs are asked for, so that attributions have an axis for them."""
    return isinstance(targets, str) and targets == "all"


def integrated_gradients(captum: Any, case: Case) -> Tensor:
    """The mean over the background of the gradients' integrals along the straight lines from each reference.

    By Gauss-Legendre quadrature of as many steps as it takes: doubled while the values miss the output by more than is
    allowed. Sundararajan, Taly & Yan, "Axiomatic attribution for deep networks", 2017, equation 1.
    """
    method = captum.IntegratedGradients(case.forward)
    steps = FEWEST_STEPS
    while True:
        total = torch.zeros_like(case.image)
        for chunk in torch.split(case.background, case.chunk_size):
            total += method.attribute(case.image.expand_as(chunk), chunk, target=case.target, n_steps=steps,
                                      internal_batch_size=case.chunk_size).sum(0, keepdim=True)
        values = total / len(case.background)
        missed = abs(float(values.double().sum()) - case.change)
        if not missed > case.allowed or steps >= MOST_STEPS:  # nan does not get better with more steps
            return values
        steps *= 2


def gradient_shap(captum: Any, case: Case) -> Tensor:
    """The mean gradient, times the difference, at points drawn on the lines from references drawn from the background.

    Every image and output has the same draws, out of a fixed seed. Additive in expectation only. Erion et al.,
    "Improving performance of deep learning models with axiomatic attribution priors and expected gradients", 2021,
    equation 2; Lundberg's `shap.GradientExplainer`.
    """
    method = captum.GradientShap(case.forward)
    with _seeded(case.image.device):
        parts = [method.attribute(case.image, case.background, n_samples=SAMPLES_TOGETHER, stdevs=0.0,
                                  target=case.target) for _ in range(SAMPLES // SAMPLES_TOGETHER)]
    return torch.stack(parts).mean(0)


def grad_cam(captum: Any, case: Case) -> Tensor:
    """Where the last spatial layer speaks for the output: its channels weighted by their mean gradient, and ReLU.

    The map is enlarged bilinearly to the image's size and shared equally among the image's channels, so that they sum
    to it. Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization", 2017,
    equations 1 and 2.
    """
    method = captum.LayerGradCam(case.forward, case.layer)
    small = method.attribute(case.image.clone().requires_grad_(), target=case.target, relu_attributions=True)
    large: Tensor = captum.LayerAttribution.interpolate(small, tuple(case.image.shape[2:]), "bilinear")
    return large.expand_as(case.image) / case.image.shape[1]


def occlusion(captum: Any, case: Case) -> Tensor:
    """How much the output loses where a window of the image is replaced by the mean of the background.

    The window's side is an eighth of the image's, and it moves by half of that; each pixel has the mean loss over the
    windows that cover it, shared equally among the channels. Zeiler & Fergus, "Visualizing and understanding
    convolutional networks", 2014, section 4.2.
    """
    channels, *sides = case.image.shape[1:]
    window = [max(1, side // WINDOWS) for side in sides]
    values: Tensor = captum.Occlusion(case.forward).attribute(
        case.image, (channels, *window), (channels, *(max(1, side // 2) for side in window)),
        baselines=case.background.mean(0, keepdim=True), target=case.target, perturbations_per_eval=case.chunk_size)
    return values / channels


@torch.no_grad()
def last_spatial_layer(model: nn.Module, image: Tensor) -> nn.Module:
    """The module that a network's last activations with several places come from, `[1, channel, height, width]`.

    Raises `BadInput` where the last ones are none of that kind, e.g. a transformer's tokens `[1, token, width]`.
    """
    last: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        last[:] = [each for each in last if each[0] is not module]  # of a module called twice captum has the last call
        if isinstance(output, Tensor) and sum(size > 1 for size in output.shape[1:]) > 1:
            last.append((module, output.shape))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        model(image.clone())
    finally:
        for hook in hooks:
            hook.remove()
    height, width = image.shape[2:]
    # The image's proportions, but for rounding, tell [channel, height, width] from [height, width, channel].
    if not last or len(last[-1][1]) != 4 or abs(last[-1][1][2] * width - last[-1][1][3] * height) > height + width:
        found = f"its last are {list(last[-1][1][1:])}" if last else "no module of it gives more than a vector"
        others = ", ".join(each for each in EXPLAINERS if each != "grad_cam")
        raise BadInput("explanation.explainer: grad_cam needs a last layer with activations [channel, height, width]; "
                       f"{_name(model)} has none: {found}; allowed for it: {others}")
    return last[-1][0]


def _check(explainer: Explainer, found: Attributions, model: nn.Module, images: Tensor, background: Tensor,
           targets: Targets, output: Output, chunk_size: int) -> None:
    """Raise `RunFailed` where values are not finite, or do not sum to what an additive explainer claims."""
    finite = found.values.flatten(1).isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise RunFailed(f"{_name(model)}: {explainer.name}: the attributions of image {row} are not finite")
    if not explainer.additive:
        return
    with evaluating(model):
        forward = _forward(model, output)
        above, below = (_outputs(forward, _fitting(model, each), chunk_size) for each in (images, background))
    allowed = explainer.tolerance * _ranges(above, below).gather(1, choose(targets, above))
    # Not the explainer's own residual: that is part of its claim.
    missed = (found.values.double().flatten(-3).sum(-1) + found.expected - found.output).abs().reshape(allowed.shape)
    bad = (~(missed <= allowed)).nonzero()  # not even nan may pass
    if len(bad):
        row, place = bad[0].tolist()
        raise RunFailed(f"{_name(model)}: {explainer.name}: the attributions of image {row} miss its output by "
                        f"{missed[row, place]:.3g}, allowed: {allowed[row, place]:.3g}; they are not additive")


def _ranges(above: Tensor, below: Tensor) -> Tensor:
    """The range of each output on an image and the background, or 1 where that is smaller, `[image, class]`.

    Not the range over all images: what may be missed on one must not depend on the others.
    """
    return (above.clamp(min=below.amax(0)) - above.clamp(max=below.amin(0))).clamp(min=1)


def _forward(model: nn.Module, output: Output) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        logits: Tensor = model(images.clone())  # a network whose first step is in place would change the images
        return logits.softmax(1) if output == "probability" else logits

    return forward


@torch.no_grad()
def _outputs(forward: Callable[[Tensor], Tensor], images: Tensor, chunk_size: int) -> Tensor:
    """Outputs `[image, class]` in float64."""
    return torch.cat([forward(chunk) for chunk in torch.split(images, chunk_size)]).double()


def _fitting(model: nn.Module, images: Tensor) -> Tensor:
    """Images on the network's device and in its precision, without a history of their own."""
    first = next(model.parameters(), images)
    return images.detach().to(first.device, first.dtype)


def _name(model: nn.Module) -> str:
    return str(getattr(model, "name", None) or type(model).__name__)


def _captum(name: str) -> Any:
    return needs("captum.attr", f"explanation.explainer: {name}", "explainers")


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Seed what captum draws with, and put NumPy's and PyTorch's global generators back as they were."""
    before = np.random.get_state()
    try:
        # Of PyTorch's numbers captum makes noise of no size at all: they are put back, but need no seed.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            np.random.seed(seed_from("gradient_shap") % 2**32)
            yield
    finally:
        np.random.set_state(before)


EXPLAINERS: Mapping[str, Explainer] = {each.name: each for each in (
    Explainer("deep_shap", True,
              "Deep SHAP: the mean over the background of DeepLIFT contributions (Lundberg & Lee 2017).", deep_shap),
    Explainer("deep_lift", True,
              "DeepLIFT with one reference, the mean of the background (Shrikumar et al. 2017).", deep_lift),
    Explainer("integrated_gradients", True,
              "Integrated gradients, the mean over the background as baselines, additive up to quadrature: "
              f"{FEWEST_STEPS} to {MOST_STEPS} steps, until they miss at most {QUADRATURE:.0%} of the output's range "
              "(Sundararajan et al. 2017).",
              through_captum("integrated_gradients", integrated_gradients, QUADRATURE), QUADRATURE),
    Explainer("gradient_shap", False,
              f"GradientSHAP, or expected gradients: {SAMPLES} draws from a fixed seed; additive in expectation only "
              "(Lundberg & Lee 2017, Erion et al. 2021).", through_captum("gradient_shap", gradient_shap)),
    Explainer("grad_cam", False,
              "Grad-CAM of the last spatial layer, enlarged to the image and shared equally among its channels; "
              "never negative, not additive (Selvaraju et al. 2017).",
              through_captum("grad_cam", grad_cam, layer_of=last_spatial_layer)),
    Explainer("occlusion", False,
              f"Occlusion by a window of 1/{WINDOWS} of the image's side, filled with the mean of the background; "
              "not additive (Zeiler & Fergus 2014).", through_captum("occlusion", occlusion)),
)}
