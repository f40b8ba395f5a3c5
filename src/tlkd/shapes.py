"""The source `shapes`: small photo-like scenes of ten kinds of objects, made from a seed, with exact masks.

Every sample is a function of its id, the settings and `data_seed`. An object's colours, light and camera are drawn
without regard to its class or its ground; what gives a class away is the silhouette and, as far as `tie` says so, the
kind of background. One scene comes at every `size`, `noise` and `tie` (with another background, where that changes),
so that studies may be compared image by image.
"""

import colorsys
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkd import scenery, seeding
from tlkd.specs import Shapes, canonical_hash

VERSION = 1  # of the generator: part of the fingerprint
CLASSES = tuple(scenery.SILHOUETTES)
BACKGROUNDS = tuple(scenery.TEXTURES)
FINER = 4  # samples along each side of a pixel, for the object's edge
AREA = (0.13, 0.32)  # the share of the picture that an object is drawn to cover
MARGIN = 0.03  # of the side, between an object and the picture's edge
REACH = 0.92  # the share of the side that an object's longer extent may fill; it may cost area
TYPICAL = {"bricks": "brick", "checks": "cream", "clouds": "sky", "dots": "rose", "grass": "green", "marble": "grey",
           "sand": "tan", "stripes": "navy", "waves": "teal", "wood": "brown"}
PALETTE = {"brick": (0.03, 0.55, 0.62), "cream": (0.12, 0.2, 0.9), "sky": (0.58, 0.4, 0.82), "rose": (0.94, 0.4, 0.8),
           "green": (0.27, 0.55, 0.55), "grey": (0.1, 0.06, 0.7), "tan": (0.1, 0.36, 0.76), "navy": (0.62, 0.5, 0.52),
           "teal": (0.5, 0.5, 0.55), "brown": (0.07, 0.55, 0.5), "olive": (0.18, 0.45, 0.5), "slate": (0.6, 0.12, 0.55)}
"""Hue, saturation and value of the colours that backgrounds share."""

Plane = NDArray[np.float32]  # [row, column]
Picture = NDArray[np.float32]  # [RGB, row, column], in [0, 1]: arithmetic with planes is faster this way round
Colour = NDArray[np.float32]  # [RGB]


@dataclass(frozen=True, eq=False)
class Listing:
    """All samples of a setting, none of them painted yet."""

    ids: tuple[str, ...]  # [sample]
    labels: NDArray[np.int64]  # [sample], numbers of CLASSES
    held_out: NDArray[np.bool_]  # [sample]: the test split
    fingerprint: str
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """A sample before the camera: the ground, the object as if it were everywhere, where it is, and its shadow."""

    ground: Picture
    thing: Picture
    coverage: Plane  # the share of each pixel that the object covers
    shadow: Plane  # the share of light that it takes from the ground


def samples(settings: Shapes, data_seed: int) -> Listing:
    """List the samples of a setting; a larger number a class only adds to them."""
    counts = {"train": settings.train_per_class, "test": settings.test_per_class}
    listed = [(f"{split}/{name}/{number:04d}", label, split == "test") for split, count in counts.items()
              for label, name in enumerate(CLASSES) for number in range(count)]
    made_from = {"shapes": VERSION, "data_seed": data_seed, "numpy": np.__version__,  # whose streams may change
                 **settings.model_dump(mode="json"), "test_tie": _tie(settings, "test")}
    pairs = ", ".join(f"{name} on {kind}" for name, kind in own_backgrounds(data_seed).items())
    is_tied = _tie(settings, "train") > 0 or _tie(settings, "test") > 0
    tied = (f"shapes: the classes' own backgrounds are {pairs}",) if is_tied else ()
    return Listing(ids=tuple(entry[0] for entry in listed), labels=np.array([entry[1] for entry in listed], np.int64),
                   held_out=np.array([entry[2] for entry in listed]), fingerprint=canonical_hash(made_from),
                   notes=(truth(settings), *tied))


def truth(settings: Shapes) -> str:
    """What is known of the scenes, in a sentence: how often the background is the one that goes with the class."""
    shares = {split: _tie(settings, split) + (1 - _tie(settings, split)) / len(CLASSES) for split in ("train", "test")}
    return (f"shapes: the background is the class's own in {100 * shares['train']:.3g} % of the train (and dev) images "
            f"and in {100 * shares['test']:.3g} % of the test images, by expectation; {100 / len(CLASSES):.3g} % is "
            "chance, where the background says nothing about the class")


