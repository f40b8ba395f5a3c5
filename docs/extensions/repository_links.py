"""Links that lead out of docs/ on the hosting site lead to the page that holds the same text in the built pages."""

from typing import Any

PAGES = {"../README.md": "index.md", "../benchmarks/RESULTS.md": "benchmarks.md", "../CHANGELOG.md": "changelog.md"}


def setup(app: Any) -> dict[str, Any]:
    """Replace such targets as each page is read."""
    app.connect("source-read", _replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _replace(app: Any, page: str, source: list[str]) -> None:
    del app, page
    for outside, inside in PAGES.items():
        source[0] = source[0].replace(f"]({outside}", f"]({inside}")
