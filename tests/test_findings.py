import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study_folders import lay_down
from tlkd import report, sections, store, tables
from tlkd.contrasts import image_weights
from tlkd.errors import BadInput
from tlkd.findings import Findings, find
from tlkd.folder import StudyFolder, TeacherFit, load_predictions, save_predictions
from tlkd.summary import hurts, summarise

TWO = {"arms": [{"name": "tl", "kind": "tl"}, {"name": "soft", "kind": "tl_kd", "teacher": "lite1"},
                {"name": "hard", "kind": "tl_kd", "teacher": "lite2", "soft_weight": 1.0}],
       "teachers": {"lite1": {"model": "packaged:efficientnet_lite1"},
                    "lite2": {"model": "packaged:efficientnet_lite2", "per_seed": True}}}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, Findings]:
    folder = lay_down(tmp_path_factory.mktemp("planted"))
    return folder, find(folder)


def test_a_planted_gain_is_supported_and_said(planted: tuple[StudyFolder, Findings]) -> None:
    found = planted[1]
    [contrast] = found.contrasts
    assert contrast.verdict.word == contrast.word == "supported"
    assert contrast.verdict.gain == pytest.approx(0.06, abs=0.01)
    assert contrast.verdict.interval.low < contrast.verdict.gain < contrast.verdict.interval.high
    assert contrast.verdict.interval.covers == "seeds and test images, given one teacher"
    summary = summarise(found)
    assert summary.headline.startswith("The teacher helps: TL+KD is better than TL by ")
    assert [[each.word for each in one.evidence] or one.word for one in summary.statements] == [
        ["supported"], "not examined", ["supported"], "not examined"]


def test_the_gain_is_that_of_the_predictions(planted: tuple[StudyFolder, Findings]) -> None:
    folder, found = planted
    accuracy: dict[str, list[float]] = {"tl": [], "tl_kd": []}
    for run in folder.finished():
        one = folder.predictions(run)
        accuracy[run.arm.name].append(float((one.logits.argmax(1) == one.labels).mean()))
    gains = np.array(accuracy["tl_kd"]) - np.array(accuracy["tl"])
    [contrast] = found.contrasts
    np.testing.assert_allclose(contrast.gains, gains, atol=1e-12)
    assert contrast.verdict.gain == pytest.approx(gains.mean(), abs=1e-12)
    assert contrast.improvements["accuracy"] == pytest.approx(gains.mean(), abs=1e-12)


def test_a_planted_null_is_inconclusive_and_says_what_is_needed(tmp_path: Path) -> None:
    found = find(lay_down(tmp_path / "s", gain=0.0, earlier=0.0))
    [contrast] = found.contrasts
    assert contrast.verdict.word == "inconclusive"
    assert contrast.verdict.needed is not None
    summary = summarise(found)
    assert summary.headline.startswith("These runs cannot tell whether the teacher helps")
    text = " ".join(summary.statements[0].evidence[0].details)
    assert "To show a gain of 0.5 points with 80 % power" in text
    seeds, images, _ = contrast.verdict.needed
    assert f"at least {seeds} seeds with these 400 test images, or {images:,} test images with these 10 seeds." in text


def test_harm_is_refuted(tmp_path: Path) -> None:
    found = find(lay_down(tmp_path / "s", gain=-0.05, earlier=-2.0))
    [contrast] = found.contrasts
    assert contrast.word == "refuted" and contrast.verdict.harmful
    assert contrast.speed.word == "refuted"
    few = dataclasses.replace(contrast, verdict=dataclasses.replace(contrast.verdict, p_seed_adjusted=0.25))
    assert hurts(contrast) and not hurts(few)
    assert summarise(found).headline.startswith("The teacher hurts: TL+KD is worse than TL by ")


def test_metrics_without_confusion_do_not_support_hypothesis_1(planted: tuple[StudyFolder, Findings]) -> None:
    [contrast] = planted[1].contrasts
    assert contrast.confusions.agrees
    against = dataclasses.replace(contrast, confusions=dataclasses.replace(contrast.confusions, gaining=3, losing=7))
    assert against.verdict.word == "supported" and against.word == "inconclusive"


def test_planted_curves_are_found_earlier_at_the_primary_threshold(planted: tuple[StudyFolder, Findings]) -> None:
    [contrast] = planted[1].contrasts
    speed = contrast.speed
    assert speed.primary is not None
    half = [one.threshold for one in speed.thresholds if 2 * one.tl_reached >= 10]
    assert speed.primary.threshold == max(half)
    assert speed.thresholds[-1].tl_reached + speed.thresholds[-1].tl_kd_reached > 0
    assert speed.word == "supported" and speed.primary.gain > 1
    assert len(speed.crossings) == 1 and 1 < speed.crossings[0] <= 5  # it starts lower and overtakes


