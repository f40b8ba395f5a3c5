"""Wherever tlkd reads a file that others may have written, no pickle in it is run: each here would make a folder.

Weights have their tests in `test_bad_inputs.py` and `test_fuzz.py`, predictions in `test_folder.py`.
"""

import hashlib
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bad_workplace import Bomb
from conftest import refused
from explained_folders import write_explanations
from sealed_folders import reseal
from study_folders import lay_down
from tlkd import album, banks, cli, explained, sources, store
from tlkd.errors import BadInput
from tlkd.folder import StudyFolder
from tlkd.ray_engine import pack_folders, unpack_folders
from tlkd.reading import validate
from tlkd.spaces import search_of
from tlkd.study import collect

STUDY = {"name": "small", "data": {"source": "shapes", "dev_fraction": 0.2},
         "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
         "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 40}},
         "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "lite1"}],
         "training": {"epochs": 1}, "seeds": [0]}


@pytest.fixture
def pwned(tmp_path: Path) -> Path:
    """What a pickle would make if anything ran it."""
    return tmp_path / "pwned"


def objects(pwned: Path, shape: tuple[int, ...] = (2,)) -> np.ndarray:
    """An array of objects, which NumPy keeps as a pickle."""
    array = np.empty(shape, object)
    array[...] = Bomb(pwned)
    return array


def test_the_pickle_works_where_it_is_let(pwned: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "bomb.npy", objects(pwned))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(tmp_path / "bomb.npy")
    assert not pwned.exists()
    np.load(tmp_path / "bomb.npy", allow_pickle=True)
    assert pwned.is_dir()


# --- a study's folder and the cache -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A finished study with explanations."""
    path = lay_down(tmp_path / "out", seeds=2, per_class=3, explanation={}).path
    found = write_explanations(path, images=4, masked=3, pictures=1)
    collect(found)
    return found


def with_objects(path: Path, name: str, pwned: Path) -> None:
    """Put objects in the place of one array of an .npz file, and make the manifest beside it fit."""
    with np.load(path) as arrays:
        kept = dict(arrays)
    np.savez(path, **{**kept, name: objects(pwned, kept[name].shape)})
    if (path.parent / store.MANIFEST).is_file():
        reseal(path.parent)


@pytest.mark.parametrize("name", ["values", "predicted", "residual", "sample_ids"])
def test_attributions_are_not_unpickled(folder: StudyFolder, pwned: Path, name: str) -> None:
    who = folder.finished()[0].run_id
    path = explained.place(folder, who) / "attributions.npz"
    with_objects(path, name, pwned)
    refused(lambda: explained.load(folder, who), str(path), "cannot be read", "Object arrays cannot be loaded")
    refused(lambda: list(album.albums(folder, "tl")), str(path), "cannot be read")
    assert not pwned.exists()


@pytest.mark.parametrize("name", ["images", "masks", "labels"])
def test_explained_images_are_not_unpickled(folder: StudyFolder, pwned: Path, name: str) -> None:
    path = folder.path / "explanations" / "images.npz"
    with_objects(path, name, pwned)
    refused(lambda: explained.load_images(folder), str(path), "cannot be read")
    assert not pwned.exists()


