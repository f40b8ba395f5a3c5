"""One image: read it as 8-bit RGB whatever its file holds, and lay it onto a square.

Exports have a copy of this file, so that it imports nothing of tlkd.
"""

import errno
import functools
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

Fit = Literal["crop", "stretch", "pad"]

ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}
SIDEWAYS = [TURNS[value] for value in (5, 6, 7, 8)]
OTHER_PROGRAMS = ("EPS", "WMF")
SPARE = 2**28  # bytes that a machine with memory to spare gives at once
LARGE = 2**24  # pixels: of images with more one is decoded at a time, which may take 16 bytes a pixel
DEEP_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")


_one_large = threading.Lock()


class BadImage(ValueError):
    """A file that cannot be used as an image; its text is the reason, without the file's name."""


class Decoded(NamedTuple):
    """An image as 8-bit RGB, and what it was before: its mode, its upright size in pixels, whether EXIF turned it."""

    image: Image.Image
    mode: str
    height: int
    width: int
    turned: bool


class Upright(NamedTuple):
    """An image file's upright size in pixels, and how EXIF turned it where that swapped its sides."""

    width: int
    height: int
    turn: Image.Transpose | None


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open an image file, if it is a plain file in a format that Pillow reads by itself."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise BadImage("no plain file")
    with Image.open(path, formats=_formats()) as image:
        yield image


@functools.cache
def _formats() -> tuple[str, ...]:
    """All formats but those that another program reads: for EPS, Pillow starts Ghostscript, and it is a language."""
    Image.init()
    return tuple(name for name in Image.ID if name not in OTHER_PROGRAMS)


def read_image(path: Path) -> Image.Image:
    """Read an image file as upright 8-bit RGB at its native size.

    Raises `BadImage` where it cannot be.
    """
    return decode(path).image


def decode(source: Path | Image.Image, side: int | None = None) -> Decoded:
    """Decode a file, or take an image as it is, as upright 8-bit RGB.

    With `side`, a JPEG may be decoded at a half, a quarter or an eighth of its size, each side staying at least twice
    `side` pixels. Of an animated file the first frame is taken. Raises `BadImage` for whatever Pillow cannot decode,
    for decompression bombs, and for floating-point images, whose range nobody knows.
    """
    if isinstance(source, Image.Image):
        return Decoded(_rgb(source), source.mode, source.height, source.width, False)
    try:
        with _open(source) as image:
            width, height = image.size
            mode = image.mode
            if side is not None:
                image.draft(None, (2 * side, 2 * side))  # None: leave the mode alone
            with _one_large if image.width * image.height > LARGE else nullcontext():
                image.load()
                turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
                rgb = _rgb(image)
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins let nearly every kind through on a broken file
        raise _bad(error, source) from None
    if turn is None:
        return Decoded(rgb, mode, height, width, False)
    upright = rgb.transpose(turn)
    if turn in SIDEWAYS:
        width, height = height, width
    return Decoded(upright, mode, height, width, True)


def upright(source: Path | Image.Image) -> Upright:
    """The upright size of an image, from its header alone. Raises `BadImage` where the header cannot be read."""
    if isinstance(source, Image.Image):
        return Upright(*source.size, None)
    try:
        with _open(source) as image:
            (width, height), turn = image.size, TURNS.get(image.getexif().get(ORIENTATION, 1))
    except BadImage:
        raise
    except Exception as error:  # whatever Pillow raises
        raise _bad(error, source) from None
    return Upright(height, width, turn) if turn in SIDEWAYS else Upright(width, height, None)


def native_sides(source: Path | Image.Image) -> tuple[int, int]:
    """The shorter and the longer side of an image in pixels, from its header alone.

    Raises `BadImage` where the header cannot be read.
    """
    if isinstance(source, Image.Image):
        return min(source.size), max(source.size)
    try:
        with _open(source) as image:
            return min(image.size), max(image.size)
    except BadImage:
        raise
    except Exception as error:
        raise _bad(error, source) from None


def _bad(error: Exception, path: Path) -> BadImage:
    """What is wrong with a file. Raises the error itself where memory is short, which is no fault of the file's."""
    if isinstance(error, MemoryError | ImportError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        try:
            bytearray(SPARE)  # else the file asks for more than any machine has
        except MemoryError:
            raise error from None
    return BadImage(_reason(error, path))


def fitted_side(sides: tuple[int, int], fit: Fit) -> int:
    """The side of the square that an image of these (shorter, longer) sides fills without being enlarged, in pixels."""
    return sides[0] if fit == "crop" else sides[1]


def fit_image(image: Image.Image, side: int, fit: Fit,
              resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """Lay an image onto a square of `side` pixels, antialiased.

    `crop` takes the central square that the shorter side spans; `stretch` gives up the proportions; `pad` keeps all of
    the image, centred on black. Masks go the same way, with another `resample`.
    """
    width, height = image.size
    if fit == "stretch":
        return image.resize((side, side), resample)
    if fit == "crop":
        # Cut first, with whole pixels: the same picture, but a strip of 1 x 10,000 does not grow to gigabytes.
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return image.crop((left, top, left + short, top + short)).resize((side, side), resample)
    longer = max(width, height)
    size = max(1, round(width * side / longer)), max(1, round(height * side / longer))
    square = Image.new(image.mode, (side, side))
    square.paste(image.resize(size, resample), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: transparency laid onto white, 16 bits scaled by 257."""
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers, whose range is unknown; save it with 8 or 16 bits")
    if image.mode in DEEP_GREY:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage(f"its pixels run from {values.min()} to {values.max()}, outside 16 bits; "
                           "save it with 8 or 16 bits")
        return Image.fromarray(((values.astype(np.int32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        see_through = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, see_through).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception, path: Path) -> str:
    """Why a file is no image, in a few words on one line."""
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, UnidentifiedImageError):
        empty = path.is_file() and path.stat().st_size == 0
        return "the file is empty (0 bytes)" if empty else "not an image, or its header is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: it looks like a decompression bomb"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    kind = "" if isinstance(error, OSError | struct.error) else f"{type(error).__name__}: "
    return " ".join(f"damaged: {kind}{error}".split())
