"""What the source `shapes` is painted with: ten silhouettes as polygons and ten textures as fields of tones.

Nothing here depends on a picture's side but the sampling: one generator gives one scene, at 32 and at 96 pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # [point, 2]: x to the right, y downwards
Field = NDArray[np.floating[Any]]  # [row, column], float32
Part = tuple[int, Points]  # a tone and its polygon; later parts lie on earlier ones
Rng = np.random.Generator

HOLE, MAIN, SECOND, ACCENT = 0, 1, 2, 3  # tones; a hole cuts through whatever lies under it
CELLS = 32  # a lattice's side, after which it comes again; a power of two


# Silhouettes


def _ellipse(x: float, y: float, width: float, height: float, start: float = 0, stop: float = 360) -> Points:
    angles = np.radians(np.linspace(start, stop, 40))
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def _mirrored(right: list[tuple[float, float]]) -> Points:
    """A polygon that is symmetric about x = 0, from the points of its right side, top to bottom."""
    side = np.array(right, np.float64)
    return np.concatenate([side, side[::-1] * (-1, 1)])


def _bar(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def arrow(rng: Rng) -> list[Part]:
    """A broad arrow: a head with barbs on a shaft."""
    head, wide, shaft, back = rng.uniform((0.8, 0.62, 0.2, 0.0), (1.1, 0.85, 0.32, 0.18))
    return [(MAIN, _mirrored([(0, -1), (wide, head - 1 + back), (shaft, head - 1), (shaft, 1)])),
            (SECOND, _mirrored([(0, 0.8), (shaft, 0.86), (shaft, 1)]))]


def bottle(rng: Rng) -> list[Part]:
    """A bottle with a cap and a label."""
    wide, neck, shoulder, cap = rng.uniform((0.38, 0.13, -0.45, 0.1), (0.52, 0.18, -0.15, 0.2))
    slope = [(neck + (wide - neck) * step**2 * (3 - 2 * step), shoulder - 0.3 + 0.4 * step)
             for step in np.linspace(0, 1, 9)]
    label = float(rng.uniform(0.2, 0.35))
    return [(MAIN, _mirrored([(neck, -1), *slope, (wide, 0.92), (wide - 0.08, 1)])),
            (SECOND, _bar(-neck * 1.2, -1.02, neck * 1.2, -1 + cap)),
            (ACCENT, _bar(-wide, label - 0.05, wide, label + float(rng.uniform(0.25, 0.4))))]


def fish(rng: Rng) -> list[Part]:
    """A fish from the side: body, tail fin, back fin, eye."""
    deep, tail, spread, fin = rng.uniform((0.36, 0.25, 0.36, 0.12), (0.52, 0.4, 0.52, 0.3))
    x = np.linspace(-1, 0.55, 48)
    lens = deep * np.sin(np.pi * ((x + 1) / 1.72)) ** 0.7
    body = np.concatenate([np.stack([x, -lens], 1), np.stack([x, lens], 1)[::-1]])
    return [(SECOND, np.array([(0.42, -0.06), (0.62 + tail, -spread), (0.62 + tail / 2, 0), (0.62 + tail, spread),
                               (0.42, 0.06)])),
            (SECOND, np.array([(-0.55, -deep * 0.6), (-0.25, -deep - fin), (0.3, -deep * 0.5)])),
            (MAIN, body), (SECOND, np.array([(-0.25, 0.05), (0.1, 0.16), (-0.05, 0.3)])),
            (ACCENT, _ellipse(-0.68, -deep * 0.22, 0.085, 0.085))]


def heart(rng: Rng) -> list[Part]:
    """A heart."""
    wide, dip = rng.uniform((0.95, 0.7), (1.2, 1.15))
    angle = np.linspace(0, 2 * np.pi, 60)
    y = 13 * np.cos(angle) - dip * 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return [(MAIN, np.stack([wide * 16 * np.sin(angle) ** 3, -y], axis=1) / 16)]


def key(rng: Rng) -> list[Part]:
    """A key: a bow with a hole, a shank, two or three teeth."""
    bow, hole, shank = rng.uniform((0.44, 0.38, 0.11), (0.56, 0.55, 0.16))
    parts = [(MAIN, _ellipse(0, -0.6, bow * float(rng.uniform(0.85, 1.1)), bow * 0.9)),
             (HOLE, _ellipse(0, -0.6 - 0.1 * bow, bow * hole, bow * hole * 0.9)),
             (MAIN, _bar(-shank, -0.6 + bow * 0.6, shank, 1))]
    teeth = int(rng.integers(2, 4))
    for number, long in enumerate(rng.uniform(0.24, 0.42, teeth)):
        parts.append((MAIN, _bar(0, 0.98 - 0.29 * number - 0.17, shank + long, 0.98 - 0.29 * number)))
    return [*parts, (SECOND, _bar(-shank, -0.6 + bow * 0.8, shank, -0.48 + bow * 0.8))]


def leaf(rng: Rng) -> list[Part]:
    """A pointed leaf with a stalk, a midrib and side veins."""
    wide, tip, teeth = rng.uniform((0.4, 0.9, 0.0), (0.62, 1.3, 0.09))
    y = np.linspace(0, 1, 37)
    edge = wide * np.sin(np.pi * y**tip) ** 1.15 * (1 + teeth * (np.arange(37) % 3 - 1))
    blade = _mirrored([(float(x), float(-1 + 1.6 * at)) for x, at in zip(edge, y, strict=True)])
    veins = [np.array([(0, at), (sign * 0.75 * wide, at - 0.28), (0, at + 0.045)])
             for at in (-0.3, -0.02, 0.26) for sign in (-1, 1)]
    return [(MAIN, blade), *((SECOND, vein) for vein in veins),
            (SECOND, _mirrored([(0.01, -0.9), (0.03, 0.5), (0.05, 1)]))]


def mug(rng: Rng) -> list[Part]:
    """A mug with a handle and an open top."""
    wide, tall, taper, thick = rng.uniform((0.52, 0.58, 0.8, 0.55), (0.68, 0.8, 1.02, 0.68))
    rim = float(rng.uniform(0.1, 0.19))
    middle, grip = float(rng.uniform(-0.1, 0.1)), float(rng.uniform(0.36, 0.46))
    body = np.concatenate([_ellipse(0, -tall, wide, rim, 180, 360),
                           _ellipse(0, tall, wide * taper, rim, 0, 180)])
    return [(MAIN, _ellipse(wide * 0.95, middle, grip, grip * 1.15)),
            (HOLE, _ellipse(wide * 0.95, middle, grip * thick, grip * 1.15 * thick)),
            (MAIN, body), (SECOND, _ellipse(0, -tall, wide * 0.9, rim * 0.8))]


def mushroom(rng: Rng) -> list[Part]:
    """A mushroom: a domed, spotted cap on a stalk."""
    dome, thick, foot, lip = rng.uniform((0.75, 0.2, 1.05, 0.08), (1.05, 0.32, 1.5, 0.18))
    long = float(rng.uniform(0.75, 1.0))
    stalk = _mirrored([(thick, 0), (thick, long * 0.5), (thick * foot, long), (thick * foot * 0.7, long + 0.06)])
    cap = np.concatenate([_ellipse(0, 0, 1, dome, 180, 360), _ellipse(0, 0, 1, lip, 0, 180)])
    spots: list[Part] = [(ACCENT, _ellipse(x + jitter, -dome * up, size, size * 0.8)) for (x, up), size, jitter in
                         zip(((-0.5, 0.35), (0.02, 0.6), (0.5, 0.3)), rng.uniform(0.07, 0.16, 3),
                             rng.uniform(-0.1, 0.1, 3), strict=True)]
    return [(SECOND, stalk), (MAIN, cap), *spots]


def ring(rng: Rng) -> list[Part]:
    """A ring seen at a slant."""
    slant, hole = rng.uniform((0.7, 0.45), (1.0, 0.66))
    return [(MAIN, _ellipse(0, 0, 1, slant)), (HOLE, _ellipse(0, 0, hole, hole * slant))]


def star(rng: Rng) -> list[Part]:
    """A star of five or six points."""
    points, inner = int(rng.integers(5, 7)), float(rng.uniform(0.4, 0.54))
    angle = np.arange(2 * points) * np.pi / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return [(MAIN, np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))]


SILHOUETTES: dict[str, tuple[Callable[[Rng], list[Part]], float]] = {
    "arrow": (arrow, 180), "bottle": (bottle, 40), "fish": (fish, 40), "heart": (heart, 35), "key": (key, 180),
    "leaf": (leaf, 180), "mug": (mug, 25), "mushroom": (mushroom, 30), "ring": (ring, 90), "star": (star, 36),
}
"""Each kind of object, and how far it may be turned from upright, in degrees."""


def tones(parts: list[Part], side: int) -> NDArray[np.uint8]:
    """The tone that lies on top at each point of a square, `[side, side]`; 0 where there is no object.

    The polygons' coordinates run from 0 to 1 over the square.
    """
    canvas = Image.new("L", (side, side), HOLE)
    draw = ImageDraw.Draw(canvas)
    for tone, points in parts:
        draw.polygon([(x, y) for x, y in (points * side - 0.5).tolist()], fill=tone)
    return np.asarray(canvas)


# Textures


def mixed_noise(rng: Rng, side: int, cells: tuple[float, float], octaves: int) -> Field:
    """Smooth noise of several octaves, of mean 0 and standard deviation about 1, `[side, side]`.

    `cells` is how many bumps of the first octave stand across the picture, down and to the right.
    """
    total = np.zeros((side, side), np.float32)
    weights = np.array([0.55**octave for octave in range(octaves)])
    weights /= 0.75 * np.sqrt((weights**2).sum())  # between the lattice's points, averages vary less than it does
    for octave, weight in enumerate(weights.astype(np.float32)):
        down, right = (max(2, round(number * 2**octave)) for number in cells)
        lattice = Image.fromarray(rng.standard_normal((down, right), np.float32))
        total += weight * np.asarray(lattice.resize((side, side), Image.Resampling.BICUBIC))
    return total


def pooled(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Sums over squares of `factor` x `factor` neighbours, `[row, column]`."""
    rows = sum((values[start::factor] for start in range(1, factor)), values[::factor])
    pools: NDArray[Any] = sum((rows[:, start::factor] for start in range(1, factor)), rows[:, ::factor])
    return pools


