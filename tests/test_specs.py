"""The study's schema: what is accepted, what is refused and in which words, `--set`, YAML, and the canonical hash."""

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tlkd.conditions import SETTINGS_OF, Condition, Corruption, Distortion, LabelNoise
from tlkd.errors import BadInput
from tlkd.reading import apply_set, dump_yaml, packaged_studies, parse_yaml, read_study, validate
from tlkd.specs import Study, canonical, canonical_hash

DESIGN = """
name: cifar10
data:
  source: cifar10            # mnist5k | shapes | cifar10 | torchvision:NAME | folder:PATH
  root: null                 # where downloads or local copies lie
  train_per_class: null      # optional caps, drawn by data_seed
  test_per_class: null
  dev_fraction: 0.1          # cut out of train first
  data_seed: 0               # caps, splits, patch geometry: one per study
  fit: crop                  # crop | stretch | pad, to a network's input size; masks share it
  augment: [hflip]           # hflip | crop:K (K banked random resized crops) | shift ...; [] for digits
  normalise: model           # model | dataset (computed from the training split) | {mean: [...], sd: [...]}
  masks: null
  on_bad_image: fail         # fail | skip
student:
  model: packaged:efficientnet_lite0   # packaged: | torchvision: | timm:
  weights: imagenet          # imagenet | a torchvision weights name | none | PATH
  input_size: 96
  trainable: head            # head | all | last:N
  batch_norm: eval           # frozen layers' statistics: eval | train (train excludes feature banks)
  dropout: 0.2
  start: pretrained          # pretrained | tl (from the same seed's TL student)
teachers:
  lite2: {model: packaged:efficientnet_lite2, weights: imagenet, input_size: 96, trainable: head, per_seed: false,
          fit: true,         # false: an already fine-tuned checkpoint, with its own head and input size
          trained_on: clean, # clean | condition
          labels: same_view, # same_view | clean_view
          training: {epochs: 30}}
arms:
  - {name: tl, kind: tl}
  - {name: tl_kd, kind: tl_kd, teacher: lite2, soft_weight: 0.1, temperature: 10}
  - {name: smooth, kind: label_smoothing, teacher: lite2}
conditions: [{name: clean}]
training: {epochs: 30, batch_size: 64, optimiser: sgd, learning_rate: 0.01, momentum: 0.9, weight_decay: 0.0005,
           schedule: cosine, early_stopping: null, report_epoch: last, precision: float32, threads: 1}
selection: dev               # dev | test (only to repeat the thesis; the report says so in red)
seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
bank: on                     # off: the same study with every network run live
explanation: null
verdict: {metric: accuracy, smallest_gain: 0.005, level: 0.05}
"""
"""DESIGN.md's one complete study."""

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": "mnist5k"},
    "student": {"model": "packaged:efficientnet_lite0"},
    "teachers": {"big": {"model": "packaged:efficientnet_lite2"}},
    "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "big"}],
    "training": {"epochs": 3},
}


def study(*assignments: str, **keys: Any) -> Study:
    raw = {**copy.deepcopy(SMALL), **keys}
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, "small.yaml")


def refusal(*assignments: str, **keys: Any) -> str:
    """What is said of a study that must be refused: one line that begins with the file's name."""
    with pytest.raises(BadInput) as caught:
        study(*assignments, **keys)
    message = str(caught.value)
    assert "\n" not in message
    return message


