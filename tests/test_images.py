"""One image: read as 8-bit RGB whatever its file holds, and laid onto a square."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkd.images import BadImage, decode, fit_image, fitted_side, native_sides, read_image


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGB", "bmp"), ("L", "png"), ("1", "png"), ("P", "png"),
                                              ("P", "gif"), ("RGB", "webp")])
def test_plain_modes_are_what_pillow_converts(tmp_path: Path, mode: str, suffix: str) -> None:
    source = Image.fromarray(noise(17, 23)).convert(mode)
    path = tmp_path / f"x.{suffix}"
    source.save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(pixels(read_image(path)), pixels(source.convert("RGB")))


def test_transparency_is_laid_onto_white(tmp_path: Path) -> None:
    rgba = np.dstack([noise(9, 11), np.random.default_rng(1).integers(0, 256, (9, 11), np.uint8)])
    rgba[0, 0] = (0, 0, 0, 0)
    rgba[0, 1, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "x.png")
    alpha = rgba[..., 3:] / 255
    found = pixels(read_image(tmp_path / "x.png"))
    np.testing.assert_allclose(found, rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 1].tolist() == rgba[0, 1, :3].tolist()


def test_transparency_in_grey_and_in_a_palette(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), mode="LA").save(tmp_path / "la.png")
    assert pixels(read_image(tmp_path / "la.png")).tolist() == [[[255] * 3, [10] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixels(read_image(tmp_path / "p.png")).tolist() == [[[255, 255, 255], [0, 0, 200]]]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    decoded = decode(tmp_path / "x.jpg")
    assert decoded.mode == "CMYK"
    np.testing.assert_allclose(pixels(decoded.image), np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert pixels(read_image(tmp_path / f"x.{suffix}"))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_32_bit_grey_within_16_bits_is_scaled_and_beyond_them_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "x.tif")
    assert pixels(read_image(tmp_path / "x.tif"))[0, :, 0].tolist() == [0, 255]
    Image.fromarray(np.array([[0, 65536]], np.int32)).save(tmp_path / "y.tif")
    with pytest.raises(BadImage, match="from 0 to 65536"):
        read_image(tmp_path / "y.tif")


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.5]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadImage, match="floating-point"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("orientation", "back"), [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
    (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, 1)),
    (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)), (8, lambda a: np.rot90(a, -1))])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "TIFF"])
def test_exif_turns(tmp_path: Path, orientation: int, back, mode: str) -> None:  # type: ignore[no-untyped-def]
    """The file holds the upright picture turned the other way; reading must undo it."""
    upright = noise(12, 20)
    if mode == "I;16":
        upright[:] = upright[..., :1]
    stored = np.ascontiguousarray(back(upright))
    if mode == "RGBA":
        image = Image.fromarray(np.dstack([stored, np.full(stored.shape[:2], 255, np.uint8)]))
    elif mode == "I;16":
        image = Image.fromarray(stored[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("x.tif" if mode == "TIFF" else "x.png")  # a TIFF is turned by Pillow, and must not be twice
    image.save(path, exif=exif)
    decoded = decode(path)
    np.testing.assert_array_equal(pixels(decoded.image), upright)
    assert (decoded.height, decoded.width, decoded.turned) == (12, 20, orientation > 1 and mode != "TIFF")
    assert native_sides(path) == (12, 20)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert pixels(read_image(tmp_path / "x.gif"))[0, 0].tolist() == [255, 0, 0]


def test_a_big_jpeg_is_decoded_smaller_but_keeps_twice_the_side(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 800)[None, :, None] * np.ones((640, 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "x.jpg", quality=95)
    small = decode(tmp_path / "x.jpg", side=60)
    assert small.image.size == (200, 160)  # a quarter; an eighth would be 80 high, and 2 * 60 are wanted
    assert (small.height, small.width) == (640, 800)
    full = decode(tmp_path / "x.jpg")
    assert full.image.size == (800, 640)
    np.testing.assert_allclose(pixels(fit_image(small.image, 60, "crop")), pixels(fit_image(full.image, 60, "crop")),
                               atol=4)


# Fits, each beside a twin that is written out


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (41, 64), (7, 50), (33, 33), (10, 12)])
def test_crop_resizes_the_shorter_side_and_cuts_the_centre(height: int, width: int) -> None:
    array = noise(height, width)
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    twin = Image.fromarray(array[top:top + short, left:left + short]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels(fit_image(Image.fromarray(array), 20, "crop")), pixels(twin))


def test_crop_is_the_same_as_resizing_first(tmp_path: Path) -> None:
    image = Image.fromarray(noise(40, 60)).resize((600, 400), Image.Resampling.BICUBIC)
    other = image.resize((60, 40), Image.Resampling.BILINEAR).crop((10, 0, 50, 40))
    difference = np.abs(pixels(fit_image(image, 40, "crop")) - pixels(other))
    assert difference[:, 2:-2].max() <= 1  # only at the cut, where the filter would have looked outside, do they differ


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 41), (20, 20)])
def test_stretch_fills_the_square(height: int, width: int) -> None:
    image = Image.fromarray(noise(height, width))
    twin = image.resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels(fit_image(image, 24, "stretch")), pixels(twin))


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (41, 64), (30, 30), (1, 300), (10, 12)])
def test_pad_keeps_everything_on_black(height: int, width: int) -> None:
    image = Image.fromarray(noise(height, width) // 2 + 100)
    longer = max(height, width)
    rows, columns = max(1, round(height * 20 / longer)), max(1, round(width * 20 / longer))
    twin = np.zeros((20, 20, 3), int)
    top, left = (20 - rows) // 2, (20 - columns) // 2
    twin[top:top + rows, left:left + columns] = pixels(image.resize((columns, rows), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels(fit_image(image, 20, "pad")), twin)


def test_the_fits_differ_and_leave_a_fitting_image_alone() -> None:
    image = Image.fromarray(noise(30, 50))
    fits = [pixels(fit_image(image, 16, fit)) for fit in ("crop", "stretch", "pad")]
    assert all((fits[a] != fits[b]).any() for a, b in ((0, 1), (0, 2), (1, 2)))
    square = Image.fromarray(noise(16, 16))
    for fit in ("crop", "stretch", "pad"):
        np.testing.assert_array_equal(pixels(fit_image(square, 16, fit)), pixels(square))


def test_masks_keep_their_values() -> None:
    mask = Image.fromarray((noise(31, 47)[..., 0] > 128).astype(np.uint8))
    for fit in ("crop", "stretch", "pad"):
        laid = np.asarray(fit_image(mask, 12, fit, Image.Resampling.NEAREST))
        assert laid.shape == (12, 12)
        assert set(np.unique(laid)) <= {0, 1}


def test_fitted_sides() -> None:
    assert [fitted_side((30, 50), fit) for fit in ("crop", "stretch", "pad")] == [30, 50, 50]


# Bad images


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def truncated() -> bytes:
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    return whole.getvalue()[: len(whole.getvalue()) // 2]


@pytest.mark.parametrize(("content", "reason"), [
    (b"", r"empty \(0 bytes\)"), (b"hello", "not an image"), (truncated(), "truncated"), (bomb(), "bomb"),
    (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "damaged|not an image")])
def test_bad_files_say_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=reason) as caught:
        read_image(tmp_path / "x.jpg")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_is_a_bad_image(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="gone"):
        read_image(tmp_path / "x.jpg")
