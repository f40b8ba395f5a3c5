"""Tables, figures, sentences and the page on one planted study with difficulties, controls, robustness and examples."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from difficult_folders import (
    ARMS,
    CONTROLS,
    ROBUSTNESS,
    blacks,
    fractions,
    noises,
    write_examples,
    write_robustness,
)
from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import difficulty_sections, difficulty_tables, figures, report, sections, store, tables
from tlkd.findings import Findings, find
from tlkd.folder import StudyFolder, TeacherFit
from tlkd.summary import Caution, summarise

ONLY = {"arms": ["tl", "tl_kd"]}
CLEAN: dict[str, Any] = {"name": "clean"}
CONDITIONS = [CLEAN, *({**each, **ONLY} for each in fractions(0.5, 0.01)), *fractions(0.1),
              *({**each, **ONLY} for each in [*noises(0.2, 0.4), *blacks(0.5, 0.9, 0.95, 1.0)]),
              {"name": "mixed", "train_fraction": 0.1, "label_noise": 0.4, **ONLY}]
LEVELS = {"few_50": 0.72, "few_10": 0.65, "few_1": 0.5, "noise_40": 0.6, "black_90": 0.6, "black_95": 0.55,
          "black_100": 0.5}
GAINS = {"smooth": 0.01, "shuffled": 0.03, "own": 0.06, "tl_kd": 0.06, ("tl_kd", "few_10"): 0.09,
         ("tl_kd", "few_1"): 0.14, ("tl_kd", "noise_20"): 0.0, ("tl_kd", "noise_40"): -0.05,
         ("tl_kd", "black_95"): 0.16}


class Page(HTMLParser):
    """The ids, targets and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = lay_down(tmp_path_factory.mktemp("hard"), gain=GAINS, level=LEVELS, arms=[*ARMS, *CONTROLS], epochs=4,
                      conditions=CONDITIONS, robustness=ROBUSTNESS, per_class=25, teachers={
                          "lite1": {"model": "packaged:efficientnet_lite1", "input_size": 64, "trained_on": "clean"}})
    write_robustness(folder, {"tl_kd": 0.03})
    write_examples(folder)
    report.write(folder.path)
    return folder


@pytest.fixture(scope="module")
def found(planted: StudyFolder) -> Findings:
    return find(planted)


def words(folder: Path) -> str:
    return " ".join(" ".join(Page((folder / "report.html").read_text()).words).split())


def cautions(folder: StudyFolder) -> dict[str, Caution]:
    return {each.title: each for each in summarise(find(folder)).cautions}


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_difficulties_and_no_leftovers(planted: StudyFolder) -> None:
    text, said = (planted.path / "report.html").read_text(), words(planted.path)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) and "{{" not in text and "{%" not in text
    assert {target[1:] for target in page.targets if target.startswith("#")} <= set(page.ids)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.targets)
    assert not re.search(r"\b(nan|None|inf)\b", said)
    for wanted in ("Train fraction (the thesis's figure 6.10)", "Label noise (the thesis's figure 6.11)",
                   "CenterBlack, side 0.89 to 1 (the thesis's figures 6.12 and 6.13)", "Trend and peak of the gain",
                   "The gain under every condition", "What the controls keep", "Accuracy on distorted test images",
                   "What the difficulties look like", "is fitted on the clean training set",
                   "labels the image that its"):
        assert wanted in said, wanted
    assert "11 conditions: clean; train fraction: 1 to 50 % (3); label noise: 20 to 40 % (2);" in said
    assert [place for place in ("convergence", "difficulties", "controls", "robustness", "teacher")
            if place in page.ids] == [each for each in page.ids if each in (
                "convergence", "difficulties", "controls", "robustness", "teacher")]


def test_only_base_conditions_have_figures_of_their_own(planted: StudyFolder) -> None:
    drawn = {path.stem for path in (planted.path / "figures").glob("*.svg")}
    assert drawn == {f"{each}_clean" for each in ("convergence", "calibration", "gains_tl_kd", "confusion_tl_kd",
                                                  "difference_tl_kd", "robustness")} | {
        "difficulty_train_fraction", "difficulty_label_noise", "difficulty_center_black", "examples",
        "examples_robustness"}
    for path in (planted.path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text())