def own_backgrounds(data_seed: int) -> dict[str, str]:
    """The kind of background that belongs to each class: a permutation drawn from `data_seed`."""
    order = seeding.generator("shapes", "own backgrounds", data_seed).permutation(len(BACKGROUNDS))
    return {name: BACKGROUNDS[int(number)] for name, number in zip(CLASSES, order, strict=True)}


def background_kind(sample_id: str, settings: Shapes, data_seed: int) -> str:
    """The kind of background of a sample: its class's own with probability `tie`, otherwise any of the ten.

    Under a larger tie more samples have their own background, and the others keep theirs.
    """
    split, name = _parsed(sample_id, settings)
    draws = seeding.uniforms(seeding.keys([sample_id]), 2, "shapes", "background", data_seed)[0]
    if draws[0] < _tie(settings, split):
        return own_backgrounds(data_seed)[name]
    return BACKGROUNDS[int(draws[1] * len(BACKGROUNDS))]


def mask(sample_id: str, settings: Shapes, data_seed: int) -> NDArray[np.bool_]:
    """The foreground of a sample, `[size, size]`: pixels that the object covers by more than half.

    The object's shadow is background. Raises `ValueError` for ids that the settings do not list.
    """
    covered: NDArray[np.bool_] = coverage_by_tone(sample_id, settings, data_seed).sum(axis=0) > 0.5
    return covered


def render(sample_id: str, settings: Shapes, data_seed: int) -> Image.Image:
    """The picture of a sample, RGB of `size` x `size`; raises `ValueError` for ids that the settings do not list."""
    scene = compose(sample_id, settings, data_seed)
    return Image.fromarray(photograph(scene, sample_id, settings, data_seed))


def _parsed(sample_id: str, settings: Shapes) -> tuple[str, str]:
    """The split and the class of a sample."""
    found = re.fullmatch(r"(train|test)/([a-z]+)/(\d{4,9})", sample_id, re.ASCII)
    count = getattr(settings, f"{found[1]}_per_class") if found else 0
    if found is None or found[2] not in CLASSES or f"{int(found[3]):04d}" != found[3] or int(found[3]) >= count:
        raise ValueError(f"{sample_id!r} is no sample of these shapes; allowed: train/CLASS/NUMBER with four digits "
                         f"from 0000 to {settings.train_per_class - 1:04d}, test/CLASS/NUMBER up to "
                         f"{settings.test_per_class - 1:04d}, where CLASS is one of {', '.join(CLASSES)}")
    return found[1], found[2]


def _tie(settings: Shapes, split: str) -> float:
    return settings.tie if split == "train" or settings.test_tie is None else settings.test_tie


# The object


def coverage_by_tone(sample_id: str, settings: Shapes, data_seed: int) -> NDArray[np.float32]:
    """The share of each pixel that each tone of the object covers, `[tone, row, column]`, exact in sixteenths."""
    _, name = _parsed(sample_id, settings)
    outline, limit = scenery.SILHOUETTES[name]
    rng = seeding.generator("shapes", "object", data_seed, sample_id)
    parts = outline(rng)
    turn, stretch, area = np.radians(rng.uniform(-limit, limit)), rng.uniform(0.88, 1.14), rng.uniform(*AREA)
    mirror, place = 1 if rng.random() < 0.5 else -1, rng.uniform(0, 1, 2)
    pose = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * (
        np.array([mirror * stretch, 1 / stretch])[:, None])
    posed = [(tone, points @ pose) for tone, points in parts]
    solid = np.concatenate([points for tone, points in posed if tone != scenery.HOLE])
    low, extent = solid.min(axis=0), np.ptp(solid, axis=0)
    inside = [(tone, (points - low) / extent.max()) for tone, points in posed]
    share = np.count_nonzero(scenery.tones(inside, 64)) / 64**2  # of the square that the longer extent spans
    scale = min(float(np.sqrt(area / share)), REACH)
    corner = MARGIN + place * (1 - 2 * MARGIN - scale * extent / extent.max())
    top = scenery.tones([(tone, points * scale + corner) for tone, points in inside], FINER * settings.size)
    # One byte of a number a tone, so that all are counted at once; sixteen at most fit.
    counted = scenery.pooled(np.array([0, 1, 1 << 8, 1 << 16], np.uint32)[top], FINER)
    counts = np.stack([(counted >> shift) & 255 for shift in (0, 8, 16)])
    return counts.astype(np.float32) / np.float32(FINER**2)


