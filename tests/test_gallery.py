"""`tlkd explain`: attributions of runs and of bare networks on any images, and every way of asking it wrongly."""

import csv
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

import sealed_folders
from conftest import draw_shape
from tlkd import cli, gallery, models, pictures, seeding, showcase, specs, subjects
from tlkd.attribution import deep_shap
from tlkd.datasets import open_dataset
from tlkd.errors import BadInput, RunFailed
from tlkd.explainers import EXPLAINERS, explain
from tlkd.folder import StudyFolder
from tlkd.gallery import Options, asked_classes
from tlkd.program import Program, trace
from tlkd.reading import validate
from tlkd.showcase import gather, names_of
from tlkd.study import run_study
from tlkd.views import IDENTITY, render

CPU = torch.device("cpu")
TINY = "timm:test_resnet"
SIDE = 32


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Iterator[Path]:
    """A study with one finished run, of 40-pixel images that a 48-pixel network takes."""
    root = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(root / "cache"))
        raw = {"name": "tiny", "data": {"source": f"folder:{shapes_folder}", "dev_fraction": 0.2, "data_seed": 3},
               "student": {"model": TINY, "weights": "none", "input_size": 48, "trainable": "all"},
               "teachers": {}, "arms": [{"name": "tl", "kind": "tl"}], "training": {"epochs": 1}, "seeds": [4]}
        assert run_study(validate(raw, "tiny"), root / "out", CPU) == {}
        yield root / "out"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in, and no cache but one's own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "cache"))


PROGRAMS: dict[Any, Program] = {}


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each architecture once: a program serves all weights, and takes seconds to make."""
    def traced(network: models.Network, shape: tuple[int, ...], name: str) -> Program:
        key = (name, shape, network.classes)
        if key not in PROGRAMS:
            PROGRAMS[key] = trace(network, shape, name)
        return PROGRAMS[key]

    monkeypatch.setattr(gallery, "trace", traced)


@pytest.fixture
def study_cache(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLKD_CACHE", str(ran.parent / "cache"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    draw_shape("disc", np.random.default_rng(1), side=50).resize((60, 50)).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of five classes, whose outputs are far apart."""
    network = models.build(specs.Network(model=TINY, weights="none", input_size=SIDE), 5, 0)
    with torch.no_grad():
        network.head.weight.mul_(100)
        network.head.bias.copy_(torch.tensor([0.0, 1.0, 3.0, 2.0, -1.0]))
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save({name.replace("backbone.", "").replace("head.", "fc."): each
                for name, each in network.state_dict().items()}, path)
    return path


