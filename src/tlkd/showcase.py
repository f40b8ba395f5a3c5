"""Images that a person names: those that are explained, and those that they are held against."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from tlkd import archives, datasets, progress, seeding, standalone, store
from tlkd.errors import BadInput, expanded, nearest
from tlkd.images import BadImage, decode, fit_image
from tlkd.specs import Data
from tlkd.subjects import Subject, Wanted, kind
from tlkd.views import IDENTITY, render

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
LONGEST = 80  # characters of a picture's name

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def gather(given: Iterable[Path], out: Path | None = None, option: str = "--images") -> list[Path]:
    """The image files that were named, and those below folders that were named; each once.

    Hidden files are passed over, and so is the folder `out`, which holds pictures of our own.
    """
    try:
        return standalone.gather(given, out)
    except standalone.Refused as error:
        raise BadInput(f"{option}: {error}") from None


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each image that can be a file's: its stem, with as many folders before it as tell it from others."""
    parts = [[*(part for part in path.absolute().parts[1:-1] if part != ".."), path.stem] for path in paths]
    names = [_safe(each[-1]) for each in parts]
    for depth in (2, 3, 4):
        counts = Counter(name.casefold() for name in names)
        names = [_safe("-".join(each[-depth:])) if counts[name.casefold()] > 1 else name
                 for each, name in zip(parts, names, strict=True)]
    taken: set[str] = set()
    for number, name in enumerate(names):
        again = 1
        while names[number].casefold() in taken:
            again += 1
            names[number] = f"{name}-{again}"
        taken.add(names[number].casefold())
    return names


def _safe(text: str) -> str:
    """Text as a file's name: letters, digits and _ . - of any script."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-")[-LONGEST:] or "image"


def laid(source: Path | Image.Image, subject: Subject, name: str) -> Pixels:
    """An image as a study stores it: decoded, laid onto a square `[side, side, 3]`."""
    try:
        with warnings.catch_warnings():  # a large photo is no cause for alarm, and a bomb is refused
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            decoded = decode(source, subject.side)
    except BadImage as bad:
        raise BadInput(f"{name}: {bad}; mend it, or leave it out") from None
    return np.asarray(fit_image(decoded.image, subject.side, subject.fit))


def inputs(subject: Subject, squares: Pixels, device: torch.device) -> Tensor:
    """Squares `[image, side, side, 3]` as the network takes them."""
    whole = np.zeros(len(squares), np.int64)
    return render(torch.from_numpy(squares).to(device), whole.astype(np.uint64), (IDENTITY,), whole,
                  subject.network.input_size, 0, subject.mean, subject.sd)


# --- the background ---------------------------------------------------------------------------------------------------


def background(text: str | None, size: int, seed: int | None, wanted: Wanted, subject: Subject,
               explained: Sequence[Path]) -> tuple[Pixels, str]:
    """The reference images `[reference, side, side, 3]`, and what they are in words.

    `text` is what the person asks for; None leaves it to the network: a run's training split, otherwise black. At most
    `size` images are drawn, by `seed`.
    """
    asked, text = text, text or ("train" if wanted.study is not None else "black")
    if text == "black":
        chosen = "" if asked else "; a choice like any other: --background names images instead"
        return np.zeros((1, subject.side, subject.side, 3), np.uint8), f"background: one black image{chosen}"
    if text == "train":
        return _of_training(size, seed, wanted, subject)
    listed, fetch = _listed(text, explained)
    rows = _draw(listed, size, seed or 0)
    squares = [laid(fetch(int(row)), subject, listed[row]) for row in rows]
    return np.stack(squares), f"background: {len(rows):,} of {len(listed):,} images of {text}"


def _draw(ids: list[str], size: int, seed: int) -> Ints:
    """Which images serve as references: the draw of the explanation of a study."""
    order = np.argsort(seeding.uniforms(seeding.keys(ids), 1, "background", seed)[:, 0], kind="stable")
    return order[:size].astype(np.int64)


def _of_training(size: int, seed: int | None, wanted: Wanted, subject: Subject) -> tuple[Pixels, str]:
    """References out of the training split that a run has seen."""
    if wanted.study is None:
        raise BadInput("--background: found 'train', which a run of a study has; allowed for a bare network: black, a "
                       "folder, an archive or a file of images, mnist5k, shapes, cifar10, torchvision:NAME")
    study, content = wanted.study.study, wanted.study.card()["content"]
    try:
        dataset = datasets.open_again(study.data, study.max_input_size, store.cache_folder(), content)
    except BadInput as error:
        raise BadInput(f"--background: the study's training images cannot be had ({error}); allowed beside them: "
                       "black, a folder of images") from None
    train = dataset.splits["train"]
    draw = _draw([dataset.ids[row] for row in train], size, study.data.data_seed if seed is None else seed)
    rows = train[draw]
    return np.stack([dataset.images[row] for row in rows]), (
        f"background: {len(rows):,} of {len(train):,} training images of {study.name}")


def _listed(text: str, explained: Sequence[Path]) -> tuple[list[str], Callable[[int], Path | Image.Image]]:
    """The images that a background may be drawn from: their names, and how each is had."""
    cache, path = store.cache_folder(), expanded(text.removeprefix("folder:"), "--background")
    try:
        data = Data(source=text)
    except ValidationError:
        data = None
    if data is not None and not text.startswith("folder:"):
        try:
            samples = datasets.originals(data, cache)
        except BadInput as error:
            said = str(error).replace("data.source:", "--background:")
            raise BadInput(said.replace("set data.root to where it lies, ", "")) from None
        rows = np.flatnonzero(~samples.held_out) if samples.held_out is not None else np.arange(len(samples.ids))
        return [samples.ids[row] for row in rows], lambda number: samples.fetch(int(rows[number]))
    if kind(path) is None:
        words = ["black", "train", "mnist5k", "shapes", "cifar10"]
        raise BadInput(f"--background: found {text[:200]!r}, and no file or folder lies there{nearest(text, words)}; "
                       f"allowed: {', '.join(words)}, torchvision:NAME, a folder, an archive or a file of images")
    root = _unpacked(path, cache) if path.name.lower().endswith(ARCHIVES) else path
    shown = {each.resolve() for each in explained}
    found = [each for each in gather([root], option="--background") if each.resolve() not in shown]
    if not found:
        raise BadInput(f"--background: {text} holds the explained images and no others; an image cannot be its own "
                       "background")
    return [each.relative_to(root).as_posix() if each != root else each.name for each in found], found.__getitem__


def _unpacked(archive: Path, cache: Path) -> Path:
    """An archive's files, unpacked where data sets unpack theirs."""
    def build(folder: Path) -> None:
        (folder / "files").mkdir()
        steps = archives.unpack(archive, folder / "files", str(archive))
        for _ in progress.track(steps, f"unpack {archive.name}", 100):
            pass

    try:
        fingerprint = archives.fingerprint(archive, str(archive))
        return store.get(cache, "archives", datasets.VERSION, {}, {"archive": fingerprint}, build).path / "files"
    except BadInput as error:
        raise BadInput(str(error).replace("data.source:", "--background:")) from None
