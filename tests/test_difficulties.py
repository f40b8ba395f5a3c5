from typing import Any

import numpy as np
import pytest

from difficult_folders import ARMS, CONTROLS, blacks, fractions, noises
from finished_groups import LABELS, groups_of, study_of
from tlkd import statistics
from tlkd.contrasts import contrast_all, differences, image_weights
from tlkd.difficulties import Course, Difficulties, examine

CLEAN: dict[str, Any] = {"name": "clean"}
MANY = [CLEAN, *fractions(0.5, 0.1, 0.01), *noises(0.2, 0.4), *blacks(0.5, 0.9, 0.95, 1.0)]
GROWS = {("tl_kd", f"few_{each}"): 0.04 + 0.04 * number for number, each in enumerate((50, 10, 1))}
PEAKS = {("tl_kd", f"black_{each}"): gain for each, gain in ((50, 0.03), (90, 0.08), (95, 0.16), (100, 0.03))}
GAINS = {"tl_kd": 0.03, **GROWS, **PEAKS, ("tl_kd", "noise_20"): -0.05, ("tl_kd", "noise_40"): -0.06}


def course(found: Difficulties | None, key: str, arm: str = "tl_kd") -> Course:
    assert found is not None
    return next(each for each in found.courses if (each.series.key, each.arm.name) == (key, arm))


@pytest.fixture(scope="module")
def found() -> Difficulties:
    study = study_of(MANY)
    examined = examine(study, groups_of(study, GAINS), LABELS)
    assert examined is not None
    return examined


def test_a_gain_that_grows(found: Difficulties) -> None:
    one = course(found, "train_fraction")
    assert one.word == "supported" and one.trend is not None and one.peak is not None
    assert one.trend.word == "rises" and one.trend.verdict.gain == pytest.approx(0.09, abs=0.03)
    assert one.peak.place.name == "few_1" and one.peak.shares[-1] > 0.9 and not one.peak.inner
    assert one.verdict is not None and one.verdict.gain == pytest.approx(np.mean(one.gains[1:]), abs=1e-12)
    assert one.verdict.gain == pytest.approx(0.08, abs=0.02)


def test_a_gain_that_peaks_before_the_end(found: Difficulties) -> None:
    one = course(found, "center_black")
    assert one.word == "supported" and one.peak is not None
    assert one.peak.place.name == "black_95" and one.peak.place.number == 0.95
    assert one.peak.inner and one.peak.p_adjusted < 0.05 and one.peak.contrasts == 3
    assert min(one.peak.above_easiest, one.peak.above_hardest) > 0.05
    assert one.peak.gain == max(one.gains) and one.peak.interval.low < one.peak.gain < one.peak.interval.high


def test_a_gain_that_turns_to_harm(found: Difficulties) -> None:
    one = course(found, "label_noise")
    assert one.word == "refuted" and one.verdict is not None and one.verdict.harmful
    assert one.trend is not None and one.trend.word == "falls"
    assert one.peak is not None and one.peak.place.name == "clean" and one.peak.tested and not one.peak.inner


def test_a_gain_that_vanishes_is_not_supported() -> None:
    study = study_of([CLEAN, *fractions(0.5, 0.1)])
    gains = {"tl_kd": 0.06, ("tl_kd", "few_50"): 0.0, ("tl_kd", "few_10"): 0.0}
    one = course(examine(study, groups_of(study, gains), LABELS), "train_fraction")
    assert one.word in ("refuted", "inconclusive") and one.trend is not None and one.trend.word == "falls"


def test_four_families_stand_apart_and_apart_from_hypothesis_1(found: Difficulties) -> None:
    assert {each.verdict.contrasts for each in found.gains} == {9}
    assert {each.condition for each in found.gains} == {each["name"] for each in MANY[1:]}
    assert {each.verdict.contrasts for each in found.courses if each.verdict is not None} == {3}
    assert {each.trend.verdict.contrasts for each in found.courses if each.trend is not None} == {3}
    study = study_of(MANY)
    [first] = contrast_all(study, groups_of(study, GAINS), LABELS)
    assert first.condition == "clean" and first.verdict.contrasts == 1


def test_the_average_is_over_the_tables_of_its_places(found: Difficulties) -> None:
    study = study_of(MANY)
    groups = {(group.arm.name, group.condition): group for group in groups_of(study, GAINS)}
    weights = image_weights(LABELS, "accuracy")
    tables = [differences(groups["tl", name], groups["tl_kd", name], weights) for name in ("noise_20", "noise_40")]
    one = course(found, "label_noise").verdict
    assert one is not None
    alone = statistics.verdicts({"": np.mean(tables, axis=0)}, study.verdict.smallest_gain, study.verdict.level)[""]
    assert (one.gain, one.p_seed, one.p_image) == pytest.approx((alone.gain, alone.p_seed, alone.p_image))
    assert (one.interval.low, one.interval.high) == (alone.interval.low, alone.interval.high)


