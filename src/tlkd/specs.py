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
    """Of red, green, blue."""
    sd: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    """Of red, green, blue."""


class Shapes(Spec):
    """The painted scenes of the source `shapes`: how large, how many, and what gives a class away."""

    size: Annotated[int, Field(ge=32, le=96)] = 64
    """Side of a scene, in pixels."""
    train_per_class: Annotated[int, Field(ge=1, le=100_000)] = 200
    """How many training scenes of each class are painted."""
    test_per_class: Annotated[int, Field(ge=1, le=100_000)] = 50
    """How many test scenes of each class are painted."""
    tie: Fraction = 0.0
    """How often a training scene's background is its class's own: this share, and a tenth of the rest."""
    test_tie: Fraction | None = None
    """The same of test scenes; null: as `tie`."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Standard deviation of the noise on every pixel in [0, 1]."""


class Data(Spec):
    """Where images come from, how they are split, and how they are laid onto a network's square input."""

    source: str = "mnist5k"
    """`mnist5k`, `shapes`, `cifar10`, `torchvision:NAME`, or `folder:PATH` for a folder or an archive of images."""
    root: str | None = None
    """Where downloads or local copies of `cifar10` and `torchvision:` lie; null: in the cache."""
    train_per_class: Positive | None = None
    """Cap on the training images of each class, drawn by `data_seed`, nested; dev keeps its proportion."""
    test_per_class: Positive | None = None
    """Cap on the test images of each class, drawn by `data_seed`, nested."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """What is cut out as test split where a source has none."""
    dev_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """What is cut out of train first, stratified, as dev split; 0 goes with `selection: test`."""
    data_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of splits, caps, the geometry of crops and the noise of corruptions."""
    fit: Literal["crop", "stretch", "pad"] = "crop"
    """How an image that is not square is laid onto the square."""
    augment: tuple[str, ...] = Field(default_factory=lambda data: () if data.get("source") == "mnist5k" else ("hflip",))
    """`hflip`, and `crop:K` for K banked random resized crops; the same for teacher and student. Digits: none."""
    normalise: Literal["model", "dataset"] | Normalisation = "model"
    """By the weights' own mean and sd (`model`), the training split's (`dataset`), or those given."""
    masks: str | None = None
    """Foregrounds of test images: `strokes` (`mnist5k`), `exact` (`shapes`), a COCO, VIA or labelme file, or a folder
    of PNG masks."""
    shapes: Shapes | None = None
    """Settings of the source `shapes`."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """`fail` names the first image that cannot be read; `skip` leaves such images out and lists them."""

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
    """Passes over the training samples."""
    batch_size: Positive = 64
    """Samples a step."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or AdamW."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """At the start of the schedule."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of `sgd`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0005
    """On all trained parameters."""
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """How the learning rate falls: not at all, along half a cosine, or where dev's accuracy stands still."""
    plateau_patience: Annotated[int, Field(ge=0)] = 3
    """Of `plateau`: epochs without a gain before the learning rate falls."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of `plateau`: what the learning rate is multiplied by."""
    early_stopping: Positive | None = None
    """Epochs without a gain on the selection split after which a training ends; null: it goes on."""
    report_epoch: Literal["last", "best"] = "last"
    """The epoch whose network is judged: the last, or the best on the selection split."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Of a training, by autocast; banks stay float32."""
    threads: Positive = 1
    """CPU threads of a training; part of a run's address, since it changes the last bits."""


class Network(Spec):
    """A network, its weights, and which part of it is trained."""

    model: str
    """`packaged:NAME`, `torchvision:NAME` or `timm:NAME`."""
    weights: str = "imagenet"
    """`imagenet`, a name of torchvision's weights, a file (safetensors or a state dict), or `none`."""
    input_size: Annotated[int, Field(ge=8, le=4096)] = 224
    """Side of the square input, in pixels."""
    trainable: Annotated[str, Field(pattern=TRAINABLE)] = "head"
    """`head`, `all`, or `last:N`: the last N units that own parameters, and the head."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether frozen batch norms keep their statistics (`eval`) or update them (`train`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Before the head."""

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
    """Where TL+KD starts: at the pretrained weights, or at the same seed's finished TL student."""


