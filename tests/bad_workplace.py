"""A folder of small real files, sound and unsound, for the tests of what tlkd is given."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from conftest import draw_shape
from sealed_folders import lay_down

STUDY = """name: small
data: {source: 'folder:images', augment: [], dev_fraction: 0}
selection: test
student: {model: 'timm:test_resnet', weights: none, input_size: 32}
teachers:
  big: {model: 'timm:test_efficientnet', weights: none, input_size: 32}
arms:
  - {name: tl, kind: tl}
  - {name: kd, kind: tl_kd, teacher: big}
training: {epochs: 1}
seeds: [0]
"""


class Bomb:
    """What a hostile pickle holds: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def png_of(width: int, height: int) -> bytes:
    """A valid PNG of zeros, one bit a pixel, of any size: it is a few bytes a row packed a thousandfold."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes((width + 7) // 8 + 1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def images(root: Path, classes: tuple[str, ...] = ("disc", "frame"), train: int = 4, test: int = 2,
           side: int = 32) -> Path:
    """An image folder with a train and a test split."""
    rng = np.random.default_rng(3)
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw_shape(("disc", "frame", "stripes")[label % 3], rng, side).save(folder / f"{number}.png")
    return root


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """A tar archive, packed as its suffix says, of these members beside an image folder."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as opened:
        for info, content in members:
            info.size = len(content) if info.isfile() else 0
            opened.addfile(info, io.BytesIO(content))


