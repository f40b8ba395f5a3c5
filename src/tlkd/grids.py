"""A grid, lists of values by key path, written out into a raw study's conditions, arms and teachers."""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tlkd.conditions import Condition, Spec, as_tuples
from tlkd.errors import nearest
from tlkd.specs import Arm, Student, Teacher, Training

Raw = dict[str, Any]
Origin = dict[str, Any]  # key path of the grid -> the value that an item was made with

PLACES: dict[str, type[Spec]] = {
    "conditions": Condition, "arms": Arm, "teachers": Teacher, "training": Training, "student": Student}
OVERRIDES: dict[str, type[Spec]] = {"training": Training, "student": Student}  # what conditions and arms may override
ALLOWED = ("allowed: conditions.NAME.KEY, arms.NAME.KEY, teachers.NAME.KEY, training.KEY, student.KEY, each with a "
           "list of values")
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
    rule matches the runs that have all its values. A name that the study gave to what was written out stands for all
    that it became. Raises `ValueError`, one line that names the key.
    """
    rest = {key: value for key, value in raw.items() if key != "grid"}
    if _malformed(rest):  # which validation will say in its own words
        return rest
    axes: dict[str, list[Any]] = {}
    if raw.get("grid") is not None:
        for path, values in _flat(raw["grid"]):
            if path in axes:
                raise ValueError(f"grid.{path}: stands twice, with dots and in nested mappings")
            axes[path] = _check(raw, path, values)
        if not axes:
            raise ValueError(f"grid: found {raw['grid']!r}, an empty grid; {ALLOWED}")
    rules = rest.get("exclude") or []
    if not axes and not any(isinstance(rule, dict) and any("." in str(key) for key in rule) for rule in rules):
        return rest
    teachers = _teachers(rest, axes)
    arms = _arms(rest, axes, teachers)
    conditions = _conditions(rest, axes, arms)
    if teachers:
        rest["teachers"] = {each.name: each.raw for each in teachers}
    rest["arms"] = [each.raw for each in arms]
    rest["conditions"] = [each.raw for each in conditions]
    if rules:
        resolved = [_resolved(rule, number, axes, arms, conditions) for number, rule in enumerate(rules)]
        rest["exclude"] = [rule for rule, before in zip(resolved, rules, strict=True)
                           if rule == before or not _emptied(rule)]
    if isinstance(rest.get("explanation"), dict):
        rest["explanation"] = _following(rest["explanation"], "conditions", conditions)
    return rest


def _malformed(raw: Raw) -> bool:
    """Whether a place that grids write to holds no items with names."""
    def named(items: Any) -> bool:
        return isinstance(items, list | tuple) and all(
            isinstance(item, dict) and isinstance(item.get("name"), str) for item in items)

    teachers = raw.get("teachers", {})
    return not (named(raw.get("arms")) and named(raw.get("conditions") or []) and isinstance(teachers, dict)
                and all(isinstance(name, str) and isinstance(item, dict) for name, item in teachers.items())
                and isinstance(raw.get("exclude") or [], list | tuple))


def _flat(grid: Any, before: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Key paths with their lists, whether the paths are written with dots or as nested mappings."""
    if not isinstance(grid, dict):
        raise ValueError(f"grid: found {grid!r}; {ALLOWED}")
    for key, value in grid.items():
        path = f"{before}{key}"
        if isinstance(value, dict):
            if not value:
                raise ValueError(f"grid.{path}: found {{}}, an empty grid; {ALLOWED}")
            yield from _flat(value, f"{path}.")
        elif not isinstance(value, list | tuple):
            raise ValueError(f"grid.{path}: found {value!r}; expected a list of values, e.g. [{value!r}]")
        elif not value:
            raise ValueError(f"grid.{path}: found an empty list; expected at least one value")
        else:
            yield path, list(value)


def _check(raw: Raw, path: str, values: Sequence[Any]) -> list[Any]:
    """The values without repetitions; ValueError where nothing of a study has this key path."""
    place, *keys = path.split(".")
    if place not in PLACES:
        raise ValueError(f"grid.{path}: unknown key{nearest(place, list(PLACES))}; {ALLOWED}")
    if keys and place not in OVERRIDES:
        there, (name, *keys) = _names(raw, place), keys
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
        model = OVERRIDES.get(key) or _inner(fields[key].annotation)
    distinct: dict[str, Any] = {}
    for value in values:
        distinct.setdefault(_text(value), value)
    return list(distinct.values())


def _inner(annotation: Any) -> Any:
    """The part of a study that a key holds, if it holds one."""
    choices = [annotation, *getattr(annotation, "__args__", ())]
    return next((each for each in choices if isinstance(each, type) and issubclass(each, Spec)), None)


def _names(raw: Raw, place: str) -> list[str]:
    return list(raw.get("teachers", {})) if place == "teachers" else [item.name for item in _items(raw, place)]


def _text(value: Any) -> str:
    """A value as text in which 1 and 1.0 are the same, and mappings whose keys stand in another order."""
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{key!r}:{_text(item)}' for key, item in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


# --- items ------------------------------------------------------------------------------------------------------------


def _teachers(raw: Raw, axes: Mapping[str, list[Any]]) -> list[Item]:
    items = [Item(item, name, name) for name, item in raw.get("teachers", {}).items()]
    return [made for item in items for made in _made(item, axes, f"teachers.{item.base}.")]


