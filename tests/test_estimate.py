"""The gauge measures real code, each thing once; the simulation of a study's steps against schedules done by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hard_studies import hard_study
from tlkd import banks, estimate
from tlkd.conditions import Condition
from tlkd.estimate import FitCost, Gauge, Load, bytes_in, makespan
from tlkd.folder import Run
from tlkd.study import Context, open_workshop
from tlkd.workshop import Workshop, network_for


def load(name: str, seconds: float, *needs: str, threads: int = 1) -> Load:
    return Load(name, needs, threads, seconds)


def pair(seconds: float) -> np.ndarray:
    return np.array([seconds, 2 * seconds])


@pytest.mark.parametrize(("loads", "slots", "cores", "expected"), [
    ([load("a", 3), load("b", 2)], 1, 2, 5),
    ([load("a", 3), load("b", 2)], 2, 2, 3),
    ([load("a", 3), load("b", 2)], 2, 1, 5),  # both at half the pace until b ends at 4, then a alone
    ([load("a", 3), load("b", 2, "a")], 2, 2, 5),
    ([load("a", 3), load("b", 2, "elsewhere")], 2, 2, 3),  # what is done already is waited for by nobody
    ([load("a", 4), load("b", 1), load("c", 1), load("d", 1, "b")], 2, 2, 4),
    ([load("a", 2, threads=2), load("b", 2, threads=2)], 2, 2, 4),
    ([load("a", 0), load("b", 0, "a")], 2, 2, 0),
    ([], 2, 2, 0),
])
def test_the_end_of_a_schedule(loads: list[Load], slots: int, cores: int, expected: float) -> None:
    assert makespan(loads, slots, cores) == pytest.approx(expected)


def test_steps_that_wait_for_each_other_are_an_error() -> None:
    with pytest.raises(ValueError, match="'a' waits for something"):
        makespan([load("a", 1, "b"), load("b", 1, "a")], 2, 2)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.integers(1, 4))
def test_slots_help_and_do_no_wonders(seconds: list[float], slots: int) -> None:
    end = makespan([load(str(number), each) for number, each in enumerate(seconds)], slots, 8)
    assert max(*seconds, sum(seconds) / slots) - 1e-9 <= end <= sum(seconds) + 1e-9


def test_what_a_training_costs_follows_from_its_steps() -> None:
    cost = FitCost(pair(1.0), 10, True, pair(0.5), pair(0.25))
    np.testing.assert_allclose(cost.of(25, 4), 4 * pair(3 + 0.5 + 0.25))  # a last step of 5 costs a step
    np.testing.assert_allclose(replace(cost, whole=False).of(25, 4), 4 * pair(2.5 + 0.5 + 0.25))


# --- the gauge --------------------------------------------------------------------------------------------------------


@pytest.fixture
def workshop(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> Workshop:
    return open_workshop(Context(hard_study(shapes_folder), tmp_path / "out", own_cache, "cpu"))


def test_everything_is_measured_once_and_leaves_nothing(workshop: Workshop, tmp_path: Path) -> None:
    study, scratch = workshop.study, tmp_path / "scratch"
    scratch.mkdir()
    gauge, network = Gauge(workshop, 2, scratch), network_for(workshop, study.student, 0, "student")
    condition = study.conditions[2]
    draw = workshop.draw(condition, 0)
    costs = [gauge.fit(network, study.training, arm, condition, draw) for arm in study.arms]
    row, result = gauge.bank_row(network), gauge.result(network, study.training)
    for seconds in (row, result.seconds, result.metrics, *(cost.step for cost in costs)):
        assert seconds.shape == (2,)
        assert 0 < seconds[0] <= seconds[1] < 10
    spent = gauge.seconds
    assert gauge.fit(network, study.training, study.arms[0], condition, draw) is costs[0]
    assert gauge.bank_row(network) is row
    assert gauge.seconds == spent
    clean = study.conditions[0]
    assert gauge.fit(network, study.training, study.arms[0], clean, workshop.draw(clean, 0)) is not costs[0]
    assert not (scratch / "checkpoint.safetensors").exists()


def test_a_banks_rows_are_priced_by_the_code_that_fills_banks(workshop: Workshop, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(array, source, forward, what, threads, batch):  # 10 ms a row, whatever the batch
        estimate.time.sleep(0.01 * array.shape[1] / min(threads, math.ceil(array.shape[1] / batch)))

    monkeypatch.setattr(banks, "write", slow)
    network = network_for(workshop, workshop.study.student, 0, "student")
    row = Gauge(workshop, 2, tmp_path).bank_row(network)
    assert 0.0099 < row[1] < 0.03  # a second thread halves the wait, not the work
    assert row[0] < 0.005  # the processor had nothing to do


def test_a_live_training_is_measured_on_small_batches(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    study = hard_study(shapes_folder, "student.trainable=all", "bank=off")
    workshop = open_workshop(Context(study, tmp_path / "out", own_cache, "cpu"))
    network = network_for(workshop, study.student, 0, "student")
    teacher = network_for(workshop, study.teachers["lite1"], 0, "teachers.lite1")
    draw = workshop.draw(study.conditions[0], 0)
    gauge = Gauge(workshop, 1, tmp_path)
    alone, taught = (gauge.fit(network, study.training, None, study.conditions[0], draw, each)
                     for each in (None, teacher))
    assert not alone.whole and 2 <= alone.size <= 64
    assert alone.of(48, 2)[0] > 0
    assert alone is not taught  # a live teacher costs a pass of its own


def test_a_results_bytes_are_those_that_a_run_leaves(workshop: Workshop, tmp_path: Path) -> None:
    from tlkd import stages
    from tlkd.folder import StudyFolder

    study = workshop.study
    network, folder = network_for(workshop, study.student, 0, "student"), StudyFolder(tmp_path / "out")
    result = Gauge(workshop, 1, tmp_path).result(network, study.training)
    run = Run(study.arms[0], Condition(name="clean"), 0)
    stages.publish_run(workshop, folder, run)
    real = bytes_in(folder.run_path(run))
    assert abs(result.size - real) < 0.1 * real + 4096  # what a run's spec takes in two files
    assert result.weights == (folder.run_path(run) / "model.safetensors").stat().st_size
