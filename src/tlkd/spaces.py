"""What a search tries: for each arm its keys and where each may lie, by default or as `--search KEY=SPACE` says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from tlkd.conditions import Condition
from tlkd.errors import BadInput, nearest
from tlkd.folder import plan
from tlkd.reading import parse_yaml, validate
from tlkd.specs import KINDS, Arm, Study, Training

LEARNING_RATE, WEIGHT_DECAY = "training.learning_rate", "training.weight_decay"
RATES = {("sgd",): "log:0.001..1", ("adamw",): "log:1e-05..0.01"}  # by the optimisers that an arm may come to use
ANY_RATE = "log:1e-05..1"
SOFT = {"soft_weight": "0.05..1", "temperature": "log:1..20"}
DEFAULTS: dict[str, dict[str, str]] = {
    "tl": {}, "tl_kd": SOFT, "tl_kd_shuffled": SOFT, "self": SOFT, "label_smoothing": {"temperature": "log:0.5..5"}}
"""What is searched for each kind of arm beside learning rate and weight decay."""

SEEDS = 2  # that a trial is the mean over, if nothing is said
FIXED = "fixed"
DIGITS = 4  # that a drawn number keeps: a tuned study is read by people


@dataclass(frozen=True)
class Space:
    """Where one key may lie: from `low` to `high`, evenly or in the logarithm, or among `choices`."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be allowed for all others to be."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        """As `--search` takes it."""
        shown = [shown_value(value) for value in self.ends]
        return ",".join(shown) if self.choices else f"{'log:' if self.log else ''}{'..'.join(shown)}"

    def nearest(self, value: Any) -> Any:
        """The value of the space that is nearest to one that may lie outside."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not self.choices:
            inside = min(max(value, self.low), self.high) if number else self.low
            return inside if self.whole else float(inside)
        if value in self.choices:
            return value
        numbers = [each for each in self.choices if isinstance(each, int | float) and not isinstance(each, bool)]
        return min(numbers, key=lambda each: abs(each - value)) if number and numbers else self.choices[0]

    def rounded(self, value: Any) -> Any:
        """A drawn value as it is tried and written down."""
        return value if self.choices or self.whole else self.nearest(float(f"{value:.{DIGITS}g}"))

    def at_edge(self, value: Any) -> bool:
        """Whether a value lies within a fiftieth of its range of one of the ends."""
        if self.choices or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        from math import log

        low, here, high = (log(each) if self.log else each for each in (self.low, value, self.high))
        return min(here - low, high - here) < (high - low) / 50


@dataclass(frozen=True)
class Search:
    """A study's arms with their spaces, under one condition, and the seeds that each trial is the mean of."""

    study: Study
    condition: Condition
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    spaces: Mapping[str, tuple[Space, ...]]  # by the arm's name
    start: Arm | None = None  # the TL arm whose students, of the study's own setting, others start or learn from

    @property
    def metric(self) -> str:
        """What a trial is judged by, on the dev split."""
        return self.study.verdict.metric

    def own(self, arm: Arm) -> dict[str, Any]:
        """The study's own setting of the keys that are searched."""
        return {space.key: own_value(self.study, arm, self.condition, space.key) for space in self.spaces[arm.name]}


def search_of(study: Study, condition: str | None = None, arms: Sequence[str] = (), seeds: int | None = None,
              asked: Sequence[str] = ()) -> Search:
    """What is searched; `asked` are the texts `KEY=SPACE`. Raises `BadInput` for what the study does not have."""
    if study.selection != "dev":  # which goes with a dev split, as the spec sees to
        raise BadInput(f"selection: found {study.selection!r}, and tuning must not look at the test split; "
                       "allowed: dev, with data.dev_fraction above 0")
    names = [each.name for each in study.conditions]
    if condition is not None and condition not in names:
        raise BadInput(f"--condition: found {condition!r}{nearest(condition, names)}; allowed: {', '.join(names)}")
    where = study.conditions[names.index(condition) if condition is not None else 0]
    there = study.seeds_of(where)
    seeds = min(SEEDS, len(there)) if seeds is None else seeds
    if not 1 <= seeds <= len(there):
        raise BadInput(f"--seeds: found {seeds}; the study has {len(there)} under {where.name}; "
                       f"allowed: 1 to {len(there)}")
    runs = {(run.arm.name, run.seed) for run in plan(study) if run.condition.name == where.name}
    can = [arm for arm in study.arms if all((arm.name, seed) in runs for seed in there[:seeds])]
    for name in arms:
        if name not in [arm.name for arm in can]:
            allowed = [arm.name for arm in can]
            raise BadInput(f"--arms: found {name!r}{nearest(name, allowed)}; run under {where.name}: "
                           f"{', '.join(allowed) or 'none'}")
    chosen = tuple(arm for arm in can if not arms or arm.name in arms)
    if not chosen:
        raise BadInput(f"--condition: no arm is run under {where.name} with the first {seeds} seeds")
    found = Search(study, where, chosen, there[:seeds], _spaces(study, chosen, where, asked),
                   _start(study, chosen, can))
    for arm in chosen:
        _check(found, arm)
    return found


def starts_from_tl(study: Study, arm: Arm) -> bool:
    """Whether an arm's students learn or start from their seed's TL student."""
    return arm.kind == "self" or (study.student.start == "tl" and arm.kind != "tl")


def _start(study: Study, chosen: Sequence[Arm], can: Sequence[Arm]) -> Arm | None:
    tl = next((arm for arm in can if arm.kind == "tl"), None)
    needs = [arm.name for arm in chosen if starts_from_tl(study, arm)]
    if needs and tl is None:
        raise BadInput(f"--arms: {needs[0]} starts from TL students, and no arm of kind tl is run with the same seeds")
    return tl if needs else None


