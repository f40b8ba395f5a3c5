"""Pictures of attributions and masks: red speaks for a class, blue against it, white says nothing.

The networks that explain one image stand side by side and share one symmetric scale, which is drawn beside them.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from tlkd import figures, wording
from tlkd.album import AGAIN, Album, Row, of_each_class
from tlkd.explained import Explained
from tlkd.figures import Drawing, Maker
from tlkd.findings import Findings

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

WIDTH = 1000  # of a sheet, in pixels of the page
FINEST = 96  # pixels along a side; larger attributions are averaged down to as many, or pages would grow too large
QUANTILE = 0.99  # of |values|: where the scale ends, or a few large values would bleach all others
COLUMNS = 12  # classes side by side
CLASSES = 24  # of more classes than this the first are shown
TALL = 800  # pixels: where a sheet of strips ends
INK, QUIET, RED = "#1c2126", "#5f6b76", "#c8102e"
GAP = 4
BAR = 62
COLOURS = mpl.colormaps["RdBu_r"]


def draw(found: Findings, albums: Sequence[Album]) -> list[Drawing]:
    """All pictures for which the study has attributions."""
    return [figures.lighter(figures.render(*each)) for number, album in enumerate(albums)
            for each in _makers(found, album, first=number == 0)]


def _makers(found: Findings, album: Album, first: bool) -> Iterator[Maker]:
    images, condition = album.images, album.condition
    labels = wording.listed([figures.label(found, row.arm) for row in album.rows])
    chosen = of_each_class(images.labels, images.masked if images.masked.any() else np.ones_like(images.masked))
    yield (f"winners_{condition}", f"One image a class, and what speaks for its class in {labels}",
           partial(winners, found, album, chosen[:CLASSES]))
    for number, part in enumerate(strip_parts(album), 1):
        names = wording.listed(list(dict.fromkeys(found.classes[images.labels[row]] for row in part)))
        yield (f"contributions_{condition}_{number}", f"Images of {names}, and what speaks for each class in {labels}",
               partial(strips, found, album, part))
    if first and images.masked.any():
        yield "masks", "One image a class, its outline and its mask", partial(masks, found, album, chosen[:CLASSES])
        again = of_each_class(images.labels, images.masked, 1)[:AGAIN]
        if again:
            yield ("masks_again", "Further images, their outlines and their masks",
                   partial(masks, found, album, again))


# --- a sheet of pictures ----------------------------------------------------------------------------------------------


class Sheet:
    """A figure laid out in pixels of the page, from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / 96, height / 96))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()

    def tile(self, pixels: Pixels, x: float, y: float, side: float) -> None:
        """A square picture with a hairline around it."""
        self.axes.imshow(pixels, extent=(x, x + side, y + side, y), interpolation="none", aspect="auto", zorder=2,
                         cmap="gray", vmin=0, vmax=255)
        self.frame(x, y, side, "#c3cad1", 0.6)

    def frame(self, x: float, y: float, side: float, colour: str, width: float) -> None:
        """A square frame around a tile."""
        self.axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=width, zorder=4,
                                      joinstyle="miter"))

    def outline(self, album: Album, row: int, x: float, y: float, side: float, colour: str, width: float = 0.9) -> None:
        """A mask's polygons, or the border of one that is given as pixels, over a tile."""
        images = album.images
        polygons = images.outlines.get(str(images.sample_ids[row]), ())
        for each in polygons:
            self.axes.fill(x + side * each[:, 0], y + side * each[:, 1], fill=False, edgecolor=colour,
                           linewidth=width, zorder=3)
        if not polygons and images.masked[row]:
            mask = np.pad(images.masks[row].astype(np.float64), 1)  # a border at the picture's edge is drawn too
            across = (np.arange(len(mask)) - 0.5) / (len(mask) - 2) * side
            self.axes.contour(x + across, y + across, mask, levels=[0.5], colors=[colour], linewidths=[width], zorder=3)

    def say(self, text: str, x: float, y: float, **how: Any) -> None:
        """A line of text whose foot stands at y."""
        self.axes.text(x, y, text, **{"fontsize": 8.5, "va": "baseline", "color": INK, **how})

    def bar(self, limit: float, x: float, y: float, height: float) -> None:
        """The colours of a symmetric scale, red above."""
        ramp = np.rint(255 * COLOURS(np.linspace(1, 0, 64))[:, None, :3]).astype(np.uint8)
        self.axes.imshow(ramp, extent=(x, x + 9, y + height, y), interpolation="none", aspect="auto", zorder=2)
        self.axes.add_patch(Rectangle((x, y), 9, height, fill=False, edgecolor="#c3cad1", linewidth=0.6, zorder=3))
        for text, place in ((f"+{scale_end(limit)}", y + 7), ("0", y + height / 2 + 3),
                            (f"{wording.MINUS}{scale_end(limit)}", y + height)):
            self.say(text, x + 13, place, fontsize=7, color=QUIET)


