"""Banks: what the live network would give, for all views, whole or not at all."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from tlkd import banks, progress, seeding, store, views
from tlkd.batches import Live, Pixels, Rows

CPU = torch.device("cpu")
COUNTS = {"train": 70, "dev": 9, "test": 65}  # one batch and a bit, part of one, one and a single sample


class Network(nn.Module):
    """A tiny one with all that could go wrong: batch norm and dropout; counts what it was shown."""

    def __init__(self, width=5):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                                    nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, width))
        self.layers[1].running_mean.normal_()
        self.seen = 0
        self.eval()

    def forward(self, images):
        self.seen += len(images)
        return 10 * self.layers(images)


def sources(size=24, some=("hflip", "crop:2")):
    drawn = np.random.default_rng(0)
    found, mean, sd = {}, (0.5,) * 3, (0.25,) * 3
    for split, count in COUNTS.items():
        chosen = views.train_views(some if split == "train" else ())
        stored = drawn.integers(0, 256, (count, 20, 20, 3), np.uint8)
        keys = seeding.keys([f"{split} {number}" for number in range(count)])
        source = Pixels(stored, np.arange(count), keys, chosen, size, 0, mean, sd, CPU)
        found[split] = source, len(chosen), count
    return found


def build(cache, network, width=5, made_from=None, inputs=None, **options):
    made_from, inputs = made_from or {"size": 24}, inputs or {"backbone": "b"}
    return banks.build(cache, "logits", made_from, inputs, width, sources(**options), network, "logits")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_bank_holds_what_the_live_network_gives(tmp_path):
    network = Network()
    arrays = build(tmp_path, network).arrays
    assert set(arrays) == set(COUNTS)
    for split, (source, count_views, count) in sources().items():
        assert arrays[split].shape == (count_views, count, 5) and arrays[split].dtype == np.float32
        live, banked = Live(network, source), Rows(arrays[split], CPU)
        order = np.random.default_rng(2).permutation(count)[:33]
        for view in range(count_views):
            which = np.full_like(order, view)
            torch.testing.assert_close(banked(which, order), live(which, order), rtol=1e-5, atol=1e-5)
        mixed = order % count_views
        torch.testing.assert_close(banked(mixed, order), live(mixed, order), rtol=1e-5, atol=1e-5)
    assert np.abs(arrays["train"][0] - arrays["train"][1]).max() > 0.01  # the views differ, so that a mix-up would show
    assert np.abs(np.diff(arrays["train"][0], axis=0)).max(1).min() > 1e-4  # and the samples


def test_a_bank_is_the_literal_loop_over_single_images(tmp_path):
    network = Network()
    train = build(tmp_path, network).arrays["train"]
    source = sources()["train"][0]
    with torch.no_grad():
        for view, sample in ((0, 0), (1, 63), (2, 64), (3, 69), (0, 69)):
            alone = network(source(np.array([view]), np.array([sample])))[0]
            np.testing.assert_allclose(train[view, sample], alone.numpy(), rtol=1e-5, atol=1e-5)


def test_raw_logits_are_kept_not_probabilities(tmp_path):
    arrays = build(tmp_path, Network()).arrays
    rows = arrays["train"].reshape(-1, 5)
    assert rows.min() < 0 and rows.max() > 1 and np.abs(rows.sum(1) - 1).max() > 0.5
    assert np.abs(np.exp(rows).sum(1) - 1).max() > 0.5  # nor their logarithms


def test_a_bank_is_made_once(tmp_path):
    network = Network()
    first = build(tmp_path, network)
    assert network.seen == 70 * 4 + 9 + 65
    again = build(tmp_path, network)
    assert network.seen == 70 * 4 + 9 + 65 and again.artifact == first.artifact
    build(tmp_path, network, made_from={"size": 25})
    build(tmp_path, network, inputs={"backbone": "c"})
    assert network.seen == 3 * (70 * 4 + 9 + 65)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_bank_is_made_again_and_said(tmp_path, capsys, damage):
    progress.console.cache_clear()
    network = Network()
    bank = build(tmp_path, network)
    before = {split: array.copy() for split, array in bank.arrays.items()}
    path = bank.artifact.path / "train.npy"
    whole = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + (bytes([whole[-1] ^ 1]) if damage == "flip" else b""))
    seen = network.seen
    again = build(tmp_path, network).arrays
    assert network.seen == 2 * seen
    for split in COUNTS:
        np.testing.assert_array_equal(again[split], before[split])
    said = capsys.readouterr().err
    progress.console.cache_clear()
    assert "made again" in said and str(bank.artifact.path) in said


def test_the_manifest_says_what_is_in_it(tmp_path):
    artifact = build(tmp_path, Network()).artifact
    assert artifact.about["splits"] == {"train": [4, 70, 5], "dev": [1, 9, 5], "test": [1, 65, 5]}
    assert artifact.about["torch"] == torch.__version__
    assert artifact.manifest["spec"] == {"size": 24} and artifact.manifest["inputs"] == {"backbone": "b"}
    assert set(artifact.manifest["files"]) == {"train.npy", "dev.npy", "test.npy"}
    assert store.damaged(artifact.path) == []


def test_a_bank_is_the_same_to_the_bit_for_any_number_of_threads(tmp_path):
    """Of torch's own too: a convolution on two threads adds up in another order than on one."""
    found = {}
    for number, (own, torchs) in enumerate([(1, 1), (2, 1), (3, 1), (3, 2), (0, 2)]):
        torch.set_num_threads(torchs)
        try:
            bank = banks.build(tmp_path / str(number), "logits", {}, {}, 5, sources(), Network(), "logits", own)
            assert torch.get_num_threads() == torchs  # as it was found
        finally:
            torch.set_num_threads(1)
        found[own, torchs] = {split: array.tobytes() for split, array in bank.arrays.items()}
    assert all(each == found[1, 1] for each in found.values())


