from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from difficult_folders import ROBUSTNESS, blacks, noises, write_examples
from study_folders import lay_down
from tlkd import specimens
from tlkd.errors import BadInput
from tlkd.findings import find
from tlkd.folder import StudyFolder


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    laid = lay_down(tmp_path / "s", seeds=1, per_class=2, epochs=2, robustness=ROBUSTNESS,
                    conditions=[{"name": "clean"}, *noises(0.1, 0.2, 0.3, 0.4, 0.5), *blacks(0.5)])
    write_examples(laid)
    return laid


def test_two_pictures_with_their_rows(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    plain = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **how: (said.append(text), plain(self, x, y, text,
                                                                                               **how))[1])
    drawings = specimens.draw(folder, find(folder))
    assert [each.name for each in drawings] == ["examples", "examples_robustness"]
    joined = " ".join(said)
    assert "as they are" in joined and "CenterBlack, side 0.89 to 1" in joined and "Gaussian noise, severity" in joined
    assert "10 % of the labels" in joined and "50 % of the labels" in joined and "30 % of the labels" not in joined
    assert said.count("not kept") == specimens.NOISY and drawings[0].png.startswith(b"\x89PNG")


def test_what_is_not_there_or_does_not_fit(folder: StudyFolder, tmp_path: Path) -> None:
    bare = lay_down(tmp_path / "t", seeds=1, per_class=2, epochs=2)
    assert specimens.draw(bare, find(bare)) == []
    np.savez(folder.path / "examples.npz", images=np.zeros((1, 2, 8, 8, 3), np.uint8))
    with pytest.raises(BadInput, match=r"examples.npz: cannot be read .*expected 9 rows of 6 images"):
        specimens.load(folder)


def test_words_are_folded_and_large_images_thinned() -> None:
    words = "10 % of the training images, CenterBlack"
    assert specimens._folded(words) == ["10 % of the training", "images, CenterBlack"]
    assert specimens._thinned(np.zeros((128, 128, 3), np.uint8)).shape == (64, 64, 3)
    assert specimens._thinned(np.zeros((96, 96, 3), np.uint8)).shape == (96, 96, 3)
