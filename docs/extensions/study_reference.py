"""Every key of a study out of the models that hold it: where it stands, what it takes, its default, what it means."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tlkd.conditions import SETTINGS_OF, Corruption, Distortion, Spec
from tlkd.specs import KINDS, PATTERNS, Arm, Study

WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text",
                         bool: "`true` (or `on`), `false` (or `off`)", type(None): "`null`"}


def text() -> str:
    """The whole reference in Markdown: a section for each mapping of a study, a definition for each of its keys."""
    return "\n".join(line for path, model in sections() for line in _section(path, model))


def sections() -> list[tuple[str, type[Spec]]]:
    """(key path, model) of each mapping that a study holds, the study's own first; NAME is one that its owner chose."""
    found: list[tuple[str, type[Spec]]] = []
    own = [held for field in Study.model_fields.values() for _, held in _held(field.annotation, ())]

    def visit(path: str, model: type[Spec]) -> None:
        if "." in path.replace(".NAME", "") and model in own:
            return  # a teacher's training has the keys of the study's
        found.append((path, model))
        for name, field in model.model_fields.items():
            for place, held in _held(field.annotation, (*([path] if path else []), name)):
                visit(place, held)

    visit("", Study)
    return found


def _held(annotation: Any, path: tuple[str, ...]) -> Iterator[tuple[str, type[Spec]]]:
    """The models inside of a type; those that have a name, in a list or a mapping, stand below it."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield ".".join(path), annotation
    elif get_origin(annotation) is not Literal:
        for each in get_args(annotation):
            named = get_origin(annotation) is dict or (
                get_origin(annotation) is tuple and "name" in getattr(each, "model_fields", ()))
            yield from _held(each, (*path, "NAME") if named else path)


def _section(path: str, model: type[Spec]) -> Iterator[str]:
    yield f"## {f'`{path}`' if path else 'The study itself'}\n"
    yield f"{(model.__doc__ or '').strip()}\n"
    for name, field in model.model_fields.items():
        yield f"({_anchor(path, name)})="
        yield f"`{path}.{name}`" if path else f"`{name}`"
        yield f": {' '.join((field.description or '').split())}\\"
        yield f"  *{takes(field)}*; {_default(model, name, field)}\n"
    if model is Arm:
        yield from _kinds(KINDS)
    if model is Corruption:
        yield from _kinds(SETTINGS_OF)


def _anchor(path: str, name: str) -> str:
    return "-".join(["key", *path.lower().split("."), name]).replace("--", "-")


def _kinds(kinds: dict[Any, dict[str, Any]]) -> Iterator[str]:
    """Which keys each kind has, and what they are by default."""
    yield "| kind | its keys, and their defaults |\n| --- | --- |"
    for kind, keys in kinds.items():
        shown = ", ".join(f"`{key}`" + ("" if value is None else f" {_value(value)}") for key, value in keys.items())
        yield f"| `{kind}` | {shown or 'none'} |"
    yield ""


def takes(field: FieldInfo) -> str:
    """What a key takes, in words."""
    return _words(field.annotation, field.metadata)


def _words(annotation: Any, limits: Any = ()) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = _words(inside[0], inside[1:])
    elif origin in (Union, types.UnionType):
        found = ", or ".join(dict.fromkeys(_words(each, limits) for each in inside))
    elif origin is Literal:
        found = " or ".join(filter(None, [", ".join(f"`{each}`" for each in inside[:-1]), f"`{inside[-1]}`"]))
    elif origin is tuple and inside[-1] is Ellipsis:
        least = any(isinstance(limit, MinLen) for limit in _flat(limits))
        found = f"a list of {'one or more' if least else 'any length'}: {_words(inside[0])}"
    elif origin is tuple:
        found = f"a list of {len(inside)}: each {_words(inside[0])}"
    elif origin is dict and inside[1] is not Any:
        found = f"a mapping from a name to: {_words(inside[1])}"
    elif annotation in WORDS:
        found = WORDS[annotation] + _limits(limits if annotation is not type(None) else ())
    else:
        found = "a mapping of keys"
    return found


def _flat(limits: Any) -> Iterator[Any]:
    yield from (one for each in limits for one in getattr(each, "metadata", None) or [each])


def _limits(limits: Any) -> str:
    """What a number or a text is held to."""
    ends: dict[str, str] = {}
    for limit in _flat(limits):
        for kind, word in ((Ge, "at least"), (Gt, "above"), (Le, "at most"), (Lt, "below")):
            if isinstance(limit, kind):
                ends[word] = f"{getattr(limit, kind.__name__.lower()):g}"
        if getattr(limit, "pattern", None):
            return f": {PATTERNS[limit.pattern].removeprefix('allowed: ')}"
    if {"at least", "at most"} <= set(ends):
        return f" from {ends['at least']} to {ends['at most']}"
    return "".join(f"{' and' if place else ''} {word} {end}" for place, (word, end) in enumerate(ends.items()))


def _default(model: type[Spec], name: str, field: FieldInfo) -> str:
    kinds = KINDS if model is Arm else SETTINGS_OF if issubclass(model, Distortion) else {}
    if field.is_required():
        found = "needed"
    elif field.default is None and any(name in keys for keys in kinds.values()):
        found = "by its kind"
    elif (model, name) == (Study, "conditions"):
        found = "default: one, `clean`"
    elif field.default is PydanticUndefined:  # it follows from other keys: `data.augment`
        found = "default: `[hflip]`, and `[]` for the source `mnist5k`"
    elif isinstance(field.default, Spec):
        found = "default: its own defaults"
    else:
        found = f"default: {_value(field.default)}"
    return found


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"`{'null' if value is None else str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(f'{each:.4g}' if isinstance(each, float) else str(each) for each in value)}]`"
    return "`{}`" if value == {} else f"`{value}`"