def test_the_headline_and_hypotheses_1_to_3_stay_with_the_clean_condition(found: Findings) -> None:
    summary = summarise(found)
    assert summary.headline.startswith("The teacher helps: TL+KD is better than TL by ")
    assert [len(each.evidence) for each in summary.statements] == [1, 0, 1, 4]
    assert found.contrasts[0].verdict.contrasts == 1 and found.base == ("clean",)
    costs = sections.cost(found).rows
    assert len(costs) == 2 + 5 and costs[2][0] == "TL, 110 runs under 11 conditions"


def test_the_plain_summary_has_a_line_for_hypothesis_4(planted: StudyFolder) -> None:
    lines = (planted.path / "summary.txt").read_text().splitlines()
    assert lines[-1] == ("H4 TL+KD keeps its gain under difficulties: TL+KD, train fraction: supported; TL+KD, label "
                         "noise: refuted; TL+KD, CenterBlack, side 0.89 to 1: supported; TL+KD, mixed: supported")


def test_nothing_is_said_of_difficulties_without_any(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=2, per_class=4, epochs=2)
    report.write(folder.path)
    assert "Difficulties" not in words(folder.path) and "Controls" not in words(folder.path)
    assert summarise(find(folder)).statements[3].note == ("Not examined in this study. It asks for conditions other "
                                                          "than clean.")


# --- sentences --------------------------------------------------------------------------------------------------------


def test_hypothesis_4_in_sentences(found: Findings) -> None:
    few, noise, black, mixed = summarise(found).statements[3].evidence
    assert re.fullmatch(r"With 1 to 50 % of the training images, TL\+KD is on average \d+\.\d points above TL in test "
                        r"accuracy\. Its gain is largest at 1.%, \+1\d\.\d points, \+\d\.\d at clean \(100.%\)\.",
                        few.sentence)
    assert noise.word == "refuted" and "points below TL" in noise.sentence
    assert "Its gain is largest at clean (0" in noise.sentence
    assert "on 50 to 100 % of the training images" in black.sentence and "largest at 95" in black.sentence
    assert mixed.sentence.startswith("Under mixed (10 % of the training images, 40 % of the labels made wrong), TL+KD "
                                     "is ")
    average, trend, peak = few.details
    assert "points on average over 3 places (95 % interval" in average and "over 4 pairs of arm and series" in average
    assert trend.endswith("it rises with the difficulty.") and "Holm-adjusted over 3 pairs" in trend
    assert "which does not allow for the choice of the place" in peak
    assert re.search(r"An inner place has a larger gain than both ends \(p.*\): \+\d", " ".join(black.details))
    assert "That an inner place exceeds both ends is not shown" in peak


def test_many_pieces_of_evidence_are_told_in_fewer_words(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=2, per_class=4, epochs=2, conditions=[
        CLEAN, *noises(0.4), *fractions(0.1), *blacks(0.5), *({"name": f"m{each}", "train_fraction": 0.1 * each,
                                                               "label_noise": 0.2} for each in (1,)),
        {"name": "blurred", "corruption": {"kind": "gaussian_blur"}}])
    evidence = summarise(find(folder)).statements[3].evidence
    assert len(evidence) == 5 and not any("Trend:" in text for each in evidence for text in each.details)
    assert "With 2 seeds p over seeds cannot fall below 1.000: nothing can be supported." in evidence[0].details[0]


def test_controls_in_sentences(found: Findings) -> None:
    (base, clean), (hard, few) = difficulty_sections.reasons(found)
    assert (base, hard) == ("clean", "few_10")
    for text in (clean, few):
        assert re.match(r"Of TL\+KD's gain of \d+\.\d points, label smoothing keeps .?\d+ % \(.*\), TL\+KD shuffled "
                        r"keeps \d+ % \(.*\) and self-distillation keeps \d+ %", text), text
    assert "so softening alone does not give it and knowing which classes are alike matters" in clean
    table = difficulty_sections.controls(found, base=True)
    assert table is not None and [row[0] for row in table.rows] == ["label smoothing", "TL+KD shuffled",
                                                                    "self-distillation"]
    assert "over 6 pairs of control and condition" in table.note


