"""Corruptions: each kind against a literal twin and what others make of it; the same wherever a sample comes."""

import colorsys
import io
import math
import statistics
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats

from tlkd import corruptions, seeding
from tlkd.conditions import SETTINGS_OF, Corruption, Distortion
from tlkd.corruptions import CHANGES, LAYERS, on_images, on_input, published_scale
from tlkd.distortions import LABELS, describe

KEYS = seeding.keys([f"sample {number}" for number in range(2000)])
SIDES = (28, 32, 96)
SCALES = ("cifar", "imagenet")
PUBLISHED = {  # as make_cifar_c.py and make_imagenet_c.py have it
    ("cifar", "gaussian_blur"): [.4, .6, .7, .8, 1], ("imagenet", "gaussian_blur"): [1, 2, 3, 4, 6],
    ("cifar", "gaussian_noise"): [.04, .06, .08, .09, .10], ("imagenet", "gaussian_noise"): [.08, .12, .18, .26, .38],
    ("cifar", "contrast"): [.75, .5, .4, .3, .15], ("imagenet", "contrast"): [.4, .3, .2, .1, .05],
    ("cifar", "brightness"): [.05, .1, .15, .2, .3], ("imagenet", "brightness"): [.1, .2, .3, .4, .5],
    ("cifar", "pixelate"): [.95, .9, .85, .75, .65], ("imagenet", "pixelate"): [.6, .5, .4, .3, .25],
    ("cifar", "jpeg"): [80, 65, 58, 50, 40], ("imagenet", "jpeg"): [25, 18, 15, 10, 7],
}
BLACKS = ("center_black", "border_black", "quarter_black")
PASSES = ("low_pass", "band_pass", "high_pass")
STORED = tuple(kind for kind in SETTINGS_OF if kind not in BLACKS)
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(side):
    """Noise, two landscapes with an edge and a dark sky, one colour, black, and a checkerboard whose mean is a half."""
    rng = np.random.default_rng(side)
    noise = rng.integers(0, 256, (side, side, 3), np.uint8)
    down, right = np.mgrid[:side, :side] / side
    scenes = []
    for _ in range(2):
        waves = 0
        for a, b in np.ndindex(5, 5):
            wave = np.cos(np.pi * (a * down + b * right) + rng.random())
            waves = waves + wave[..., None] * rng.normal(0, 40 / (1 + a + b), 3)
        scene = waves + rng.uniform(60, 190, 3) + rng.normal(0, 3, (side, side, 3))
        scene[: side // 5] = 0
        scene[side // 2:, side // 3: side // 2] += 70
        scenes.append(scene.clip(0, 255).astype(np.uint8))
    flat = np.full((side, side, 3), (201, 7, 90), np.uint8)
    checks = ((np.indices((side, side)).sum(0) % 2)[..., None] * np.array([1, 255, 3])).astype(np.uint8)
    return torch.from_numpy(np.stack([noise, *scenes, flat, np.zeros_like(flat), checks]))


def network_inputs(size, count=6, seed=0):
    values = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


def corrupted(distortion, images, keys=None, variant=0, data_seed=0):
    return on_images(distortion, images, KEYS[:len(images)] if keys is None else keys, variant, data_seed)


def covered(distortion, inputs, keys=None, variant=0, data_seed=0, mean=MEAN, sd=SD):
    return on_input(distortion, inputs, KEYS[:len(inputs)] if keys is None else keys, variant, data_seed, mean, sd)


def severities(kind):
    """Every severity on both scales, with its published strength."""
    return [pytest.param(Distortion(kind=kind, severity=severity, scale=scale), PUBLISHED[scale, kind][severity - 1],
                         id=f"{scale}{severity}") for scale in SCALES for severity in range(1, 6)]


def half_up(value):
    """The nearest level of an exact number."""
    return min(255, max(0, math.floor(value + Fraction(1, 2))))


def rounded(values):
    """The nearest levels of numbers, half a level upwards, as uint8; of floats, what misses a half by 1e-9 is one."""
    return np.clip(np.floor(values + 0.5 + 1e-9), 0, 255).astype(np.uint8)


def exact(number):
    """A published number as it is written, not as a float has it."""
    return Fraction(str(number))


def nearest_levels(found, values):
    """Whether levels are the nearest that there are to numbers, which are 0 to 255."""
    return np.abs(found.numpy().astype(np.float64) - np.clip(values, 0, 255)).max() <= 0.5 + 1e-6


# --- the spec and the tables ------------------------------------------------------------------------------------------


def test_every_kind_is_built_once():
    severe = {kind for _, kind in PUBLISHED}
    assert set(LAYERS) == set(BLACKS)
    assert set(CHANGES) == severe - {"gaussian_noise"}
    assert set(SETTINGS_OF) == set(BLACKS) | severe | set(PASSES) == set(LABELS)


@pytest.mark.parametrize("scale", SCALES)
def test_the_severities_are_the_published_ones(scale):
    found = corruptions.PUBLISHED[scale]
    assert {kind: list(values) for kind, values in found.items()} == {
        kind: values for (own, kind), values in PUBLISHED.items() if own == scale}


@pytest.mark.parametrize(("scale", "side", "expected"), [
    ("auto", 28, "cifar"), ("auto", 64, "cifar"), ("auto", 65, "imagenet"), ("auto", 224, "imagenet"),
    ("cifar", 224, "cifar"), ("imagenet", 28, "imagenet")])
def test_the_scale_follows_the_side_where_it_is_auto(scale, side, expected):
    assert published_scale(Distortion(kind="contrast", scale=scale), side) == expected


@pytest.mark.parametrize("kind", [kind for kind in STORED if kind not in PASSES])
def test_auto_is_the_scale_that_it_stands_for(kind):
    for side, scale, other in ((32, "cifar", "imagenet"), (96, "imagenet", "cifar")):
        images = pictures(side)
        found = corrupted(Distortion(kind=kind), images)
        assert torch.equal(found, corrupted(Distortion(kind=kind, scale=scale), images))
        assert not torch.equal(found, corrupted(Distortion(kind=kind, scale=other), images))


# --- Gaussian blur ----------------------------------------------------------------------------------------------------


def blurred(image, sigma):
    """A literal convolution, down and then to the right, of numbers [row, column, channel]."""
    side, reach = len(image), math.floor(4 * sigma + 0.5)
    heights = {offset: math.exp(-offset**2 / (2 * sigma**2)) for offset in range(-reach, reach + 1)}
    total = sum(heights.values())
    values = image.astype(np.float64)
    for _ in range(2):
        rows = [sum(height / total * values[min(max(place + offset, 0), side - 1)]
                    for offset, height in heights.items()) for place in range(side)]
        values = np.stack(rows).swapaxes(0, 1)
    return values


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("distortion", "sigma"), severities("gaussian_blur"))
def test_a_blur_is_the_literal_convolution_and_scipys(distortion, sigma, side):
    images = pictures(side)
    found = corrupted(distortion, images)
    for image, own in zip(images.numpy(), found, strict=True):
        np.testing.assert_array_equal(own, rounded(blurred(image, sigma)))
        assert nearest_levels(own, ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest"))
        assert image.std() < 40 or not nearest_levels(own, ndimage.gaussian_filter(image.astype(float), (
            sigma, sigma, 0), mode="constant"))  # and another edge is seen


# --- Gaussian noise ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SIDES)
def noisy(request):
    """Images, and the normals of each as the standard library finds them, for data seed 3 and variant 2."""
    images, inverse = pictures(request.param), statistics.NormalDist().inv_cdf
    normals = []
    for key in KEYS[:len(images)]:
        draws = seeding.uniforms(np.array([key]), images[0].numel(), "corruption", "gaussian_noise", 3, 2)[0]
        normals.append(np.array([inverse(draw) for draw in draws.tolist()]).reshape(images[0].shape))
    return images, np.stack(normals)


@pytest.mark.parametrize(("distortion", "sd"), severities("gaussian_noise"))
def test_noise_is_the_literal_sum(noisy, distortion, sd):
    images, normals = noisy
    found = corrupted(distortion, images, variant=2, data_seed=3)
    np.testing.assert_array_equal(found, rounded(255 * (images.numpy() / 255 + sd * normals)))


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_is_normal_and_of_its_published_size(severity):
    grey = torch.full((20, 32, 32, 3), 128, dtype=torch.uint8)
    noise = corrupted(Distortion(kind="gaussian_noise", severity=severity), grey).double() - 128
    sd = 255 * PUBLISHED["cifar", "gaussian_noise"][severity - 1]
    assert abs(noise.mean()) < 0.4 and noise.std() == pytest.approx(sd, rel=0.02)
    jittered = noise.flatten().numpy() + np.random.default_rng(0).random(noise.numel()) - 0.5
    assert stats.kstest(jittered[:20000] / jittered.std(), "norm").pvalue > 1e-3
    flat = noise.flatten(1)  # and no two samples, channels or neighbours share it
    assert np.abs(np.corrcoef(flat.numpy()) - np.eye(20)).max() < 0.1
    assert np.abs(np.corrcoef(noise.flatten(0, 2).T.numpy()) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(noise[:, :, 1:].flatten(), noise[:, :, :-1].flatten())[0, 1]) < 0.03


def test_a_draw_of_exactly_0_is_a_pixel_like_others(monkeypatch):
    monkeypatch.setattr(seeding, "uniforms", lambda keys, count, *names: np.zeros((len(keys), count)))
    found = corrupted(Distortion(kind="gaussian_noise", severity=1), torch.full((1, 8, 8, 3), 200, dtype=torch.uint8))
    least = 200 + 255 * 0.04 * statistics.NormalDist().inv_cdf(2.0**-54)
    assert (found == round(least)).all() and 100 < least < 120


# --- contrast and brightness ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("distortion", "factor"), severities("contrast"))
def test_contrast_is_the_literal_one_in_exact_fractions(distortion, factor, side):
    images = pictures(side)
    found, factor = corrupted(distortion, images).numpy(), exact(factor)
    for image, own in zip(images.numpy(), found, strict=True):
        for channel in range(3):
            plane = image[..., channel]
            mean = Fraction(int(plane.sum(dtype=np.int64)), plane.size)
            levels = np.array([half_up((level - mean) * factor + mean) for level in range(256)])
            np.testing.assert_array_equal(own[..., channel], levels[plane])


def test_contrast_draws_each_channel_of_each_image_to_its_own_mean():
    images = pictures(32)
    found = corrupted(Distortion(kind="contrast", severity=5, scale="imagenet"), images).double()
    means = images.double().mean((1, 2), keepdim=True)
    assert ((found - means).abs() <= (images - means).abs() * 0.05 + 0.5).all()
    assert means.flatten(1).std(0).min() > 20  # images and channels differ, so that others' means would not do


def brightened(pixel, amount):
    """A pixel, red, green, blue, with its value raised, in exact fractions."""
    value = max(pixel)
    raised = min(value + 255 * amount, Fraction(255))
    return [half_up(channel * raised / value if value else raised) for channel in pixel]


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize(("distortion", "amount"), severities("brightness"))
def test_brightness_is_the_literal_one_and_that_of_colorsys(distortion, amount, side):
    images = pictures(side)
    found = corrupted(distortion, images)
    for image, own in zip(images, found, strict=True):
        pixels = image.flatten(0, 1).tolist()
        np.testing.assert_array_equal(own.flatten(0, 1), [brightened(pixel, exact(amount)) for pixel in pixels])
        others = []
        for pixel in pixels:
            hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
            others.append(colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1.0)))
        assert nearest_levels(own.flatten(0, 1), 255 * np.array(others))


