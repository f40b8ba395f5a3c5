"""A grid, lists of values by key path, written out into a raw study's conditions, arms and teachers."""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlkd.errors import nearest
from tlkd.specs import Arm, Condition, Spec, Student, Teacher, Training, canonical

Raw = dict[str, Any]
Origin = dict[str, Any]  # key path of the grid -> the value that an item was made with

PLACES = {"conditions": Condition, "arms": Arm, "teachers": Teacher, "training": Training, "student": Student}
ALLOWED = ("allowed: conditions.NAME.KEY, arms.NAME.KEY, teachers.NAME.KEY, training.KEY, student.KEY, each with a list "
           "of values")
MOST = 10_000  # items: more than anyone would wait for


@dataclass
class Item:
    """One condition, arm or teacher of the written-out study, and where in the grid it comes from."""

    raw: Raw
    name: str
    base: str
    origin: Origin = field(default_factory=dict)


def expand(raw: Raw) -> Raw:
    """A raw study without its `grid`, which is written out; every path, name and value is checked.

    A grid over a condition, an arm or a teacher makes one of it for each combination of values; arms that learn from a
    teacher follow it. One over `training` or `student` does so for every condition, since both arms of a comparison
    face it. What comes out equal to something that is there already is left out. `exclude` takes combinations away: a
    rule matches the runs that have all its values. Raises `ValueError`, one line that names the key.
    """
    axes = dict(_flat(raw.get("grid"))) if raw.get("grid") is not None else {}
    if raw.get("grid") is not None and not axes:
        raise ValueError(f"grid: found {raw['grid']!r}, an empty grid; {ALLOWED}")
    for path, values in axes.items():
        _check(raw, path, values)
    rest = {key: value for key, value in raw.items() if key != "grid"}
    rules = rest.get("exclude") or []
    if not axes and not any(isinstance(rule, dict) and any("." in str(key) for key in rule) for rule in rules):
        return rest
    teachers = _teachers(rest, axes)
    arms = _arms(rest, axes, teachers)
    conditions = _conditions(rest, axes)
    if teachers:
        rest["teachers"] = {each.name: each.raw for each in teachers}
    rest["arms"] = [each.raw for each in arms]
    rest["conditions"] = [each.raw for each in conditions]
    if rules:
        rest["exclude"] = [_resolved(rule, number, axes, arms, conditions) for number, rule in enumerate(rules)]
    return rest


