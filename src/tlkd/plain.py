"""A student as plain timm or torchvision has it: their own network, their own names of tensors, without tlkd."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tlkd import specs
from tlkd.errors import BadInput
from tlkd.models import Network
from tlkd.weights import belongs, creation, whole_network

TOLERANCE = 1e-5  # of the largest logit: by how much the plain network may differ from the student


@dataclass(frozen=True, eq=False)
class Plain:
    """A network of a library with a student's weights, in eval mode, and how the library makes it."""

    library: str  # timm, torchvision
    architecture: str
    arguments: dict[str, Any]  # of timm.create_model, torchvision.models.get_model
    heads: tuple[str, ...]
    module: nn.Module

    @property
    def state(self) -> dict[str, Tensor]:
        """Every tensor by the library's name, contiguous copies on the CPU."""
        return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in self.module.state_dict().items()}

    @property
    def loading(self) -> str:
        """The three lines that load it back without tlkd."""
        given = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        maker = "timm.create_model" if self.library == "timm" else "torchvision.models.get_model"
        return (f"import safetensors.torch, {self.library}\n"
                f'model = {maker}("{self.architecture}"{given}).eval()\n'
                'model.load_state_dict(safetensors.torch.load_file("model.safetensors"))')


def plain(network: Network, images: Tensor) -> Plain:
    """The library's own network with the student's weights.

    `images` is a batch of normalised ones on which both must agree. Raises `BadInput` where the library's network
    cannot hold what the student has learnt.
    """
    spec = specs.Network(model=network.name, weights="none", input_size=network.input_size)
    with torch.random.fork_rng(devices=[]):
        whole = whole_network(spec, network.classes, True)
    own, wanted = network.backbone.state_dict(), whole.module.state_dict()
    head = network.head.state_dict()
    state = {}
    for name, tensor in wanted.items():
        given = head.get(name.rpartition(".")[2]) if belongs(name, whole.heads) else own.pop(name, None)
        if given is None or given.numel() != tensor.numel():
            raise _cannot(network, f"its {name} has no counterpart")
        state[name] = given.reshape(tensor.shape)  # a head may be a 1 x 1 convolution
    if own:
        raise _cannot(network, f"it has no place for {', '.join(list(own)[:3])}")
    whole.module.load_state_dict(state)
    library, architecture, arguments = creation(network.name, network.input_size, network.classes)
    found = Plain(library, architecture, arguments, whole.heads, whole.module.eval())
    with torch.inference_mode():
        mine, theirs = network(images), found.module(images)
    if float((mine - theirs).abs().max()) > TOLERANCE * max(1.0, float(mine.abs().max())):
        raise _cannot(network, "its outputs differ from the student's")
    return found


def load(network: Network, state: dict[str, Tensor]) -> None:
    """Put the tensors of an export into a network of tlkd's; raises `BadInput` where they do not fit."""
    spec = specs.Network(model=network.name, weights="none", input_size=network.input_size)
    with torch.random.fork_rng(devices=[]):
        heads = whole_network(spec, network.classes, True).heads
    rest = {name: tensor for name, tensor in state.items() if not belongs(name, heads)}
    try:
        head = {name: state[f"{heads[0]}.{name}"].reshape(own.shape) for name, own in network.head.state_dict().items()}
        network.head.load_state_dict(head)
        network.backbone.load_state_dict(rest)
    except (KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"model.safetensors: does not fit {network.name} ({said})") from None


def _cannot(network: Network, why: str) -> BadInput:
    library = "torchvision" if network.name.startswith("torchvision:") else "timm"
    return BadInput(f"{network.name}: cannot be exported as {library}'s own network: {why}")
