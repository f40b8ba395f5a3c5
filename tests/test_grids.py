"""Grids: what they are written out to, what comes out equal, what is left out, and how each mistake is named."""

import copy
import datetime
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlkd.conditions import Condition
from tlkd.errors import BadInput
from tlkd.folder import plan
from tlkd.grids import MOST, expand
from tlkd.reading import apply_set, dump_yaml, parse_yaml, read_study, validate
from tlkd.specs import Study

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": "mnist5k"},
    "student": {"model": "timm:resnet18"},
    "teachers": {"big": {"model": "timm:resnet50"}, "other": {"model": "timm:resnet34"}},
    "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "big"},
             {"name": "own", "kind": "self"}],
    "conditions": [{"name": "clean"}, {"name": "few"}, {"name": "noisy", "label_noise": 0.1}],
    "training": {"epochs": 3},
    "seeds": [0, 1],
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
    assert message.startswith("small.yaml: ")
    return message.removeprefix("small.yaml: ")


def conditions(**keys: Any) -> list[str]:
    return [condition.name for condition in study(**keys).conditions]


def arms(**keys: Any) -> list[str]:
    return [arm.name for arm in study(**keys).arms]


def runs(found: Study) -> set[tuple[str, str, int]]:
    return {(run.arm.name, run.condition.name, run.seed) for run in plan(found)}


# --- writing out ------------------------------------------------------------------------------------------------------


def test_a_grid_over_a_condition_makes_one_of_it_for_each_value() -> None:
    found = study(grid={"conditions.few.train_fraction": [0.01, 0.5]})
    assert [(each.name, each.train_fraction) for each in found.conditions] == [
        ("clean", 1.0), ("few_0_01", 0.01), ("few_0_5", 0.5), ("noisy", 1.0)]


def test_paths_are_written_with_dots_or_as_nested_mappings_or_half_and_half() -> None:
    values = [0.1, 0.5]
    nested: list[dict[str, Any]] = [
        {"conditions.few.train_fraction": values}, {"conditions": {"few": {"train_fraction": values}}},
        {"conditions.few": {"train_fraction": values}}, {"conditions": {"few.train_fraction": values}}]
    assert len({dump_yaml(study(grid=grid).model_dump(mode="json")) for grid in nested}) == 1


def test_two_axes_of_one_condition_are_multiplied_in_the_order_they_stand_in() -> None:
    grid = {"conditions.noisy.label_noise.fraction": [0.2, 0.4], "conditions.noisy.train_fraction": [0.1, 0.5, 1]}
    found = [each for each in study(grid=grid).conditions if each.label_noise is not None]
    assert [each.name for each in found] == ["noisy_0_2_0_1", "noisy_0_2_0_5", "noisy_0_2_1",
                                             "noisy_0_4_0_1", "noisy_0_4_0_5", "noisy_0_4_1"]
    assert [(each.label_noise and each.label_noise.fraction, each.train_fraction) for each in found] == list(
        itertools.product([0.2, 0.4], [0.1, 0.5, 1.0]))


def test_axes_of_two_conditions_are_not_multiplied() -> None:
    grid = {"conditions.few.train_fraction": [0.1, 0.5], "conditions.noisy.label_noise.fraction": [0.2, 0.4, 0.8]}
    assert len(conditions(grid=grid)) == 1 + 2 + 3


def test_a_part_written_as_a_number_keeps_what_else_it_is() -> None:
    raw = [{"name": "clean"}, {"name": "noisy", "label_noise": 0.1},
           {"name": "mapped", "label_noise": {"fraction": 0.1, "to": {"3": "5"}}}]
    found = study(conditions=raw, grid={"conditions.noisy.label_noise.redraw": ["never", "epoch"],
                                        "conditions.mapped.label_noise.fraction": [0.2]}).conditions
    assert [each.name for each in found] == ["clean", "noisy_never", "noisy_epoch", "mapped_0_2"]
    noises = [each.label_noise for each in found[1:]]
    assert [(noise and noise.fraction, noise and noise.redraw) for noise in noises] == [
        (0.1, "never"), (0.1, "epoch"), (0.2, "never")]
    assert noises[2] is not None and noises[2].to == {"3": "5"}


