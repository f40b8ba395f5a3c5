"""Views: deterministic versions of a sample, computed on whole batches of tensors.

A view is a function of sample id, view number and `data_seed`, so that a teacher and a student that are shown view 3
of a sample see the same pixels, today or in another study.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkd import seeding

CROP_AREA = (0.08, 1.0)  # of the image: the range of Szegedy et al., "Going deeper with convolutions", 2015, section 6
CROP_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class View:
    """One version of every sample: geometry, and a corruption's variant.

    The geometry is the number of a banked random resized crop (None: the whole image), and a flip. Variants count from
    1; 0 is uncorrupted. What a variant does is the condition's business: a view only says which.
    """

    crop: int | None = None
    flip: bool = False
    variant: int = 0

    def __str__(self) -> str:
        """Name the view, e.g. `crop3+flip`, or `flip#1` in the first variant of a corruption."""
        parts = ([] if self.crop is None else [f"crop{self.crop}"]) + (["flip"] if self.flip else [])
        return ("+".join(parts) or "identity") + (f"#{self.variant}" if self.variant else "")


IDENTITY = View()


def train_views(augment: tuple[str, ...]) -> tuple[View, ...]:
    """The views that training draws from, all alike likely; dev and test are seen in the identity view.

    `hflip` doubles the views; `crop:K` puts K random resized crops in the place of the whole image.
    """
    crops: list[int | None] = [None]
    for item in augment:
        if item.startswith("crop:"):
            crops = list(range(int(item.partition(":")[2])))
    flips = (False, True) if "hflip" in augment else (False,)
    return tuple(View(crop, flip) for crop in crops for flip in flips)


def corrupted(views: tuple[View, ...], variants: int) -> tuple[View, ...]:
    """These views in each variant of a corruption: number `g + len(views) * (v - 1)` is view g in variant v."""
    return tuple(replace(view, variant=variant) for variant in range(1, variants + 1) for view in views)


def crop_boxes(keys: NDArray[np.uint64], crop: int, data_seed: int) -> NDArray[np.float64]:
    """Boxes of random resized crops, `[sample, 4]`: top, left, height, width as fractions of the side.

    The area is uniform and the aspect ratio log-uniform in torchvision's ranges; a box that sticks out of the square
    is cut to it, where torchvision would draw again.
    """
    draws = seeding.uniforms(keys, 4, "crop", data_seed, crop)
    area = CROP_AREA[0] + draws[:, 0] * (CROP_AREA[1] - CROP_AREA[0])
    ratio = np.exp(np.log(CROP_RATIO[0]) + draws[:, 1] * (np.log(CROP_RATIO[1]) - np.log(CROP_RATIO[0])))
    height, width = np.minimum(np.sqrt(area / ratio), 1.0), np.minimum(np.sqrt(area * ratio), 1.0)
    return np.stack([draws[:, 2] * (1 - height), draws[:, 3] * (1 - width), height, width], axis=1)


def resample_weights(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Antialiased bilinear resampling of an interval of pixels as a matrix, `[sample, target, source]`.

    `start` and `length`, `[sample]`, are in source pixels. The triangle filter is widened where pixels are merged and
    cut at the interval's ends, as Pillow and torchvision do it for a crop followed by a resize.
    """
    scale = length / target
    support = scale.clamp(min=1.0)
    centre = start[:, None] + (torch.arange(target, dtype=start.dtype) + 0.5) * scale[:, None]
    pixel = torch.arange(source, dtype=start.dtype) + 0.5
    distance = (pixel[None, None, :] - centre[:, :, None]).abs() / support[:, None, None]
    inside = (pixel[None, :] > start[:, None]) & (pixel[None, :] < (start + length)[:, None])
    weights = (1 - distance).clamp(min=0) * inside[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


def render(images: Tensor, keys: NDArray[np.uint64], views: tuple[View, ...], which: NDArray[np.int64], size: int,
           data_seed: int, mean: tuple[float, ...], sd: tuple[float, ...]) -> Tensor:
    """A batch as a network takes it, each sample in its own view: normalised, resized (bilinear, antialiased), flipped.

    `images` is uint8 `[sample, side, side, 3]` on any device, `keys` the samples' keys `[sample]`, `which` the numbers
    of their views in `views` `[sample]`; `mean` and `sd` are of pixels in [0, 1]. Returns float32
    `[sample, 3, size, size]`, channels last in memory.
    """
    side, device = images.shape[1], images.device
    scale = 1.0 / (255.0 * torch.tensor(sd, dtype=torch.float64))
    shift = -255.0 * torch.tensor(mean, dtype=torch.float64) * scale
    # Before the resizing, with which it commutes (weights sum to one), since most images grow on their way.
    pixels = images.float().mul_(scale.float().to(device)).add_(shift.float().to(device)).permute(0, 3, 1, 2)
    flipped = torch.from_numpy(np.array([view.flip for view in views])[which]).to(device)
    if side == size and all(view.crop is None for view in views):
        if flipped.any():
            pixels = torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        return pixels.contiguous(memory_format=torch.channels_last)
    boxes = torch.from_numpy(_boxes(keys, views, which, data_seed) * side)
    rows = resample_weights(boxes[:, 0], boxes[:, 2], side, size).float().to(device)
    columns = resample_weights(boxes[:, 1], boxes[:, 3], side, size).float().to(device)
    if flipped.any():
        columns = torch.where(flipped.view(-1, 1, 1), columns.flip(1), columns)
    # Plane by plane: with the three channels innermost the products would be too thin to be fast.
    pixels = torch.matmul(pixels.contiguous(), columns.transpose(1, 2).unsqueeze(1))
    return torch.matmul(rows.unsqueeze(1), pixels).contiguous(memory_format=torch.channels_last)


def _boxes(keys: NDArray[np.uint64], views: tuple[View, ...], which: NDArray[np.int64],
           data_seed: int) -> NDArray[np.float64]:
    """Each sample's box as fractions of the side, `[sample, 4]`; one row for all where all see the whole image."""
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    if all(view.crop is None for view in views):
        return whole
    boxes = np.repeat(whole, len(keys), axis=0)
    crops = np.array([-1 if view.crop is None else view.crop for view in views])[which]
    for crop in np.unique(crops[crops >= 0]):
        boxes[crops == crop] = crop_boxes(keys[crops == crop], int(crop), data_seed)
    return boxes
