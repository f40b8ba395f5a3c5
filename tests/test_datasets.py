"""Data sets: split by name, decoded once, described by a card; and every way in which they can be bad."""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import refused
from tlkd import datasets, images, sources, store
from tlkd.datasets import Dataset, channel_statistics, choose, open_dataset
from tlkd.specs import Data


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make(root: Path, train: int = 10, test: int = 3, size: tuple[int, int] = (9, 12),
         classes: tuple[str, ...] = ("cat", "dog", "owl")) -> Path:
    for part, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                path = root / part / name / f"{index:03d}.png"
                Image.fromarray(noise(*size, seed=1000 * number + index + 500 * (part == "test"))).save(path)
    return root


def data(root: Path | str, **more: Any) -> Data:
    return Data(source=f"folder:{root}", **more)


def names(found: Dataset, split: str) -> set[str]:
    return {found.ids[row] for row in found.splits[split]}


def nothing_left(cache: Path) -> bool:
    kept = cache / "images"
    return not kept.exists() or [path.name for path in kept.iterdir()] in ([], [".locks"])


# What is decoded


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_rows_are_the_files_laid_onto_squares(tmp_path: Path, fit: Any) -> None:
    root = make(tmp_path / "set", size=(30, 44))
    found = open_dataset(data(root, fit=fit), 16, tmp_path / "cache")
    assert found.images.shape == (39, 16, 16, 3)
    assert found.images.dtype == np.uint8
    for row, name in enumerate(found.ids):
        image = Image.open(root / name)
        if fit == "crop":
            twin = image.crop((7, 0, 37, 30)).resize((16, 16), Image.Resampling.BILINEAR)
        elif fit == "stretch":
            twin = image.resize((16, 16), Image.Resampling.BILINEAR)
        else:
            twin = Image.new("RGB", (16, 16))
            twin.paste(image.resize((16, 11), Image.Resampling.BILINEAR), (0, 2))
        np.testing.assert_array_equal(found.images[row], np.asarray(twin), err_msg=name)
        assert found.classes[found.labels[row]] == name.split("/")[1]


