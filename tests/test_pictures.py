import base64
import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import album, figures, pictures
from tlkd.album import Album
from tlkd.figures import Drawing
from tlkd.findings import Findings, find
from tlkd.folder import StudyFolder

CLASSES = ('<script>alert("x")</script> & co', "$a_b$", "cat")
MASKED = {"data": {"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, "explanation": {}}
PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Album]:
    folder = lay_down(tmp_path_factory.mktemp("explained"), classes=CLASSES, per_class=4, seeds=2, epochs=3, **MASKED)
    write_explanations(folder.path, images=12, masked=12, pictures=6, side=16)
    return find(folder), next(album.albums(folder, "tl"))


@pytest.fixture(scope="module")
def drawings(explained: tuple[Findings, Album]) -> dict[str, Drawing]:
    return {each.name: each for each in pictures.draw(explained[0], [explained[1]])}


class Watched:
    """What a sheet was given: tiles, frames, bars and words, in their order."""

    def __init__(self) -> None:
        self.tiles: list[tuple[float, float, float]] = []
        self.framed: list[tuple[float, float]] = []
        self.bars: list[float] = []
        self.said: list[str] = []
        self.limits: list[float] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    seen, heat = Watched(), pictures.heat

    def tile(_: Any, pixels: Any, x: float, y: float, side: float) -> None:
        seen.tiles.append((x, y, side))

    def frame(_: Any, x: float, y: float, side: float, colour: str, width: float) -> None:
        if colour == pictures.RED:
            seen.framed.append((x, y))

    def hot(values: Any, limit: float, image: Any) -> Any:
        seen.limits.append(limit)
        return heat(values, limit, image)

    monkeypatch.setattr(pictures.Sheet, "tile", tile)
    monkeypatch.setattr(pictures.Sheet, "frame", frame)
    monkeypatch.setattr(pictures.Sheet, "bar", lambda _, limit, *place: seen.bars.append(limit))
    monkeypatch.setattr(pictures.Sheet, "say", lambda _, text, *place, **how: seen.said.append(text))
    monkeypatch.setattr(pictures, "heat", hot)
    yield seen


def planted(explained: tuple[Findings, Album], sizes: tuple[float, float], predicted: tuple[int, int]) -> Album:
    """The album with attributions of plain sizes, and what TL and the arm predict for the first image."""
    rows = []
    for row, size, guess in zip(explained[1].rows, sizes, predicted, strict=True):
        shown = np.full_like(row.explained.pictures, size)
        shown[:, 1] *= -1
        guesses = row.explained.predicted.copy()
        guesses[0] = guess
        values = np.full_like(row.explained.values, size / 3)
        rows.append(dataclasses.replace(row, explained=dataclasses.replace(
            row.explained, pictures=shown, values=values, predicted=guesses)))
    return dataclasses.replace(explained[1], rows=tuple(rows))


def test_all_pictures_are_there_as_svg_and_png(drawings: dict[str, Drawing]) -> None:
    assert set(drawings) == {"winners_clean", "masks", "masks_again",
                             *(f"contributions_clean_{number}" for number in (1, 2, 3))}
    for each in drawings.values():
        ElementTree.fromstring(each.svg)
        assert each.png.startswith(b"\x89PNG") and each.alt
    strips = drawings["contributions_clean_1"]
    assert "TL and TL+KD" in strips.alt and CLASSES[0] in strips.alt
    assert "$a_b$" in strips.svg and "&lt;script" in strips.svg and "<script" not in strips.svg


def test_one_scale_for_all_classes_and_networks_of_an_image(explained: tuple[Findings, Album],
                                                           watched: Watched) -> None:
    part = [0, 1]
    pictures.strips(explained[0], planted(explained, (0.5, 4.0), (0, 0)), part)
    assert watched.bars == [4.0, 4.0] and set(watched.limits) == {4.0}
    assert len(watched.limits) == 2 * 2 * len(CLASSES)
    watched.bars.clear()
    pictures.winners(explained[0], planted(explained, (0.5, 4.0), (0, 0)), [0])
    assert watched.bars == pytest.approx([4.0])
    own = [pictures.limit_of([row.explained.pictures[0].astype(float)]) for row in explained[1].rows]
    watched.bars.clear()
    pictures.strips(explained[0], explained[1], [0])
    assert min(own) < watched.bars[0] < max(own) + 1e-9


def test_each_network_s_own_prediction_is_framed_and_a_wrong_one_is_marked(explained: tuple[Findings, Album],
                                                                           watched: Watched) -> None:
    one = planted(explained, (1.0, 1.0), (0, 2))
    assert one.images.labels[0] == 0
    pictures.strips(explained[0], one, [0])
    photo, *tiles = watched.tiles
    assert photo[2] > tiles[0][2]
    assert watched.framed == [tiles[0][:2], tiles[3 + 2][:2]]  # TL's first class, TL+KD's third
    assert [text for text in watched.said if text.startswith("wrong")] == ["wrong:\ncat"]
    watched.said.clear()
    pictures.winners(explained[0], one, [0])
    assert [text for text in watched.said if text.startswith("wrong")] == ["wrong: cat"]


def test_winners_show_the_true_class_summed_over_channels(explained: tuple[Findings, Album],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pictures, "heat", lambda values, limit, image: seen.append(values) or
                        np.zeros((*values.shape, 3), np.uint8))
    pictures.winners(explained[0], explained[1], [5])
    for shown, row in zip(seen, explained[1].rows, strict=True):
        np.testing.assert_allclose(shown, row.explained.values[5].astype(float).sum(axis=0), atol=1e-6)


def test_red_speaks_for_and_blue_against() -> None:
    image = np.full((4, 4, 3), 255, np.uint8)
    values = np.array([[3.0, 1.0], [0.0, -3.0]])
    colours = pictures.heat(values, 1.0, image).astype(int)
    assert colours[0, 0].tolist() == colours[0, 1].tolist()  # beyond the scale is as at its end
    assert colours[0, 0, 0] > colours[0, 0, 2] + 60 and colours[1, 1, 2] > colours[1, 1, 0] + 60
    assert colours[1, 0].min() > 240 and np.ptp(colours[1, 0]) <= 1
    dark = pictures.heat(values, 1.0, np.zeros_like(image)).astype(int)
    assert 190 < dark[1, 0].max() < colours[1, 0].max()  # the picture shines through, faintly


def test_the_scale_ends_at_a_high_quantile_and_never_at_zero() -> None:
    assert pictures.limit_of([np.zeros((2, 2))]) == 1.0
    values = np.zeros((100, 100))
    values[0, 0] = -7.0
    assert pictures.limit_of([values]) == 7.0  # all else is 0: the quantile would be
    many = np.linspace(-1, 1, 10001)
    assert pictures.limit_of([many, many]) == pytest.approx(0.99, abs=1e-3)
    assert [pictures.scale_end(value) for value in (0.00412, 0.9, 12.0)] == ["0.0041", "0.9", "12"]
    assert pictures.scale_end(3.14e-6) == "3.1e\N{MINUS SIGN}6"


def test_fine_maps_are_averaged_over_blocks() -> None:
    fine = np.arange(64.0).reshape(8, 8)
    np.testing.assert_allclose(pictures.coarse(fine, 4), fine.reshape(4, 2, 4, 2).mean(axis=(1, 3)))
    uneven = pictures.coarse(np.ones((3, 10, 10)), 4)
    assert uneven.shape == (3, 4, 4) and np.allclose(uneven, 1)
    assert pictures.coarse(fine, 8) is fine


def test_of_many_classes_the_true_the_predicted_and_the_largest_are_shown() -> None:
    maps = np.zeros((30, 2, 2))
    maps[:, 0, 0] = np.where(np.arange(30) % 2 == 0, 1.0, -1.0) * np.arange(30)
    shown = pictures.shown_classes([maps, maps / 2], 3, [5, 3])
    assert shown == [3, 5, *range(29, 19, -1)] and len(shown) == pictures.COLUMNS
    assert pictures.shown_classes([maps[:12]], 3, [5]) == list(range(12))


def test_long_names_keep_what_tells_them_apart() -> None:
    assert pictures._two_lines("cat", 8) == "cat"
    assert pictures._two_lines("kind of number 07", 12) == "kind of\nnumber 07"
    assert pictures._two_lines("Black_footed_Albatross_1", 12) == "Black_footed\n_Albatross_1"
    one, two = (pictures._two_lines(f"a very long name of a kind {number}", 8) for number in (1, 2))
    assert one != two and max(map(len, one.split("\n"))) <= 8


def test_packed_pictures_keep_their_pixels(explained: tuple[Findings, Album]) -> None:
    make = ("one", "", lambda: pictures.winners(explained[0], explained[1], [0, 4]))
    plain = figures.render(*make)
    packed = figures.lighter(plain)
    before, after = (PNG.findall(each.svg.replace("\n", "")) for each in (plain, packed))
    assert len(before) == len(after) > 6 and len(packed.svg) < len(plain.svg)
    for one, other in zip(before, after, strict=True):
        images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in (one, other)]
        np.testing.assert_array_equal(*images)


