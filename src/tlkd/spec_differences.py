"""In what the specs of several studies differ, key by key; arms, teachers and conditions are known by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tlkd.specs import Study, Teacher
from tlkd.tables import settings
from tlkd.wording import NONE

Flat = dict[str, str]  # a key's path -> its value in words


@dataclass(frozen=True)
class Setting:
    """One key of several studies; `values [study]` in words, a dash where a study has no such key."""

    key: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether two studies have it otherwise."""
        return len(set(self.values)) > 1


def compare(studies: Sequence[Study]) -> tuple[Setting, ...]:
    """All keys of the studies but their names, in a study's own order.

    What only some of the studies have by a name stands in one line. A teacher whose name is not in all of them is told
    by the arm that learns from it, so that two teachers of one arm are compared key by key.
    """
    raw = [_settings(study) for study in studies]
    absent = tuple(key for key in dict.fromkeys(key for flat in raw for key in flat)
                   if any(flat.get(key) == "none" for flat in raw))
    flats = [_flat(study, flat, studies, absent) for study, flat in zip(studies, raw, strict=True)]
    order = dict.fromkeys(key for flat in flats for key in flat)
    settings = [Setting(key, tuple(flat.get(key, NONE) for flat in flats)) for key in order]
    parts = dict.fromkeys(each.key.partition(".")[0] for each in settings)
    return tuple(each for part in parts for each in settings if each.key.partition(".")[0] == part)


def _settings(study: Study) -> Flat:
    frame = settings(study)
    return dict(zip(frame["key"], frame["value"], strict=True))


def _flat(study: Study, flat: Flat, studies: Sequence[Study], absent: Sequence[str]) -> Flat:
    """A study's keys as they are compared; `absent` are the parts that some study does not have."""
    arms = _shared([{arm.name for arm in each.arms} for each in studies])
    teachers = _shared([set(each.teachers) for each in studies])
    told = {arm.teacher for arm in study.arms if arm.name in arms} - teachers
    found: Flat = {}
    for key, value in flat.items():
        part, _, rest = key.partition(".")
        name, _, last = rest.partition(".")
        whole = next((each for each in absent if key.startswith(f"{each}.")), "")
        if whole and part not in ("arms", "teachers"):
            found[whole] = _in_one_line(_below(flat, f"{whole}."))
        elif part == "arms" and name not in arms:
            found[f"arms.{name}"] = _in_one_line(_below(flat, f"arms.{name}."))
        elif part == "teachers" and name and name not in teachers:
            found |= {} if name in told else {f"teachers.{name}": _teacher(study.teachers[name])}
        elif key not in ("name", "teachers"):
            found[key] = value
            if part == "arms" and last == "teacher" and value in told:
                found |= {f"{key}.{own}": each for own, each in _below(flat, f"teachers.{value}.").items()}
    return found


def _shared(names: Sequence[set[str]]) -> set[str]:
    return set.intersection(*names)


def _below(flat: Mapping[str, str], prefix: str) -> Flat:
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}


def _in_one_line(keys: Mapping[str, str]) -> str:
    return ", ".join(value if key == "kind" else f"{key} {value}" for key, value in keys.items())


def _teacher(teacher: Teacher) -> str:
    fitted = f"{teacher.trainable} trained, {teacher.training.epochs} epochs" if teacher.fit else "taken as it is"
    return f"{teacher.model}, {teacher.input_size} px, {fitted}"