def scale_end(limit: float) -> str:
    """The end of a scale, in two significant digits."""
    return f"{limit:.1e}".replace("e-0", "e-").replace("-", wording.MINUS) if 0 < limit < 1e-4 else f"{limit:.2g}"


def limit_of(values: Sequence[Floats]) -> float:
    """Where the symmetric scale ends that several maps share: a high quantile of their |values|, never 0."""
    sizes = np.abs(np.concatenate([each.ravel() for each in values]))
    end = float(np.quantile(sizes, QUANTILE))
    return end or float(sizes.max()) or 1.0


def coarse(values: Floats, finest: int = FINEST) -> Floats:
    """A map `[..., height, width]`, averaged over blocks of pixels where it is finer than what is shown."""
    for axis in (-2, -1):
        size = values.shape[axis]
        if size > finest:
            edges = np.rint(np.linspace(0, size, finest + 1)).astype(int)
            values = np.add.reduceat(values, edges[:-1], axis=axis)
            values = np.moveaxis(np.moveaxis(values, axis, -1) / np.diff(edges), -1, axis)
    return values


def heat(values: Floats, limit: float, image: Pixels) -> Pixels:
    """The colours `[height, width, 3]` of a map, over a faint grey picture of what it explains.

    In 31 steps of colour and 8 of grey: fewer than 256 colours, which a small PNG can hold.
    """
    grey = Image.fromarray(image).convert("L").resize(values.shape[::-1], Image.Resampling.BILINEAR)
    faint = 1 - 0.15 * (1 - np.rint(np.asarray(grey, np.float64) / 255 * 7) / 7)
    steps = np.rint(np.clip(values / limit, -1, 1) * 15) / 15
    return np.asarray(np.rint(255 * COLOURS(0.5 + 0.5 * steps)[..., :3] * faint[..., None]), np.uint8)


