import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import album, explained, figures, shares, tables
from tlkd.album import Album
from tlkd.findings import Findings, find

MASKED = {"data": {"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, "explanation": {}}
Study = tuple[Findings, Album]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = lay_down(tmp_path_factory.mktemp("s"), classes=("cat", "<dog>"), per_class=6, seeds=3, epochs=3, **MASKED)
    write_explanations(folder.path, images=12, masked=11, pictures=0, side=16)
    return find(folder), next(album.albums(folder, "tl"))


def test_shares_and_violins_are_drawn(study: Study) -> None:
    drawings = {each.name: each for each in shares.draw(study[0], [study[1]])}
    assert set(drawings) == {"foreground_tl_kd_clean", "violins_clean"}
    for each in drawings.values():
        ElementTree.fromstring(each.svg)
        assert each.png.startswith(b"\x89PNG") and each.alt
    text = drawings["foreground_tl_kd_clean"].svg
    for wanted in ("cat (6)", "&lt;dog&gt; (5)", "all 11 images", "each seed", "mask's area", "teacher lite1"):
        assert wanted in text, wanted
    assert drawings == {each.name: each for each in shares.draw(study[0], [study[1]])}


def points(figure: Figure, panel: int, height: float) -> list[float]:
    """Where a panel has points at a height."""
    axes = figure.axes[panel]
    scattered = [x for each in axes.collections if hasattr(each, "get_sizes")
                 for x, y in np.asarray(each.get_offsets()) if y == height]
    lines = [x for line in axes.lines if line.get_marker() == "D"
             for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if y == height]
    return sorted([*map(float, scattered), *map(float, lines)])


def test_the_figure_holds_the_numbers(study: Study) -> None:
    found = study[0]
    assert found.explanations is not None
    [each] = found.explanations.foregrounds
    assert each.everything is not None
    figure = shares.foreground(found, each, each.everything)
    frame = tables.paired_shares(found, each)
    cats = frame[frame["class"] == "cat"]
    assert points(figure, 0, 1) == pytest.approx(sorted(100 * cats[["area", "tl", "share"]].mean()))
    assert points(figure, 1, 1) == pytest.approx(sorted([*100 * cats.difference, 100 * cats.difference.mean()]))
    gains = np.array(each.everything.arm.by_seed) - np.array(each.everything.tl.by_seed)
    assert points(figure, 1, shares.SEEDS) == pytest.approx(sorted(100 * gains))
    assert points(figure, 1, shares.ALL) == pytest.approx([100 * each.everything.verdict.gain])
    assert 100 * each.everything.tl.mean in points(figure, 0, shares.ALL)


def test_many_classes_are_drawn_together(tmp_path: Path) -> None:
    classes = tuple(f"kind{number:02}" for number in range(shares.MOST + 1))
    folder = lay_down(tmp_path / "s", classes=classes, per_class=2, seeds=2, epochs=2, **MASKED)
    write_explanations(folder.path, images=40, masked=40, pictures=0, side=8, teachers=False)
    found = find(folder)
    assert found.explanations is not None
    [each] = found.explanations.foregrounds
    assert each.everything is not None
    figure = shares.foreground(found, each, each.everything)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["all 40 images", "each seed"]


def test_the_middle_image_is_that_of_the_median_difference(study: Study) -> None:
    found, one = study
    assert found.explanations is not None
    frame = tables.paired_shares(found, found.explanations.foregrounds[0])
    wanted = frame.loc[frame.difference.rank() == 6, "sample_id"].item()  # of 11
    row = shares.middle_image(found, one)
    assert row is not None and one.images.sample_ids[row] == wanted


def test_violins_take_magnitudes_inside_and_outside_by_sign(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(shares, "_violin", lambda axes, values, place, colour, lowest: seen.append((colour, values)))
    found, one = study
    shares.violins(found, one, 2)
    values, mask = one.rows[1].explained.values[2].astype(float), one.images.masks[2]
    inside = values[:, mask]
    assert [colour for colour, _ in seen] == [shares.FOR, shares.AGAINST] * 4
    np.testing.assert_allclose(np.sort(seen[2][1]), np.sort(inside[inside > 0]))
    np.testing.assert_allclose(np.sort(seen[3][1]), np.sort(-inside[inside < 0]))
    assert seen[6][1].size + seen[7][1].size == 3 * (~mask).sum()
    seen.clear()
    plan = found.study.model_copy(update={"explanation": found.study.explanation.model_copy(
        update={"signs": "summed"})}) if found.study.explanation is not None else found.study
    shares.violins(dataclasses.replace(found, study=plan), one, 2)
    assert seen[6][1].size + seen[7][1].size == (~mask).sum()


def test_flat_and_empty_values_are_drawn_all_the_same(study: Study) -> None:
    found, one = study
    rows = tuple(dataclasses.replace(row, explained=dataclasses.replace(
        row.explained, values=np.full_like(row.explained.values, size)))
        for row, size in zip(one.rows, (0.0, 2.0), strict=True))
    drawn = figures.render("v", "", lambda: shares.violins(found, dataclasses.replace(one, rows=rows), 0))
    ElementTree.fromstring(drawn.svg)


def test_a_lone_arm_has_violins_and_nothing_without_masks_has(tmp_path: Path) -> None:
    alone = lay_down(tmp_path / "s", classes=("cat", "dog"), per_class=3, seeds=1, epochs=2, teachers={},
                     arms=[{"name": "tl", "kind": "tl"}], **MASKED)
    write_explanations(alone.path, images=6, masked=5, pictures=0, side=8)
    found, albums = find(alone), list(album.albums(alone, "tl"))
    assert [each.name for each in shares.draw(found, albums)] == ["violins_clean"]
    table = explained.regions(alone, "tl-clean-0").sort_values("positive_share")
    row = shares.middle_image(found, albums[0])
    assert row is not None and albums[0].images.sample_ids[row] == table.sample_id.iloc[2]
    bare = lay_down(tmp_path / "t", classes=("cat", "dog"), per_class=3, seeds=1, epochs=2, explanation={"images": 3})
    write_explanations(bare.path, images=6, masked=0, uncertain=0, pictures=0, side=8)
    assert shares.draw(find(bare), list(album.albums(bare, "tl"))) == []
