"""Studies side by side: which gains may be compared, what the tests then say, what differs, and the page."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from explained_folders import write_explanations
from study_folders import lay_down
from test_report import Page
from tlkd import comparison_report, comparison_summary, spec_differences
from tlkd.comparison import ALIKE, LARGER, OPEN, SAME, SMALLER, Comparison, compare
from tlkd.errors import BadInput
from tlkd.reading import validate
from tlkd.specs import Study

LITE2 = {"lite2": {"model": "packaged:efficientnet_lite2", "input_size": 64}}
FROM_LITE2 = {"teachers": LITE2, "arms": [{"name": "tl", "kind": "tl"},
                                          {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite2"}]}


def lay(path: Path, content: str = "", **options: Any) -> Path:
    """A study's folder with data of its own where `content` says so."""
    folder = lay_down(path, **{"epochs": 6, **options})
    if content:
        card = json.loads((path / "data.json").read_text())
        (path / "data.json").write_text(json.dumps({**card, "content": content}))
    return folder.path


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two studies on the same images with gains of 2 and 8 points, a copy of the first, and one on other images."""
    root = tmp_path_factory.mktemp("four")
    return compare([lay(root / "small", gain=0.02, name="small"),
                    lay(root / "large", gain=0.08, name="large", **FROM_LITE2),
                    lay(root / "copy", gain=0.02, name="copy"),
                    lay(root / "other", gain=0.05, name="other", content="e" * 64)])


# --- differences of gains ---------------------------------------------------------------------------------------------


def test_gains_on_the_same_images_are_compared_in_pairs(four: Comparison) -> None:
    words = {(each.first.label, each.second.label): each.word for each in four.pairs}
    assert words == {("small", "large"): LARGER, ("small", "copy"): SAME, ("large", "copy"): SMALLER}
    assert {(each.first.label, each.second.label, each.why) for each in four.unpaired} == {
        (name, "other", "other images") for name in ("small", "large", "copy")}
    assert all(each.same_tl for each in four.pairs)
    assert [[each.label for each in group] for group in four.data] == [["small", "large", "copy"], ["other"]]


def test_a_difference_is_the_literal_one(four: Comparison) -> None:
    """Against a slow twin: every sign of the seeds' mean differences, written out."""
    pair = four.pairs[0]
    gains = [[float(np.mean([int(a) - int(t) for a, t in zip(arm, tl, strict=True)]))
              for arm, tl in zip(each.group.correct, each.tl.correct, strict=True)]
             for each in (pair.first, pair.second)]
    seeds = [second - first for first, second in zip(*gains, strict=True)]
    assert pair.verdict.gain == pytest.approx(sum(seeds) / len(seeds))
    sums = [abs(sum(sign * value for sign, value in zip(signs, seeds, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(seeds))]
    p = sum(each >= abs(sum(seeds)) - 1e-9 for each in sums) / len(sums)
    assert pair.verdict.p_seed == pytest.approx(p)
    assert pair.verdict.p_seed_adjusted == pytest.approx(min(1.0, 2 * p))  # the copy of the first study is no test
    assert [each.verdict.contrasts for each in four.pairs] == [2, 1, 2]


def test_the_order_of_studies_turns_the_sign_and_nothing_else(tmp_path: Path) -> None:
    paths = [lay(tmp_path / "a", gain=0.02, name="a"), lay(tmp_path / "b", gain=0.08, name="b", **FROM_LITE2)]
    (there,), (back,) = compare(paths).pairs, compare(paths[::-1]).pairs
    assert (there.word, back.word) == (LARGER, SMALLER)
    assert back.verdict.gain == pytest.approx(-there.verdict.gain)
    assert back.verdict.p_seed == there.verdict.p_seed and back.verdict.p_image == there.verdict.p_image


@pytest.mark.parametrize(("options", "why"), [
    ({"student": {"model": "packaged:efficientnet_lite0", "input_size": 64}}, "another student"),
    ({"seeds": [20, 21]}, "no seed in common"),
    ({"verdict": {"metric": "balanced_accuracy"}}, "another metric: accuracy and balanced_accuracy"),
    ({"selection": "test"}, "one of them was chosen on the test split (selection: test)"),
    ({"per_class": 30}, "other images"),
    ({"missing": ("tl-clean-0", "tl-clean-1")}, "no gain yet in b"),
    ({"teachers": {}, "arms": [{"name": "tl", "kind": "tl"}]}, "no gain yet in b"),
])
def test_what_rules_a_paired_test_out(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    seeds = options.pop("seeds", None)
    paths = [lay(tmp_path / "a", seeds=2, name="a")]
    if seeds is None:
        paths.append(lay(tmp_path / "b", **{"seeds": 2, "name": "b", **options}))
    else:  # `lay_down` counts seeds from 0
        raw = {"name": "b", **options}
        paths.append(lay(tmp_path / "b", seeds=2, conditions=[{"name": "clean", "seeds": seeds}], **raw))
    found = compare(paths)
    assert found.pairs == () and [each.why for each in found.unpaired] == [why]
    assert "paired test" in comparison_summary.summarise(found).differences


def test_common_seeds_alone_are_compared(tmp_path: Path) -> None:
    (pair,) = compare([lay(tmp_path / "a", seeds=6, name="a"),
                       lay(tmp_path / "b", seeds=9, name="b", failed=("tl-clean-2",))]).pairs
    assert pair.seeds == (0, 1, 3, 4, 5) and pair.verdict.n_seeds == 5


def test_a_difference_within_the_smallest_gain_is_as_good_as_equal(tmp_path: Path) -> None:
    arms = {"arms": [{"name": "tl", "kind": "tl"}, {"name": "again", "kind": "tl_kd", "teacher": "lite1"}]}
    for smallest, word in ((0.001, OPEN), (0.1, ALIKE)):
        rule = {"verdict": {"smallest_gain": smallest}, "gain": 0.03, "per_class": 20}
        (pair,) = compare([lay(tmp_path / f"a{word}", name="a", **rule),
                           lay(tmp_path / f"b{word}", name="b", **rule, **arms)]).pairs
        assert pair.word == word and not pair.nothing_differs


def test_all_studies_are_one_family_too(four: Comparison) -> None:
    ps = [each.contrast.verdict.p_seed for each in four.entries]
    assert [each.p_seed_all for each in four.entries] == pytest.approx([min(1.0, 4 * p) for p in ps])
    assert all(each.sure for each in four.entries)


# --- names, and what is refused ---------------------------------------------------------------------------------------


def test_studies_are_told_apart_by_name_by_folder_or_by_label(tmp_path: Path) -> None:
    one = lay(tmp_path / "x" / "one", seeds=1, per_class=2)
    two, also = lay(tmp_path / "x" / "two", seeds=1, per_class=2), lay(tmp_path / "y" / "two", seeds=1, per_class=2)
    assert [each.label for each in compare([one, two]).members] == ["one", "two"]  # both are called `planted`
    assert [each.label for each in compare([two, also]).members] == [str(two), str(also)]
    assert [each.label for each in compare([one, two], ["A", "B"]).members] == ["A", "B"]


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    one, two = (lay(tmp_path / name, seeds=1, per_class=2) for name in ("one", "two"))
    (tmp_path / "link").symlink_to(one)
    for folders, labels, said in (
            ([one], [], f"found one folder, {one}; name at least two"),
            ([one, one], [], "one twice; each study may be named once"),
            ([one, tmp_path / "link"], [], "link, which are one folder"),
            ([one, tmp_path], [], "no study lies here"),
            ([one, two], ["A"], "--label: found 1 for 2 folders"),
            ([one, two], ["A", "A"], "--label: found 'A' more than once"),
            ([one, two], ["A", " "], "--label: found an empty name")):
        with pytest.raises(BadInput) as caught:
            compare(folders, labels)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_report_goes_over_nothing_but_an_earlier_one(tmp_path: Path) -> None:
    paths = [lay(tmp_path / name, seeds=2, per_class=4, name=name) for name in ("one", "two")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for out, said in ((paths[0], "holds a study"), (tmp_path / "mine", "holds no comparison"),
                      (tmp_path / "mine" / "notes.txt", "is a file"),
                      (tmp_path / "mine" / "notes.txt" / "out", "cannot be written")):
        with pytest.raises(BadInput, match=said):
            comparison_report.write(paths, out)
    assert not (paths[0] / "comparison.csv").exists()
    page = comparison_report.write(paths, tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "differences.svg").exists()
    third = lay(tmp_path / "three", seeds=2, per_class=4, name="three", content="f" * 64)
    assert comparison_report.write([paths[0], third], tmp_path / "out") == page
    assert not (tmp_path / "out" / "figures" / "differences.svg").exists()  # of studies that are not there now


# --- specs ------------------------------------------------------------------------------------------------------------


def study(**changes: Any) -> Study:
    return validate({"name": "s", "data": {"source": "mnist5k"}, "student": {"model": "timm:resnet18"},
                     "teachers": {"a": {"model": "timm:resnet34"}},
                     "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "a"}],
                     **changes}, "s")


def differing(*studies: Study) -> dict[str, tuple[str, ...]]:
    return {each.key: each.values for each in spec_differences.compare(studies) if each.differs}


def test_equal_specs_differ_in_nothing() -> None:
    every = spec_differences.compare([study(), study(name="another")])
    assert every and not any(each.differs for each in every)
    assert "name" not in {each.key for each in every}


def test_keys_differ_by_their_path() -> None:
    other = study(data={"source": "mnist5k", "fit": "pad"}, seeds=[0, 1], training={"epochs": 3})
    found = differing(study(seeds=[0, 1, 2]), other)
    assert found == {"data.fit": ("crop", "pad"), "seeds": ("0, 1, 2", "0, 1"), "training.epochs": ("30", "3"),
                     "teachers.a.training.epochs": ("30", "3")}


def test_teachers_of_other_names_are_compared_by_the_arm_that_learns_from_them() -> None:
    other = study(teachers={"b": {"model": "timm:resnet50", "training": {"epochs": 5}}},
                  arms=[{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "b"}])
    assert differing(study(), other) == {
        "arms.kd.teacher": ("a", "b"), "arms.kd.teacher.model": ("timm:resnet34", "timm:resnet50"),
        "arms.kd.teacher.training.epochs": ("30", "5")}


def test_what_only_some_have_by_a_name_is_one_line() -> None:
    extra = study(teachers={"a": {"model": "timm:resnet34"}, "c": {"model": "timm:resnet50", "fit": False}},
                  arms=[{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "a"},
                        {"name": "hot", "kind": "tl_kd", "teacher": "c", "temperature": 20}],
                  conditions=[{"name": "clean"}, {"name": "few", "train_fraction": 0.1}], explanation={"images": 3})
    found = differing(study(), extra)
    assert found == {"teachers.c": ("\N{EN DASH}", "timm:resnet50, 224 px, taken as it is"),
                     "explanation": ("none", "explainer deep_shap, output logit, background.kind random, "
                                             "background.size 20, images 3, pictures 2, seeds all, teachers True, "
                                             "conditions none, signs channel"),
                     "arms.hot": ("\N{EN DASH}", "tl_kd, teacher c, soft_weight 0.1, temperature 20.0"),
                     "conditions.few": ("\N{EN DASH}", "10 % of the training images")}


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of an explained study, one under difficulties, one unfinished, one with a teacher that is weak."""
    root = tmp_path_factory.mktemp("page")
    grid = [{"name": "clean"}, {"name": "half", "train_fraction": 0.5}, {"name": "few", "train_fraction": 0.1}]
    gains = {("tl_kd", "clean"): 0.01, ("tl_kd", "half"): 0.03, ("tl_kd", "few"): 0.08}
    hard = [lay(root / name, seeds=3, name=name, conditions=grid, gain=gains, per_class=10) for name in ("h1", "h2")]
    seen = lay(root / "seen", seeds=3, per_class=10, name="seen", content="a" * 64,
               data={"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, explanation={})
    write_explanations(seen)
    begun = lay(root / "begun", seeds=3, per_class=10, name="begun", missing=("tl-clean-2", "tl_kd-clean-1"))
    none = lay(root / "none", seeds=1, per_class=10, name="none", missing=("tl-clean-0", "tl_kd-clean-0"))
    return comparison_report.write([*hard, seen, begun, none], root / "out", ["h1", "h2", "<i>seen</i>", "begun", "n"])


def test_the_page_holds_everything_and_refers_to_nothing_outside(page: Path) -> None:
    text = page.read_text()
    found = Page(text)
    assert "script" not in found.tags and "i" not in found.tags and "<i>seen</i>" in found.words
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in found.targets)
    assert not re.search(r"url\((?!#)", text) and len(found.ids) == len(set(found.ids))
    assert {target[1:] for target in found.targets if target.startswith("#")} <= set(found.ids)
    for wanted in ("What may be claimed", "exploratory", "Foreground share: how much", "Gain along train fraction",
                   "begun: 2 of 6 runs are missing", "4 of 6", "50 % of the training images", "Parameters and time"):
        assert wanted in " ".join(found.words), wanted


def test_the_folder_holds_figures_and_tables(page: Path) -> None:
    names = {path.name for path in page.parent.glob("**/*") if path.is_file()}
    figures = ("gains", "teachers", "differences", "series_1_train_fraction")
    assert names == {"report.html", "summary.txt", "comparison.csv", "settings.csv", "differences.csv", "series.csv",
                     *(f"{name}.{kind}" for name in figures for kind in ("svg", "png"))}
    rows = pd.read_csv(page.parent / "comparison.csv").set_index("study")
    assert rows.loc["n", "runs_finished"] == 0 and np.isnan(rows.loc["n", "gain"])
    assert rows.loc["begun", "seeds"] == 1 and rows.loc["h1", "student_parameters"] == 1234567
    assert rows.loc["<i>seen</i>", "foreground_gain"] == pytest.approx(
        rows.loc["<i>seen</i>", "foreground"] - rows.loc["<i>seen</i>", "foreground_tl"], abs=1e-6)
    assert rows.loc["h1", "hypothesis_4"].startswith("train fraction: ")
    differences = pd.read_csv(page.parent / "tables" / "differences.csv")
    assert {"h1", "h2", "begun"} == set(differences.loc[differences["difference"].notna(), ["first", "second"]].stack())
    summary = (page.parent / "summary.txt").read_text()
    assert "n: no gain yet: 0 of 2 runs finished" in summary and "! begun: 2 of 6 runs are missing" in summary


def test_few_seeds_are_said_to_be_too_few(page: Path) -> None:
    assert "With 3 common seeds at most the smallest p over seeds that Holm over 2 pairs can leave is 0.5: no " \
           "difference could be called sure" in (page.parent / "summary.txt").read_text()


def test_studies_that_are_judged_by_other_rules_are_told(tmp_path: Path) -> None:
    found = compare([lay(tmp_path / "a", seeds=2, per_class=4, name="a"),
                     lay(tmp_path / "b", seeds=2, per_class=4, name="b", selection="test",
                         verdict={"metric": "balanced_accuracy", "smallest_gain": 0.01, "level": 0.1})])
    titles = {each.title: each for each in comparison_summary.summarise(found).cautions}
    assert titles["Not one endpoint"].grave and "b (balanced accuracy)" in titles["Not one endpoint"].text
    assert titles["Not chosen alike"].grave and titles["b: chosen on the test split"].grave
    assert "a 0.005 and b 0.01" in titles["Not one smallest gain that matters"].text
    assert "Not one level" in titles


def test_larger_teachers_are_told_in_their_order(tmp_path: Path) -> None:
    paths = [lay(tmp_path / name, seeds=2, per_class=10, name=name, gain=gain, **FROM_LITE2)
             for name, gain in (("big", 0.08), ("small", 0.02), ("middle", 0.05))]
    for path, parameters in zip(paths, (9_000_000, 1_000_000, 5_000_000), strict=True):
        result = path / "teachers" / "lite2" / "result.json"
        result.write_text(json.dumps({**json.loads(result.read_text()), "parameters": parameters}))
    (sentence,) = comparison_summary.summarise(compare(paths)).sizes
    assert re.search(r"\(small, 1\.0 million\).*\(middle, 5\.0 million\) and .*\(big, 9\.0 million\): it rises with "
                     "each step", sentence)


def test_a_comparison_needs_no_torch(tmp_path: Path) -> None:
    paths = [lay(tmp_path / name, seeds=1, per_class=2, name=name) for name in ("a", "b")]
    script = ("import sys; from pathlib import Path; from tlkd.comparison_report import write; "
              f"write([Path(p) for p in {[str(path) for path in paths]!r}], Path({str(tmp_path / 'out')!r})); "
              "print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
