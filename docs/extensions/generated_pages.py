"""Pages that are written as the documentation is built: text takes the place of `<!-- generated: NAME -->`."""

import re
from collections.abc import Callable
from typing import Any

import command_reference
import python_reference
import study_reference

WRITERS: dict[str, Callable[[], str]] = {
    "study": study_reference.text, "commands": command_reference.text, "python": python_reference.text}


def setup(app: Any) -> dict[str, Any]:
    """Fill such comments as each page is read."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill(app: Any, page: str, source: list[str]) -> None:
    del page
    found = re.findall(r"<!-- generated: (\w+) -->", source[0])
    for name in found:
        source[0] = source[0].replace(f"<!-- generated: {name} -->", WRITERS[name]())
    if found:  # the code that it comes from is not watched: such a page is read at every build
        app.env.note_reread()