def test_a_whole_part_may_be_a_value_and_has_a_name_of_its_own() -> None:
    found = study(grid={"conditions.few.corruption": [
        {"kind": "center_black", "fraction": 0.5}, {"kind": "border_black", "fraction": 0.5}]})
    assert [each.name for each in found.conditions] == [
        "clean", "few_center_black_0_5", "few_border_black_0_5", "noisy"]
    assert found.conditions[2].distortion is not None and found.conditions[2].distortion.kind == "border_black"


@pytest.mark.parametrize(("path", "values", "names"), [
    ("arms.kd.temperature", [1, 2.5, 10.0], ["kd_1", "kd_2_5", "kd_10"]),
    ("arms.kd.soft_weight", [0, 0.1, 1e-5, 0.123456789], ["kd_0", "kd_0_1", "kd_1e_05", "kd_0_123456789"]),
    ("arms.kd.training.learning_rate", [0.1], ["kd_0_1"]),
    ("teachers.big.model", ["packaged:efficientnet_lite2", "timm:resnet34"], ["kd_efficientnet_lite2", "kd_resnet34"]),
    ("teachers.big.per_seed", [True, False], ["kd_true", "kd_false"]),
])
def test_names_are_made_from_values(path: str, values: list[Any], names: list[str]) -> None:
    assert arms(grid={path: values}) == ["tl", *names, "own"]


def test_values_that_differ_late_keep_names_of_their_own() -> None:
    assert len(set(arms(grid={"arms.kd.temperature": [1.0000001, 1.0000002]}))) == 4


def test_arms_follow_the_teachers_that_theirs_became() -> None:
    found = study(grid={"teachers.big.input_size": [64, 96]})
    assert [(arm.name, arm.teacher) for arm in found.arms] == [
        ("tl", None), ("kd_64", "big_64"), ("kd_96", "big_96"), ("own", None)]
    assert {name: teacher.input_size for name, teacher in found.teachers.items()} == {
        "big_64": 64, "big_96": 96, "other": 224}


def test_arms_follow_a_teacher_with_a_single_value_too() -> None:
    found = study(grid={"teachers.big.input_size": [64]})
    assert [(arm.name, arm.teacher) for arm in found.arms] == [("tl", None), ("kd_64", "big_64"), ("own", None)]


def test_an_arms_own_axis_and_its_teachers_are_multiplied() -> None:
    found = study(grid={"teachers.big.input_size": [64, 96], "arms.kd.temperature": [4, 20]})
    assert [(arm.name, arm.temperature, arm.teacher) for arm in found.arms if arm.teacher] == [
        ("kd_4_64", 4, "big_64"), ("kd_4_96", 4, "big_96"), ("kd_20_64", 20, "big_64"), ("kd_20_96", 20, "big_96")]


def test_an_arm_may_take_its_teacher_from_the_grid() -> None:
    found = study(grid={"arms.kd.teacher": ["big", "other"], "teachers.big.input_size": [64, 96]})
    assert [(arm.name, arm.teacher) for arm in found.arms if arm.teacher] == [
        ("kd_big_64", "big_64"), ("kd_big_96", "big_96"), ("kd_other", "other")]


def test_a_grid_over_training_or_the_student_is_laid_on_every_condition() -> None:
    found = study(grid={"training.learning_rate": [0.1, 0.01], "student.input_size": [32]},
                  conditions=[{"name": "clean"}, {"name": "few", "train_fraction": 0.5, "training": {"epochs": 7}}])
    assert [each.name for each in found.conditions] == [
        "clean_learning_rate_0_1_input_size_32", "clean_learning_rate_0_01_input_size_32",
        "few_learning_rate_0_1_input_size_32", "few_learning_rate_0_01_input_size_32"]
    trainings = [found.training_of(found.arms[1], each) for each in found.conditions]
    assert [(each.learning_rate, each.epochs) for each in trainings] == [(0.1, 3), (0.01, 3), (0.1, 7), (0.01, 7)]
    assert {found.student_of(each).input_size for each in found.conditions} == {32}


