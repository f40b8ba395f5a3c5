"""Corruptions: what each kind of distortion does to a batch of images, exact to its definition.

A corrupted image is a function of the image, the sample's key, the variant and `data_seed`: what is random about it is
drawn in NumPy from those names, so that a sample looks the same in whatever batch it comes, on any device. Some kinds
change an image as it is stored (`on_images`), the others what a network is given (`on_input`).

The severities, and the definitions but for the filters, are those of ImageNet-C and CIFAR-10-C: Hendrycks and
Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019, and their scripts
`make_imagenet_c.py` and `make_cifar_c.py`. These cut a pixel's decimals off; here it becomes the nearest level, half a
level upwards, since a corrupted image is an image.
"""

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtri
from torch import Tensor

from tlkd import seeding
from tlkd.conditions import Distortion

Scale = Literal["cifar", "imagenet"]

PUBLISHED: dict[Scale, dict[str, tuple[float, ...]]] = {
    "cifar": {
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1), "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.1),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15), "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65), "jpeg": (80, 65, 58, 50, 40),
    },
    "imagenet": {
        "gaussian_blur": (1, 2, 3, 4, 6), "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05), "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25), "jpeg": (25, 18, 15, 10, 7),
    },
}
"""What the severities 1 to 5 stand for; the argument of each kind's function below says in which unit."""

CIFAR_SIDE = 64  # pixels: up to this side, `scale: auto` is CIFAR's
BLUR_TRUNCATED = 4.0  # standard deviations: the default of skimage.filters.gaussian
NYQUIST = 0.5  # cycles a pixel
# A value that halves a level in exact arithmetic (a mean over 32 x 32 pixels often does, and 0.1 of 255 always) would
# be rounded by its last bits, which differ between devices. So near to a half, it counts as one.
SLACK = 1e-9
FEWEST = 2.0**-54  # stands for a uniform number of exactly 0, whose normal is infinite; the next is 2^-53


def published_scale(distortion: Distortion, side: int) -> Scale:
    """The published scale of severities for images stored at `side` pixels: what `scale: auto` stands for."""
    if distortion.scale is None or distortion.scale == "auto":
        return "cifar" if side <= CIFAR_SIDE else "imagenet"
    return distortion.scale


def on_images(distortion: Distortion, images: Tensor, keys: NDArray[np.uint64], variant: int,
              data_seed: int) -> Tensor:
    """Images as they are stored, corrupted: uint8 `[sample, side, side, 3]` on any device, to the same.

    `keys` are the samples' keys, `[sample]`. Images are returned as they are by the kinds that act on the input.
    """
    if distortion.kind in LAYERS or not len(images):
        return images
    planes = images.permute(0, 3, 1, 2).to(torch.float64, memory_format=torch.contiguous_format)
    if distortion.band is not None:
        changed = keep_band(planes, distortion.band)
    else:
        assert distortion.severity is not None  # as the spec demands of every kind that is left
        side = images.shape[1]
        strength = PUBLISHED[published_scale(distortion, side)][distortion.kind][distortion.severity - 1]
        if distortion.kind == "gaussian_noise":
            normals = _normals(keys, side * side * 3, data_seed, variant)
            changed = planes + torch.from_numpy(255 * strength * normals).to(images.device).view(
                images.shape).permute(0, 3, 1, 2)
        else:
            changed = CHANGES[distortion.kind](planes, strength)
    return _levels(changed).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def on_input(distortion: Distortion, inputs: Tensor, keys: NDArray[np.uint64], variant: int, data_seed: int,
             mean: tuple[float, ...], sd: tuple[float, ...]) -> Tensor:
    """A network's input, corrupted: float32 `[sample, 3, size, size]` on any device, to the same, channels last.

    The input is resized, flipped and normalised with `mean` and `sd` already, so that black, raw 0, is `-mean / sd`.
    Inputs are returned as they are by the kinds that act on images as they are stored.
    """
    if distortion.kind not in LAYERS:
        return inputs
    draws = seeding.uniforms(keys, 1, "corruption", distortion.kind, data_seed, variant)[:, 0]
    masked = torch.from_numpy(LAYERS[distortion.kind](distortion, draws, inputs.shape[2])).to(inputs.device)
    black = torch.tensor([(0.0 - centre) / spread for centre, spread in zip(mean, sd, strict=True)],
                         dtype=inputs.dtype, device=inputs.device)
    covered = torch.where(masked.unsqueeze(1), black.view(1, -1, 1, 1), inputs)
    return covered.contiguous(memory_format=torch.channels_last)


# --- stored images, float64 [sample, 3, side, side] in levels 0 to 255, to the same, not rounded yet ------------------


def gaussian_blur(planes: Tensor, sigma: float) -> Tensor:
    """Convolution with a Gaussian of `sigma` pixels, cut off at 4 sigma; beyond the edge stand the edge's pixels."""
    side = planes.shape[2]
    radius = int(BLUR_TRUNCATED * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    # As a matrix, [target, source]: at these sides it is as quick as any convolution, and it is exact in float64.
    sources = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)
    weights = torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, sources, kernel.expand(side, -1))
    return _resampled(planes, weights.to(planes.device))


def contrast(planes: Tensor, factor: float) -> Tensor:
    """Each channel of each image drawn to its own mean: `factor` of the distance remains."""
    means = planes.mean(dim=(2, 3), keepdim=True)
    return (planes - means) * factor + means


