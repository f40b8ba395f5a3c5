"""Students under the names of plain timm and torchvision, networks with two heads and vision transformers too."""

import pytest
import torch

from tlkd import models, plain, specs
from tlkd.errors import BadInput

NETWORKS = {"timm:test_resnet": 32, "timm:test_vit": 64, "timm:test_byobnet": 32, "timm:test_convnext": 64,
            "timm:mobilenetv3_small_050": 32, "timm:deit_tiny_distilled_patch16_224": 64, "torchvision:resnet18": 32,
            "torchvision:mobilenet_v3_small": 32, "torchvision:densenet121": 32, "packaged:efficientnet_lite0": 48}


def student(name: str, classes: int = 5) -> models.Network:
    network = models.build(specs.Network(model=name, weights="none", input_size=NETWORKS[name]), classes, 1)
    with torch.no_grad():  # as after a training: no bias is nought, no statistics are fresh
        for index, each in enumerate(network.state_dict().values()):
            if each.is_floating_point():
                each.add_(0.01 * torch.rand(each.shape, generator=torch.Generator().manual_seed(index)))
    return network


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_librarys_own_network_says_what_the_student_says(name: str) -> None:
    network = student(name)
    images = torch.randn(3, 3, NETWORKS[name], NETWORKS[name], generator=torch.Generator().manual_seed(0))
    found = plain.plain(network, images)
    names: dict[str, object] = {}
    lines = found.loading.splitlines()
    assert len(lines) == 3
    exec("\n".join(lines[:2]), names)
    again = names["model"]
    assert isinstance(again, torch.nn.Module)
    again.load_state_dict(found.state)
    with torch.inference_mode():
        expected = network(images)
        torch.testing.assert_close(again(images), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert expected.std(0).min() > 0


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:deit_tiny_distilled_patch16_224",
                                  "timm:mobilenetv3_small_050", "torchvision:resnet18"])
def test_what_was_exported_loads_back_into_a_network_of_ours(name: str) -> None:
    network = student(name)
    images = torch.randn(2, 3, NETWORKS[name], NETWORKS[name], generator=torch.Generator().manual_seed(0))
    state = plain.plain(network, images).state
    other = models.build(specs.Network(model=name, weights="none", input_size=NETWORKS[name]), 5, 9)
    plain.load(other, state)
    with torch.inference_mode():
        torch.testing.assert_close(other(images), network(images))
    with pytest.raises(BadInput, match=r"model\.safetensors: does not fit"):
        plain.load(other, {key: tensor for key, tensor in state.items() if "weight" not in key})


def test_a_network_that_is_not_the_librarys_is_refused() -> None:
    network = student("torchvision:resnet18")
    network.head = torch.nn.Sequential(network.head, torch.nn.Linear(5, 5))
    with pytest.raises(BadInput, match=r"cannot be exported as torchvision's own network: its fc\.weight has no"):
        plain.plain(network, torch.randn(1, 3, 32, 32))
    other = student("torchvision:resnet18")
    other.backbone.register_forward_hook(lambda *values: values[2] * 1.01)
    with pytest.raises(BadInput, match="its outputs differ from the student's"):
        plain.plain(other, torch.randn(1, 3, 32, 32))