def _grid(rng: Rng, side: int, low: float, high: float, turn: float = 180) -> tuple[Field, Field]:
    """Coordinates that are turned by up to `turn` degrees, shifted, and count `low` to `high` periods a side."""
    angle, scale = np.radians(rng.uniform(-turn, turn)), np.exp(rng.uniform(np.log(low), np.log(high)))
    at = (np.arange(side) + 0.5) / side - 0.5
    shift = rng.uniform(0, 20, 2)
    u = scale * (np.cos(angle) * at[None, :] + np.sin(angle) * at[:, None]) + shift[0]
    v = scale * (np.cos(angle) * at[:, None] - np.sin(angle) * at[None, :]) + shift[1]
    return u.astype(np.float32), v.astype(np.float32)


def _step(value: Field, soft: float) -> Field:
    """From 0 to 1 around `value` = 0, over a width of `soft`."""
    ramp: Field = np.clip(value / np.float32(soft) + np.float32(0.5), 0, 1)
    return ramp


def _within(value: Field) -> Field:
    """How far into its unit interval a coordinate is, in [0, 1)."""
    part: Field = value - np.floor(value)
    return part


def _odd(value: Field) -> Field:
    """1 in every second row of a coordinate, 0 in the others."""
    odd: Field = (np.floor(value).astype(np.int32) & 1).astype(np.float32)
    return odd