def _photo(image: Pixels, finest: int) -> Pixels:
    if len(image) <= finest:
        return image
    return np.asarray(Image.fromarray(image).resize((finest, finest), Image.Resampling.BOX))


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _two_lines(text: str, longest: int) -> str:
    """A name in at most two lines, broken between words where that can be; of a longer one its two ends."""
    if len(text) <= longest:
        return text
    if len(text) > 2 * longest:
        return f"{text[:longest]}\n\N{HORIZONTAL ELLIPSIS}{text[1 - longest:]}"
    breaks = [place for place, sign in enumerate(text, 1) if sign in " _-" and len(text) - longest <= place <= longest]
    place = min(breaks, key=lambda each: abs(2 * each - len(text)), default=(len(text) + 1) // 2)
    return f"{text[:place].rstrip()}\n{text[place:]}"


def _tail(text: str, longest: int) -> str:
    """The end of an id, which is what tells it from others."""
    return text if len(text) <= longest else f"\N{HORIZONTAL ELLIPSIS}{text[1 - longest:]}"


# --- figures 6.2 to 6.5 -----------------------------------------------------------------------------------------------


def strip_parts(album: Album) -> list[list[int]]:
    """The pictured images, class by class, in as many parts as figures are needed."""
    shown = [row for row in album.rows if len(row.explained.picture_rows)]
    if not shown:
        return []
    rows = sorted(map(int, shown[0].explained.picture_rows), key=lambda row: (int(album.images.labels[row]), row))
    _, _, height = _strip_sizes(len(shown), min(shown[0].explained.pictures.shape[1], COLUMNS))
    step = max(1, int(TALL // height))
    step -= step % 2 if step > 2 else 0  # two images a class stay together
    return [rows[start:start + step] for start in range(0, len(rows), step)]


def _strip_sizes(rows: int, columns: int) -> tuple[float, float, float]:
    """A tile's side, the photograph's side, and the height of an image's strip."""
    high = min(rows, 2)
    side = min(110.0, (WIDTH - 66 - BAR - GAP * (columns + high + 1)) / (columns + high))
    return side, high * side + (high - 1) * GAP, 34 + rows * (side + GAP) + 12


def strips(found: Findings, album: Album, part: Sequence[int]) -> Figure:
    """Figures 6.2 to 6.5: an image, then a column a class and a row a network; framed: the class it predicts."""
    shown = [row for row in album.rows if len(row.explained.picture_rows)]
    columns = min(shown[0].explained.pictures.shape[1], COLUMNS)
    side, photo, height = _strip_sizes(len(shown), columns)
    sheet = Sheet(photo + 66 + GAP + columns * (side + GAP) + BAR, len(part) * height)
    for number, row in enumerate(part):
        _strip(sheet, found, album, shown, row, number * height, (side, photo))
    return sheet.figure


def _strip(sheet: Sheet, found: Findings, album: Album, shown: Sequence[Row], row: int, top: float,
           sizes: tuple[float, float]) -> None:
    side, photo = sizes
    image, true, y = album.images.images[row], int(album.images.labels[row]), top + 34
    maps = [coarse(picture_of(each.explained, row)) for each in shown]
    columns = shown_classes(maps, true, [int(each.explained.predicted[row]) for each in shown])
    limit = limit_of([each[columns] for each in maps])
    sheet.say(_short(found.classes[true], 20), 1, top + 18, fontsize=9.5, fontweight="bold")
    sheet.say(_tail(str(album.images.sample_ids[row]), 24), 1, top + 29, fontsize=6.5, color=QUIET)
    sheet.tile(_photo(image, 2 * FINEST), 1, y, photo)
    start = photo + 66 + GAP
    for number, column in enumerate(columns):
        sheet.say(_two_lines(found.classes[column], max(4, int(side / 5.6))), start + number * (side + GAP) + side / 2,
                  y - 3, ha="center", va="bottom", fontsize=8, linespacing=1.05,
                  fontweight="bold" if column == true else "normal", color=INK if column == true else QUIET)
    for line, (each, values) in enumerate(zip(shown, maps, strict=True)):
        place, predicted = y + line * (side + GAP), int(each.explained.predicted[row])
        _row_label(sheet, found, each, predicted, true, start - 7, place + side / 2)
        for number, column in enumerate(columns):
            sheet.tile(heat(values[column], limit, image), start + number * (side + GAP), place, side)
        framed = start + columns.index(predicted) * (side + GAP)
        sheet.frame(framed, place, side, RED, 2.0)
    sheet.bar(limit, start + len(columns) * (side + GAP) + 4, y, len(shown) * (side + GAP) - GAP)


def _row_label(sheet: Sheet, found: Findings, row: Row, predicted: int, true: int, x: float, y: float) -> None:
    """An arm's name before its row, and what it takes the image for where that is wrong."""
    name, right = figures.label(found, row.arm).replace(" (", "\n("), predicted == true
    sheet.say(name, x, y if right else y - 2, ha="right", va="center" if right else "bottom", fontsize=8,
              fontweight="bold", color=figures.colour(found, row.arm))
    if not right:
        sheet.say(f"wrong:\n{_two_lines(found.classes[predicted], 12)}", x, y + 1, ha="right", va="top", fontsize=7,
                  color=RED)


def picture_of(one: Explained, row: int) -> Floats:
    """The maps `[class, height, width]` of an image that is shown for every class."""
    return np.asarray(one.pictures[one.picture_rows.tolist().index(row)], np.float64)


def shown_classes(maps: Sequence[Floats], true: int, predicted: Sequence[int]) -> list[int]:
    """The classes that get a column: all, or the true one, those predicted, and those with the largest |sums|."""
    count = len(maps[0])
    if count <= COLUMNS:
        return list(range(count))
    sizes = np.max([np.abs(each.sum(axis=(1, 2))) for each in maps], axis=0)
    order = [true, *predicted, *map(int, np.argsort(-sizes, kind="stable"))]
    return list(dict.fromkeys(order))[:COLUMNS]


# --- figure 6.6 -------------------------------------------------------------------------------------------------------


def winners(found: Findings, album: Album, chosen: Sequence[int]) -> Figure:
    """Figure 6.6: an image a class, and each network's attribution of its true class, with the mask's outline."""
    tiles = 1 + len(album.rows)
    across = max(1, min(len(chosen), int(WIDTH // (tiles * (105 + GAP) + BAR))))
    side = min(150.0, (WIDTH / across - BAR - GAP * tiles) / tiles)
    width, height = tiles * (side + GAP) + BAR, side + 30
    sheet = Sheet(across * width, math.ceil(len(chosen) / across) * height)
    for number, row in enumerate(chosen):
        x, y = 1 + (number % across) * width, (number // across) * height + 20
        image, true = album.images.images[row], int(album.images.labels[row])
        maps = [coarse(np.asarray(each.explained.values[row], np.float64).sum(axis=0), 2 * FINEST)
                for each in album.rows]
        limit = limit_of(maps)
        sheet.say(_short(found.classes[true], 20), x, y - 5, fontsize=9.5, fontweight="bold")
        sheet.tile(_photo(image, 2 * FINEST), x, y, side)
        for place, (each, values) in enumerate(zip(album.rows, maps, strict=True), 1):
            left = x + place * (side + GAP)
            sheet.tile(heat(values, limit, image), left, y, side)
            sheet.outline(album, row, left, y, side, INK)
            sheet.say(figures.label(found, each.arm), left, y - 5, fontsize=8, fontweight="bold",
                      color=figures.colour(found, each.arm))
            predicted = int(each.explained.predicted[row])
            if predicted != true:
                sheet.say(f"wrong: {_short(found.classes[predicted], 16)}", left + 4, y + side - 5, fontsize=7,
                          color=RED, zorder=5, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.2})
        sheet.bar(limit, x + tiles * (side + GAP) + 4, y, side)
    return sheet.figure


# --- figures 5.4 and 6.8 ----------------------------------------------------------------------------------------------


def masks(found: Findings, album: Album, chosen: Sequence[int]) -> Figure:
    """Figures 5.4 and 6.8: an image, the outline of its object, and the mask."""
    side, between = 100.0, 26.0
    width, height = 3 * (side + GAP) + between, side + 30
    across = min(len(chosen), int((WIDTH + between) // width))
    sheet = Sheet(across * width - between + 2, math.ceil(len(chosen) / across) * height)
    images = album.images
    for number, row in enumerate(chosen):
        x, y = 1 + (number % across) * width, (number // across) * height + 20
        photo = _photo(images.images[row], 2 * FINEST)
        sheet.say(_short(found.classes[int(images.labels[row])], 20), x, y - 5, fontsize=9.5, fontweight="bold")
        if images.uncertain[row]:
            sheet.say("uncertain", x + 3 * (side + GAP) - GAP, y - 5, ha="right", fontsize=7.5, color=RED)
        sheet.tile(photo, x, y, side)
        sheet.tile(photo, x + side + GAP, y, side)
        for colour, thick in (("white", 2.6), (RED, 1.3)):  # a light rim, so that it is seen on any ground
            sheet.outline(album, row, x + side + GAP, y, side, colour, thick)
        sheet.tile(255 * images.masks[row].astype(np.uint8), x + 2 * (side + GAP), y, side)
    return sheet.figure