def with_setting(arm: Arm, setting: Mapping[str, Any]) -> Arm:
    """The arm with these values for its keys."""
    training = {key.removeprefix("training."): value for key, value in setting.items() if key.startswith("training.")}
    own = {key: value for key, value in setting.items() if not key.startswith("training.")}
    merged = {**(arm.training or {}), **training}
    return Arm.model_validate({**arm.model_dump(), **own, "training": merged or None})


def own_value(study: Study, arm: Arm, condition: Condition, key: str) -> Any:
    """What the study itself says of a key."""
    if key.startswith("training."):
        return getattr(study.training_of(arm, condition), key.removeprefix("training."))
    return getattr(arm, key)


def shown_value(value: Any) -> str:
    """A value as YAML writes it, short where that says the same."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


# --- out of defaults and what was asked for ---------------------------------------------------------------------------


def _spaces(study: Study, arms: Sequence[Arm], condition: Condition,
            asked: Sequence[str]) -> dict[str, tuple[Space, ...]]:
    wanted: dict[str, Space | None] = {}
    for text in asked:
        key, space = _asked(text, arms)
        if key in wanted:
            raise BadInput(f"--search {text}: {key} was given a space already; allowed: one a key")
        wanted[key] = space
    known = list(Training.model_fields)  # in one order, since that of the keys decides what a sampler draws for each
    wanted = dict(sorted(wanted.items(), key=lambda pair: known.index(pair[0].removeprefix("training."))
                         if pair[0].startswith("training.") else len(known)))
    found = {}
    for arm in arms:
        own = {**_defaults(study, arm, condition, wanted), **{key: space for key, space in wanted.items() if _has(
            arm, key)}}
        found[arm.name] = tuple(space for space in own.values() if space is not None)
        if not found[arm.name]:
            raise BadInput(f"--search: leaves nothing to search for the arm {arm.name}; allowed: at least one key that "
                           "is not fixed, or --arms without it")
    return found


def _defaults(study: Study, arm: Arm, condition: Condition,
              wanted: Mapping[str, Space | None]) -> dict[str, Space | None]:
    optimiser = wanted.get("training.optimiser")
    used = optimiser.choices if optimiser is not None else (study.training_of(arm, condition).optimiser,)
    texts = {LEARNING_RATE: RATES.get(used, ANY_RATE), WEIGHT_DECAY: "log:1e-06..0.01", **DEFAULTS[arm.kind]}
    return {key: _parsed(key, text, f"{key}={text}") for key, text in texts.items()}


def _has(arm: Arm, key: str) -> bool:
    return key.startswith("training.") or key in KINDS[arm.kind]


def _asked(text: str, arms: Sequence[Arm]) -> tuple[str, Space | None]:
    """The key and space of one `KEY=SPACE`; None where the key is fixed."""
    key, equals, space = (part.strip() for part in text.partition("="))
    known = [f"training.{name}" for name in Training.model_fields]
    known += [name for name in SOFT if any(_has(arm, name) for arm in arms)]
    if not equals or not space:
        raise BadInput(f"--search {text}: expected KEY=SPACE, e.g. {LEARNING_RATE}=log:0.001..0.3, soft_weight=0.1..0.9"
                       ", training.batch_size=16,32,64, or KEY=fixed")
    if key not in known:
        raise BadInput(f"--search {text}: no arm that is tuned has a key {key!r}{nearest(key, known)}; allowed: "
                       f"{', '.join(known)}")
    return key, None if space == FIXED else _parsed(key, space, text)


def _parsed(key: str, text: str, whole: str) -> Space:
    where = f"--search {whole}"
    logarithm, body = text.startswith("log:"), text.removeprefix("log:")
    if ".." not in body:
        choices = tuple(parse_yaml(each, where) for each in body.split(","))
        plain = all(isinstance(each, str | int | float | None) for each in choices)
        if logarithm or not plain or len({repr(each) for each in choices}) != len(choices) or len(choices) < 2:
            raise BadInput(f"{where}: found {text!r}; expected LOW..HIGH, log:LOW..HIGH, at least two different "
                           f"choices with commas between, or {FIXED}")
        return Space(key, choices=choices)
    low, high = (parse_yaml(each, where) for each in body.split("..", 1))
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (low, high)):
        raise BadInput(f"{where}: found {text!r}; expected two numbers, LOW..HIGH")
    if not low < high:
        raise BadInput(f"{where}: found {text!r}; expected the smaller number first")
    if logarithm and low <= 0:
        raise BadInput(f"{where}: found {shown_value(low)} in a range in the logarithm; allowed: numbers above 0")
    return Space(key, float(low), float(high), logarithm) if _takes_fractions(key) else Space(key, low, high, logarithm)


def _takes_fractions(key: str) -> bool:
    name = key.removeprefix("training.")
    annotation = (Training if key.startswith("training.") else Arm).model_fields[name].annotation
    return float in _types(annotation)


def _types(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*(_types(each) for each in inner))


def _check(search: Search, arm: Arm) -> None:
    """Every end of every space makes a valid study."""
    raw = search.study.model_dump(mode="json")
    place = [each["name"] for each in raw["arms"]].index(arm.name)
    for space in search.spaces[arm.name]:
        for value in space.ends:
            item = raw["arms"][place]
            name = space.key.removeprefix("training.")
            changed = ({**item, "training": {**(item["training"] or {}), name: value}} if name != space.key
                       else {**item, name: value})
            arms = [changed if number == place else each for number, each in enumerate(raw["arms"])]
            validate({**raw, "arms": arms}, f"--search {space.key}={space}")