@pytest.mark.parametrize(("distortion", "amount"), severities("brightness"))
def test_every_colour_is_brightened_exactly(distortion, amount):
    """Six thousand colours of all, among them every grey."""
    colours = np.random.default_rng(0).integers(0, 256, (6144, 3), np.uint8)
    colours[:256] = np.arange(256)[:, None]
    found = corrupted(distortion, torch.from_numpy(colours.reshape(6, 32, 32, 3))).view(-1, 3)
    np.testing.assert_array_equal(found, [brightened(colour, exact(amount)) for colour in colours.tolist()])


# --- pixelate and JPEG ------------------------------------------------------------------------------------------------


def boxed(rows, target):
    """Rows of an image merged or multiplied to `target`: each the mean of those whose centres its box holds."""
    source = len(rows)
    merged = []
    for place in range(target):
        # Distances from centre to centre and half a box's width, all times 2 target.
        held = [rows[number].astype(int) for number in range(source)
                if -max(source, target) < (2 * number + 1) * target - (2 * place + 1) * source <= max(source, target)]
        merged.append((2 * sum(held) + len(held)) // (2 * len(held)))  # half a level upwards
    return np.stack(merged)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("distortion", "factor"), severities("pixelate"))
def test_pixels_are_the_literal_means(distortion, factor, side):
    images = pictures(side)
    for image, own in zip(images.numpy(), corrupted(distortion, images), strict=True):
        expected = image
        for target in (math.floor(side * exact(factor)), side):
            expected = boxed(boxed(expected.swapaxes(0, 1), target).swapaxes(0, 1), target)
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize(("distortion", "factor"), severities("pixelate"))
def test_pixels_are_pillows(distortion, factor):
    """At odd sides too, where a pixel's centre may lie on a box's edge."""
    for side in (*SIDES, 8, 11, 33, 37, 41, 69, 224):
        images = pictures(side)[:2]
        for image, own in zip(images.numpy(), corrupted(distortion, images), strict=True):
            small = Image.fromarray(image).resize((int(side * factor), int(side * factor)), Image.Resampling.BOX)
            np.testing.assert_array_equal(own, np.asarray(small.resize((side, side), Image.Resampling.BOX)))