def said_of_file(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_study(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_the_complete_study_of_the_design_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "cifar10.yaml"
    path.write_text(DESIGN)
    found = read_study(str(path))
    assert found.name == "cifar10"
    assert found.seeds == tuple(range(10))
    assert found.bank is True
    assert found.arms[1].soft_weight == 0.1
    assert found.arms[1].temperature == 10.0
    assert found.arms[2].control
    assert found.teachers["lite2"].trained_on == "clean"
    assert found.teachers["lite2"].training == found.training
    assert found.training.early_stopping is None
    assert found.data.augment == ("hflip",)


def test_defaults_fill_a_short_study() -> None:
    found = study()
    assert (found.arms[1].soft_weight, found.arms[1].temperature) == (0.1, 10.0)
    assert (found.arms[0].soft_weight, found.arms[0].temperature, found.arms[0].teacher) == (None, None, None)
    assert found.seeds == tuple(range(10))
    assert [condition.name for condition in found.conditions] == ["clean"]


@pytest.mark.parametrize(("source", "augment"), [("mnist5k", ()), ("cifar10", ("hflip",)), ("folder:x", ("hflip",))])
def test_digits_are_not_mirrored_by_default_and_other_images_are(source: str, augment: tuple[str, ...]) -> None:
    assert study(f"data.source='{source}'").data.augment == augment
    assert study(f"data.source='{source}'", "data.augment=[crop:4]").data.augment == ("crop:4",)


def test_a_resolved_study_is_itself_a_study() -> None:
    found = study()
    assert validate(parse_yaml(dump_yaml(found.model_dump(mode="json")), "again"), "again") == found


def test_a_study_cannot_be_changed() -> None:
    found = study()
    for part, key in ((found, "seeds"), (found.training, "epochs"), (found.data, "source"), (found.arms[0], "kind"),
                      (found.teachers["big"], "model"), (found.verdict, "level")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, key, 1)


def test_a_teacher_inherits_what_its_training_leaves_out() -> None:
    found = study("training.batch_size=7", "teachers.big.training.epochs=5")
    assert found.teachers["big"].training.epochs == 5
    assert found.teachers["big"].training.batch_size == 7
    assert found.training.epochs == 3
    assert study("teachers.big.training=null").teachers["big"].training == study().training


@pytest.mark.parametrize("value", ["0", "false", "[]", "''", "5"])
def test_a_teachers_training_must_be_a_mapping(value: str) -> None:
    assert "teachers.big.training: found" in refusal(f"teachers.big.training={value}")


def test_only_the_teachers_that_an_arm_names_are_used() -> None:
    found = study("teachers.other.model=timm:resnet18")
    assert list(found.teachers) == ["big", "other"]
    assert list(found.used_teachers) == ["big"]


# --- what is not built yet --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assignment", ["data.augment=[shift]", "data.augment=['shift:2']"])
def test_what_is_not_built_is_refused_with_a_sentence_that_says_so(assignment: str) -> None:
    message = refusal(assignment)
    assert "not built yet" in message
    assert message.startswith("small.yaml: ")
    assert "more)" not in message


# --- conditions -------------------------------------------------------------------------------------------------------


def hard(keys: str) -> str:
    """The assignment of two conditions, one of them with these keys."""
    return f"conditions=[{{name: clean}}, {{name: hard, {keys}}}]"


def condition(keys: str) -> Condition:
    return study(hard(keys)).conditions[1]


def corruption(keys: str) -> Corruption:
    found = condition(f"corruption: {{{keys}}}").corruption
    assert found is not None
    return found


def test_a_condition_may_do_nothing_or_much() -> None:
    found = study(hard("train_fraction: 0.1, label_noise: {fraction: 0.4, to: uniform, redraw: epoch}, corruption: "
                       "{kind: center_black, fraction: 0.95, size: [0.5, 1], redraw: epoch, variants: 3}"))
    clean, full = found.conditions
    assert clean.plain and clean.difficulty == {} and clean.distortion is None
    assert not full.plain and list(full.difficulty) == ["train_fraction", "label_noise", "corruption"]
    assert full.distortion == Distortion(kind="center_black", size=(0.5, 1.0))
    assert full.corruption is not None
    assert (full.corruption.fraction, full.corruption.redraw, full.corruption.variants) == (0.95, "epoch", 3)
    assert full.label_noise == LabelNoise(fraction=0.4, to="uniform", redraw="epoch")


@pytest.mark.parametrize("keys", ["train_fraction: 1", "label_noise: 0", "label_noise: {fraction: 0, to: {a: b}}",
                                  "corruption: {kind: jpeg, fraction: 0}", "student: {input_size: 32}",
                                  "training: {epochs: 7}", "arms: [tl]", "seeds: [3]"])
def test_what_is_laid_on_nothing_is_no_difficulty(keys: str) -> None:
    found = condition(keys)
    assert found.plain and found.difficulty == {} and found.distortion is None
    assert study(f"conditions=[{{name: clean, {keys}}}]").conditions[0].plain


@pytest.mark.parametrize("keys", ["train_fraction: 0.99", "label_noise: 0.01", "corruption: {kind: jpeg}"])
def test_a_difficulty_may_not_be_called_clean(keys: str) -> None:
    assert refusal(f"conditions=[{{name: clean, {keys}}}]") == (
        "small.yaml: conditions.clean.name: found 'clean' for a condition with a difficulty; expected another name")


def test_equal_difficulties_are_equal_whatever_they_are_called_and_however_they_are_written() -> None:
    assert condition("label_noise: 0.4").difficulty == condition(
        "label_noise: {fraction: 0.40, to: different, redraw: never}, train_fraction: 1").difficulty
    assert condition("corruption: {kind: jpeg}").difficulty == condition(
        "corruption: {kind: jpeg, severity: 3, scale: auto, fraction: 1, variants: 1}").difficulty
    assert condition("corruption: {kind: jpeg}").difficulty != condition(
        "corruption: {kind: jpeg, severity: 4}").difficulty


@pytest.mark.parametrize("keys", ["label_noise: 0.4", "label_noise: {fraction: 0.4}"])
def test_label_noise_may_be_a_number(keys: str) -> None:
    assert condition(keys).label_noise == LabelNoise(fraction=0.4, to="different", redraw="never")


def test_wrong_labels_may_follow_a_map_whose_classes_may_be_digits() -> None:
    words, digits = condition("label_noise: {fraction: 1, to: {cat: dog}}"), condition(
        "label_noise: {fraction: 1, to: {3: 5, '08': 0}}")
    assert words.label_noise is not None and words.label_noise.to == {"cat": "dog"}
    assert digits.label_noise is not None and digits.label_noise.to == {"3": "5", "08": "0"}


@pytest.mark.parametrize(("keys", "settings_of_it"), [
    ("kind: center_black", {"size": (200 / 224, 1.0)}), ("kind: border_black", {"size": (200 / 224, 1.0)}),
    ("kind: border_black, size: [0.5, 0.5]", {"size": (0.5, 0.5)}), ("kind: quarter_black", {}),
    ("kind: jpeg", {"severity": 3, "scale": "auto"}),
    ("kind: gaussian_blur, severity: 5, scale: cifar", {"severity": 5, "scale": "cifar"}),
    ("kind: gaussian_noise, scale: imagenet", {"severity": 3, "scale": "imagenet"}),
    ("kind: contrast, severity: 1", {"severity": 1, "scale": "auto"}),
    ("kind: brightness", {"severity": 3, "scale": "auto"}), ("kind: pixelate", {"severity": 3, "scale": "auto"}),
    ("kind: low_pass", {"band": (0.0, 0.25)}), ("kind: band_pass, band: [0.2, 0.3]", {"band": (0.2, 0.3)}),
    ("kind: high_pass, band: [0.5, 1.5]", {"band": (0.5, 1.5)}),
])
def test_each_kind_of_corruption_has_settings_of_its_own(keys: str, settings_of_it: dict[str, Any]) -> None:
    found = corruption(keys)
    assert found.settings == found.distortion.settings == settings_of_it
    assert found.distortion == Distortion(kind=found.kind, **settings_of_it)
    assert (found.fraction, found.redraw, found.variants) == (1.0, "never", 1)


def test_every_kind_has_settings() -> None:
    kinds = Distortion.model_fields["kind"].annotation
    assert set(get_args(kinds)) == set(SETTINGS_OF)


@pytest.mark.parametrize(("keys", "said"), [
    ("train_fraction: 0", "train_fraction: found 0; allowed: greater than 0"),
    ("train_fraction: 1.01", "train_fraction: found 1.01; allowed: less than or equal to 1"),
    ("label_noise: 1.5", "label_noise: found 1.5; allowed: less than or equal to 1"),
    ("label_noise: -0.1", "label_noise: found -0.1; allowed: greater than or equal to 0"),
    ("label_noise: true", "label_noise: found true; expected a fraction or a mapping of keys"),
    ("label_noise: some", "label_noise: found 'some'; expected a fraction or a mapping of keys"),
    ("label_noise: {}", "label_noise.fraction: this key is missing"),
    ("label_noise: {fraction: 2}", "label_noise.fraction: found 2; allowed: less than or equal to 1"),
    ("label_noise: {fraction: 0.2, fracton: 1}", "label_noise.fracton: unknown key; did you mean 'fraction'?"),
    ("label_noise: {fraction: 0.2, redraw: often}", "label_noise.redraw: found 'often'; allowed: 'never' or 'epoch'"),
    ("label_noise: {fraction: 0.2, to: others}",
     "label_noise.to: found 'others'; allowed: different, uniform, or a mapping from class to class"),
    ("label_noise: {fraction: 0.2, to: {}}", "label_noise.to: found an empty mapping; expected at least one class"),
    ("label_noise: {fraction: 0.2, to: {a: b, c: c}}", "label_noise.to: found 'c' mapped to itself; expected another"),
    ("label_noise: {fraction: 0.2, to: {3: 3}}", "label_noise.to: found '3' mapped to itself; expected another"),
    ("label_noise: {fraction: 0.2, to: {a: 0.5}}", "label_noise.to.a: found 0.5; expected text"),
    ("corruption: center_black", "corruption: found 'center_black'; expected a mapping of keys"),
    ("corruption: {}", "corruption.kind: this key is missing"),
    ("corruption: {kind: black}", "corruption.kind: found 'black'; allowed: 'center_black', 'border_black', "),
    ("corruption: {kind: {a: b}}", "corruption.kind: found {'a': 'b'}; allowed: 'center_black', "),
    ("corruption: {kind: center_black, size: [0, 1]}", "corruption.size.0: found 0; allowed: greater than 0"),
    ("corruption: {kind: border_black, size: [0.5, 1.1]}", "corruption.size.1: found 1.1; allowed: less than or equal"),
    ("corruption: {kind: center_black, size: [0.9, 0.5]}",
     "corruption.size: found [0.9, 0.5]; expected the smaller number first"),
    ("corruption: {kind: center_black, size: 0.5}", "corruption.size: found 0.5; expected a list"),
    ("corruption: {kind: center_black, size: [0.5]}", "corruption.size: found [0.5]; expected 2 items"),
    ("corruption: {kind: center_black, size: null}", "corruption.size: found null; center_black needs it"),
    ("corruption: {kind: center_black, severity: 3}",
     "corruption.severity: found 3; center_black has no such setting; allowed: size"),
    ("corruption: {kind: jpeg, size: [0.5, 1]}",
     "corruption.size: found [0.5, 1.0]; jpeg has no such setting; allowed: severity, scale"),
    ("corruption: {kind: quarter_black, size: [0.5, 1]}",
     "corruption.size: found [0.5, 1.0]; quarter_black has no such setting; allowed: none"),
    ("corruption: {kind: jpeg, severity: 0}", "corruption.severity: found 0; allowed: greater than or equal to 1"),
    ("corruption: {kind: jpeg, severity: 6}", "corruption.severity: found 6; allowed: less than or equal to 5"),
    ("corruption: {kind: jpeg, severity: 2.5}", "corruption.severity: found 2.5; expected a whole number"),
    ("corruption: {kind: jpeg, scale: mnist}", "corruption.scale: found 'mnist'; allowed: 'auto', 'cifar' or"),
    ("corruption: {kind: low_pass, band: [0.5, 0.1]}", "corruption.band: found [0.5, 0.1]; expected the smaller"),
    ("corruption: {kind: high_pass, band: [0, 1.6]}", "corruption.band.1: found 1.6; allowed: less than or equal to"),
    ("corruption: {kind: jpeg, fraction: 1.1}", "corruption.fraction: found 1.1; allowed: less than or equal to 1"),
    ("corruption: {kind: jpeg, variants: 0}", "corruption.variants: found 0; allowed: greater than or equal to 1"),
    ("corruption: {kind: jpeg, variants: 101}", "corruption.variants: found 101; allowed: less than or equal to 100"),
    ("corruption: {kind: jpeg, redraw: always}", "corruption.redraw: found 'always'; allowed: 'never' or 'epoch'"),
    ("corruption: {kind: jpeg, sevrity: 3}", "corruption.sevrity: unknown key; did you mean 'severity'?"),
    ("fraction: 0.5", "fraction: unknown key; did you mean 'conditions.NAME.label_noise.fraction' or "),
    ("noise: 0.5", "noise: unknown key; did you mean 'data.shapes.noise'"),
    ("difficulty: 0.5", "difficulty: unknown key; allowed: name, train_fraction, label_noise, corruption, arms, "),
])
def test_a_bad_difficulty_is_named_with_what_is_allowed(keys: str, said: str) -> None:
    message = refusal(hard(keys))
    assert message.startswith(f"small.yaml: conditions.hard.{said}"), message
    assert "more)" not in message


# --- what a condition overrides ---------------------------------------------------------------------------------------


def test_a_condition_overrides_keys_of_student_and_training() -> None:
    found = study(hard("student: {input_size: 32, dropout: 0}, training: {learning_rate: 0.1}"))
    clean, other = found.conditions
    assert found.student_of(clean) == found.student
    assert found.student_of(other) == found.student.model_copy(update={"input_size": 32, "dropout": 0.0})
    arm = found.arms[0]
    assert found.training_of(arm, clean) == found.training
    assert found.training_of(arm, other) == found.training.model_copy(update={"learning_rate": 0.1})


def test_an_arms_own_training_goes_before_the_conditions_and_that_before_the_studys() -> None:
    found = study(hard("training: {learning_rate: 0.1, epochs: 9}"), "arms.kd.training={learning_rate: 0.5}")
    tl, kd = found.arms
    clean, other = found.conditions
    rates = [(found.training_of(arm, each).learning_rate, found.training_of(arm, each).epochs)
             for arm in (tl, kd) for each in (clean, other)]
    assert rates == [(0.01, 3), (0.1, 9), (0.5, 3), (0.5, 9)]


def test_a_condition_runs_its_own_arms_and_seeds() -> None:
    found = study(hard("arms: [kd], seeds: [7, 100]"), "seeds=[0, 1]")
    clean, other = found.conditions
    assert found.seeds_of(clean) == (0, 1) and found.seeds_of(other) == (7, 100)
    assert [arm.name for arm in found.arms_of(clean, 0)] == ["tl", "kd"]
    assert [arm.name for arm in found.arms_of(other, 7)] == ["kd"]


@pytest.mark.parametrize(("keys", "said"), [
    ("arms: []", "arms: found []; expected at least one item"),
    ("arms: [tll]", "arms: found 'tll'; did you mean 'tl'?; allowed: tl, kd"),
    ("arms: kd", "arms: found 'kd'; expected a list"),
    ("seeds: []", "seeds: found []; expected at least one item"),
    ("seeds: [1, 2, 1]", "seeds: found 1 more than once; each may stand there once"),
    ("seeds: [-1]", "seeds.0: found -1; allowed: greater than or equal to 0"),
    ("student: 5", "student: found 5; expected a mapping of keys"),
    ("student: {input_sizes: 3}", "student.input_sizes: unknown key; did you mean 'input_size'?; allowed: model, "),
    ("student: {input_size: 3}", "student.input_size: found 3; allowed: greater than or equal to 8"),
    ("student: {model: lite0}", "student.model: found 'lite0'; allowed: packaged:NAME, torchvision:NAME, timm:NAME"),
    ("student: {trainable: some}", "student.trainable: found 'some'; allowed: head, all, last:N"),
    ("student: {start: tl}", "student.start: is the whole study's; allowed: student.start"),
    ("training: {epochs: 0}", "training.epochs: found 0; allowed: greater than or equal to 1"),
    ("training: {epoch: 3}", "training.epoch: unknown key; did you mean 'epochs' or 'report_epoch'?; allowed: epochs"),
])
def test_a_bad_override_is_named_with_what_is_allowed(keys: str, said: str) -> None:
    assert refusal(hard(keys)).startswith(f"small.yaml: conditions.hard.{said}")


def test_a_bad_override_of_an_arm_is_named() -> None:
    assert refusal("arms.kd.training={epoch: 3}").startswith(
        "small.yaml: arms.kd.training.epoch: unknown key; did you mean 'epochs'")
    assert refusal("arms.kd.training={epochs: 0}").startswith(
        "small.yaml: arms.kd.training.epochs: found 0; allowed: greater than or equal to 1")


# --- no look at the clean dev split under a difficulty ----------------------------------------------------------------


LOOKS = [("early_stopping: 5", "early_stopping: found 5; ", "allowed: null"),
         ("report_epoch: best", "report_epoch: found 'best'; ", "allowed: last"),
         ("schedule: plateau", "schedule: found 'plateau'; ", "allowed: constant, cosine")]


@pytest.mark.parametrize(("looks", "found", "allowed"), LOOKS)
@pytest.mark.parametrize("difficulty", ["train_fraction: 0.1", "label_noise: 0.2", "corruption: {kind: jpeg}"])
@pytest.mark.parametrize("place", ["training", "arms.kd.training", "conditions.hard.training",
                                   "teachers.big.training"])
def test_a_difficulty_refuses_what_looks_at_dev_wherever_it_stands(looks: str, found: str, allowed: str,
                                                                   difficulty: str, place: str) -> None:
    message = refusal(hard(difficulty), f"{place}={{epochs: 3, {looks}}}")
    assert message.startswith(f"small.yaml: {place}.{found}")
    assert "under conditions.hard a look at the clean dev split would rescue a starved run" in message
    assert f"{allowed} (or selection: test" in message


@pytest.mark.parametrize(("looks", "found", "allowed"), LOOKS)
def test_without_a_difficulty_or_without_dev_a_training_may_look(looks: str, found: str, allowed: str) -> None:
    training = f"training={{epochs: 3, {looks}}}"
    study(training)
    study(training, hard("student: {input_size: 32}"))
    study(training, hard("train_fraction: 0.1"), "selection=test", "data.dev_fraction=0")
    study(hard("train_fraction: 0.1, arms: [tl]"), f"arms.kd.{training}")  # an arm that is not run under it
    study(hard("train_fraction: 0.1"), f"teachers.big.{training}", "teachers.big.trained_on=clean")
    study(hard("train_fraction: 0.1, arms: [tl]"), f"teachers.big.{training}")
    assert found in refusal(hard("train_fraction: 0.1"), training)
    assert allowed in refusal(hard("train_fraction: 0.1"), training)


# --- teachers under a condition ---------------------------------------------------------------------------------------


def test_a_teacher_knows_no_more_than_its_student_unless_it_is_said() -> None:
    assert study().teachers["big"].trained_on == "condition"
    assert study().teachers["big"].labels == "same_view"
    found = study("teachers.big.trained_on=clean", "teachers.big.labels=clean_view").teachers["big"]
    assert (found.trained_on, found.labels) == ("clean", "clean_view")
    assert "teachers.big.trained_on: found 'noisy'; allowed: 'condition' or 'clean'" in refusal(
        "teachers.big.trained_on=noisy")
    assert "teachers.big.labels: found 'view'; allowed: 'same_view' or 'clean_view'" in refusal(
        "teachers.big.labels=view")


# --- control arms -----------------------------------------------------------------------------------------------------


CONTROLS: list[dict[str, Any]] = [
    *SMALL["arms"], {"name": "smooth", "kind": "label_smoothing", "teacher": "big"},
    {"name": "shuffled", "kind": "tl_kd_shuffled", "teacher": "big"}, {"name": "own", "kind": "self"}]


def test_control_arms_have_the_settings_of_what_they_control() -> None:
    found = {arm.name: arm for arm in study(arms=CONTROLS).arms}
    assert {name: (arm.teacher, arm.soft_weight, arm.temperature) for name, arm in found.items()} == {
        "tl": (None, None, None), "kd": ("big", 0.1, 10.0), "smooth": ("big", None, 1.0),
        "shuffled": ("big", 0.1, 10.0), "own": (None, 0.1, 10.0)}
    assert [name for name, arm in found.items() if arm.control] == ["smooth", "shuffled", "own"]


@pytest.mark.parametrize(("arm", "said"), [
    ({"kind": "self", "teacher": "big"},
     "an arm of kind self has no teacher; found teacher: big; allowed: soft_weight, temperature"),
    ({"kind": "label_smoothing"}, "an arm of kind label_smoothing needs teacher, temperature; missing: teacher"),
    ({"kind": "label_smoothing", "teacher": "big", "soft_weight": 0.5},
     "an arm of kind label_smoothing has no soft_weight; found soft_weight: 0.5; allowed: teacher, temperature"),
    ({"kind": "tl_kd_shuffled"}, "an arm of kind tl_kd_shuffled needs teacher, soft_weight, temperature; missing: "),
])
def test_a_control_arm_has_what_its_kind_asks_for_and_nothing_else(arm: dict[str, Any], said: str) -> None:
    assert refusal(arms=[*SMALL["arms"], {"name": "control", **arm}]).startswith(f"small.yaml: arms.control: {said}")


def test_a_run_that_starts_from_tl_has_a_tl_run_to_start_from() -> None:
    own = {"name": "own", "kind": "self"}
    needs = "needs an arm of kind tl to start from; under conditions."
    assert f"arms.own.kind: 'self' {needs}clean, seed 0, found own" in refusal(arms=[own])
    arms = [*SMALL["arms"], own]
    assert f"'self' {needs}hard, seed 0, found kd, own" in refusal(hard("arms: [kd, own]"), arms=arms)
    assert f"'self' {needs}clean, seed 1, found kd, own" in refusal(
        "exclude=[{arms: [tl], seeds: [1]}]", "seeds=[0, 1]", arms=arms)
    assert f"student.start: 'tl' {needs}hard, seed 0, found kd" in refusal(hard("arms: [kd]"), "student.start=tl")
    assert study(hard("arms: [kd]"), arms=arms).arms_of(study(hard("arms: [kd]")).conditions[1], 0)
    assert study("exclude=[{arms: [tl, own], seeds: [1]}]", "seeds=[0, 1]", arms=arms)


# --- robustness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "degrees"), [
    ("kind: jpeg", [("jpeg", severity, "auto") for severity in (1, 2, 3, 4, 5)]),
    ("kind: gaussian_noise, severities: [5, 1], scale: cifar",
     [("gaussian_noise", 5, "cifar"), ("gaussian_noise", 1, "cifar")]),
    ("kind: center_black", [("center_black", (size, size)) for size in (0.25, 0.5, 0.75)]),
    ("kind: border_black, sizes: [0.9]", [("border_black", (0.9, 0.9))]),
    ("kind: low_pass, bands: [[0, 0.1], [0, 0.5]]", [("low_pass", (0.0, 0.1)), ("low_pass", (0.0, 0.5))]),
    ("kind: high_pass", [("high_pass", (0.25, 1.5))]), ("kind: quarter_black", [("quarter_black",)]),
])
def test_robustness_is_measured_in_degrees_of_a_kind(keys: str, degrees: list[tuple[Any, ...]]) -> None:
    (found,) = study(f"robustness=[{{{keys}}}]").robustness
    assert [(each.kind, *each.settings.values()) for each in found.distortions] == degrees


