"""The study as frozen models: YAML in, `--set a.b=c`, validation with plain words, and a canonical hash."""

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tlkd.errors import BadInput, nearest

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]

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
    on_bad_image: Literal["fail", "skip"] = "fail"

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        if value == "shapes":
            raise ValueError("the source 'shapes' is not built yet")
        prefix, _, rest = value.partition(":")
        if value not in ("mnist5k", "cifar10") and not (prefix in ("torchvision", "folder") and rest):
            raise ValueError("allowed: mnist5k, cifar10, torchvision:NAME, folder:PATH")
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

    @field_validator("masks")
    @classmethod
    def _masks(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("foreground masks are not built yet; allowed: null")
        return value


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
    trainable: Annotated[str, Field(pattern=r"^(head|all|last:[1-9]\d*)$")] = "head"
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
    trained_on: Literal["clean", "condition"] = "clean"
    labels: Literal["same_view", "clean_view"] = "same_view"
    training: Training = Training()

    @field_validator("trained_on", "labels")
    @classmethod
    def _with_conditions(cls, value: str) -> str:
        if value in ("condition", "clean_view"):
            raise ValueError(f"{value!r} comes with conditions, which are not built yet")
        return value


class Arm(Spec):
    """How the student's loss is made: an arm is a loss, nothing else."""

    name: Slug
    kind: Literal["tl", "tl_kd", "label_smoothing", "tl_kd_shuffled", "self"]
    teacher: str | None = None
    soft_weight: Fraction | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("kind") == "tl_kd":
            return {"soft_weight": 0.1, "temperature": 10.0, **value}
        return value

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        if value not in ("tl", "tl_kd"):
            raise ValueError(f"arms of kind {value!r} are not built yet; allowed: tl, tl_kd")
        return value

    @model_validator(mode="after")
    def _whole(self) -> "Arm":
        if self.kind == "tl" and (self.teacher, self.soft_weight, self.temperature) != (None, None, None):
            raise ValueError("an arm of kind tl has no teacher, soft_weight or temperature")
        if self.kind == "tl_kd" and None in (self.teacher, self.soft_weight, self.temperature):
            raise ValueError("an arm of kind tl_kd names a teacher, a soft_weight and a temperature")
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


class Verdict(Spec):
    """What may be claimed: the one primary endpoint, the smallest gain that matters, the level of the tests."""

    metric: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    smallest_gain: Annotated[float, Field(gt=0, lt=1)] = 0.005
    smallest_epochs: Annotated[float, Field(gt=0)] = 1.0
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05


class Study(Spec):
    """One study file, complete: every default filled in, every reference checked."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    data: Data
    student: Student
    teachers: dict[Slug, Teacher] = {}
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)] = (Condition(name="clean"),)
    training: Training = Training()
    selection: Literal["dev", "test"] = "dev"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = tuple(range(10))
    bank: bool = True
    explanation: None = None
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
        if value.get("explanation") is not None:
            raise ValueError("the key 'explanation': attributions are not built yet; allowed: null")
        return _inherit_training(value)

    @model_validator(mode="after")
    def _references(self) -> "Study":
        for what, names in (("arms", [arm.name for arm in self.arms]), ("seeds", list(self.seeds)),
                            ("conditions", [condition.name for condition in self.conditions])):
            if len(set(names)) != len(names):
                raise ValueError(f"{what}: {names} holds one twice")
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
        return self

    @property
    def used_teachers(self) -> dict[str, Teacher]:
        """The teachers that some arm asks for, by name."""
        wanted = {arm.teacher for arm in self.arms}
        return {name: teacher for name, teacher in self.teachers.items() if name in wanted}


def _inherit_training(study: dict[str, Any]) -> dict[str, Any]:
    """Fill what a teacher's training leaves out from the study's own training."""
    common, teachers = study.get("training") or {}, study.get("teachers")
    if not isinstance(common, dict) or not isinstance(teachers, dict):
        return study
    filled = {
        name: {**teacher, "training": {**common, **(teacher.get("training") or {})}}
        if isinstance(teacher, dict) and isinstance(teacher.get("training") or {}, dict) else teacher
        for name, teacher in teachers.items()
    }
    return {**study, "teachers": filled}


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no blanks; equal values have equal texts."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_hash(value: Any) -> str:
    """SHA-256 of the canonical text, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str | int | float | bool | None) or key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                                list("-+0123456789"))


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML text; `origin` is what an error calls it."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise BadInput(f"{origin}{where}: not valid YAML: {problem}") from None