def _flat(grid: Any, before: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Key paths with their lists, whether the paths are written with dots or as nested mappings."""
    if not isinstance(grid, dict):
        raise ValueError(f"grid: found {grid!r}; {ALLOWED}")
    for key, value in grid.items():
        path = f"{before}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.")
        elif not isinstance(value, list | tuple):
            raise ValueError(f"grid.{path}: found {value!r}; expected a list of values, e.g. [{value!r}]")
        elif not value:
            raise ValueError(f"grid.{path}: found an empty list; expected at least one value")
        else:
            yield path, list(value)


def _check(raw: Raw, path: str, values: Sequence[Any]) -> None:
    place, *keys = path.split(".")
    if place not in PLACES:
        raise ValueError(f"grid.{path}: unknown key{nearest(place, list(PLACES))}; {ALLOWED}")
    if place not in ("training", "student"):
        there = _names(raw, place)
        name, keys = (keys[0], keys[1:]) if keys else ("", [])
        if name not in there:
            raise ValueError(f"grid.{path}: no item of {place} is called {name!r}{nearest(name, there)}; allowed: "
                             f"{', '.join(there) or 'none, since it is empty'}")
    if not keys:
        raise ValueError(f"grid.{path}: names no key; {ALLOWED}")
    model: Any = PLACES[place]
    for key in keys:
        fields = getattr(model, "model_fields", {})
        if key not in fields or key == "name":
            known = [each for each in fields if each != "name"]
            raise ValueError(f"grid.{path}: unknown key{nearest(key, known)}; allowed: {', '.join(known) or 'none'}")
        model = _inner(fields[key].annotation)
    if len({canonical(value) for value in values}) < len(values):
        values[:] = list({canonical(value): value for value in values}.values())  # type: ignore[index]


def _inner(annotation: Any) -> Any:
    """The part of a study that a key holds, if it holds one."""
    choices = [annotation, *getattr(annotation, "__args__", ())]
    return next((each for each in choices if isinstance(each, type) and issubclass(each, Spec)), None)


def _names(raw: Raw, place: str) -> list[str]:
    items = raw.get(place)
    if place == "teachers":
        return list(items) if isinstance(items, dict) else []
    if place == "conditions" and items is None:
        return ["clean"]
    return [str(item["name"]) for item in items or [] if isinstance(item, dict) and "name" in item]


# --- items ------------------------------------------------------------------------------------------------------------


def _teachers(raw: Raw, axes: Mapping[str, list[Any]]) -> list[Item]:
    found = raw.get("teachers")
    if not isinstance(found, dict):
        return []
    items = [Item(item, name, name) for name, item in found.items()]
    return [made for item in items for made in _made(item, axes, f"teachers.{item.base}.")]


def _arms(raw: Raw, axes: Mapping[str, list[Any]], teachers: Sequence[Item]) -> list[Item]:
    made = []
    for item in _items(raw, "arms"):
        variants = [each for each in teachers if each.base == item.raw.get("teacher")]
        if len(variants) < 2:
            followed = [item]
        else:
            followed = [Item({**item.raw, "teacher": each.name}, item.name + each.name.removeprefix(each.base),
                             item.base, dict(each.origin)) for each in variants]
        made += [each for one in followed for each in _made(one, axes, f"arms.{item.base}.")]
    return _distinct(made, "arms")


def _conditions(raw: Raw, axes: Mapping[str, list[Any]]) -> list[Item]:
    made = [each for item in _items(raw, "conditions") for each in _made(item, axes, f"conditions.{item.base}.")]
    for place in ("training", "student"):
        common = {path: values for path, values in axes.items() if path.startswith(f"{place}.")}
        if common:
            made = [each for item in made for each in _made(item, common, f"{place}.", into=place)]
    return _distinct(made, "conditions")


def _items(raw: Raw, place: str) -> list[Item]:
    items = raw.get(place)
    if place == "conditions" and items is None:
        items = [{"name": "clean"}]
    return [Item(item, str(item.get("name")), str(item.get("name"))) for item in items or [] if isinstance(item, dict)]


def _made(item: Item, axes: Mapping[str, list[Any]], prefix: str, into: str = "") -> list[Item]:
    """The items that one becomes: one for each combination of the values below `prefix`."""
    own = {path: values for path, values in axes.items() if path.startswith(prefix)}
    if not own:
        return [item]
    count = 1
    for values in own.values():
        count *= len(values)
    if count > MOST:
        raise ValueError(f"grid: {prefix.rstrip('.')} would become {count} items; allowed: at most {MOST}")
    made = []
    for combination in itertools.product(*own.values()):
        raw, words = copy.deepcopy(item.raw), [item.name]
        for path, value in zip(own, combination, strict=True):
            keys = path.removeprefix(prefix).split(".")
            _put(raw, [into, *keys] if into else keys, value)
            words += ([keys[-1]] if into else []) + [_slug(value)]
        name = "_".join(words)
        if "name" in raw:
            raw["name"] = name
        made.append(Item(raw, name, item.base, {**item.origin, **dict(zip(own, combination, strict=True))}))
    return made


def _put(raw: Raw, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.get(key)
        if isinstance(inner, int | float) and key == "label_noise":  # written as a number
            inner = {"fraction": inner}
        raw[key] = dict(inner) if isinstance(inner, dict) else {}
        raw = raw[key]
    raw[keys[-1]] = copy.deepcopy(value)


def _slug(value: Any) -> str:
    """A value as a part of a name: 0.95 as 0_95, [0.5, 1.0] as 0_5_1_0, packaged:efficientnet_lite2 without its prefix."""
    text = f"{value:g}" if isinstance(value, float) else str(value).rpartition(":")[2]
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "none"


def _distinct(items: Sequence[Item], place: str) -> list[Item]:
    """Items without those of the grid that equal another: a train fraction of 1 is clean."""
    kept: dict[str, Item] = {}
    for item in sorted(items, key=lambda item: bool(item.origin)):  # what the person named stays
        content = canonical(_content(item.raw, place))
        kept.setdefault(content if item.origin else f"{item.name} {content}", item)
        if not item.origin:
            kept.setdefault(content, item)
    chosen = list({id(item): item for item in kept.values()}.values())
    return [item for item in items if any(item is each for each in chosen)]


def _content(raw: Raw, place: str) -> Raw:
    """All of an item but its name, and of a condition not what does nothing."""
    content = {key: value for key, value in raw.items() if key != "name" and value is not None}
    if place == "conditions":
        noise, corruption = content.get("label_noise"), content.get("corruption")
        if content.get("train_fraction") == 1:
            del content["train_fraction"]
        if noise == 0 or (isinstance(noise, dict) and noise.get("fraction") == 0):
            del content["label_noise"]
        if isinstance(corruption, dict) and corruption.get("fraction") == 0:
            del content["corruption"]
    return content


# --- what is left out -------------------------------------------------------------------------------------------------


def _resolved(rule: Any, number: int, axes: Mapping[str, list[Any]], arms: Sequence[Item],
              conditions: Sequence[Item]) -> Any:
    """A rule of `exclude` with the grid's key paths replaced by the names of the arms and conditions they made."""
    if not isinstance(rule, dict):
        return rule
    paths = {str(key): value for key, value in rule.items() if "." in str(key)}
    resolved = {key: value for key, value in rule.items() if "." not in str(key)}
    for path, value in paths.items():
        if path not in axes:
            raise ValueError(f"exclude.{number}: {path!r} is no key of the grid{nearest(path, list(axes))}; allowed: "
                             f"{', '.join(axes) or 'none, since there is no grid'}, arms, conditions, seeds")
        wanted = {canonical(each) for each in (value if isinstance(value, list | tuple) else [value])}
        unknown = wanted - {canonical(each) for each in axes[path]}
        if unknown:
            raise ValueError(f"exclude.{number}: {path}: found {sorted(unknown)[0]}, which is not in the grid; "
                             f"allowed: {', '.join(map(str, axes[path]))}")
        for place, items in (("arms", arms), ("conditions", conditions)):
            if not any(path in item.origin for item in items):
                continue
            names = [item.name for item in items if path in item.origin and canonical(item.origin[path]) in wanted]
            resolved[place] = [name for name in resolved.get(place, names) if name in names]
    return resolved
