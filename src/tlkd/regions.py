"""How an attribution lies over an object's mask: sums inside and outside, shares, ranks; pure functions in float64.

An attribution gives every pixel and channel a number, positive where it speaks for the output that is explained. The
foreground is what the mask covers, the background everything else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Signs = Literal["channel", "summed"]

SUMS = ("fg_pos", "fg_neg", "fg_diff", "bg_pos", "bg_neg", "bg_diff")
METRICS = ("positive_share", "absolute_share", "density", "pointing", "rank_accuracy")
QUANTITIES = (*SUMS, "area", *METRICS)
"""What `measure` gives, in this order."""
COLUMNS = ("sample_id", "label", "class", "predicted", "correct", "uncertain", *QUANTITIES)
"""The columns of `regions.csv`, a row an image that has a mask."""
RATIOS = ("ratio_A_over_B", "ratio_C_over_D", "ratio_AB_over_CD")


def measure(values: NDArray[np.floating], masks: NDArray[np.bool_], signs: Signs) -> dict[str, Floats]:
    """The quantities `[image]` of attributions `values [image, channel, height, width]` over `masks [image, h, w]`.

    - `fg_pos`, `fg_neg`, `fg_diff`, and `bg_*` outside: the sums of what is above and below 0, and pos + neg. With
      `signs` of channel, each channel's number has its own sign; with summed, channels are summed first, so that they
      may cancel. diff is the same for both. The unit is the network's own: sums of two networks are on two scales.
    - `area`: the mask's share of the picture.
    - `positive_share`: fg_pos / (fg_pos + bg_pos), the foreground share. It is the *relevance mass accuracy* of Arras,
      Osman and Samek ("CLEVR-XAI", Information Fusion 81, 2022) under their poolings "pos,sum" (channel)
      and "sum,pos" (summed); the *energy-based pointing game* of Wang et al. ("Score-CAM", CVPR workshops 2020) is the
      same ratio of a map without negative values over a bounding box in place of a mask.
    - `absolute_share`: the same of magnitudes, pos - neg: poolings "l1-norm" and "sum,abs".
    - `density`: positive_share / area; 1 is what an evenly spread attribution would have.
    - `pointing`: 1 where the pixel of the largest channel sum lies inside; of several, the share that does. Zhang et
      al. ("Top-down neural attention by excitation backprop", IJCV 2018), here with no tolerance around the object.
    - `rank_accuracy`: of the K pixels with the largest channel sums, K the mask's pixels, the share that lies inside;
      where pixels tie at rank K, its mean over all ways to break the tie. The *relevance
      rank accuracy* of Arras et al. 2022, pooled by "sum".

    A share without mass to divide is nan: `positive_share` and `density` where nothing is positive, `absolute_share`
    where all is 0. An attribution of zeros points everywhere alike, so that `pointing` and `rank_accuracy` are the
    area. An empty mask makes all but sums and area nan. Raises `ValueError` for shapes that do not fit, and for values
    that are not finite.
    """
    if values.ndim != 4 or masks.shape != (values.shape[0], *values.shape[2:]) or masks.dtype != np.bool_:
        raise ValueError("expected values [image, channel, height, width] and boolean masks [image, height, width], "
                         f"found shapes {values.shape} and {masks.shape} ({masks.dtype})")
    if signs not in ("channel", "summed"):
        raise ValueError(f"signs: found {signs!r}; allowed: channel, summed")
    found: dict[str, Floats] = {name: np.full(len(values), np.nan) for name in QUANTITIES}
    for number, (each, mask) in enumerate(zip(values, masks, strict=True)):  # one by one: float64 copies stay small
        for name, quantity in _measure(np.asarray(each, np.float64), mask, signs).items():
            found[name][number] = quantity
    return found


def _measure(each: Floats, mask: NDArray[np.bool_], signs: Signs) -> dict[str, float]:
    if not np.isfinite(each).all():
        raise ValueError("values: an attribution is not finite")
    pixels = each.sum(axis=0)
    signed = each if signs == "channel" else pixels[None]
    found: dict[str, float] = {}
    for side, inside in (("fg", mask), ("bg", ~mask)):
        part = signed[:, inside]
        pos, neg = float(part[part > 0].sum()), float(part[part < 0].sum())
        found |= {f"{side}_pos": pos, f"{side}_neg": neg, f"{side}_diff": pos + neg}
    found["area"] = float(mask.mean())
    if mask.any():
        found["positive_share"] = _share(found["fg_pos"], found["bg_pos"])
        found["absolute_share"] = _share(found["fg_pos"] - found["fg_neg"], found["bg_pos"] - found["bg_neg"])
        found["density"] = found["positive_share"] / found["area"]
        found["pointing"] = _inside_top(pixels, mask, 1)
        found["rank_accuracy"] = _inside_top(pixels, mask, int(mask.sum()))
    return found


def _share(inside: float, outside: float) -> float:
    return inside / (inside + outside) if inside + outside > 0 else float("nan")


def _inside_top(pixels: Floats, mask: NDArray[np.bool_], count: int) -> float:
    """The share of the `count` largest pixels that lies in the mask, averaged over all ways to break ties."""
    last = np.partition(pixels, pixels.size - count, axis=None)[pixels.size - count]
    above, tied = pixels > last, pixels == last
    chosen = (count - int(above.sum())) / int(tied.sum())  # the chance of each tied pixel
    return float((mask & above).sum() + chosen * (mask & tied).sum()) / count


def table(sample_ids: Sequence[str] | NDArray[np.str_], labels: NDArray[np.integer], classes: Sequence[str],
          predicted: NDArray[np.integer], uncertain: NDArray[np.bool_],
          quantities: Mapping[str, Floats]) -> pd.DataFrame:
    """A network's `regions.csv`: a row an image, columns as in `COLUMNS`.

    `labels` and `predicted` are numbers of classes; `classes` are all names, in the order of their numbers.
    """
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    return pd.DataFrame({
        "sample_id": np.asarray(sample_ids, dtype=object), "label": labels,
        "class": np.array([classes[label] for label in labels], dtype=object), "predicted": predicted,
        "correct": (labels == predicted).astype(np.int64), "uncertain": np.asarray(uncertain).astype(np.int64),
        **{name: np.asarray(quantities[name], np.float64) for name in QUANTITIES}}, columns=list(COLUMNS))


def ratios(tl: pd.DataFrame, arm: pd.DataFrame) -> pd.DataFrame:
    """The last columns of the thesis's tables 6.3 and 6.4, a row a row of `tl`.

    Both hold `fg_diff` (A for TL, B for the arm) and `bg_diff` (C, D), with the same rows in the same order: A/B, below
    1 where the arm's is larger, C/D, and (A/B)/(C/D). nan where a divisor is 0. Raises `ValueError` where `sample_id`
    stands in both and differs, or the numbers of rows do.
    """
    if len(tl) != len(arm) or ("sample_id" in tl and "sample_id" in arm
                               and tl["sample_id"].tolist() != arm["sample_id"].tolist()):
        raise ValueError("expected the same images in the same order in both tables")
    inside = _divide(tl["fg_diff"], arm["fg_diff"])
    outside = _divide(tl["bg_diff"], arm["bg_diff"])
    return pd.DataFrame(dict(zip(RATIOS, (inside, outside, _divide(inside, outside)), strict=True)), index=tl.index)


def _divide(above: Any, below: Any) -> Floats:
    over, under = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.asarray(np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0), np.float64)
