"""The study as frozen models, and its canonical hash; `reading` makes them out of files and of `--set`."""

import hashlib
import json
import re
from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from tlkd.conditions import SLUG, Condition, Exclusion, Fraction, Positive, Robustness, Slug, Spec
from tlkd.errors import nearest

MASKS = r"strokes(:0?\.\d*[1-9]\d*)?|exact"
STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
TRAINABLE = r"^(head|all|last:[1-9]\d*)$"

PATTERNS = {
    SLUG: "allowed: lower-case letters, digits and _",
    STUDY_NAME: "allowed: letters, digits, and _ . - after the first",
    TRAINABLE: "allowed: head, all, last:N",
}
"""What the patterns allow, in words."""


class Normalisation(Spec):
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    sd: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Shapes(Spec):
    """The generated scenes of the source `shapes`: their side in pixels, their number, and what gives a class away."""

    size: Annotated[int, Field(ge=32, le=96)] = 64
    train_per_class: Positive = 200
    test_per_class: Positive = 50
    tie: Fraction = 0.0
    test_tie: Fraction | None = None
    noise: Annotated[float, Field(ge=0, le=1)] = 0.05


class Data(Spec):
    """Where the images come from, how they are split, and how they are laid onto a network's square input."""

    source: str = "mnist5k"
    root: str | None = None
    train_per_class: Positive | None = None
    test_per_class: Positive | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    dev_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    data_seed: Annotated[int, Field(ge=0)] = 0
    fit: Literal["crop", "stretch", "pad"] = "crop"
    augment: tuple[str, ...] = Field(default_factory=lambda data: () if data.get("source") == "mnist5k" else ("hflip",))
    normalise: Literal["model", "dataset"] | Normalisation = "model"
    masks: str | None = None
    shapes: Shapes | None = None
    on_bad_image: Literal["fail", "skip"] = "fail"

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        prefix, _, rest = value.partition(":")
        if value not in ("mnist5k", "shapes", "cifar10") and not (prefix in ("torchvision", "folder") and rest):
            raise ValueError("allowed: mnist5k, shapes, cifar10, torchvision:NAME, folder:PATH")
        return value

    @field_validator("augment")
    @classmethod
    def _augment(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if item.startswith("shift"):
                raise ValueError("the augmentation 'shift' is not built yet")
            if not re.fullmatch(r"hflip|crop:[1-9]\d*", item):
                raise ValueError(f"{item!r} is not an augmentation; allowed: hflip, crop:K")
        if len({item.partition(":")[0] for item in value}) != len(value):
            raise ValueError("each augmentation may stand there once")
        return value

    @field_validator("normalise", mode="before")
    @classmethod
    def _normalise(cls, value: Any) -> Any:
        if not isinstance(value, dict | Normalisation) and value not in ("model", "dataset"):
            raise ValueError("allowed: model, dataset, {mean: [R, G, B], sd: [R, G, B]}")
        return value

    @field_validator("masks")
    @classmethod
    def _masks(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("allowed: strokes, exact, a file, a folder, null")
        return value

    @model_validator(mode="after")
    def _of_the_source(self) -> "Data":
        own = {"mnist5k": "strokes", "shapes": "exact"}
        word = (self.masks or "").partition(":")[0]
        if word in own.values() and own.get(self.source) != word:
            raise ValueError(f"masks: {self.masks!r} are of another source than {self.source}; allowed: "
                             f"{own[self.source] + ', ' if self.source in own else ''}a COCO or VIA file, a folder of "
                             "PNG masks, null")
        if word in own.values() and not re.fullmatch(MASKS, self.masks or ""):
            raise ValueError(f"masks: found {self.masks!r}; allowed: strokes, strokes:THRESHOLD with 0 < THRESHOLD < "
                             "1, exact")
        if self.shapes is not None and self.source != "shapes":
            raise ValueError(f"shapes: these are settings of the source shapes, and the source is {self.source}")
        return self


class Training(Spec):
    """How one network is trained; a teacher may override any part of it."""

    epochs: Positive = 30
    batch_size: Positive = 64
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0005
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    plateau_patience: Annotated[int, Field(ge=0)] = 3
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    early_stopping: Positive | None = None
    report_epoch: Literal["last", "best"] = "last"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    threads: Positive = 1


class Network(Spec):
    """A network, its weights, and which part of it is trained."""

    model: str
    weights: str = "imagenet"
    input_size: Annotated[int, Field(ge=8)] = 224
    trainable: Annotated[str, Field(pattern=TRAINABLE)] = "head"
    batch_norm: Literal["eval", "train"] = "eval"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        prefix, _, rest = value.partition(":")
        if prefix not in ("packaged", "torchvision", "timm") or not rest:
            raise ValueError("allowed: packaged:NAME, torchvision:NAME, timm:NAME")
        return value


class Student(Network):
    """The small network."""

    start: Literal["pretrained", "tl"] = "pretrained"


class Teacher(Network):
    """A larger network that is fine-tuned first, or taken as it is (`fit: false`), and then gives soft labels."""

    per_seed: bool = False
    fit: bool = True
    trained_on: Literal["condition", "clean"] = "condition"
    labels: Literal["same_view", "clean_view"] = "same_view"
    training: Training = Training()


KINDS: dict[Any, dict[str, Any]] = {
    "tl": {},
    "tl_kd": {"teacher": None, "soft_weight": 0.1, "temperature": 10.0},
    "label_smoothing": {"teacher": None, "temperature": 1.0},
    "tl_kd_shuffled": {"teacher": None, "soft_weight": 0.1, "temperature": 10.0},
    "self": {"soft_weight": 0.1, "temperature": 10.0},
}
"""The kinds of arms, each with its keys and what they are by default; the last three are controls."""

CONTROLS = ("label_smoothing", "tl_kd_shuffled", "self")


class Arm(Spec):
    """How the student's loss is made: an arm is a loss, nothing else.

    `training` overrides keys of the study's training for this arm alone, as `tlkd tune` does it.
    """

    name: Slug
    kind: Literal["tl", "tl_kd", "label_smoothing", "tl_kd_shuffled", "self"]
    teacher: str | None = None
    soft_weight: Fraction | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    training: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("kind"), str):
            known = {key: default for key, default in KINDS.get(value["kind"], {}).items() if default is not None}
            return {**known, **value}
        return value

    @model_validator(mode="after")
    def _whole(self) -> "Arm":
        own = KINDS[self.kind]
        for key in ("teacher", "soft_weight", "temperature"):
            found = getattr(self, key)
            if found is not None and key not in own:
                raise ValueError(f"an arm of kind {self.kind} has no {key}; found {key}: {found}; allowed: "
                                 f"{', '.join(own) or 'none of teacher, soft_weight, temperature'}")
        missing = [key for key in own if getattr(self, key) is None]
        if missing:
            raise ValueError(f"an arm of kind {self.kind} needs {', '.join(own)}; missing: {', '.join(missing)}")
        return self

    @property
    def control(self) -> bool:
        """Whether the arm asks why the teacher helps, rather than whether."""
        return self.kind in CONTROLS


class Background(Spec):
    """What attributions are measured against: training images, or one image that is black or their mean."""

    kind: Literal["random", "first", "black", "mean"] = "random"
    size: Positive = 20


class Explanation(Spec):
    """Which finished networks are explained, on which test images, how, and against what background.

    `images` is a number of test images a class, or `masks`: all that have one; null stands for `masks` where the study
    has masks, and for two a class where not. `pictures` counts those of each class that all classes are drawn for.
    `seeds` is a number of the first ones; `conditions` names those whose students are explained (null: the plain ones).
    """

    explainer: Literal["deep_shap", "deep_lift", "integrated_gradients", "gradient_shap", "grad_cam", "occlusion"] = (
        "deep_shap")
    output: Literal["logit", "probability"] = "logit"
    background: Background = Background()
    images: Literal["masks"] | Positive | None = None
    pictures: Annotated[int, Field(ge=0)] = 2
    seeds: Literal["all"] | Positive = "all"
    teachers: bool = True
    conditions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    signs: Literal["channel", "summed"] = "channel"

    @field_validator("images", "seeds", mode="before")
    @classmethod
    def _number_or_word(cls, value: Any, info: ValidationInfo) -> Any:
        words = {"images": ("masks", None), "seeds": ("all",)}[info.field_name or ""]
        if value in words or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError("allowed: masks, null, or a number of images a class" if info.field_name == "images" else
                         "allowed: all, or a number of seeds")


class Verdict(Spec):
    """What may be claimed: the one primary endpoint, the smallest gain that matters, the level of the tests."""

    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    smallest_gain: Annotated[float, Field(gt=0, lt=1)] = 0.005
    smallest_epochs: Annotated[float, Field(gt=0)] = 1.0
    smallest_share: Annotated[float, Field(gt=0, lt=1)] = 0.01
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05


class Study(Spec):
    """One study file, complete: every default filled in, every reference checked, its grid written out."""

    name: Annotated[str, Field(pattern=STUDY_NAME)]
    data: Data
    student: Student
    teachers: dict[Slug, Teacher] = {}  # noqa: RUF012 (pydantic copies it)
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)] = (Condition(name="clean"),)
    exclude: tuple[Exclusion, ...] = ()
    training: Training = Training()
    selection: Literal["dev", "test"] = "dev"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = tuple(range(10))
    bank: bool = True
    robustness: tuple[Robustness, ...] = ()
    explanation: Explanation | None = None
    verdict: Verdict = Verdict()
    footnotes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _before(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("a study is a mapping of keys")
        return _inherit_training(value)

    @model_validator(mode="after")
    def _references(self) -> "Study":
        arms, conditions = [arm.name for arm in self.arms], [condition.name for condition in self.conditions]
        names: dict[str, list[str | int]] = {"arms": [*arms], "seeds": list(self.seeds), "conditions": [*conditions]}
        names |= {f"conditions.{each.name}.seeds": [*each.seeds] for each in self.conditions if each.seeds is not None}
        for what, found in names.items():
            twice = [name for name, count in Counter(found).items() if count > 1]
            if twice:
                raise ValueError(f"{what}: found {twice[0]!r} more than once; each may stand there once")
        for arm in self.arms:
            if arm.teacher is not None and arm.teacher not in self.teachers:
                raise ValueError(f"arms.{arm.name}.teacher: no teacher is called {arm.teacher!r}; "
                                 f"allowed: {', '.join(self.teachers) or 'none, since teachers is empty'}")
        named = [(f"conditions.{each.name}.arms", each.arms, arms) for each in self.conditions]
        named += [("exclude.arms", each.arms, arms) for each in self.exclude]
        named += [("exclude.conditions", each.conditions, conditions) for each in self.exclude]
        if self.explanation is not None:
            named.append(("explanation.conditions", self.explanation.conditions, conditions))
        for where, wanted, there in named:
            for name in wanted or ():
                if name not in there:
                    raise ValueError(f"{where}: found {name!r}{nearest(name, there)}; allowed: {', '.join(there)}")
        seeds = sorted({seed for each in self.conditions for seed in self.seeds_of(each)})
        unknown = [seed for rule in self.exclude for seed in rule.seeds or () if seed not in seeds]
        if unknown:
            raise ValueError(f"exclude.seeds: found {unknown[0]}; allowed: {', '.join(map(str, seeds))}")
        self._check_runs()
        if (self.data.dev_fraction == 0) != (self.selection == "test"):
            raise ValueError("data.dev_fraction and selection: a dev split goes with `selection: dev`, "
                             f"dev_fraction: 0 with `selection: test`; found {self.data.dev_fraction} "
                             f"and {self.selection}")
        if self.explanation is not None and self.explanation.images == "masks" and self.data.masks is None:
            raise ValueError("explanation.images: 'masks' needs data.masks; allowed without: a number of images a "
                             "class")
        self._check_overrides()
        return self

    def _check_runs(self) -> None:
        """There is a run, and a TL student for every run that starts from one."""
        from_tl = {arm.name: f"arms.{arm.name}.kind: 'self'" for arm in self.arms if arm.kind == "self"}
        if self.student.start == "tl":
            from_tl = {arm.name: "student.start: 'tl'" for arm in self.arms if arm.kind != "tl"}
        any_run = False
        for condition in self.conditions:
            for seed in self.seeds_of(condition):
                arms = self.arms_of(condition, seed)
                any_run = any_run or bool(arms)
                needs = next((arm.name for arm in arms if arm.name in from_tl), None)
                if needs is not None and all(arm.kind != "tl" for arm in arms):
                    raise ValueError(f"{from_tl[needs]} needs an arm of kind tl to start from; under conditions."
                                     f"{condition.name}, seed {seed}, found {', '.join(arm.name for arm in arms)}")
        if not any_run:
            raise ValueError("exclude: leaves no run; expected rules that leave at least one")

    def _check_overrides(self) -> None:
        """Every override makes a whole student and training, and none lets the clean dev split rescue a difficulty."""
        for condition in self.conditions:
            where = f"conditions.{condition.name}"
            self.student_of(condition)
            if "start" in (condition.student or {}):
                raise ValueError(f"{where}.student.start: is the whole study's; allowed: student.start")
            for arm in self.arms:
                training = self.training_of(arm, condition)
                runs = condition.arms is None or arm.name in condition.arms
                if runs and not condition.plain and self.selection == "dev":
                    _refuse_rescue(training, where, {f"arms.{arm.name}.training": arm.training or {},
                                                     f"{where}.training": condition.training or {}})
        for name, teacher in self.used_teachers.items():
            names = [arm.name for arm in self.arms if arm.teacher == name]
            hard = next((each for each in self.conditions if not each.plain and (
                each.arms is None or any(arm in names for arm in each.arms))), None)
            if hard is not None and teacher.trained_on == "condition" and teacher.fit and self.selection == "dev":
                _refuse_rescue(teacher.training, f"conditions.{hard.name}", {}, f"teachers.{name}.training")

    def student_of(self, condition: Condition) -> Student:
        """The student under a condition."""
        return _overridden(self.student, condition.student, f"conditions.{condition.name}.student")

    def training_of(self, arm: Arm, condition: Condition) -> Training:
        """The training of an arm's student under a condition: the study's, the condition's keys, then the arm's."""
        common = _overridden(self.training, condition.training, f"conditions.{condition.name}.training")
        return _overridden(common, arm.training, f"arms.{arm.name}.training")

    def seeds_of(self, condition: Condition) -> tuple[int, ...]:
        """The seeds that are run under a condition."""
        return condition.seeds or self.seeds

    def arms_of(self, condition: Condition, seed: int) -> tuple[Arm, ...]:
        """The arms that are run under a condition with a seed: those that nothing leaves out."""
        return tuple(arm for arm in self.arms if (condition.arms is None or arm.name in condition.arms)
                     and not any(rule.names(arm.name, condition.name, seed) for rule in self.exclude))

    @property
    def used_teachers(self) -> dict[str, Teacher]:
        """The teachers that some arm asks for, by name."""
        wanted = {arm.teacher for arm in self.arms}
        return {name: teacher for name, teacher in self.teachers.items() if name in wanted}


Part = TypeVar("Part", bound=Spec)


def _overridden(part: Part, keys: dict[str, Any] | None, where: str) -> Part:
    """A part of a study with some of its keys overridden; ValueError, in one line, where they do not fit."""
    if not keys:
        return part
    known = list(type(part).model_fields)
    for key in keys:
        if key not in known:
            raise ValueError(f"{where}.{key}: unknown key{nearest(key, known)}; allowed: {', '.join(known)}")
    try:
        return type(part).model_validate({**part.model_dump(), **keys})
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(each) for each in problem["loc"])
        said = PATTERNS.get(problem.get("ctx", {}).get("pattern", ""), problem["msg"].removeprefix("Value error, "))
        raise ValueError(f"{where}.{key}: found {problem['input']!r}; "
                         f"{said.replace('Input should be', 'allowed:')}") from None


