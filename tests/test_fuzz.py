"""Whatever stands in a file that tlkd is given, it is read, or refused in one line; nothing is run, nothing escapes.

`TLKD_FUZZ=N` tries N examples of each, at random; without it a few, always the same. `TRIED` counts them.
"""

# ruff: noqa: E501  # the shapes of files are easier to see in long lines

import gzip
import io
import json
import os
import re
import struct
import tarfile
import tempfile
import time
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import tlkd
from bad_workplace import STUDY, Bomb, coco, member, negative, png_of, tar
from tlkd import annotations, archives, images, masks, rasters, reading, sources, weights
from tlkd.errors import LONGEST, BadInput, one_line
from tlkd.folder import load_predictions

TRIED: Counter[str] = Counter()
MANY = int(os.environ.get("TLKD_FUZZ", "0"))
fuzz = settings(deadline=None, max_examples=MANY or 40, derandomize=not MANY, database=None,
                suppress_health_check=list(HealthCheck))
PATIENCE = 20.0  # seconds that one reading may take on a busy machine
MEMORY = 2**29  # bytes that Python may hold for one of these small files


@contextmanager
def in_one_line(kind: str) -> Iterator[None]:
    """What is read here may be refused, in one line of bounded length that a terminal only shows."""
    TRIED[kind] += 1
    began = time.monotonic()
    try:
        yield
    except (BadInput, images.BadImage, annotations.BadAnnotation) as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert one_line(line) in (line, one_line(str(BadInput(line))))
        if isinstance(error, BadInput):
            assert line.isprintable()
            assert len(line) <= LONGEST + 10
    assert time.monotonic() - began < PATIENCE


# --- studies ----------------------------------------------------------------------------------------------------------

ODD: list[Any] = [None, True, -1, 0, 2**70, 1e308, float("inf"), float("nan"), "", "~", "\x1b[31m", "\u202e", "😀",
                  "x" * 5000, "../../etc", [], {}, [[]], {"a": {}}]
odd = st.recursive(
    st.one_of(st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=20)), lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)), max_leaves=10)
KEYS = ["name", "data", "data.source", "data.masks", "data.root", "data.normalise", "student", "student.model",
        "student.input_size", "teachers", "teachers.big", "teachers.big.training", "arms", "arms.kd", "arms.0",
        "arms.kd.soft_weight", "conditions", "grid", "exclude", "training", "training.epochs",
        "training.early_stopping", "training.learning_rate", "selection", "seeds", "bank", "robustness", "explanation", "explanation.background",
        "verdict", "footnotes", "provenance", "nonsense", "a.b.c.d", "", ".", "arms."]


@fuzz
@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbf" + STUDY.encode())
@example(STUDY.encode("utf-16"))
@example(STUDY.encode() + b"seeds: [0x" + b"f" * 20_000 + b"]\n")
@example(b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n".encode()
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)))
@example(b"a: &a {x: 1}\n" + b"".join(f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 10)}]}}\n".encode()
                                      for old, new in zip("abcde", "bcdef", strict=True)))
@example(b"name: " + b"[" * 3000)
@example(b"x: " + b"{a: " * 150 + b"1" + b"}" * 150)
@example(b"? " * 500)
@example(b"!!python/object/apply:os.mkdir [pwned]")
@example(b"!!python/object/new:os.system [ls]")
@example(b"name: !!python/name:os.system")
@example(b"#" * (reading.LARGEST_FILE + 1))
def test_any_bytes_are_a_study_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_bytes(content)
        with in_one_line("studies, as bytes"):
            reading.read_study(str(path))
    assert not Path("pwned").exists()


@fuzz
@given(st.lists(st.tuples(st.sampled_from(KEYS), odd), min_size=1, max_size=4))
def test_any_values_at_any_keys_are_a_study_or_refused(changes: list[tuple[str, Any]]) -> None:
    raw = reading.parse_yaml(STUDY, "small.yaml")
    with in_one_line("studies, as trees"):
        for key, value in changes:
            reading.put(raw, key, value, f"--set {key}")
        reading.validate(raw, "small.yaml")


