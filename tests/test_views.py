"""Views: the same pixels wherever a sample comes, resized as torchvision does it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from tlkd import seeding, views
from tlkd.views import IDENTITY, View, corrupted, crop_boxes, render, resample_weights, train_views

UNIT = {"data_seed": 0, "mean": (0.0, 0.0, 0.0), "sd": (1.0, 1.0, 1.0)}
KEYS = seeding.keys([f"sample {number}" for number in range(3000)])
MIXED = train_views(("hflip", "crop:3"))
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count=4, side=40, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8))


def planes(pixels):
    """As torchvision takes them: float64 in [0, 1], channels first."""
    return pixels.permute(0, 3, 1, 2).double() / 255


def shown(pixels, size, view=IDENTITY, **settings):
    count = len(pixels)
    return render(pixels, KEYS[:count], (view,), np.zeros(count, np.int64), size, **{**UNIT, **settings})


# --- which views there are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("augment", "names"), [
    ((), ["identity"]),
    (("hflip",), ["identity", "flip"]),
    (("crop:1",), ["crop0"]),
    (("crop:2",), ["crop0", "crop1"]),
    (("hflip", "crop:2"), ["crop0", "crop0+flip", "crop1", "crop1+flip"]),
    (("crop:2", "hflip"), ["crop0", "crop0+flip", "crop1", "crop1+flip"]),
    (("crop:12",), [f"crop{number}" for number in range(12)]),
])
def test_the_views_that_training_draws_from(augment, names):
    assert [str(view) for view in train_views(augment)] == names
    assert len(set(train_views(augment))) == len(names)


def test_corrupted_views_are_all_views_in_one_variant_after_the_other():
    assert [str(view) for view in corrupted(train_views(("hflip", "crop:1")), 2)] == [
        "crop0#1", "crop0+flip#1", "crop0#2", "crop0+flip#2"]
    assert [str(view) for view in corrupted(train_views(()), 3)] == ["identity#1", "identity#2", "identity#3"]
    every = MIXED + corrupted(MIXED, 4)
    assert len({str(view) for view in every}) == len(set(every)) == 5 * len(MIXED)


def test_a_variant_alone_moves_no_pixel():
    """What it does is the condition's business."""
    plain, other = (render(images(), KEYS[:4], some, np.arange(4), 32, **UNIT) for some in (MIXED, corrupted(MIXED, 1)))
    assert torch.equal(plain, other)


def test_the_identity_is_the_identity():
    assert View() == IDENTITY == train_views(())[0] and str(IDENTITY) == "identity"


# --- boxes ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(0, 1000))
@settings(max_examples=30)
def test_boxes_lie_in_the_square_and_in_torchvisions_ranges(crop, data_seed):
    top, left, height, width = crop_boxes(KEYS[:200], crop, data_seed).T
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-12
    area, ratio = height * width, width / height
    assert area.min() >= 0.08 - 1e-12 and area.max() <= 1
    assert ratio.min() >= 3 / 4 - 1e-12 and ratio.max() <= 4 / 3 + 1e-12


def test_boxes_fill_their_ranges_evenly():
    top, left, height, width = crop_boxes(KEYS, 0, 0).T
    area, ratio = height * width, width / height
    small = (area > 0.08) & (area < 0.7)  # of these none sticks out, so that none was cut
    assert small.mean() == pytest.approx((0.7 - 0.08) / 0.92, abs=0.03)
    assert stats.kstest((area[small] - 0.08) / 0.62, "uniform").pvalue > 1e-3
    logs = (np.log(ratio[small]) - math.log(3 / 4)) / (math.log(4 / 3) - math.log(3 / 4))
    assert stats.kstest(logs, "uniform").pvalue > 1e-3
    assert stats.kstest(top[small] / (1 - height[small]), "uniform").pvalue > 1e-3
    assert stats.kstest(left[small] / (1 - width[small]), "uniform").pvalue > 1e-3
    places = top[small] / (1 - height[small]), left[small] / (1 - width[small])
    assert np.abs(np.corrcoef(np.stack([area[small], logs, *places])) - np.eye(4)).max() < 0.1


def test_a_box_follows_from_key_crop_and_data_seed_alone():
    boxes = crop_boxes(KEYS[:50], 2, 7)
    assert boxes.shape == (50, 4) and boxes.dtype == np.float64
    np.testing.assert_array_equal(crop_boxes(KEYS[:50], 2, 7), boxes)
    np.testing.assert_array_equal(crop_boxes(KEYS[49:19:-3], 2, 7), boxes[49:19:-3])
    for other in (crop_boxes(KEYS[:50], 3, 7), crop_boxes(KEYS[:50], 2, 8), crop_boxes(KEYS[50:100], 2, 7)):
        assert not np.isclose(other, boxes).any()