def test_mixed_files_become_upright_rgb(tmp_path: Path) -> None:
    root = make(tmp_path / "set", classes=("cat", "dog"), size=(24, 24))
    upright = np.zeros((30, 20, 3), np.uint8)
    upright[:15] = 255  # white above black, stored lying on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(root / "train/cat/turned.jpg", exif=exif, quality=95)
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(root / "train/cat/cmyk.jpg", quality=95)
    Image.fromarray(np.full((20, 20), 32896, np.uint16)).save(root / "train/dog/deep.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(root / "train/dog/clear.png")
    Image.new("L", (20, 20), 7).save(root / "train/dog/grey.png")
    found = open_dataset(data(root, dev_fraction=0.0), 24, tmp_path / "cache")

    def of(name: str) -> np.ndarray:
        return found.images[found.ids.index(name)].astype(int)

    turned = of("train/cat/turned.jpg")
    assert turned[:8].min() > 240
    assert turned[-8:].max() < 15
    np.testing.assert_allclose(of("train/cat/cmyk.jpg"), np.broadcast_to([255, 0, 0], (24, 24, 3)), atol=6)
    assert (of("train/dog/deep.png") == 128).all()
    assert (of("train/dog/clear.png") == 255).all()
    assert (of("train/dog/grey.png") == 7).all()
    assert found.card["converted"] == {"CMYK": 1, "I;16": 1, "L": 1, "RGBA": 1}
    assert found.card["turned"] == 1
    assert found.card["native_size"] == {"height": {"min": 20, "median": 24.0, "max": 30},
                                         "width": {"min": 20, "median": 24.0, "max": 24}}


@pytest.mark.parametrize(("fit", "size", "side"), [("crop", 64, 9), ("stretch", 64, 12), ("pad", 64, 12),
                                                   ("crop", 8, 8), ("pad", 10, 10)])
def test_small_images_are_not_enlarged(tmp_path: Path, fit: Any, size: int, side: int) -> None:
    found = open_dataset(data(make(tmp_path / "set"), fit=fit), size, tmp_path / "cache")
    assert found.images.shape[1:] == (side, side, 3)
    assert found.card["stored_side"] == side


def test_the_largest_image_decides_the_stored_side(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    Image.fromarray(noise(40, 50, 1)).save(root / "train/cat/000.png")
    assert open_dataset(data(root), 64, tmp_path / "cache").images.shape[1] == 40


def test_images_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    found = open_dataset(data(make(tmp_path / "set")), 8, tmp_path / "cache")
    assert isinstance(found.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found.images[0] = 0


def test_the_card(tmp_path: Path) -> None:
    found = open_dataset(data(make(tmp_path / "set"), train_per_class=20), 8, tmp_path / "cache")
    assert found.card["counts"] == {split: dict.fromkeys(("cat", "dog", "owl"), count)
                                    for split, count in (("train", 9), ("dev", 1), ("test", 3))}
    assert found.card["source"].startswith("folder:")
    assert found.card["fit"] == "crop"
    assert found.card["skipped"] == []
    assert any("'owl' has 9 train images, data.train_per_class is 20" in note for note in found.card["notes"])
    assert json.loads(json.dumps(found.card)) == found.card


# Splits


def listing(count: int = 100, test: int | None = 20, classes: int = 3) -> sources.Samples:
    """Samples of which only the names matter."""
    parts = [("train", count)] + ([("test", test)] if test else [])
    entries = [(f"{part}/{label}/{index}", label, part == "test") for part, number in parts
               for label in range(classes) for index in range(number)]
    return sources.Samples(tuple("abc"[:classes]), tuple(name for name, _, _ in entries),
                           np.array([label for _, label, _ in entries]),
                           np.array([held for _, _, held in entries]) if test else None,
                           lambda index: Path(entries[index][0]), "x")


def chosen(samples: sources.Samples, **more: Any) -> dict[str, set[str]]:
    found, _ = choose(samples, Data(source="folder:x", **more))
    for rows in found.values():
        assert (np.diff(rows) > 0).all()
    return {split: {samples.ids[row] for row in rows} for split, rows in found.items()}


def per_class(members: set[str]) -> list[int]:
    labels = [name.split("/")[1] for name in members]
    return [labels.count(str(label)) for label in range(3)]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_dev_is_stratified_and_cut_out_of_train(fraction: float) -> None:
    found = chosen(listing(), dev_fraction=fraction)
    assert per_class(found["dev"]) == [round(100 * fraction)] * 3
    assert per_class(found["train"]) == [100 - round(100 * fraction)] * 3
    assert per_class(found["test"]) == [20] * 3
    assert all(name.startswith("train/") for name in found["dev"] | found["train"])
    assert found["dev"] | found["train"] | found["test"] == set(listing().ids)  # and so disjoint, by the counts
    assert not found["dev"] & found["train"]


def test_a_set_without_a_test_split_is_cut_in_three() -> None:
    found = chosen(listing(test=None), test_fraction=0.2, dev_fraction=0.1)
    assert [per_class(found[split]) for split in ("test", "dev", "train")] == [[20] * 3, [8] * 3, [72] * 3]
    assert sum(len(members) for members in found.values()) == len(set.union(*found.values())) == 300


def test_no_dev_split_when_it_is_switched_off() -> None:
    found = chosen(listing(), dev_fraction=0.0, train_per_class=10)
    assert found["dev"] == set()
    assert per_class(found["train"]) == [10] * 3


def test_caps_are_nested_and_take_dev_in_proportion() -> None:
    whole = chosen(listing())
    before: dict[str, set[str]] = {split: set() for split in whole}
    for cap, dev in ((1, 1), (9, 1), (45, 5), (70, 8), (90, 10), (500, 10)):
        found = chosen(listing(), train_per_class=cap, test_per_class=max(1, cap // 10))
        assert per_class(found["train"]) == [min(cap, 90)] * 3
        assert per_class(found["dev"]) == [dev] * 3
        assert per_class(found["test"]) == [min(20, max(1, cap // 10))] * 3
        for split in whole:
            assert before[split] <= found[split] <= whole[split]
        before = found
    assert before == whole


def test_the_draws_follow_the_seed_and_nothing_else() -> None:
    assert chosen(listing(), train_per_class=30) == chosen(listing(), train_per_class=30)
    first, second = chosen(listing(), train_per_class=30), chosen(listing(), train_per_class=30, data_seed=1)
    assert all(first[split] != second[split] for split in ("train", "dev"))
    # another class, or a test split, moves nothing about
    fewer = chosen(listing(classes=2), train_per_class=30)
    for split, members in fewer.items():
        assert members == {name for name in first[split] if name.split("/")[1] != "2"}
    # nor does one image more: it can push out one at most
    more = chosen(listing(count=101))
    assert len(chosen(listing())["dev"] - more["dev"]) <= 3


@pytest.mark.parametrize(("count", "fraction", "says"), [
    (4, 0.1, "data.dev_fraction: 0.1 takes 0 of the 4 images of class 'a'"), (4, 0.1, "raise it to at least 0.125"),
    (2, 0.9, "takes 2 of the 2 images of class 'a'"), (2, 0.9, "lower it to at most 0.5"),
    (1, 0.4, "add images of this class"), (4, 0.1, "selection: test")])
def test_a_dev_split_that_empties_a_class_is_refused(count: int, fraction: float, says: str) -> None:
    refused(lambda: choose(listing(count=count), Data(source="folder:x", dev_fraction=fraction)), says)


def test_the_remedies_work() -> None:
    for count in (3, 4, 7, 33):
        small, large = (Data(source="folder:x", dev_fraction=fraction) for fraction in (0.01, 0.99))
        line = refused(lambda count=count, spec=small: choose(listing(count), spec), "raise it")
        fraction = float(line.split("at least ")[1].split(",")[0])
        assert per_class(chosen(listing(count), dev_fraction=fraction)["dev"]) == [1] * 3
        line = refused(lambda count=count, spec=large: choose(listing(count), spec), "lower it")
        fraction = float(line.split("at most ")[1].split(",")[0])
        assert per_class(chosen(listing(count), dev_fraction=fraction)["train"])[0] >= 1


def test_a_test_split_that_empties_a_class_is_refused() -> None:
    refused(lambda: choose(listing(count=2, test=None), Data(source="folder:x", test_fraction=0.01)),
            "data.test_fraction: 0.01 takes 0 of the 2 images of class 'a' for the test split")


# The cache and the content


class Opened:
    """Counts the images that are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        original = Image.open

        def count(path: Any, *more: Any, **named: Any) -> Any:
            self.files.append(str(path))
            return original(path, *more, **named)

        monkeypatch.setattr(Image, "open", count)


def same(one: Dataset, other: Dataset) -> bool:
    return (one.content == other.content and one.ids == other.ids and one.classes == other.classes
            and (one.labels == other.labels).all() and (one.images == other.images).all()
            and all((one.splits[split] == other.splits[split]).all() for split in ("train", "dev", "test"))
            and one.card == other.card)


@pytest.mark.parametrize("packed", [False, True])
def test_the_second_time_no_image_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    root: Path | str = make(tmp_path / "set")
    if packed:
        root = shutil.make_archive(str(tmp_path / "set"), "zip", root)
    opened = Opened(monkeypatch)
    first = open_dataset(data(root), 8, tmp_path / "cache")
    assert len(set(opened.files)) == 39
    opened.files.clear()
    assert same(first, open_dataset(data(root), 8, tmp_path / "cache"))
    assert opened.files == []


def test_only_the_chosen_images_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    found = open_dataset(data(make(tmp_path / "set"), train_per_class=2, test_per_class=1), 8, tmp_path / "cache")
    assert len(found.ids) == 3 * (2 + 1 + 1)
    assert len(set(opened.files)) == 12


def test_a_changed_file_a_setting_or_damage_makes_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = make(tmp_path / "set"), tmp_path / "cache"
    first = open_dataset(data(root), 8, cache)
    Image.fromarray(noise(9, 12, 77)).save(root / "train/cat/000.png")
    changed = open_dataset(data(root), 8, cache)
    assert changed.content != first.content
    assert len({found.content for found in (changed, open_dataset(data(root, fit="pad"), 8, cache),
                                            open_dataset(data(root), 7, cache),
                                            open_dataset(data(root, data_seed=1), 8, cache),
                                            open_dataset(data(root, train_per_class=3), 8, cache))}) == 5
    # what does not affect the images does not touch the cache
    opened = Opened(monkeypatch)
    assert same(changed, open_dataset(data(root, augment=(), normalise="dataset"), 8, cache))
    assert not opened.files
    [path] = [path.parent for path in cache.rglob("samples.json") if changed.content in path.read_text()]
    with (path / "images.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00" if changed.images[-1, -1, -1, -1] else b"\x01")
    mended = open_dataset(data(root), 8, cache)
    assert opened.files
    assert mended.content == changed.content
    assert datasets._content(mended.images, {
        "classes": list(mended.classes), "ids": list(mended.ids), "labels": mended.labels.tolist(),
        "splits": {split: rows.tolist() for split, rows in mended.splits.items()}}) == changed.content


def test_the_content_is_that_of_the_images_not_of_the_way_there(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "set")  # wrapped in set/
    loose = open_dataset(data(root), 8, tmp_path / "one")
    packed = open_dataset(data(archive), 8, tmp_path / "two")
    assert loose.content == packed.content
    shutil.copytree(root, tmp_path / "moved")
    (tmp_path / "moved/train/cat/000.png").rename(tmp_path / "moved/train/cat/999.png")
    assert open_dataset(data(tmp_path / "moved"), 8, tmp_path / "one").content != loose.content


def test_the_content_is_made_of_every_part() -> None:
    pixels = noise(2, 2, 0)[None].repeat(2, axis=0)
    stored = {"classes": ["a", "b"], "ids": ["x", "y"], "labels": [0, 1], "splits": {"train": [0], "test": [1]}}
    other = {"classes": ["a", "c"], "ids": ["x", "z"], "labels": [1, 0], "splits": {"train": [1], "test": [0]}}
    contents = {datasets._content(pixels, {**stored, key: other[key]}) for key in other}
    contents |= {datasets._content(pixels, stored), datasets._content(255 - pixels, stored)}
    assert len(contents) == 6


def test_threads_and_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "set")
    first = open_dataset(data(root), 8, tmp_path / "one")
    monkeypatch.setattr(datasets, "CHUNK", 5)
    assert same(first, open_dataset(data(root), 8, tmp_path / "two"))


def test_relative_paths_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_dataset(data("set"), 8, tmp_path / "cache").content == \
        open_dataset(data("~/set"), 8, tmp_path / "cache").content


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "allocate", full)
    refused(lambda: open_dataset(data(make(tmp_path / "set")), 8, tmp_path / "cache"), "disk is full")
    assert nothing_left(tmp_path / "cache")


# Sources through the same path


def test_mnist5k(tmp_path: Path) -> None:
    found = open_dataset(Data(train_per_class=20, test_per_class=10), 48, tmp_path)
    assert found.images.shape == (10 * (20 + 2 + 10), 28, 28, 3)
    assert found.classes == tuple("0123456789")
    table = sources.mnist5k()
    for row in (0, 100, -1):
        original = np.asarray(table.fetch(int(found.ids[row].removeprefix("mnist5k/"))))
        np.testing.assert_array_equal(found.images[row], np.repeat(original[..., None], 3, axis=2))


def test_torchvision_from_local_files(tmp_path: Path) -> None:
    raw = tmp_path / "files" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 40, 28, 28) + pixels.tobytes())
        labels = (np.arange(40) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 40) + labels.tobytes())
    spec = Data(source="torchvision:FashionMNIST", root=str(tmp_path / "files"), dev_fraction=0.25)
    found = open_dataset(spec, 28, tmp_path / "cache")
    assert found.classes[9] == "Ankle boot"
    assert [len(found.splits[split]) for split in ("train", "dev", "test")] == [30, 10, 40]
    row = found.ids.index("test/00017")
    assert row in found.splits["test"]
    np.testing.assert_array_equal(found.images[row, :, :, 1], pixels[17])
    (tmp_path / "cache" / "downloads").mkdir()
    shutil.move(tmp_path / "files" / "FashionMNIST", tmp_path / "cache" / "downloads")
    assert same(found, open_dataset(Data(source="torchvision:FashionMNIST", dev_fraction=0.25), 28, tmp_path / "cache"))


# Bad images


def spoil(root: Path) -> Path:
    (root / "train/dog/004.png").write_bytes(b"")
    whole = (root / "train/owl/001.png").read_bytes()
    (root / "train/owl/001.png").write_bytes(whole[: len(whole) // 2])
    (root / "test/cat/notes.txt").write_text("not an image")
    return root


def test_bad_images_are_named_and_counted(tmp_path: Path) -> None:
    root = spoil(make(tmp_path / "set"))
    refused(lambda: open_dataset(data(root), 8, tmp_path / "cache"), "data.source", "3 of 40 images cannot be used",
            "train/", "data.on_bad_image: skip")
    assert nothing_left(tmp_path / "cache")


def test_bad_images_can_be_left_out(tmp_path: Path) -> None:
    root, clean = spoil(make(tmp_path / "set")), make(tmp_path / "clean")
    found = open_dataset(data(root, on_bad_image="skip"), 8, tmp_path / "cache")
    assert {each["id"]: each["reason"].split(" (")[0] for each in found.card["skipped"]} == {
        "train/dog/004.png": "the file is empty", "train/owl/001.png": found_reason(found, "train/owl/001.png"),
        "test/cat/notes.txt": "not an image, or its header is damaged"}
    whole = open_dataset(data(clean), 8, tmp_path / "cache")
    gone = {"train/dog/004.png", "train/owl/001.png"}
    assert set(found.ids) == set(whole.ids) - gone
    for split in ("train", "dev", "test"):
        assert names(found, split) == names(whole, split) - gone
    for row, name in enumerate(found.ids):
        np.testing.assert_array_equal(found.images[row], whole.images[whole.ids.index(name)])
        assert found.labels[row] == whole.labels[whole.ids.index(name)]
    assert sum(found.card["counts"]["train"].values()) == len(found.splits["train"])
    assert not list((tmp_path / "cache").rglob("decoded.npy"))


def found_reason(found: Dataset, name: str) -> str:
    [reason] = [each["reason"] for each in found.card["skipped"] if each["id"] == name]
    assert "damaged" in reason or "truncated" in reason
    return reason.split(" (")[0]


def test_skipping_is_kept_apart_from_failing(tmp_path: Path) -> None:
    root = spoil(make(tmp_path / "set"))
    open_dataset(data(root, on_bad_image="skip"), 8, tmp_path / "cache")
    refused(lambda: open_dataset(data(root), 8, tmp_path / "cache"), "cannot be used")


def test_skipping_may_not_empty_a_class(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    for path in (root / "test/dog").iterdir():
        path.write_text("x")
    refused(lambda: open_dataset(data(root, on_bad_image="skip"), 8, tmp_path / "cache"),
            "data.on_bad_image: skip leaves class 'dog' without an image in the test split", "3 of 39")
    for path in root.rglob("*.png"):
        path.write_text("x")
    refused(lambda: open_dataset(data(root, on_bad_image="skip"), 8, tmp_path / "cache"), "39 of 39")
    assert nothing_left(tmp_path / "cache")


def test_a_mistake_of_ours_is_not_taken_for_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise TypeError("our own")

    monkeypatch.setattr(images, "fit_image", broken)
    with pytest.raises(TypeError, match="our own"):
        open_dataset(data(make(tmp_path / "set"), on_bad_image="skip"), 8, tmp_path / "cache")


# Bad sources


def test_what_is_not_there_or_no_archive(tmp_path: Path) -> None:
    refused(lambda: open_dataset(data(tmp_path / "gone"), 8, tmp_path / "cache"), "data.source", "there is no",
            "allowed: a folder, .tar")
    (tmp_path / "x.zip").write_text("not a zip")
    refused(lambda: open_dataset(data(tmp_path / "x.zip"), 8, tmp_path / "cache"), "neither a folder nor an archive")


def test_a_dev_split_that_empties_a_class_of_a_folder(tmp_path: Path) -> None:
    refused(lambda: open_dataset(data(make(tmp_path / "set", train=4)), 8, tmp_path / "cache"),
            "data.dev_fraction: 0.1 takes 0 of the 4", "'cat'")
    assert nothing_left(tmp_path / "cache")


def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("train/cat/1.png", b"x")
        packed.writestr("../escaped", b"x")
    refused(lambda: open_dataset(data(tmp_path / "x.zip"), 8, tmp_path / "cache"), "unsafe archive", "../escaped")
    assert not list(tmp_path.rglob("escaped"))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


# Channel statistics


def test_channel_statistics_are_those_of_the_train_pixels(tmp_path: Path) -> None:
    root = make(tmp_path / "set", train=40)
    found = open_dataset(data(root), 8, tmp_path / "cache")
    pixels = np.asarray(found.images)[found.splits["train"]].astype(np.float64).reshape(-1, 3) / 255
    assert len(found.splits["train"]) > 64  # more than one chunk
    mean, sd = channel_statistics(found)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sd, pixels.std(0), rtol=1e-12)
    everything = np.asarray(found.images).astype(np.float64).reshape(-1, 3) / 255
    assert abs(np.array(mean) - everything.mean(0)).max() > 1e-5  # the comparison can tell train from all


def test_a_constant_channel_cannot_be_normalised(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    for path in root.rglob("*.png"):
        Image.new("RGB", (9, 9), (10, 20, 30)).save(path)
    refused(lambda: channel_statistics(open_dataset(data(root), 8, tmp_path / "cache")), "data.normalise", "constant")
