"""Deep SHAP against a raw forward and input gradient of the same pairs, and against captum; and how additive it is."""

import warnings
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from common import Row, interleaved, network
from tlkd import models, specs
from tlkd.attribution import deep_shap, deep_shap_of_heads
from tlkd.program import trace

IMAGES, REFERENCES, CHUNK = 8, 32, 32


def pictures(count: int, size: int) -> Tensor:
    """Smooth seeded pictures with a little noise, as a network takes them."""
    draws = torch.Generator().manual_seed(0)
    coarse = nn.functional.interpolate(torch.randn(count, 3, 8, 8, generator=draws), size=size, mode="bicubic")
    noise = torch.randn(count, 3, size, size, generator=draws)
    return (coarse + 0.2 * noise).contiguous(memory_format=torch.channels_last)


class Unshared(nn.Module):
    """torchvision's basic block with a ReLU module for each use, and nothing added in place: what captum needs."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.first, self.last = block, nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        out = block.bn2(block.conv2(self.first(block.bn1(block.conv1(x)))))
        return self.last(out + (x if block.downsample is None else block.downsample(x)))


def resnet(unshared: bool) -> nn.Module:
    """An untrained ResNet-18 with weights of its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.resnet18(num_classes=10).eval()
    if unshared:
        net.relu = nn.ReLU()
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            for place, block in enumerate(layer):
                layer[place] = Unshared(block)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


def raw(net: nn.Module, images: Tensor, background: Tensor) -> Callable[[], None]:
    """Forward and gradient with respect to the input of as many pairs, in chunks of the same size."""
    def work() -> None:
        for image in images:
            for references in background.split(CHUNK):
                pairs = image.expand(len(references), -1, -1, -1).contiguous(memory_format=torch.channels_last)
                pairs.requires_grad_()
                torch.autograd.grad(net(pairs).amax(1).sum(), pairs)

    return work


def against_raw(what: str, net: nn.Module, size: int) -> None:
    """One network's ratio, and how far its sums are off."""
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    images, background = pictures(IMAGES, size), pictures(IMAGES + REFERENCES, size)[IMAGES:]
    program = trace(net, (3, size, size))

    def ours() -> float:
        found = deep_shap(net, images, background, chunk_size=CHUNK, program=program)
        return float(found.residual.abs().max())

    with torch.no_grad():
        outputs = net(torch.cat([images, background]))
    residual = ours() / max(1.0, float(outputs.max() - outputs.min()))
    note = (f"{IMAGES} images, {REFERENCES} references, chunks of {CHUNK}, {torch.get_num_threads()} threads; "
            f"largest residual {residual:.1e} of the outputs' range (goal 1e-5)")
    Row(f"Deep SHAP / raw forward + input gradient ({what} at {size} px)",
        interleaved(raw(net, images, background), ours, 7), "<= 1.0", note).print()


def against_captum() -> None:
    """captum's DeepLiftShap on an unshared ResNet-18, over ours on the same network."""
    from captum.attr import DeepLiftShap

    net, size = resnet(True), 64
    images, background = pictures(4, size), pictures(20, size)[4:]
    program = trace(net, (3, size, size))

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DeepLiftShap(net).attribute(images, background, target=3)

    ratios = interleaved(lambda: deep_shap(net, images, background, 3, chunk_size=64, program=program), theirs, 7)
    Row("captum DeepLiftShap / Deep SHAP (unshared resnet18 at 64 px)", ratios, ">= 2",
        f"4 images, 16 references, {torch.get_num_threads()} threads").print()


def heads() -> None:
    """Twenty heads on one backbone, one by one, over all at once."""
    size, count = 48, 20
    net = network(size=size)
    others = [models.build(specs.Network(model=net.name, input_size=size), 10, seed).head for seed in range(count)]
    images, background = pictures(4, size), pictures(12, size)[4:]
    program = trace(net.backbone, (3, size, size))

    def explain(some: list[nn.Linear]) -> None:
        deep_shap_of_heads(net.backbone, some, images, background, [3] * len(some), program=program)

    ratios = interleaved(lambda: explain(others), lambda: [explain([head]) for head in others], 5)
    Row("20 heads one by one / together (lite0 at 48 px)", ratios, ">= 1.0",
        f"4 images, 8 references, {torch.get_num_threads()} threads").print()


def main() -> None:
    against_raw("resnet18", resnet(False), 64)
    against_raw("pretrained lite0", network(size=96), 96)
    against_captum()
    heads()


if __name__ == "__main__":
    main()
