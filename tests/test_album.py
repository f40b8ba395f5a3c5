import dataclasses
from pathlib import Path

import numpy as np
import pytest

from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import album, explained
from tlkd.errors import BadInput
from tlkd.folder import StudyFolder

MASKED = {"data": {"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, "explanation": {}}


def explained_study(path: Path, **how: object) -> StudyFolder:
    folder = lay_down(path, classes=("cat", "dog", "owl"), per_class=4, seeds=3, epochs=3, **MASKED)
    return write_explanations(folder.path, images=12, masked=9, uncertain=2, pictures=3, side=16, **how)


def rewrite(folder: StudyFolder, who: str, **changes: object) -> None:
    path = explained.place(folder, who) / "attributions.npz"
    explained.save(path, dataclasses.replace(explained.load(folder, who), **changes))


def test_the_overview_counts_what_is_there(tmp_path: Path) -> None:
    folder = explained_study(tmp_path / "s", missing=("tl_kd-clean-0", "tl_kd-clean-2"))
    truth = explained.load_images(folder).labels
    rewrite(folder, "tl_kd-clean-1", predicted=(truth + (np.arange(12) < 3)) % 3,
            output=np.linspace(-4, 4, 12).astype(np.float32), residual=np.full(12, -0.04, np.float32))
    seen = album.overview(folder)
    assert seen is not None
    assert (seen.images, seen.masked, seen.uncertain, seen.notes) == (12, 9, 2, ("a note on the masks",))
    assert seen.seeds == {("tl", "clean"): (0, 1, 2), ("tl_kd", "clean"): (1,)} and seen.teachers == ("lite1",)
    assert seen.wrong["tl_kd", "clean"] == pytest.approx(3 / 12)
    assert seen.residual == pytest.approx(0.04 / 8)  # over the range of the outputs
    assert seen.shown == {"clean": 1}  # the first seed that both arms have


def test_residuals_that_are_not_there_make_nothing_additive(tmp_path: Path) -> None:
    folder = explained_study(tmp_path / "s", teachers=False)
    for run in folder.finished():
        rewrite(folder, run.run_id, residual=np.full(12, np.nan, np.float32))
    seen = album.overview(folder)
    assert seen is not None and np.isnan(seen.residual)


def test_nothing_explained_is_none(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "s", classes=("cat", "dog"), per_class=2, seeds=1, epochs=2)
    assert album.overview(folder) is None and list(album.albums(folder, "tl")) == []


def test_an_album_holds_one_seed_with_the_baseline_first(tmp_path: Path) -> None:
    folder = explained_study(tmp_path / "s", missing=("tl-clean-0",))
    [one] = album.albums(folder, "tl")
    assert (one.condition, one.seed, [(row.arm, row.seed) for row in one.rows]) == ("clean", 1, [("tl", 1),
                                                                                               ("tl_kd", 1)])
    expected = explained.load(folder, "tl_kd-clean-1").values
    np.testing.assert_array_equal(one.rows[1].explained.values, expected)
    [other] = album.albums(folder, "tl_kd")
    assert [row.arm for row in other.rows] == ["tl_kd", "tl"]


def test_other_images_are_refused(tmp_path: Path) -> None:
    folder = explained_study(tmp_path / "s")
    ids = explained.load_images(folder).sample_ids
    rewrite(folder, "tl_kd-clean-0", sample_ids=np.roll(ids, 1))
    for read in (lambda: album.overview(folder), lambda: list(album.albums(folder, "tl"))):
        with pytest.raises(BadInput, match=r"tl_kd-clean-0: is for other images than explanations/images\.npz"):
            read()


def test_the_first_and_the_second_of_each_class() -> None:
    labels, kept = np.array([2, 0, 0, 2, 1, 0]), np.array([False, True, True, True, True, True])
    assert album.of_each_class(labels, kept) == [1, 4, 3]
    assert album.of_each_class(labels, kept, 1) == [2]
    assert album.of_each_class(labels, np.zeros(6, bool)) == []