def bare(photo: Path, checkpoint: Path, **more: Any) -> gallery.Gallery:
    options = Options((photo,), **{"weights": str(checkpoint), "input_size": SIDE, "out": Path("made"), **more})
    return gallery.explain(TINY, options, CPU)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path / "attributions.npz", allow_pickle=False) as found:
        return dict(found)


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "attributions.csv").open() as file:
        return list(csv.DictReader(file))


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_run(ran: Path, shapes_folder: Path) -> Iterator[tuple[gallery.Gallery, str]]:
    """What the run's network says of the study's own test images of two classes, and what was said meanwhile."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(ran.parent / "cache"))
        patch.setattr("tlkd.progress.say", said.append)
        given = tuple(shapes_folder / "test" / name for name in ("disc", "stripes"))
        options = Options(given, classes="all", background_size=3, out=ran.parent / "explained")
        yield gallery.explain(str(ran / "runs" / "tl-clean-4"), options, CPU), "\n".join(said)


def test_a_runs_probabilities_are_those_of_the_study(ran: Path, of_run: tuple[gallery.Gallery, str]) -> None:
    folder = StudyFolder(ran)
    stored = folder.predictions(folder.runs()[0])
    found = arrays(of_run[0].path)
    assert list(found["names"]) == [f"{kind}-{number:03}" for kind in ("disc", "stripes") for number in range(8)]
    ids = [f"test/{name.replace('-', '/')}.png" for name in found["names"]]
    theirs = stored.logits[[list(stored.sample_ids).index(each) for each in ids]]
    np.testing.assert_allclose(found["outputs"], theirs, atol=1e-5)
    assert np.ptp(theirs, axis=0).min() > 1e-3  # or any image's would have agreed
    assert found["class_names"][0].tolist() == ["disc", "frame", "stripes"]


def test_a_runs_background_is_the_draw_of_the_study(ran: Path, of_run: tuple[gallery.Gallery, str],
                                                    study_cache: None) -> None:
    study = StudyFolder(ran).study
    data = open_dataset(study.data, 48, ran.parent / "cache")
    train = data.splits["train"]
    draw = seeding.uniforms(seeding.keys([data.ids[row] for row in train]), 1, "background", 3)[:, 0]
    network = run_network(ran)
    chosen = np.stack([data.images[row] for row in train[np.argsort(draw)[:3]]])
    test = [row for row in data.splits["test"] if "frame" not in data.ids[row]]
    expected = deep_shap(network, tensors(data.images[test[:2]], network), tensors(chosen, network), "all")
    found = arrays(of_run[0].path)
    np.testing.assert_allclose(found["values"][:2], expected.values.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["expected"][:2], expected.expected.numpy(), atol=1e-5)
    assert "background: 3 of 48 training images of tiny" in of_run[1]
    with pytest.raises(AssertionError):  # another draw would have been seen
        first = tensors(data.images[train[:3]], network)
        other = deep_shap(network, tensors(data.images[test[:2]], network), first, "all")
        np.testing.assert_allclose(found["values"][:2], other.values.numpy(), atol=1e-5)


def run_network(ran: Path) -> models.Network:
    return subjects.open_subject(subjects.find(f"{ran}:tl-clean-4"), None, None, None, CPU).network


def tensors(squares: np.ndarray, network: models.Network) -> torch.Tensor:
    zeros = np.zeros(len(squares), np.int64)
    return render(torch.from_numpy(np.array(squares)), zeros.astype(np.uint64), (IDENTITY,), zeros,
                  network.input_size, 0, network.mean, network.sd)


def test_a_run_is_named_by_its_folder_or_by_study_and_run(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran / "runs" / "tl-clean-4")
    for text in (str(ran / "runs" / "tl-clean-4"), f"{ran}:tl-clean-4", "."):
        found = subjects.find(text)
        assert (found.name, found.model) == ("tiny-tl-clean-4", None)
        assert found.run is not None and found.run.run_id == "tl-clean-4"


def test_a_run_from_other_weights_is_refused(ran: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ran, other)
    spec = other / "runs" / "tl-clean-4" / "spec.json"
    stored = json.loads(spec.read_text())
    stored["inputs"]["backbone"] = "0" * 64
    spec.write_text(json.dumps(stored))
    with pytest.raises(BadInput, match=r"spec\.json: is damaged"):
        run_network(other)
    sealed_folders.reseal(spec.parent)
    with pytest.raises(BadInput, match="trained from other weights of timm:test_resnet"):
        run_network(other)


def test_a_run_has_its_own_weights_and_size(ran: Path, photo: Path) -> None:
    for more in ({"weights": "none"}, {"input_size": 32}):
        with pytest.raises(BadInput, match="a run has its own"):
            gallery.explain(f"{ran}:tl-clean-4", Options((photo,), **more), CPU)  # type: ignore[arg-type]


def test_images_that_are_no_longer_the_studys_are_not_its_background(ran: Path, photo: Path, tmp_path: Path,
                                                                     shapes_folder: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ran, other)
    card = json.loads((other / "data.json").read_text())
    (other / "data.json").write_text(json.dumps({**card, "content": "0" * 64}))
    with pytest.raises(BadInput, match=r"data\.json: is not what SHA256SUMS says"):
        gallery.explain(f"{other}:tl-clean-4", Options((photo,)), CPU)
    (other / "SHA256SUMS").unlink()
    with pytest.raises(BadInput, match="no longer holds the images that the study was run on"):
        gallery.explain(f"{other}:tl-clean-4", Options((photo,)), CPU)
    text = (other / "study.yaml").read_text().replace(str(shapes_folder), "gone")
    (other / "study.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"--background: the study's training images cannot be had .*there is no"):
        gallery.explain(f"{other}:tl-clean-4", Options((photo,)), CPU)
    assert list(Path.cwd().iterdir()) == []


# --- bare networks ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_what_deep_shap_gives(photo: Path, checkpoint: Path) -> None:
    made = bare(photo, checkpoint, classes="top:2")
    found = arrays(made.path)
    spec = specs.Network(model=TINY, weights=str(checkpoint), input_size=SIDE)
    network = models.build(spec, 5, 0, fit=False)
    with Image.open(photo) as image:
        square = np.asarray(image.crop((5, 0, 55, 50)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    image_tensor, black = tensors(square[None], network), tensors(np.zeros((1, SIDE, SIDE, 3), np.uint8), network)
    with torch.no_grad():
        logits = network(image_tensor)[0]
    order = logits.argsort(descending=True)[:2].tolist()
    assert found["class_indices"].tolist() == [order]
    program = trace(network, (3, SIDE, SIDE), TINY)  # of its own
    for column, label in enumerate(order):
        expected = deep_shap(network, image_tensor, black, label, program=program)
        np.testing.assert_allclose(found["values"][:, column], expected.values.numpy(), atol=1e-6)
        np.testing.assert_allclose(found["outputs"][:, column], expected.output.numpy(), atol=1e-6)
        np.testing.assert_allclose(found["expected"][:, column], expected.expected.numpy(), atol=1e-6)
    total = found["values"].astype(np.float64).sum((2, 3, 4))
    np.testing.assert_allclose(total + found["expected"] - found["outputs"], found["residuals"], atol=1e-6)
    assert np.abs(total).min() > 1e-3
    np.testing.assert_allclose(found["probabilities"][0], logits.softmax(0)[order].numpy(), atol=1e-6)
    np.testing.assert_array_equal(found["images"], square[None])


def test_arrays_and_table_say_the_same(photo: Path, checkpoint: Path) -> None:
    made = bare(photo, checkpoint, classes="3,0", output="probability")
    found, table = arrays(made.path), rows(made.path)
    assert {name: (each.dtype.kind, each.shape) for name, each in found.items()} == {
        "names": ("U", (1,)), "class_indices": ("i", (1, 2)), "class_names": ("U", (1, 2)),
        "probabilities": ("f", (1, 2)), "values": ("f", (1, 2, 3, SIDE, SIDE)), "outputs": ("f", (1, 2)),
        "expected": ("f", (1, 2)), "residuals": ("f", (1, 2)), "images": ("u", (1, SIDE, SIDE, 3))}
    assert found["values"].dtype == np.float32
    assert list(table[0]) == ["image", "class", "probability", "output", "expected", "residual"]
    assert [(row["image"], row["class"]) for row in table] == [("photo", "3"), ("photo", "0")]
    for column, row in enumerate(table):
        for key, name in (("probability", "probabilities"), ("output", "outputs"), ("expected", "expected"),
                          ("residual", "residuals")):
            assert float(row[key]) == pytest.approx(float(found[name][0, column]), abs=1e-12)
        assert row["output"] == row["probability"] or float(row["output"]) == pytest.approx(float(row["probability"]),
                                                                                           abs=1e-6)
    record = json.loads((made.path / "explanation.json").read_text())
    assert record["images"] == {"photo": str(photo)}
    assert set(record["files"]) == {path.name for path in made.path.iterdir()} - {"explanation.json"}


@pytest.mark.parametrize("name", [each for each in EXPLAINERS if each != "deep_shap"])
def test_the_other_explainers_give_what_they_give_alone(photo: Path, checkpoint: Path, name: str) -> None:
    if not name.startswith("deep"):
        pytest.importorskip("captum")
    folder = ground(photo.parent / "ground", 3)
    made = bare(photo, checkpoint, explainer=name, classes="2", background=str(folder))
    subject = subjects.open_subject(subjects.find(TINY), str(checkpoint), SIDE, None, CPU)
    squares = arrays(made.path)["images"]
    order = np.argsort(seeding.uniforms(seeding.keys([f"{n}.png" for n in range(3)]), 1, "background", 0)[:, 0])
    references = np.stack([showcase.laid(folder / f"{n}.png", subject, "") for n in order])
    expected = explain(name, subject.network, showcase.inputs(subject, squares, CPU),
                       showcase.inputs(subject, references, CPU), 2)
    np.testing.assert_allclose(arrays(made.path)["values"][:, 0], expected.values.numpy(), atol=1e-5)
    assert (rows(made.path)[0]["residual"] == "") == (not EXPLAINERS[name].additive)


def ground(folder: Path, count: int) -> Path:
    """A folder of images to compare with."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_shape("stripes", np.random.default_rng(number), side=40).save(folder / f"{number}.png")
    return folder


