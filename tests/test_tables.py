import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study_folders import lay_down
from tlkd import sections, tables
from tlkd.findings import Findings, find
from tlkd.folder import Predictions, StudyFolder, save_predictions

LABELS = np.array([0] * 4 + [1] * 4)
PREDICTED = {("tl", 0): [0, 0, 0, 1, 1, 1, 0, 0], ("tl", 1): [0, 0, 1, 1, 1, 1, 1, 0],
             ("tl_kd", 0): [0, 0, 0, 0, 1, 1, 1, 0], ("tl_kd", 1): [0, 0, 0, 1, 1, 1, 1, 0]}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, Findings]:
    """Two classes, four test images each, two seeds, with predictions that can be counted by hand."""
    folder = lay_down(tmp_path_factory.mktemp("small"), classes=("cat", "dog"), per_class=4, seeds=2, epochs=4)
    for run in folder.runs():
        path = folder.run_path(run)
        logits = 2.0 * np.eye(2)[PREDICTED[run.arm.name, run.seed]]
        save_predictions(path / "predictions.npz", Predictions(np.arange(8).astype(str), LABELS,
                                                               logits.astype(np.float32)))
        curve = [0.5, 0.6, 0.8, 0.7] if run.arm.name == "tl" else [0.4, 0.8 + 0.05 * run.seed, 0.8, 0.9]
        history = pd.read_csv(path / "history.csv")
        history["dev_accuracy"] = curve
        history.to_csv(path / "history.csv", index=False)
    teacher = folder.teacher_path("lite1")
    save_predictions(teacher / "predictions.npz", Predictions(np.arange(8).astype(str), LABELS,
                                                              (3.0 * np.eye(2)[LABELS]).astype(np.float32)))
    return folder, find(folder)


def test_table_6_1_by_hand(small: tuple[StudyFolder, Findings]) -> None:
    frame = tables.metrics(small[1]).set_index(["arm", "metric"])
    assert frame.loc[("tl", "accuracy"), "mean"] == pytest.approx((5 / 8 + 5 / 8) / 2)
    assert frame.loc[("tl_kd", "accuracy"), "mean"] == pytest.approx((7 / 8 + 6 / 8) / 2)
    assert frame.loc[("tl_kd", "accuracy"), "sd"] == pytest.approx(math.sqrt(2) / 16)
    assert frame.loc[("tl", "precision"), "mean"] == pytest.approx(((3 / 5 + 2 / 3) / 2 + (2 / 3 + 3 / 5) / 2) / 2)
    better = tables.improvements(small[1]).set_index("metric").improvement
    assert better["accuracy"] == pytest.approx(13 / 16 - 10 / 16)


def test_table_6_2_by_hand(small: tuple[StudyFolder, Findings]) -> None:
    frame = tables.classes(small[1])
    rows = frame[frame.row == "class"].set_index("class")
    assert rows.loc["cat", ["tl_true_positives", "tl_kd_true_positives", "difference"]].tolist() == [2.5, 3.5, 1.0]
    assert rows.loc["cat", "error_decrement"] == pytest.approx(1 / 1.5)
    assert rows.loc["dog", "error_decrement"] == pytest.approx(0.5 / 1.5)
    totals = frame.set_index("row").error_decrement
    assert totals["mean"] == pytest.approx(0.5) and totals["pooled"] == pytest.approx(1.5 / 3)
    assert frame["class"].tolist()[:2] == ["cat", "dog"]  # sorted by TL+KD's recall


def test_gains_confusion_and_mcnemar_by_hand(small: tuple[StudyFolder, Findings]) -> None:
    gains = tables.gains(small[1])
    assert gains.gain.tolist() == pytest.approx([2 / 8, 1 / 8])
    assert gains.mcnemar_p.tolist() == [0.5, 1.0]  # 2 images against none, 1 against none
    counts = tables.confusion(small[1]).set_index(["arm", "true", "predicted"]).mean_count
    assert counts["tl", "cat", "dog"] == 1.5 and counts["tl_kd", "dog", "cat"] == 1.0


def test_classes_by_hand(small: tuple[StudyFolder, Findings]) -> None:
    frame = tables.per_class(small[1]).set_index(["arm", "class"])
    assert frame.loc[("tl", "cat"), "precision"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert frame.loc[("tl", "cat"), "recall"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert frame.loc[("tl_kd", "dog"), "f1"] == pytest.approx((2 * 3 / (4 + 3) + 2 * 3 / (4 + 4)) / 2)
    shown = sections.per_class(small[1], small[1].groups)
    assert [row[0] for row in shown.rows] == ["cat", "dog"]  # as in figure 6.1
    assert shown.heads[1:4] == ("TL, precision", "TL, recall", "TL, F1")
    assert shown.rows[0][1:4] == ("63.3", "62.5", "61.9")


def test_thresholds_by_hand(small: tuple[StudyFolder, Findings]) -> None:
    frame = tables.thresholds(small[1]).set_index("threshold")
    assert frame.index.max() == 0.9 and frame.primary.sum() == 1 and frame.primary[0.8]
    row = frame.loc[0.8]
    assert (row.tl_mean, row.tl_kd_mean, row.gain) == (3, 2, 1)
    assert (frame.loc[0.9, "tl_reached"], frame.loc[0.9, "tl_kd_reached"]) == (0, 2)
    each = tables.epochs_to_threshold(small[1])
    assert each[each.threshold == 0.9].tl_epoch.isna().all()
    assert each[each.threshold == 0.85].tl_kd_epoch.tolist() == [4, 2]


def test_teacher_agreement_and_curves_by_hand(small: tuple[StudyFolder, Findings]) -> None:
    agreement = tables.agreement(small[1]).set_index("arm")
    assert agreement.top1_mean.to_dict() == pytest.approx({"tl": 5 / 8, "tl_kd": 13 / 16})
    curves = tables.curves(small[1]).set_index(["arm", "epoch"])
    assert curves.loc[("tl_kd", 2), "mean"] == pytest.approx(0.825)
    assert curves.loc[("tl_kd", 2), "sd"] == pytest.approx(0.05 / math.sqrt(2))
    assert tables.teachers(small[1]).accuracy.tolist() == [1.0]


def test_every_table_has_its_columns_even_without_rows(tmp_path: Path) -> None:
    empty = tables.draw(find(lay_down(tmp_path / "s", seeds=1, failed=("tl-clean-0", "tl_kd-clean-0"))))
    full = tables.draw(find(lay_down(tmp_path / "t", seeds=2)))
    assert empty.keys() == full.keys()
    assert all(list(empty[name].columns) == list(full[name].columns) for name in full)
    assert len(empty["failures"]) == 2 and empty["metrics"].empty
