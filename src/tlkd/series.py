"""Series of conditions: those that differ in one number only, from easy to hard; pure, no files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tlkd.conditions import Condition, Distortion
from tlkd.distortions import describe
from tlkd.specs import Study, canonical
from tlkd.wording import SPACE, listed

TRAIN_FRACTION, LABEL_NOISE, CORRUPTION, LONE = "train_fraction", "label_noise", "corruption", "lone"
QUANTITIES = (TRAIN_FRACTION, LABEL_NOISE, CORRUPTION)
AXES = {TRAIN_FRACTION: "training images kept (%)", LABEL_NOISE: "training labels made wrong (%)",
        CORRUPTION: "training images corrupted (%)"}
"""What the number of a series is, as an axis says it."""
NAMED = 6  # series that a few words may name


@dataclass(frozen=True)
class Place:
    """A condition of a series and its number, a fraction; `easy` where that number does nothing."""

    condition: Condition
    number: float
    easy: bool

    @property
    def name(self) -> str:
        """The condition's name."""
        return self.condition.name


@dataclass(frozen=True)
class Series:
    """Conditions that differ in one number, easiest first; a condition that belongs to none is a series of its own.

    `key` is for files, `title` for readers, `beside` what all its places share beyond the number (empty: nothing).
    """

    key: str
    quantity: str
    title: str
    beside: str
    places: tuple[Place, ...]

    @property
    def lone(self) -> bool:
        """Whether it is a single condition that stands for itself."""
        return self.quantity == LONE

    @property
    def hard(self) -> tuple[Place, ...]:
        """All places but the easy end."""
        return tuple(place for place in self.places if not place.easy)

    @property
    def label(self) -> str:
        """The title with what stands beside it."""
        return f"{self.title}, {self.beside}" if self.beside else self.title


def series_of(conditions: Sequence[Condition]) -> tuple[Series, ...]:
    """All series among a study's conditions, and after them its difficult conditions that are in none.

    The easy end of a series is the condition whose number does nothing there, a plain one where the series has no
    other difficulty. Where it has one, as 10 % of the data under more and more noise, at least two of its own
    conditions make a series, and a single one stands alone.
    """
    members: dict[str, tuple[str, list[Condition]]] = {}
    for condition in conditions:
        for quantity in QUANTITIES:
            if quantity in condition.difficulty:
                members.setdefault(_fixed(condition, quantity), (quantity, []))[1].append(condition)
    found: list[Series] = []
    for quantity, own in members.values():
        places = _places(quantity, own, conditions)
        enough = 2 if _others(own[0], quantity) else 1
        if len(places) > 1 and sum(not place.easy for place in places) >= enough:
            found.append(_series(quantity, places))
    inside = {place.name for each in found for place in each.places}
    found += [Series(each.name, LONE, each.name, "", (Place(each, 1.0, False),)) for each in conditions
              if not each.plain and each.name not in inside]
    return tuple(_with_own_keys(found))


def base_conditions(study: Study) -> tuple[str, ...]:
    """The conditions that hypotheses 1 to 3 are about: the plain ones.

    Without any, those that are in no series, and where that leaves none, the easiest of each series.
    """
    plain = [each.name for each in study.conditions if each.plain]
    every = series_of(study.conditions)
    alone = [each.places[0].name for each in every if each.lone]
    return tuple(plain or alone or dict.fromkeys(each.places[0].name for each in every))


def _others(condition: Condition, quantity: str) -> dict[str, Any]:
    """What else than a quantity makes a condition difficult."""
    return {key: value for key, value in condition.difficulty.items() if key != quantity}


def _overrides(condition: Condition) -> dict[str, Any]:
    return {"student": condition.student or {}, "training": condition.training or {}}


def _fixed(condition: Condition, quantity: str) -> str:
    """All that must be equal in a series: the quantity's other settings, the other difficulties, the overrides."""
    value = condition.difficulty[quantity]
    settings = {key: one for key, one in value.items() if key != "fraction"} if isinstance(value, dict) else {}
    return canonical([quantity, settings, _others(condition, quantity), _overrides(condition)])


def _places(quantity: str, own: Sequence[Condition], conditions: Sequence[Condition]) -> tuple[Place, ...]:
    """The places of a series, easiest first; of two conditions with one number the first."""
    places = [Place(each, 1.0 if quantity == TRAIN_FRACTION else 0.0, True) for each in conditions
              if each.difficulty == _others(own[0], quantity) and _overrides(each) == _overrides(own[0])]
    for each in own:
        value = each.difficulty[quantity]
        places.append(Place(each, value["fraction"] if isinstance(value, dict) else value, False))
    by_number = {place.number: place for place in reversed(places)}
    return tuple(by_number[number] for number in sorted(by_number, reverse=quantity == TRAIN_FRACTION))