def test_conditions_may_be_left_to_their_default() -> None:
    raw = {key: value for key, value in SMALL.items() if key != "conditions"}
    found = validate({**raw, "grid": {"conditions.clean.train_fraction": [0.5, 1]}}, "x")
    assert [each.name for each in found.conditions] == ["clean_0_5", "clean_1"]


def test_a_grid_changes_nothing_of_the_mapping_it_is_given() -> None:
    raw = {**copy.deepcopy(SMALL), "grid": {"conditions.few.train_fraction": [0.1, 1, 1.0], "training.epochs": [3, 4]},
           "exclude": [{"conditions.few.train_fraction": 0.1, "arms": ["kd"]}]}
    before = copy.deepcopy(raw)
    made = expand(raw)
    assert raw == before
    made["conditions"][0]["training"]["epochs"] = 99
    assert raw == before
    assert "grid" not in made


def test_a_written_out_study_is_a_study_without_a_grid() -> None:
    found = study(grid={"conditions.few.train_fraction": [0.1, 0.5], "arms.kd.temperature": [4]},
                  exclude=[{"conditions.few.train_fraction": 0.1, "arms": ["own"]}])
    again = validate(parse_yaml(dump_yaml(found.model_dump(mode="json")), "again"), "again")
    assert again == found
    assert runs(again) == runs(found)


# --- what comes out equal ---------------------------------------------------------------------------------------------


def test_all_of_the_data_is_clean() -> None:
    assert conditions(grid={"conditions.few.train_fraction": [0.1, 1.0]}) == ["clean", "few_0_1", "noisy"]
    assert conditions(grid={"conditions.few.train_fraction": [1, 0.1]}) == ["clean", "few_0_1", "noisy"]


@pytest.mark.parametrize("grid", [
    {"conditions.noisy.label_noise.fraction": [0, 0.2]}, {"conditions.noisy.label_noise": [0, 0.2]},
    {"conditions.noisy.label_noise": [None, 0.2]}, {"conditions.noisy.label_noise": [0.0, 0.2, 0.2, 0]},
])
def test_no_wrong_labels_are_clean(grid: dict[str, list[Any]]) -> None:
    assert conditions(grid=grid) == ["clean", "few", "noisy_0_2"]


def test_no_corrupted_images_are_clean_and_what_else_there_is_stays() -> None:
    raw = [{"name": "clean"}, {"name": "black", "corruption": {"kind": "center_black"}}]
    fractions = {"conditions.black.corruption.fraction": [0, 0.95, 1]}
    assert conditions(conditions=raw, grid=fractions) == ["clean", "black_0_95", "black_1"]
    grid = {**fractions, "conditions.black.train_fraction": [0.1, 1]}
    assert conditions(conditions=raw, grid=grid) == [
        "clean", "black_0_0_1", "black_0_95_0_1", "black_0_95_1", "black_1_0_1", "black_1_1"]


def test_without_a_clean_condition_one_of_those_that_are_clean_stays() -> None:
    grid = {"conditions.few.train_fraction": [1, 0.5], "conditions.noisy.label_noise.fraction": [0, 0.5]}
    assert conditions(conditions=SMALL["conditions"][1:], grid=grid) == ["few_1", "few_0_5", "noisy_0_5"]


def test_a_repeated_value_is_one_value_however_it_is_written() -> None:
    assert conditions(grid={"conditions.few.train_fraction": [0.5, 0.1, 0.50, 1, 1.0]}) == [
        "clean", "few_0_5", "few_0_1", "noisy"]
    assert arms(grid={"arms.kd.temperature": [4, 4.0, 2, 4]}) == ["tl", "kd_4", "kd_2", "own"]


def test_a_value_equal_to_an_item_that_is_there_is_left_out() -> None:
    raw = [{"name": "clean"}, {"name": "half", "train_fraction": 0.5}, {"name": "few"}]
    assert conditions(conditions=raw, grid={"conditions.few.train_fraction": [0.5, 0.1]}) == [
        "clean", "half", "few_0_1"]
    noisy = [{"name": "a", "label_noise": 0.4}, {"name": "b", "label_noise": {"fraction": 0.1}}]
    assert conditions(conditions=noisy, grid={"conditions.b.label_noise.fraction": [0.2, 0.4]}) == ["a", "b_0_2"]