@pytest.mark.parametrize("command", ["verify", "report", "status", "compare", "explain", "export"])
def test_no_command_unpickles_what_a_study_folder_holds(
        folder: StudyFolder, pwned: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    """All arrays of a folder replaced by pickles, bare or as NumPy keeps them, and all manifests made to fit."""
    bare, first = pickle.dumps({"logits": Bomb(pwned)}), folder.finished()[0]
    for number, path in enumerate(sorted(folder.path.rglob("*.npz"))):
        if number % 2:
            with_objects(path, "labels" if "labels" in np.load(path) else np.load(path).files[0], pwned)
        else:
            path.write_bytes(bare)
    for name in ("drawn.npz", "model.safetensors"):
        (folder.run_path(first) / name).write_bytes(bare)
    for path in folder.path.rglob(store.MANIFEST):
        reseal(path.parent)
    words = {"compare": [str(folder.path), str(folder.path)], "explain": [str(folder.path), "--run", first.run_id],
             "export": [str(folder.path), "--run", first.run_id]}.get(command, [str(folder.path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["tlkd", command, *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    assert caught.value.code in ((1,) if command == "verify" else (0,) if command == "status" else (1, 2))
    assert not pwned.exists()


def test_a_bank_is_not_unpickled(tmp_path: Path, pwned: Path) -> None:
    def fill(target: Path) -> dict[str, Any]:
        np.save(target / "train.npy", objects(pwned, (1, 3, 2)))
        return {}

    store.get(tmp_path, "features", banks.VERSION, {}, {}, fill)
    bank = banks.cached(tmp_path, "features", {}, {})
    assert bank is not None
    refused(lambda: bank.arrays, "train.npy: cannot be read", "Array can't be memory-mapped: Python objects")
    assert not pwned.exists()


def test_what_travels_by_ray_is_not_unpickled_on_its_way(tmp_path: Path, pwned: Path) -> None:
    """Files travel as the bytes that they are, in a tar."""
    for name in ("teachers/a/model.safetensors", "teachers/a/predictions.npz", "teachers/a/manifest.json"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes(pickle.dumps(Bomb(pwned)))
    packed = pack_folders(tmp_path / "one", ["teachers/a"])
    unpack_folders(tmp_path / "two", packed)
    assert (tmp_path / "two" / "teachers" / "a" / "predictions.npz").read_bytes() == pickle.dumps(Bomb(pwned))
    assert not pwned.exists()


# --- a search's journal -----------------------------------------------------------------------------------------------


def test_the_journal_of_a_search_is_not_unpickled(tmp_path: Path, pwned: Path) -> None:
    """Neither as a whole, nor where Optuna's backends for databases or its CMA-ES sampler would look for a pickle."""
    pytest.importorskip("optuna")
    from tlkd.proposals import ArmSearch, journal, understood

    search, path = search_of(validate(STUDY, "small.yaml")), tmp_path / "journal.log"
    bomb = pickle.dumps(Bomb(pwned))
    for name in ("journal.log.snapshot", "journal.log.pkl", "journal.log.snapshot.pkl"):
        (tmp_path / name).write_bytes(bomb)

    def opened() -> None:
        with understood(path):
            storage = journal(path)
            for arm in search.arms:
                ArmSearch(storage, search, arm).ask(False)

    opened()
    sound = path.read_bytes()
    for content in (bomb + b"\n" + sound, sound + bomb + b"\n" + sound):
        path.write_bytes(content)
        refused(opened, str(path), "cannot be read")
    for key in ("cma:optimizer:0", "cma:n_restarts", "sampler"):
        entry = {"op_code": 9, "worker_id": "x", "trial_id": 0, "system_attr": {key: bomb.hex()}}
        path.write_bytes(sound + json.dumps(entry).encode() + b"\n")
        try:
            opened()
        except BadInput as error:
            assert "cannot be read" in str(error)
    assert not pwned.exists()


# --- CIFAR's batches, which are pickles -------------------------------------------------------------------------------


def cifar(root: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set as torchvision wants it, whose real checksums are put in the place of the published ones."""
    folder, rng = root / kind.base_folder, np.random.default_rng(0)
    folder.mkdir(parents=True)
    label = "fine_labels" if kind.meta["key"] == "fine_label_names" else "labels"
    contents = {name: {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), label: list(range(10)) * 2}
                for name, _ in [*kind.train_list, *kind.test_list]}
    contents[kind.meta["filename"]] = {kind.meta["key"]: [f"class {number}" for number in range(10)]}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(kind, which, [[name, sums[name]] for name, _ in getattr(kind, which)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    return folder


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_a_batch_of_cifar_is_unpickled_only_if_it_is_the_published_one(
        name: str, tmp_path: Path, pwned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Already unpacked as it is, and in an archive that lies ready, whose checksum torchvision looks at as well."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    folder = cifar(tmp_path / "root", kind, monkeypatch)
    asked = []
    monkeypatch.setattr(kind, "download", lambda self: asked.append(1))  # as where the archive is at hand
    found = sources.torchvision(name, tmp_path / "root", name)
    assert len(found.classes) == 10
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) in (7, 3)
    for each in files:
        whole = (folder / each).read_bytes()
        for bomb in (pickle.dumps({"data": Bomb(pwned), "labels": [0]}), pickle.dumps(Bomb(pwned)) + whole,
                     pickle.dumps(Bomb(pwned)).ljust(len(whole), b"\0")):
            (folder / each).write_bytes(bomb)
            refused(lambda: sources.torchvision(name, tmp_path / "root", name),
                    f"data.source: {name}: {name} is not in ")
            assert not pwned.exists()
        (folder / each).write_bytes(whole)
    assert asked
    assert len(sources.torchvision(name, tmp_path / "root", name).classes) == 10


def test_an_archive_of_cifar_that_is_another_is_not_unpacked(tmp_path: Path, pwned: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile
    import urllib.request

    from torchvision.datasets import CIFAR10

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    content = pickle.dumps({"data": Bomb(pwned), "labels": [0]})
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as packed:
        for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
            info = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    refused(lambda: sources.torchvision("CIFAR10", tmp_path, "cifar10"), "CIFAR10 is not in", "cifar-10-python.tar.gz")
    assert not (tmp_path / CIFAR10.base_folder).exists()
    assert not pwned.exists()


def test_other_sets_that_torchvision_keeps_as_tensors_are_not_unpickled(tmp_path: Path, pwned: Path) -> None:
    """MNIST's `processed` folder, as old versions of torchvision wrote it, and ImageNet's `meta.bin`."""
    for place in ("MNIST/processed/training.pt", "MNIST/processed/test.pt", "meta.bin"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        torch.save(Bomb(pwned), tmp_path / place)
    from torchvision.datasets import MNIST

    assert MNIST.__name__ == "MNIST"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MNIST, "download", lambda self: None)
        for name in ("MNIST", "ImageNet"):
            refused(lambda name=name: sources.torchvision(name, tmp_path, name), f"{name} is not in ")
    assert not pwned.exists()