@pytest.mark.parametrize(("robustness", "said"), [
    ("{}", "robustness: found {}; expected a list"), ("[{}]", "robustness.0.kind: this key is missing"),
    ("[{kind: black}]", "robustness.0.kind: found 'black'; allowed: center_black, border_black, "),
    ("[{kind: jpeg, severities: []}]", "robustness.0.severities: found []; jpeg takes severities and scale"),
    ("[{kind: jpeg, severities: [6]}]", "robustness.0.severities.0: found 6; allowed: less than or equal to 5"),
    ("[{kind: jpeg}, {kind: jpeg, sizes: [1]}]", "robustness.1.sizes: found [1.0]; jpeg takes severities and scale"),
    ("[{kind: center_black, severities: [1]}]", "robustness.0.severities: found [1]; center_black takes sizes"),
    ("[{kind: center_black, sizes: [0]}]", "robustness.0.sizes.0: found 0; allowed: greater than 0"),
    ("[{kind: quarter_black, sizes: [1]}]", "robustness.0.sizes: found [1.0]; quarter_black takes none"),
    ("[{kind: low_pass, bands: [[0.5, 0.1]]}]", "robustness.0: band: found [0.5, 0.1]; expected the smaller number"),
])
def test_bad_robustness_is_named(robustness: str, said: str) -> None:
    assert refusal(f"robustness={robustness}").startswith(f"small.yaml: {said}")