def test_an_arm_equal_to_one_that_is_there_with_its_defaults_is_left_out() -> None:
    raw = [*SMALL["arms"], {"name": "hot", "kind": "tl_kd", "teacher": "big"}]
    assert arms(arms=raw, grid={"arms.hot.temperature": [10, 20]}) == ["tl", "kd", "own", "hot_20"]


def test_what_the_person_named_stays_even_where_two_are_equal() -> None:
    assert conditions(conditions=[{"name": "clean"}, {"name": "same"}, {"name": "few"}],
                      grid={"conditions.few.train_fraction": [0.5]}) == ["clean", "same", "few_0_5"]


def test_other_overrides_are_other_conditions() -> None:
    raw = [{"name": "clean"}, {"name": "few", "student": {"input_size": 32}}]
    assert conditions(conditions=raw, grid={"conditions.few.train_fraction": [1, 0.5]}) == [
        "clean", "few_1", "few_0_5"]


def test_a_name_given_twice_is_an_error_with_a_grid_too() -> None:
    assert "'clean' more than once" in refusal(conditions=[{"name": "clean"}, {"name": "clean"}, {"name": "few"}],
                                               grid={"conditions.few.train_fraction": [0.5]})
    assert "'few_0_5' more than once" in refusal(conditions=[{"name": "few_0_5", "train_fraction": 0.2},
                                                             {"name": "few"}],
                                                 grid={"conditions.few.train_fraction": [0.5]})