@fuzz
@given(st.text(max_size=60))
@example("training.epochs=[" + "[" * 2000)
@example("=" * 50)
@example("name=&a [*a]")
@example("seeds=[" + "1:" * 3000 + "1]")
def test_any_text_after_set_is_taken_or_refused(text: str) -> None:
    raw = reading.parse_yaml(STUDY, "small.yaml")
    with in_one_line("--set"):
        reading.apply_set(raw, text)
        reading.validate(raw, "small.yaml")


# --- annotations ------------------------------------------------------------------------------------------------------

numbers = st.one_of(st.integers(-5, 40), st.floats(-5, 40), st.sampled_from(
    [1e300, -1e300, 2**70, float("nan"), float("inf"), 10**9, -1]))
rings = st.lists(numbers, max_size=14)
runs = st.fixed_dictionaries({"size": st.lists(st.sampled_from([0, -1, 1, 7, 32, 10**6, 2**40, 1.5]), max_size=3),
                              "counts": st.one_of(st.lists(st.sampled_from([0, 1, 5, 512, 1024, 10**12, -1]), max_size=6), st.text(max_size=30))})
ids = st.one_of(st.sampled_from([1, 2, "1", -1, 1.0, 1.5, None, "\n", 10**400]), st.integers(), st.text(max_size=5))
coco_files = st.fixed_dictionaries({
    "images": st.lists(st.fixed_dictionaries({"id": ids, "file_name": st.one_of(st.just("0.png"), odd)}, optional={"width": numbers, "height": numbers}), max_size=3),
    "annotations": st.lists(st.fixed_dictionaries({"id": ids, "image_id": ids}, optional={
        "segmentation": st.one_of(st.lists(rings, max_size=3), rings, runs, odd), "category_id": ids,
        "attributes": odd}), max_size=4)}, optional={"categories": st.lists(st.fixed_dictionaries(
            {"id": ids, "name": st.one_of(st.text(max_size=9), odd)}), max_size=3)})
shapes = st.fixed_dictionaries({"name": st.sampled_from(["polygon", "rect", "circle", "ellipse", "point", 3])}, optional={name: st.one_of(numbers, rings, odd) for name in (
                                   "all_points_x", "all_points_y", "x", "y", "width", "height", "cx", "cy", "r", "rx",
                                   "ry", "theta")})
via_files = st.dictionaries(st.text(max_size=9), st.fixed_dictionaries({
    "filename": st.one_of(st.just("0.png"), odd), "regions": st.one_of(odd, st.lists(st.fixed_dictionaries(
        {"shape_attributes": shapes, "region_attributes": odd}), max_size=3))}), min_size=1, max_size=2)
labelme_files = st.fixed_dictionaries({
    "imagePath": st.one_of(st.just("0.png"), odd), "shapes": st.lists(st.fixed_dictionaries({
        "points": st.one_of(st.lists(rings, max_size=5), odd), "shape_type": st.sampled_from(
        ["polygon", "circle", "rectangle", "line", None])}, optional={"label": odd, "flags": odd}), max_size=3)},
    optional={"imageWidth": numbers, "imageHeight": numbers})


def drawn(content: bytes) -> None:
    """Read annotations, and fill what they say."""
    for entry in annotations.parse(content):
        if entry.size is None or entry.size[0] * entry.size[1] <= 2**22:
            masks.united(entry, entry.regions, images.Upright(32, 32, None), masks.Notes())