def brightness(planes: Tensor, amount: float) -> Tensor:
    """`amount` of the full scale added to a pixel's value in HSV, up to white's; hue and saturation stay.

    The value is the greatest of the three channels, to which the other two keep their ratios; black becomes grey.
    """
    value = planes.amax(dim=1, keepdim=True)
    raised = (value + 255 * amount).clamp(max=255)
    return torch.where(value > 0, planes * (raised / value.clamp(min=1)), raised)


def pixelate(planes: Tensor, factor: float) -> Tensor:
    """The image shrunk to `factor` of its side and grown back, both times with Pillow's box filter."""
    side = planes.shape[2]
    small = max(1, int(side * factor))
    for source, target in ((side, small), (small, side)):
        weights = _box_weights(source, target).to(planes.device)
        # An image at every step, as Pillow makes it: columns first.
        planes = _levels(torch.matmul(weights, _levels(torch.matmul(planes, weights.T))))
    return planes


def jpeg(planes: Tensor, quality: float) -> Tensor:
    """The image written as a JPEG of this `quality` by Pillow, 1 to 95, and read again."""
    images = planes.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    reread = np.empty_like(images)
    for place, image in zip(reread, images, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        place[...] = np.asarray(Image.open(file))
    return torch.from_numpy(reread).to(planes.device).permute(0, 3, 1, 2)


def keep_band(planes: Tensor, band: tuple[float, float]) -> Tensor:
    """What lies in a band of spatial frequencies, from and to these fractions of Nyquist's, and the mean.

    An ideal filter, as in Yin et al., "A Fourier perspective on model robustness in computer vision", 2019, but a ring
    where theirs is a square, so that it treats all directions alike. To a Fourier transform an image's opposite edges
    adjoin, so that a step between them leaves ripples there.
    """
    side = planes.shape[2]
    down, right = torch.fft.fftfreq(side, dtype=torch.float64), torch.fft.rfftfreq(side, dtype=torch.float64)
    radius = (down[:, None] ** 2 + right**2).sqrt() / NYQUIST
    kept = (radius >= band[0] - SLACK) & (radius <= band[1] + SLACK)
    kept[0, 0] = True
    passed: Tensor = torch.fft.irfft2(torch.fft.rfft2(planes) * kept.to(planes.device), s=(side, side))
    return passed


CHANGES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian_blur": gaussian_blur, "contrast": contrast, "brightness": brightness, "pixelate": pixelate, "jpeg": jpeg,
}


# --- a network's input: each sample's draw, [sample], to where it becomes black, [sample, size, size] -----------------


def center_square(distortion: Distortion, draws: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """A centred square, its side uniform between two fractions of the input's: at least one pixel."""
    assert distortion.size is not None  # as the spec demands of these kinds
    least, greatest = distortion.size
    pixels = np.floor((least + draws * (greatest - least)) * size + 0.5 + SLACK).clip(1, size).astype(np.int64)
    start = ((size - pixels) // 2)[:, None]
    place = np.arange(size)
    along = (place >= start) & (place < start + pixels[:, None])
    return along[:, :, None] & along[:, None, :]


def border(distortion: Distortion, draws: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """All but such a square."""
    return ~center_square(distortion, draws, size)


def quarter(distortion: Distortion, draws: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """One of the four quarters, all alike likely; of an odd number of rows, the lower one has one more."""
    which = (draws * 4).astype(np.int64)[:, None]
    late = np.arange(size) >= size // 2
    down, right = late == (which >= 2), late == (which % 2 == 1)
    covered: NDArray[np.bool_] = down[:, :, None] & right[:, None, :]
    return covered


LAYERS: dict[str, Callable[[Distortion, NDArray[np.float64], int], NDArray[np.bool_]]] = {
    "center_black": center_square, "border_black": border, "quarter_black": quarter,
}


def _normals(keys: NDArray[np.uint64], count: int, data_seed: int, variant: int) -> NDArray[np.float64]:
    """Standard normal numbers of each sample, `[sample, count]`, by the inverse of their distribution function."""
    draws = seeding.uniforms(keys, count, "corruption", "gaussian_noise", data_seed, variant)
    normals: NDArray[np.float64] = ndtri(np.maximum(draws, FEWEST))
    return normals


def _levels(values: Tensor) -> Tensor:
    """The nearest of the levels 0 to 255, in the same type."""
    return (values + (0.5 + SLACK)).floor_().clamp_(0, 255)


def _resampled(planes: Tensor, weights: Tensor) -> Tensor:
    """Columns, then rows, weighted by a matrix `[target, source]`."""
    return torch.matmul(weights, torch.matmul(planes, weights.T))


def _box_weights(source: int, target: int) -> Tensor:
    """Pillow's box filter as a matrix, `[target, source]`: the mean of the pixels whose centres lie in a target's box.

    A pixel is in it or not, never in part, whatever the ratio; where pixels are multiplied, the box is one pixel wide.
    """
    # Of a centre on a box's edge Pillow's own last bits decide, so it is asked which pixels it would take.
    unit = Image.fromarray(np.eye(source, dtype=np.float32))
    inside = torch.from_numpy(np.asarray(unit.resize((source, target), Image.Resampling.BOX)) > 0).double()
    return inside / inside.sum(dim=1, keepdim=True)