def test_an_image_of_two_pixels_is_pixelated_too():
    images = torch.tensor([0, 100, 101, 255], dtype=torch.uint8).view(1, 2, 2, 1).expand(1, 2, 2, 3)
    found = corrupted(Distortion(kind="pixelate", severity=5, scale="imagenet"), images)
    assert (found == 114).all()  # 50 and 178, then their mean


def reread(image, quality):
    """An image, uint8 [row, column, channel], written as a JPEG and read again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(("distortion", "quality"), severities("jpeg"))
def test_a_jpeg_is_pillows(distortion, quality):
    for side in (*SIDES, 33):
        images = pictures(side)
        found = corrupted(distortion, images)
        for image, own in zip(images.numpy(), found, strict=True):
            np.testing.assert_array_equal(own, reread(image, quality))
        assert (found[0].numpy() != reread(images[0].numpy(), quality + 5)).any()  # and not any quality's


# --- frequencies ------------------------------------------------------------------------------------------------------

BANDS = [("low_pass", (0.0, 0.25)), ("low_pass", (0.0, 0.0)), ("low_pass", (0.0, 1.0)), ("band_pass", (0.1, 0.4)),
         ("band_pass", (0.25, 0.25)), ("band_pass", (0.6, 1.2)), ("high_pass", (0.25, 1.5)), ("high_pass", (0.5, 1.5)),
         ("high_pass", (1.0, 1.5))]


def filtered(image, band):
    """A literal Fourier transform, as sums, of numbers [row, column, channel]; frequencies in exact fractions."""
    side = len(image)
    number = np.arange(side)
    waves = np.exp(-2j * np.pi * np.outer(number, number) / side)
    spectrum = np.einsum("ur,vc,rck->uvk", waves, waves, image.astype(complex), optimize=True)
    signed = [place if 2 * place <= side else place - side for place in range(side)]
    for row in range(side):
        for column in range(side):
            squared = Fraction(4 * (signed[row]**2 + signed[column]**2), side**2)
            if not exact(band[0])**2 <= squared <= exact(band[1])**2 and (row, column) != (0, 0):
                spectrum[row, column] = 0
    back = np.einsum("ur,vc,uvk->rck", waves.conj(), waves.conj(), spectrum, optimize=True) / side**2
    assert np.abs(back.imag).max() < 1e-6
    return back.real


@pytest.mark.parametrize(("kind", "band"), BANDS)
def test_a_filter_is_the_literal_one(kind, band):
    for side in (*SIDES, 33, 40):
        images = pictures(side)[:1 if side == 96 else 6]
        found = corrupted(Distortion(kind=kind, band=band), images)
        for image, own in zip(images.numpy(), found, strict=True):
            np.testing.assert_array_equal(own, rounded(filtered(image, band)))


@pytest.mark.parametrize("side", [31, 32])
@given(st.integers(-15, 15), st.integers(-15, 15), st.floats(0, 1.4), st.floats(0, 1.4), st.sampled_from(PASSES))
@settings(max_examples=40, deadline=None)
def test_a_wave_passes_if_its_frequency_does(side, down, right, one, other, kind):
    band = (round(min(one, other), 3), round(max(one, other), 3))
    rows, columns = np.mgrid[:side, :side]
    wave = 127 + 90 * np.cos(2 * np.pi * (down * rows + right * columns) / side + 0.3)
    image = torch.from_numpy(np.rint(wave).astype(np.uint8))[None, :, :, None].expand(1, side, side, 3)
    found = corrupted(Distortion(kind=kind, band=band), image).numpy()
    inside = exact(band[0]) <= Fraction(2, side) * exact(math.hypot(down, right)) <= exact(band[1])
    if inside or (down, right) == (0, 0):
        assert np.abs(found - wave[..., None]).max() <= 3  # less what rounding the wave put elsewhere
    else:
        assert np.abs(found - wave.mean()).max() <= 3


@pytest.mark.parametrize("side", SIDES)
def test_two_bands_that_share_none_sum_to_the_image(side):
    images = pictures(side)[1:4] // 2 + 64  # so that nothing is clipped
    low, high = (corrupted(Distortion(kind=kind, band=band), images).double()
                 for kind, band in (("low_pass", (0.0, 0.3)), ("high_pass", (0.3001, 1.5))))
    assert min(low.min(), high.min()) > 0 and max(low.max(), high.max()) < 255
    means = images.double().mean((1, 2), keepdim=True)
    assert (low + high - means - images).abs().max() <= 1 + 1e-9
    for passed in (low, high):
        torch.testing.assert_close(passed.mean((1, 2), keepdim=True), means, rtol=0, atol=0.1)


# --- black ------------------------------------------------------------------------------------------------------------


def blackened(distortion, picture, draw, mean, sd):
    """One picture, [3, size, size], pixel by pixel."""
    size, found = picture.shape[1], picture.clone()
    if distortion.size is not None:
        least, greatest = (exact(each) for each in distortion.size)
        pixels = max(1, math.floor((least + exact(draw) * (greatest - least)) * size + Fraction(1, 2)))
        first = (size - pixels) // 2
    for row in range(size):
        for column in range(size):
            if distortion.kind == "quarter_black":
                half = size // 2
                hit = (2 * (row >= half) + (column >= half)) == math.floor(4 * draw)
            else:
                square = first <= row < first + pixels and first <= column < first + pixels
                hit = square == (distortion.kind == "center_black")
            if hit:
                for channel in range(3):
                    found[channel, row, column] = -mean[channel] / sd[channel]
    return found


@pytest.mark.parametrize("distortion", [
    Distortion(kind="center_black"), Distortion(kind="border_black"), Distortion(kind="quarter_black"),
    *(Distortion(kind=kind, size=size) for kind in ("center_black", "border_black")
      for size in ((0.001, 0.001), (0.1, 0.9), (0.5, 0.5), (0.7, 0.7), (1.0, 1.0)))],
    ids=describe)
def test_black_is_laid_pixel_by_pixel(distortion):
    for size, count in ((1, 2), (2, 6), (28, 4), (32, 4), (33, 4), (96, 1)):
        inputs = network_inputs(size, count)
        draws = seeding.uniforms(KEYS[:count], 1, "corruption", distortion.kind, 5, 1)[:, 0].tolist()
        found = covered(distortion, inputs, variant=1, data_seed=5)
        for picture, draw, own in zip(inputs, draws, found, strict=True):
            assert torch.equal(own, blackened(distortion, picture, draw, MEAN, SD))


def test_half_a_pixel_is_one_more():
    """0.7 of 45 is 31.5, and a little less in floating point."""
    inputs = torch.ones(1, 3, 45, 45)
    found = covered(Distortion(kind="center_black", size=(0.7, 0.7)), inputs)
    assert 0.7 * 45 < 31.5 and (found != 1).sum() == 3 * 32 * 32


@pytest.mark.parametrize(("mean", "sd"), [(MEAN, SD), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
                                          ((127 / 255,) * 3, (128 / 255,) * 3)])
def test_a_square_of_the_whole_side_is_wholly_black(mean, sd):
    inputs = network_inputs(33)
    found = covered(Distortion(kind="center_black", size=(1.0, 1.0)), inputs, mean=mean, sd=sd)
    black = torch.tensor([-each / spread for each, spread in zip(mean, sd, strict=True)])
    assert torch.equal(found, black.view(1, 3, 1, 1).expand_as(inputs))
    assert torch.equal(covered(Distortion(kind="border_black", size=(1.0, 1.0)), inputs), inputs)


@pytest.mark.parametrize("kind", ["center_black", "border_black"])
def test_sides_fill_their_range_evenly(kind):
    size, keys = 60, KEYS[:2000]
    found = covered(Distortion(kind=kind, size=(0.2, 1.0)), torch.ones(2000, 3, size, size), keys)
    black = (found[:, 0] != 1).sum((1, 2)).double()
    sides = (black if kind == "center_black" else size**2 - black).sqrt().long()
    counts = torch.bincount(sides, minlength=size + 1)[12:].numpy()  # 12 to 60; the two ends get half as much
    assert sides.min() == 12 and sides.max() == 60 and counts.sum() == 2000
    expected = np.r_[0.5, np.ones(47), 0.5] / 48 * 2000
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_the_thesiss_square_is_200_to_224_pixels():
    found = covered(Distortion(kind="center_black"), torch.ones(150, 3, 224, 224))
    sides = (found[:, 0] != 1).sum((1, 2)).double().sqrt()
    assert sides.min() == 200 and sides.max() == 224 and len(sides.unique()) == 25


def test_the_four_quarters_are_alike_likely():
    found = covered(Distortion(kind="quarter_black"), torch.ones(2000, 3, 6, 6), KEYS)[:, 0] != 1
    corners = torch.stack([found[:, 0, 0], found[:, 0, -1], found[:, -1, 0], found[:, -1, -1]], 1)
    assert (corners.sum(1) == 1).all() and (found.sum((1, 2)) == 9).all()
    assert stats.chisquare(corners.sum(0).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("distortion", [Distortion(kind="center_black", size=(0.1, 0.9)),
                                        Distortion(kind="border_black", size=(0.1, 0.9)),
                                        Distortion(kind="quarter_black")], ids=describe)
def test_teacher_and_student_lose_the_same_part(distortion):
    teacher, student = (covered(distortion, torch.ones(50, 3, size, size))[:, 0] != 1 for size in (96, 48))
    part, other = (black.double().mean((1, 2)) for black in (teacher, student))
    assert (part - other).abs().max() < 0.045
    assert (teacher[:, ::2, ::2] != student).double().mean((1, 2)).max() < 0.09  # but for rows and columns at the edge
    assert (teacher != teacher[:1]).any((1, 2)).double().mean() > 0.6  # where samples differ


# --- the same wherever a sample comes ---------------------------------------------------------------------------------

ALL = [Distortion(kind=kind) for kind in SETTINGS_OF]
RANDOM = ("gaussian_noise", *BLACKS)


def laid(distortion, count=6, keys=None, variant=0, data_seed=0, order=slice(None)):
    """The kind's own batch, corrupted."""
    keys = KEYS[:count] if keys is None else keys
    if distortion.kind in BLACKS:
        return covered(distortion, network_inputs(33)[order], keys, variant, data_seed)
    return corrupted(distortion, pictures(32)[order], keys, variant, data_seed)


