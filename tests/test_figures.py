from pathlib import Path
from xml.etree import ElementTree

import pytest

from study_folders import lay_down
from tlkd import figures
from tlkd.figures import BLUE, WARM, Drawing
from tlkd.findings import find

TWO = {"arms": [{"name": "tl", "kind": "tl"}, {"name": "soft", "kind": "tl_kd", "teacher": "lite1"},
                {"name": "hard", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 1.0}]}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawing]:
    found = find(lay_down(tmp_path_factory.mktemp("planted"), seeds=3, per_class=10))
    return {each.name: each for each in figures.draw(found)}


def test_all_figures_are_there_as_svg_and_png(drawings: dict[str, Drawing]) -> None:
    assert set(drawings) == {"convergence_clean", "calibration_clean", "gains_tl_kd_clean", "confusion_tl_kd_clean",
                             "difference_tl_kd_clean"}
    for each in drawings.values():
        ElementTree.fromstring(each.svg)
        assert each.png.startswith(b"\x89PNG") and each.alt


def test_drawn_again_the_bytes_are_the_same(tmp_path: Path, drawings: dict[str, Drawing]) -> None:
    found = find(lay_down(tmp_path / "s", seeds=3, per_class=10))
    for name, make in (("difference_tl_kd_clean", lambda: figures.difference(found, found.contrasts[0])),
                       ("convergence_clean", lambda: figures.convergence(found, found.groups))):
        again, before = figures.render(name, drawings[name].alt, make), drawings[name]
        assert again.svg == before.svg and again.png == before.png


def test_arms_keep_their_colours(tmp_path: Path, drawings: dict[str, Drawing]) -> None:
    found = find(lay_down(tmp_path / "s", seeds=1, per_class=4, **TWO))
    assert [figures.colour(found, arm) for arm in ("tl", "soft", "hard")] == [BLUE, *WARM[:2]]
    svg = drawings["convergence_clean"].svg.lower()
    assert BLUE.lower() in svg and WARM[0].lower() in svg


def test_few_classes_have_numbers_and_many_have_none(tmp_path: Path, drawings: dict[str, Drawing]) -> None:
    assert "automobile" in drawings["confusion_tl_kd_clean"].svg
    many = tuple(f"class{number}" for number in range(60))
    found = find(lay_down(tmp_path / "s", seeds=1, classes=many, per_class=3))
    svg = figures.render("many", "", lambda: figures.confusion(found, found.contrasts[0])).svg
    assert "class1" not in svg and svg.count("<text") < 10 and "60 classes" in svg
    few = find(lay_down(tmp_path / "t", seeds=1, classes=("$a_b$", "<i>&"), per_class=10))
    svg = figures.render("few", "", lambda: figures.confusion(few, few.contrasts[0])).svg
    ElementTree.fromstring(svg)
    assert "$a_b$" in svg and "&lt;i&gt;&amp;" in svg


def test_a_lone_arm_has_a_confusion_too(tmp_path: Path) -> None:
    found = find(lay_down(tmp_path / "s", seeds=1, per_class=4, arms=[{"name": "tl", "kind": "tl"}], teachers={}))
    assert [each.name for each in figures.draw(found)] == ["convergence_clean", "calibration_clean",
                                                           "confusion_tl_clean"]
