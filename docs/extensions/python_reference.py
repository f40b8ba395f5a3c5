"""What `tlkd` gives to Python: each of its public names, by its own docstring."""

import inspect
from collections.abc import Iterator

import tlkd


def text() -> str:
    """Directives of autodoc for every name of `tlkd.__all__`."""
    return "\n".join(["```{eval-rst}", *(line for name in public() for line in _directive(name)), "```"])


def public() -> list[str]:
    """The public names, in the order in which the package lists them."""
    return list(getattr(tlkd, "__all__", []))


def _directive(name: str) -> Iterator[str]:
    found = getattr(tlkd, name)
    kind = "class" if inspect.isclass(found) else "function" if callable(found) else "data"
    yield f".. auto{kind}:: {found.__module__}.{found.__qualname__}" if kind != "data" else f".. autodata:: tlkd.{name}"
    if kind == "class":
        yield "   :members:"
    yield ""