@pytest.mark.parametrize("distortion", ALL, ids=describe)
@given(st.permutations(range(6)), st.integers(0, 6))
@settings(max_examples=8, deadline=None)
def test_a_sample_looks_the_same_in_every_batch(distortion, order, count):
    whole = laid(distortion)
    order = order[:count]
    assert torch.equal(laid(distortion, keys=KEYS[order], order=order), whole[order])


@pytest.mark.parametrize("distortion", ALL, ids=describe)
def test_only_key_variant_and_data_seed_change_it(distortion):
    first = laid(distortion, variant=2, data_seed=3)
    torch.manual_seed(7)
    np.random.default_rng().random()
    assert torch.equal(laid(distortion, keys=KEYS[:6].copy(), variant=2, data_seed=3), first)
    others = [laid(distortion, variant=1, data_seed=3), laid(distortion, variant=2, data_seed=4),
              laid(distortion, keys=KEYS[6:12], variant=2, data_seed=3), laid(distortion, variant=3, data_seed=2)]
    for other in others:
        assert torch.equal(other, first) != (distortion.kind in RANDOM)


def test_variants_and_kinds_are_drawn_apart():
    """No two of a sample's variants share its geometry, nor do the two squares."""
    inputs = torch.ones(200, 3, 100, 100)
    sides = []
    for kind, variant, data_seed in (("center_black", 0, 0), ("center_black", 1, 0), ("center_black", 0, 1),
                                     ("border_black", 0, 0)):
        found = covered(Distortion(kind=kind, size=(0.01, 1.0)), inputs, variant=variant, data_seed=data_seed)
        sides.append((found[:, 0] != 1).sum((1, 2)).numpy())
    assert np.abs(np.corrcoef(sides) - np.eye(4)).max() < 0.25