fractions = st.lists(st.sampled_from([0, 0.0, 0.1, 0.2, 0.5, 1, 1.0]), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(fractions.map(lambda values: [value or 1 for value in values]), fractions, fractions)
def test_a_grid_holds_every_combination_once(kept: list[Any], noise: list[Any], corrupted: list[Any]) -> None:
    grid = {"conditions.all.train_fraction": kept, "conditions.all.label_noise": noise,
            "conditions.all.corruption.fraction": corrupted}
    raw = [{"name": "clean"}, {"name": "all", "corruption": {"kind": "jpeg"}}]
    found = study(conditions=raw, grid=grid).conditions

    def key(condition: Condition) -> tuple[float, float, float]:
        noise, corruption = condition.label_noise, condition.corruption
        return (condition.train_fraction, 0.0 if noise is None else noise.fraction,
                0.0 if corruption is None else corruption.fraction)

    assert sorted(map(key, found)) == sorted({(1.0, 0.0, 0.0), *itertools.product(kept, noise, corrupted)})


# --- names that stand for what they became ----------------------------------------------------------------------------


def test_a_name_stands_for_all_that_it_became() -> None:
    found = study(conditions=[{"name": "clean", "arms": ["tl", "kd"]}, {"name": "few"}], explanation={
        "conditions": ["clean", "few"]}, exclude=[{"arms": ["own"], "conditions": ["few"]}],
        grid={"conditions.few.train_fraction": [0.1, 0.5], "arms.kd.temperature": [2, 4]})
    assert found.conditions[0].arms == ("tl", "kd_2", "kd_4")
    assert found.explanation is not None
    assert found.explanation.conditions == ("clean", "few_0_1", "few_0_5")
    assert found.exclude[0].conditions == ("few_0_1", "few_0_5")
    assert {(arm, condition) for arm, condition, _ in runs(found)} == set(
        itertools.product(["tl", "kd_2", "kd_4"], ["clean", "few_0_1", "few_0_5"]))


def test_a_written_out_name_is_that_one_alone() -> None:
    found = study(exclude=[{"conditions": ["few_0_1"]}], grid={"conditions.few.train_fraction": [0.1, 0.5]})
    assert {condition for _, condition, _ in runs(found)} == {"clean", "few_0_5", "noisy"}


# --- what is left out -------------------------------------------------------------------------------------------------


GRID = {"conditions.few.train_fraction": [0.1, 0.5], "arms.kd.temperature": [2, 4]}
EVERYTHING = set(itertools.product(["tl", "kd_2", "kd_4", "own"], ["clean", "few_0_1", "few_0_5", "noisy"], [0, 1]))


def left_out(*rules: dict[str, Any], **keys: Any) -> set[tuple[str, str, int]]:
    return EVERYTHING - runs(study(**{"grid": GRID, "exclude": list(rules), **keys}))


def those(some_arms: str = "tl kd_2 kd_4 own", some_conditions: str = "clean few_0_1 few_0_5 noisy",
          seeds: str = "0 1") -> set[tuple[str, str, int]]:
    return set(itertools.product(some_arms.split(), some_conditions.split(), map(int, seeds.split())))


def test_nothing_is_left_out_without_a_rule() -> None:
    assert runs(study(grid=GRID)) == EVERYTHING
    assert left_out() == set()


@pytest.mark.parametrize(("rule", "expected"), [
    ({"conditions.few.train_fraction": 0.1}, those(some_conditions="few_0_1")),
    ({"conditions.few.train_fraction": [0.1, 0.5]}, those(some_conditions="few_0_1 few_0_5")),
    ({"arms.kd.temperature": 4.0}, those("kd_4")),
    ({"arms.kd.temperature": [2], "conditions.few.train_fraction": [0.5]}, those("kd_2", "few_0_5")),
    ({"arms.kd.temperature": 2, "conditions": ["noisy", "clean"]}, those("kd_2", "noisy clean")),
    ({"conditions.few.train_fraction": 0.5, "arms": ["own"]}, those("own", "few_0_5")),
    ({"conditions.few.train_fraction": 0.5, "seeds": [1]}, those(some_conditions="few_0_5", seeds="1")),
    ({"conditions.few.train_fraction": 0.5, "conditions": ["few_0_5", "clean"]}, those(some_conditions="few_0_5")),
    ({"conditions.few.train_fraction": 0.5, "conditions": ["few"]}, those(some_conditions="few_0_5")),
    ({"conditions.few.train_fraction": 0.5, "conditions": ["clean"]}, set()),
    ({"arms": ["own"]}, those("own")), ({"arms": ["kd"]}, those("kd_2 kd_4")),
    ({"conditions": ["noisy"]}, those(some_conditions="noisy")), ({"seeds": [1]}, those(seeds="1")),
    ({"arms": ["own", "kd_2"], "conditions": ["noisy"], "seeds": [0]}, those("own kd_2", "noisy", "0")),
])
def test_a_rule_takes_away_the_runs_that_have_all_its_values(rule: dict[str, Any], expected: set[Any]) -> None:
    assert left_out(rule) == expected


def test_of_several_rules_each_takes_its_own_away() -> None:
    assert left_out({"arms": ["own"]}, {"conditions.few.train_fraction": 0.1, "seeds": [0]}) == (
        those("own") | those(some_conditions="few_0_1", seeds="0"))


def test_a_rule_over_a_teachers_key_takes_the_arms_that_follow_it() -> None:
    found = study(grid={"teachers.big.input_size": [64, 96]}, exclude=[{"teachers.big.input_size": 96,
                                                                        "conditions": ["few"]}])
    assert {(arm, condition) for arm, condition, _ in runs(found)} == set(
        itertools.product(["tl", "kd_64", "kd_96", "own"], ["clean", "few", "noisy"])) - {("kd_96", "few")}


def test_a_rule_over_a_key_of_training_takes_the_conditions_that_it_made() -> None:
    found = study(grid={"training.learning_rate": [0.1, 0.01]}, conditions=[{"name": "clean"}],
                  exclude=[{"training.learning_rate": 0.1, "arms": ["own"]}])
    assert {(arm, condition) for arm, condition, _ in runs(found)} == {
        ("tl", "clean_learning_rate_0_1"), ("kd", "clean_learning_rate_0_1"), ("tl", "clean_learning_rate_0_01"),
        ("kd", "clean_learning_rate_0_01"), ("own", "clean_learning_rate_0_01")}


def test_a_rule_over_what_was_equal_to_something_else_takes_nothing_away() -> None:
    found = study(grid={"conditions.few.train_fraction": [1]}, exclude=[{"conditions.few.train_fraction": 1,
                                                                         "arms": ["own"]}])
    assert runs(found) == set(itertools.product(["tl", "kd", "own"], ["clean", "noisy"], [0, 1]))


def test_rules_need_no_grid() -> None:
    found = study(exclude=[{"arms": ["own"], "conditions": ["few", "noisy"]}])
    assert runs(found) == set(itertools.product(["tl", "kd", "own"], ["clean", "few", "noisy"], [0, 1])) - set(
        itertools.product(["own"], ["few", "noisy"], [0, 1]))


# --- mistakes ---------------------------------------------------------------------------------------------------------


PLACES = ("allowed: conditions.NAME.KEY, arms.NAME.KEY, teachers.NAME.KEY, training.KEY, student.KEY, each with a list "
          "of values")


@pytest.mark.parametrize(("grid", "said"), [
    ({}, f"grid: found {{}}, an empty grid; {PLACES}"),
    ([], f"grid: found []; {PLACES}"),
    (5, f"grid: found 5; {PLACES}"),
    ({"conditions": {}}, f"grid.conditions: found {{}}, an empty grid; {PLACES}"),
    ({"conditions": {"few": {}}, "training.epochs": [1]}, f"grid.conditions.few: found {{}}, an empty grid; {PLACES}"),
    ({"condition.few.train_fraction": [0.1]},
     f"grid.condition.few.train_fraction: unknown key; did you mean 'conditions'?; {PLACES}"),
    ({"seeds": [0]}, f"grid.seeds: unknown key; {PLACES}"),
    ({5: [0]}, f"grid.5: unknown key; {PLACES}"),
    ({"conditions": [1]}, f"grid.conditions: names no key; {PLACES}"),
    ({"conditions.few": [1]}, f"grid.conditions.few: names no key; {PLACES}"),
    ({"training": [1]}, f"grid.training: names no key; {PLACES}"),
    ({"conditions.fwe.train_fraction": [0.1]},
     "grid.conditions.fwe.train_fraction: no item of conditions is called 'fwe'; did you mean 'few'?; allowed: clean, "
     "few, noisy"),
    ({"teachers.bgi.input_size": [64]},
     "grid.teachers.bgi.input_size: no item of teachers is called 'bgi'; did you mean 'big'?; allowed: big, other"),
    ({"arms.k.temperature": [4]}, "grid.arms.k.temperature: no item of arms is called 'k'"),
    ({"conditions.few.train_fracton": [0.1]},
     "grid.conditions.few.train_fracton: unknown key; did you mean 'train_fraction'"),
    ({"conditions.few.label_noise.fration": [0.1]},
     "grid.conditions.few.label_noise.fration: unknown key; did you mean 'fraction'?; allowed: fraction, to, redraw"),
    ({"conditions.few.train_fraction.x": [0.1]}, "grid.conditions.few.train_fraction.x: unknown key; allowed: none"),
    ({"conditions.few.student.epochs": [1]}, "grid.conditions.few.student.epochs: unknown key; allowed: model, "),
    ({"training.epoch": [1]}, "grid.training.epoch: unknown key; did you mean 'epochs'"),
    ({"arms.kd.name": ["a"]}, "grid.arms.kd.name: unknown key; allowed: kind, teacher, "),
    ({"conditions.few.train_fraction": []},
     "grid.conditions.few.train_fraction: found an empty list; expected at least one value"),
    ({"conditions.few.train_fraction": 0.5},
     "grid.conditions.few.train_fraction: found 0.5; expected a list of values, e.g. [0.5]"),
    ({"conditions.few.train_fraction": None}, "grid.conditions.few.train_fraction: found None; expected a list"),
    ({"conditions.few.train_fraction": [0.5], "conditions": {"few": {"train_fraction": [0.1]}}},
     "grid.conditions.few.train_fraction: stands twice, with dots and in nested mappings"),
    # values: found where the written-out study has them
    ({"conditions.few.train_fraction": [0.5, 1.5]}, "conditions.few_1_5.train_fraction: found 1.5; allowed: less than"),
    ({"conditions.few.train_fraction": [0.5, 0]}, "conditions.few_0.train_fraction: found 0; allowed: greater than 0"),
    ({"conditions.few.train_fraction": ["x"]}, "conditions.few_x.train_fraction: found 'x'; expected a number"),
    ({"training.epochs": [0]}, "conditions.clean_epochs_0.training.epochs: found 0; allowed: greater than or equal"),
    ({"training.learning_rate": [float("nan")]}, "conditions.clean_learning_rate_nan.training.learning_rate: found"),
    ({"training.learning_rate": [{1: 2, "a": 3}]}, "conditions.clean_learning_rate_2_3.training.learning_rate: found "),
    ({"training.learning_rate": [datetime.date(2020, 1, 1)]}, "conditions.clean_learning_rate_2020_01_01.training."),
    ({"student.start": ["tl"]}, "conditions.clean_start_tl.student.start: is the whole study's; allowed: student."),
    ({"arms.kd.temperature": list(range(1, 102)), "arms.kd.soft_weight": [n / 100 for n in range(101)]},
     f"grid: arms.kd would become 10201 items; allowed: at most {MOST}"),
])
def test_a_mistake_in_a_grid_is_one_line_with_key_value_and_what_is_allowed(grid: Any, said: str) -> None:
    assert refusal(grid=grid).startswith(said)


@pytest.mark.parametrize(("exclude", "said"), [
    ([{}], "exclude.0: expected arms, conditions, seeds or keys of the grid; found nothing"),
    ([{"arms": ["own"]}, {"conditions.few.train_fraction": 0.2}],
     "exclude.1: conditions.few.train_fraction: found 0.2, which is not in the grid; allowed: 0.1, 0.5"),
    ([{"conditions.few.train_fractions": 0.1}],
     "exclude.0: 'conditions.few.train_fractions' is no key of the grid; did you mean "
     "'conditions.few.train_fraction'?; allowed: conditions.few.train_fraction, arms.kd.temperature, arms, "),
    ([{"conditions.few.label_noise": 0.1}], "exclude.0: 'conditions.few.label_noise' is no key of the grid"),
    ([{"arms": ["onw"]}], "exclude.arms: found 'onw'; did you mean 'own'?; allowed: tl, kd_2, kd_4, own"),
    ([{"conditions": ["dirty"]}], "exclude.conditions: found 'dirty'; allowed: clean, few_0_1, few_0_5, noisy"),
    ([{"seeds": [7]}], "exclude.seeds: found 7; allowed: 0, 1"),
    ([{"arm": ["own"]}], "exclude.0.arm: unknown key; did you mean 'arms'?; allowed: arms, conditions, seeds"),
    ([{"arms": "own"}], "exclude.0.arms: found 'own'; expected a list"),
    ([{"arms": "own", "arms.kd.temperature": 2}], "exclude.0.arms: found 'own'; expected a list"),
    (["own"], "exclude.0: found 'own'; expected a mapping of keys"),
    ({"arms": ["own"]}, "exclude: found {'arms': ['own']}; expected a list"),
    (5, "exclude: found 5; expected a list"),
    ([{"seeds": [0, 1]}], "exclude: leaves no run; expected rules that leave at least one"),
    ([{"arms": ["tl"], "conditions": ["noisy"]}],
     "arms.own.kind: 'self' needs an arm of kind tl to start from; under conditions.noisy, seed 0, found kd_2, "),
])
def test_a_mistake_in_what_is_left_out_is_one_line(exclude: Any, said: str) -> None:
    assert refusal(grid=GRID, exclude=exclude).startswith(said)


def test_a_rule_over_a_grid_that_is_not_there_says_so() -> None:
    assert refusal(exclude=[{"conditions.few.train_fraction": 0.5}]) == (
        "exclude.0: 'conditions.few.train_fraction' is no key of the grid; allowed: none, since there is no grid, "
        "arms, conditions, seeds")


@pytest.mark.parametrize(("keys", "said"), [
    ({"arms": 5}, "arms: found 5; expected a list"), ({"arms": ["tl"]}, "arms.0: found 'tl'; expected a mapping"),
    ({"arms": [{"kind": "tl"}]}, "arms.0.name: this key is missing"),
    ({"arms": [{"name": 5, "kind": "tl"}]}, "arms.5.name: found 5; expected text"),
    ({"conditions": ["clean"]}, "conditions.0: found 'clean'; expected a mapping"),
    ({"conditions": {"few": {}}}, "conditions: found {'few': {}}; expected a list"),
    ({"teachers": ["big"]}, "teachers: found ['big']; expected a mapping"),
    ({"teachers": {"big": None}}, "teachers.big: found null; expected a mapping"),
])
def test_what_is_wrong_beside_the_grid_is_said_as_without_one(keys: dict[str, Any], said: str) -> None:
    assert refusal(grid=GRID, **keys).startswith(said)


def test_null_is_no_grid() -> None:
    assert study(grid=None) == study()


junk = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.floats(), st.text(max_size=3),
                              st.sampled_from(["few", "kd", "conditions", "train_fraction", "center_black", "kind"])),
                    lambda inner: st.one_of(st.lists(inner, max_size=3),
                                            st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner,
                                                            max_size=3)), max_leaves=6)
