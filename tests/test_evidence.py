import dataclasses
from pathlib import Path

import pytest

from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import store, tables
from tlkd.findings import Findings, find
from tlkd.layout import Evidence
from tlkd.summary import Caution, Summary, summarise

MASKED = {"data": {"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, "explanation": {}}
TWO = {"arms": [{"name": "tl", "kind": "tl"}, {"name": "soft", "kind": "tl_kd", "teacher": "lite1"},
                {"name": "none", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0}]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = lay_down(tmp_path_factory.mktemp("s"), epochs=5, **MASKED)
    return find(write_explanations(folder.path, side=16, pictures=0))


def told(found: Findings, *, attention: str = "supported", confusion: bool = True) -> Findings:
    """The same study with another word on hypothesis 2, or a confusion that does not agree."""
    assert found.explanations is not None
    [each] = found.explanations.foregrounds
    explanations = dataclasses.replace(found.explanations, foregrounds=(dataclasses.replace(each, word=attention),))
    [contrast] = found.contrasts
    if not confusion:
        against = dataclasses.replace(contrast.confusions, gaining=3, losing=7)
        contrast = dataclasses.replace(contrast, confusions=against)
    return dataclasses.replace(found, explanations=explanations, contrasts=(contrast,))


def evidence(found: Findings, number: int) -> Evidence:
    [one] = summarise(found).statements[number - 1].evidence
    return one


def caution(summary: Summary, title: str) -> Caution | None:
    return next((each for each in summary.cautions if each.title == title), None)


@pytest.mark.parametrize(("attention", "confusion", "word", "but"), [
    ("supported", True, "supported", ""),
    ("inconclusive", True, "inconclusive", ", but attribution does not bear it out"),
    ("refuted", True, "inconclusive", ", but attribution does not bear it out"),
    ("supported", False, "inconclusive", ", but the confusion does not agree"),
    ("refuted", False, "inconclusive", ", but the confusion does not agree and attribution does not bear it out")])
def test_hypothesis_1_needs_all_three(found: Findings, attention: str, confusion: bool, word: str, but: str) -> None:
    one = evidence(told(found, attention=attention, confusion=confusion), 1)
    assert one.word == word
    assert one.sentence.endswith(f" points of test accuracy{but}.")
    said = {"supported": "agrees", "refuted": "does not agree", "inconclusive": "does not show it"}[attention]
    assert one.details[-1].startswith(f"Attribution: {said}. Hypothesis 2 is {attention} (+")


@pytest.mark.parametrize("attention", ["supported", "refuted", "inconclusive"])
def test_attribution_never_lifts_what_metrics_do_not_support(found: Findings, attention: str) -> None:
    other = told(found, attention=attention)
    [contrast] = other.contrasts
    for word in ("refuted", "inconclusive"):
        weak = dataclasses.replace(contrast, verdict=dataclasses.replace(contrast.verdict, word=word))
        assert dataclasses.replace(other, contrasts=(weak,)).word(weak) == word


def test_without_explanations_two_evidences_count(tmp_path: Path) -> None:
    found = find(lay_down(tmp_path / "s", epochs=5))
    one = evidence(found, 1)
    assert one.word == "supported" == found.word(found.contrasts[0])
    assert one.details[-1] == ("Attribution: not examined (explanation: null); metrics and confusion alone are "
                               "counted.")
    second = summarise(found).statements[1]
    assert (second.evidence, second.word) == ((), "not examined")
    assert second.note == "Not examined in this study (explanation: null)."


def test_a_planted_share_is_supported_and_said_in_numbers(found: Findings) -> None:
    one = evidence(found, 2)
    assert found.explanations is not None
    [each] = found.explanations.foregrounds
    assert each.everything is not None
    assert one.word == "supported"
    size = f"{100 * each.everything.verdict.gain:.1f}"
    assert one.sentence == f"TL+KD attends more to the foreground: its foreground share is {size} points above TL's."
    numbers = one.details[0].replace("\N{NO-BREAK SPACE}", " ")
    assert numbers.startswith("Of the positive attribution of the true label's logit, "
                              f"{100 * each.everything.arm.mean:.1f} % lies on the object with TL+KD and "
                              f"{100 * each.everything.tl.mean:.1f} % with TL: +{size} points (95 % interval +")
    assert "which covers seeds and images, given one teacher" in numbers
    assert "10 seeds, 22 images with a mask)" in numbers and "The smallest gain that matters is set to 1.0" in numbers
    assert one.details[1].startswith("Without the 2 masks marked uncertain the verdict stands: +")
    assert one.details[1].endswith(" points on 20 images.")
    assert one.details[2].startswith("On the images that both arms classify right (")
    assert "raw sums, which are on two scales: the foreground's pos rises on " in one.details[3]


def test_a_verdict_that_hangs_on_doubtful_masks_is_said(found: Findings) -> None:
    assert found.explanations is not None
    [each] = found.explanations.foregrounds
    assert each.certain is not None
    weak = dataclasses.replace(each.certain, verdict=dataclasses.replace(each.certain.verdict, word="inconclusive"))
    for certain, wanted in ((weak, "marked uncertain the verdict would be inconclusive: +"),
                            (None, "All masks are marked uncertain.")):
        changed = dataclasses.replace(each, certain=certain)
        explanations = dataclasses.replace(found.explanations, foregrounds=(changed,))
        assert wanted in evidence(dataclasses.replace(found, explanations=explanations), 2).details[1]


def test_less_attention_and_a_share_that_cannot_be_told(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", epochs=5, **MASKED)
    less = find(write_explanations(folder.path, side=16, pictures=0, shares={"tl": 0.65, "tl_kd": 0.5}))
    one = evidence(less, 2)
    assert one.word == "refuted" and one.sentence.startswith("TL+KD attends less to the foreground: ")
    assert evidence(less, 1).word == "inconclusive"
    few = lay_down(tmp_path / "t", epochs=5, seeds=2, per_class=4, **MASKED)
    one = evidence(find(write_explanations(few.path, side=16, pictures=0)), 2)
    assert one.word == "inconclusive" and one.sentence.endswith("cannot tell whether that is chance.")
    assert one.details[1] == "With 2 seeds p over seeds cannot fall below 0.500: nothing can be supported."
    assert "with 80 % power" in one.details[2] and "with these 22 masked images" in one.details[2]
    assert "which covers seeds and images" in one.details[0]


def test_no_masks_no_pair_and_nothing_explained(tmp_path: Path) -> None:
    bare = lay_down(tmp_path / "bare", epochs=5, seeds=6, explanation={"images": 2})
    bare_found = find(write_explanations(bare.path, masked=0, uncertain=0, side=16, pictures=0))
    assert summarise(bare_found).statements[1].note == ("Not examined in this study (no masks: nothing says what the "
                                                        "foreground is).")
    assert evidence(bare_found, 1).word == bare_found.contrasts[0].word == "supported"
    half = lay_down(tmp_path / "half", epochs=5, seeds=2, **MASKED)
    missing = ("tl_kd-clean-0", "tl_kd-clean-1")
    half_found = find(write_explanations(half.path, side=16, pictures=0, missing=missing))
    one = evidence(half_found, 2)
    assert (one.word, one.sentence) == ("not examined", "Not examined: no seed is explained in both arms.")
    assert "(no seed is explained in both arms)" in evidence(half_found, 1).details[-1]
    never = find(lay_down(tmp_path / "never", epochs=5, seeds=2, **MASKED))
    assert summarise(never).statements[1].note == "Not examined in this study (no network is explained)."


def test_an_arm_without_soft_labels_has_no_verdict_on_attention(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", epochs=5, gain={"soft": 0.06, "none": 0.0}, **MASKED, **TWO)
    found = find(write_explanations(folder.path, side=16, pictures=0))
    soft, none = summarise(found).statements[1].evidence
    assert (soft.label, soft.word, none.word) == ("TL+KD (soft)", "supported", "not examined")
    assert "equal to TL by construction" in none.sentence and none.details == ()


def test_what_to_keep_in_mind(tmp_path: Path, found: Findings) -> None:
    summary = summarise(found)
    explained = caution(summary, "Explained on 22 images")
    assert explained is not None and "22 of 400" in explained.text
    scales, wrong, notes = (caution(summary, title) for title in (
        "Two scales", "Explained images that are classified wrong", "The masks"))
    assert scales is not None and "two scales" in scales.text
    assert wrong is not None and "by TL and " in wrong.text and notes is not None
    assert notes.text == "a note on the masks."
    assert caution(summary, "Not all seeds are explained") is None and caution(summary, "Not additive") is None
    folder = lay_down(tmp_path / "s", epochs=5, seeds=3, per_class=10, **MASKED)
    part = find(write_explanations(folder.path, side=16, pictures=0, missing=("tl_kd-clean-2",)))
    assert part.overview is not None
    part = dataclasses.replace(part, overview=dataclasses.replace(part.overview, residual=float("nan")))
    fewer = caution(summarise(part), "Not all seeds are explained")
    assert fewer is not None and fewer.text.startswith("TL+KD: 2 of 3.")
    assert caution(summarise(part), "Not additive") is not None


def test_explanations_that_failed_are_said(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", epochs=5, seeds=2, per_class=4, **MASKED)
    write_explanations(folder.path, side=16, pictures=0, missing=("tl_kd-clean-1",))
    store.replace_text(folder.explanation_failure_path("tl_kd-clean-1"), "memory ran out\nand more\n")
    found = find(folder)
    failed = caution(summarise(found), "Explanations failed")
    assert failed is not None and failed.grave and failed.text.startswith("tl_kd-clean-1 (memory ran out). These")
    assert tables.failures(found).run_id.tolist() == ["explanation of tl_kd-clean-1"]
