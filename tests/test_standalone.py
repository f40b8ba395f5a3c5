"""The script of exports: an input to the last bit as the study makes it, files found, and text written."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkd import images, standalone
from tlkd.standalone import Prediction, Preparation, Refused, as_csv, as_json, gather, network_input, softmax
from tlkd.views import IDENTITY, render


def ready(**more: object) -> Preparation:
    return Preparation(**{"classes": ("a", "b", "c"), "decoded_side": 40, "fit": "crop", "input_size": 48,  # type: ignore[arg-type]
                          "mean": (0.48, 0.45, 0.4), "sd": (0.22, 0.23, 0.24), **more})


@pytest.mark.parametrize("side", [24, 40, 96, 41])
def test_the_input_is_the_one_that_studies_render(side: int) -> None:
    asked = ready(input_size=side)
    squares = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    whole = np.zeros(3, np.int64)
    expected = render(torch.from_numpy(squares), whole.astype(np.uint64), (IDENTITY,), whole, side, 0, asked.mean,
                      asked.sd)
    np.testing.assert_allclose(network_input(squares, asked), expected.numpy(), atol=2e-6)


def test_an_image_is_decoded_as_a_study_decodes_it(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    random = np.random.default_rng(1)
    image = Image.fromarray(random.integers(0, 256, (300, 500, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[images.ORIENTATION] = 6
    image.save(path, exif=exif)
    for fit in ("crop", "stretch", "pad"):
        expected = images.fit_image(images.decode(path, 40).image, 40, fit)
        assert np.array_equal(standalone.square(path, ready(fit=fit)), np.asarray(expected))


def test_what_the_script_imports_comes_with_every_export() -> None:
    for module, others in ((standalone, {"images"}), (images, set())):
        tree = ast.parse(Path(module.__file__).read_text())
        names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {name.removeprefix("tlkd.") for name in names if name.startswith("tlkd")} == others
        foreign = {name.partition(".")[0] for name in names if not name.startswith("tlkd")}
        assert foreign & {"torch", "timm", "torchvision", "pandas", "pydantic", "scipy", "typer"} == set()


def test_softmax_is_a_probability_even_of_large_logits() -> None:
    found = softmax(np.array([[1000.0, 999.0], [-1000.0, -1000.0]], np.float32))
    np.testing.assert_allclose(found, [[0.7310586, 0.2689414], [0.5, 0.5]], atol=1e-6)


def test_bad_images_are_named_and_the_others_predicted(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (50, 44), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    paths = sorted(tmp_path.iterdir())
    gone = tmp_path / "9.png"
    calls: list[int] = []

    def logits(squares: np.ndarray) -> np.ndarray:
        calls.append(len(squares))
        red = squares[:, 20, 20, 0].astype(np.float32)
        return np.stack([red, red - 1, red - 2], 1)

    found, problems = standalone.predict([*paths, gone], ready(), logits, top=2, batch_size=2)
    assert [Path(each.image).stem for each in found] == ["0", "1", "3", "4"]
    assert all(each.classes == ("a", "b") for each in found)
    assert calls == [2, 1, 1]
    assert problems == {paths[2]: "not an image, or its header is damaged", gone: "the file is gone"}


def test_files_are_found_once_and_below_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    (tmp_path / "a" / "b").mkdir()
    for name in ("a/z.JPG", "a/b/x.png", "a/.hidden/y.png", "a/notes.txt", "a/.dot.png"):
        (tmp_path / name).write_bytes(b"")
    found = gather([tmp_path / "a", tmp_path / "a" / "z.JPG", tmp_path / "a" / "notes.txt"])
    assert [path.name for path in found] == ["x.png", "z.JPG", "notes.txt"]  # a file that was named is taken as it is
    assert [path.name for path in gather([tmp_path / "a"], skip=tmp_path / "a" / "b")] == ["z.JPG"]
    for given, said in (([tmp_path / "nowhere"], "there is no"), ([tmp_path / "a" / ".hidden" / ".."], None),
                        ([Path("x" * 5000)], "there is no xxx"), ([], "no image was named")):
        if said is not None:
            with pytest.raises(Refused, match=said):
                gather(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="empty holds no image; allowed: image files"):
        gather([tmp_path / "empty"])


def test_predictions_are_written_as_csv_and_json() -> None:
    found = [Prediction("a, b.png", ('say "x"', "ü"), (0.75, 0.125)), Prediction("c.png", ("ü",), (1.0,))]
    assert as_csv(found) == ('image,rank,class,probability\n"a, b.png",1,"say ""x""",0.750000\n'
                             '"a, b.png",2,ü,0.125000\nc.png,1,ü,1.000000\n')
    assert as_csv(found, {"c.png": "p/c.png"}).splitlines()[0::3] == ["image,rank,class,probability,attribution",
                                                                    "c.png,1,ü,1.000000,p/c.png"]
    assert json.loads(as_json(found, {"c.png": "p/c.png"})) == [
        {"image": "a, b.png", "predictions": [{"class": 'say "x"', "probability": 0.75},
                                              {"class": "ü", "probability": 0.125}], "attribution": None},
        {"image": "c.png", "predictions": [{"class": "ü", "probability": 1.0}], "attribution": "p/c.png"}]


def test_a_name_that_is_no_text_can_be_written() -> None:
    import os

    assert standalone.text_of(Path(os.fsdecode(b"caf\xe9.png"))) == "caf\\xe9.png"


@pytest.mark.parametrize(("content", "said"), [
    ("{", "JSONDecodeError"), ("[]", "TypeError"), ('{"made_by": "x"}', "made_by is 'x'"),
    ('{"made_by": "tlkd export"}', "KeyError: 'preprocessing'"),
    ('{"made_by": "tlkd export", "label_names": ["a"], "preprocessing": {"decoded_side": 0, "fit": "crop", '
     '"input_size": 1, "mean": [0, 0, 0], "sd": [1, 1, 1]}}', "preprocessing is"),
    (None, "is not there; it belongs beside model.onnx"),
])
def test_a_config_of_somebody_else_is_refused_in_a_line(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(Refused, match=said) as caught:
        standalone.read_config(tmp_path)
    assert "\n" not in str(caught.value)