def test_controls_of_an_arm_that_gains_nothing(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=3, per_class=4, epochs=2, gain={"own": 0.1}, arms=[*ARMS, *CONTROLS])
    [(_, text)] = difficulty_sections.reasons(find(folder))
    assert text.startswith("TL+KD has no sure gain (") and "Against TL: label smoothing" in text
    report.write(folder.path)
    assert "Controls: why the teacher helps" in words(folder.path)
    assert not (folder.path / "tables" / "series.csv").exists()


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_csv_files_hold_the_numbers(planted: StudyFolder, found: Findings) -> None:
    read = {name: pd.read_csv(planted.path / "tables" / f"{name}.csv")
            for name in ("difficulties", "series", "controls", "robustness")}
    hard = read["difficulties"]
    assert hard.condition.tolist() == [each["name"] for each in CONDITIONS] and set(hard.arm) == {"tl_kd"}
    assert hard.gain.to_numpy() == pytest.approx((hard["mean"] - hard.tl_mean).to_numpy(), abs=1e-9)
    assert hard.loc[0, "contrasts"] == 1 and set(hard.contrasts[1:]) == {10}
    assert hard.train_fraction.tolist()[:4] == [1.0, 0.5, 0.01, 0.1] and hard.corrupted.max() == 1.0
    assert hard.teacher_accuracy.nunique() == 1  # one teacher, fitted on the clean training set
    series = read["series"].set_index("series")
    assert series.word.to_dict() == {"train_fraction": "supported", "label_noise": "refuted",
                                     "center_black": "supported", "mixed": "supported"}
    assert series.trend.to_dict()["train_fraction"] == "rises" and series.trend.isna()["mixed"]
    assert series.loc["center_black", "peak"] == "black_95" and bool(series.loc["center_black", "peak_inside"])
    assert series.loc["train_fraction", "places"] == "clean; few_50; few_10; few_1"
    shares = [float(each.split()[1]) for each in series.loc["center_black", "peak_shares"].split("; ")]
    assert sum(shares) == pytest.approx(1, abs=0.005) and len(shares) == 5
    controls = read["controls"]
    assert controls.kept.to_numpy() == pytest.approx((controls.control_gain / controls.kd_gain).to_numpy())
    assert len(controls) == 6 and set(controls.contrasts) == {6}
    assert set(read["robustness"].distortion) >= {"Gaussian noise, severity 3", "low-pass to 0.25", "mean"}
    assert len(pd.read_csv(planted.path / "tables" / "metrics.csv").condition.unique()) == 11
    assert set(pd.read_csv(planted.path / "tables" / "confusion.csv").condition) == {"clean"}


def test_the_tables_of_the_page(found: Findings) -> None:
    assert [row[:3] for row in difficulty_sections.courses(found).rows] == [
        ("train fraction", "TL+KD", "supported"), ("label noise", "TL+KD", "refuted"),
        ("CenterBlack, side 0.89 to 1", "TL+KD", "supported"), ("mixed, alone", "TL+KD", "supported")]
    shapes = difficulty_sections.shapes(found)
    assert shapes is not None and len(shapes.rows) == 3 and shapes.rows[0][2] == "rises"
    gains = difficulty_sections.gains(found)
    assert len(gains.rows) == 11 and gains.rows[0][:2] == ("clean", "as they are")
    assert {len(row) for row in gains.rows} == {len(gains.heads)} and "over 10 pairs of arm and condition" in gains.note
    assert {len(row) for row in shapes.rows} == {len(shapes.heads)}
    levels = difficulty_sections.robustness(found)
    assert levels.rows[-1][0] == "all degrees of all kinds" and len(levels.rows) == 4 * 5
    assert [gain for kind, arm, _, gain, *_ in levels.rows if arm == "TL"] == ["\N{EN DASH}"] * 4
    assert "conditions.few_10" in tables.settings(found.study).key.tolist()