def member(name: str, kind: bytes = tarfile.REGTYPE, leads: str = "") -> tarfile.TarInfo:
    """A member's header."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, leads
    return info


def negative(name: str, size: int) -> bytes:
    """A tar's header that says of a member that it is less than nothing long, as a base-256 number can."""
    header = bytearray(member(name).tobuf())
    header[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def archives(at: Path) -> None:
    """Archives that would do harm."""
    tar(at / "out.tar", (member("../out.png"), b"x"))
    tar(at / "absolute.tar", (member("/tmp/out.png"), b"x"))
    tar(at / "windows.tar", (member("C:\\out.png"), b"x"))
    tar(at / "link.tar", (member("train", tarfile.SYMTYPE, "/etc"), b""))
    tar(at / "hard.tar", (member("train/a/1.png", tarfile.LNKTYPE, "../../etc/passwd"), b""))
    tar(at / "circle.tar", (member("a", tarfile.SYMTYPE, "b"), b""), (member("b", tarfile.SYMTYPE, "a"), b""))
    tar(at / "pipe.tar", (member("train/a/1.png", tarfile.FIFOTYPE), b""))
    tar(at / "device.tar", (member("train/a/1.png", tarfile.CHRTYPE), b""))
    tar(at / "both.tar", (member("train"), b"x"), (member("train/a/1.png"), b"x"))
    tar(at / "escape.tar", (member("../\x1b[2J\nred"), b"x"))
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as opened:
        opened.add(at / "images", "images")
    (at / "cut.tar.gz").write_bytes(whole.getvalue()[:len(whole.getvalue()) // 2])
    bomb = member("train/a/1.png")
    bomb.size = 10 * 2**30
    (at / "bomb.tar").write_bytes(bomb.tobuf())
    tar(at / "twice.tar", (member("train/a/1.png"), b"x"), (member("train/a/1.png"), b"y"))
    (at / "negative.tar").write_bytes(negative(".x", -2**62) + negative(".y", -512) + bytes(2048))
    with zipfile.ZipFile(at / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/1.png", bytes(2**20))
    content = (at / "bomb.zip").read_bytes()
    (at / "bomb.zip").write_bytes(content.replace(struct.pack("<I", 2**20), struct.pack("<I", 2**32 - 2)))
    with zipfile.ZipFile(at / "out.zip", "w") as packed:
        packed.writestr("a/..\\..\\out.png", b"x")
    with zipfile.ZipFile(at / "locked.zip", "w") as packed:
        packed.writestr("a/1.png", b"x")
    content = bytearray((at / "locked.zip").read_bytes())
    content[6] |= 1  # "encrypted", in the member's header
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (at / "locked.zip").write_bytes(content)
    (at / "text.tar").write_text("no archive")


def folders(at: Path) -> None:
    """Image folders that cannot be used."""
    (at / "empty").mkdir()
    (at / "no_images" / "a").mkdir(parents=True)
    (at / "no_images" / "b").mkdir()
    images(at / "one", ("disc",))
    images(at / "odd", ("disc", "frame"))
    (at / "odd" / "test" / "frame").rename(at / "odd" / "test" / "framed")
    for name, content in (("broken", b"\x89PNG\r\n\x1a\n cut"), ("hollow", b""), ("huge", png_of(20_000, 20_000)),
                          ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")):
        (images(at / name) / "train" / "disc" / "0.png").write_bytes(content)
    pipe = images(at / "pipe") / "train" / "disc" / "0.png"
    pipe.unlink()
    os.mkfifo(pipe)
    (images(at / "loop") / "train" / "disc" / "again").symlink_to(at / "loop" / "train")
    dangling = images(at / "dangling") / "train" / "disc" / "0.png"
    dangling.unlink()
    dangling.symlink_to("nowhere.png")
    (images(at / "control") / "train" / "disc" / "0.png").rename(at / "control" / "train" / "disc" / "\x1b[31m\n.png")


def coco(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A COCO file of one image."""
    return {"images": [{"id": 1, "file_name": "test/disc/0.png", "width": 32, "height": 32}],
            "categories": [{"id": 1, "name": "disc"}],
            "annotations": [{"id": number, "image_id": 1, "category_id": 1, **each}
                            for number, each in enumerate(annotations)], **more}


SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]


def masks(at: Path) -> None:
    """Annotation files that cannot be used."""
    files: dict[str, Any] = {
        "other.json": {"hello": 1}, "list.json": [], "none.json": coco(), "fine.json": coco({"segmentation": SQUARE}),
        "nan.json": coco({"segmentation": [[float("nan"), 1, 2, 3, 4, 5]]}),
        "far.json": coco({"segmentation": [[1e300, 1, 2, 3, 4, 5]]}),
        "outside.json": coco({"segmentation": [[100, 100, 120, 100, 120, 120]]}),
        "odd.json": coco({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}),
        "two.json": coco({"segmentation": [[1, 2, 3, 4]]}),
        "box.json": coco({"bbox": [1, 2, 3, 4]}),
        "bomb.json": coco({"segmentation": {"size": [10**6, 10**6], "counts": [10**12]}}),
        "runs.json": coco({"segmentation": {"size": [32, 32], "counts": [0, 10**12]}}),
        "negative.json": coco({"segmentation": {"size": [32, 32], "counts": [-1, 1025]}}),
        "coded.json": coco({"segmentation": {"size": [32, 32], "counts": "\u00e9\u00e9"}}),
        "nobody.json": coco({"segmentation": SQUARE, "image_id": 7}),
        "category.json": coco({"segmentation": SQUARE, "category_id": 7}),
        "twice.json": {**coco(), "images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]},
        "strangers.json": {**coco({"segmentation": SQUARE}), "images": [{"id": 1, "file_name": "x/y.png"}]},
        "via.json": {"a": {"filename": "0.png", "regions": [{"shape_attributes": {"name": "point", "cx": 1}}]}},
        "labelme.json": {"imagePath": "0.png", "shapes": [{"points": [[1, 2]], "shape_type": "line"}]},
        "control.json": {**coco(), "images": [{"id": 1, "file_name": "\u001b[31m"}]}}
    for name, content in files.items():
        (at / name).write_text(json.dumps(content))
    (at / "deep.json").write_text("[" * 100_000)
    (at / "cut.json").write_text('{"images": [')
    for name, content in (("painted_huge", png_of(20_000, 20_000)), ("painted_cut", b"\x89PNG\r\n\x1a\n")):
        (at / name / "test" / "disc").mkdir(parents=True)
        (at / name / "test" / "disc" / "0.png").write_bytes(content)
    (at / "painted_small" / "test" / "disc").mkdir(parents=True)
    Image.new("L", (7, 19), 255).save(at / "painted_small" / "test" / "disc" / "0.png")
    os.mkfifo(at / "pipe.json")


def weights(at: Path) -> None:
    """Files of weights that cannot be used, pickles among them that would make the folder `pwned`."""
    content = pickle.dumps({"w": Bomb(at / "pwned")})
    for name in ("hostile.pth", "hostile.pt", "hostile.bin", "hostile.safetensors", "hostile.npz", "hostile.onnx"):
        (at / name).write_bytes(content)
    with zipfile.ZipFile(at / "zipped.pth", "w") as packed:  # as torch.save packs it today
        packed.writestr("archive/data.pkl", content)
        packed.writestr("archive/version", "3\n")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                         "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}).encode()
    (at / "overlap.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    (at / "long.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    (at / "cut.safetensors").write_bytes(struct.pack("<Q", 100) + b"{")
    save_file({"head.weight": np.ones((3, 4), np.float32)}, at / "strange.safetensors")


def lay_out(at: Path) -> None:
    """Everything, in one folder."""
    (at / "small.yaml").write_text(STUDY)
    images(at / "images")
    archives(at)
    folders(at)
    masks(at)
    weights(at)
    lay_down(at / "whole")
    lay_down(at / "other")
    (at / "notes.txt").write_text("no study")
    (at / "taken").mkdir()
    (at / "taken" / "thing").write_text("mine")
    (at / "table.csv").write_text("a,b\n1,2\n")
    specs = {"empty.yaml": b"", "list.yaml": b"- a\n", "bytes.yaml": b"\xff\xfe\x00", "open.yaml": b"name: [\n",
             "twice.yaml": b"name: a\nname: b\n", "python.yaml": b"name: !!python/object/apply:os.system [ls]\n",
             "itself.yaml": b"name: &a [*a]\n", "deep.yaml": b"name: " + b"[" * 1000, "bits.yaml": b"name: 0x" +
             b"f" * 300 + b"\n", "sixty.yaml": b"name: 1" + b":59" * 200 + b"\n", "half.yaml": b'name: "\\ud800"\n',
             "escape.yaml": STUDY.encode() + b'"\\e[31mred": 1\n',
             "laughs.yaml": b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
                 f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n".encode()
                 for old, new in zip("abcdefgh", "bcdefghi", strict=True)),
             "large.yaml": b"#" * (2 * 2**20 + 1)}
    for name, content in specs.items():
        (at / name).write_bytes(content)