def test_drawn_again_the_bytes_are_the_same(explained: tuple[Findings, Album], drawings: dict[str, Drawing]) -> None:
    again = {each.name: each for each in pictures.draw(explained[0], [explained[1]])}
    assert all(again[name] == drawings[name] for name in ("winners_clean", "masks"))


def test_without_masks_and_pictures_there_is_one_image_a_class(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", classes=("cat", "dog"), per_class=3, seeds=1, epochs=2, explanation={"images": 3})
    write_explanations(folder.path, images=6, masked=0, uncertain=0, pictures=0, side=16, teachers=False)
    assert names(folder) == ["winners_clean"]


def test_three_arms_make_three_rows(tmp_path: Path, watched: Watched) -> None:
    arms = [{"name": "tl", "kind": "tl"}, {"name": "soft", "kind": "tl_kd", "teacher": "lite1"},
            {"name": "hard", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 1.0}]
    folder = lay_down(tmp_path / "s", classes=("cat", "dog"), per_class=3, seeds=1, epochs=2, arms=arms, **MASKED)
    write_explanations(folder.path, images=6, masked=6, pictures=2, side=16)
    found, [one] = find(folder), list(album.albums(folder, "tl"))
    pictures.strips(found, one, [0])
    assert len(watched.framed) == 3 and len(watched.bars) == 1
    assert [text for text in watched.said if text.startswith("TL")] == ["TL", "TL+KD\n(soft)", "TL+KD\n(hard)"]


def names(folder: StudyFolder) -> list[str]:
    return [each.name for each in pictures.draw(find(folder), list(album.albums(folder, "tl")))]