def test_a_family_too_large_for_its_seeds_is_said(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=5, per_class=4, epochs=2, conditions=[CLEAN, *fractions(0.5, 0.1)])
    note = difficulty_sections.gains(find(folder)).note
    assert "With so many and 5 seeds no p over seeds can fall below 0.125: none of these alone can be sup" in note


def test_explained_difficulties_are_a_family_of_their_own(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=3, per_class=4, epochs=2, conditions=[CLEAN, *fractions(0.5, 0.1)],
                      explanation={"conditions": ["clean", "few_50", "few_10"]},
                      data={"source": "folder:somewhere", "augment": [], "masks": "masks.json"})
    write_explanations(folder.path, images=8, masked=8, pictures=1, side=8)
    report.write(folder.path)
    found = find(folder)
    assert found.explanations is not None
    sizes = {each.condition: each.everything.verdict.contrasts for each in found.explanations.foregrounds
             if each.everything is not None}
    assert sizes == {"clean": 1, "few_50": 2, "few_10": 2}
    assert [each.label for each in summarise(found).statements[1].evidence] == ["TL+KD"]
    assert "Pictures: few_10" in words(folder.path)


# --- what is missing, and what to beware of ---------------------------------------------------------------------------


def test_an_unfinished_condition_and_a_missing_seed(tmp_path: Path) -> None:
    missing = (*(f"tl_kd-few_50-{seed}" for seed in range(3)), "tl-few_10-1")
    folder = lay_down(tmp_path / "s", seeds=3, per_class=4, epochs=2, conditions=[CLEAN, *fractions(0.5, 0.1)],
                      missing=missing)
    report.write(folder.path)
    assert "No seed has a finished run in both arms under few_50." in words(folder.path)
    [evidence] = summarise(find(folder)).statements[3].evidence
    assert evidence.details[-1] == "few_50 is left out: no seed has a finished run in both arms."
    assert "2 seeds" in evidence.details[0]
    frame = difficulty_tables.series(find(folder)).iloc[0]
    assert frame["left_out"] == "few_50" and frame["common_seeds"] == 2


def test_no_difficult_run_is_finished(tmp_path: Path) -> None:
    missing = tuple(f"{arm}-few_10-{seed}" for arm in ("tl", "tl_kd") for seed in range(2))
    folder = lay_down(tmp_path / "s", seeds=2, per_class=4, epochs=2, conditions=[CLEAN, *fractions(0.1)],
                      missing=missing)
    report.write(folder.path)
    [evidence] = summarise(find(folder)).statements[3].evidence
    assert evidence.sentence == "Not examined: no seed has a finished run in both arms."
    alone = lay_down(tmp_path / "t", seeds=1, per_class=4, epochs=2, conditions=[CLEAN, *fractions(0.1)],
                     missing=("tl-clean-0", "tl_kd-clean-0", *missing))
    report.write(alone.path)
    assert summarise(find(alone)).statements[3].note == "No verdict: no run has finished."


def test_a_study_without_a_plain_condition_says_so(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=2, per_class=4, epochs=2, conditions=fractions(0.5, 0.1))
    report.write(folder.path)
    found = find(folder)
    assert found.base == ("few_50",) and [each.condition for each in found.contrasts] == ["few_50"]
    assert summarise(found).beside[0] == "The study has no condition without a difficulty: this is about few_50."
    assert {path.stem for path in (folder.path / "figures").glob("convergence*.svg")} == {"convergence_few_50"}


def test_what_a_teacher_knows_is_said(tmp_path: Path, planted: StudyFolder) -> None:
    one = cautions(planted)["The teacher lite1 knows more than its students"]
    assert "under few_50, few_1, few_10, noise_20 and 6 more it hands on knowledge" in one.text
    assert "The teacher lite1 sees the clean images" not in cautions(planted)
    teacher = {"model": "packaged:efficientnet_lite1", "input_size": 64, "labels": "clean_view"}
    folder = lay_down(tmp_path / "s", seeds=1, per_class=4, epochs=2, teachers={"lite1": teacher},
                      conditions=[CLEAN, *fractions(0.1), *blacks(0.5)])
    found = cautions(folder)
    assert "The teacher lite1 knows more than its students" not in found
    assert "while under black_50 the student sees it corrupted" in found["The teacher lite1 sees the clean images"].text
    assert "Under difficulties lite1 is fitted for each seed." in found["One teacher for all seeds"].text
    [said] = difficulty_sections.teaching(find(folder))
    assert "on the samples that its student draws" in said and "labels the clean image" in said


