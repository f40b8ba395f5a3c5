"""What is searched: default spaces, `--search`, and mistakes in it."""

from pathlib import Path
from typing import Any

import pytest

from test_study import small_study
from tlkd.errors import BadInput
from tlkd.spaces import Search, Space, search_of, with_setting
from tlkd.specs import Study


def study(*assignments: str) -> Study:
    return small_study(Path("/nowhere"), *assignments)


EVERY_KIND = ("arms=[{name: tl, kind: tl}, {name: tl_kd, kind: tl_kd, teacher: lite1}, "
              "{name: smooth, kind: label_smoothing, teacher: lite1}, {name: own, kind: self}, "
              "{name: shuffled, kind: tl_kd_shuffled, teacher: lite1}]")


def texts(search: Search, arm: str) -> dict[str, str]:
    return {space.key: str(space) for space in search.spaces[arm]}


def test_each_kind_of_arm_has_its_own_keys() -> None:
    search = search_of(study(EVERY_KIND))
    common = {"training.learning_rate": "log:0.001..1", "training.weight_decay": "log:1e-06..0.01"}
    soft = {"soft_weight": "0.05..1", "temperature": "log:1..20"}
    assert texts(search, "tl") == common
    assert texts(search, "tl_kd") == texts(search, "own") == texts(search, "shuffled") == {**common, **soft}
    assert texts(search, "smooth") == {**common, "temperature": "log:0.5..5"}
    assert (search.condition.name, search.seeds, search.metric) == ("clean", (0, 1), "accuracy")


def test_the_rates_are_those_of_the_optimiser() -> None:
    assert texts(search_of(study("training.optimiser=adamw")), "tl")["training.learning_rate"] == "log:1e-05..0.01"
    either = search_of(study(), asked=["training.optimiser=sgd,adamw"])
    assert texts(either, "tl")["training.learning_rate"] == "log:1e-05..1"


def test_what_is_asked_for_replaces_adds_and_drops() -> None:
    search = search_of(study(), asked=["training.learning_rate=log:1e-3..0.3", "temperature=fixed",
                                       "training.batch_size=8,16", "training.epochs=2..5"])
    assert texts(search, "tl_kd") == {
        "training.learning_rate": "log:0.001..0.3", "training.weight_decay": "log:1e-06..0.01",
        "soft_weight": "0.05..1", "training.batch_size": "8,16", "training.epochs": "2..5"}
    assert [space.whole for space in search.spaces["tl"]] == [False, False, True, False]
    assert search.own(search.arms[1]) == {"training.learning_rate": 0.02, "training.weight_decay": 0.0005,
                                          "soft_weight": 0.5, "training.batch_size": 16, "training.epochs": 3}


def test_the_order_of_what_is_asked_for_decides_nothing() -> None:
    asked = ["training.epochs=2..5", "temperature=1..2", "training.batch_size=8,16", "training.learning_rate=0.1..0.2"]
    one, other = (search_of(study(), asked=order).spaces for order in (asked, asked[::-1]))
    assert one == other


def test_the_own_setting_is_the_one_under_the_condition() -> None:
    spec = study("conditions=[{name: clean}, {name: few, train_fraction: 0.5, training: {learning_rate: 0.3}}]")
    search = search_of(spec, "few", ["tl"], 1)
    assert search.own(search.arms[0])["training.learning_rate"] == 0.3
    assert [arm.name for arm in search.arms] == ["tl"]
    assert search.seeds == (0,)


def test_with_setting_keeps_the_arm_s_other_keys() -> None:
    arm = study("arms.tl_kd.training={momentum: 0.5}").arms[1]
    changed = with_setting(arm, {"training.learning_rate": 0.3, "temperature": 2.5})
    assert changed.training == {"momentum": 0.5, "learning_rate": 0.3}
    assert (changed.temperature, changed.soft_weight, changed.teacher) == (2.5, 0.5, "lite1")
    assert with_setting(arm, {}) == arm


def test_only_those_arms_that_learn_from_tl_students_have_a_start() -> None:
    assert search_of(study()).start is None
    start = search_of(study(EVERY_KIND), arms=["own"]).start
    assert start is not None
    assert start.name == "tl"
    assert search_of(study("student.start=tl"), arms=["tl"]).start is None
    assert search_of(study("student.start=tl"), arms=["tl_kd"]).start is not None


