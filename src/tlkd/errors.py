"""The two ways in which tlkd says no; every floor may raise them."""

import importlib
from typing import Any


class BadInput(Exception):
    """Something that the person can put right: one line that names the file or key, the value and what is allowed."""


class RunFailed(Exception):
    """One training went wrong (a NaN loss, say); the other runs of the study go on."""


def missing(who: str, extra: str) -> BadInput:
    """What is said where `who` asks for a package of an optional extra that is not installed."""
    return BadInput(f"{who} needs the extra {extra}: pip install 'tlkd[{extra}]'")


def needs(module: str, who: str, extra: str) -> Any:
    """Import a package of an optional extra for `who` asks for it. Raises `BadInput` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise missing(who, extra) from None


def nearest(word: str, allowed: list[str], count: int = 3) -> str:
    """Name the allowed words nearest to `word` as `; did you mean 'a' or 'b'?`, or nothing where none is near."""
    import difflib

    # A name typed in full without its prefix ("lite2") is as common as a typing error.
    close = difflib.get_close_matches(word, allowed, n=count, cutoff=0.6)
    close += [name for name in allowed if word and word.lower() in name.lower() and name not in close]
    return f"; did you mean {' or '.join(repr(name) for name in close[:count])}?" if close else ""
