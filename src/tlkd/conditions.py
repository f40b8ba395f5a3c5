"""Difficulties as a study's file says them, and the ground that all parts of a study stand on; no torch."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
SLUG = r"^[a-z0-9][a-z0-9_]*$"
Slug = Annotated[str, Field(pattern=SLUG)]
Above0 = Annotated[float, Field(gt=0, le=1)]
Band = Annotated[float, Field(ge=0, le=1.5)]

_PUBLISHED = {"severity": 3, "scale": "auto"}
SETTINGS_OF: dict[Any, dict[str, Any]] = {
    "center_black": {"size": (200 / 224, 1.0)}, "border_black": {"size": (200 / 224, 1.0)}, "quarter_black": {},
    "gaussian_blur": _PUBLISHED, "gaussian_noise": _PUBLISHED, "contrast": _PUBLISHED, "brightness": _PUBLISHED,
    "pixelate": _PUBLISHED, "jpeg": _PUBLISHED,
    "low_pass": {"band": (0.0, 0.25)}, "band_pass": {"band": (0.1, 0.4)}, "high_pass": {"band": (0.25, 1.5)},
}
"""The kinds of distortion, each with its settings and what they are by default."""


class Spec(BaseModel):
    """Common ground of all parts of a study: frozen, strict about types, closed to unknown keys.

    The string below a key is its description, in the model's JSON schema and in the documentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False,
                              use_attribute_docstrings=True)


class Distortion(Spec):
    """What is done to one image: a kind, and the settings that this kind has (the others are null)."""

    kind: Literal["center_black", "border_black", "quarter_black", "gaussian_blur", "gaussian_noise", "low_pass",
                  "band_pass", "high_pass", "contrast", "brightness", "pixelate", "jpeg"]
    """What is done."""
    size: tuple[Above0, Above0] | None = None
    """Least and greatest side of a centred square, as fractions of the input's side."""
    severity: Annotated[int, Field(ge=1, le=5)] | None = None
    """1 to 5, as published (Hendrycks and Dietterich, 2019)."""
    scale: Literal["auto", "cifar", "imagenet"] | None = None
    """Whose severities: `auto` is CIFAR's for images stored at up to 64 pixels, ImageNet's beyond."""
    band: tuple[Band, Band] | None = None
    """The frequencies that are kept, as fractions of the highest along an axis (Nyquist's); the mean always is."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        known = isinstance(value, dict) and isinstance(value.get("kind"), str)
        return {**SETTINGS_OF.get(value["kind"], {}), **value} if known else value

    @model_validator(mode="after")
    def _of_its_kind(self) -> "Distortion":
        own = SETTINGS_OF[self.kind]
        for key in ("size", "severity", "scale", "band"):
            found = getattr(self, key)
            if found is not None and key not in own:
                raise ValueError(f"{key}: found {_listed(found)}; {self.kind} has no such setting; allowed: "
                                 f"{', '.join(own) or 'none'}")
            if found is None and key in own:
                raise ValueError(f"{key}: found null; {self.kind} needs it")
            if isinstance(found, tuple) and found[0] > found[1]:
                raise ValueError(f"{key}: found {_listed(found)}; expected the smaller number first")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What this kind was given, without what it has not."""
        return {key: getattr(self, key) for key in SETTINGS_OF[self.kind]}


class Corruption(Distortion):
    """A distortion laid on a part of the training samples, drawn once a run or anew each epoch."""

    fraction: Fraction = 1.0
    """How many of the training samples; a larger fraction corrupts what a smaller one does."""
    redraw: Literal["never", "epoch"] = "never"
    """Whether samples are chosen once a run or anew each epoch."""
    variants: Annotated[int, Field(ge=1, le=100)] = 1
    """How many versions each sample has; their geometry and noise belong to its id and `data_seed`."""

    @property
    def distortion(self) -> Distortion:
        """What is done, apart from to how many."""
        return Distortion(**{"kind": self.kind, **self.settings})


class LabelNoise(Spec):
    """Wrong labels on a part of the training samples, drawn once a run or anew each epoch."""

    fraction: Fraction
    """How many of the training samples; under a mapping, of the mapped classes'."""
    to: Literal["different", "uniform"] | dict[str, str] = "different"
    """Any other class (`different`), any class at all, so that some keep theirs (`uniform`), or a mapping from a class
    to the class it is taken for."""
    redraw: Literal["never", "epoch"] = "never"
    """Whether wrong labels are drawn once a run or anew each epoch."""

    @field_validator("to", mode="before")
    @classmethod
    def _to(cls, value: Any) -> Any:
        if isinstance(value, dict):  # digits are names of classes, which YAML reads as numbers
            return {_digits(one): _digits(other) for one, other in value.items()}
        if value in ("different", "uniform"):
            return value
        raise ValueError("allowed: different, uniform, or a mapping from class to class")

    @model_validator(mode="after")
    def _classes(self) -> "LabelNoise":
        if isinstance(self.to, dict) and not self.to:
            raise ValueError("to: found an empty mapping; expected at least one class and what it is taken for")
        if isinstance(self.to, dict) and any(one == other for one, other in self.to.items()):
            same = next(one for one, other in self.to.items() if one == other)
            raise ValueError(f"to: found {same!r} mapped to itself; expected another class")
        return self