@pytest.mark.parametrize(("space", "value", "nearest"), [
    (Space("k", 0.1, 1.0), 0.0, 0.1), (Space("k", 0.1, 1.0), 3, 1.0), (Space("k", 0.1, 1.0), 0.3, 0.3),
    (Space("k", 0.1, 1.0), None, 0.1), (Space("k", 1, 5), 9, 5),
    (Space("k", choices=(16, 32, 64)), 40, 32), (Space("k", choices=("a", "b")), "c", "a"),
    (Space("k", choices=(None, 5)), None, None), (Space("k", choices=(None, 5)), 7, 5),
])
def test_the_nearest_value_inside(space: Space, value: Any, nearest: Any) -> None:
    assert space.nearest(value) == nearest
    assert type(space.nearest(value)) is type(nearest)


def test_drawn_numbers_are_short_and_stay_inside() -> None:
    space = Space("k", 0.12344, 0.987654)
    assert space.rounded(0.5432123) == 0.5432
    assert space.rounded(0.123441) == 0.12344
    assert space.rounded(0.9876539) == 0.987654
    assert Space("k", 1, 99999).rounded(12345) == 12345


def test_edges_are_told_on_the_scale_that_is_searched() -> None:
    assert Space("k", 0.001, 1.0, log=True).at_edge(0.00105)
    assert not Space("k", 0.001, 1.0, log=True).at_edge(0.02)
    assert Space("k", 0.001, 1.0).at_edge(0.02)
    assert not Space("k", choices=(1, 2)).at_edge(1)


@pytest.mark.parametrize(("asked", "said"), [
    (["learning_rate=1..2"], "no arm that is tuned has a key 'learning_rate'; did you mean 'training.learning_rate'?"),
    (["training.nonsense=1..2"], "allowed: training.epochs"),
    (["training.batch_size=0,16"], "arms.tl.training.batch_size: found 0; allowed: greater than or equal to 1"),
    (["training.batch_size=16.5..32"], "found 16.5"),
    (["soft_weight=0.5..2"], "arms.tl_kd.soft_weight: found 2.0; allowed: less than or equal to 1"),
    (["training.schedule=cosine,linear"], "found 'linear'; allowed: 'constant', 'cosine' or 'plateau'"),
    (["training.learning_rate=log:0..1"], "found 0 in a range in the logarithm; allowed: numbers above 0"),
    (["training.learning_rate=0.1..inf"], "expected two numbers"),
    (["training.learning_rate=0.1...inf"], "found inf"),
    (["training.momentum=0.9..0.1"], "expected the smaller number first"),
    (["temperature"], "expected KEY=SPACE"),
    (["temperature="], "expected KEY=SPACE"),
    (["temperature=3"], "expected LOW..HIGH"),
    (["temperature=3,3"], "expected LOW..HIGH"),
    (["temperature=a..b"], "expected two numbers"),
    (["temperature=1..2", "temperature=2..3"], "was given a space already"),
    (["training.learning_rate=fixed", "training.weight_decay=fixed"], "leaves nothing to search for the arm tl"),
])
def test_a_mistake_is_one_line_that_says_what_is_allowed(asked: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        search_of(study(), asked=asked)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--search")
    assert "\n" not in str(caught.value)


def test_a_key_that_no_tuned_arm_has_is_unknown() -> None:
    with pytest.raises(BadInput, match="no arm that is tuned has a key 'temperature'"):
        search_of(study(), arms=["tl"], asked=["temperature=1..2"])


@pytest.mark.parametrize(("assignments", "choice", "said"), [
    (("selection=test", "data.dev_fraction=0"), {}, "selection: found 'test', and tuning must not look at the test"),
    ((), {"condition": "cleam"}, "--condition: found 'cleam'; did you mean 'clean'?; allowed: clean"),
    ((), {"arms": ["tlkd"]}, "--arms: found 'tlkd'; did you mean 'tl_kd'"),
    ((), {"seeds": 3}, "--seeds: found 3; the study has 2 under clean; allowed: 1 to 2"),
    (("exclude=[{arms: [tl], seeds: [1]}]",), {"arms": ["tl"]}, "--arms: found 'tl'"),
])
def test_what_the_study_does_not_have_is_refused(assignments: tuple[str, ...], choice: dict[str, Any],
                                                 said: str) -> None:
    with pytest.raises(BadInput) as caught:
        search_of(study(*assignments), **choice)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