@fuzz
@given(st.one_of(coco_files, via_files, labelme_files, odd))
@example(coco({"segmentation": {"size": [2**20, 2**20], "counts": [2**40]}}))
@example(coco({"segmentation": {"size": [10**4, 10**4], "counts": [10**8]}}))
@example(coco({"segmentation": [[1e9, -1e9, -1e9, 1e9, 1e9, 1e9]]}))
@example({**coco(), "images": [{"id": "x" * 10**6, "file_name": "a", "width": "b"}]})
def test_any_annotations_are_taken_or_refused(value: Any) -> None:
    with in_one_line("annotations, as trees"):
        drawn(json.dumps(value).encode())


@fuzz
@given(st.binary(max_size=200))
@example(b"[" * 10**6)
@example(b'{"a":' * 10**5)
@example(b'{"images": [' + b"9" * 10**5 + b"]}")
@example(b'{"images": NaN}')
@example(b"\xff\xfe{}")
@example(b'{"images": [], "images": 3}')
def test_any_bytes_are_annotations_or_refused(content: bytes) -> None:
    with in_one_line("annotations, as bytes"):
        drawn(content)


def test_a_polygon_of_a_million_points_is_filled_in_bounded_memory() -> None:
    angle = np.linspace(0, 20 * np.pi, 10**6)
    spiral = np.stack([500 + 400 * np.cos(angle), 1000 + 990 * np.sin(angle)], axis=1)
    edges = np.tile([[0.0, 0.0], [999.0, 2000.0]], (1_000, 1))  # each edge crosses every row: 4 million crossings
    tracemalloc.start()
    mask = np.zeros((2000, 1000), np.bool_)
    rasters.fill(mask, edges)
    assert tracemalloc.get_traced_memory()[1] < MEMORY / 4
    rasters.fill(mask, spiral)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


# --- images -----------------------------------------------------------------------------------------------------------


def a_png(mode: str = "RGB", **more: Any) -> bytes:
    packed = io.BytesIO()
    Image.new(mode, (9, 7), 3 if mode not in ("RGB", "RGBA") else None).save(packed, "PNG", **more)
    return packed.getvalue()


def text_bomb() -> bytes:
    """A PNG whose compressed text unpacks to a hundred megabytes."""
    import zlib

    packed = b"zTXt" + b"x\0\0" + zlib.compress(bytes(10**8))
    chunk = struct.pack(">I", len(packed) - 4) + packed + struct.pack(">I", zlib.crc32(packed))
    whole = a_png()
    return whole[:33] + chunk + whole[33:]


