import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import report
from tlkd.errors import BadInput

MASKED = {"data": {"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, "explanation": {}}
NASTY = ('<script>alert("x")</script> & co', "cat")


class Page(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.targets.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lay_down(tmp_path_factory.mktemp("planted"), footnotes=["Temperature: `10` or 20.", "A <b> & c."])
    return report.write(folder.path)


def test_the_folder_holds_page_tables_and_figures(planted: Path) -> None:
    assert planted.name == "report.html"
    assert len(list((planted.parent / "tables").glob("*.csv"))) == 17
    figures = {path.stem for path in (planted.parent / "figures").glob("*.svg")}
    assert figures == {path.stem for path in (planted.parent / "figures").glob("*.png")} and len(figures) == 5
    assert not list(planted.parent.rglob("*.tmp-*"))
    verdict = pd.read_csv(planted.parent / "tables" / "verdicts.csv").iloc[0]
    assert verdict.word == "supported" and 0 < verdict.gain < 1


def test_the_page_refers_to_nothing_outside_of_itself(planted: Path) -> None:
    text = planted.read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.targets)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert len(page.ids) == len(set(page.ids)), "ids of two figures clash"
    wanted = {target[1:] for target in page.targets if target.startswith("#")}
    assert wanted | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)


def test_the_page_says_it_in_plain_words(planted: Path) -> None:
    words = " ".join(" ".join(Page(planted.read_text()).words).split())
    first, rest = words.split("Metrics on the test split", 1)
    assert "The teacher helps: TL+KD is better than TL by" in first
    assert "points of test accuracy" in first and "95 % interval" in first and "10 seeds, 400 test images" in first
    assert "given one teacher" in first and "not examined" in first
    for wanted in ("table 6.1", "Precision, recall and F1 of each class",
                   "table 6.2", "figure 6.1", "figure 6.9", "error decrement", "a processor",
                   "tlkd run planted", "from the cache", "Footnotes", "A <b> & c."):
        assert wanted in rest, wanted


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", classes=NASTY, seeds=1, per_class=10, failed=("tl_kd-clean-0",),
                      skipped=({"id": "train/<img src=x>.png", "reason": "zero bytes"},))
    text = report.write(folder.path).read_text()
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert NASTY[0] in page.words and "&lt;script&gt;" in text


def test_many_classes_chosen_on_the_test_split(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", classes=tuple(f"kind{number:02}" for number in range(50)), per_class=2, seeds=2,
                      selection="test")
    text = report.write(folder.path).read_text()
    assert "30 more in classes.csv" in text and "30 more in data.csv" in text
    assert "30 more in per_class.csv" in text
    assert len(pd.read_csv(folder.path / "tables" / "classes.csv")) == 52
    assert re.search(r'class="alarm"[^>]*><p><strong>Chosen on the test split:', text)
    assert "accuracy on the test split (%)" in text


def test_a_weak_teacher_is_said_right_under_the_headline(tmp_path: Path) -> None:
    text = report.write(lay_down(tmp_path / "s", seeds=1, per_class=10, teacher_accuracy=0.5).path).read_text()
    assert re.search(r'class="headline">[^<]*</p>\s*<p class="beside">The teacher lite1 is no better than', text)
    assert (tmp_path / "s" / "summary.txt").read_text().splitlines()[1].startswith("The teacher lite1 is no better")


def test_nothing_finished_is_a_page_all_the_same(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=1, failed=("tl-clean-0", "tl_kd-clean-0"))
    text = report.write(folder.path).read_text()
    assert "no run has finished" in text and "2 of 2 runs are missing" in text


def test_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no study lies here"):
        report.write(tmp_path)


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", seeds=1, per_class=2, epochs=2, teachers={},
                      arms=[{"name": "tl", "kind": "tl"}])
    code = ("import sys; from pathlib import Path; from tlkd import report; report.write(Path(sys.argv[1])); "
            "assert 'torch' not in sys.modules, 'torch was imported'")
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=True, timeout=120)


