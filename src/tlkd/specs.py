"""The study as frozen models, and its canonical hash; `reading` makes them out of files and of `--set`."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
MASKS = r"strokes(:0?\.\d*[1-9]\d*)?|exact"
SLUG = r"^[a-z0-9][a-z0-9_]*$"
STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
TRAINABLE = r"^(head|all|last:[1-9]\d*)$"
Slug = Annotated[str, Field(pattern=SLUG)]

PATTERNS = {
    SLUG: "allowed: lower-case letters, digits and _",
    STUDY_NAME: "allowed: letters, digits, and _ . - after the first",
    TRAINABLE: "allowed: head, all, last:N",
}
"""What the patterns allow, in words."""

NOT_BUILT = {
    "grid": "grids are not built yet",
    "exclude": "grids are not built yet",
    "robustness": "evaluation on corrupted test images is not built yet",
}


class Spec(BaseModel):
    """Common ground of all parts of a study: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
    trained_on: Literal["clean"] = "clean"
    labels: Literal["same_view"] = "same_view"
    training: Training = Training()

    @field_validator("trained_on", "labels", mode="before")
    @classmethod
    def _with_conditions(cls, value: Any) -> Any:
        if value in ("condition", "clean_view"):
            raise ValueError(f"{value!r} comes with conditions, which are not built yet")
        return value


class Arm(Spec):
    """How the student's loss is made: an arm is a loss, nothing else."""

    name: Slug
    kind: Literal["tl", "tl_kd"]
    teacher: str | None = None
    soft_weight: Fraction | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("kind") == "tl_kd":
            return {"soft_weight": 0.1, "temperature": 10.0, **value}
        return value

    @field_validator("kind", mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        if value in ("label_smoothing", "tl_kd_shuffled", "self"):
            raise ValueError(f"arms of kind {value!r} are not built yet; allowed: tl, tl_kd")
        return value

    @model_validator(mode="after")
    def _whole(self) -> "Arm":
        if self.kind == "tl" and (self.teacher, self.soft_weight, self.temperature) != (None, None, None):
            key, found = next((key, value) for key, value in self if key not in ("name", "kind") and value is not None)
            raise ValueError(f"an arm of kind tl has no teacher, soft_weight or temperature; found {key}: {found}")
        if self.kind == "tl_kd" and None in (self.teacher, self.soft_weight, self.temperature):
            missing = ", ".join(key for key, value in self if value is None)
            raise ValueError("an arm of kind tl_kd names a teacher, a soft_weight and a temperature; "
                             f"missing: {missing}")
        return self


class Condition(Spec):
    """A difficulty laid on the training samples; `clean` lays none."""

    name: Slug

    @model_validator(mode="before")
    @classmethod
    def _clean_only(cls, value: Any) -> Any:
        if isinstance(value, dict) and (set(value) - {"name"} or value.get("name") != "clean"):
            raise ValueError("conditions other than {name: clean} are not built yet")
        return value


class Background(Spec):
    """What attributions are measured against: training images, or one image that is black or their mean."""

    kind: Literal["random", "first", "black", "mean"] = "random"
    size: Positive = 20


class Explanation(Spec):
    """Which finished networks are explained, on which test images, how, and against what background.

    `images` is a number of test images a class, or `masks`: all that have one; null stands for `masks` where the study
    has masks, and for two a class where not. `pictures` counts those of each class that all classes are drawn for.
    `seeds` is a number of the first ones.
    """

    explainer: Literal["deep_shap", "deep_lift", "integrated_gradients", "gradient_shap", "grad_cam", "occlusion"] = (
        "deep_shap")
    output: Literal["logit", "probability"] = "logit"
    background: Background = Background()
    images: Literal["masks"] | Positive | None = None
    pictures: Annotated[int, Field(ge=0)] = 2
    seeds: Literal["all"] | Positive = "all"
    teachers: bool = True
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
    """One study file, complete: every default filled in, every reference checked."""

    name: Annotated[str, Field(pattern=STUDY_NAME)]
    data: Data
    student: Student
    teachers: dict[Slug, Teacher] = {}
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)] = (Condition(name="clean"),)
    training: Training = Training()
    selection: Literal["dev", "test"] = "dev"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = tuple(range(10))
    bank: bool = True
    explanation: Explanation | None = None
    verdict: Verdict = Verdict()
    footnotes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _before(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("a study is a mapping of keys")
        for key, sentence in NOT_BUILT.items():
            if key in value:
                raise ValueError(f"the key {key!r}: {sentence}")
        return _inherit_training(value)

    @model_validator(mode="after")
    def _references(self) -> "Study":
        names: dict[str, list[str | int]] = {"arms": [arm.name for arm in self.arms], "seeds": list(self.seeds),
                                             "conditions": [condition.name for condition in self.conditions]}
        for what, found in names.items():
            twice = [name for name in found if found.count(name) > 1]
            if twice:
                raise ValueError(f"{what}: found {twice[0]!r} more than once; each may stand there once")
        for arm in self.arms:
            if arm.teacher is not None and arm.teacher not in self.teachers:
                raise ValueError(f"arms.{arm.name}.teacher: no teacher is called {arm.teacher!r}; "
                                 f"allowed: {', '.join(self.teachers) or 'none, since teachers is empty'}")
        if self.student.start == "tl" and not any(arm.kind == "tl" for arm in self.arms):
            raise ValueError("student.start: 'tl' needs an arm of kind tl to start from")
        if (self.data.dev_fraction == 0) != (self.selection == "test"):
            raise ValueError("data.dev_fraction and selection: a dev split goes with `selection: dev`, "
                             f"dev_fraction: 0 with `selection: test`; found {self.data.dev_fraction} "
                             f"and {self.selection}")
        if self.explanation is not None and self.explanation.images == "masks" and self.data.masks is None:
            raise ValueError("explanation.images: 'masks' needs data.masks; allowed without: a number of images a "
                             "class")
        return self

    @property
    def used_teachers(self) -> dict[str, Teacher]:
        """The teachers that some arm asks for, by name."""
        wanted = {arm.teacher for arm in self.arms}
        return {name: teacher for name, teacher in self.teachers.items() if name in wanted}


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
