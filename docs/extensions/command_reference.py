"""Every command out of Typer's application: usage, what it does, arguments, options, examples."""

import inspect
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from tlkd.cli import app


class Taken(NamedTuple):
    """An argument or an option of a command."""

    names: tuple[str, ...]  # of an option; none of an argument
    value: str  # what stands for its value; empty for a flag
    help: str
    default: Any  # `inspect.Parameter.empty` where it is needed
    several: bool
    shown: bool  # whether the default tells anything


def commands() -> dict[str, Callable[..., Any]]:
    """The function of each command by the command's name, in the order of `tlkd --help`."""
    return {each.name or each.callback.__name__.replace("_", "-"): each.callback
            for each in app.registered_commands if each.callback is not None}


def takes(command: Callable[..., Any]) -> list[Taken]:
    """What a command takes, from the signature of its function."""
    hints, found = get_type_hints(command, include_extras=True), []
    for name, parameter in inspect.signature(command).parameters.items():
        if get_origin(hints[name]) is None or not hasattr(hints[name], "__metadata__"):
            continue  # Typer's own context
        said = next(each for each in hints[name].__metadata__ if isinstance(each, ArgumentInfo | OptionInfo))
        plain = get_args(hints[name])[0]
        kind = next(each for each in _flat(plain) if each is not type(None))
        kind = next(each for each in _flat(plain) if each is not type(None))
        named = (said.default, *(said.param_decls or ()))  # in an annotation the first stands in the default's place
        names = [one for each in named if isinstance(each, str) and each.startswith("-") for one in each.split("/")]
        if isinstance(said, OptionInfo) and not names:
            names = [f"--{name.replace('_', '-')}", *([f"--no-{name.replace('_', '-')}"] if kind is bool else [])]
        value = said.metavar or {int: "N", float: "X", bool: "", Path: "PATH"}.get(kind, "TEXT")
        value = name.upper() if not names and not said.metavar else value
        found.append(Taken(tuple(names), value, said.help or "", parameter.default,
                           any(get_origin(each) is list for each in (plain, *get_args(plain))),
                           bool(said.show_default)))
    return found


def _flat(annotation: Any) -> Iterator[Any]:
    inside = get_args(annotation) if get_origin(annotation) in (list, types.UnionType) else ()
    yield from (one for each in inside for one in _flat(each)) if inside else (annotation,)


def text() -> str:
    """The whole reference in Markdown, a section a command."""
    return "\n".join(line for name, command in commands().items() for line in _section(name, command))


def _section(name: str, command: Callable[..., Any]) -> Iterator[str]:
    body, _, examples = inspect.cleandoc(command.__doc__ or "").partition("[bold]Example")
    taken = takes(command)
    placed = [each.value.removesuffix("...") + ("..." if each.several else "") for each in taken if not each.names]
    needed = [each.default is inspect.Parameter.empty for each in taken if not each.names]
    usage = [shown if must else f"[{shown}]" for shown, must in zip(placed, needed, strict=True)]
    usage += [f"{each.names[0]} {each.value}" for each in taken if each.names and _needed(each)]
    usage += ["[OPTION]..."] if any(each.names for each in taken) else []
    yield f"## `tlkd {name}`\n\n{_plain(body)}\n\n```console\n$ {' '.join(['tlkd', name, *usage])}\n```\n"
    for each in taken:
        written = " ".join(filter(None, [", ".join(each.names), each.value]))
        yield f"`{written}`\n: {_plain(each.help)}{_default(each)}\n"
    lines = [line.strip() for line in examples.splitlines()[1:] if line.strip()]
    yield "```console\n{}\n```\n".format("\n".join(f"$ {line}" for line in lines))


def _needed(taken: Taken) -> bool:
    return taken.default is inspect.Parameter.empty


def _default(taken: Taken) -> str:
    told = taken.shown and taken.default not in (None, False, inspect.Parameter.empty)
    return f" Default: `{taken.default}`." if told else ""


def _plain(words: str) -> str:
    """Help as Markdown: Rich's bold, and what else might be read as markup."""
    words = re.sub(r"\[/?bold\]", "**", words.strip())
    return "`".join(part if place % 2 else part.replace("<", "&lt;").replace("*.", r"\*.")
                    for place, part in enumerate(words.split("`")))