def test_the_literal_box():
    area, ratio, down, right = seeding.uniforms(KEYS[:1], 4, "crop", 0, 1)[0].tolist()
    area, ratio = 0.08 + 0.92 * area, math.exp(math.log(0.75) + ratio * (math.log(4 / 3) - math.log(0.75)))
    height, width = min(math.sqrt(area / ratio), 1), min(math.sqrt(area * ratio), 1)
    np.testing.assert_allclose(crop_boxes(KEYS[:1], 1, 0)[0], [down * (1 - height), right * (1 - width), height, width])


# --- resizing ---------------------------------------------------------------------------------------------------------


def triangle(row, start, length, target):
    """Resample one row of numbers over an interval of it, as Pillow's triangle filter does, one number at a time."""
    scale = length / target
    support = max(scale, 1.0)
    found = []
    for place in range(target):
        centre = start + (place + 0.5) * scale
        total = weight_sum = 0.0
        for pixel, value in enumerate(row):
            if start < pixel + 0.5 < start + length:
                weight = max(0.0, 1 - abs(pixel + 0.5 - centre) / support)
                total, weight_sum = total + weight * value, weight_sum + weight
        found.append(total / weight_sum)
    return found


@given(st.integers(0, 10**6), st.integers(8, 40), st.integers(3, 50), st.floats(0, 1), st.floats(0.25, 1))
@settings(max_examples=40, deadline=None)
def test_resampling_is_the_literal_triangle_filter(seed, source, target, place, share):
    row = np.random.default_rng(seed).random(source)
    length = share * source
    start = place * (source - length)
    weights = resample_weights(torch.tensor([start], dtype=torch.float64), torch.tensor([length], dtype=torch.float64),
                               source, target)
    assert weights.shape == (1, target, source)
    torch.testing.assert_close(weights.sum(2), torch.ones(1, target, dtype=torch.float64), rtol=0, atol=1e-12)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights[0].numpy() @ row, triangle(row, start, length, target), rtol=0, atol=1e-10)


def test_nothing_outside_the_box_is_seen():
    weights = resample_weights(torch.tensor([5.0]), torch.tensor([10.0]), 30, 8)[0]
    assert (weights[:, :5] == 0).all() and (weights[:, 15:] == 0).all()
    assert (weights[:, 5:15] > 0).any(0).all()  # and all that is inside is


@pytest.mark.parametrize(("side", "size"), [(40, 96), (40, 56), (28, 48), (40, 41), (40, 39), (96, 40), (64, 48),
                                            (50, 10), (40, 1), (8, 64), (40, 80), (80, 40), (32, 224)])
def test_the_identity_is_torchvisions_antialiased_resize(side, size):
    pixels = images(side=side)
    expected = tv.resize(planes(pixels), [size, size], antialias=True)
    torch.testing.assert_close(shown(pixels, size).double(), expected, **CLOSE)
    if size < side:  # and not the one without, so that the comparison could fail
        plain = tv.resize(planes(pixels), [size, size], antialias=False)
        assert (shown(pixels, size) - plain).abs().max() > 0.02


def test_at_its_own_size_an_image_stays_as_it_is():
    pixels = images()
    torch.testing.assert_close(shown(pixels, 40).double(), planes(pixels), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [24, 40, 64])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_torchvisions_resized_crop(size, flip, monkeypatch):
    """With boxes of whole pixels, since torchvision knows no others; top and left, height and width all differ."""
    boxes = np.array([[3, 7, 20, 30], [0, 0, 40, 40], [10, 15, 30, 25], [1, 2, 13, 12]])
    monkeypatch.setattr(views, "crop_boxes", lambda keys, crop, data_seed: boxes / 40)
    pixels = images()
    found = shown(pixels, size, View(0, flip))
    for image, box, own in zip(planes(pixels), boxes.tolist(), found, strict=True):
        expected = tv.resized_crop(image, *box, [size, size], antialias=True)
        torch.testing.assert_close(own.double(), tv.horizontal_flip(expected) if flip else expected, **CLOSE)


@pytest.mark.parametrize("size", [24, 40, 64])
@pytest.mark.parametrize("crop", [None, 1])
def test_a_flip_mirrors_what_is_seen_without_it(size, crop):
    pixels = images()
    plain, flipped = shown(pixels, size, View(crop)), shown(pixels, size, View(crop, True))
    torch.testing.assert_close(flipped, tv.horizontal_flip(plain), **CLOSE)
    assert (plain - flipped).abs().max() > 0.1


@pytest.mark.parametrize("size", [24, 40, 64])
@pytest.mark.parametrize("view", [IDENTITY, View(0, True)])
def test_normalising_is_torchvisions(size, view):
    mean, sd = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = images()
    found = shown(pixels, size, view, mean=mean, sd=sd)
    torch.testing.assert_close(found, tv.normalize(shown(pixels, size, view), mean, sd), rtol=0, atol=2e-5)
    black = shown(torch.zeros_like(pixels), size, view, mean=mean, sd=sd)
    expected = (-torch.tensor(mean) / torch.tensor(sd)).view(1, 3, 1, 1).expand_as(black)
    torch.testing.assert_close(black, expected, rtol=0, atol=1e-5)