def _at(lattice: Field, u: Field, v: Field) -> Field:
    """Bilinear samples of a lattice of `CELLS` x `CELLS` that goes on periodically."""
    row, column = np.floor(v), np.floor(u)
    fv, fu = v - row, u - column
    r, c = row.astype(np.int32), column.astype(np.int32)
    upper, lower = (r & (CELLS - 1)) * CELLS, ((r + 1) & (CELLS - 1)) * CELLS
    left, right = c & (CELLS - 1), (c + 1) & (CELLS - 1)
    flat = lattice.ravel()
    above, below = (flat[line + left] * (1 - fu) + flat[line + right] * fu for line in (upper, lower))
    found: Field = above * (1 - fv) + below * fv
    return found


def _patches(rng: Rng, u: Field, v: Field) -> Field:
    """A tone of its own for each unit square of the coordinates."""
    table = rng.standard_normal(CELLS**2, np.float32)
    r, c = np.floor(v).astype(np.int32), np.floor(u).astype(np.int32)
    found: Field = table[(r & (CELLS - 1)) * CELLS + (c & (CELLS - 1))]
    return found


def bricks(rng: Rng, side: int) -> Field:
    """A wall of bricks in running bond."""
    u, v = _grid(rng, side, 5, 9, 12)
    u = (u + _odd(v)) * np.float32(0.5)
    along, up = _within(u), _within(v)
    gap = np.float32(rng.uniform(0.05, 0.09))
    inside = _step(np.minimum(np.minimum(along, 1 - along) * 2, np.minimum(up, 1 - up)) - gap, 0.08)
    tone = 0.62 + 0.13 * _patches(rng, u, v) + 0.07 * mixed_noise(rng, side, (10, 10), 3)
    joint = np.float32(0.05 if rng.random() < 0.5 else 1.0)
    wall: Field = joint + inside * (tone - joint)
    return wall


