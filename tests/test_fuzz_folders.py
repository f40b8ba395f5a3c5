"""Whatever stands in the files of a study's folder or of a search, it is read, refused in one line, or found by verify.

Each example is a finished study of which one file was damaged or edited; `test_fuzz.py` says how many are tried.
"""

import functools
import io
import json
import shutil
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from explained_folders import write_explanations
from sealed_folders import lay_down, reseal
from study_folders import lay_down as lay_down_planted
from test_fuzz import MEMORY, fuzz, in_one_line, odd
from tlkd import banks, checks, explained, findings, outlook, seals, standing, store, summary
from tlkd.errors import BadInput
from tlkd.folder import StudyFolder, load_predictions
from tlkd.reading import dump_yaml, read_yaml
from tlkd.study import collect

RUN = "kd-clean-0"
JSON = ["data.json", "stages.json", f"runs/{RUN}/manifest.json", f"runs/{RUN}/result.json", f"runs/{RUN}/spec.json",
        "teachers/big/result.json"]
TABLES = ["results.csv", f"runs/{RUN}/history.csv", "teachers/big/history.csv"]
OTHERS = ["study.yaml", f"runs/{RUN}/predictions.npz", "teachers/big/predictions.npz",
          f"runs/{RUN}/model.safetensors"]
EXPLAINED = ["explanations/current.json", "explanations/masks.json", "explanations/images.npz",
             "explanations/tl-clean-0/manifest.json", "explanations/tl-clean-0/regions.csv",
             "explanations/tl-clean-0/attributions.npz"]


@functools.cache
def whole() -> Path:
    """A finished and sealed study, which nobody changes."""
    path = lay_down(Path(tempfile.mkdtemp(prefix="tlkd-fuzz-")) / "out").path
    seals.seal(path, seals.STUDY)
    return path


@functools.cache
def explained_whole() -> Path:
    """The same with explanations."""
    path = lay_down_planted(Path(tempfile.mkdtemp(prefix="tlkd-fuzz-")) / "out", seeds=1, per_class=2, epochs=3,
                            explanation={}, classes=("a", "b", "c")).path
    folder = write_explanations(path, images=4, masked=3, pictures=1)
    collect(folder)
    seals.seal(path, seals.STUDY)
    return path


def read(path: Path, kind: str) -> list[str]:
    """All that reads a study's folder; the problems that `tlkd verify` finds, or the line with which it refuses."""
    with in_one_line(f"{kind}, for status"):
        found = standing.standings(StudyFolder(path))
        standing.text(found, everything=True)
        json.dumps(standing.record(found))
    with in_one_line(f"{kind}, for watch"):
        outlook.Watcher(path).look()
    with in_one_line(f"{kind}, for report"):
        checks.refuse_damaged(StudyFolder(path))
    with in_one_line(f"{kind}, for report"):  # as if nobody had looked at the checksums
        summary.summarise(findings.find(StudyFolder(path)))
    problems = ["refused"]
    with in_one_line(f"{kind}, for verify"):
        problems = checks.verify(path)[1]
        assert all(line and "\n" not in line for line in problems)
        checks.covered(path)
    return problems


def tried(root: Path, name: str, content: bytes, kind: str, fitting: bool) -> None:
    """Read a copy of a study in which one file has this content; with `fitting`, checksums are made to fit it."""
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / "out"
        shutil.copytree(root, path)
        before = (path / name).read_bytes()
        (path / name).write_bytes(content)
        if fitting:
            seals.seal(path, seals.STUDY)
            if (path / name).parent != path and (path / name).name != store.MANIFEST:
                manifest = (path / name).parent / store.MANIFEST
                if manifest.is_file():
                    reseal(manifest.parent)
        problems = read(path, kind)
        assert fitting or before == content or problems, f"{name}: nobody has seen that it was changed"


@pytest.mark.slow
@fuzz
@given(st.sampled_from([*JSON, *TABLES, *OTHERS]), st.floats(0, 1), st.binary(max_size=30), st.booleans(),
       st.booleans())
