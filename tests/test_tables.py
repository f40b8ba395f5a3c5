import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sealed_folders
from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import contributions, explained, sections, tables
from tlkd.findings import Findings, find
from tlkd.folder import Predictions, StudyFolder, TeacherFit, save_predictions

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
    teacher = folder.teacher_path(TeacherFit("lite1"))
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


# --- explanations -----------------------------------------------------------------------------------------------------

SUMS = {  # of both arms, by hand: foreground pos, neg, background pos, neg for six images, cat and dog by turns
    "tl": [(4, -1, 4, -2), (2, -2, 6, -1), (3, -1, 1, -1), (1, 0, 3, -4), (5, -2, 5, 0), (2, -1, 2, -2)],
    "tl_kd": [(6, -1, 2, -3), (4, -1, 4, -1), (3, -2, 2, -1), (2, -1, 2, -1), (8, -3, 2, -1), (1, -1, 3, -1)]}


@pytest.fixture(scope="module")
def attended(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, Findings]:
    """Two classes, six masked images, two seeds of the same sums (seed 1's share is .1 higher for TL+KD)."""
    folder = lay_down(tmp_path_factory.mktemp("attended"), classes=("cat", "dog"), per_class=3, seeds=2, epochs=3,
                      data={"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, explanation={})
    write_explanations(folder.path, images=6, masked=6, uncertain=1, pictures=0, side=8)
    for run in folder.finished():
        path = explained.place(folder, run.run_id) / "regions.csv"
        table = pd.read_csv(path)
        for column, name in enumerate(("fg_pos", "fg_neg", "bg_pos", "bg_neg")):
            table[name] = [row[column] for row in SUMS[run.arm.name]]
        for side in ("fg", "bg"):
            table[f"{side}_diff"] = table[f"{side}_pos"] + table[f"{side}_neg"]
        table["positive_share"] = table.fg_pos / (table.fg_pos + table.bg_pos) + (
            0.1 if run.run_id == "tl_kd-clean-1" else 0.0)
        table.to_csv(path, index=False)
        sealed_folders.reseal(path.parent)
    return folder, find(folder)


def test_table_6_3_by_hand(attended: tuple[StudyFolder, Findings]) -> None:
    folder, found = attended
    frame = tables.contributions(found, 0)
    assert frame["class"].tolist() == ["cat", "dog"] and frame.sample_id.tolist() == ["test/00000.png",
                                                                                      "test/00003.png"]
    cat = frame.iloc[0]
    assert cat[["tl_fg_pos", "tl_fg_neg", "tl_fg_diff_A", "tl_bg_pos", "tl_bg_neg", "tl_bg_diff_C"]].tolist() == [
        4, -1, 3, 4, -2, 2]
    assert cat[["kd_fg_pos", "kd_fg_neg", "kd_fg_diff_B", "kd_bg_pos", "kd_bg_neg", "kd_bg_diff_D"]].tolist() == [
        6, -1, 5, 2, -3, -1]
    assert cat[["ratio_A_over_B", "ratio_C_over_D", "ratio_AB_over_CD"]].tolist() == pytest.approx([0.6, -2, -0.3])
    assert (cat.seed, cat.condition, cat.arm) == (0, "clean", "tl_kd")
    frame.to_csv(folder.path / "contributions.csv", index=False)
    assert contributions.read(folder.path / "contributions.csv").classes == ("cat", "dog")  # as `tlkd regions` does
    assert found.explanations is not None
    shown = sections.contributions(found, found.explanations.foregrounds[0], 0)
    assert shown is not None
    assert shown.rows[0] == ("cat", "4.00", "\N{MINUS SIGN}1.00", "3.00", "4.00", "\N{MINUS SIGN}2.00", "2.00", "6.00",
                             "\N{MINUS SIGN}1.00", "5.00", "2.00", "\N{MINUS SIGN}3.00", "\N{MINUS SIGN}1.00", "0.60",
                             "\N{MINUS SIGN}2.00", "\N{MINUS SIGN}0.30")
    assert sum(over for _, over in shown.groups) == len(shown.heads) == 16


def test_table_6_4_takes_the_second_images(attended: tuple[StudyFolder, Findings]) -> None:
    frame = tables.contributions(attended[1], 1)
    assert frame.sample_id.tolist() == ["test/00001.png", "test/00004.png"]
    assert frame.tl_fg_diff_A.tolist() == [0, 3] and frame.kd_fg_diff_B.tolist() == [3, 5]
    assert math.isnan(tables.contributions(attended[1], 0).ratio_C_over_D.iloc[1]) is False
    assert tables.contributions(attended[1], 5).empty


def test_table_6_4_is_of_the_first_five_classes(tmp_path: Path) -> None:
    classes = tuple(f"kind{number}" for number in range(7))
    folder = lay_down(tmp_path / "s", classes=classes, per_class=2, seeds=1, epochs=2, explanation={},
                      data={"source": "folder:somewhere", "augment": [], "masks": "masks.json"})
    found = find(write_explanations(folder.path, images=14, masked=14, pictures=0, side=8))
    assert tables.contributions(found, 0)["class"].tolist() == list(classes)
    assert tables.contributions(found, 1)["class"].tolist() == list(classes[:5])


def test_shares_by_hand(attended: tuple[StudyFolder, Findings]) -> None:
    found = attended[1]
    tl, kd = ([row[0] / (row[0] + row[2]) for row in SUMS[arm]] for arm in ("tl", "tl_kd"))
    frame = tables.foreground_images(found)
    assert frame.tl.tolist() == pytest.approx(tl)
    assert frame.share.tolist() == pytest.approx([value + 0.05 for value in kd])
    assert frame.difference.tolist() == pytest.approx([b + 0.05 - a for a, b in zip(tl, kd, strict=True)])
    assert frame["class"].tolist() == ["cat"] * 3 + ["dog"] * 3 and frame.uncertain.tolist() == [1, 0, 0, 0, 0, 0]
    rows = tables.foreground(found).set_index("on")
    everything, certain = rows.loc["all images with a mask"], rows.loc["without the masks marked uncertain"]
    assert everything.gain == pytest.approx(frame.difference.mean()) and everything.images == 6
    assert certain.gain == pytest.approx(frame.difference[1:].mean()) and certain.images == 5
    assert everything.tl_mean == pytest.approx(np.mean(tl)) and everything.sd == pytest.approx(0.1 / math.sqrt(2))
    mean = tables.attention(found).set_index(["network", "metric"])
    assert mean.loc[("tl_kd", "positive_share"), "mean"] == pytest.approx(np.mean(kd) + 0.05)
    assert mean.loc[("tl_kd", "positive_share"), "sd"] == pytest.approx(0.1 / math.sqrt(2))
    assert mean.loc[("masks", "area"), "mean"] == pytest.approx(frame.area.mean())
    assert ("teacher lite1", "pointing") in mean.index
    assert len(tables.all_regions(found)) == 5 * 6


def test_observations_by_hand(attended: tuple[StudyFolder, Findings]) -> None:
    frame = tables.observations(attended[1])
    over = frame[frame.seed.isna()].set_index(["observation", "comparison"])
    diff = over.loc[(2, "foreground diff (A, B), TL against TL+KD")]
    assert (diff.before, diff["after"], diff.rises, diff.falls, diff.n) == (1.5, 2.0, 3, 2, 6)
    pos = over.loc[(4, "background pos, TL against TL+KD")]
    assert (pos.rises, pos.falls) == (2, 4) and pos.two_scales
    within = over.loc[(1, "foreground pos against |neg|, TL")]
    assert (within.before, within["after"], within.rises, within.two_scales) == (1.0, 2.5, 5, False)
    assert len(frame) == 8 * 3 and frame[frame.seed == 1].p.notna().all()
    found = attended[1]
    assert found.explanations is not None
    shown = sections.observations(found, found.explanations.foregrounds[0])
    assert [row[0] for row in shown.rows] == ["1", "1", "2", "3", "4", "5", "", ""]
    assert shown.rows[2][2:5] == ("1.50", "2.00", "3 of 6")
    assert shown.rows[7][1].endswith("(%)")


def test_verdicts_hold_all_three_hypotheses(attended: tuple[StudyFolder, Findings]) -> None:
    row = tables.verdicts(attended[1]).iloc[0]
    assert row.hypothesis_2 == "inconclusive" and row.hypothesis_1 == attended[1].word(attended[1].contrasts[0])
    facts = dict(sections.explanation_facts(attended[1]))
    assert facts["images"] == "6 test images, 6 with a mask, 1 of these marked uncertain"
    assert facts["networks"] == "TL: 2 seeds; TL+KD: 2 seeds; teacher lite1"
    assert facts["output"].startswith("the logit of the true label") and facts["sign split"].endswith("(channel)")
    assert facts["background"] == "20 training images drawn by data_seed" and "of its range" in facts["additivity"]


def test_tables_of_explanations_have_their_columns_even_without_rows(
        tmp_path: Path, attended: tuple[StudyFolder, Findings]) -> None:
    folder = lay_down(tmp_path / "s", classes=("cat", "dog"), per_class=3, seeds=1, epochs=2, explanation={"images": 3})
    write_explanations(folder.path, images=6, masked=0, uncertain=0, pictures=0, side=8)
    empty, full = tables.draw(find(folder)), tables.draw(attended[1])
    assert empty.keys() == full.keys()
    for name in ("foreground", "observations", "contributions", "contributions_again", "foreground_images", "regions"):
        assert empty[name].empty and list(empty[name].columns) == list(full[name].columns), name