def checks(rng: Rng, side: int) -> Field:
    """Chequered cloth: squares of two tones, or gingham of three."""
    u, v = _grid(rng, side, 4, 9)
    soft = 0.08
    across, down = (_step(np.abs(_within(w) - 0.5) - 0.25, soft) for w in (u, v))
    tone = (across + down) / 2 if rng.random() < 0.5 else across + down - 2 * across * down
    cloth: Field = 0.1 + 0.8 * tone + 0.06 * mixed_noise(rng, side, (40, 40), 1)
    return cloth + 0.05 * mixed_noise(rng, side, (3, 3), 2)


def clouds(rng: Rng, side: int) -> Field:
    """Soft heaps of noise."""
    cells = float(rng.uniform(1.6, 3.2))
    return 0.5 + 0.3 * mixed_noise(rng, side, (cells * 1.3, cells), 4)


def dots(rng: Rng, side: int) -> Field:
    """A grid of round spots, every second row shifted."""
    u, v = _grid(rng, side, 4.5, 9)
    u = u + _odd(v) * np.float32(0.5)
    radius = np.float32(rng.uniform(0.22, 0.36)) * (1 + np.float32(0.08) * _patches(rng, u, v))
    spot = _step(radius - np.sqrt((_within(u) - 0.5) ** 2 + (_within(v) - 0.5) ** 2), 0.1)
    tone = spot if rng.random() < 0.5 else 1 - spot
    tone = 0.12 + 0.76 * tone + 0.07 * mixed_noise(rng, side, (8, 8), 3)
    return tone


def grass(rng: Rng, side: int) -> Field:
    """Blades, the nearer ones over the farther ones and lighter."""
    count, lean = 220, float(rng.uniform(-0.5, 0.5))
    canvas = Image.new("L", (side, side), 60)
    draw = ImageDraw.Draw(canvas)
    x, y = rng.uniform(-0.1, 1.1, count), np.sort(rng.uniform(0, 1.2, count))
    long, tilt = rng.uniform(0.1, 0.28, count), lean + rng.normal(0, 0.35, count)
    bend, tone = tilt + rng.normal(0, 0.5, count), rng.normal(0, 45, count) + np.linspace(70, 170, count)
    wide = rng.uniform(0.004, 0.014, count)
    knee_x, knee_y = x + 0.55 * long * np.sin(tilt), y - 0.55 * long * np.cos(tilt)
    top_x, top_y = knee_x + 0.45 * long * np.sin(bend), knee_y - 0.45 * long * np.cos(bend)
    outlines = np.stack([x - wide, y, knee_x - wide, knee_y, top_x, top_y, knee_x + wide, knee_y, x + wide, y], axis=1)
    for outline, shade in zip((outlines * side).tolist(), np.clip(tone, 0, 255).astype(int).tolist(), strict=True):
        draw.polygon(outline, fill=shade)
    return np.asarray(canvas, np.float32) / 255 + 0.08 * mixed_noise(rng, side, (3, 3), 2)


