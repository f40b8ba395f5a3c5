"""Under which licence a network's weights came, and whether that allows commercial use, as far as it is known."""

from dataclasses import dataclass
from typing import Literal

import timm
from torchvision.models import get_model_weights

from tlkd import specs

Use = Literal["allowed", "forbidden", "unknown", "free"]

NAMES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-4.0": "CC-BY 4.0",
         "cc-by-nc-4.0": "CC-BY-NC 4.0"}
ALLOWED = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
FORBIDDEN = ("cc-by-nc-4.0", "fair-noncommercial-research-license", "apple-amlr", "seer-license")
"""Licences of timm's weights for research alone; those in neither list have terms of their own."""


@dataclass(frozen=True)
class Licence:
    """A licence: its name, its identifier on the Hugging Face Hub (`other` where it has none), and commercial use."""

    name: str
    identifier: str
    commercial: Use
    about: str  # whose weights these are, a phrase

    @property
    def warns(self) -> bool:
        """Whether whoever uses the network must be warned."""
        return self.commercial == "forbidden"


def licence_of(spec: specs.Network) -> Licence:
    """The licence of the weights that a network started from; nothing is loaded or downloaded."""
    prefix, _, name = spec.model.partition(":")
    if spec.weights == "none":
        return Licence("none to keep", "other", "free", "started from random numbers")
    if prefix == "packaged" and spec.weights == "imagenet":
        return Licence("Apache-2.0", "apache-2.0", "allowed", "EfficientNet-lite of Google, trained on ImageNet")
    if prefix == "torchvision":
        offered = get_model_weights(name).__members__
        label = "IMAGENET1K_V1" if spec.weights == "imagenet" else spec.weights
        if label in offered and "SWAG" in offered[label].name:
            return Licence("CC-BY-NC 4.0", "cc-by-nc-4.0", "forbidden", f"SWAG weights {label} of Meta")
        if label in offered:
            return Licence("BSD-3-Clause", "bsd-3-clause", "allowed", f"torchvision's {label}, trained on ImageNet")
    if prefix == "timm" and spec.weights == "imagenet":
        return _of_timm(name)
    return Licence("unknown", "unknown", "unknown", "from a file, which names none")


def _of_timm(name: str) -> Licence:
    """What timm's configuration says of its pretrained weights."""
    config = timm.get_pretrained_cfg(name)
    found = str((config and config.license) or "unknown").lower()
    about = f"timm's {name}{f'.{config.tag}' if config and config.tag and '.' not in name else ''}"
    if found == "unknown":
        return Licence("unknown", "unknown", "unknown", f"{about}, of which timm names none")
    use: Use = "allowed" if found in ALLOWED else "forbidden" if found in FORBIDDEN else "unknown"
    return Licence(NAMES.get(found, found), found if found in NAMES else "other", use, about)
