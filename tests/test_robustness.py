from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from difficult_folders import ARMS, ROBUSTNESS, fractions, write_robustness
from study_folders import lay_down
from tlkd import statistics
from tlkd.errors import BadInput
from tlkd.folder import StudyFolder
from tlkd.robustness import ALL, Robustness, find


def read(folder: StudyFolder) -> Robustness | None:
    return find(folder, folder.finished())


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    laid = lay_down(tmp_path / "s", seeds=3, per_class=2, epochs=2, robustness=ROBUSTNESS,
                    conditions=[{"name": "clean"}, *fractions(0.1)])
    write_robustness(laid, {"tl_kd": 0.05})
    return laid


def test_curves_are_arrays_of_seeds_and_degrees(folder: StudyFolder) -> None:
    found = read(folder)
    assert found is not None and found.kinds == ("gaussian_noise", "center_black", "low_pass")
    assert len(found.curves) == 2 * 2 * 3
    noise = found.curves[0]
    assert (noise.arm, noise.condition, noise.degrees) == ("tl", "clean", (1.0, 3.0, 5.0))
    table = pd.read_csv(folder.path / "robustness" / "tl-clean-1" / "robustness.csv")
    np.testing.assert_array_equal(noise.accuracy[1], table.accuracy[:3])
    assert found.curves[2].distortions == ("low-pass to 0.25", "low-pass to 0.5")
    assert np.isnan(found.curves[2].degrees).all()


def test_levels_are_means_over_degrees_with_gains_paired_by_seed(folder: StudyFolder) -> None:
    found = read(folder)
    assert found is not None
    levels = {(each.arm, each.condition, each.kind): each for each in found.levels}
    tl, kd = (levels[arm, "clean", ALL] for arm in ("tl", "tl_kd"))
    every = np.concatenate([each.accuracy for each in found.curves if (each.arm, each.condition) == ("tl", "clean")], 1)
    np.testing.assert_allclose(tl.accuracy, every.mean(axis=1))
    np.testing.assert_allclose(kd.gains, kd.accuracy - tl.accuracy)
    assert (kd.low, kd.high) == pytest.approx(statistics.t_interval(kd.gains, 0.05)) and kd.low < 0.05 < kd.high
    assert len(tl.gains) == 0 and np.isnan(tl.low)


def test_what_the_study_does_not_ask_for_now_is_passed_over(folder: StudyFolder) -> None:
    path = folder.path / "study.yaml"
    path.write_text(path.read_text().replace("  - 3\n", ""))
    found = read(StudyFolder(folder.path))
    assert found is not None and found.curves[0].degrees == (1.0, 5.0)


def test_a_seed_without_some_degree_is_left_out(folder: StudyFolder) -> None:
    path = folder.path / "robustness" / "tl_kd-clean-1" / "robustness.csv"
    pd.read_csv(path).drop(index=1).to_csv(path, index=False)
    found = read(folder)
    assert found is not None
    seeds = {(each.arm, each.kind): each.seeds for each in found.curves if each.condition == "clean"}
    assert seeds["tl_kd", "gaussian_noise"] == (0, 2) and seeds["tl_kd", "low_pass"] == (0, 1, 2)
    [kd] = [each for each in found.levels if (each.arm, each.condition, each.kind) == ("tl_kd", "clean", ALL)]
    assert len(kd.gains) == 2


def test_nothing_asked_nothing_there_and_something_damaged(folder: StudyFolder, tmp_path: Path) -> None:
    assert read(lay_down(tmp_path / "a", seeds=1, per_class=2, epochs=2, arms=ARMS)) is None
    assert read(lay_down(tmp_path / "b", seeds=1, per_class=2, epochs=2, robustness=ROBUSTNESS)) is None
    (folder.path / "robustness" / "tl-clean-0" / "robustness.csv").write_text("kind,degree\ngaussian_noise,1\n")
    with pytest.raises(BadInput, match=r"tl-clean-0/robustness.csv: cannot be read"):
        read(folder)
