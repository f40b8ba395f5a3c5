"""Sources of batches: banked rows, pixels, live networks; and predictions in order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tlkd import seeding, views
from tlkd.batches import Live, Pixels, Rows, chunks, predict

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