def _series(quantity: str, places: tuple[Place, ...]) -> Series:
    first = places[-1].condition
    key, title = quantity, "train fraction"
    if quantity == LABEL_NOISE and first.label_noise is not None:
        title = "label noise" + _kind_of_noise(first)
    if quantity == CORRUPTION and first.corruption is not None and first.distortion is not None:
        key, title = first.corruption.kind, describe(first.distortion) + _redrawn(first.corruption.redraw)
    beside = [words for other in QUANTITIES if other != quantity for words in _difficulty(first, other)]
    beside += [f"{part}.{name} {value}" for part, keys in _overrides(first).items() for name, value in keys.items()]
    return Series(key, quantity, title, listed(beside), places)


def _with_own_keys(found: Sequence[Series]) -> Iterator[Series]:
    """The series with keys that no two share: a number is added where they would."""
    seen: dict[str, int] = {}
    for each in found:
        seen[each.key] = seen.get(each.key, 0) + 1
        number = f"_{seen[each.key]}" if seen[each.key] > 1 else ""
        yield Series(each.key + number, each.quantity, each.title, each.beside, each.places)


# --- in words ---------------------------------------------------------------------------------------------------------


def share(fraction: float) -> str:
    """A fraction as a percentage in at most three digits: `5 %`, `0.5 %`."""
    return f"{100 * fraction:.3g} %"


def _span(numbers: Sequence[float], between: str) -> str:
    """From the first number to the last, or the only one."""
    first, last = share(numbers[0]), share(numbers[-1])
    return first if len(numbers) == 1 else f"{first.removesuffix(' %')} {between} {last}"


def in_words(condition: Condition) -> str:
    """What a condition does, all of it: `10 % of the training images, CenterBlack, side 0.89 to 1, on 95 %`."""
    words = [each for quantity in QUANTITIES for each in _difficulty(condition, quantity)]
    words += [f"{part}.{name} {value}" for part, keys in _overrides(condition).items() for name, value in keys.items()]
    return ", ".join(words) or "as they are"


def under(series: Series) -> str:
    """The beginning of a sentence about a series: `With 1 to 50 % of the training images`."""
    hard = series.hard
    if series.lone:
        return f"Under {hard[0].name} ({in_words(hard[0].condition)})"
    numbers = sorted(place.number for place in hard)
    span = _span(numbers, "and" if len(numbers) == 2 else "to")
    beside = f" ({series.beside})" if series.beside else ""
    if series.quantity == TRAIN_FRACTION:
        return f"With {span} of the training images{beside}"
    if series.quantity == LABEL_NOISE:
        return f"With {span} of the training labels made wrong{beside}"
    return f"With {series.title} on {span} of the training images{beside}"


def at(series: Series, place: Place) -> str:
    """A place of a series in short words: `5 %`, or `clean` at the easy end."""
    number = share(place.number).replace(" ", SPACE)
    return f"{place.name} ({number})" if place.easy else number


def summarised(conditions: Sequence[Condition]) -> str:
    """All conditions of a study in a few words: `25 conditions: clean; train fraction: 1 to 50 % (6); ...`."""
    every = series_of(conditions)
    parts = [each.name for each in conditions if each.plain]
    lines = [each for each in every if not each.lone]
    for each in lines if len(lines) <= NAMED else lines[:NAMED - 1]:
        numbers = sorted(place.number for place in each.hard)
        parts.append(f"{each.label}: {_span(numbers, 'to')}" + (f" ({len(numbers)})" if len(numbers) > 1 else ""))
    if len(lines) > NAMED:  # a grid of two has one for each value of either
        parts.append(f"{len(lines) - NAMED + 1} series more")
    alone = [f"{each.places[0].name} ({in_words(each.places[0].condition)})" for each in every if each.lone]
    parts += alone if len(alone) <= 3 else [f"{len(alone)} combined"]
    return f"{len(conditions)} conditions: {'; '.join(parts)}" if len(conditions) > 1 else "".join(parts)


def _difficulty(condition: Condition, quantity: str) -> Iterator[str]:
    if quantity == TRAIN_FRACTION and condition.train_fraction != 1:
        yield f"{share(condition.train_fraction)} of the training images"
    if quantity == LABEL_NOISE and "label_noise" in condition.difficulty and condition.label_noise is not None:
        yield f"{share(condition.label_noise.fraction)} of the labels made wrong{_kind_of_noise(condition)}"
    distortion: Distortion | None = condition.distortion
    if quantity == CORRUPTION and condition.corruption is not None and distortion is not None:
        yield (f"{describe(distortion)} on {share(condition.corruption.fraction)}"
               f"{_redrawn(condition.corruption.redraw)}")


def _kind_of_noise(condition: Condition) -> str:
    noise = condition.label_noise
    if noise is None:
        return ""
    to = {"different": "", "uniform": " (drawn over all classes)"}.get(str(noise.to), " (by a class map)")
    return to + _redrawn(noise.redraw)


def _redrawn(redraw: str) -> str:
    return ", drawn anew each epoch" if redraw == "epoch" else ""