def _refuse_rescue(training: Training, condition: str, overrides: dict[str, dict[str, Any]],
                   otherwise: str = "training") -> None:
    """Refuse what looks at dev, where it stands: in one of the overrides, or in what they override."""
    found = (("early_stopping", training.early_stopping is not None, training.early_stopping, "null"),
             ("report_epoch", training.report_epoch == "best", "best", "last"),
             ("schedule", training.schedule == "plateau", "plateau", "constant, cosine"))
    for key, wrong, value, allowed in found:
        if wrong:
            where = next((place for place, keys in overrides.items() if key in keys), otherwise)
            raise ValueError(f"{where}.{key}: found {value!r}; under {condition} a look at the clean dev split would "
                             f"rescue a starved run; allowed: {allowed} (or selection: test, to repeat the thesis)")


def _inherit_training(study: dict[str, Any]) -> dict[str, Any]:
    """Fill what a teacher's training leaves out from the study's own training."""
    common, teachers = study.get("training", {}), study.get("teachers")
    if not isinstance(common, dict) or not isinstance(teachers, dict):
        return study
    return {**study, "teachers": {name: _with_training(teacher, common) for name, teacher in teachers.items()}}


def _with_training(teacher: Any, common: dict[str, Any]) -> Any:
    own = teacher.get("training") if isinstance(teacher, dict) else None
    if not isinstance(teacher, dict) or not isinstance(own, dict | None):
        return teacher  # validation will say what is wrong with it
    return {**teacher, "training": {**common, **(own or {})}}


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no blanks; equal values have equal texts."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_hash(value: Any) -> str:
    """SHA-256 of the canonical text, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