WHOLE = [a_png(mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")]


@fuzz
@given(st.sampled_from(WHOLE), st.integers(0, 120), st.binary(max_size=40), st.booleans())
@example(png_of(20_000, 20_000), 10**9, b"", False)
@example(text_bomb(), 10**9, b"", False)
@example(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(pwned) (w) file\n", 10**9, b"", False)
@example(a_png(save_all=True, append_images=[Image.new("RGB", (9, 7))] * 3), 10**9, b"", False)
def test_any_image_is_a_mask_or_refused(whole: bytes, at: int, other: bytes, cut: bool) -> None:
    content = whole[:at] + other + (b"" if cut else whole[at + len(other):])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.png"
        path.write_bytes(content)
        for kind, read in (("images", lambda: images.decode(path, 8)),
                           ("images' headers", lambda: images.upright(path)), ("masks", lambda: masks._mask_of(path, "0.png"))):
            with in_one_line(kind):
                read()


def test_nothing_but_plain_files_is_opened_and_no_other_program_is_asked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        for read in (images.decode, images.upright, images.native_sides):
            with pytest.raises(images.BadImage, match="no plain file"):
                read(path)
        with pytest.raises(annotations.BadAnnotation, match=r"no plain file|no PNG or JSON file"):
            masks.read(path) if path != tmp_path else masks.read(tmp_path)
    assert "PNG" in images._formats()
    assert not {"EPS", "WMF"} & set(images._formats())


# --- archives and folders ---------------------------------------------------------------------------------------------

pieces = st.one_of(st.sampled_from(["train", "test", "a", "b", "..", ".", "", "/", "C:", "\\", "..\\", "1.png", "\n",
                                    "\x1b[2J", "\u202e", "x" * 300, ".hidden", "__MACOSX", "A", "con", "~"]), st.text(max_size=4))
member_names = st.lists(pieces, min_size=1, max_size=5).map("/".join)
KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S"]


def unpacked(archive: Path, root: Path, kind: str) -> None:
    """Unpack, and see that all that was written are plain files and folders in the one place for them."""
    into = root / "deep" / "into"
    into.mkdir(parents=True)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with in_one_line(kind):
        archives.fingerprint(archive, "folder:x")
        for _ in archives.unpack(archive, into, "folder:x"):
            pass
        sources.folder(into, "folder:x")
    for path in root.rglob("*"):
        assert not path.is_symlink()
        assert path.is_file() or path.is_dir()
        assert into in path.parents or path in (into, into.parent) or before.get(path) == path.read_bytes()


@fuzz
@given(st.lists(st.tuples(member_names, st.sampled_from(KINDS), member_names, st.binary(max_size=20)), max_size=6),
       st.sampled_from(["x.tar", "x.tar.gz"]))
@example([("a", tarfile.SYMTYPE, "..", b""), ("a/out.png", tarfile.REGTYPE, "", b"x")], "x.tar")
@example([("a", tarfile.SYMTYPE, "b", b""), ("b", tarfile.SYMTYPE, "a", b"")], "x.tar")
@example([("a/1.png", tarfile.LNKTYPE, "../../secret", b"")], "x.tar")
@example([("a/1.png", tarfile.REGTYPE, "", b"x"), ("a/2.png", tarfile.LNKTYPE, "a/1.png", b""),
          ("b/1.png", tarfile.SYMTYPE, "../a/2.png", b"")], "x.tar.gz")
@example([("a/1.png", tarfile.SYMTYPE, "a" * 300, b"")], "x.tar")
@example([("a" * 300 + "/1.png", tarfile.LNKTYPE, "a" * 300, b"")], "x.tar")
def test_any_tar_stays_in_its_place(members: list[tuple[str, bytes, str, bytes]], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "secret").write_text("secret")
        try:
            tar(root / name, *((member(path.replace("\0", ""), kind, leads), content)
                               for path, kind, leads, content in members))
        except (ValueError, UnicodeError):  # a name that no tar can hold
            return
        unpacked(root / name, root, "tar archives")
        assert not any(path.read_bytes() == b"secret" for path in (root / "deep").rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@fuzz
@given(st.lists(st.tuples(member_names, st.binary(max_size=20)), max_size=6))
@example([("a", b"x"), ("a/1.png", b"x")])
@example([("a/1.png", b"x"), ("a/1.png", b"y"), ("A/1.png", b"z")])
def test_any_zip_stays_in_its_place(members: list[tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with zipfile.ZipFile(root / "x.zip", "w") as packed:
            for path, content in members:
                try:
                    info = zipfile.ZipInfo("a")
                    info.filename = path.encode("utf-8").decode()  # as it is, whatever it is
                    packed.writestr(info, content)
                except (UnicodeError, UserWarning, ValueError):
                    continue
        unpacked(root / "x.zip", root, "zip archives")


def archive_of(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{suffix}"
        if suffix == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
                for name in ("a/1.png", "b/1.png"):
                    packed.writestr(name, b"hello" * 50)
        else:
            with tarfile.open(path, f"w:{suffix.partition('.')[2]}") as opened:  # type: ignore[call-overload]
                for name in ("a/1.png", "b/1.png"):
                    info = member(name)
                    info.size = 250
                    opened.addfile(info, io.BytesIO(b"hello" * 50))
        return path.read_bytes()


WHOLE_ARCHIVES = {suffix: archive_of(suffix) for suffix in ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")}


@fuzz
@given(st.sampled_from(sorted(WHOLE_ARCHIVES)), st.floats(0, 1), st.binary(min_size=1, max_size=12), st.booleans())
@example("zip", 218 / len(WHOLE_ARCHIVES["zip"]), bytes.fromhex("8080003a801d0080"), False)  # seeks before the beginning
def test_any_damage_to_an_archive_is_said(suffix: str, where: float, other: bytes, cut: bool) -> None:
    whole = WHOLE_ARCHIVES[suffix]
    at = int(where * len(whole))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / f"x.{suffix}").write_bytes(whole[:at] + other + (b"" if cut else whole[at + len(other):]))
        unpacked(root / f"x.{suffix}", root, "damaged archives")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_bomb_is_stopped_by_what_comes_out(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS", 2**20)
    path = tmp_path / f"bomb.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for number in range(8):
                packed.writestr(f"a/{number}.png", bytes(2**22))
        content = path.read_bytes()
        path.write_bytes(content.replace(struct.pack("<I", 2**22), struct.pack("<I", 2**10)))  # it lies
    else:
        tar(path, *((member(f"a/{number}.png"), bytes(2**19)) for number in range(64)))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(BadInput, match=r"unpacks to more than|is damaged"):
        list(archives.unpack(path, into, "folder:x"))
    most = max(2**20, 100 * path.stat().st_size)
    assert sum(each.stat().st_size for each in into.rglob("*") if each.is_file()) <= most + archives.CHUNK


def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    header = member("PaxHeaders/x", tarfile.XHDTYPE)
    header.size = 2**32
    for name, content in (("x.tar", header.tobuf()), ("y.tar", member("a/1.png").tobuf() + header.tobuf())):
        (tmp_path / name).write_bytes(content + bytes(10240))
        with pytest.raises(BadInput, match=r"neither a folder nor an archive|a header of more than 1,048,576 bytes"):
            archives.fingerprint(tmp_path / name, "folder:x")
            list(archives.unpack(tmp_path / name, tmp_path / "into", "folder:x"))


def pax(records: dict[str, str], kind: bytes) -> bytes:
    """A tar's extended header, of the next member (`x`) or of all (`g`)."""
    return tarfile.TarInfo.create_pax_global_header(records) if kind == tarfile.XGLTYPE else (
        tarfile.TarInfo._create_pax_generic_header(records, kind, "utf-8"))  # type: ignore[attr-defined]


def sparse(blocks: int) -> bytes:
    """A member in GNU's old form for files with holes, whose map goes on for so many blocks."""
    header = bytearray(member("a/1.png", b"S").tobuf())
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = bytearray(b"00000000001\0" * 42 + b"\1" + bytes(7))
    return bytes(header) + bytes(block) * (blocks - 1) + bytes(block[:504]) + bytes(8)


def map_in_the_file(numbers: int) -> bytes:
    """A member in GNU's newer form for files with holes, whose map of so many numbers stands before its content."""
    info = member("a/1.png")
    info.size = 2 * numbers + 1024
    said = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
    return pax(said, tarfile.XHDTYPE) + info.tobuf() + f"{numbers}\n".encode().ljust(512, b"0") + b"0\n" * numbers


@pytest.mark.parametrize("content", [
    b"".join(pax({f"key{number}": "a" * 100_000}, tarfile.XGLTYPE) for number in range(40)),
    sparse(4000),
    map_in_the_file(2_000_000)], ids=["common headers", "map in headers", "map in the file"])
def test_headers_that_would_fill_the_memory_together_are_not_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    for sound in (b"", member("b/1.png").tobuf()):
        path = tmp_path / f"{len(sound)}.tar"
        path.write_bytes(sound + content + member("c/1.png").tobuf() + bytes(10240))
        with pytest.raises(BadInput, match=r"neither a folder nor an archive|a header of more than 1,048,576 bytes"):
            archives.fingerprint(path, "folder:x")
            list(archives.unpack(path, tmp_path / "into", "folder:x"))


def test_members_that_are_less_than_nothing_long_neither_lift_the_limit_nor_lead_back(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS", 2**16)
    monkeypatch.setattr(archives, "MOST_GROWTH", 1)
    big = member("a/1.png")
    big.size = 2**20
    for name, content in (("lift", negative(".x", -2**62) + big.tobuf() + bytes(2**20)),
                          ("back", member("b/1.png").tobuf() + negative("a/1.png", -512))):
        (tmp_path / name).write_bytes(gzip.compress(content + bytes(1024)))
        with pytest.raises(BadInput, match="less than nothing long"):
            list(archives.unpack(tmp_path / name, tmp_path / f"into {name}", "folder:x"))
        assert not (tmp_path / f"into {name}" / "a").exists()


def test_files_with_holes_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(sparse(1) + bytes(10240))
    with pytest.raises(BadInput, match="no plain file"):
        list(archives.unpack(tmp_path / "x.tar", tmp_path / "into", "folder:x"))


def test_many_empty_members_count_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS", 2**16)
    monkeypatch.setattr(archives, "MOST_GROWTH", 1)
    tar(tmp_path / "x.tar.gz", *((member(f"a/{number}"), b"") for number in range(100)))
    with pytest.raises(BadInput, match="unpacks to more than 65,536 bytes"):
        list(archives.unpack(tmp_path / "x.tar.gz", tmp_path / "into", "folder:x"))


@fuzz
@given(st.lists(st.tuples(st.sampled_from(["train", "test", "val", "a", "b", ".x"]),
                          st.sampled_from(["a", "b", "\x1b[1m", "<b>", "\u2028"]), st.sampled_from(["1.png", "pipe", "link", "loop", "\x85", "gone"])), max_size=8))
def test_any_folder_is_a_data_set_or_refused(entries: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part, label, name in entries:
            at = root / part / label
            at.mkdir(parents=True, exist_ok=True)
            if (at / name).exists() or (at / name).is_symlink():
                continue
            if name == "pipe":
                os.mkfifo(at / name)
            elif name in ("link", "gone"):
                (at / name).symlink_to(root if name == "link" else root / "nowhere")
            elif name == "loop":
                (at / name).symlink_to(at)
            else:
                (at / name).write_bytes(WHOLE[0])
        with in_one_line("image folders"):
            found = sources.folder(root, "folder:x")
            for index in range(len(found.ids)):
                source = found.fetch(index)
                assert isinstance(source, Path)
                with in_one_line("images in folders"):
                    images.decode(source, 8)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    monkeypatch.setattr(images, "LARGE", 100)
    inside, most = [0], [0]

    def slow(image: Image.Image) -> Image.Image:
        inside[0] += image.width > 10
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= image.width > 10
        return image.convert("RGB")

    monkeypatch.setattr(images, "_rgb", slow)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(images.decode, [tmp_path / "large.png", tmp_path / "small.png"] * 4))) == 8
    assert most == [1]


# --- weights and arrays -----------------------------------------------------------------------------------------------


@fuzz
@given(st.binary(max_size=80), st.sampled_from([".safetensors", ".pth", ".pt", ".bin"]))
@example(struct.pack("<Q", 2**63) + b"{}", ".safetensors")
@example(struct.pack("<Q", 10) + b"[[[[[[[[[[", ".safetensors")
@example(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", ".pth")
def test_any_bytes_are_weights_or_refused(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights{suffix}"
        path.write_bytes(content)
        with in_one_line("weights"):
            weights.read_state(path)


def repacked(path: Path) -> None:
    """The same archive with its records packed."""
    with zipfile.ZipFile(path) as opened:
        held = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in held.items():
            packed.writestr(name, content)


@pytest.mark.parametrize(("content", "said"), [
    ({1: torch.zeros(2)}, "it holds no state dict (names and tensors, nothing else)"),
    ({("a", "b"): torch.zeros(2)}, "it holds no state dict"),
    ({"a": torch.zeros(1).expand(2**40)}, "it holds no state dict"),
    ({"a": torch.zeros(2).to_sparse()}, "it holds no state dict"),
    ({"a": torch.empty(2, device="meta")}, "it holds no state dict"),
    ({"a": torch.zeros(2**16)}, "its records are packed, as PyTorch does not write them"),
], ids=["numbers", "tuples", "one number as many", "sparse", "nothing", "packed"])
def test_state_dicts_of_another_kind_are_refused(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    if "packed" in said:
        assert weights.read_state(path)
        repacked(path)
    with pytest.raises(BadInput, match=re.escape(said)):
        weights.read_state(path)


headers = st.dictionaries(st.text(max_size=4), st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "X9", ""]), "shape": st.lists(
        st.sampled_from([0, 1, 2, -1, 2**40, 2**63]), max_size=3), "data_offsets": st.lists(
        st.sampled_from([0, 4, 8, 12, 2**40, -1]), max_size=3)}), max_size=3)


@fuzz
@given(headers, st.integers(0, 16))
def test_any_header_is_weights_or_refused(header: dict[str, Any], length: int) -> None:
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(length))
        with in_one_line("safetensors' headers"):
            weights.read_state(path)


def npz(**arrays: Any) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def swollen(shape: tuple[int, ...]) -> bytes:
    """Predictions whose logits are said to have this shape, and have four numbers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("sample_ids.npy", io.BytesIO(npy(np.array(["a"]))).getvalue())
        file.writestr("labels.npy", npy(np.array([0])))
        file.writestr("logits.npy", header.getvalue() + bytes(16))
    return packed.getvalue()


def npy(array: Any) -> bytes:
    packed = io.BytesIO()
    np.save(packed, array)
    return packed.getvalue()


@fuzz
@given(st.binary(max_size=200))
@example(npz(sample_ids=np.array([Bomb(Path("pwned"))], object), labels=[0], logits=[[1.0]]))
@example(npy(np.array([Bomb(Path("pwned"))], object)))
@example(swollen((2**40, 2**20)))
@example(swollen((2**33, 10)))
@example(swollen((-1, 4)))
def test_any_bytes_are_predictions_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.npz"
        path.write_bytes(content)
        with in_one_line("predictions"):
            load_predictions(path)
    assert not Path("pwned").exists()


SOURCES = sorted(Path(tlkd.__file__).parent.rglob("*.py"))
# Pickles are passed between tlkd's own processes, through pipes and Ray's store, and read from nowhere else.
OWN_PIPES = {"workers.py", "engine.py", "ray_engine.py", "carried.py"}


@pytest.mark.parametrize(("pattern", "allowed"), [
    (r"(?:torch\.load|load_state_dict_from_url|get_state_dict)\((?!.*weights_only=True)", set()),
    (r"np\.load\((?!.*(?:allow_pickle=False|mmap_mode))", set()), (r"allow_pickle=True", set()),
    (r"(?:pickle|cloudpickle|dill|joblib|marshal|shelve)\.(?:load|loads|Unpickler)\b", OWN_PIPES),
    (r"yaml\.(?:load\((?!.*_Loader)|unsafe_load|full_load|UnsafeLoader|FullLoader|Loader\b)", set()),
    (r"\b(?:eval|exec)\(|os\.system|shell=True|read_pickle", set()),
    (r"extractall\(|\.extract\(", set()),
])
def test_no_source_reads_what_could_run(pattern: str, allowed: set[str]) -> None:
    found = {path.name for path in SOURCES for line in path.read_text().splitlines()
             if re.search(pattern, line) and not re.search(r"\.eval\(\)", line)}
    assert found <= allowed


PROPERTIES: tuple[Callable[[], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("test_") and hasattr(value, "hypothesis"))
