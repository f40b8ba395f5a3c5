"""What `tlkd` gives to Python: each of its public names, by its own docstring."""

import inspect
from collections.abc import Iterator

import tlkd

SIGNATURES = {"Study": "(**keys)"}  # its keys have a page of their own
RETURNED = ("tlkd.attribution.Attributions",)


def text() -> str:
    """Directives of autodoc for every name of `tlkd.__all__`, and for what these functions return."""
    lines = [line for name in tlkd.__all__ for line in _directive(name)]
    lines += [line for name in RETURNED for line in (f".. autoclass:: {name}", "   :members:", "")]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _directive(name: str) -> Iterator[str]:
    found = getattr(tlkd, name)
    kind = "module" if inspect.ismodule(found) else "class" if inspect.isclass(found) else "function"
    if kind == "module":
        yield f".. rubric:: The module tlkd.{name}\n"
    yield f".. auto{kind}:: tlkd.{name}{SIGNATURES.get(name, '')}"
    if kind == "module" or (kind == "class" and name not in SIGNATURES and not issubclass(found, Exception)):
        yield "   :members:"
    yield ""