def dump_yaml(value: Any) -> str:
    """Write YAML that `parse_yaml` reads back as it was, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def apply_set(study: dict[str, Any], assignment: str) -> None:
    """Carry out one `key.path=value` on a raw study; a list is entered by index or by its items' names."""
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise BadInput(f"--set {assignment}: expected KEY.PATH=VALUE, e.g. training.epochs=5")
    value = parse_yaml(text, f"--set {path}")
    here: Any = study
    parts = path.strip().split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = ".".join(parts[:depth])
        if isinstance(here, list):
            key: Any = _index(here, part, assignment, where)
        elif isinstance(here, dict):
            key = part
            if not last and here.get(key) is None:
                here[key] = {}
        else:
            raise BadInput(f"--set {assignment}: {where} is {here!r}, which has no key {part!r}")
        if last:
            here[key] = value
        else:
            here = here[key]


def _index(items: list[Any], part: str, assignment: str, where: str) -> int:
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    if part in names:
        return next(i for i, item in enumerate(items) if isinstance(item, dict) and str(item.get("name")) == part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    allowed = ", ".join(names) if names else f"0 to {len(items) - 1}"
    raise BadInput(f"--set {assignment}: {where} has no item {part!r}{nearest(part, names)}; allowed: {allowed}")


def packaged_studies() -> dict[str, str]:
    """The studies that come with tlkd: their YAML texts by name."""
    folder = resources.files("tlkd").joinpath("studies")
    found = {item.name.removesuffix(".yaml"): item.read_text() for item in folder.iterdir() if item.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def read_study(name: str, assignments: tuple[str, ...] = ()) -> Study:
    """Load a study from a YAML path or a packaged name, lay `--set` assignments on it, and validate it.

    Raises `BadInput` with one line that names the file and key, the value found, and what is allowed.
    """
    path = Path(name)
    packaged = packaged_studies()
    if path.is_file():
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{name}: cannot be read as text: {error}") from None
    elif name in packaged:
        text = packaged[name]
    else:
        raise BadInput(f"{name}: neither a file nor a packaged study{nearest(name, list(packaged))}; "
                       f"packaged: {', '.join(packaged)}")
    raw = parse_yaml(text, name)
    if not isinstance(raw, dict):
        raise BadInput(f"{name}: a study is a mapping of keys, found {type(raw).__name__}")
    raw.pop("provenance", None)  # what a finished study's own file adds
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, name)


def validate(raw: dict[str, Any], origin: str) -> Study:
    """Validate a raw study; `origin` is what an error calls it."""
    try:
        return Study.model_validate(_tuples(raw))
    except ValidationError as error:
        problems = error.errors()
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadInput(f"{origin}: {_explain(problems[0], raw)}{more}") from None


def _tuples(value: Any) -> Any:
    """Lists as the tuples that a frozen spec holds; a strict model would refuse them as they are."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(problem: Any, raw: Any) -> str:
    """One pydantic problem in tlkd's words: key, value found, what is allowed."""
    keys: list[str] = []
    model: Any = Study
    here = raw
    for part in problem["loc"]:
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else None
        if isinstance(here, dict) and (part in here or (fields is not None and part in fields)):
            model = fields[part].annotation if fields is not None and part in fields else _item_type(model)
            here = here.get(part)
            keys.append(str(part))
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here, model = here[part], _item_type(model)
            keys.append(str(here["name"]) if isinstance(here, dict) and "name" in here else str(part))
        # any other part is the name of a branch of a union: nothing that the person wrote
    path = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        parent: Any = Study
        for part in problem["loc"][:-1]:
            fields = parent.model_fields if isinstance(parent, type) and issubclass(parent, BaseModel) else {}
            parent = fields[part].annotation if part in fields else _item_type(parent)
        allowed = list(getattr(parent, "model_fields", {}))
        return f"{path}: unknown key{nearest(keys[-1], allowed, 1)}; allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"{path}: this key is missing"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        simple = path and not isinstance(here, dict | list)
        return f"{path}: found {here!r}; {message}" if simple else f"{path}: {message}" if path else message
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path}: found {here!r}; {message}"


def _item_type(annotation: Any) -> Any:
    """The type of an item of a tuple or of a value of a dict, as far as it can be told."""
    if get_origin(annotation) is Annotated:
        return _item_type(get_args(annotation)[0])
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if get_origin(annotation) is tuple and arguments else annotation