class Teacher(Network):
    """A larger network that is fine-tuned first, or taken as it is (`fit: false`), and then gives soft labels."""

    per_seed: bool = False
    """Whether each seed has a teacher of its own, also without a difficulty."""
    fit: bool = True
    """`false`: a checkpoint that was fine-tuned elsewhere, with its own head, is taken as it is."""
    trained_on: Literal["condition", "clean"] = "condition"
    """The same few, wrong or corrupted samples as its student, or the whole clean training split."""
    labels: Literal["same_view", "clean_view"] = "same_view"
    """Which image it is asked about: the corrupted one that the student sees, or the clean one."""
    training: Training = Training()
    """What it leaves out is the study's."""


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
    """How the student's loss is made: an arm is a loss, nothing else."""

    name: Slug
    """How files and the report call it."""
    kind: Literal["tl", "tl_kd", "label_smoothing", "tl_kd_shuffled", "self"]
    """`tl`: hard labels; `tl_kd`: hard and soft labels; the others are controls."""
    teacher: str | None = None
    """Name of the teacher that gives the soft labels."""
    soft_weight: Fraction | None = None
    """Weight of the soft labels, the thesis's alpha; the hard labels have the rest."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """What logits are divided by before the softmax, on both sides."""
    training: dict[str, Any] | None = None
    """Keys of `training` that this arm alone overrides, as `tlkd tune` writes them."""

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
    """Training images, drawn by `data_seed` or the first that the first seed's training saw; or one black or mean
    image."""
    size: Positive = 20
    """How many training images."""


class Explanation(Spec):
    """Which finished networks are explained, on which test images, how, and against what background."""

    explainer: Literal["deep_shap", "deep_lift", "integrated_gradients", "gradient_shap", "grad_cam", "occlusion"] = (
        "deep_shap")
    """The method; `deep_shap`, `deep_lift` and `integrated_gradients` are additive."""
    output: Literal["logit", "probability"] = "logit"
    """Whether logits or probabilities are explained."""
    background: Background = Background()
    """What images are compared with."""
    images: Literal["masks"] | Positive | None = None
    """How many test images of each class, or `masks`: all that have one; null: `masks` where there are any, else 2."""
    pictures: Annotated[int, Field(ge=0)] = 2
    """How many images of each class are drawn for all classes."""
    seeds: Literal["all"] | Positive = "all"
    """How many of the first seeds' networks, or `all`."""
    teachers: bool = True
    """Whether teachers are explained, too."""
    conditions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of those whose students are explained; null: the plain ones."""
    signs: Literal["channel", "summed"] = "channel"
    """What is positive: each channel's value, or the sum over channels."""

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
    """The primary endpoint."""
    smallest_gain: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """The smallest gain that matters, as a fraction: 0.005 is half a point."""
    smallest_epochs: Annotated[float, Field(gt=0)] = 1.0
    """The same of hypothesis 3, in epochs."""
    smallest_share: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The same of hypothesis 2, as a fraction of the positive attribution."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Of the tests; intervals cover the rest."""


class Study(Spec):
    """One study file, complete: every default filled in, every reference checked, its grid written out."""

    name: Annotated[str, Field(pattern=STUDY_NAME)]
    """Also the default folder, `out/<name>`."""
    data: Data
    """The images."""
    student: Student
    """The small network."""
    teachers: dict[Slug, Teacher] = {}  # noqa: RUF012 (pydantic copies it)
    """The larger networks, by name."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    """What is compared; one is of kind `tl`, as a rule."""
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)] = (Condition(name="clean"),)
    """Difficulties of the training samples; `clean` alone by default."""
    exclude: tuple[Exclusion, ...] = ()
    """Runs that are left out."""
    training: Training = Training()
    """How students are trained, and teachers where they say nothing else."""
    selection: Literal["dev", "test"] = "dev"
    """The split that best epochs, early stopping and plateaus look at; `test` only to repeat the thesis."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = tuple(range(10))
    """Of head initialisation, order, flips, dropout, and of which samples are dropped, mislabelled or corrupted."""
    bank: bool = True
    """`off`: every network is run live, and nothing is kept."""
    robustness: tuple[Robustness, ...] = ()
    """Distorted test images that every finished student is shown."""
    explanation: Explanation | None = None
    """Which finished networks are explained; null: none. `{}` takes all defaults."""
    verdict: Verdict = Verdict()
    """What may be claimed."""
    footnotes: tuple[str, ...] = ()
    """Sentences for the report."""

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

    @property
    def max_input_size(self) -> int:
        """The largest input size any network of the study needs: what its images are decoded to."""
        return max([*(self.student_of(condition).input_size for condition in self.conditions),
                    *(teacher.input_size for teacher in self.used_teachers.values())])


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
