"""Nothing grows faster than the number of runs: calls and memory are counted at two sizes, not timed."""

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sealed_folders import lay_down
from tlkd import evaluation, folder, results, standing, statistics, store, trends
from tlkd.estimate import Load, makespan
from tlkd.layout import MOST, Table
from tlkd.study import collect


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often files are looked at and opened, and how often the plan is drawn up."""
    counted: Counter[str] = Counter()
    for owner, name in ((Path, "is_file"), (Path, "is_dir"), (Path, "open"), (folder, "plan")):
        original = getattr(owner, name)

        def counting(*given: object, _original=original, _name=name, **more: object) -> object:  # type: ignore[no-untyped-def]
            counted[_name] += 1
            return _original(*given, **more)

        monkeypatch.setattr(owner, name, counting)
    return counted


def cost(calls: Counter[str], work: object) -> Counter[str]:
    calls.clear()
    work()  # type: ignore[operator]
    return Counter(calls)


def test_files_are_looked_at_in_proportion_to_the_runs(tmp_path: Path, calls: Counter[str]) -> None:
    few = lay_down(tmp_path / "few", f"seeds={list(range(4))}")
    many = lay_down(tmp_path / "many", f"seeds={list(range(16))}")
    for each in (few, many):
        result = each.path / "teachers" / "big" / "result.json"
        store.write_json(result, {**store.read_json(result), "parameters": 1})
    for work in (standing.standings, lambda each: results.read(each, each.finished()), collect):
        small, large = cost(calls, lambda: work(few)), cost(calls, lambda: work(many))  # noqa: B023
        assert sum(large.values()) > sum(small.values())
        for name, count in large.items():
            assert count <= 4 * small[name] + 4, (work, name, small[name], count)
        assert large["plan"] == small["plan"]  # once each time, however many runs there are


def test_a_quadratic_look_is_found_out(tmp_path: Path, calls: Counter[str]) -> None:
    few = lay_down(tmp_path / "few", f"seeds={list(range(4))}")
    many = lay_down(tmp_path / "many", f"seeds={list(range(16))}")
    small, large = (cost(calls, lambda: [each.done(run) for _ in each.runs() for run in each.runs()])  # noqa: B023
                    for each in (few, many))
    assert large["is_file"] > 4 * small["is_file"] + 4


def most(work: object) -> int:
    """The most bytes that Python and NumPy hold meanwhile."""
    tracemalloc.start()
    try:
        work()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_resampling_many_tables_holds_their_means_and_little_else() -> None:
    table = np.random.default_rng(0).integers(-1, 2, (10, 50)).astype(np.float64)
    one, many = (most(lambda: statistics.resampled(np.stack([table] * count))) for count in (1, 100))  # noqa: B023
    assert many - one < 1.5 * 100 * statistics.RESAMPLES * 8 + 16 * statistics._CELLS  # and not ten seeds as many


def test_peaks_together_are_peaks_one_by_one() -> None:
    random = np.random.default_rng(1)
    stacks = [random.integers(-1, 2, (places, seeds, 40)).astype(np.float64)
              for places, seeds in ((3, 10), (5, 10), (2, 1), (3, 4))]
    for together, stack in zip(trends.peaks(stacks), stacks, strict=True):
        alone = trends.peak(stack)
        assert together[:2] == alone[:2]
        np.testing.assert_array_equal(together.shares, alone.shares)


def test_pooled_reliability_is_that_of_all_predictions() -> None:
    random = np.random.default_rng(2)
    labels, logits = random.integers(0, 5, (3, 70)), random.normal(0, 3, (3, 70, 5))
    pooled = evaluation.pooled([evaluation.evaluate(*each).reliability for each in zip(labels, logits, strict=True)])
    whole = evaluation.reliability(labels.ravel(), logits.reshape(-1, 5))
    for name in ("confidence", "accuracy", "count"):
        np.testing.assert_allclose(getattr(pooled, name), getattr(whole, name), rtol=1e-12)


def test_evaluating_at_once_gives_what_each_function_gives() -> None:
    random = np.random.default_rng(3)
    labels, logits = random.integers(0, 4, 60), random.normal(0, 1, (60, 4))
    found = evaluation.evaluate(labels, logits)
    assert found.metrics == evaluation.metrics(labels, logits)
    np.testing.assert_array_equal(found.confusion, evaluation.confusion(labels, logits))
    np.testing.assert_array_equal(found.correct, logits.argmax(1) == labels)
    assert [row["f1"] for row in evaluation.per_class(labels, logits)] == found.per_class["f1"].tolist()


def test_a_page_holds_the_ends_of_a_table_of_very_many_rows() -> None:
    rows = tuple((str(number), "x") for number in range(10_000))
    shown = Table("t", ("number", "x"), rows, "t.csv").shown
    assert len(shown) == MOST + 1
    assert (shown[0], shown[-1]) == (rows[0], rows[-1])
    assert "9,800 more in t.csv" in shown[MOST // 2][0]
    assert Table("t", ("number", "x"), rows[:MOST], "t.csv").shown == rows[:MOST]


def test_the_planner_plays_ten_thousand_steps() -> None:
    loads = [Load("bank", (), 1, 5.0), *(Load(f"run {number}", ("bank",), 1, 1.0) for number in range(10_000))]
    assert makespan(loads, 10, 10.0) == pytest.approx(5 + 1000)
