"""How early an accuracy is reached: epochs to a threshold, with runs that never reach it treated as censored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tlkd.statistics import sign_flip, t_interval

Floats = NDArray[np.float64]
Curves = Sequence[ArrayLike] | NDArray[np.floating]

# Epochs are whole numbers: even where all differences agree, each end was rounded over one epoch (variance 1/12).
ROUNDING = math.sqrt(1 / 6)
_FLOAT32 = 1e-7  # an accuracy of .9 stored in float32 lies 2e-8 below .9


def epochs_to(curves: Curves, threshold: float, horizon: int) -> Floats:
    """The first epoch, counted from 1, at which each run's accuracy reaches `threshold`; inf: not by `horizon`.

    `curves` is `[seed, epoch]`, or a list of `[epoch]` of several lengths where runs stopped early; accuracies and
    threshold in one unit. Gives `[seed]`. Raises `ValueError` for a horizon below 1 or an empty curve.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least 1 epoch, found {horizon}")
    first = []
    for curve in curves:
        values = np.asarray(curve, dtype=np.float64)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"curves: expected an accuracy for each epoch, found shape {values.shape}")
        reached = np.flatnonzero(values[:horizon] >= threshold - _FLOAT32)
        first.append(float(reached[0] + 1) if reached.size else math.inf)
    return np.array(first)


@dataclass(frozen=True)
class Convergence:
    """How early two arms reach `threshold`; epochs count from 1, and inf means not reached.

    All but the medians look at the first `horizon` epochs, those that every run of both arms trained. `tl_epochs`,
    `tl_kd_epochs`: for each seed. `*_reached`: how many runs reached it. `*_median`: Kaplan-Meier median over all
    epochs of each run (inf where fewer than half reached it). `*_mean`: restricted mean, a run that did not reach it
    counting as `horizon`. `gain`: restricted mean epochs that TL+KD is earlier; `low`, `high`: its t interval over
    seeds. `p_seed`: exact sign-flip over seeds. `tl_kd_first`, `tl_first`, `ties`, `p_first`: which of a pair came
    first, and the exact sign test on it.
    """

    threshold: float
    horizon: int
    tl_epochs: tuple[float, ...]
    tl_kd_epochs: tuple[float, ...]
    tl_reached: int
    tl_kd_reached: int
    tl_median: float
    tl_kd_median: float
    tl_mean: float
    tl_kd_mean: float
    gain: float
    low: float
    high: float
    p_seed: float
    tl_kd_first: int
    tl_first: int
    ties: int
    p_first: float
    n_seeds: int
    covers: str = "seeds, on the one split the curves were measured on"


def convergence(curves_tl: Curves, curves_kd: Curves, threshold: float, *, level: float) -> Convergence:
    """Compare how early TL and TL+KD, paired by seed, reach `threshold`.

    `curves_*` as in `epochs_to`, in the same order of seeds. Where early stopping cut runs short, nothing is supposed
    of the epochs that they did not train: means are restricted to the epochs that all runs of both arms have, and in
    the median each run is censored at its own end. One threshold, one test: several are not adjusted for here. Raises
    `ValueError` where the arms differ in seeds, and as `epochs_to` does. Source: Royston and Parmar, "Restricted mean
    survival time", 2013.
    """
    if len(curves_tl) != len(curves_kd) or len(curves_tl) == 0:
        raise ValueError(f"curves: expected the same seeds in both arms, found {len(curves_tl)} and {len(curves_kd)}")
    horizon = min(len(np.asarray(curve)) for curve in [*curves_tl, *curves_kd])
    tl, kd = epochs_to(curves_tl, threshold, horizon), epochs_to(curves_kd, threshold, horizon)
    tl_restricted, kd_restricted = np.minimum(tl, horizon), np.minimum(kd, horizon)
    differences = tl_restricted - kd_restricted
    low, high = t_interval(differences, level, least_spread=ROUNDING)
    p_seed = sign_flip(differences)
    kd_first, tl_first = int(np.sum(kd < tl)), int(np.sum(tl < kd))
    reached = int(np.isfinite(tl).sum()), int(np.isfinite(kd).sum())
    return Convergence(
        threshold=threshold, horizon=horizon, tl_epochs=tuple(tl.tolist()), tl_kd_epochs=tuple(kd.tolist()),
        tl_reached=reached[0], tl_kd_reached=reached[1],
        tl_median=_median(curves_tl, threshold), tl_kd_median=_median(curves_kd, threshold),
        tl_mean=float(tl_restricted.mean()), tl_kd_mean=float(kd_restricted.mean()),
        gain=float(differences.mean()), low=low, high=high, p_seed=p_seed,
        tl_kd_first=kd_first, tl_first=tl_first, ties=tl.size - kd_first - tl_first, p_first=_sign(kd_first, tl_first),
        n_seeds=tl.size)


def _median(curves: Curves, threshold: float) -> float:
    """Kaplan-Meier median of the epochs to `threshold` (1958); a run that never reached it is censored at its end."""
    from scipy.stats import CensoredData, ecdf

    ends = np.array([len(np.asarray(curve)) for curve in curves], dtype=np.float64)
    epochs = epochs_to(curves, threshold, int(ends.max()))
    reached = np.isfinite(epochs)
    survival = ecdf(CensoredData(uncensored=epochs[reached], right=ends[~reached])).sf
    half = np.flatnonzero(survival.probabilities <= 0.5 + 1e-9)
    return float(survival.quantiles[half[0]]) if half.size else math.inf


def _sign(wins: int, losses: int) -> float:
    if wins + losses == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue)


def crossings(mean_curve_tl: ArrayLike, mean_curve_kd: ArrayLike) -> list[int]:
    """The epochs, counted from 1, at which the other arm has come to lead, over the `[epoch]` both curves have.

    Epochs at which the curves are equal, but for what rounding leaves of a mean, or either is nan, are passed over.
    """
    tl, kd = np.asarray(mean_curve_tl, dtype=np.float64), np.asarray(mean_curve_kd, dtype=np.float64)
    common = min(tl.size, kd.size)
    lead = kd[:common] - tl[:common]
    signs = np.where(np.abs(lead) < _FLOAT32, 0.0, np.sign(lead))
    decided = np.flatnonzero(np.isfinite(signs) & (signs != 0))
    changed = np.flatnonzero(np.diff(signs[decided]) != 0)
    return [int(epoch) + 1 for epoch in decided[changed + 1]]