some_paths = st.sampled_from([
    "conditions.few.train_fraction", "conditions.few.label_noise", "conditions.few.label_noise.to",
    "conditions.few.corruption", "conditions.few.corruption.kind", "conditions.few.arms", "conditions.few.seeds",
    "conditions.few.training", "conditions.few.student.model", "arms.kd.teacher", "arms.kd.kind", "arms.kd.training",
    "teachers.big", "teachers.big.training", "training.epochs", "student.model", "conditions", "nonsense"])


@settings(deadline=None, max_examples=150)
@given(st.one_of(junk, st.dictionaries(some_paths, st.one_of(junk, st.lists(junk, max_size=3)), max_size=3)),
       st.one_of(st.none(), junk, st.lists(st.dictionaries(st.one_of(some_paths, st.just("arms")), junk, max_size=2))))
def test_whatever_stands_in_a_grid_is_accepted_or_refused_in_plain_words(grid: Any, exclude: Any) -> None:
    keys = {"grid": grid} if exclude is None else {"grid": grid, "exclude": exclude}
    try:
        study(**keys)
    except BadInput as error:
        assert str(error).startswith("small.yaml: ")
        assert "Value error" not in str(error)


# --- --set ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [
    None, {"conditions.few.train_fraction": [0.2]}, {"conditions": {"few": {"train_fraction": [0.2]}}},
    {"conditions.few": {"train_fraction": [0.2]}}, {"conditions": {"few.train_fraction": [0.2, 0.3]}},
    {"conditions": {"few": {}}}, {"conditions": {"clean": {"train_fraction": [1]}},
                                  "conditions.few.train_fraction": [0.2]},
])
def test_set_reaches_a_grids_keys_however_they_are_written(grid: Any) -> None:
    found = study("grid.conditions.few.train_fraction=[0.1,0.5]", **({} if grid is None else {"grid": grid}))
    assert [each.name for each in found.conditions if each.train_fraction < 1] == ["few_0_1", "few_0_5"]


def test_set_reaches_one_value_of_a_grid() -> None:
    found = study("grid.conditions.few.train_fraction.1=0.7", grid={"conditions.few.train_fraction": [0.1, 0.5]})
    assert [each.name for each in found.conditions] == ["clean", "few_0_1", "few_0_7", "noisy"]


def test_set_names_what_it_cannot_reach() -> None:
    with pytest.raises(BadInput, match=r"^--set grid\.conditions\.few\.train_fraction\.5=1: "
                                       r"grid\.conditions\.few\.train_fraction has no item '5'; allowed: 0 to 1$"):
        study("grid.conditions.few.train_fraction.5=1", grid={"conditions.few.train_fraction": [0.1, 0.5]})


def test_set_switches_a_grid_off(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml({**SMALL, "grid": GRID}))
    assert len(read_study(str(path)).conditions) == 4
    assert read_study(str(path), ("grid=null",)) == study()