def test_the_summary_stands_in_plain_text_too(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "study").path
    report.write(folder)
    lines = (folder / "summary.txt").read_text().splitlines()
    assert lines[0].startswith("The teacher helps")
    assert [line[:3] for line in lines[1:]] == ["H1 ", "H2 ", "H3 ", "H4 "]
    assert lines[1].startswith("H1 TL+KD classifies better than TL: supported. TL+KD is better than TL by ")
    assert all(re.search(": (supported|refuted|inconclusive|not examined)", line) for line in lines[1:])


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lay_down(tmp_path_factory.mktemp("explained"), classes=(*NASTY, "dog"), per_class=8, seeds=2, epochs=3,
                      **MASKED)
    write_explanations(folder.path, images=12, masked=12, pictures=6, side=16)
    return report.write(folder.path)


def test_explanations_stand_on_the_page_and_in_the_folder(explained: Path) -> None:
    tables = {path.stem for path in (explained.parent / "tables").glob("*.csv")}
    assert len(tables) == 24 and {"contributions", "contributions_again", "regions", "foreground_images"} <= tables
    drawn = {path.stem for path in (explained.parent / "figures").glob("*.svg")}
    assert {"foreground_tl_kd_clean", "winners_clean", "contributions_clean_1", "violins_clean", "masks",
            "masks_again"} <= drawn
    words = " ".join(" ".join(Page(explained.read_text()).words).split())
    for wanted in ("figure 5.4", "figures 6.2 to 6.5", "figure 6.6", "figure 6.7", "figure 6.8", "table 6.3",
                   "table 6.4", "observations 1 to 5", "Where the attribution lies", "spread evenly",
                   "networks of seed 0", "each channel's value by its own sign (channel)", "Deep SHAP",
                   "two scales", "ends at the 99th"):
        assert wanted in words, wanted


def test_a_page_with_pictures_refers_to_nothing_outside_of_itself(explained: Path) -> None:
    text = explained.read_text()
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.targets)
    assert sum(target.startswith("data:") for target in page.targets) > 50
    assert len(page.ids) == len(set(page.ids))
    wanted = {target[1:] for target in page.targets if target.startswith("#")}
    assert wanted | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)


def test_shapes_say_what_is_known_of_their_backgrounds(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", classes=("cat", "dog"), per_class=4, seeds=1, epochs=2, explanation={},
                      data={"source": "shapes", "masks": "exact", "augment": []})
    write_explanations(folder.path, images=8, masked=8, pictures=0, side=8)
    card = folder.path / "data.json"
    card.write_text(card.read_text().replace("a note on the data", "shapes: the background is <the class's own>"))
    text = report.write(folder.path).read_text()
    known = text[text.index('id="explanations"'):].partition("foreground_tl_kd_clean")[0]
    assert "What is known of the scenes.</strong> the background is &lt;the class&#39;s own&gt;." in known


def test_no_masks_leave_the_pictures(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", classes=("cat", "dog"), per_class=4, seeds=1, epochs=2, explanation={"images": 2})
    write_explanations(folder.path, images=8, masked=0, uncertain=0, pictures=2, side=8)
    text = report.write(folder.path).read_text()
    assert "There are no masks" in text and 'id="winners_clean"' in text and "table 6.3" not in text
    assert "no masks: nothing says what the foreground is" in text


def test_only_one_arm_explained_or_only_a_teacher(tmp_path: Path) -> None:
    for name, missing in (("one", ("tl-clean-0",)), ("teacher", ("tl-clean-0", "tl_kd-clean-0"))):
        folder = lay_down(tmp_path / name, classes=("cat", "dog"), per_class=4, seeds=1, epochs=2, **MASKED)
        write_explanations(folder.path, images=8, masked=7, pictures=2, side=8, missing=missing)
        text = report.write(folder.path).read_text()
        assert "Where the attribution lies" in text and "no seed is explained in both arms" in text
        assert ('id="winners_clean"' in text) == (name == "one")