def marble(rng: Rng, side: int) -> Field:
    """Veins: a wave bent by noise."""
    u, _ = _grid(rng, side, 1.2, 2.6)
    bent = u + np.float32(rng.uniform(0.25, 0.45)) * mixed_noise(rng, side, (2.5, 2.5), 4)
    vein = (1 - np.abs(np.sin(np.float32(np.pi) * bent))) ** 2.5
    veined: Field = 1 - 0.85 * vein + 0.05 * mixed_noise(rng, side, (6, 6), 3)
    return veined


def sand(rng: Rng, side: int) -> Field:
    """Grains, with darker specks, on slow drifts."""
    fine, specks = mixed_noise(rng, side, (56, 56), 1), mixed_noise(rng, side, (30, 30), 1)
    grains: Field = 0.6 + 0.16 * fine - 0.3 * _step(specks - np.float32(1.5), 0.5)
    return grains + 0.12 * mixed_noise(rng, side, (2.5, 2.5), 2)


def stripes(rng: Rng, side: int) -> Field:
    """Straight stripes at any angle."""
    u, _ = _grid(rng, side, 3.5, 9)
    width, second = np.float32(rng.uniform(0.3, 0.6)), 0.5 * float(rng.random() < 0.5)
    tone = _step(width / 2 - np.abs(_within(u) - 0.5), 0.08)
    tone = np.maximum(tone, second * _step(np.float32(0.05) - np.abs(_within(u) - 0.06), 0.05))
    woven: Field = 0.1 + 0.8 * tone + 0.05 * mixed_noise(rng, side, (40, 40), 1)
    return woven + 0.06 * mixed_noise(rng, side, (3, 3), 2)


def waves(rng: Rng, side: int) -> Field:
    """Ripples on water: crests of crossing waves, bent by noise."""
    u, v = _grid(rng, side, 4, 7, 35)
    drift = mixed_noise(rng, side, (2.5, 2.5), 2)
    crest = np.sin(2 * np.float32(np.pi) * (v + np.float32(0.16) * np.sin(u * np.float32(3)) + np.float32(0.3) * drift))
    cross = np.sin(2 * np.float32(np.pi) * (np.float32(0.6) * u + v * np.float32(1.6) + np.float32(0.2) * drift))
    water: Field = (0.1 + 0.85 * (0.5 + 0.36 * crest + 0.14 * cross) ** 1.8
                    + 0.04 * mixed_noise(rng, side, (20, 20), 2))
    return water


def wood(rng: Rng, side: int) -> Field:
    """Boards with bent grain."""
    u, v = _grid(rng, side, 1.5, 3)
    lattice = rng.standard_normal((CELLS, CELLS), np.float32)
    board = _patches(rng, np.zeros_like(v), v)
    slow = _at(lattice, u * np.float32(0.9) + board * 5, v * np.float32(1.7))
    grain = np.sin(np.float32(2 * np.pi) * (v * np.float32(2.5) + np.float32(0.45) * slow))
    fibre = _at(lattice, u * np.float32(2.2) + board * 9, v * np.float32(17))
    seam = _step(np.minimum(_within(v), 1 - _within(v)) - np.float32(0.03), 0.04)
    boards: Field = (0.5 + 0.12 * board + 0.22 * grain + 0.12 * fibre) * (0.15 + 0.85 * seam)
    return boards


TEXTURES: dict[str, Callable[[Rng, int], Field]] = {
    each.__name__: each for each in (bricks, checks, clouds, dots, grass, marble, sand, stripes, waves, wood)}
"""Each kind of background: a field of tones, `[side, side]`, mostly in [0, 1]."""