# Colours and light


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)), np.float32)


def _near(rng: np.random.Generator, name: str) -> Colour:
    """A colour near one of the palette."""
    hue, saturation, value = np.array(PALETTE[name]) + rng.normal(0, (0.03, 0.1, 0.1))
    return _rgb(hue, saturation, value)


def _ground_colours(kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """A light and a dark colour, `[2, RGB]`; any kind may have any colours, some more often."""
    names = list(PALETTE)
    light = _near(rng, TYPICAL[kind] if rng.random() < 0.4 else names[int(rng.integers(len(names)))])
    other = _near(rng, names[int(rng.integers(len(names)))])
    deep, blend = rng.uniform(0.3, 0.62), 0.15 if rng.random() < 0.6 else 0.8
    return np.stack([light, (light * (1 - blend) + other * blend) * deep]).astype(np.float32)


def _ground(kind: str, rng: np.random.Generator, size: int, beside: Colour) -> tuple[Picture, Plane]:
    """The albedo of a background, and the tones that its relief follows.

    Of three draws of colours it has the ones on which an object of the colour `beside` stands out most.
    """
    light, dark = max((_ground_colours(kind, rng) for _ in range(3)),
                      key=lambda pair: float(np.abs(pair.mean(axis=0) - beside).sum()))
    tint = rng.normal(0, 0.02, 3)
    # Sampled twice as finely, so that stripes and strokes have soft edges.
    tone = np.clip(scenery.pooled(scenery.TEXTURES[kind](rng, 2 * size), 2) / 4, -0.15, 1.15).astype(np.float32)
    drift = scenery.mixed_noise(rng, size, (2, 2), 2)
    return np.clip(_spread(dark) + _spread(light - dark) * tone + _spread(tint) * drift, 0.02, 1), tone


def _spread(colour: NDArray[Any]) -> Picture:
    """A colour as a picture of one pixel."""
    return colour.astype(np.float32)[:, None, None]


def _thing_colours(rng: np.random.Generator) -> NDArray[np.float32]:
    """The colours of an object's three tones, `[tone, RGB]`."""
    hue, saturation, value = rng.random(), rng.triangular(0.05, 0.4, 0.8), rng.uniform(0.25, 0.9)
    turned, paler, darker = rng.normal(0, 0.06), rng.uniform(0.6, 1.1), rng.uniform(0.55, 0.85)
    second = value * darker if value > 0.5 else value / darker
    accent = _rgb(rng.random(), rng.uniform(0.0, 0.35), 0.15 if value > 0.7 else rng.uniform(0.8, 0.95))
    return np.stack([_rgb(hue, saturation, value), _rgb(hue + turned, saturation * paler, second), accent])


def _blurred(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """A Gaussian blur along the last two axes, `sigma` in pixels."""
    from scipy.ndimage import gaussian_filter1d

    for axis in (-2, -1):
        values = gaussian_filter1d(values, sigma, axis=axis, mode="nearest", truncate=3.0)
    return values


def _shading(height: Plane, light: NDArray[np.float64]) -> tuple[Plane, Plane]:
    """Lambert's cosine under a far light, and that of a highlight, of a surface with heights in pixels."""
    down, right = np.gradient(height)
    norm = np.sqrt(1 + down**2 + right**2)
    half = light + np.array((0, 0, 1))
    half /= np.sqrt((half**2).sum())
    lambert, gloss = (np.clip((np.float32(to[2]) - np.float32(to[0]) * right - np.float32(to[1]) * down) / norm, 0, 1)
                      for to in (light, half))
    return lambert, gloss


def compose(sample_id: str, settings: Shapes, data_seed: int) -> Scene:
    """Paint a sample's ground, object and shadow under one light."""
    size, kind = settings.size, background_kind(sample_id, settings, data_seed)
    by_tone = coverage_by_tone(sample_id, settings, data_seed)
    coverage: Plane = by_tone.sum(axis=0)
    colours = _thing_colours(seeding.generator("shapes", "colours", data_seed, sample_id))
    albedo, tone = _ground(kind, seeding.generator("shapes", "ground", data_seed, sample_id, kind), size, colours[0])
    rng = seeding.generator("shapes", "light", data_seed, sample_id)
    around, steep = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    light = np.array([np.cos(around) * np.cos(steep), np.sin(around) * np.cos(steep), np.sin(steep)])
    ambient, dark, soft, far, bulge, gleam, narrow, rough, slope = rng.uniform(
        (0.4, 0.35, 0.015, 0.03, 0.03, 0.0, 8, 0.2, 0.1), (0.6, 0.7, 0.05, 0.08, 0.1, 0.4, 30, 0.8, 0.45)).tolist()

    # The object's height is its outline blurred at several widths: edges fall off, the middle is flat.
    near, *wider = (_blurred(coverage, width * size) for width in (0.015, 0.04, 0.08))
    lambert, gloss = _shading(sum(wider, near) * np.float32(bulge * size), light)
    grain = 1 + float(rng.uniform(0.01, 0.05)) * scenery.mixed_noise(rng, size, (6, 6), 3)
    shares = by_tone / np.maximum(coverage, np.float32(1 / FINER**2))
    base = sum((_spread(colours[each]) * shares[each] for each in (1, 2)), _spread(colours[0]) * shares[0])
    thing = base * (grain * (ambient + (1 - 0.9 * ambient) * lambert / float(light[2]))) + gleam * gloss**narrow

    # One shadow is thrown away from the light, one lies where the object touches the ground.
    right, down = np.rint(-light[:2] / np.cos(steep) * far * size).astype(int).tolist()
    shadow = np.clip(dark * _blurred(_moved(coverage, down, right), soft * size) + 0.3 * near, 0, 0.9)
    relief, _ = _shading(_blurred(tone, 0.5 * size / 64) * np.float32(rough), light)
    at = ((np.arange(size) + 0.5) / size - 0.5) / np.cos(steep)
    fall = (1 + slope * (at[None, :] * light[0] + at[:, None] * light[1])).astype(np.float32)
    ground = albedo * (fall * (ambient + (1.1 - ambient) * relief / float(light[2])))
    blur = float(rng.uniform(0.2, 0.9)) * size / 64  # the ground lies a little out of focus
    return Scene(ground=_blurred(ground, blur), thing=thing, coverage=coverage, shadow=shadow)


def _moved(values: Plane, down: int, right: int) -> Plane:
    """Values moved by whole pixels, with zeros coming in."""
    height, width = values.shape
    result = np.zeros_like(values)
    result[max(down, 0):height + min(down, 0), max(right, 0):width + min(right, 0)] = (
        values[max(-down, 0):height - max(down, 0), max(-right, 0):width - max(right, 0)])
    return result


def photograph(scene: Scene, sample_id: str, settings: Shapes, data_seed: int) -> NDArray[np.uint8]:
    """What the camera makes of a scene, `[row, column, RGB]`: blur, vignetting, exposure, a cast, sensor noise."""
    size = settings.size
    rng = seeding.generator("shapes", "camera", data_seed, sample_id)
    blur, vignette, exposure, contrast = rng.uniform((0.25, 0.0, 0.95, 0.9), (0.6, 0.35, 1.25, 1.15)).tolist()
    cast = rng.normal(1, 0.04, 3)
    image = scene.ground * ((1 - scene.shadow) * (1 - scene.coverage)) + scene.thing * scene.coverage
    at = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    falloff = 1 - vignette * (at[None, :]**2 + at[:, None]**2) / 2
    image = np.clip(_blurred(image, blur * size / 64) * falloff * _spread(cast * exposure), 0, 1)
    image = np.clip(0.5 + (image - 0.5) * contrast, 0, 1)
    # Brighter pixels catch more photons, and vary more; part of the noise is common to the channels.
    level = settings.noise * np.sqrt(0.35 + 0.65 * image.sum(axis=0) / 3)
    noise = rng.standard_normal((4, size, size), np.float32)
    noisy = image + level * (0.8 * noise[3] + 0.6 * noise[:3])
    return np.ascontiguousarray(np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8).transpose(1, 2, 0))