def test_packaged_normalisation_is_as_their_authors_write_it():
    """(x - 127) / 128, exactly, for every value of a pixel."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    found = shown(pixels, 16, mean=(127 / 255,) * 3, sd=(128 / 255,) * 3)
    expected = ((pixels.permute(0, 3, 1, 2).double() - 127) / 128)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)


# --- the same pixels everywhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 40, 64])
@pytest.mark.parametrize("augment", [(), ("hflip",), ("crop:3",), ("hflip", "crop:3")])
def test_a_sample_looks_the_same_in_every_batch(size, augment):
    some = train_views(augment)
    pixels, which = images(20), np.arange(20) % len(some)
    whole = render(pixels, KEYS[:20], some, which, size, **UNIT)
    order = np.random.default_rng(1).permutation(20)
    again = render(pixels[order], KEYS[:20][order], some, which[order], size, **UNIT)
    torch.testing.assert_close(again, whole[order], **CLOSE)
    for number in (0, 7, 19):
        alone = render(pixels[number:number + 1], KEYS[number:number + 1], some, which[number:number + 1], size, **UNIT)
        torch.testing.assert_close(alone, whole[number:number + 1], **CLOSE)
        lone_view = render(pixels[number:number + 1], KEYS[number:number + 1], (some[which[number]],),
                           np.zeros(1, np.int64), size, **UNIT)
        torch.testing.assert_close(lone_view, whole[number:number + 1], **CLOSE)


@pytest.mark.parametrize("size", [24, 40, 64])
def test_rendering_twice_gives_the_same_bits(size):
    pixels, which = images(12), np.arange(12) % 6
    first = render(pixels, KEYS[:12], MIXED, which, size, **UNIT)
    torch.manual_seed(5)
    assert torch.equal(render(pixels.clone(), KEYS[:12].copy(), MIXED, which, size, **UNIT), first)
    assert torch.equal(pixels, images(12))  # and the images are left alone


def test_crops_change_with_sample_number_and_data_seed():
    one = images(1).expand(3, -1, -1, -1)
    found = shown(one, 32, View(0))
    assert all((found[i] - found[j]).abs().max() > 0.05 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert ((shown(one, 32, View(1)) - found).abs().amax((1, 2, 3)) > 0.05).all()
    assert ((shown(one, 32, View(0), data_seed=1) - found).abs().amax((1, 2, 3)) > 0.05).all()
    assert torch.equal(shown(one, 32, data_seed=1), shown(one, 32))  # the identity has no geometry to draw


def seen_box(picture, side):
    """Where a picture was cut from, read off its pixels: red counts the columns of its source, green the rows."""
    size = picture.shape[-1]
    inner = slice(size // 4, -(size // 4))  # at the ends the filter is cut, and no longer symmetric
    places = np.arange(size)[inner] + 0.5
    box = []
    for channel, axis in ((1, 0), (0, 1)):
        ramp = picture[channel].double().mean(1 - axis).numpy()[inner] * 255 / 2
        slope, start = np.polyfit(places, ramp + 0.5, 1)
        box.append((start / side, slope * size / side))
    (top, height), (left, width) = box
    return [top, left, height, width]


@pytest.mark.parametrize("crop", [0, 1, 2])
def test_teacher_and_student_see_the_same_box_at_their_own_sizes(crop):
    side = 96
    ramp = torch.zeros(30, side, side, 3, dtype=torch.uint8)
    ramp[..., 0] = 2 * torch.arange(side, dtype=torch.uint8)
    ramp[..., 1] = 2 * torch.arange(side, dtype=torch.uint8)[:, None]
    teacher, student = shown(ramp, 64, View(crop)), shown(ramp, 48, View(crop))
    expected = crop_boxes(KEYS[:30], crop, 0)
    for number in range(30):
        np.testing.assert_allclose(seen_box(teacher[number], side), expected[number], atol=0.01)
        np.testing.assert_allclose(seen_box(student[number], side), expected[number], atol=0.01)
    assert np.abs(expected[1:] - expected[:-1]).max(1).min() > 0.05  # another sample's would not pass


@pytest.mark.parametrize(("size", "augment"), [(24, ()), (40, ()), (40, ("hflip",)), (64, ("crop:2",))])
def test_a_network_gets_float32_channels_last(size, augment):
    found = render(images(), KEYS[:4], train_views(augment), np.zeros(4, np.int64), size, **UNIT)
    assert found.shape == (4, 3, size, size) and found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_an_even_image_stays_even_in_every_view():
    pixels = torch.full((20, 30, 30, 3), 77, dtype=torch.uint8)
    for size in (8, 30, 100):
        found = render(pixels, KEYS[:20], MIXED, np.arange(20) % 6, size, **UNIT)
        torch.testing.assert_close(found, torch.full_like(found, 77 / 255), **CLOSE)