# --- exclude (with a grid: test_grids) --------------------------------------------------------------------------------


def test_a_rule_leaves_out_what_it_names() -> None:
    found = study(hard("label_noise: 0.2"), "exclude=[{arms: [kd], conditions: [hard]}, {seeds: [1]}]", "seeds=[0, 1]")
    clean, other = found.conditions
    assert [[arm.name for arm in found.arms_of(each, seed)] for each in (clean, other) for seed in (0, 1)] == [
        ["tl", "kd"], [], ["tl"], []]


@pytest.mark.parametrize(("exclude", "said"), [
    ("[{}]", "exclude.0: expected arms, conditions, seeds or keys of the grid; found nothing"),
    ("[{arms: [kdd]}]", "exclude.arms: found 'kdd'; did you mean 'kd'?; allowed: tl, kd"),
    ("[{conditions: [x]}]", "exclude.conditions: found 'x'; allowed: clean"),
    ("[{seeds: [99]}]", "exclude.seeds: found 99; allowed: 0, 1, 2, "),
    ("[{arms: [tl, kd]}]", "exclude: leaves no run; expected rules that leave at least one"),
])
def test_bad_rules_are_named(exclude: str, said: str) -> None:
    assert refusal(f"exclude={exclude}").startswith(f"small.yaml: {said}")


# --- explanations and masks -------------------------------------------------------------------------------------------


def test_an_explanation_has_defaults() -> None:
    found = study("explanation={}").explanation
    assert found is not None
    assert (found.explainer, found.output, found.images, found.seeds, found.signs) == (
        "deep_shap", "logit", None, "all", "channel")
    assert (found.background.kind, found.background.size, found.pictures, found.teachers) == ("random", 20, 2, True)


@pytest.mark.parametrize(("assignment", "said"), [
    ("explanation={images: masks}", "explanation.images: 'masks' needs data.masks; allowed without: a number"),
    ("explanation={images: 0}", "explanation.images"),
    ("explanation={explainer: lime}", "explanation.explainer: found 'lime'; allowed"),
    ("explanation={background: {size: 0}}", "explanation.background.size: found 0"),
    ("explanation={background: {kind: white}}", "explanation.background.kind: found 'white'; allowed"),
    ("explanation={image: 3}", "explanation.image: unknown key; did you mean 'images'?"),
    ("data.masks=exact", "masks: 'exact' are of another source than"),
    ("data.masks=strokes:2", "strokes:THRESHOLD with 0 < THRESHOLD <"),
    ("data.shapes={size: 64}", "shapes: these are settings of the source shapes"),
])
def test_bad_explanations_and_masks_are_refused(assignment: str, said: str) -> None:
    assert said in refusal(assignment)


def test_masks_of_a_source_of_its_own_are_taken() -> None:
    assert study("data.source=shapes", "data.masks=exact").data.masks == "exact"
    assert study("data.source=mnist5k", "data.masks=strokes:0.3").data.masks == "strokes:0.3"
    assert study("data.masks=outlines.json").data.masks == "outlines.json"