def test_balanced_accuracy_weighs_images_by_class(tmp_path: Path) -> None:
    sizes = (5, 10, 20, 40, 80, 80, 80, 80, 80, 80)
    found = find(lay_down(tmp_path / "s", per_class=sizes, verdict={"metric": "balanced_accuracy"}))
    [contrast] = found.contrasts
    assert contrast.verdict.gain == pytest.approx(contrast.improvements["balanced_accuracy"], abs=1e-12)
    assert contrast.verdict.gain != pytest.approx(contrast.improvements["accuracy"], abs=1e-6)
    assert not found.balanced
    weights = image_weights(np.array([0, 0, 0, 1]), "balanced_accuracy")
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2])


def test_two_arms_form_one_family_and_only_a_single_teacher_is_a_condition(tmp_path: Path) -> None:
    found = find(lay_down(tmp_path / "s", gain={"soft": 0.05, "hard": -0.03}, **TWO))
    soft, hard = found.contrasts
    assert (soft.label, hard.label) == ("TL+KD (soft)", "TL+KD (hard)")
    assert soft.verdict.contrasts == hard.verdict.contrasts == 2
    assert soft.verdict.p_seed_adjusted == pytest.approx(2 * soft.verdict.p_seed)
    assert soft.verdict.interval.covers.endswith("given one teacher")
    assert "given" not in hard.verdict.interval.covers
    assert len(found.agreements) == 6
    assert summarise(found).headline == "TL+KD (soft): better than TL in test accuracy. TL+KD (hard): worse than TL."


def test_one_seed_failures_and_a_lone_arm_are_said_in_words(tmp_path: Path) -> None:
    one = summarise(find(lay_down(tmp_path / "one", seeds=1)))
    assert "one seed gives no interval" in one.statements[0].evidence[0].details[0]
    assert any(each.grave and "Too few seeds" in each.title for each in one.cautions)
    failed = find(lay_down(tmp_path / "failed", seeds=3, failed=("tl-clean-1",), missing=("tl_kd-clean-2",)))
    assert failed.contrasts[0].seeds == (0,)
    [caution] = [each for each in summarise(failed).cautions if "missing" in each.title]
    assert caution.title == "2 of 6 runs are missing"
    assert "tl-clean-1 (epoch 3, step 4: the loss is nan)" in caution.text
    alone = summarise(find(lay_down(tmp_path / "alone", seeds=2, arms=[{"name": "tl", "kind": "tl"}], teachers={})))
    assert alone.headline == "Nothing to compare: TL is the study's only arm."
    nothing = summarise(find(lay_down(tmp_path / "none", seeds=1, failed=("tl-clean-0", "tl_kd-clean-0"))))
    assert nothing.headline == "Nothing to compare: no run has finished."
    without = {"arms": [{"name": "kd", "kind": "tl_kd", "teacher": "lite1"}]}
    assert "no arm of kind tl" in summarise(find(lay_down(tmp_path / "kd", seeds=2, **without))).headline


def test_grave_things_are_said(tmp_path: Path) -> None:
    found = find(lay_down(tmp_path / "s", selection="test", teacher_accuracy=0.7, seeds=6))
    titles = {each.title: each.grave for each in summarise(found).cautions}
    assert titles["Chosen on the test split"]
    assert "The teacher lite1 is no better than the student alone" in titles
    assert "Few seeds" in titles
    assert found.teachers[0].no_better


def test_a_weak_teacher_stands_beside_the_headline(tmp_path: Path, planted: tuple[StudyFolder, Findings]) -> None:
    [line] = summarise(find(lay_down(tmp_path / "s", teacher_accuracy=0.6, seeds=2))).beside
    assert line.startswith("The teacher lite1 is no better than the student alone: it has 60.")
    assert summarise(planted[1]).beside == ()


def test_an_arm_that_starts_from_tl_gets_no_verdict_on_epochs(tmp_path: Path) -> None:
    student = {"model": "packaged:efficientnet_lite0", "input_size": 48, "start": "tl"}
    found = find(lay_down(tmp_path / "s", seeds=6, student=student))
    assert found.contrasts[0].speed.word == "not examined" and found.contrasts[0].word == "supported"
    summary = summarise(found)
    assert summary.headline.startswith("TL+KD is better than TL by ")
    assert summary.headline.endswith("; but it trained twice as long.")
    [evidence] = summary.statements[2].evidence
    assert evidence.sentence == ("Not examined: TL+KD starts from the finished TL student, so its epochs are not "
                                 "comparable.")
    [caution] = [each for each in summary.cautions if each.title == "More than the loss differs"]
    assert caution.grave and "twice as long" in caution.text


