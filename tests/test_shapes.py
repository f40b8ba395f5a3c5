"""The generated scenes: a function of names alone, exact masks, and backgrounds that go with the class as told."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label, maximum_filter, minimum_filter

from tlkd import datasets, images, reading, scenery, seeding, shapes
from tlkd.datasets import open_dataset
from tlkd.errors import BadInput
from tlkd.specs import Data, Shapes

SMALL = Shapes(size=48, train_per_class=20, test_per_class=5)
ONE_EACH = [f"train/{name}/{number:04d}" for number, name in enumerate(shapes.CLASSES)]
MANY = Shapes(train_per_class=50, test_per_class=50)
IDS = {split: [f"{split}/{name}/{number:04d}" for name in shapes.CLASSES for number in range(50)]
       for split in ("train", "test")}


def pixels(sample_id: str, settings: Shapes = SMALL, data_seed: int = 0) -> np.ndarray:
    return np.asarray(shapes.render(sample_id, settings, data_seed))


def own_share(split: str, settings: Shapes, data_seed: int = 0) -> float:
    own = shapes.own_backgrounds(data_seed)
    return float(np.mean([shapes.background_kind(each, settings, data_seed) == own[each.split("/")[1]]
                          for each in IDS[split]]))


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    return maximum_filter(mask, size=2 * by + 1)


# A function of names alone


def test_the_same_sample_is_the_same_in_any_order_and_in_threads() -> None:
    first = [pixels(each) for each in ONE_EACH]
    again = [pixels(each) for each in reversed(ONE_EACH)][::-1]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(pixels, ONE_EACH * 3))
    masks = [shapes.mask(each, SMALL, 0) for each in ONE_EACH]
    for number, each in enumerate(ONE_EACH):
        for other in (again[number], *threaded[number::10]):
            np.testing.assert_array_equal(first[number], other, err_msg=each)
        np.testing.assert_array_equal(masks[number], shapes.mask(each, SMALL, 0))
    assert len({each.tobytes() for each in first}) == len(first)


def test_another_seed_id_or_split_is_another_scene() -> None:
    base = pixels("train/fish/0003"), shapes.mask("train/fish/0003", SMALL, 0)
    for name, seed in (("train/fish/0003", 1), ("train/fish/0004", 0), ("test/fish/0003", 0)):
        assert np.abs(pixels(name, SMALL, seed).astype(int) - base[0]).mean() > 10
        assert (shapes.mask(name, SMALL, seed) != base[1]).mean() > 0.02


def test_more_samples_leave_the_first_ones_as_they_are() -> None:
    more = SMALL.model_copy(update={"train_per_class": 1200, "test_per_class": 9})
    few, many = shapes.samples(SMALL, 0), shapes.samples(more, 0)
    assert set(few.ids) < set(many.ids)
    assert "train/star/1199" in many.ids
    for each in ONE_EACH[:3]:
        np.testing.assert_array_equal(pixels(each), pixels(each, more))


@pytest.mark.parametrize("size", [32, 33, 64, 96])
def test_a_scene_is_the_same_at_every_size(size: int) -> None:
    settings = SMALL.model_copy(update={"size": size, "noise": 0.0})
    for each in ONE_EACH[::3]:
        image, mask = shapes.render(each, settings, 0), shapes.mask(each, settings, 0)
        assert (image.mode, image.size, mask.shape, mask.dtype) == ("RGB", (size, size), (size, size), np.bool_)
        twin = shapes.render(each, settings.model_copy(update={"size": 48}), 0).resize((size, size))
        assert np.abs(np.asarray(image).astype(int) - np.asarray(twin)).mean() < 14
        large = Image.fromarray(shapes.mask(each, settings.model_copy(update={"size": 96}), 0))
        assert (np.asarray(large.resize((size, size))) != mask).mean() < 0.03


def test_noise_is_laid_over_the_same_scene_and_grows() -> None:
    still, some, much = (pixels("test/mug/0001", SMALL.model_copy(update={"noise": noise})).astype(float)
                         for noise in (0.0, 0.05, 0.1))
    first, second = np.std(some - still), np.std(much - still)
    assert 0.03 * 255 < first < 0.055 * 255
    assert second == pytest.approx(2 * first, rel=0.15)


# Ids


@pytest.mark.parametrize("bad", [
    "", "fish", "train/fish", "dev/fish/0001", "train/dog/0001", "train/fish/1", "train/fish/00001", "train/fish/0001 ",
    "train/fish/0001\n", "train/fish/-001", "train/fish/0020", "test/fish/0005", "train/fish/0001/x", "train/fish/٠٠٠١",
])
def test_an_id_that_the_settings_do_not_list_is_refused(bad: str) -> None:
    for call in (shapes.mask, shapes.render, shapes.background_kind):
        with pytest.raises(ValueError, match="is no sample of these shapes; allowed: train/CLASS/NUMBER"):
            call(bad, SMALL, 0)  # type: ignore[operator]


def test_the_listing() -> None:
    found = shapes.samples(SMALL, 0)
    assert len(found.ids) == len(set(found.ids)) == 250
    assert [shapes.CLASSES[number] for number in found.labels] == [each.split("/")[1] for each in found.ids]
    assert [each.startswith("test/") for each in found.ids] == found.held_out.tolist()
    assert found.held_out.sum() == 50
    for tie, test_tie, notes in ((0.0, None, 1), (0.0, 0.5, 2), (0.5, 0.0, 2)):
        assert len(shapes.samples(SMALL.model_copy(update={"tie": tie, "test_tie": test_tie}), 0).notes) == notes
    for each in found.ids[::40]:
        pixels(each)


def test_the_fingerprint_follows_all_that_a_picture_hangs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base = shapes.samples(SMALL, 0).fingerprint
    assert shapes.samples(SMALL, 0).fingerprint == base
    assert shapes.samples(SMALL.model_copy(update={"test_tie": 0.0}), 0).fingerprint == base  # as it is without it
    others = [shapes.samples(SMALL.model_copy(update={key: value}), 0).fingerprint for key, value in
              (("size", 47), ("train_per_class", 21), ("test_per_class", 6), ("tie", 0.1), ("test_tie", 0.1),
               ("noise", 0.06))]
    others.append(shapes.samples(SMALL, 1).fingerprint)
    monkeypatch.setattr(shapes, "VERSION", 99)
    others.append(shapes.samples(SMALL, 0).fingerprint)
    assert len({base, *others}) == 9


# Masks


def test_an_object_covers_about_what_it_should() -> None:
    settings = Shapes(size=32)
    for name in shapes.CLASSES:
        areas = [shapes.mask(f"train/{name}/{number:04d}", settings, 0).mean() for number in range(30)]
        assert min(areas) > 0.1
        assert max(areas) < 0.35
        assert np.ptp(areas) > 0.1


def test_an_object_is_whole_and_inside_the_picture() -> None:
    for name in shapes.CLASSES:
        for number in range(8):
            mask = shapes.mask(f"train/{name}/{number:04d}", Shapes(), 0)
            assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
            if name != "leaf":  # whose stalk may be thinner than a pixel
                assert label(mask, np.ones((3, 3)))[1] == 1, (name, number)


def test_a_ring_and_a_key_and_a_mug_have_holes() -> None:
    for name, holes in {"ring": 1, "key": 1, "mug": 1, "star": 0, "bottle": 0, "heart": 0}.items():
        found = [label(~shapes.mask(f"train/{name}/{number:04d}", Shapes(size=96), 0))[1] - 1 for number in range(12)]
        assert Counter(found).most_common(1)[0][0] == holes, (name, found)


def test_the_picture_and_its_mask_come_from_one_geometry() -> None:
    """Paint the object black and white: what differs is the object, no more than the camera's blur beyond it."""
    still = SMALL.model_copy(update={"noise": 0.0})
    for each in ONE_EACH:
        scene = shapes.compose(each, still, 0)
        black, white = (shapes.photograph(replace(scene, thing=np.full_like(scene.thing, tone)), each, still, 0)
                        for tone in (0, 1))
        contrast = (white.astype(int) - black).mean(axis=2)
        mask = shapes.mask(each, still, 0)
        changed = contrast > contrast.max() / 2  # half of what a pixel changes that is all object
        assert not changed[~grown(mask, 1)].any()
        assert changed[minimum_filter(mask, size=3)].all()
        assert (changed != mask).mean() < 0.035
        assert not contrast[~grown(mask, 3)].any()