@pytest.mark.parametrize("distortion", ALL, ids=describe)
def test_a_corruption_does_what_its_distortion_does(distortion):
    corruption = Corruption(kind=distortion.kind, fraction=0.1, variants=3)
    assert torch.equal(laid(corruption), laid(distortion))
    assert torch.equal(laid(corruption.distortion), laid(distortion))


@pytest.mark.parametrize("side", [28, 33, 96])
@pytest.mark.parametrize("distortion", ALL, ids=describe)
def test_type_shape_and_memory_are_kept_and_the_argument_left_alone(distortion, side):
    images, inputs = pictures(side), network_inputs(side)
    kept, changed = (images, inputs) if distortion.kind in BLACKS else (inputs, images)
    before = changed.clone()
    found, same = corrupted(distortion, images), covered(distortion, inputs)
    if distortion.kind in BLACKS:
        found, same = same, found
        assert found.is_contiguous(memory_format=torch.channels_last)
    else:
        assert found.is_contiguous()
    assert same is kept
    assert torch.equal(changed, before) and not torch.equal(found, before)
    assert found.data_ptr() != changed.data_ptr()
    assert found.dtype == changed.dtype and found.shape == changed.shape


@pytest.mark.parametrize("distortion", ALL, ids=describe)
def test_a_batch_may_be_empty(distortion):
    none = np.zeros(0, np.uint64)
    images, inputs = torch.zeros(0, 32, 32, 3, dtype=torch.uint8), network_inputs(33)[:0]
    for found, given_ in ((corrupted(distortion, images, none), images), (covered(distortion, inputs, none), inputs)):
        assert found.shape == given_.shape and found.dtype == given_.dtype


