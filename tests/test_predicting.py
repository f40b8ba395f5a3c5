"""`tlkd predict`: a run, its export and its ONNX file say the same; every way of asking it wrongly has one line."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exported_studies
from exported_studies import CLASSES
from tlkd import cli, exporting, predicting
from tlkd.errors import BadInput
from tlkd.folder import StudyFolder
from tlkd.predicting import Options, predict

RUN = "kd-clean-1"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study, an export of one of its runs, and a cache."""
    root = tmp_path_factory.mktemp("predicting")
    with exported_studies.settled(root) as images:
        exported_studies.run("torchvision", images, root / "study")
        exporting.export(str(root / "study" / "runs" / RUN), root / "student", timed=False)
    return root


@pytest.fixture(autouse=True)
def _here(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TLKD_CACHE", str(root / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def models(root: Path) -> dict[str, str]:
    return {"run": str(root / "study" / "runs" / RUN), "export": str(root / "student"),
            "onnx": str(root / "student" / "model.onnx")}


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_run_export_and_onnx_agree_with_what_the_study_stored(root: Path) -> None:
    images = [root / "images" / "test"]
    found = {name: rows(predict(model, images, Options(top=3, batch_size=5)).text)
             for name, model in models(root).items()}
    stored = StudyFolder(root / "study").predictions(StudyFolder(root / "study").finished()[0])
    exp = np.exp(stored.logits - stored.logits.max(1, keepdims=True))
    expected = dict(zip(stored.sample_ids.tolist(), exp / exp.sum(1, keepdims=True), strict=True))
    for each in found.values():
        assert len(each) == 3 * 18
        for row in each:
            name = Path(row["image"]).relative_to(root / "images").as_posix()
            assert float(row["probability"]) == pytest.approx(expected[name][CLASSES.index(row["class"])], abs=1e-4)
    assert len({row["class"] for row in found["run"] if row["rank"] == "1"}) > 1


def test_onnx_imports_no_torch(root: Path) -> None:
    code = ("import sys\nfrom tlkd.cli import main\n"
            f"sys.argv = ['tlkd', 'predict', {models(root)['onnx']!r}, {str(root / 'images' / 'test')!r}]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "print({'torch', 'timm', 'pandas'} & set(sys.modules))\n")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 18 + 1
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("model", ["run", "export"])
def test_attributions_are_drawn_and_named(root: Path, tmp_path: Path, model: str) -> None:
    images = sorted((root / "images" / "test").rglob("*.png"))[:2]
    out = tmp_path / "pictures"
    made = predict(models(root)[model], images, Options(top=2, format="json", attributions=out))
    found = json.loads(made.text)
    assert [Path(each["attribution"]).parent for each in found] == [out, out]
    for each in found:
        with Image.open(each["attribution"]) as picture:
            assert picture.width > 500
    table = rows((out / "attributions.csv").read_text())
    assert [row["class"] for row in table] == [each["class"] for one in found for each in one["predictions"]]
    assert max(abs(float(row["residual"])) for row in table) < 1e-3


def test_an_unreadable_image_is_named_at_the_end(
        root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(next((root / "images" / "test").rglob("*.png")), folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["tlkd", "predict", models(root)["onnx"], str(folder)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    assert caught.value.code == 1
    assert [row["image"] for row in rows(said.out)] == [str(folder / "good.png")]
    assert said.err == f"tlkd: {folder / 'bad.png'}: not an image, or its header is damaged\n"


def test_the_output_is_a_file_that_appears_whole(root: Path, tmp_path: Path) -> None:
    image = next((root / "images" / "test").rglob("*.png"))
    out = tmp_path / "new" / "predictions.json"
    made = predict(models(root)["onnx"], [image], Options(format="json", out=out))
    assert out.read_text() == made.text
    assert [path.name for path in out.parent.iterdir()] == ["predictions.json"]


BAD = {
    "vanished": (["$ONNX", "gone.png"], "IMAGE_OR_FOLDER: there is no gone.png"),
    "no image": (["$ONNX", "."], "IMAGE_OR_FOLDER: . holds no image"),
    "format": (["$ONNX", "$IMAGE", "--format", "cvs"], "--format: found 'cvs'; did you mean 'csv'?; allowed: csv"),
    "top": (["$ONNX", "$IMAGE", "--top", "4"], "--top: found 4; allowed: 1 to 3, the number of classes"),
    "device": (["$ONNX", "$IMAGE", "--device", "gpu"], "--device: found 'gpu'"),
    "no cuda": (["$ONNX", "$IMAGE", "--device", "cuda"], "this ONNX Runtime has no CUDA"),
    "out is a folder": (["$ONNX", "$IMAGE", "--out", "."], "--out: . is a folder"),
    "out below a file": (["$ONNX", "$IMAGE", "--out", "$IMAGE/x.csv"], "cannot be written"),
    "attributions of onnx": (["$ONNX", "$IMAGE", "--attributions", "p"], "has no gradients; name the export's folder"),
    "no such onnx": (["nothing.onnx", "$IMAGE"], "nothing.onnx: there is no such file"),
    "bare network": (["torchvision:resnet18", "$IMAGE"], "is no network to predict with; allowed: STUDY/runs/RUN"),
    "nothing": (["nothing", "$IMAGE"], "nothing: is no network to predict with"),
    "study": (["$STUDY", "$IMAGE"], "is a whole study; name one of its finished runs"),
    "attributions elsewhere": (["$EXPORT", "$IMAGE", "--attributions", "$STUDY"],
                               "--attributions: $STUDY: is not empty and was not made by `tlkd explain`"),
    "attributions where nothing can be": (["$EXPORT", "$IMAGE", "--attributions", "/dev/null/x"],
                                          "--attributions: /dev/null/x cannot be written"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_gets_one_line(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                 name: str) -> None:
    words, said = BAD[name]
    places = {"ONNX": models(root)["onnx"], "EXPORT": models(root)["export"], "STUDY": str(root / "study"),
              "IMAGE": str(next((root / "images" / "test").rglob("*.png")))}

    def put(word: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: places[match[1]], word)

    monkeypatch.setattr(sys, "argv", ["tlkd", "predict", *map(put, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    found = capsys.readouterr()
    assert (caught.value.code, found.out) == (2, "")
    assert found.err.count("\n") == 1
    assert put(said) in found.err


def test_an_export_of_others_is_refused_in_a_line(root: Path, tmp_path: Path) -> None:
    image = next((root / "images" / "test").rglob("*.png"))
    folder = tmp_path / "student"
    shutil.copytree(root / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "class_names": []}))
    with pytest.raises(BadInput, match=r"config\.json: is not what SHA256SUMS says"):
        predict(str(folder / "model.onnx"), [image], Options())
    (folder / "SHA256SUMS").unlink()

    def change(**more: object) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **more}))

    change(preprocessing={**config["preprocessing"], "decoded_side": 33})
    with pytest.raises(BadInput, match=r"which is not what config\.json says"):
        predict(str(folder / "model.onnx"), [image], Options())
    change(label_names=config["label_names"][:-1])
    with pytest.raises(BadInput, match=r"gives .* which is not what config\.json says"):
        predict(str(folder / "model.onnx"), [image], Options())
    change(architecture="resnet_of_mine")
    with pytest.raises(BadInput, match="names no network that can be built"):
        predict(str(folder), [image], Options())
    change(architecture="resnet34")
    with pytest.raises(BadInput, match=r"model\.safetensors: does not fit torchvision:resnet34"):
        predict(str(folder), [image], Options())
    change()
    for name, model in (("model.onnx", folder / "model.onnx"), ("model.safetensors", folder)):
        (folder / name).write_bytes(b"damaged")
        with pytest.raises(BadInput, match=r"cannot load it|cannot be read as tensors") as caught:
            predict(str(model), [image], Options())
        assert "\n" not in str(caught.value)


def test_onnx_without_its_runtime_names_the_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BadInput, match=re.escape("needs the extra export: pip install 'tlkd[export]'")):
        predict(models(root)["onnx"], [next((root / "images" / "test").rglob("*.png"))], Options())
    assert predicting.predict(models(root)["export"], [root / "images" / "test"], Options()).count == 18