def test_arms_with_a_training_of_their_own_and_epochs_chosen_on_the_test_split(tmp_path: Path) -> None:
    arms = [ARMS[0], {**ARMS[1], "training": {"learning_rate": 0.1, "epochs": 2}}]
    found = cautions(lay_down(tmp_path / "s", seeds=1, per_class=4, epochs=2, arms=arms,
                              conditions=[CLEAN, *fractions(0.1)]))
    assert "TL+KD (learning_rate)" in found["Arms differ in more than the loss"].text
    path = tmp_path / "t"
    folder = lay_down(path, seeds=1, per_class=4, epochs=2, selection="test", conditions=[CLEAN, *fractions(0.1)])
    text = (path / "study.yaml").read_text().replace("early_stopping: null", "early_stopping: 10")
    (path / "study.yaml").write_text(text)
    one = cautions(StudyFolder(path))["Difficulties rescued by the test split"]
    assert one.grave and "`early_stopping`" in one.text
    assert "Difficulties rescued by the test split" not in cautions(folder)


def test_a_weak_teacher_under_difficulties_is_one_caution(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=2, per_class=4, epochs=2, conditions=[CLEAN, *fractions(0.5, 0.1)],
                      teacher_accuracy=0.95, level={"few_10": 0.3, "few_50": 0.3}, gain=0.0)
    found = find(folder)
    assert {(each.name, each.condition) for each in found.teachers} == {("lite1", ""), ("lite1", "few_50"),
                                                                       ("lite1", "few_10")}
    assert not any(each.no_better for each in found.teachers)
    fit = TeacherFit("lite1", found.study.conditions[1], 0)
    assert folder.teacher_path(fit).is_dir()
    weak = lay_down(tmp_path / "t", seeds=2, per_class=4, epochs=2, conditions=[CLEAN, *fractions(0.5, 0.1)],
                    teacher_accuracy=0.6, gain=0.0)
    titles = cautions(weak)
    assert "fitted under few_50 and few_10" in titles["The teacher lite1 is no better than the student under "
                                                      "difficulties"].text
    assert [row[0] for row in sections.teachers(find(weak), list(find(weak).base_groups)).rows][:1] == ["teacher lite1"]


def test_failed_robustness_is_said(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=1, per_class=4, epochs=2, robustness=ROBUSTNESS)
    store.replace_text(folder.robustness_failure_path(folder.runs()[0]), "memory ran out\nand more\n")
    found = cautions(folder)["Robustness is missing"]
    assert found.grave and found.text == "robustness of tl-clean-0 (memory ran out)."
    assert "robustness of tl-clean-0" in tables.failures(find(folder)).run_id.tolist()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_controls_are_cool_and_arms_keep_their_colours(found: Findings) -> None:
    shades = [figures.colour(found, arm.name) for arm in found.study.arms]
    assert shades == [figures.BLUE, figures.WARM[0], *figures.COOL]


def test_labels_of_near_places_give_way_and_wide_fractions_are_logarithmic(planted: StudyFolder) -> None:
    black = (planted.path / "figures" / "difficulty_center_black.svg").read_text()
    assert ">90<" in black and ">100<" in black and ">95<" not in black
    few = (planted.path / "figures" / "difficulty_train_fraction.svg").read_text()
    places = [float(x) for x in re.findall(r'transform="translate\(([\d.]+) [\d.]+\)">(?:1|10|50|100)<', few)]
    if len(places) == 4:  # of a logarithmic axis: from 1 to 10 as far as from 10 to 100
        assert np.diff(sorted(places))[0] == pytest.approx(sum(np.diff(sorted(places))[1:]), rel=0.1)