def test_a_plain_study_has_no_difficulties() -> None:
    study = study_of([CLEAN])
    assert examine(study, groups_of(study, GAINS), LABELS) is None


def test_controls_and_arms_equal_to_tl_are_in_no_family() -> None:
    arms = [*ARMS, *CONTROLS, {"name": "none", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0}]
    study = study_of([CLEAN, *fractions(0.1)], arms, seeds=3)
    found = examine(study, groups_of(study, GAINS), LABELS)
    assert found is not None and {each.arm.name for each in found.courses} == {"tl_kd"} == {
        each.arm.name for each in found.gains}
    assert [each.arm.name for each in contrast_all(study, groups_of(study, {}), LABELS)] == ["tl_kd", "none"]


def test_a_lone_condition_is_a_series_of_one_place() -> None:
    study = study_of([CLEAN, {"name": "both", "train_fraction": 0.1, "label_noise": 0.4}])
    one = course(examine(study, groups_of(study, {"tl_kd": 0.08}), LABELS), "both")
    assert one.word == "supported" and one.trend is None and one.peak is None and len(one.gains) == 1


def test_two_arms_and_a_condition_that_one_is_not_run_under() -> None:
    arms = [*ARMS, {"name": "other", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.5}]
    study = study_of([{**CLEAN, "arms": ["tl", "tl_kd"]}, *fractions(0.5, 0.1)], arms)
    found = examine(study, groups_of(study, {"tl_kd": 0.05, "other": 0.05}), LABELS)
    mine, other = course(found, "train_fraction"), course(found, "train_fraction", "other")
    assert mine.verdict is not None and mine.verdict.contrasts == 2 and other.label == "TL+KD (other)"
    assert [place.name for place in other.places] == ["few_50", "few_10"] and other.left_out == ()
    study = study_of([CLEAN, {**fractions(0.5)[0], "arms": ["tl", "tl_kd"]}], arms)
    found = examine(study, groups_of(study, {"tl_kd": 0.05}), LABELS)
    assert found is not None and [each.arm.name for each in found.courses] == ["tl_kd"]


def test_an_unfinished_condition_is_left_out_and_a_missing_seed_from_all_places() -> None:
    study = study_of([CLEAN, *fractions(0.5, 0.2, 0.1)], seeds=6)
    missing = [("tl_kd", "few_20", seed) for seed in range(6)] + [("tl", "few_10", 2)]
    one = course(examine(study, groups_of(study, {"tl_kd": 0.05}, missing=missing), LABELS), "train_fraction")
    assert one.left_out == ("few_20",) and [place.name for place in one.places] == ["clean", "few_50", "few_10"]
    assert one.seeds == (0, 1, 3, 4, 5) and one.verdict is not None and one.verdict.n_seeds == 5
    gone = [("tl_kd", f"few_{each}", seed) for each in (50, 20, 10) for seed in range(6)]
    one = course(examine(study, groups_of(study, {}, missing=gone), LABELS), "train_fraction")
    assert (one.word, one.why) == ("not examined", "no seed has a finished run in both arms") and one.verdict is None
    apart = [("tl", "few_50", 0), ("tl", "few_10", 1), ("tl_kd", "few_20", 0)]
    study = study_of([CLEAN, *fractions(0.5, 0.2, 0.1)], seeds=2)
    one = course(examine(study, groups_of(study, {}, missing=apart), LABELS), "train_fraction")
    assert one.why == "no seed is finished in both arms at all of its places" and one.trend is None


def test_a_teacher_that_is_fitted_under_the_condition_is_no_condition_of_the_interval() -> None:
    def covers(trained_on: str) -> str:
        teacher = {"model": "packaged:efficientnet_lite1", "input_size": 64, "trained_on": trained_on}
        study = study_of([CLEAN, *fractions(0.1)], seeds=3, teachers={"lite1": teacher})
        one = course(examine(study, groups_of(study, {}), LABELS), "train_fraction")
        assert one.verdict is not None and one.trend is not None
        assert one.trend.verdict.interval.covers.endswith("given one teacher")
        return one.verdict.interval.covers

    assert covers("clean").endswith("given one teacher") and "given" not in covers("condition")


def test_balanced_accuracy_goes_the_same_way() -> None:
    study = study_of([CLEAN, *fractions(0.5, 0.1)], verdict={"metric": "balanced_accuracy"})
    labels = np.repeat(np.arange(4), [40, 80, 120, 160])
    one = course(examine(study, groups_of(study, {"tl_kd": 0.08}), labels), "train_fraction")
    assert one.word == "supported"
    again = course(examine(study, groups_of(study, {"tl_kd": 0.08}), LABELS), "train_fraction")
    assert one.verdict is not None and again.verdict is not None and one.verdict.gain != again.verdict.gain
