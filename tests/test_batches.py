"""Sources of batches: banked rows, pixels, live networks, and what is made of them; and predictions in order."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from tlkd import corruptions, seeding, views
from tlkd.batches import CleanView, Joined, Live, Pixels, Rows, Shuffled, chunks, predict
from tlkd.conditions import Distortion

CPU = torch.device("cpu")
BANK = np.random.default_rng(0).standard_normal((3, 10, 4)).astype(np.float32)
indices = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=20)


def pixels(some=("hflip", "crop:2"), size=20, rows=None, side=24):
    stored = np.random.default_rng(1).integers(0, 256, (12, side, side, 3), np.uint8)
    rows = np.array([11, 3, 5, 0, 7]) if rows is None else rows
    keys = seeding.keys([f"image {number}" for number in range(12)])[rows]
    return Pixels(stored, rows, keys, views.train_views(some), size, 0, (0.5,) * 3, (0.25,) * 3, CPU)


@given(indices)
def test_rows_are_those_of_view_and_sample(pairs):
    which, samples = (np.array(column) for column in zip(*pairs, strict=True))
    found = Rows(BANK, CPU)(which, samples)
    twin = np.stack([BANK[view, sample] for view, sample in pairs])
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), twin)


def test_a_batch_may_be_written_to_without_harm():
    rows = Rows(BANK.copy(), CPU)
    rows(np.array([1]), np.array([2])).zero_()
    np.testing.assert_array_equal(rows(np.array([1]), np.array([2]))[0].numpy(), BANK[1, 2])


def test_a_memory_mapped_bank_is_gathered_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "bank.npy", BANK)
    found = Rows(np.load(tmp_path / "bank.npy", mmap_mode="c"), CPU)(np.array([2, 0]), np.array([9, 0]))
    np.testing.assert_array_equal(found.numpy(), BANK[[2, 0], [9, 0]])
    assert not recwarn.list


def test_a_bank_too_large_to_be_held_gives_the_same_rows(monkeypatch):
    monkeypatch.setattr(Rows, "RESIDENT", 0)
    np.testing.assert_array_equal(Rows(BANK, CPU)(np.array([2, 0]), np.array([9, 0])).numpy(), BANK[[2, 0], [9, 0]])


def test_pixels_are_the_views_of_the_splits_own_rows():
    source = pixels()
    which, samples = np.array([0, 3, 1, 2]), np.array([4, 0, 0, 2])
    found = source(which, samples)
    assert found.shape == (4, 3, 20, 20)
    for own, view, sample in zip(found, which, samples, strict=True):
        image = torch.from_numpy(source.images[source.rows[sample]][None])
        expected = views.render(image, source.keys[sample:sample + 1], (source.views[view],), np.zeros(1, np.int64),
                                20, 0, (0.5,) * 3, (0.25,) * 3)[0]
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    assert (found[1] - found[2]).abs().max() > 0.5  # one sample in two views


def test_pixels_read_a_memory_mapped_read_only_file(tmp_path, recwarn):
    np.save(tmp_path / "images.npy", pixels().images)
    stored = np.load(tmp_path / "images.npy", mmap_mode="r")
    source = Pixels(**{**vars(pixels()), "images": stored})
    assert torch.equal(source(np.array([0, 1]), np.array([2, 2])), pixels()(np.array([0, 1]), np.array([2, 2])))
    assert not recwarn.list


def test_live_is_the_network_on_the_views_and_keeps_no_graph():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    which, samples = np.array([0, 3, 1]), np.array([4, 0, 2])
    found = Live(network, pixels())(which, samples)
    assert not found.requires_grad and torch.equal(found, network(pixels()(which, samples)).detach())


@given(st.integers(0, 50), st.integers(1, 20))
def test_chunks_are_all_numbers_in_order(count, size):
    found = list(chunks(count, size))
    assert [number for chunk in found for number in chunk.tolist()] == list(range(count))
    assert all(len(chunk) == size for chunk in found[:-1]) and all(1 <= len(chunk) <= size for chunk in found)
    assert all(chunk.dtype == np.int64 for chunk in found)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 256])
def test_predictions_are_in_the_splits_order_and_first_view(batch_size):
    found = predict(lambda rows: rows * 2, Rows(BANK, CPU), 10, batch_size)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, 2 * BANK[0])


def test_predictions_are_float32_and_need_no_gradient():
    layer = nn.Linear(4, 2).bfloat16()
    modes = []

    def forward(rows):
        modes.append(torch.is_inference_mode_enabled())
        return layer(rows.bfloat16())

    found = predict(forward, Rows(BANK, CPU), 10)
    assert found.dtype == np.float32 and found.shape == (10, 2) and modes == [True]


def test_a_network_is_predicted_alike_from_pixels_and_one_by_one():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    source = pixels(())
    twin = [network(source(np.zeros(1, np.int64), np.array([sample])))[0].tolist() for sample in range(5)]
    np.testing.assert_allclose(predict(network, source, 5, 2), twin, rtol=0, atol=1e-5)


# --- distorted views --------------------------------------------------------------------------------------------------


KINDS = [Distortion(kind="center_black", size=(0.3, 0.9)), Distortion(kind="quarter_black"),
         Distortion(kind="gaussian_noise", severity=5, scale="imagenet"),
         Distortion(kind="jpeg", severity=2, scale="cifar")]


def distorted(distortion, variants=2, some=("hflip", "crop:2"), size=20):
    clean = pixels(some, size)
    every = clean.views + views.corrupted(clean.views, variants)
    return Pixels(**{**vars(clean), "views": every, "distortion": distortion})


def by_hand(source, view, sample):
    """One sample in one view: the stored image distorted, rendered, and the input distorted."""
    one, key = torch.from_numpy(source.images[source.rows[sample]][None].copy()), source.keys[sample:sample + 1]
    variant = source.views[view].variant
    if variant:
        one = corruptions.on_images(source.distortion, one, key, variant, source.data_seed)
    found = views.render(one, key, (source.views[view],), np.zeros(1, np.int64), source.size, source.data_seed,
                         source.mean, source.sd)
    if variant:
        found = corruptions.on_input(source.distortion, found, key, variant, source.data_seed, source.mean, source.sd)
    return found[0]


@pytest.mark.parametrize("distortion", KINDS, ids=lambda each: each.kind)
@pytest.mark.parametrize(("some", "size"), [(("hflip", "crop:2"), 20), ((), 24)])
def test_distorted_views_are_what_the_corruption_makes_of_each_sample_by_hand(distortion, some, size):
    source = distorted(distortion, some=some, size=size)
    count = len(source.views)
    which, samples = (each.ravel() for each in np.meshgrid(np.arange(count), np.arange(5)))
    order = np.random.default_rng(3).permutation(len(which))
    which, samples = which[order], samples[order]
    found = source(which, samples)
    for own, view, sample in zip(found, which, samples, strict=True):
        torch.testing.assert_close(own, by_hand(source, view, sample), rtol=0, atol=1e-5)
    for own, view, sample in zip(found, which, samples, strict=True):  # and each is another picture than the clean one
        clean = by_hand(source, view % (count // 3), sample)
        changed = (own - clean).abs().max().item() > 0.05
        assert changed == (source.views[view].variant > 0)


@pytest.mark.parametrize("distortion", KINDS[:3], ids=lambda each: each.kind)
def test_the_variants_of_a_random_distortion_differ_and_so_do_the_samples(distortion):
    source = distorted(distortion, variants=3, some=())
    found = [source(np.full(5, variant), np.arange(5)) for variant in (1, 2, 3)]
    differing = [(one - other).abs().flatten(1).max(1).values > 0.1 for one, other in itertools.combinations(found, 2)]
    assert torch.stack(differing).any(0).all()
    black = Pixels(**{**vars(source), "images": np.full_like(source.images, 200)})
    same_image = black(np.full(5, 1), np.arange(5))
    assert len({each.numpy().tobytes() for each in same_image}) > 1  # of one picture, since the samples have other keys


@pytest.mark.parametrize("distortion", KINDS, ids=lambda each: each.kind)
def test_a_sample_is_distorted_alike_in_whatever_batch_it_comes(distortion):
    source = distorted(distortion)
    which, samples = np.array([0, 5, 9, 4, 11, 3]), np.array([0, 1, 2, 3, 4, 0])
    together = source(which, samples)
    for number, (view, sample) in enumerate(zip(which, samples, strict=True)):
        alone = source(np.array([view]), np.array([sample]))[0]
        torch.testing.assert_close(together[number], alone, rtol=0, atol=1e-5)
    assert together.is_contiguous(memory_format=torch.channels_last)


def test_distorting_writes_nothing_into_the_stored_images():
    source = distorted(KINDS[2])
    before = source.images.copy()
    source(np.array([4, 5]), np.array([0, 1]))
    np.testing.assert_array_equal(source.images, before)


def test_without_variants_a_distortion_does_nothing():
    source = distorted(KINDS[0])
    which, samples = np.array([0, 3, 1]), np.array([4, 0, 2])
    assert torch.equal(source(which, samples), pixels()(which, samples))


# --- sources made of sources ------------------------------------------------------------------------------------------


def count_of(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CLEAN, CORRUPTED = count_of((3, 10, 4), 0), count_of((6, 10, 4), 1)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9)), min_size=1, max_size=30))
def test_joined_sources_are_one_bit_for_bit(pairs):
    which, samples = (np.array(column) for column in zip(*pairs, strict=True))
    found = Joined(Rows(CLEAN, CPU), Rows(CORRUPTED, CPU), 3)(which, samples)
    one = Rows(np.concatenate([CLEAN, CORRUPTED]), CPU)(which, samples)
    assert torch.equal(found, one)
    np.testing.assert_array_equal(found.numpy(), [(CLEAN[view] if view < 3 else CORRUPTED[view - 3])[sample]
                                                  for view, sample in pairs])


def test_joined_sources_are_asked_for_what_is_theirs_alone():
    asked = {"clean": [], "corrupted": []}

    def spy(name, bank):
        def source(which, samples):
            asked[name].append((which.tolist(), samples.tolist()))
            return Rows(bank, CPU)(which, samples)

        return source

    joined = Joined(spy("clean", CLEAN), spy("corrupted", CORRUPTED), 3)
    joined(np.array([0, 2]), np.array([5, 6]))
    joined(np.array([3, 8]), np.array([7, 8]))
    joined(np.array([4, 1, 3]), np.array([9, 0, 1]))
    assert asked == {"clean": [([0, 2], [5, 6]), ([1], [0])],
                     "corrupted": [([0, 5], [7, 8]), ([1, 0], [9, 1])]}


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9)), min_size=1, max_size=20))
def test_a_clean_view_is_that_of_the_same_geometry_without_its_variant(pairs):
    which, samples = (np.array(column) for column in zip(*pairs, strict=True))
    found = CleanView(Rows(CLEAN, CPU), 3)(which, samples)
    np.testing.assert_array_equal(found.numpy(), [CLEAN[view % 3, sample] for view, sample in pairs])


def test_the_numbers_of_corrupted_views_are_those_that_training_and_clean_view_reckon_with():
    geometry = views.train_views(("hflip", "crop:2"))
    every = geometry + views.corrupted(geometry, 3)
    for number, view in enumerate(every):
        assert view == dataclasses.replace(every[number % len(geometry)], variant=number // len(geometry))


# --- shuffled soft labels ---------------------------------------------------------------------------------------------


SAMPLES, CLASSES = 3000, 4
LOGITS = count_of((2, SAMPLES, CLASSES), 2)
LABELS = np.random.default_rng(3).integers(0, CLASSES, SAMPLES)
KEYS = seeding.keys([f"image {number}" for number in range(SAMPLES)])


def shuffled(seed=0, labels=LABELS, logits=LOGITS, keys=KEYS):
    return Shuffled(Rows(logits, CPU), labels, keys, seed)


def orders(source, which=0, samples=None):
    """Where each value went: the places `[sample, class]` in the original that the shuffled values come from."""
    samples = np.arange(SAMPLES) if samples is None else samples
    found, given_ = source(np.full_like(samples, which), samples).numpy(), source.source(
        np.full_like(samples, which), samples).numpy()
    return (found[:, :, None] == given_[:, None, :]).argmax(2)


def test_shuffled_keeps_the_labels_own_logit_and_moves_the_others_about():
    found = shuffled()(np.zeros(SAMPLES, np.int64), np.arange(SAMPLES)).numpy()
    own = np.arange(SAMPLES), LABELS
    np.testing.assert_array_equal(found[own], LOGITS[0][own])
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(LOGITS[0], axis=1))
    moved = (found != LOGITS[0]).any(1).mean()
    assert 0.75 < moved < 0.9  # all but the 1 in 6 that stay as they are by chance


def test_the_order_belongs_to_the_sample_in_all_views_epochs_and_batches():
    source = shuffled()
    first = orders(source)
    np.testing.assert_array_equal(first, orders(source, which=1))
    some = np.array([7, 2999, 0, 7])
    np.testing.assert_array_equal(first[some], orders(source, samples=some))
    np.testing.assert_array_equal(first, orders(shuffled()))
    other = shuffled(labels=LABELS[::-1].copy(), logits=LOGITS[:, ::-1].copy(), keys=KEYS[::-1].copy())
    np.testing.assert_array_equal(first, orders(other)[::-1])


def test_every_order_of_the_others_is_as_likely():
    found = orders(shuffled())
    for label in range(CLASSES):
        counts = Counter(map(tuple, found[label == LABELS].tolist()))
        assert len(counts) == math.factorial(CLASSES - 1)
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_another_seed_has_other_orders():
    one, other = orders(shuffled(0)), orders(shuffled(1))
    same = int((one == other).all(1).sum())
    assert stats.binomtest(same, SAMPLES, 1 / 6).pvalue > 1e-4


def test_of_two_classes_nothing_can_be_shuffled():
    logits, labels = LOGITS[:, :, :2].copy(), LABELS % 2
    found = shuffled(labels=labels, logits=logits)(np.zeros(9, np.int64), np.arange(9))
    np.testing.assert_array_equal(found.numpy(), logits[0, :9])