@pytest.mark.parametrize("distortion", [each for each in ALL if each.kind not in BLACKS], ids=describe)
def test_images_need_not_lie_in_one_piece(distortion):
    whole = pictures(32)
    doubled = whole.repeat_interleave(2, 2)[:, :, ::2]
    assert not doubled.is_contiguous()
    assert torch.equal(corrupted(distortion, doubled), corrupted(distortion, whole))


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "words"), [
    ({"kind": "center_black"}, "CenterBlack, side 0.89 to 1"),
    ({"kind": "center_black", "size": (0.5, 0.5)}, "CenterBlack, side 0.5"),
    ({"kind": "border_black", "size": (0.25, 0.755)}, "BorderBlack, side 0.25 to 0.76"),
    ({"kind": "border_black", "size": (0.004, 0.0625)}, "BorderBlack, side 0.004 to 0.062"),
    ({"kind": "quarter_black"}, "QuarterBlack"),
    ({"kind": "gaussian_noise"}, "Gaussian noise, severity 3"),
    ({"kind": "gaussian_blur", "severity": 5, "scale": "cifar"}, "Gaussian blur, severity 5 of CIFAR-10-C"),
    ({"kind": "jpeg", "severity": 1, "scale": "imagenet"}, "JPEG, severity 1 of ImageNet-C"),
    ({"kind": "contrast"}, "contrast, severity 3"),
    ({"kind": "low_pass"}, "low-pass to 0.25"),
    ({"kind": "low_pass", "band": (0.0, 0.0)}, "low-pass to 0"),
    ({"kind": "low_pass", "band": (0.1, 0.25)}, "low-pass 0.1 to 0.25"),
    ({"kind": "band_pass"}, "band-pass 0.1 to 0.4"),
    ({"kind": "high_pass"}, "high-pass from 0.25"),
    ({"kind": "high_pass", "band": (0.25, 1.0)}, "high-pass 0.25 to 1"),
])
def test_a_distortion_in_words(settings, words):
    assert describe(Distortion(**settings)) == words == describe(Corruption(**settings, fraction=0.5))


def test_words_need_no_torch():
    script = "import sys, tlkd.distortions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