# --- unknown keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("assignment", "said"), [
    ("sedes=[1]", "sedes: unknown key; did you mean 'seeds'?; allowed: name, data, "),
    ("data.sorce=x", "data.sorce: unknown key; did you mean 'source'?; allowed: source, root, "),
    ("student.moddel=x", "student.moddel: unknown key; did you mean 'model'?; allowed: model, weights, "),
    ("teachers.big.moddel=x", "teachers.big.moddel: unknown key; did you mean 'model'?"),
    ("teachers.big.training.epoch=3", "teachers.big.training.epoch: unknown key; did you mean 'epochs'?"),
    ("training.learning_rat=3", "training.learning_rat: unknown key; did you mean 'learning_rate'?"),
    ("arms.kd.temprature=3", "arms.kd.temprature: unknown key; did you mean 'temperature'?; allowed: name, kind, "),
    ("verdict.levle=3", "verdict.levle: unknown key; did you mean 'level'?; allowed: metric, "),
    ("data.normalise={mean: [0,0,0], sd: [1,1,1], std: 1}",
     "data.normalise.std: unknown key; did you mean 'sd'?; allowed: mean, sd"),
    # a key that stands elsewhere is named with its whole path
    ("learning_rate=0.1", "learning_rate: unknown key; did you mean 'training.learning_rate' or "
                          "'teachers.NAME.training.learning_rate'?"),
    ("input_size=32", "did you mean 'student.input_size' or 'teachers.NAME.input_size'?"),
    ("temperature=4", "temperature: unknown key; did you mean 'arms.NAME.temperature'?"),
    ("dev_fraction=0.2", "did you mean 'data.dev_fraction'?"),
    ("learning_rte=0.1", "learning_rte: unknown key; did you mean 'training.learning_rate'"),
    ("student.epochs=3", "student.epochs: unknown key; did you mean 'training.epochs'"),
    ("training.dropout=0.5", "training.dropout: unknown key; did you mean 'student.dropout'"),
    ("teachers.big.temperature=3", "did you mean 'arms.NAME.temperature'?"),
    ("training.seeds=[1]", "training.seeds: unknown key; did you mean 'seeds'?"),
    # nothing like it anywhere
    ("zzz=1", "zzz: unknown key; allowed: name, data, student, teachers, arms, "),
    ("data.5=1", "data.5: unknown key; allowed: source, "),
])
def test_an_unknown_key_is_named_with_what_was_meant(assignment: str, said: str) -> None:
    assert f"small.yaml: {said}" in refusal(assignment) or said in refusal(assignment)
    assert "more)" not in refusal(assignment)


def test_a_misspelt_required_key_is_shown_as_such_and_not_as_missing() -> None:
    said = refusal(student={"modle": "timm:resnet18"})
    assert said.startswith("small.yaml: student.modle: unknown key; did you mean 'model'?; allowed: model, weights, ")
    assert said.endswith(" (and 1 more)")


@pytest.mark.parametrize("key", ["name", "data", "student", "arms"])
def test_a_missing_key_is_named(key: str) -> None:
    raw = {name: value for name, value in SMALL.items() if name != key}
    with pytest.raises(BadInput, match=rf"^small\.yaml: {key}: this key is missing$"):
        validate(raw, "small.yaml")


def test_a_missing_key_further_down_is_named_with_its_path() -> None:
    assert refusal(arms=[{"name": "tl"}]) == "small.yaml: arms.tl.kind: this key is missing"
    assert refusal(arms=[{"kind": "tl"}]) == "small.yaml: arms.0.name: this key is missing"
    assert refusal(teachers={"big": {}}) == "small.yaml: teachers.big.model: this key is missing"


# --- wrong types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("assignment", "said"), [
    ("training.epochs=true", "training.epochs: found true; expected a whole number"),
    ("training.epochs=3.0", "training.epochs: found 3.0; expected a whole number"),
    ("training.epochs='3'", "training.epochs: found '3'; expected a whole number"),
    ("training.epochs=", "training.epochs: found null; expected a whole number"),
    ("training.learning_rate=true", "training.learning_rate: found true; expected a number"),
    ("training.learning_rate='0.1'", "training.learning_rate: found '0.1'; expected a number"),
    ("training.learning_rate=.inf", "training.learning_rate: found inf; allowed: a finite number"),
    ("training.learning_rate=.nan", "training.learning_rate: found nan; allowed: a finite number"),
    ("training=5", "training: found 5; expected a mapping of keys"),
    ("training=", "training: found null; expected a mapping of keys"),
    ("data=cifar10", "data: found 'cifar10'; expected a mapping of keys"),
    ("student=[1]", "student: found [1]; expected a mapping of keys"),
    ("teachers=[big]", "teachers: found ['big']; expected a mapping of keys"),
    ("teachers.big=3", "teachers.big: found 3; expected a mapping of keys"),
    ("arms={tl: 3}", "arms: found {'tl': 3}; expected a list, e.g. [a, b]"),
    ("arms=[tl]", "arms.0: found 'tl'; expected a mapping of keys"),
    ("seeds=3", "seeds: found 3; expected a list, e.g. [a, b]"),
    ("seeds=[0, 1.5]", "seeds.1: found 1.5; expected a whole number"),
    ("seeds=[true]", "seeds.0: found true; expected a whole number"),
    ("bank=1", "bank: found 1; allowed: on, off"),
    ("bank='off'", "bank: found 'off'; allowed: on, off"),
    ("name=5", "name: found 5; expected text"),
    ("data.source=5", "data.source: found 5; expected text"),
    ("data.root=2020-01-01", "data.root: found datetime.date(2020, 1, 1); expected text"),
    ("data.augment=hflip", "data.augment: found 'hflip'; expected a list"),
    ("data.augment=[1]", "data.augment.0: found 1; expected text"),
    ("data.normalise=[1]", "data.normalise: found [1]; allowed: model, dataset, {mean: [R, G, B], sd: [R, G, B]}"),
    ("data.normalise={mean: [1,2], sd: [1,1,1]}", "data.normalise.mean: found [1, 2]; expected 3 items"),
    ("data.normalise={mean: [1,2,3,4], sd: [1,1,1]}", "data.normalise.mean: found [1, 2, 3, 4]; expected 3 items"),
    ("data.normalise={mean: [0,0,0], sd: [1,1,x]}", "data.normalise.sd.2: found 'x'; expected a number"),
    ("conditions=clean", "conditions: found 'clean'; expected a list"),
    ("conditions=[clean]", "conditions.0: found 'clean'; expected a mapping of keys"),
    ("footnotes=[1]", "footnotes.0: found 1; expected text"),
    ("arms.kd.temperature={a: b}", "arms.kd.temperature: found {'a': 'b'}; expected a number"),
])
def test_a_wrong_type_is_named_where_the_person_wrote_it(assignment: str, said: str) -> None:
    message = refusal(assignment)
    assert message.startswith(f"small.yaml: {said}")
    assert "more)" not in message


def test_a_long_value_is_cut_so_that_the_line_can_be_read() -> None:
    assert len(refusal(f"training=[{', '.join(['abcdefgh'] * 100)}]")) < 200


def test_several_mistakes_are_counted() -> None:
    assert refusal("training.epochs=x", "seeds=3", "bank=4").endswith("(and 2 more)")


def test_an_inherited_mistake_is_one_mistake() -> None:
    two = {"a": {"model": "timm:resnet18"}, "big": {"model": "timm:resnet18"}}
    assert refusal("training.epochs=0", teachers=two) == (
        "small.yaml: training.epochs: found 0; allowed: greater than or equal to 1")
    assert refusal("teachers.big.training.epochs=0") == (
        "small.yaml: teachers.big.training.epochs: found 0; allowed: greater than or equal to 1")
    assert refusal("training.epoch=4").startswith("small.yaml: training.epoch: unknown key; did you mean 'epochs'?")