def test_without_the_object_only_the_mask_and_the_shadow_differ() -> None:
    still = SMALL.model_copy(update={"noise": 0.0})
    for each in ONE_EACH:
        scene = shapes.compose(each, still, 0)
        empty = replace(scene, coverage=np.zeros_like(scene.coverage), shadow=np.zeros_like(scene.shadow))
        shown = np.asarray(shapes.render(each, still, 0)).astype(int)
        np.testing.assert_array_equal(shown, shapes.photograph(scene, each, still, 0))
        gone = np.abs(shown - shapes.photograph(empty, each, still, 0)).max(axis=2) > 0
        mask = shapes.mask(each, still, 0)
        assert not gone[~(grown(mask, 3) | grown(scene.shadow > 0, 3))].any()
        assert gone[mask].mean() > 0.9
        assert gone[~grown(mask, 2)].any(), "no shadow"
        assert ((scene.coverage > 0.5) == mask).all()


def test_a_shadow_darkens_and_is_background() -> None:
    for each in ONE_EACH[:5]:
        scene = shapes.compose(each, SMALL, 0)
        assert scene.shadow.min() >= 0
        assert 0.2 < scene.shadow.max() <= 0.9
        assert ((scene.shadow > 0.1) & ~shapes.mask(each, SMALL, 0)).sum() > 20


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_masks_survive_fitting(fit: Any) -> None:
    settings = Shapes(size=64)
    for each in ONE_EACH[:5]:
        mask = Image.fromarray(shapes.mask(each, settings.model_copy(update={"train_per_class": 20}), 0))
        same = np.asarray(images.fit_image(mask, 64, fit, Image.Resampling.NEAREST))
        np.testing.assert_array_equal(same, np.asarray(mask))
        half = np.asarray(images.fit_image(mask.convert("L"), 32, fit, Image.Resampling.BOX)) > 127
        direct = shapes.mask(each, settings.model_copy(update={"size": 32}), 0)
        assert (half != direct).mean() < 0.04