class Condition(Spec):
    """A difficulty laid on the training samples; one without any is plain, as `clean` is."""

    name: Slug
    """How files and the report call it."""
    train_fraction: Above0 = 1.0
    """The part of each class that is kept; a larger one keeps what a smaller one keeps."""
    label_noise: LabelNoise | None = None
    """Wrong labels: a fraction alone, or a mapping of keys."""
    corruption: Corruption | None = None
    """Distorted images."""
    arms: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the arms that run under it; null: all."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """The seeds that run under it; null: the study's."""
    student: dict[str, Any] | None = None
    """Keys of `student` that it overrides."""
    training: dict[str, Any] | None = None
    """Keys of `training` that it overrides."""

    @field_validator("label_noise", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if value is None or isinstance(value, dict | LabelNoise):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"fraction": value}
        raise ValueError("expected a fraction or a mapping of keys")

    @model_validator(mode="after")
    def _name(self) -> "Condition":
        if self.name == "clean" and not self.plain:
            raise ValueError("name: found 'clean' for a condition with a difficulty; expected another name")
        return self

    @property
    def difficulty(self) -> dict[str, Any]:
        """What the condition does to the training samples, nothing of it that does nothing: equal ones are equal."""
        found: dict[str, Any] = {} if self.train_fraction == 1 else {"train_fraction": self.train_fraction}
        if self.label_noise is not None and self.label_noise.fraction > 0:
            found["label_noise"] = self.label_noise.model_dump(mode="json")
        if self.corruption is not None and self.corruption.fraction > 0:
            found["corruption"] = self.corruption.model_dump(mode="json", exclude_none=True)
        return found

    @property
    def plain(self) -> bool:
        """Whether no difficulty is laid on anything."""
        return not self.difficulty

    @property
    def distortion(self) -> Distortion | None:
        """What is done to the images, None where nothing is."""
        return self.corruption.distortion if self.corruption is not None and self.corruption.fraction > 0 else None


class Exclusion(Spec):
    """Runs that are left out: those whose arm, condition and seed are all among those named (null: any)."""

    arms: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names; null: any."""
    conditions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names; null: any."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Numbers; null: any."""

    @model_validator(mode="after")
    def _something(self) -> "Exclusion":
        if self.arms is None and self.conditions is None and self.seeds is None:
            raise ValueError("expected arms, conditions, seeds or keys of the grid; found nothing")
        return self

    def names(self, arm: str, condition: str, seed: int) -> bool:
        """Whether a run is among those left out."""
        return all(wanted is None or found in wanted for wanted, found in (
            (self.arms, arm), (self.conditions, condition), (self.seeds, seed)))


class Robustness(Spec):
    """Distorted test images that every finished student is shown: one kind, in several degrees."""

    kind: Annotated[str, Field()]
    """A kind of corruption."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] | None = None
    """Of the kinds with published ones; null: 1 to 5."""
    scale: Literal["auto", "cifar", "imagenet"] | None = None
    """As a corruption's."""
    sizes: tuple[Above0, ...] | None = None
    """Of squares: the side as a fraction of the input's; null: 0.25, 0.5, 0.75."""
    bands: tuple[tuple[Band, Band], ...] | None = None
    """Of filters; null: the kind's own."""

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        if value not in SETTINGS_OF:
            raise ValueError(f"allowed: {', '.join(SETTINGS_OF)}")
        return value

    @model_validator(mode="after")
    def _of_its_kind(self) -> "Robustness":
        own = {"severity": ("severities", "scale"), "size": ("sizes",), "band": ("bands",)}
        allowed = own.get(next(iter(SETTINGS_OF[self.kind]), ""), ())
        for key in ("severities", "scale", "sizes", "bands"):
            found = getattr(self, key)
            if found is not None and (key not in allowed or found == ()):
                raise ValueError(f"{key}: found {_listed(found)}; {self.kind} takes {' and '.join(allowed) or 'none'}")
        self.distortions  # noqa: B018  (a band whose ends are turned about is an error)
        return self

    @property
    def distortions(self) -> tuple[Distortion, ...]:
        """The degrees, in the order given."""
        keys = SETTINGS_OF[self.kind]
        if "severity" in keys:
            return tuple(Distortion(kind=self.kind, severity=each, scale=self.scale or "auto")  # type: ignore[arg-type]
                         for each in self.severities or (1, 2, 3, 4, 5))
        if "size" in keys:
            return tuple(Distortion(kind=self.kind, size=(each, each))  # type: ignore[arg-type]
                         for each in self.sizes or (0.25, 0.5, 0.75))
        if "band" in keys:
            return tuple(Distortion(kind=self.kind, band=each)  # type: ignore[arg-type]
                         for each in self.bands or (SETTINGS_OF[self.kind]["band"],))
        return (Distortion(kind=self.kind),)  # type: ignore[arg-type]


def _digits(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _listed(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def as_tuples(value: Any) -> Any:
    """Lists as the tuples that a frozen spec holds; a strict model would refuse them as they are."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
