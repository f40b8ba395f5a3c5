import math
from typing import Any

import numpy as np
import pytest

from difficult_folders import ARMS, CONTROLS, fractions
from finished_groups import LABELS, groups_of, study_of
from tlkd import statistics
from tlkd.contrasts import contrast_all, differences, image_weights
from tlkd.controls import Control, examine, fieller

CLEAN: dict[str, Any] = {"name": "clean"}
GAINS = {"tl_kd": 0.12, "smooth": 0.0, "shuffled": 0.06, "own": 0.12}


def by_name(controls: tuple[Control, ...], condition: str = "clean") -> dict[str, Control]:
    return {each.arm.name: each for each in controls if each.condition == condition}


@pytest.fixture(scope="module")
def found() -> tuple[Control, ...]:
    study = study_of([CLEAN, *fractions(0.1)], [*ARMS, *CONTROLS])
    return examine(study, groups_of(study, {**GAINS, ("tl_kd", "few_10"): 0.0}), LABELS)


def test_what_each_control_keeps(found: tuple[Control, ...]) -> None:
    clean = by_name(found)
    for name, part in (("smooth", 0.0), ("shuffled", 0.5), ("own", 1.0)):
        one = clean[name]
        assert one.kept == pytest.approx(part, abs=0.15) and one.kept_low < one.kept < one.kept_high
        assert one.kept == pytest.approx(one.gain / one.kd_gain)
        assert one.difference.gain == pytest.approx(one.kd_gain - one.gain, abs=1e-12)
    assert clean["smooth"].difference.word == clean["shuffled"].difference.word == "supported"
    assert clean["own"].difference.word in ("refuted", "inconclusive")
    assert [each.label for each in clean.values()] == ["label smoothing", "TL+KD shuffled", "self-distillation"]


def test_a_share_of_nothing_is_not_given(found: tuple[Control, ...]) -> None:
    few = by_name(found, "few_10")
    assert all(math.isnan(each.kept) and math.isnan(each.kept_low) for each in few.values())
    assert few["own"].gain == pytest.approx(0.12, abs=0.03) and few["own"].difference.harmful


def test_controls_have_a_family_of_their_own(found: tuple[Control, ...]) -> None:
    assert {each.difference.contrasts for each in found} == {6}
    study = study_of([CLEAN, *fractions(0.1)], [*ARMS, *CONTROLS])
    assert [each.arm.name for each in contrast_all(study, groups_of(study, GAINS), LABELS)] == ["tl_kd"]


def test_the_kept_part_equals_a_literal_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 199)
    study = study_of([CLEAN], [*ARMS, *CONTROLS[1:2]])
    groups = groups_of(study, GAINS)
    tl, kd, own = groups
    tables = [differences(tl, each, image_weights(LABELS, "accuracy")) for each in (kd, own)]
    random, ratios = np.random.default_rng(list(b"bootstrap")), []
    weights = random.multinomial(10, np.full(10, 0.1), size=199)
    for row in weights:
        rows, columns = np.repeat(np.arange(10), row), random.integers(0, len(LABELS), len(LABELS), dtype=np.int32)
        top, bottom = (table[rows][:, columns].mean() for table in reversed(tables))
        ratios.append(top / bottom)
    [one] = examine(study, groups, LABELS)
    assert (one.kept_low, one.kept_high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_few_seeds_have_fiellers_interval() -> None:
    study = study_of([CLEAN], [*ARMS, *CONTROLS], seeds=5)
    groups = groups_of(study, GAINS)
    one = by_name(examine(study, groups, LABELS))["shuffled"]
    tl, kd, own = (next(group for group in groups if group.arm.name == name) for name in ("tl", "tl_kd", "shuffled"))
    kd_gains, own_gains = (each.correct.mean(axis=1) - tl.correct.mean(axis=1) for each in (kd, own))
    assert (one.kept_low, one.kept_high) == pytest.approx(fieller(own_gains, kd_gains, 0.05))
    # Its ends are the ratios at which a t test of the difference has just the level.
    for ratio in (one.kept_low, one.kept_high):
        low, high = statistics.t_interval(own_gains - ratio * kd_gains, 0.05)
        assert min(abs(low), abs(high)) < 1e-9
    assert all(math.isnan(each) for each in fieller(own_gains, kd_gains - kd_gains.mean(), 0.05))
    assert all(math.isnan(each) for each in fieller(own_gains[:1], kd_gains[:1], 0.05))


def test_a_control_is_compared_with_the_arm_it_was_made_from() -> None:
    arms = [*ARMS, {"name": "hot", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.5, "temperature": 4},
            {"name": "shuffled", "kind": "tl_kd_shuffled", "teacher": "lite1", "soft_weight": 0.5, "temperature": 4},
            {"name": "own", "kind": "self", "soft_weight": 0.5, "temperature": 4},
            {"name": "warm", "kind": "self", "soft_weight": 0.3, "temperature": 4},
            {"name": "smooth", "kind": "label_smoothing", "teacher": "lite1"},
            {"name": "none", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.0}]
    study = study_of([CLEAN, {**fractions(0.1)[0], "arms": ["tl", "hot", "smooth", "own"]}], arms, seeds=2)
    found = examine(study, groups_of(study, {}), LABELS)
    assert {name: each.kd.name for name, each in by_name(found).items()} == {
        "shuffled": "hot", "own": "hot", "warm": "tl_kd", "smooth": "tl_kd"}
    assert {name: each.kd.name for name, each in by_name(found, "few_10").items()} == {"own": "hot", "smooth": "hot"}


def test_only_common_seeds_count_and_nothing_is_left_without() -> None:
    study = study_of([CLEAN], [*ARMS, *CONTROLS], seeds=4)
    missing = [("tl", "clean", 0), ("tl_kd", "clean", 1), ("own", "clean", 2)]
    found = by_name(examine(study, groups_of(study, GAINS, missing=missing), LABELS))
    assert found["own"].seeds == (3,) and found["smooth"].seeds == (2, 3)
    gone = [("tl_kd", "clean", seed) for seed in range(4)]
    assert examine(study, groups_of(study, GAINS, missing=gone), LABELS) == ()