# Backgrounds


def test_backgrounds_follow_the_tie() -> None:
    for tie in (0.0, 0.3, 0.9, 1.0):
        expected = tie + (1 - tie) / 10
        width = 3.3 * (expected * (1 - expected) / 500) ** 0.5  # p < 0.001, and the draw is fixed
        for split in ("train", "test"):
            assert abs(own_share(split, MANY.model_copy(update={"tie": tie})) - expected) <= width


def test_test_tie_goes_for_the_test_images_alone() -> None:
    settings = MANY.model_copy(update={"tie": 1.0, "test_tie": 0.0})
    assert own_share("train", settings) == 1.0
    assert own_share("test", settings) == own_share("test", MANY) < 0.15


def test_untied_backgrounds_are_all_alike_likely_and_say_nothing_of_the_class() -> None:
    table = np.zeros((10, 10))
    for each in IDS["train"]:
        kind = shapes.background_kind(each, MANY, 0)
        table[shapes.CLASSES.index(each.split("/")[1]), shapes.BACKGROUNDS.index(kind)] += 1
    assert ((table.sum(axis=0) - 50) ** 2 / 50).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001
    assert ((table - 5) ** 2 / 5).sum() < 149  # 99 degrees of freedom


def test_a_larger_tie_only_moves_samples_to_their_own_background() -> None:
    loose, tight = (MANY.model_copy(update={"tie": tie}) for tie in (0.2, 0.6))
    own = shapes.own_backgrounds(0)
    for each in IDS["train"]:
        before, after = shapes.background_kind(each, loose, 0), shapes.background_kind(each, tight, 0)
        assert after in (before, own[each.split("/")[1]])


def test_the_samples_that_a_tie_leaves_alone_have_any_background() -> None:
    own, settings = shapes.own_backgrounds(0), MANY.model_copy(update={"tie": 0.6})
    kinds = Counter(kind for each in IDS["train"]
                    if (kind := shapes.background_kind(each, settings, 0)) != own[each.split("/")[1]])
    assert len(kinds) == 10
    assert min(kinds.values()) > 3  # of about 16


def test_the_tie_leaves_object_and_mask_alone() -> None:
    tied = SMALL.model_copy(update={"tie": 1.0})
    for each in ONE_EACH:
        np.testing.assert_array_equal(shapes.mask(each, SMALL, 0), shapes.mask(each, tied, 0))
        np.testing.assert_array_equal(shapes.compose(each, SMALL, 0).thing, shapes.compose(each, tied, 0).thing)


