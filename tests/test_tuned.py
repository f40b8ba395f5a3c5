"""What a search leaves to read: the tuned study, the lines, the table, the picture; from made-up trials."""

from pathlib import Path
from typing import Any

import pytest

from test_study import small_study
from tlkd import tuned
from tlkd.reading import parse_yaml, validate
from tlkd.spaces import search_of
from tlkd.tuned import Trial, Trials


def made_up(*rows: tuple[float, float, float], asked: tuple[str, ...] = (),
            assignments: tuple[str, ...] = ()) -> Trials:
    """For each arm a trial a row: its learning rate, score and loss; a score below 0 is a failed training."""
    search = search_of(small_study(Path("/nowhere"), *assignments), asked=asked)
    found: dict[str, list[Trial]] = {}
    for arm in search.arms:
        for number, (rate, score, loss) in enumerate(rows, start=1):
            setting: dict[str, Any] = {**search.own(arm), "training.learning_rate": rate}
            if score < 0:
                trial = Trial(arm.name, number, setting, {}, {}, 1.0, "epoch 1, step 3: the loss is nan")
            else:
                trial = Trial(arm.name, number, setting, {0: score - 0.1, 1: score + 0.1}, {0: loss, 1: loss}, 1.0)
            found.setdefault(arm.name, []).append(trial)
    return Trials(search, found)


def test_the_best_has_the_highest_score_then_the_smallest_loss_then_comes_first() -> None:
    trials = made_up((0.02, 0.5, 1.0), (0.1, 0.7, 3.0), (0.2, 0.7, 2.0), (0.3, 0.7, 2.0), (0.4, 0.6, 0.1))
    assert [trials.best(arm).number for arm in trials.search.arms] == [3, 3]
    # A loss of any size outweighs no image of any dev split.
    assert made_up((0.02, 0.5, 1.0), (0.1, 0.500001, 1e9)).best(trials.search.arms[0]).number == 2


def test_a_failed_training_is_worse_than_any_other() -> None:
    trials = made_up((0.02, -1, 0), (0.1, 0.1, 100.0))
    assert trials.best(trials.search.arms[0]).number == 2
    assert "failed" in tuned.text(trials)
    assert tuned.table(trials)["failure"].tolist()[0] == "epoch 1, step 3: the loss is nan"


def test_where_the_own_setting_is_best_an_arm_stays_as_it_is() -> None:
    trials = made_up((0.02, 0.8, 1.0), (0.1, 0.7, 1.0))
    study = tuned.tuned_study(trials)
    assert study.arms == trials.search.study.arms
    assert "the study's own" in tuned.text(trials)
    assert "failed" not in tuned.text(trials)


def test_the_tuned_study_is_the_study_but_for_the_arms() -> None:
    trials = made_up((0.02, 0.5, 1.0), (0.1234, 0.7, 1.0), assignments=(
        "arms.tl.training={momentum: 0.5}", "teachers.lite1.training={epochs: 7}", "footnotes=[one of mine]"))
    text = tuned.tuned_yaml(trials, Path("out/small-tuning"), "tlkd tune small.yaml --trials 2")
    assert text.splitlines()[2:4] == ["# Made by: tlkd tune small.yaml --trials 2",
                                      "# Command: tlkd run out/small-tuning/tuned.yaml"]
    read, before = validate(parse_yaml(text, "tuned.yaml"), "tuned.yaml"), trials.search.study
    assert read == tuned.tuned_study(trials)
    assert read.name == "small-tuned"
    assert read.arms[0].training == {"momentum": 0.5, "learning_rate": 0.1234, "weight_decay": 0.0005}
    assert (read.arms[1].soft_weight, read.arms[1].temperature) == (0.5, 4.0)
    changed = {"name", "arms", "footnotes"}
    assert read.model_dump(exclude=changed) == before.model_dump(exclude=changed)
    assert read.footnotes[0] == "one of mine"


def test_the_footnote_says_how_it_was_found() -> None:
    note = tuned.footnote(made_up((0.02, 0.5, 1.0), (0.1, 0.7, 1.0)))
    for words in ("2 trials for every arm (tl and tl_kd)", "accuracy on the dev split", "seeds 0 and 1",
                  "under the condition clean", "no trial was shown the test split",
                  "of every arm training.learning_rate log:0.001..1, training.weight_decay log:1e-06..0.01",
                  "of tl_kd soft_weight 0.05..1, temperature log:1..20",
                  "tl trial 2 (70.00 %, the study's own setting 50.00 %)"):
        assert words in note
    assert "Not tuned" not in note


def test_a_value_at_an_edge_is_said() -> None:
    trials = made_up((0.02, 0.5, 1.0), (0.99, 0.7, 1.0))
    assert "tl: training.learning_rate 0.99 lies at the edge of log:0.001..1" in tuned.text(trials)
    assert tuned.cautions(made_up((0.02, 0.5, 1.0), (0.1, 0.7, 1.0))) == []


def test_the_table_has_a_row_a_trial() -> None:
    table = tuned.table(made_up((0.02, 0.5, 1.0), (0.1, 0.7, 1.0)))
    assert table["arm"].tolist() == ["tl", "tl", "tl_kd", "tl_kd"]
    assert table["own"].tolist() == [True, False, True, False]
    assert table["best"].tolist() == [False, True, False, True]
    assert table["dev_accuracy"].tolist() == pytest.approx([0.5, 0.7, 0.5, 0.7])
    assert table["dev_accuracy_seed_1"].tolist() == pytest.approx([0.6, 0.8, 0.6, 0.8])
    assert table["temperature"].isna().tolist() == [True, True, False, False]


@pytest.mark.parametrize(("rows", "asked"), [
    ([(0.02, 0.5, 1.0)], ()),
    ([(0.02, 0.5, 1.0), (0.5, 0.9, 1.0), (0.6, 0.88, 1.0), (0.3, 0.87, 1.0), (0.4, 0.1, 9.0), (0.9, -1, 0)],
     ("training.batch_size=8,32", "training.epochs=1..9", "training.schedule=cosine,constant")),
    ([(0.02, -1, 0), (0.5, -1, 0)], ()),
])
def test_the_picture_is_drawn_alike_each_time(rows: list[tuple[float, float, float]], asked: tuple[str, ...],
                                              tmp_path: Path) -> None:
    for name in "ab":
        tuned.write(made_up(*rows, asked=asked), tmp_path / name)
    for name in ("search.svg", "search.png", "trials.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    svg = (tmp_path / "a" / "search.svg").read_text()
    assert all(word in svg for word in ("TL+KD", "learning rate", "temperature", "dev accuracy (%)"))
    assert "mathdefault" not in svg


def test_an_own_value_that_no_logarithm_shows_is_left_out_of_its_panel(tmp_path: Path) -> None:
    tuned.write(made_up((0.02, 0.5, 1.0), (0.1, 0.7, 1.0), assignments=("training.weight_decay=0",)), tmp_path)
    assert (tmp_path / "search.png").stat().st_size > 10_000