def test_each_batch_of_a_bank_is_computed_by_one_thread_and_several_at_a_time(tmp_path):
    seen, meeting = set(), threading.Barrier(2, timeout=60)

    def forward(images):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        if len(images) == banks.BATCH["cpu"]:
            meeting.wait()  # two batches of the eight are under way together, or this never ends
        return images.flatten(1)[:, :5]

    torch.set_num_threads(2)
    try:
        banks.build(tmp_path, "logits", {}, {}, 5, {"train": sources()["train"]}, forward, "logits", 2)
    finally:
        torch.set_num_threads(1)
    assert len(seen) == 2 and {threads for _, threads in seen} == {1}


def test_using_a_bank_does_not_change_it(tmp_path):
    bank = build(tmp_path, Network())
    bank.arrays["dev"][:] = 0  # copy-on-write
    assert store.damaged(bank.artifact.path) == []
    assert np.load(bank.artifact.path / "dev.npy").any()


def test_half_precision_outputs_are_kept_as_float32(tmp_path):
    network = Network()
    bank = banks.build(tmp_path, "logits", {}, {}, 5, {"dev": sources()["dev"]}, lambda x: network(x).bfloat16(), "x")
    assert bank.arrays["dev"].dtype == np.float32 and bank.arrays["dev"].any()


def test_a_network_that_fails_leaves_no_bank(tmp_path):
    network = Network()

    def failing(images):
        if network.seen > 100:
            raise RuntimeError("out of memory")
        return network(images)

    with pytest.raises(RuntimeError, match="out of memory"):
        build(tmp_path, failing)
    assert [path.name for path in (tmp_path / "logits").iterdir()] == [".locks"]
    build(tmp_path, network)


def test_a_bank_of_a_banks_rows(tmp_path):
    """As a teacher's logits are made where its backbone's features are banked: the head over their rows."""
    features = build(tmp_path, Network(8), width=8).arrays
    head = nn.Linear(8, 3)
    counts = {split: (Rows(array, CPU), array.shape[0], array.shape[1]) for split, array in features.items()}
    logits = banks.build(tmp_path, "heads", {}, {}, 3, counts, head, "logits").arrays
    for split, array in features.items():
        with torch.no_grad():
            live = head(torch.from_numpy(np.array(array)))
        np.testing.assert_allclose(logits[split], live.numpy(), rtol=1e-5, atol=1e-5)
