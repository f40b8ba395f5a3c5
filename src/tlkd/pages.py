"""Pages as one HTML text that refers to nothing outside of itself: templates, style and figures in one."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tlkd.figures import Drawing


def render(template: str, drawings: Sequence[Drawing], **values: Any) -> str:
    """A page from a template of the package, with the house style and its figures (by name) inside."""
    environment = Environment(loader=PackageLoader("tlkd"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    style = resources.files("tlkd").joinpath("templates", "report.css").read_text(encoding="utf-8")
    environment.filters |= {"text": _code, "breakable": _breakable}
    return environment.get_template(template).render(
        style=Markup(style), figure={drawing.name: _inline(drawing) for drawing in drawings},
        alt={drawing.name: drawing.alt for drawing in drawings}, **values)


def _inline(drawing: Drawing) -> Markup:
    """A figure's SVG as it may stand inside the page: no prolog, its own ids, as wide as there is room."""
    svg = drawing.svg[drawing.svg.index("<svg"):]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r'(\bid="|href="#|url\(#)', rf"\1{drawing.name}-", tag[0]), svg)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', lambda match: _root(match[1], drawing.alt), svg)
    return Markup(svg)


def _root(box: str, alt: str) -> str:
    width = float(box.split()[2]) * 4 / 3  # points to pixels
    return str(Markup('<svg viewBox="{}" role="img" aria-label="{}" style="--natural: {}px">').format(
        box, alt, round(width)))


def _breakable(text: str) -> Markup:
    """Text that a line may break inside of, behind the signs that hold paths and names together."""
    return Markup(re.sub(r"([/:_.-])", r"\1<wbr>", str(escape(text))))


def _code(text: str) -> Markup:
    """Text in which `back-quoted` words are set as code; the rest is escaped."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if number % 2 else part
                           for number, part in enumerate(parts))