def test_own_backgrounds_are_a_permutation_that_hangs_on_the_seed() -> None:
    found = [shapes.own_backgrounds(seed) for seed in range(4)]
    for each in found:
        assert tuple(each) == shapes.CLASSES
        assert set(each.values()) == set(shapes.BACKGROUNDS)
    assert len({tuple(each.values()) for each in found}) == 4


def test_a_picture_shows_the_background_that_it_is_said_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = SMALL.model_copy(update={"tie": 1.0})
    for each in ONE_EACH[:3]:
        with monkeypatch.context() as context:
            context.setitem(scenery.TEXTURES, shapes.background_kind(each, tied, 0),
                            lambda rng, side: np.full((side, side), 9.0, np.float32))
            altered = pixels(each, tied)
        assert (altered != pixels(each, tied))[~grown(shapes.mask(each, tied, 0), 3)].mean() > 0.5


def test_every_texture_has_contrast_and_stays_in_range() -> None:
    for name, texture in scenery.TEXTURES.items():
        for number in range(5):
            tone = texture(seeding.generator("test", name, number), 128)
            assert tone.shape == (128, 128)
            assert tone.dtype == np.float32
            assert tone.std() > 0.08, name
            assert np.mean((tone < -0.3) | (tone > 1.3)) < 0.15, name


def test_the_truth_in_a_sentence() -> None:
    assert "10 % of the train (and dev) images and in 10 % of the test" in shapes.truth(Shapes())
    told = shapes.truth(Shapes(tie=0.9, test_tie=0.0))
    assert "91 % of the train (and dev) images and in 10 % of the test images" in told
    assert "\n" not in told


# In a study


@pytest.mark.parametrize(("key", "value"), [
    ("size", 31), ("size", 97), ("tie", 1.5), ("tie", -0.1), ("test_tie", 2), ("train_per_class", 0), ("noise", -0.1),
    ("sides", 3),
])
def test_bad_settings_are_refused_in_one_line(key: str, value: float) -> None:
    raw = {"name": "s", "data": {"source": "shapes", "shapes": {key: value}}, "arms": [{"name": "tl", "kind": "tl"}],
           "student": {"model": "packaged:efficientnet_lite0"}}
    with pytest.raises(BadInput, match=rf"data\.shapes.*{key}") as caught:
        reading.validate(raw, "study.yaml")
    assert "\n" not in str(caught.value)


def test_a_data_set_of_shapes(tmp_path: Path) -> None:
    settings = Shapes(size=32, train_per_class=10, test_per_class=3, tie=0.9, test_tie=0.0)
    data = Data(source="shapes", shapes=settings, data_seed=5, train_per_class=6)
    found = open_dataset(data, 224, tmp_path)
    assert found.classes == shapes.CLASSES
    assert found.images.shape[1:] == (32, 32, 3)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 60, "dev": 10, "test": 30}
    for row in range(0, len(found.ids), 9):
        np.testing.assert_array_equal(found.images[row], pixels(found.ids[row], settings, 5))
        assert found.classes[found.labels[row]] == found.ids[row].split("/")[1]
    assert all(found.ids[row].startswith("test/") for row in found.splits["test"])
    assert shapes.truth(settings) in found.card["notes"]
    assert any("own backgrounds are arrow on " in note for note in found.card["notes"])


def test_the_cache_tells_settings_apart_and_opens_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Shapes(size=32, train_per_class=5, test_per_class=1, tie=0.5)
    first = open_dataset(Data(source="shapes", shapes=settings), 32, tmp_path)
    other = open_dataset(Data(source="shapes", shapes=settings.model_copy(update={"noise": 0.2})), 32, tmp_path)
    assert first.content != other.content
    monkeypatch.setattr(shapes, "render", lambda *_: pytest.fail("painted again"))
    assert open_dataset(Data(source="shapes", shapes=settings), 32, tmp_path).content == first.content


def test_settings_may_be_left_out() -> None:
    fingerprint, listed = datasets._source(Data(source="shapes"), Path("nowhere"))
    assert fingerprint == shapes.samples(Shapes(), 0).fingerprint
    assert len(listed().ids) == 2500