def test_many_images_are_explained_as_each_alone(photo: Path, checkpoint: Path, tmp_path: Path) -> None:
    """More than are explained at a time, so that chunks cannot be mixed up."""
    folder = ground(tmp_path / "many", gallery.TOGETHER + 2)
    together = arrays(bare(folder, checkpoint).path)
    assert list(together["names"]) == [str(number) for number in range(gallery.TOGETHER + 2)]
    for number in (0, gallery.TOGETHER, gallery.TOGETHER + 1):
        alone = arrays(bare(folder / f"{number}.png", checkpoint, out=Path(f"alone{number}")).path)
        np.testing.assert_allclose(together["values"][number], alone["values"][0], atol=1e-5)
    assert np.abs(together["values"][0] - together["values"][1]).max() > 1e-3


def test_a_checkpoint_of_torchvisions_serves_too(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("tlkd.progress.say", said.append)
    torch.save({"state_dict": get_model("resnet18", weights=None, num_classes=7).state_dict()}, tmp_path / "mine.pt")
    options = Options((photo,), weights=str(tmp_path / "mine.pt"), input_size=SIDE, classes="all", explainer="grad_cam")
    made = gallery.explain("torchvision:resnet18", options, CPU)
    assert made.path == Path("out/explanations/torchvision-resnet18")
    assert arrays(made.path)["class_names"].tolist() == [list("0123456")]
    assert "the weights name no classes: they are called by their numbers" in said
    assert "background: one black image; a choice like any other: --background names images instead" in said


def test_a_network_as_tlkd_stores_it_serves_too(photo: Path, tmp_path: Path) -> None:
    network = models.build(specs.Network(model=TINY, weights="none", input_size=SIDE), 3, 0)
    save_file({name: each.contiguous() for name, each in network.state_dict().items()}, tmp_path / "mine.safetensors")
    subject = subjects.open_subject(subjects.find(TINY), str(tmp_path / "mine.safetensors"), SIDE, "pad", CPU)
    assert (subject.classes, subject.fit, subject.side) == (("0", "1", "2"), "pad", SIDE)
    image = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(subject.network(image), network(image))


def test_an_untrained_network_is_explained_and_said_to_be_one(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("tlkd.progress.say", said.append)
    made = gallery.explain(TINY, Options((photo,), weights="none", input_size=SIDE, background="black",
                                         classes="tench,1"), CPU)
    assert "weights: none: the network is untrained, its weights are random" in said
    assert "background: one black image" in said
    assert arrays(made.path)["class_names"].tolist() == [["tench", "goldfish"]]


@pytest.mark.parametrize(("name", "chosen", "side"), [
    ("packaged:efficientnet_lite1", "imagenet", 240), ("torchvision:resnet18", "imagenet", 224),
    ("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1", 384), ("timm:test_resnet", "imagenet", 160),
    ("torchvision:efficientnet_b3", "mine.pth", 300)])
def test_the_input_is_as_large_as_the_weights_expect(name: str, chosen: str, side: int) -> None:
    prefix, _, rest = name.partition(":")
    assert subjects._own_side(prefix, rest, chosen) == side


def test_names_of_classes_are_told_apart() -> None:
    found, notes = subjects._class_names("packaged", "efficientnet_lite0", "imagenet", 1000)
    assert (found[0], found[281], notes) == ("tench", "tabby", ())
    assert len(set(found)) == 1000
    assert subjects._class_names("timm", "resnet18", "mine.pth", 1000)[1] == (
        "1,000 outputs: they are called by ImageNet's classes",)


# --- the background ---------------------------------------------------------------------------------------------------


def references(text: str | None, explained: tuple[Path, ...] = (), size: int = 20,
               seed: int | None = None) -> tuple[np.ndarray, str]:
    network = models.build(specs.Network(model=TINY, weights="none", input_size=SIDE), 3, 0)
    subject = subjects.Subject(network, ("a", "b", "c"), network.mean, network.sd, SIDE, "crop")
    return showcase.background(text, size, seed, subjects.find(TINY), subject, explained)


def test_a_background_comes_from_folders_files_archives_and_sources(tmp_path: Path) -> None:
    folder = ground(tmp_path / "ground", 5)
    from_folder, said = references(str(folder), size=3)
    assert (from_folder.shape, said) == ((3, SIDE, SIDE, 3), f"background: 3 of 5 images of {folder}")
    assert np.array_equal(references(f"folder:{folder}", size=3)[0], from_folder)
    assert not np.array_equal(references(str(folder), size=3, seed=1)[0], from_folder)
    assert references(str(folder), size=50)[0].shape[0] == 5
    with tarfile.open(tmp_path / "ground.tar.gz", "w:gz") as archive:
        archive.add(folder, ".")
    assert np.array_equal(references(str(tmp_path / "ground.tar.gz"), size=3)[0], from_folder)
    assert references(str(folder / "0.png"))[1] == f"background: 1 of 1 images of {folder / '0.png'}"
    assert references("shapes", size=2)[1].endswith("images of shapes")
    assert not references("black")[0].any()


def test_no_image_is_its_own_background(tmp_path: Path) -> None:
    folder = ground(tmp_path / "ground", 3)
    shown = (folder / "1.png",)
    assert len(references(str(folder), shown)[0]) == 2
    with pytest.raises(BadInput, match="an image cannot be its own background"):
        references(str(folder / "1.png"), shown)


# --- images and their names -------------------------------------------------------------------------------------------


def test_folders_are_searched_for_images_alone(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", ".hidden.png", ".hid/d.png", "__MACOSX/e.png", "notes.txt",
                 "out/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = gather([tmp_path, tmp_path / "a.jpg"], tmp_path / "out")
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert [name for name in names if not name.startswith("here")] == ["a.jpg", "b.PNG", "deep/er/c.webp"]
    assert gather([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]  # whoever names a file means it


def test_names_of_pictures_are_safe_and_differ() -> None:
    paths = [Path("/a/cat/1.png"), Path("/a/dog/1.jpg"), Path("/a/one two:$x$.png"), Path("/a/\udcff.png"),
             Path("/a/Z.png"), Path("/b/z.png"), Path("/c/x/.png.png"), Path("/d/é" + "x" * 300 + ".png"),
             Path("/a/cat/1.webp")]
    names = names_of(paths)
    assert names[:2] == ["cat-1", "dog-1"] or names[1] == "dog-1"
    assert names[2:4] == ["one_two_x", "image"]
    assert {names[4], names[5]} == {"a-Z", "b-z"}
    assert len({name.casefold() for name in names}) == len(names)
    assert all(re.fullmatch(r"\w[\w.-]{0,90}", name) for name in names)


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "asked"), [
    ("winner", 1), ("top:2", 2), ("all", (0, 1, 2, 3)), ("cat", (1,)), ("CAT, dog", (1, 0)), ("2", (2,)),
    ("3", (3,)), ("cat,cat,1", (1,)), ("a, b", (3,))])
def test_classes_are_named_or_numbered(text: str, asked: object) -> None:
    assert asked_classes(text, ["dog", "cat", "Cow", "a, b"]) == asked


def test_a_name_goes_before_a_number() -> None:
    assert asked_classes("1", ["0", "2", "1"]) == (2,)
    assert asked_classes("cat", ["Cat", "cat"]) == (1,)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "tiles"), [("winner", 1), ("top:3", 3), ("all", 5)])