# --- bounds and words -------------------------------------------------------------------------------------------------


BOUNDS = [
    ("data.train_per_class", 1, 0), ("data.test_per_class", 1, 0), ("data.test_fraction", 0.001, 0),
    ("data.test_fraction", 0.999, 1), ("data.dev_fraction", 0.999, 1), ("data.dev_fraction", 0.001, -0.001),
    ("data.data_seed", 0, -1), ("student.input_size", 8, 7), ("student.dropout", 0, -0.1), ("student.dropout", 0.99, 1),
    ("teachers.big.input_size", 8, 7), ("teachers.big.dropout", 0, 1), ("arms.kd.soft_weight", 0, -0.01),
    ("arms.kd.soft_weight", 1, 1.01), ("arms.kd.temperature", 0.001, 0), ("arms.kd.temperature", 1, -1),
    ("training.epochs", 1, 0), ("training.batch_size", 1, 0), ("training.learning_rate", 1e-9, 0),
    ("training.momentum", 0, -0.1), ("training.momentum", 0.99, 1), ("training.weight_decay", 0, -1e-9),
    ("training.plateau_patience", 0, -1), ("training.plateau_factor", 0.001, 0), ("training.plateau_factor", 0.999, 1),
    ("training.early_stopping", 1, 0), ("training.threads", 1, 0), ("teachers.big.training.epochs", 1, 0),
    ("seeds", [0], [-1]), ("seeds", [0], []), ("verdict.smallest_gain", 0.001, 0), ("verdict.smallest_gain", 0.99, 1),
    ("verdict.smallest_epochs", 0.1, 0), ("verdict.level", 0.001, 0), ("verdict.level", 0.999, 1),
    ("data.normalise", {"mean": [0, 0, 0], "sd": [0.001, 1, 1]}, {"mean": [0, 0, 0], "sd": [0, 1, 1]}),
]


@pytest.mark.parametrize(("key", "inside", "outside"), BOUNDS)
def test_bounds_stand_where_they_are_said_to(key: str, inside: Any, outside: Any) -> None:
    study(f"{key}={dump_yaml(inside).removesuffix('...')}" if not isinstance(inside, dict | list)
          else f"{key}={canonical(inside)}")
    message = refusal(f"{key}={canonical(outside)}")
    assert message.startswith(f"small.yaml: {key}")
    assert "found" in message
    assert "more)" not in message


WORDS = [
    ("data.source", "mnist5k", "mnist"), ("data.source", "torchvision:CIFAR100", "torchvision:"),
    ("data.source", "folder:x", "folders:x"), ("data.source", "cifar10", "cifar10:x"), ("data.fit", "pad", "padd"),
    ("data.fit", "stretch", "Crop"), ("data.normalise", "dataset", "none"), ("data.on_bad_image", "skip", "ignore"),
    ("student.model", "timm:resnet18", "resnet18"), ("student.model", "torchvision:resnet18", "timm:"),
    ("student.trainable", "last:12", "last:0"), ("student.trainable", "all", "last"), ("student.trainable", "head", ""),
    ("student.batch_norm", "train", "on"), ("student.start", "tl", "tl_kd"), ("arms.tl.kind", "tl", "hard"),
    ("arms.tl.name", "tl_2", "TL"), ("arms.tl.name", "0", "tl kd"), ("arms.tl.name", "a", "tl-kd"),
    ("training.optimiser", "adamw", "adam"), ("training.schedule", "plateau", "step"),
    ("training.schedule", "constant", "none"), ("training.report_epoch", "best", "first"),
    ("training.precision", "bf16", "float16"), ("training.precision", "fp16", "int8"), ("selection", "dev", "train"),
    ("verdict.metric", "balanced_accuracy", "f1"), ("name", "a.b-c_d", "a/b"), ("name", "Cifar", ".."),
    ("name", "0", ""), ("name", "x", "-x"), ("name", "x", "é"),
]


@pytest.mark.parametrize(("key", "known", "unknown"), WORDS)
def test_words_are_held_to_the_allowed_ones(key: str, known: str, unknown: str) -> None:
    study(f"{key}='{known}'")
    message = refusal(f"{key}='{unknown}'")
    assert f"{key.rpartition('.')[2]}: found {unknown!r}; allowed: " in message
    assert "more)" not in message


@pytest.mark.parametrize(("augment", "fine"), [
    ("[]", True), ("[hflip]", True), ("[crop:4]", True), ("[hflip, crop:12]", True), ("[crop:0]", False),
    ("[crop]", False), ("[vflip]", False), ("[hflip, hflip]", False), ("[crop:4, crop:5]", False),
    ("[crop:1.5]", False), ("['crop:٤']", False),
])
def test_augmentations_are_checked(augment: str, fine: bool) -> None:
    if fine:
        assert study(f"data.augment={augment}").data.augment == tuple(parse_yaml(augment, ""))
    else:
        assert refusal(f"data.augment={augment}").startswith("small.yaml: data.augment: found [")


@pytest.mark.parametrize("name", ["Big", "big-2", "big 2", "é", ""])
def test_a_teachers_name_is_a_small_word(name: str) -> None:
    message = refusal(teachers={name: SMALL["teachers"]["big"]}, arms=[{"name": "tl", "kind": "tl"}])
    assert f"found {name!r}; allowed: lower-case letters, digits and _" in message


# --- what must fit together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value", "twice"), [
    ("seeds", [3, 4, 3], "3"), ("arms", [{"name": "tl", "kind": "tl"}] * 2, "'tl'"),
    ("conditions", [{"name": "clean"}] * 2, "'clean'"),
])
def test_a_name_or_seed_that_stands_twice_is_refused(key: str, value: list[Any], twice: str) -> None:
    assert refusal(**{key: value}) == f"small.yaml: {key}: found {twice} more than once; each may stand there once"


def test_an_arm_must_name_a_teacher_of_the_study() -> None:
    assert refusal("arms.kd.teacher=huge") == (
        "small.yaml: arms.kd.teacher: no teacher is called 'huge'; allowed: big")
    assert "allowed: none, since teachers is empty" in refusal("teachers={}")


def test_an_arm_has_what_its_kind_asks_for_and_nothing_else() -> None:
    assert refusal("arms.kd.teacher=null") == (
        "small.yaml: arms.kd: an arm of kind tl_kd needs teacher, soft_weight, temperature; missing: teacher")
    assert refusal("arms.kd.temperature=null").endswith("missing: temperature")
    for key, value in (("teacher", "big"), ("soft_weight", "0.5"), ("temperature", "4.0")):
        assert refusal(f"arms.tl.{key}={value}") == (
            f"small.yaml: arms.tl: an arm of kind tl has no {key}; found {key}: {value}; allowed: none of teacher, "
            "soft_weight, temperature")


def test_a_dev_split_goes_with_selection_dev_and_none_with_selection_test() -> None:
    assert study("selection=test", "data.dev_fraction=0").selection == "test"
    for assignment in ("selection=test", "data.dev_fraction=0"):
        message = refusal(assignment)
        assert "data.dev_fraction" in message
        assert "selection" in message


def test_a_start_from_tl_needs_a_tl_arm() -> None:
    assert study("student.start=tl").student.start == "tl"
    assert "student.start" in refusal("student.start=tl", arms=[SMALL["arms"][1]])


@pytest.mark.parametrize("raw", [[], "x", 3, None])
def test_a_study_that_is_no_mapping_is_refused(raw: Any) -> None:
    with pytest.raises(ValidationError, match="a study is a mapping of keys"):
        Study.model_validate(raw)


# --- --set ------------------------------------------------------------------------------------------------------------


def test_set_enters_lists_by_index_and_by_name() -> None:
    assert study("arms.1.temperature=4").arms[1].temperature == 4.0
    assert study("arms.kd.temperature=4") == study("arms.1.temperature=4")
    assert study("seeds=[5, 6, 7]", "seeds.1=9").seeds == (5, 9, 7)
    assert study("arms.1.name=other", "arms.other.soft_weight=1").arms[1].soft_weight == 1.0