@example("results.csv", 0.0, b"", True, True)
@example("study.yaml", 0.0, b"\xff\xfe\0", False, True)
@example(f"runs/{RUN}/manifest.json", 0.0, b"{}", True, False)
@example("data.json", 0.0, b"[" * 30, True, True)
def test_any_damage_to_a_studys_file_is_found_or_refused(name: str, where: float, other: bytes, cut: bool,
                                                         fitting: bool) -> None:
    before = (whole() / name).read_bytes()
    at = int(where * len(before))
    tried(whole(), name, before[:at] + other + (b"" if cut else before[at + len(other):]), "damaged studies", fitting)


def put(tree: Any, steps: list[int], value: Any) -> Any:
    """The tree with this value at a place that the steps lead to, each the number of a key or an entry."""
    if not steps or not isinstance(tree, dict | list) or not tree:
        return value
    key = list(tree)[steps[0] % len(tree)] if isinstance(tree, dict) else steps[0] % len(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[key] = put(tree[key], steps[1:], value)
    return copy


places = st.lists(st.integers(0, 20), max_size=4)


@pytest.mark.slow
@fuzz
@given(st.sampled_from(JSON), places, odd)
@example(f"runs/{RUN}/result.json", [0], 2**70)
@example("stages.json", [0], {"stage": 3, "from_cache": [], "seconds": "x", "bytes": {}})
@example("data.json", [1], {"a": 1})
@example("data.json", [3], {"test": 3})
@example(f"runs/{RUN}/manifest.json", [3], {"../../../outside": {"bytes": 1, "sha256": "0" * 64}})
def test_any_value_in_a_studys_json_is_found_or_refused(name: str, steps: list[int], value: Any) -> None:
    tree = json.loads((whole() / name).read_text())
    tried(whole(), name, json.dumps(put(tree, steps, value)).encode(), "edited JSON of studies", True)


@pytest.mark.slow
@fuzz
@given(places, odd)
@example([1, 0], "torchvision:MNIST")
@example([8], [])
def test_any_value_in_a_study_that_was_run_is_found_or_refused(steps: list[int], value: Any) -> None:
    tree = read_yaml(whole() / "study.yaml")
    tried(whole(), "study.yaml", dump_yaml(put(tree, steps, value)).encode("utf-8", "replace"), "edited studies", True)


@pytest.mark.slow
@fuzz
@given(st.text(max_size=200), st.booleans())
@example("0" * 64 + "  ../../../../etc/passwd\n", True)
@example("0" * 64 + "  results.csv/..\n" + "1  \0\n", True)
def test_any_text_for_checksums_is_found_or_refused(text: str, more: bool) -> None:
    before = (whole() / seals.NAME).read_text() if more else ""
    content = (before + text).encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / "out"
        shutil.copytree(whole(), path)
        (path / seals.NAME).write_bytes(content)
        read(path, "checksums")
        with in_one_line("checksums"):
            seals.mend(path)
        assert (path / "study.yaml").is_file()


cells = st.one_of(st.sampled_from(["", "nan", "inf", "-inf", "1e400", "-1", "x", "9" * 400, "\0", "\u202e", "1,2", '"',
                                   "\n", "=1+1", "True"]), st.text(max_size=8), st.floats().map(str))


@pytest.mark.slow
@fuzz
@given(st.sampled_from(TABLES), st.integers(0, 5), st.integers(0, 12), cells)
@example("results.csv", 0, 0, "run_id,run_id")
@example("results.csv", 1, 3, "9" * 400)
@example(f"runs/{RUN}/history.csv", 0, 1, "epoch")
def test_any_cell_in_a_studys_tables_is_found_or_refused(name: str, row: int, column: int, cell: str) -> None:
    rows = [line.split(",") for line in (whole() / name).read_text().splitlines()]
    rows[row % len(rows)][column % len(rows[0])] = cell
    text = "\n".join(",".join(each) for each in rows) + "\n"
    tried(whole(), name, text.encode("utf-8", "surrogatepass"), "edited tables of studies", True)


arrays = st.sampled_from([np.zeros(0), np.zeros((0, 3)), np.zeros((2, 0)), np.array(3.0), np.array(["a", "b"]),
                          np.full((12, 3), np.nan), np.array([[1j, 2]]), np.zeros((2, 2), "M8[s]"),
                          np.zeros(3, [("a", "f4")]), np.zeros((1, 1, 1, 1, 1)), np.arange(30),
                          np.full((30, 3), np.inf), np.array([b"x"]), np.full(30, -7), np.full((30, 3), 1e308),
                          np.zeros((30, 3), bool)])


@pytest.mark.slow
@fuzz
@given(st.sampled_from([f"runs/{RUN}/predictions.npz", "teachers/big/predictions.npz"]),
       st.sampled_from(["sample_ids", "labels", "logits"]), arrays)
def test_any_array_in_predictions_is_found_or_refused(name: str, which: str, array: Any) -> None:
    with np.load(whole() / name) as opened:
        kept = dict(opened)
    packed = io.BytesIO()
    np.savez(packed, **{**kept, which: array})
    tried(whole(), name, packed.getvalue(), "edited predictions", True)


@pytest.mark.slow
@fuzz
@given(st.sampled_from(EXPLAINED), places, odd, st.sampled_from(["values", "predicted", "output", "residual", "labels",
                                                                 "images", "masks", "masked", "sample_ids"]),
       arrays, cells)
def test_any_value_in_explanations_is_found_or_refused(name: str, steps: list[int], value: Any, which: str, array: Any,
                                                       cell: str) -> None:
    before = explained_whole() / name
    if name.endswith(".json"):
        content = json.dumps(put(json.loads(before.read_text()), steps, value)).encode()
    elif name.endswith(".csv"):
        lines = before.read_text().splitlines()
        row, column = (*steps, 1, 1)[:2]
        parts = lines[row % len(lines)].split(",")
        parts[column % len(parts)] = cell
        lines[row % len(lines)] = ",".join(parts)
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        with np.load(before) as opened:
            kept = dict(opened)
        packed = io.BytesIO()
        np.savez(packed, **{**kept, which: array})
        content = packed.getvalue()
    tried(explained_whole(), name, content, "edited explanations", True)


@pytest.mark.parametrize("name", ["study.yaml", *JSON, *TABLES, f"runs/{RUN}/predictions.npz", f"runs/{RUN}", "runs",
                                  "teachers/big", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["gone", "folder", "loop", "nowhere"])
def test_what_is_gone_or_no_file_is_found_or_refused(name: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    shutil.copytree(whole(), path)
    place = path / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if how == "folder":
        place.mkdir()
    elif how in ("loop", "nowhere"):
        place.symlink_to(place if how == "loop" else path / "nowhere")
    problems = read(path, "files that are none")
    assert problems or name == "SHA256SUMS"


# --- a search's journal -----------------------------------------------------------------------------------------------


@functools.cache
def journalled() -> tuple[Any, bytes]:
    """A search, and its journal after two trials of each arm, one of them unfinished."""
    from test_pickles import STUDY
    from tlkd.proposals import ArmSearch, demand, journal
    from tlkd.reading import validate
    from tlkd.spaces import search_of

    demand()
    search = search_of(validate(STUDY, "small.yaml"))
    with tempfile.TemporaryDirectory() as at:
        storage = journal(Path(at) / "journal.log")
        for arm in search.arms:
            each = ArmSearch(storage, search, arm)
            for number in range(2):
                attempt = each.ask(False)
                if number == 0:
                    attempt.results[0] = {"dev_accuracy": 0.5, "dev_log_loss": 1.0, "seconds": 1.0, "address": "a" * 20}
                    each.tell(attempt)
        return search, (Path(at) / "journal.log").read_bytes()


def reopened(content: bytes) -> None:
    """Read a journal as `tlkd tune` does when it goes on."""
    from tlkd.proposals import ArmSearch, journal, understood

    search = journalled()[0]
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / "journal.log"
        path.write_bytes(content)
        with in_one_line("journals"):
            with understood(path):
                storage = journal(path)
                searches = [ArmSearch(storage, search, arm) for arm in search.arms]
            for each in searches:
                for attempt in each.unfinished():
                    attempt.job(0)
                for trial in each.complete():
                    assert isinstance(trial.score, float)


@pytest.mark.slow
@fuzz
@given(st.integers(0, 60), places, odd)
@example(0, [], [])
@example(3, [0], 99)
def test_any_entry_of_a_journal_is_taken_or_refused(line: int, steps: list[int], value: Any) -> None:
    pytest.importorskip("optuna")
    lines = journalled()[1].splitlines()
    lines[line % len(lines)] = json.dumps(put(json.loads(lines[line % len(lines)]), steps, value)).encode()
    reopened(b"\n".join(lines) + b"\n")


@pytest.mark.slow
@fuzz
@given(st.floats(0, 1), st.binary(max_size=30), st.booleans())
def test_any_damage_to_a_journal_is_taken_or_refused(where: float, other: bytes, cut: bool) -> None:
    pytest.importorskip("optuna")
    before = journalled()[1]
    at = int(where * len(before))
    reopened(before[:at] + other + (b"" if cut else before[at + len(other):]))


# --- headers that lie -------------------------------------------------------------------------------------------------


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """The beginning of an .npy file that says it has this shape."""
    packed = io.BytesIO()
    np.lib.format.write_array_header_1_0(packed, {"descr": kind, "fortran_order": False, "shape": shape})
    return packed.getvalue()


@pytest.mark.parametrize("shape", [(10**12, 10), (10**9,), (2**62, 4), (2**31, 2**31), (2**63 - 1,), (10**12, 0)])
@pytest.mark.parametrize("name", ["predictions", "attributions", "images"])
def test_an_array_that_claims_to_be_huge_fills_no_memory(shape: tuple[int, ...], name: str, tmp_path: Path) -> None:
    root = whole() if name == "predictions" else explained_whole()
    path = tmp_path / "out"
    shutil.copytree(root, path)
    folder = StudyFolder(path)
    file, which, load = {
        "predictions": (f"runs/{RUN}/predictions.npz", "logits", load_predictions),
        "attributions": ("explanations/tl-clean-0/attributions.npz", "values",
                         lambda _: explained.load(folder, "tl-clean-0")),
        "images": ("explanations/images.npz", "images", lambda _: explained.load_images(folder))}[name]
    with zipfile.ZipFile(path / file) as opened:
        kept = {each: opened.read(each) for each in opened.namelist()}
    with zipfile.ZipFile(path / file, "w") as packed:
        for each, content in kept.items():
            packed.writestr(each, header(shape) + bytes(16) if each == f"{which}.npy" else content)
    if (path / file).parent.joinpath(store.MANIFEST).is_file():
        reseal((path / file).parent)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="cannot be read") if 0 not in shape else in_one_line("headers"):
            load(path / file)
        read(path, "headers")
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [header((10**12, 3, 4)) + bytes(16), header((2**62, 8, 8)) + bytes(16),
                                     header((1, 3, 4)), b"\x93NUMPY\x01\0" + struct.pack("<H", 65535), b""])
def test_a_bank_whose_header_lies_is_not_read(content: bytes, tmp_path: Path) -> None:
    def fill(target: Path) -> dict[str, Any]:
        (target / "train.npy").write_bytes(content)
        return {}

    store.get(tmp_path, "features", banks.VERSION, {}, {}, fill)
    bank = banks.cached(tmp_path, "features", {}, {})
    assert bank is not None
    tracemalloc.start()
    with pytest.raises(BadInput, match=r"train\.npy: cannot be read"):
        assert bank.arrays
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


PROPERTIES: tuple[Callable[[], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("test_") and hasattr(value, "hypothesis"))