def test_a_picture_shows_the_image_and_each_class_by_one_scale(
        photo: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, classes: str, tiles: int) -> None:
    drawn, limits, heat = [], [], pictures.heat
    monkeypatch.setattr(pictures.Sheet, "say", lambda _, text, *place, **how: drawn.append(text))

    def hot(values: Any, limit: float, image: Any) -> Any:
        limits.append(limit)
        return heat(values, limit, image)

    monkeypatch.setattr(pictures, "heat", hot)
    made = bare(photo, checkpoint, classes=classes)
    found = arrays(made.path)
    assert len(limits) == tiles
    assert set(limits) == {pictures.limit_of(list(found["values"][0].astype(np.float64).sum(1)))}
    assert drawn[0] == "photo"
    for name, share in zip(found["class_names"][0], found["probabilities"][0], strict=True):
        place = drawn.index(str(name))
        assert drawn[place + 1].startswith(f"probability {share:.3f}, logit ")
    with Image.open(made.path / "photo.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 300 * min(tiles + 1, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_red_is_for_and_blue_against() -> None:
    values = np.array([[1.0, -1.0]])
    colours = pictures.heat(values, 1.0, np.full((1, 2, 3), 255, np.uint8)).astype(int)
    assert colours[0, 0, 0] > colours[0, 0, 2] and colours[0, 1, 2] > colours[0, 1, 0]


def test_of_many_classes_the_likeliest_are_drawn(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(pictures.Sheet, "say", lambda _, text, *place, **how: drawn.append(text))
    made = gallery.explain(TINY, Options((photo,), weights="none", input_size=SIDE, classes="top:16"), CPU)
    names = arrays(made.path)["class_names"][0].tolist()
    assert [name for name in names if name in drawn] == names[:gallery.TILES]
    assert any(text.endswith("2 less likely classes are not drawn") for text in drawn)


def test_each_explainer_has_a_name_for_pictures() -> None:
    assert [gallery.method(name) for name in EXPLAINERS] == [
        "Deep SHAP", "DeepLIFT", "Integrated gradients", "GradientSHAP", "Grad-CAM", "Occlusion"]


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_folder_of_its_own_is_replaced_and_nothing_else(photo: Path, checkpoint: Path, tmp_path: Path) -> None:
    bare(photo, checkpoint)
    Path("made/notes.txt").write_text("mine")
    other = ground(tmp_path / "other", 1) / "0.png"
    bare(other, checkpoint)
    assert {path.name for path in Path("made").iterdir()} == {
        "0.png", "attributions.npz", "attributions.csv", "explanation.json", "notes.txt"}
    assert json.loads(Path("made/explanation.json").read_text())["images"] == {"0": str(other)}
    Path("made/photo.png").write_bytes(b"mine now")
    with pytest.raises(BadInput, match=r"made/photo\.png: is there already"):
        bare(photo, checkpoint)
    assert Path("made/photo.png").read_bytes() == b"mine now"


def test_a_call_that_was_stopped_can_be_repeated(checkpoint: Path, tmp_path: Path) -> None:
    folder, picture = ground(tmp_path / "two", 2), gallery.picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "picture", lambda *given: 1 / 0 if given[4] == 1 else picture(*given))
        with pytest.raises(ZeroDivisionError):
            bare(folder, checkpoint)
    assert Path("made/0.png").is_file() and not Path("made/1.png").exists()
    bare(folder, checkpoint)
    assert Path("made/1.png").is_file()


def test_the_same_call_writes_the_same(photo: Path, checkpoint: Path) -> None:
    one, two = (bare(photo, checkpoint, out=Path(name)).path for name in ("one", "two"))
    for name in ("photo.png", "attributions.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


# --- mistakes ---------------------------------------------------------------------------------------------------------


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {  # RUN, TMP and PHOTO stand for paths
    "no images": (TINY, {"images": ()}, "--images: no image was named"),
    "gone": (TINY, {"images": ("gone.png",)}, "--images: there is no gone.png"),
    "long": (TINY, {"images": ("x" * 5000,)}, "--images: there is no xxx"),
    "none there": (TINY, {"images": ("TMP/empty",)}, "empty holds no image"),
    "unreadable": (TINY, {"images": ("PHOTO", "TMP/text.png")},
                   "/text.png: not an image, or its header is damaged; mend it, or leave it out"),
    "explainer": (TINY, {"explainer": "deepshap"}, "--explainer: found 'deepshap'; did you mean 'deep_shap'"),
    "output": (TINY, {"output": "logits"}, "--output: found 'logits'; did you mean 'logit'?; allowed: logit, prob"),
    "fit": (TINY, {"fit": "squeeze"}, "--fit: found 'squeeze'; allowed: crop, stretch, pad"),
    "class": ("RUN", {"classes": "dics", "weights": None, "input_size": None},
              "--classes: found 'dics', which is no class of this network; did you mean 'disc'?; allowed: winner,"),
    "number": (TINY, {"classes": "5"}, "--classes: found '5', which is no class of this network; allowed: winner, "),
    "top": (TINY, {"classes": "top:6"}, "--classes: found 'top:6'; allowed: top:1 to top:5"),
    "top zero": (TINY, {"classes": "top:0"}, "allowed: top:1 to top:5"),
    "model": ("torchvision:resnet19", {}, "MODEL_OR_RUN: found 'torchvision:resnet19'"),
    "model, near": ("packaged:lite0", {}, "did you mean 'efficientnet_lite0'"),
    "prefix": ("keras:resnet18", {}, "keras:resnet18: neither a run's folder nor a network"),
    "long name": ("y" * 5000, {}, "it cannot be opened (File name too long)"),
    "no run": ("STUDY:tl-clean-5", {}, "the study has no run 'tl-clean-5'; did you mean 'tl-clean-4'?"),
    "study": ("STUDY", {}, "is a whole study; name one of its finished runs, e.g. "),
    "file": ("PHOTO", {}, "neither a run's folder nor a network"),
    "weights": (TINY, {"weights": "imagenette"}, "--weights: found 'imagenette'; allowed for timm:test_resnet: "),
    "no file": (TINY, {"weights": "gone.pth"}, "--weights: found 'gone.pth'; there is no such file"),
    "torn": (TINY, {"weights": "TMP/torn.pth"}, "it holds something other than tensors"),
    "headless": (TINY, {"weights": "TMP/headless.pth"}, "it holds no head (fc.weight)"),
    "another's": ("torchvision:densenet121", {}, "it holds no head (classifier.weight)"),
    "too small": ("torchvision:vit_b_16", {"weights": "none", "input_size": 17}, "--input-size: found 17"),
    "background": (TINY, {"background": "blakc"},
                   "--background: found 'blakc', and no file or folder lies there; did you mean 'black'?"),
    "background, empty": (TINY, {"background": "TMP/empty"}, "--background: "),
    "background, torn": (TINY, {"background": "TMP/torn.zip"}, "--background: "),
    "background, bad": (TINY, {"background": "TMP/text.png"}, "text.png: not an image"),
    "background, own": (TINY, {"background": "PHOTO"}, "an image cannot be its own background"),
    "background, train": (TINY, {"background": "train"}, "--background: found 'train', which a run of a study has"),
    "background, source": (TINY, {"background": "torchvision:Nope"}, "--background: torchvision:Nope: 'Nope' is not a"),
    "out, full": (TINY, {"out": Path("TMP/full")}, "is not empty and was not made by `tlkd explain`"),
    "out, a record": (TINY, {"out": Path("TMP/alien")}, "is not empty and was not made by `tlkd explain`"),
    "out, a file": (TINY, {"out": Path("PHOTO")}, "is a file; choose another --out"),
    "out, below a file": (TINY, {"out": Path("PHOTO/x")}, "x cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(ran: Path, photo: Path, checkpoint: Path, tmp_path: Path,
                                                  name: str) -> None:
    (tmp_path / "empty" / "nothing").mkdir(parents=True)
    for folder, file in (("full", "a.txt"), ("alien", "explanation.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text('{"made_by": "hand", "files": ["a"]}')
    (tmp_path / "text.png").write_text("no image")
    for torn in ("torn.zip", "torn.pth"):
        (tmp_path / torn).write_bytes(b"PK")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({key: each for key, each in state.items() if "fc." not in key}, tmp_path / "headless.pth")
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)

    def meant(value: Any) -> Any:
        if isinstance(value, str | Path):
            places = {"RUN": ran / "runs" / "tl-clean-4", "STUDY": ran, "TMP": tmp_path, "PHOTO": photo}
            text = re.sub("RUN|STUDY|TMP|PHOTO", lambda found: str(places[found[0]]), str(value))
            return Path(text) if isinstance(value, Path) else text
        return tuple(Path(meant(each)) for each in value) if isinstance(value, tuple) else value

    text, more, said = MISTAKES[name]
    options = {"images": (photo,), "weights": str(checkpoint), "input_size": SIDE,
               **{key: meant(value) for key, value in more.items()}}
    with pytest.raises(BadInput) as caught:
        gallery.explain(meant(text), Options(**options), CPU)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "found false" not in str(caught.value)
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_weights_that_cannot_be_fetched_are_one_line(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(BadInput, match=r"^--weights: found 'imagenet'; torchvision:resnet18's could not be fetched .* "
                                       r"or give --weights PATH$"):
        gallery.explain("torchvision:resnet18", Options((photo,)), CPU)


def test_an_unfinished_run_and_a_teacher_are_refused(tmp_path: Path) -> None:
    folder = sealed_folders.lay_down(tmp_path / "s", waiting=("kd-clean-1",))
    with pytest.raises(BadInput, match="this run is not finished"):
        subjects.find(f"{folder.path}:kd-clean-1")
    with pytest.raises(BadInput, match="whose weights stay in the cache"):
        subjects.find(str(folder.path / "teachers" / "big"))


def test_a_damaged_run_is_one_line(ran: Path, tmp_path: Path) -> None:
    for name, content in (("model.safetensors", b"{"), ("spec.json", b"{")):
        other = tmp_path / name
        shutil.copytree(ran, other)
        (other / "runs" / "tl-clean-4" / name).write_bytes(content)
        with pytest.raises(BadInput, match=rf"{re.escape(name)}: cannot be read"):
            run_network(other)
    other = tmp_path / "turned"
    shutil.copytree(ran, other)
    weights = other / "runs" / "tl-clean-4" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit, which any parser takes
    with pytest.raises(BadInput, match=r"model\.safetensors: is damaged"):
        run_network(other)


def test_too_much_at_once_is_refused(photo: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_VALUES", 2 * 3 * SIDE**2)
    bare(photo, checkpoint, classes="top:2")
    with pytest.raises(BadInput, match=r"1 images and 3 classes of each make .* GiB"):
        bare(photo, checkpoint, classes="top:3")


def test_attributions_that_miss_name_the_image(photo: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RunFailed("they are not additive")

    monkeypatch.setattr(gallery, "deep_shap_of_heads", missing)
    with pytest.raises(RunFailed, match=r"^photo: they are not additive"):
        bare(photo, checkpoint)


# --- the command ------------------------------------------------------------------------------------------------------

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tlkd", "explain", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capsys.readouterr()

    return command


def test_the_command_says_a_line_a_picture(call: Call, photo: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = ground(tmp_path / "other", 1) / "0.png"
    code, out, _ = call(TINY, "--weights", checkpoint, "--input-size", SIDE, "--images", photo, other, "--classes", "2",
                        "--out", "made", "--device", "cpu")
    assert code == 0
    first, second, *rest = out.splitlines()
    assert re.fullmatch(r"made/photo\.png  2 0\.\d{3}", first) and second.startswith("made/0.png  2 0.")
    assert rest == ["attributions: made/attributions.npz", "table:        made/attributions.csv"]


def test_the_command_complains_in_one_line(call: Call, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(TINY, "--images", "gone.png")[:2] == (2, "")
    code, out, err = call(TINY)
    assert (code, out, err.count("\n")) == (2, "", 1)
    code, out, err = call(TINY, "--images", photo, "--background-size", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)

    def fail(*_: object) -> None:
        raise RunFailed("photo: not additive")

    monkeypatch.setattr(gallery, "explain", fail)
    assert call(TINY, "--images", photo) == (1, "", "tlkd: photo: not additive\n")