def test_a_name_goes_before_an_index() -> None:
    arms = [{"name": "1", "kind": "tl"}, {"name": "b", "kind": "tl"}]
    assert [arm.name for arm in study("arms.1.name=c", arms=arms).arms] == ["c", "b"]


def test_set_makes_the_mappings_that_are_missing() -> None:
    assert study("verdict.level=0.01").verdict.level == 0.01
    assert study("teachers.new.model=timm:resnet18").teachers["new"].model == "timm:resnet18"
    assert study("teachers.big.training.learning_rate=1e-3").teachers["big"].training.learning_rate == 0.001
    assert study("data.normalise={}", "data.normalise.mean=[0, 0, 0]", "data.normalise.sd=[1, 1, 1]")


def test_later_assignments_win() -> None:
    assert study("training.epochs=4", "training.epochs=5").training.epochs == 5


@pytest.mark.parametrize(("assignment", "key", "value"), [
    ("k=[0,1,2]", "k", [0, 1, 2]), ("k=1e-3", "k", 0.001), ("k=1E5", "k", 100000.0), ("k=.5e-3", "k", 0.0005),
    ("k=-2e+3", "k", -2000.0), ("k=on", "k", True), ("k=off", "k", False), ("k=null", "k", None), ("k=", "k", None),
    ("k=~", "k", None), ("k=a=b", "k", "a=b"), ("k=folder:/a b/c", "k", "folder:/a b/c"), ("k='1e-3'", "k", "1e-3"),
    ("k={a: 1}", "k", {"a": 1}), (" k = 3", "k", 3), ("k=0.10", "k", 0.1), ("k=1e", "k", "1e"), ("k=e3", "k", "e3"),
])
def test_values_are_yaml(assignment: str, key: str, value: Any) -> None:
    raw: dict[str, Any] = {}
    apply_set(raw, assignment)
    assert raw == {key: value}
    assert type(raw[key]) is type(value)


@pytest.mark.parametrize(("assignment", "said"), [
    ("training.epochs", "--set training.epochs: expected KEY.PATH=VALUE, e.g. training.epochs=5"),
    ("=3", "--set =3: expected KEY.PATH=VALUE"),
    (".=3", "--set .=3: expected KEY.PATH=VALUE"),
    ("training..epochs=3", "--set training..epochs=3: expected KEY.PATH=VALUE"),
    ("name.x=4", "--set name.x=4: name is 'small', which has no key 'x'"),
    ("data.source.x.y=4", "data.source is 'mnist5k', which has no key 'x'"),
    ("arms.kdd.temperature=4", "arms has no item 'kdd'; did you mean 'kd'?; allowed: tl, kd"),
    ("arms.2.temperature=4", "arms has no item '2'; allowed: tl, kd"),
    ("arms.-1.temperature=4", "arms has no item '-1'; allowed: tl, kd"),
    ("arms.².temperature=4", "arms has no item '²'; allowed: tl, kd"),
    ("training.epochs=[1", "--set training.epochs, line 1: not valid YAML: "),
    ("training.epochs={a: 1, a: 2}", "--set training.epochs, line 1: not valid YAML: the key 'a' stands twice"),
])
def test_a_bad_assignment_is_named(assignment: str, said: str) -> None:
    assert said in refusal(assignment)


def test_an_index_outside_of_an_unnamed_list_is_named() -> None:
    assert refusal("seeds.9=1", seeds=[1, 2]) == "--set seeds.9=1: seeds has no item '9'; allowed: 0 to 1"
    assert refusal("seeds.0=1", seeds=[]) == "--set seeds.0=1: seeds has no item '0'; allowed: none, since it is empty"


# --- YAML -------------------------------------------------------------------------------------------------------------


def test_broken_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    assert said_of_file(path, b"name: x\ndata:\n  source: [cifar10\nstudent: {}\n").startswith(
        f"{path}, line 4: not valid YAML: ")
    assert said_of_file(path, b"name: x\n\tdata: 3\n").startswith(f"{path}, line 2: not valid YAML: ")


def test_a_key_that_stands_twice_is_refused_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    assert said_of_file(path, b"name: x\nseeds: [1]\nname: y\n") == (
        f"{path}, line 3: not valid YAML: the key 'name' stands twice")
    assert said_of_file(path, b"training:\n  epochs: 1\n  epochs: 2\n") == (
        f"{path}, line 3: not valid YAML: the key 'epochs' stands twice")
    assert "stands twice" in said_of_file(path, b"teachers: {a: {model: x}, a: {model: y}}\n")


@pytest.mark.parametrize(("content", "said"), [
    (b"", "a study is a mapping of keys; found nothing"),
    (b"# only a comment\n", "a study is a mapping of keys; found nothing"),
    (b"- a\n- b\n", "a study is a mapping of keys; found a list"),
    (b"just words\n", "a study is a mapping of keys; found a str"),
    (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe", "cannot be read as text: "),
    (b"name: \x00\n", "not valid YAML: "),
    (b"name: a\n---\nname: b\n", "not valid YAML: "),
    (b"? [a, b]\n: c\n", "not valid YAML: "),
    (b"2020-01-01: c\n", "line 1: not valid YAML: the key datetime.date(2020, 1, 1) is not a word"),
    (b"name: 2020-13-45\n", "not valid YAML: "),
    (b"name: !!int x\n", "not valid YAML: "),
    (b"name: !!bool x\n", "not valid YAML: "),
    (b"name: !!python/object/apply:os.system [ls]\n", "line 1: not valid YAML: could not determine a constructor"),
    (b"name: *nowhere\n", "line 1: not valid YAML: found undefined alias"),
    (b"name: &a [*a]\n", "line 1: not valid YAML: found unconstructable recursive node"),
    (b"name: " + b"[" * 1000 + b"\n", "not valid YAML: "),
])
def test_what_is_no_study_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "odd.yaml"
    message = said_of_file(path, content)
    assert message.startswith(f"{path}")
    assert said in message


def test_a_folder_and_a_name_that_is_nothing_are_refused(tmp_path: Path) -> None:
    for name, said in ((str(tmp_path), f"{tmp_path}: is a folder, not a study's file; packaged: "),
                       ("quikstart", "quikstart: neither a file nor a packaged study; did you mean 'quickstart'?"),
                       ("x" * 5000, "neither a file nor a packaged study"), ("", "packaged: ")):
        with pytest.raises(BadInput) as caught:
            read_study(name)
        assert said in str(caught.value)


def test_a_finished_studys_own_file_can_be_run_again(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml({**study().model_dump(mode="json"), "provenance": {"command": "tlkd run small"}}))
    assert read_study(str(path)) == study()


def test_aliases_are_values_of_their_own_and_merge_keys_work(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text("""
name: alias
data: {source: mnist5k}
student: &network {model: 'timm:resnet18', input_size: 32}
teachers:
  a: {<<: *network, input_size: 64}
  b: *network
arms: [{name: tl, kind: tl}]
""")
    found = read_study(str(path), ("student.input_size=40",))
    assert found.student.input_size == 40
    assert found.teachers["a"].input_size == 64
    assert found.teachers["a"].model == "timm:resnet18"
    assert found.teachers["b"].input_size == 32  # `--set` changed the student, not what had been copied from it


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(),
    st.sampled_from(["1e3", "1e-3", ".5e3", "on", "off", "null", "~", "é", "1:30", "0x1f", "012", "1_000", "=", "<<",
                     "2020-01-01", "yes", "NO", "- a", "# a", "a: b", "*a", "&a", "!a", ".inf", "\u2028", "\x85", "😀",
                     ""]))
values = st.recursive(scalars, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(), scalars.filter(
        lambda value: isinstance(value, str))), inner, max_size=4)), max_leaves=12)


