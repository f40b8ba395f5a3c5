"""Deep SHAP is additive on the networks that people use, in float32 and float64, and its programs compute what they do.

Untrained networks are made lively first: batch norms with statistics of real activations, layer scales that let every
block be heard, heads that make outputs of order 1. On outputs that are all alike nothing would be tested.
"""

import copy
import math
import zlib
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlkd import models
from tlkd.attribution import deep_shap
from tlkd.errors import BadInput
from tlkd.program import Constants, run, trace
from tlkd.specs import Network as Spec

LAYER_SCALES = ("layer_scale", "layer_scale_1", "layer_scale_2", "gamma", "gamma1", "gamma2", "gamma3", "scale")
SETTLED = 3.0  # the range of outputs that heads are scaled to


@dataclass(frozen=True)
class Case:
    """A network and the side of its images."""

    name: str
    side: int
    slow: bool = True


FAST = [Case("torchvision:resnet18", 32, False), Case("timm:test_vit", 160, False),
        Case("timm:test_convnext", 64, False), Case("timm:test_efficientnet", 32, False)]
SLOW = [
    *(Case(f"torchvision:{name}", 64) for name in (
        "resnet18", "wide_resnet50_2", "densenet121", "vgg11", "vgg16", "mobilenet_v2", "mobilenet_v3_small",
        "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "swin_t", "swin_v2_t")),
    Case("torchvision:vit_b_16", 224), Case("torchvision:maxvit_t", 224),
    *(Case(f"timm:{name}", 64) for name in (
        "resnet18", "convnext_atto", "convnextv2_atto", "mobilenetv4_conv_small", "regnetx_002", "resnetv2_50x1_bit",
        "fastvit_t8", "seresnet18", "ghostnet_100", "repvgg_a0", "poolformer_s12", "pvt_v2_b0",
        "xcit_nano_12_p16_224")),
    Case("timm:nfnet_l0", 128),
    *(Case(f"timm:{name}", 224) for name in (
        "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "mixer_s32_224",
        "levit_128s")),
]

EVERY_TIME = ("torchvision:efficientnet_b0", "torchvision:swin_v2_t", "timm:fastvit_t8", "timm:xcit_nano_12_p16_224",
              "timm:levit_128s")


def pictures(side, number=4):
    """Smooth images with some noise, as different from each other as photographs are."""
    draws = torch.Generator().manual_seed(1)
    coarse = nn.functional.interpolate(torch.randn(number, 3, 8, 8, generator=draws), size=side, mode="bicubic")
    return coarse + 0.3 * torch.randn(number, 3, side, side, generator=draws)


def untrained(name):
    """A network with seeded weights."""
    origin, _, plain = name.partition(":")
    torch.manual_seed(zlib.crc32(name.encode()))
    return torchvision.models.get_model(plain, weights=None) if origin == "torchvision" else timm.create_model(
        plain, num_classes=10)


@torch.no_grad()
def enliven(model, images):
    """Make a network's outputs differ: statistics, layer scales, and a head of the right size."""
    heads = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in LAYER_SCALES:
            parameter.fill_(0.5)
        elif name.endswith("weight") and not parameter.any():
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.5)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    model(images)
    model.eval()
    outputs = model(images)
    last = [module for module in heads if getattr(module, "out_features", None) == outputs.shape[1]
            or getattr(module, "out_channels", None) == outputs.shape[1]][-1]
    if last.bias is not None:
        last.bias.zero_()
    spread = float((outputs - outputs.mean(0)).abs().max())
    last.weight.mul_(SETTLED / max(spread, 1e-6))


def assert_additive(model, images, shape):
    """One trace, both precisions: the program gives the network's outputs, and contributions make them up."""
    model = model.eval()
    program = trace(model, shape)
    image, background = images[:1], images[1:3]
    exact = copy.deepcopy(model).double()  # in float32 a batch norm after another may amplify what is rounded
    with torch.no_grad():
        expected = exact(images.double())
        found = run(program, Constants.of(program, exact), images.double(), frozenset())[program.output]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))
    assert float(expected.max() - expected.min()) >= 0.5
    for precision, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        network = copy.deepcopy(model).to(precision)
        with torch.no_grad():
            span = max(1.0, float((outputs := network(images.to(precision)).double()).max() - outputs.min()))
        for output in ("logit", "probability") if precision == torch.float32 else ("logit",):
            explained = deep_shap(network, image.to(precision), background.to(precision), "winner", output, 4, program)
            miss = explained.values.double().sum() + explained.expected - explained.output
            assert float(miss.abs()) <= tolerance * (span if output == "logit" else 1.0)
            if output == "logit":
                torch.testing.assert_close(explained.output, outputs[:1].max(1).values, rtol=1e-2, atol=1e-2 * span)
                assert float((explained.output - explained.expected).abs()) > 0.02
                assert float(explained.values.abs().max()) > 0


def marks(case):
    """The whole list takes ten minutes, too long for every change."""
    return [] if not case.slow else [pytest.mark.slow] if case.name in EVERY_TIME else [pytest.mark.full_size]


@pytest.mark.parametrize("case", [
    pytest.param(case, id=f"{case.name.partition(':')[2]}-{case.side}", marks=marks(case)) for case in [*FAST, *SLOW]])
def test_untrained_networks(case):
    model, images = untrained(case.name), pictures(case.side)
    enliven(model, images)
    assert_additive(model, images, (3, case.side, case.side))


@pytest.mark.parametrize(("name", "side"), [
    ("efficientnet_lite0", 64), *(pytest.param(name, side, marks=pytest.mark.full_size) for name, side in (
        ("efficientnet_lite0", 224), ("efficientnet_lite1", 128), ("efficientnet_lite2", 128)))])
def test_pretrained_networks(name, side):
    """ImageNet's own weights and classes: features of order 1, and no head of ours."""
    network = models.build(Spec(model=f"packaged:{name}", input_size=side), 1000, 0, fit=False)
    assert_additive(network, pictures(side), (3, side, side))


def test_outputs_that_are_all_alike_would_be_noticed():
    """The fresh network, not made lively, is none that this file would pass."""
    model, images = untrained("timm:test_vit").eval(), pictures(160)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(1e-3)
    with pytest.raises(AssertionError):
        assert_additive(model, images, (3, 160, 160))


def test_control_flow_by_data_is_refused_in_one_line():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = torchvision.models.resnet18(num_classes=3), nn.Linear(3 * 32 * 32, 3)

        def forward(self, x):
            return self.one(x) if x.mean() > 0 else self.other(x.flatten(1))

    with pytest.raises(BadInput, match=r"^Routed: cannot be traced") as caught:
        trace(Routed(), (3, 32, 32))
    assert "\n" not in str(caught.value)
