"""`tlkd export`: what it leaves loads elsewhere and says the same; nothing is left where something is wrong."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image

import exported_studies
from exported_studies import CLASSES, CPU, STUDENTS
from tlkd import exporting, onnx_file, predicting, standalone, store, subjects
from tlkd.errors import BadInput, RunFailed
from tlkd.folder import StudyFolder
from tlkd.licences import Licence

LIBRARIES = tuple(STUDENTS)
PRINTED = re.compile(r"(.*) ([\d.e-]+)")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The studies of both libraries, a cache, and an export of each."""
    root = tmp_path_factory.mktemp("exporting")
    with exported_studies.settled(root) as images:
        for library in LIBRARIES:
            exported_studies.run(library, images, root / library)
            exporting.export(str(root / library / "runs" / "kd-clean-1"), root / f"{library}-export",
                             timed=library == "timm")
    return root


@pytest.fixture(autouse=True)
def _here(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exported_studies.settle(monkeypatch, root)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run_of(root: Path, library: str = "timm", name: str = "kd-clean-1") -> str:
    return str(root / library / "runs" / name)


def some_image(root: Path, number: int = 0) -> Path:
    return sorted((root / "images" / "test").rglob("*.png"))[number]


def config(root: Path, library: str = "timm") -> dict[str, Any]:
    return json.loads((root / f"{library}-export" / "config.json").read_text())


def as_trained(root: Path, library: str, squares: np.ndarray) -> np.ndarray:
    """Logits of the run's own network."""
    subject = subjects.open_subject(subjects.find(run_of(root, library)), None, None, None, CPU)
    ready = subjects.preparation(subject)
    with torch.inference_mode():
        return subject.network(torch.from_numpy(standalone.network_input(squares, ready))).numpy()


def squares_of(root: Path, library: str) -> np.ndarray:
    ready = standalone.read_config(root / f"{library}-export")
    return np.stack([standalone.square(path, ready) for path in sorted((root / "images" / "test").rglob("*.png"))])


# --- what it leaves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_files_are_those_promised_and_readable_by_all(root: Path, library: str) -> None:
    found = sorted((root / f"{library}-export").iterdir())
    assert [path.name for path in found] == sorted(exporting.FILES)
    assert len({path.stat().st_mode & 0o777 for path in found}) == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_code_in_the_card_runs_and_agrees_with_the_run(
        root: Path, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "student"
    shutil.copytree(root / f"{library}-export", folder)
    shutil.copy(some_image(root), folder / "image.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks[0].strip().splitlines()) == 3
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    names: dict[str, Any] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for block in blocks:
            for module in ("predict", "images"):
                monkeypatch.delitem(sys.modules, module, raising=False)
            exec(block, names)
    assert "tlkd" not in "".join(blocks)
    expected = standalone.softmax(as_trained(root, library, squares_of(root, library)[:1]))[0]
    lines = [PRINTED.fullmatch(line) for line in said.getvalue().splitlines()]
    assert len(blocks) == 3
    assert len(lines) == 2
    for line in lines:
        assert line is not None
        assert line[1] == CLASSES[expected.argmax()]
        assert float(line[2]) == pytest.approx(expected.max(), abs=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_weights_in_the_plain_library_give_the_logits_of_the_run(root: Path, library: str) -> None:
    state = safetensors.torch.load_file(root / f"{library}-export" / "model.safetensors")
    name = STUDENTS[library]["model"].partition(":")[2]
    model = (timm.create_model(name, num_classes=3) if library == "timm" else
             torchvision.models.get_model(name, num_classes=3)).eval()
    model.load_state_dict(state)
    squares = squares_of(root, library)
    ready = standalone.read_config(root / f"{library}-export")
    with torch.inference_mode():
        found = model(torch.from_numpy(standalone.network_input(squares, ready))).numpy()
    np.testing.assert_allclose(found, as_trained(root, library, squares), atol=1e-5)
    stored = StudyFolder(root / library).predictions(subjects.find(run_of(root, library)).run)
    np.testing.assert_allclose(found, stored.logits, atol=1e-4)  # the test images are in this order in both


def test_timm_takes_the_folder_as_it_is(root: Path) -> None:
    model = timm.create_model(f"local-dir:{root / 'timm-export'}", pretrained=True).eval()
    squares = squares_of(root, "timm")
    ready = standalone.read_config(root / "timm-export")
    with torch.inference_mode():
        found = model(torch.from_numpy(standalone.network_input(squares, ready))).numpy()
    np.testing.assert_allclose(found, as_trained(root, "timm", squares), atol=1e-5)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    assert timm.data.resolve_model_data_config(model)["input_size"] == [3, 48, 48]


def test_the_script_predicts_where_neither_torch_nor_tlkd_can_be_imported(root: Path) -> None:
    folder = root / "timm-export"
    code = ("import runpy, sys\n"
            "class Blocked:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] in ('torch', 'tlkd', 'timm', 'torchvision', 'scipy', 'pandas'):\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Blocked())\n"
            f"sys.path.insert(0, {str(folder)!r})\n"
            f"sys.argv = ['predict.py', {str(root / 'images' / 'test')!r}, '--top', '3']\n"
            f"runpy.run_path({str(folder / 'predict.py')!r}, run_name='__main__')\n")
    done = subprocess.run([sys.executable, "-B", "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    of_run = predicting.predict(run_of(root), [root / "images" / "test"], predicting.Options(top=3))
    mine, theirs = ([line.rsplit(",", 3) for line in text.splitlines()[1:]] for text in (of_run.text, done.stdout))
    assert len(mine) == 3 * 18
    assert [line[:3] for line in mine] == [line[:3] for line in theirs]
    np.testing.assert_allclose([float(line[3]) for line in mine], [float(line[3]) for line in theirs], atol=1e-5)


def test_no_path_of_this_machine_stands_in_any_file(root: Path) -> None:
    for path in (root / "timm-export").iterdir():
        content = path.read_bytes()
        for place in (str(root), str(Path(exporting.__file__).parent), "site-packages"):
            assert place.encode() not in content, f"{path.name} names {place}"


def test_the_config_says_what_was_measured(root: Path) -> None:
    found = config(root)
    assert (found["library"], found["architecture"], found["num_classes"]) == ("timm", "test_resnet", 3)
    assert found["label_names"] == list(CLASSES)
    assert found["preprocessing"]["decoded_side"] == 40
    assert found["preprocessing"]["input_size"] == 48
    assert found["check"]["agreeing"] == found["check"]["images"] == 18
    assert 0 <= found["check"]["difference"] <= found["check"]["tolerance"]
    for who, side in (("student", 48), ("teacher", 64)):
        weighed = found["footprint"][who]
        assert weighed["input_size"] == side
        assert weighed["parameters"] > 1000
        assert weighed["macs"] > 1e6
        for engine in ("PyTorch", "ONNX Runtime"):
            time = weighed["latency_seconds"][engine]
            assert 0 < time["low"] <= time["median"] <= time["high"]
            assert time["repeats"] >= 20


def test_a_condition_with_another_input_size_is_exported_with_it(root: Path, tmp_path: Path) -> None:
    exporting.export(run_of(root, name="kd-small-0"), tmp_path / "small", timed=False)
    ready = standalone.read_config(tmp_path / "small")
    assert ready.input_size == 32
    card = (tmp_path / "small" / "README.md").read_text()
    assert "small: wrong labels on 25.0 % of what it was trained on" in card
    assert "| teacher vit, fitted under small | n = 1 |" in card
    assert "Nothing was timed." in card


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_tells_what_it_must(root: Path) -> None:
    card = (root / "timm-export" / "README.md").read_text()
    own = StudyFolder(root / "timm").result(subjects.find(run_of(root)).run)
    assert f"| this file | 1 | {100 * own['test_accuracy']:.2f} |" in card
    for word in ("| TL+KD | n = 2 |", "| TL, without a teacher | n = 2 |", "| teacher vit | n = 1 |", "±",
                 "**Verdict: ", "## Intended use", "## Limits", "Weakest classes", "18 of 18", "folder: images |",
                 "ONNX Runtime, one image", "multiply-adds", "started from random numbers"):
        assert word in card, word
    assert "Warning" not in card


def test_names_of_classes_are_text_in_the_card(root: Path) -> None:
    card = (root / "timm-export" / "README.md").read_text()
    assert r"\*bold\* \| \[disc\](x), &lt;b&gt;frame\_1, stripes \`code\`" in card
    assert "<b>" not in card
    for line in (each for each in card.splitlines() if each.startswith("|")):
        assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 8), line  # no table is broken by a name


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_weights_that_are_not_for_commercial_use_are_warned_of(
        root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    restricted = Licence("CC-BY-NC 4.0", "cc-by-nc-4.0", "forbidden", "SWAG weights of Meta")
    free = Licence("MIT", "mit", "allowed", "somebody's")
    teacher = "timm:test_vit"
    monkeypatch.setattr(exporting, "licence_of",
                        lambda spec: restricted if (spec.model == teacher) == (who == "teacher") else free)
    made = exporting.export(run_of(root), tmp_path / "made", timed=False)
    card = (tmp_path / "made" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    assert len(made.warnings) == 1
    assert "CC-BY-NC 4.0" in made.warnings[0]
    assert card.index("> **Warning: ") < card.index("## Use it")
    assert ("not for commercial use.**" if who == "student" else "Whether that binds a student") in card


# --- where it may be written ------------------------------------------------------------------------------------------


def test_an_earlier_export_is_replaced_when_asked_and_only_then(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "made"
    shutil.copytree(root / "torchvision-export", to)
    (to / "__pycache__").mkdir()
    with pytest.raises(BadInput, match="holds an export already; --force replaces it"):
        exporting.export(run_of(root), to, timed=False)
    exporting.export(run_of(root), to, force=True, timed=False)
    assert sorted(path.name for path in to.iterdir()) == sorted(exporting.FILES)
    assert json.loads((to / "config.json").read_text())["library"] == "timm"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_of_somebody_else_are_never_deleted(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "made"
    shutil.copytree(root / "timm-export", to)
    (to / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"also holds notes\.txt"):
        exporting.export(run_of(root), to, force=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    for force in (False, True):
        with pytest.raises(BadInput, match="is not empty and is no export of tlkd's"):
            exporting.export(run_of(root), other, force=force)
    file = tmp_path / "file"
    file.write_text("mine")
    for to in (file, file / "below", Path("/proc/below"), tmp_path / ("x" * 300)):
        with pytest.raises(BadInput, match=r"^--to.*(is a file|cannot be (written|read|opened))"):
            exporting.export(run_of(root), to)
    assert file.read_text() == (other / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("broken", ["tolerance", "stored"])
def test_a_failing_check_is_a_failed_export_and_leaves_all_as_it_was(
        root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    to = tmp_path / "made"
    shutil.copytree(root / "timm-export", to)
    before = {path.name: path.read_bytes() for path in to.iterdir()}
    if broken == "tolerance":
        real = onnx_file.onnx_logits
        monkeypatch.setattr(onnx_file, "onnx_logits", lambda *words, **more: (
            lambda squares: real(*words, **more)(squares) + np.array([0.01, 0, 0], np.float32)))
        match = r"differs from PyTorch by up to 0.01 in a logit"
    else:
        monkeypatch.setattr(exporting, "_logits", lambda *_: -as_trained(root, "timm", squares_of(root, "timm")))
        monkeypatch.setattr(onnx_file, "check", lambda *_: None)
        match = "something else than the study stored"
    with pytest.raises(RunFailed, match=match):
        exporting.export(run_of(root), to, force=True, timed=False)
    assert {path.name: path.read_bytes() for path in to.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "made"]


# --- what can be exported ---------------------------------------------------------------------------------------------


def test_what_is_no_finished_run_is_refused_in_a_line(root: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(root / "timm", study)
    (study / "runs" / "kd-clean-0" / "manifest.json").unlink()
    cases = {
        study / "runs" / "kd-clean-0": "this run is not finished; finish it with `tlkd run`",
        study / "runs" / "kd-clean-7": "no run 'kd-clean-7'; did you mean",
        study: "is a whole study; name one of its finished runs",
        study / "teachers" / "vit": "is a teacher's result",
        root / "timm-export": "is an export already",
        "timm:test_resnet": "is no run's folder; allowed: STUDY/runs/RUN",
        tmp_path / "nothing": "is no run's folder"}
    for text, said in cases.items():
        with pytest.raises(BadInput, match=re.escape(said)) as caught:
            exporting.export(str(text), tmp_path / "made")
        assert "\n" not in str(caught.value)
    (study / "runs" / "kd-clean-1" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadInput, match=r"model\.safetensors: is missing or damaged"):
        exporting.export(str(study / "runs" / "kd-clean-1"), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_missing_extra_is_named_with_its_command(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "EXTRA", ("onnx", "no_such_package"))
    with pytest.raises(BadInput, match=re.escape("needs the extra export: pip install 'tlkd[export]'")):
        exporting.export(run_of(root), tmp_path / "made")


def test_test_images_come_from_the_cache_or_the_source_or_the_person(
        root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = standalone.read_config(root / "timm-export")
    source, study = root / "images", StudyFolder(root / "timm")
    expected = exporting._shown(study, ready, ())
    assert expected.said == "18 of the study's 18 test images"
    with monkeypatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(tmp_path / "empty"))
        again = exporting._shown(study, ready, ())
    assert again.ids == expected.ids
    assert np.array_equal(again.squares, expected.squares)
    source.rename(root / "gone")
    try:
        assert exporting._shown(study, ready, ()).ids == expected.ids
        monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "another"))
        with pytest.raises(BadInput, match=r"cannot be had \(data\.source: .*give others: --images PATH"):
            exporting._shown(study, ready, ())
        given = exporting._shown(study, ready, [root / "gone" / "test"])
        assert given.said == "18 images given with --images"
        assert given.squares.shape == (18, 40, 40, 3)
        with pytest.raises(BadInput, match="--images: there is no nowhere"):
            exporting._shown(study, ready, [Path("nowhere")])
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(BadInput, match=r"--images: .*text\.png: not an image"):
            exporting._shown(study, ready, [tmp_path / "text.png"])
    finally:
        (root / "gone").rename(source)


def test_images_that_were_changed_meanwhile_are_not_taken_for_the_studys(
        root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = standalone.read_config(root / "timm-export")
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "empty"))
    image = some_image(root)
    before = image.read_bytes()
    try:
        Image.new("RGB", (44, 40), "red").save(image)
        with pytest.raises(BadInput, match="no longer holds the images that the study was run on"):
            exporting._shown(StudyFolder(root / "timm"), ready, ())
    finally:
        image.write_bytes(before)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "new").write_text("new")

    def fail(folder: Path) -> None:
        build(folder)
        raise RunFailed("no")

    with pytest.raises(RunFailed):
        store.replace_folder(tmp_path / "at" / "place", fail)
    assert list((tmp_path / "at").iterdir()) == []
    (tmp_path / "at" / "place").mkdir()
    (tmp_path / "at" / "place" / "old").write_text("old")
    with pytest.raises(RunFailed):
        store.replace_folder(tmp_path / "at" / "place", fail)
    assert (tmp_path / "at" / "place" / "old").read_text() == "old"
    store.replace_folder(tmp_path / "at" / "place", build)
    assert [path.name for path in (tmp_path / "at" / "place").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "at").iterdir()] == ["place"]
