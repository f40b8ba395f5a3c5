"""Licences of weights, known without a download, and the strictness of what is not known."""

import pytest

from tlkd import specs
from tlkd.licences import licence_of


@pytest.mark.parametrize(("model", "weights", "name", "commercial"), [
    ("packaged:efficientnet_lite0", "imagenet", "Apache-2.0", "allowed"),
    ("torchvision:resnet18", "imagenet", "BSD-3-Clause", "allowed"),
    ("torchvision:vit_b_16", "IMAGENET1K_V1", "BSD-3-Clause", "allowed"),
    ("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1", "CC-BY-NC 4.0", "forbidden"),
    ("torchvision:regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1", "CC-BY-NC 4.0", "forbidden"),
    ("timm:resnet18", "imagenet", "Apache-2.0", "allowed"),
    ("timm:convnextv2_tiny", "imagenet", "CC-BY-NC 4.0", "forbidden"),
    ("timm:resnet50", "mine/resnet50.pth", "unknown", "unknown"),
    ("packaged:efficientnet_lite0", "mine.pth", "unknown", "unknown"),
    ("torchvision:resnet18", "none", "none to keep", "free"),
])
def test_each_kind_of_weights_has_its_licence(model: str, weights: str, name: str, commercial: str) -> None:
    found = licence_of(specs.Network(model=model, weights=weights))
    assert (found.name, found.commercial) == (name, commercial)
    assert found.warns == (commercial == "forbidden")


def test_every_swag_weight_of_torchvision_is_warned_of() -> None:
    from torchvision.models import get_model_weights, list_models

    swag = [(name, each.name) for name in list_models() if "quantized" not in name
            for each in get_model_weights(name) if "SWAG" in str(each.meta.get("license", ""))]
    assert len(swag) >= 10
    assert all(licence_of(specs.Network(model=f"torchvision:{name}", weights=label)).warns for name, label in swag
               if name.startswith(("vit", "regnet")))