def _arms(raw: Raw, axes: Mapping[str, list[Any]], teachers: Sequence[Item]) -> list[Item]:
    made = [each for item in _items(raw, "arms") for each in _made(item, axes, f"arms.{item.base}.")]
    return _distinct([each for item in made for each in _with_teachers(item, teachers)], "arms")


def _with_teachers(arm: Item, teachers: Sequence[Item]) -> list[Item]:
    """An arm for each teacher that its own became."""
    variants = [each for each in teachers if each.origin and each.base == arm.raw.get("teacher")]
    followed = []
    for each in variants:
        name = arm.name + each.name.removeprefix(each.base)
        followed.append(Item({**arm.raw, "name": name, "teacher": each.name}, name, arm.base,
                             {**arm.origin, **each.origin}))
    return followed or [arm]


def _conditions(raw: Raw, axes: Mapping[str, list[Any]], arms: Sequence[Item]) -> list[Item]:
    made = [each for item in _items(raw, "conditions") for each in _made(item, axes, f"conditions.{item.base}.")]
    for place in OVERRIDES:
        common = {path: values for path, values in axes.items() if path.startswith(f"{place}.")}
        if common:
            made = [each for item in made for each in _made(item, common, f"{place}.", into=place)]
    for item in made:
        item.raw = _following(item.raw, "arms", arms)
    return _distinct(made, "conditions")


def _items(raw: Raw, place: str) -> list[Item]:
    items = raw.get(place)
    if place == "conditions" and items is None:
        items = [{"name": "clean"}]
    return [Item(item, item["name"], item["name"]) for item in items or []]


def _following(part: Raw, key: str, items: Sequence[Item]) -> Raw:
    """A part of a study whose `key` lists names, with each that was written out replaced by what it became."""
    if not isinstance(part.get(key), list | tuple):
        return part
    names: list[Any] = []
    for name in part[key]:
        exact = any(item.name == name for item in items)
        names += [name] if exact else [item.name for item in items if item.base == name] or [name]
    return {**part, key: names}


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
    """A value as part of a name: 0.95 as 0_95, [0.5, 1.0] as 0_5_1, packaged:efficientnet_lite2 without its prefix."""
    if isinstance(value, dict):
        return _slug(list(value.values()))
    if isinstance(value, list | tuple):
        return "_".join(map(_slug, value)) or "none"
    if isinstance(value, float):
        text = f"{value:.15g}"
    else:
        text = value.rpartition(":")[2] if isinstance(value, str) else str(value)
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "none"


def _distinct(items: Sequence[Item], place: str) -> list[Item]:
    """Items without those of the grid that equal another: a train fraction of 1 is clean."""
    seen = {_content(item.raw, place) for item in items if not item.origin}  # what the person named stays
    kept = []
    for item in items:
        content = _content(item.raw, place)
        if not item.origin or content not in seen:
            kept.append(item)
            seen.add(content)
    return kept


def _content(raw: Raw, place: str) -> str:
    """All of an item but its name, with its defaults, and of a condition not what does nothing."""
    try:
        whole = PLACES[place].model_validate(as_tuples({**raw, "name": "x"}))
    except ValidationError:  # to be said of the whole study
        return _text({**raw, "name": "x"})
    content = whole.model_dump(exclude={"name"})
    if isinstance(whole, Condition):
        content = {**content, "train_fraction": 1, "label_noise": None, "corruption": None, **whole.difficulty}
    return _text(content)


# --- what is left out -------------------------------------------------------------------------------------------------


def _emptied(rule: Any) -> bool:
    """Whether what a rule spoke of was equal to something else, so that nothing is left for it to take away."""
    return isinstance(rule, dict) and any(rule.get(place) == [] for place in ("arms", "conditions"))


def _resolved(rule: Any, number: int, axes: Mapping[str, list[Any]], arms: Sequence[Item],
              conditions: Sequence[Item]) -> Any:
    """A rule of `exclude` with the grid's key paths replaced by the names of the arms and conditions they made."""
    if not isinstance(rule, dict):
        return rule
    paths = {str(key): value for key, value in rule.items() if "." in str(key)}
    resolved = {key: value for key, value in rule.items() if "." not in str(key)}
    resolved = _following(_following(resolved, "arms", arms), "conditions", conditions)
    for path, value in paths.items():
        if path not in axes:
            raise ValueError(f"exclude.{number}: {path!r} is no key of the grid{nearest(path, list(axes))}; allowed: "
                             f"{', '.join(axes) or 'none, since there is no grid'}, arms, conditions, seeds")
        wanted = {_text(each) for each in (value if isinstance(value, list | tuple) else [value])}
        unknown = wanted - {_text(each) for each in axes[path]}
        if unknown:
            raise ValueError(f"exclude.{number}: {path}: found {sorted(unknown)[0]}, which is not in the grid; "
                             f"allowed: {', '.join(map(str, axes[path]))}")
        place, items = ("arms", arms) if path.startswith(("arms.", "teachers.")) else ("conditions", conditions)
        names = [item.name for item in items if path in item.origin and _text(item.origin[path]) in wanted]
        among = resolved.get(place)
        if among is None or isinstance(among, list | tuple):  # what else it may be, validation will say
            resolved[place] = names if among is None else [name for name in among if name in names]
    return resolved