def test_an_arm_without_soft_labels_is_left_out_of_the_family(tmp_path: Path) -> None:
    arms = [*TWO["arms"][:2], {"name": "none", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0}]
    found = find(lay_down(tmp_path / "s", gain={"soft": 0.05, "none": 0.05}, arms=arms))
    soft, none = found.contrasts
    assert soft.verdict.contrasts == 1 and soft.verdict.p_seed_adjusted == soft.verdict.p_seed
    assert soft.speed.contrasts == 1
    assert none.word == none.speed.word == "not examined"
    summary = summarise(found)
    assert summary.headline.startswith("The teacher helps: TL+KD (soft) is better")
    assert "equal to TL by construction" in summary.statements[0].evidence[1].sentence
    assert [row[1] for row in sections.verdicts(found).rows] == ["supported", "equal to TL by construction"]
    assert tables.verdicts(found).word.tolist()[1] == "equal to TL by construction"
    only = find(lay_down(tmp_path / "t", seeds=2, arms=[arms[0], arms[2]]))
    assert summarise(only).headline == "Nothing to compare: with soft weight 0, TL+KD equals TL by construction."


def test_curves_are_compared_over_the_epochs_that_all_runs_trained(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=6, epochs=200)
    path = folder.run_path(folder.finished()[0]) / "history.csv"
    pd.read_csv(path).head(15).to_csv(path, index=False)
    found = find(folder)
    assert found.contrasts[0].speed.horizon == 15
    [evidence] = summarise(found).statements[2].evidence
    assert evidence.sentence.startswith("Within the first 15 epochs, which all runs trained, TL+KD reaches ")
    assert "measured on 400 dev images: the verdict covers the chance over seeds only" in evidence.details[0]


def test_impossible_intervals_are_not_shown(tmp_path: Path) -> None:
    found = find(lay_down(tmp_path / "s", seeds=2, per_class=1))
    [contrast] = found.contrasts
    around = dataclasses.replace(contrast.verdict.interval, low=-3.0, high=4.0)
    wide = dataclasses.replace(contrast, verdict=dataclasses.replace(contrast.verdict, interval=around))
    wider = dataclasses.replace(found, contrasts=(wide,))
    assert "interval \N{MINUS SIGN}100.0 to +100.0," in summarise(wider).statements[0].evidence[0].details[0]
    assert sections.verdicts(wider).rows[0][3] == "\N{MINUS SIGN}100.00 to +100.00"


def test_a_failed_teacher_is_said(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=2, failed=("tl_kd-clean-0", "tl_kd-clean-1"))
    shutil.rmtree(folder.teacher_path(TeacherFit("lite1")))
    store.replace_text(folder.teacher_failure_path(TeacherFit("lite1")), "epoch 1, step 2: the loss is nan\nand more\n")
    found = find(folder)
    assert found.teacher_failures == {"lite1": "epoch 1, step 2: the loss is nan"} and not found.teachers
    assert not found.agreements
    summary = summarise(found)
    assert summary.headline == ("Nothing to compare: no seed has a finished run in both arms, since the teacher lite1 "
                                "failed.")
    assert any(each.grave and each.title == "A teacher failed (lite1)" for each in summary.cautions)
    assert "teacher lite1" in tables.failures(found).run_id.tolist()
    assert "The teacher lite1 failed:" in report.write(folder.path).read_text()


def test_one_of_the_teachers_per_seed_may_fail(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=3, gain={}, failed=("hard-clean-0",), **TWO)
    shutil.rmtree(folder.teacher_path(TeacherFit("lite2", None, 0)))
    store.replace_text(folder.teacher_failure_path(TeacherFit("lite2", None, 0)), "why\n")
    found = find(folder)
    assert found.teacher_failures == {"lite2, seed 0": "why"}
    assert [len(each.metrics["accuracy"]) for each in found.teachers] == [1, 2]
    assert {len(each.top1) for each in found.agreements if each.teacher == "lite2"} == {2}


@pytest.mark.parametrize(("name", "text"), [
    ("runs/tl-clean-0/result.json", "{}"), ("runs/tl-clean-0/history.csv", "epoch\n1\n"),
    ("runs/tl-clean-0/predictions.npz", None), ("teachers/lite1/result.json", "{}"),
    ("teachers/lite1/result.json", None), ("teachers/lite1/predictions.npz", None), ("teachers/lite1", None),
    ("data.json", "{}"), ("stages.json", '[{"stage": "one"}]')])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str | None) -> None:
    folder = lay_down(tmp_path / "s", seeds=1, per_class=2, epochs=2)
    path = folder.path / name
    if text is not None:
        path.write_text(text)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(BadInput, match=name) as caught:
        find(folder)
    assert "\n" not in str(caught.value)


def test_predictions_for_other_images_are_refused(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=2)
    path = folder.run_path(folder.runs()[-1]) / "predictions.npz"
    one = load_predictions(path)
    save_predictions(path, dataclasses.replace(one, sample_ids=np.roll(one.sample_ids, 1)))
    with pytest.raises(BadInput, match=r"tl_kd-clean-1: its predictions are for other test images"):
        find(folder)


def test_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no study lies here"):
        find(StudyFolder(tmp_path))