@settings(deadline=None)
@given(values)
@example({"1e3": "1e3", "on": "on", "null": "null", "é": "é"})
@example({"a": {"b": [1.0, 1e300, 1e-300, 5e-324, -0.0, 1e16]}})
def test_yaml_reads_back_what_it_wrote(value: Any) -> None:
    text = dump_yaml(value)
    assert parse_yaml(text, "x") == value
    assert canonical(parse_yaml(text, "x")) == canonical(value) if "inf" not in repr(value) else True


@settings(deadline=None)
@given(st.text())
def test_any_text_is_yaml_or_bad_input(text: str) -> None:
    try:
        parse_yaml(text, "x")
    except BadInput as error:
        assert str(error).startswith("x")


# --- no value at any key sets off anything but one line ---------------------------------------------------------------


PATHS = ["name", "data", "student", "teachers", "arms", "conditions", "training", "seeds", "bank", "verdict",
         "footnotes", "robustness", "exclude", "grid",
         "data.source", "data.augment", "data.normalise", "data.normalise.sd", "data.masks",
         "data.dev_fraction",
         "student.model", "student.trainable", "teachers.big", "teachers.big.training", "teachers.big.labels",
         "arms.kd", "arms.0", "arms.kd.kind", "arms.kd.soft_weight", "arms.kd.training", "conditions.0",
         "conditions.0.name", "conditions.0.train_fraction", "conditions.0.label_noise", "conditions.0.corruption",
         "conditions.0.arms", "conditions.0.seeds", "conditions.0.student", "conditions.0.training",
         "training.epochs", "training.early_stopping", "selection", "explanation", "nonsense", "data.nonsense"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), values), min_size=1, max_size=3))
def test_whatever_stands_at_a_key_is_accepted_or_refused_in_plain_words(changes: list[tuple[str, Any]]) -> None:
    raw: dict[str, Any] = {**copy.deepcopy(SMALL), "conditions": [{"name": "clean"}]}
    try:
        for path, value in changes:
            apply_set(raw, f"{path}={dump_yaml(value)}")
        validate(raw, "small.yaml")
    except BadInput as error:
        assert str(error).startswith(("small.yaml: ", "--set "))
        assert "Value error" not in str(error)


# --- the canonical hash -----------------------------------------------------------------------------------------------


def reordered(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        keys = draw(st.permutations(list(value)))
        return {key: reordered(value[key], draw) for key in keys}
    return [reordered(item, draw) for item in value] if isinstance(value, list) else value


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_order_of_keys_does_not_change_the_hash(data: st.DataObject) -> None:
    raw = parse_yaml(DESIGN, "design")
    assert canonical_hash(validate(reordered(raw, data.draw), "x")) == canonical_hash(validate(raw, "x"))


@pytest.mark.parametrize(("key", "spellings"), [
    ("arms.kd.temperature", ["10", "10.0", "1e1", "1.0e+1"]), ("arms.kd.soft_weight", ["0", "0.0", "0e0"]),
    ("training.learning_rate", ["0.01", "1e-2", ".01", "0.010"]), ("training.weight_decay", ["0", "0.0"]),
    ("bank", ["on", "true", "yes"]), ("seeds", ["[0, 1]", "\n- 0\n- 1"]),
    ("data.normalise", ["{mean: [0, 0, 0], sd: [1, 1, 1]}", "{sd: [1.0, 1.0, 1.0], mean: [0.0, 0.0, 0.0]}"]),
])
def test_the_spelling_of_a_value_does_not_change_the_hash(key: str, spellings: list[str]) -> None:
    assert len({canonical_hash(study(f"{key}={text}")) for text in spellings}) == 1


def test_a_default_written_out_does_not_change_the_hash() -> None:
    assert canonical_hash(study("arms.kd.temperature=10", "student.weights=imagenet")) == canonical_hash(study())
    assert canonical_hash(validate(study().model_dump(mode="json"), "x")) == canonical_hash(study())


CHANGES = ["name=other", "data.source=cifar10", "data.root=x", "data.train_per_class=5", "data.test_per_class=5",
           "data.test_fraction=0.3", "data.dev_fraction=0.2", "data.data_seed=1", "data.fit=pad",
           "data.augment=[hflip]", "data.normalise=dataset", "data.on_bad_image=skip", "student.model=timm:resnet18",
           "student.weights=none",
           "student.input_size=64", "student.trainable=all", "student.batch_norm=train", "student.dropout=0",
           "student.start=tl", "teachers.big.per_seed=true", "teachers.big.fit=false", "teachers.big.training.epochs=4",
           "arms.kd.temperature=4", "arms.kd.soft_weight=0.5", "arms.tl.name=hard", "training.epochs=4",
           "training.optimiser=adamw", "training.plateau_patience=4", "training.early_stopping=4", "training.threads=2",
           "training.precision=bf16", "seeds=[0]", "seeds=[1, 0]", "seeds=[0, 1]", "bank=off", "verdict.level=0.01",
           "teachers.other.model=timm:resnet18", "footnotes=[a]", "teachers.big.trained_on=clean",
           "teachers.big.labels=clean_view", "arms.kd.kind=tl_kd_shuffled", "arms.kd.training={epochs: 4}",
           "conditions=[{name: few, train_fraction: 0.1}]", "conditions=[{name: few, label_noise: 0.1}]",
           "conditions=[{name: few, corruption: {kind: jpeg}}]", "conditions=[{name: few, arms: [tl]}]",
           "conditions=[{name: few, corruption: {kind: jpeg, severity: 4}}]", "conditions=[{name: few}]",
           "conditions=[{name: few, corruption: {kind: jpeg, variants: 2}}]", "conditions=[{name: few, seeds: [1]}]",
           "conditions=[{name: few, student: {input_size: 32}}]", "robustness=[{kind: jpeg}]",
           "conditions=[{name: few, training: {epochs: 9}}]", "exclude=[{arms: [kd], seeds: [0]}]"]


def test_every_change_changes_the_hash() -> None:
    hashes = {canonical_hash(study(change)) for change in CHANGES} | {canonical_hash(study())}
    assert len(hashes) == len(CHANGES) + 1


def test_the_hash_tells_types_apart_and_refuses_what_json_cannot_hold() -> None:
    assert len({canonical_hash(value) for value in (1, 1.0, True, "1", None, [1], {"1": 1}, "", [], {})}) == 10
    with pytest.raises(ValueError, match="JSON"):
        canonical_hash(float("nan"))


def test_the_hash_stays_what_it_was() -> None:
    assert canonical({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    assert canonical_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # SHA-256 of "{}"


@settings(deadline=None)
@given(values, values)
def test_equal_texts_mean_equal_values(one: Any, other: Any) -> None:
    assume("inf" not in repr((one, other)))
    if canonical(one) == canonical(other):
        assert one == other


# --- packaged studies -------------------------------------------------------------------------------------------------


def test_the_packaged_studies_are_those_that_were_promised() -> None:
    assert {"quickstart", "cifar10", "cifar10-finetune", "thesis"} <= set(packaged_studies())


@pytest.mark.parametrize("name", list(packaged_studies()))
def test_a_packaged_study_loads_and_is_called_like_its_file(name: str) -> None:
    assert read_study(name).name == name


@pytest.mark.parametrize("name", list(packaged_studies()))
def test_a_packaged_studys_header_names_command_time_and_result(name: str) -> None:
    text = packaged_studies()[name]
    header = text[:text.index("\nname:")].splitlines()
    assert all(line.startswith("#") for line in header)
    for word in ("Command:", "Time:", "Expect:"):
        assert any(line.startswith(f"# {word}") and line.partition(":")[2].strip() for line in header), word
    assert any(f"tlkd run {name}" in line for line in header if line.startswith("# Command:"))


def test_the_thesis_study_repeats_its_settings() -> None:
    found = read_study("thesis")
    assert found.seeds == (0, 7, 42)
    assert found.selection == "test"
    assert found.data.dev_fraction == 0
    assert {arm.soft_weight for arm in found.arms} == {None, 0.0, 0.1, 1.0}
    assert found.student.model == "torchvision:resnet18"
    assert found.footnotes
