"""What a condition makes of the training split for one seed: which samples, under which labels, in which variants.

Everything is drawn by name (seed, sample id, and the epoch where it is drawn anew), so that the arms of one seed share
it, and so that what a small fraction drops, corrupts or mislabels, a larger one does too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkd import seeding
from tlkd.conditions import Condition, Corruption, LabelNoise
from tlkd.errors import BadInput, nearest

Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Draw:
    """One seed's training samples under a condition; every array is in the order of `samples`."""

    condition: Condition
    seed: int
    classes: int
    samples: Ints  # [kept]: numbers in the training split, ascending
    keys: Keys  # [kept]
    given: Ints  # [kept]: the labels that the data set gives
    taken_for: Ints  # [class]: what a class is taken for where `label_noise.to` maps classes, -1 where not mapped

    def labels(self, epoch: int) -> Ints:
        """The labels `[kept]` that are learnt in an epoch."""
        noise = self.condition.label_noise
        if noise is None or noise.fraction == 0:
            return self.given
        return self._wrong(noise, ("label noise", self.seed, epoch)) if noise.redraw == "epoch" else self._labels

    def variants(self, epoch: int) -> Ints:
        """The corruption's variant `[kept]` that each sample is seen in, 0 for uncorrupted."""
        corruption = self.condition.corruption
        if corruption is None or corruption.fraction == 0:
            return np.zeros(len(self.samples), np.int64)
        if corruption.redraw == "epoch":
            return self._corrupted(corruption, ("corrupted", self.seed, epoch))
        return self._variants

    def stored(self, epochs: int) -> dict[str, NDArray[Any]]:
        """The drawn indices as they are kept beside a run: `samples`, and where drawn `labels` and `variants`.

        `[kept]` where drawn once, `[epoch, kept]` where drawn anew.
        """
        found: dict[str, NDArray[Any]] = {"samples": self.samples}
        for name, part, of_epoch in (("labels", self.condition.label_noise, self.labels),
                                     ("variants", self.condition.corruption, self.variants)):
            if part is not None and part.fraction > 0:
                drawn = [of_epoch(epoch) for epoch in range(1, 1 + (epochs if part.redraw == "epoch" else 1))]
                small = np.min_scalar_type(max(int(each.max(initial=0)) for each in drawn))
                found[name] = np.array(drawn if part.redraw == "epoch" else drawn[0], small)
        return found

    @cached_property
    def _labels(self) -> Ints:
        assert self.condition.label_noise is not None
        return self._wrong(self.condition.label_noise, ("label noise", self.seed))

    @cached_property
    def _variants(self) -> Ints:
        assert self.condition.corruption is not None
        return self._corrupted(self.condition.corruption, ("corrupted", self.seed))

    def _wrong(self, noise: LabelNoise, name: tuple[seeding.Name, ...]) -> Ints:
        drawn = seeding.uniforms(self.keys, 2, *name)
        mapped = isinstance(noise.to, dict)
        among = self.taken_for[self.given] >= 0 if mapped else np.ones(len(self.given), bool)
        chosen = _first(drawn[:, 0], among, noise.fraction, anew=noise.redraw == "epoch")
        if mapped:
            other = self.taken_for[self.given]
        elif noise.to == "different":
            other = (self.given + 1 + (drawn[:, 1] * (self.classes - 1)).astype(np.int64)) % self.classes
        else:
            other = (drawn[:, 1] * self.classes).astype(np.int64)
        return np.where(chosen, other, self.given)

    def _corrupted(self, corruption: Corruption, name: tuple[seeding.Name, ...]) -> Ints:
        drawn = seeding.uniforms(self.keys, 2, *name)
        everyone = np.ones(len(self.samples), bool)
        chosen = _first(drawn[:, 0], everyone, corruption.fraction, anew=corruption.redraw == "epoch")
        return np.where(chosen, 1 + (drawn[:, 1] * corruption.variants).astype(np.int64), 0)


def draw(condition: Condition, seed: int, classes: Sequence[str], labels: Ints, keys: Keys) -> Draw:
    """Draw one seed's training samples under a condition; `labels` and `keys` are `[sample]` of the training split.

    Raises `BadInput` where the condition does not fit the classes, or leaves one of them empty.
    """
    where = f"conditions.{condition.name}"
    samples = _kept(condition.train_fraction, f"{where}.train_fraction", seed, classes, labels, keys)
    return Draw(condition, seed, len(classes), samples, keys[samples], labels[samples],
                _taken_for(condition.label_noise, f"{where}.label_noise", classes))


def whole(labels: Ints) -> Draw:
    """All samples of a split, as they are."""
    everyone = np.arange(len(labels), dtype=np.int64)
    nothing = np.full(int(labels.max(initial=0)) + 1, -1, np.int64)
    return Draw(Condition(name="clean"), 0, len(nothing), everyone, everyone.astype(np.uint64), labels, nothing)


def _kept(fraction: float, where: str, seed: int, classes: Sequence[str], labels: Ints, keys: Keys) -> Ints:
    """A part of every class alike, `fraction` of it to the nearest whole sample: nested as the fraction grows."""
    if fraction == 1:
        return np.arange(len(labels), dtype=np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    fewest = int(counts.argmin())
    if _round(fraction * int(counts[fewest])) == 0:
        raise BadInput(f"{where}: found {fraction:g}, which leaves none of the {counts[fewest]} training images of "
                       f"class {classes[fewest]!r}; allowed: at least {_least(int(counts[fewest])):g}")
    places = seeding.uniforms(keys, 1, "kept", seed)[:, 0]
    kept = []
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        kept.append(members[np.argsort(places[members], kind="stable")][:_round(fraction * len(members))])
    return np.sort(np.concatenate(kept)).astype(np.int64)


def _least(count: int) -> float:
    """The smallest fraction that leaves one of so many, to four digits upwards."""
    digits = 3 + len(str(count))  # after the point, of 0.5 / count
    return math.ceil(0.5 / count * 10**digits) / 10**digits if count else 1


def _first(places: NDArray[np.float64], among: NDArray[np.bool_], fraction: float, anew: bool) -> NDArray[np.bool_]:
    """Which samples a fraction takes: as many as it says where drawn once, each with this chance where drawn anew."""
    if anew:
        return among & (places < fraction)
    members = np.flatnonzero(among)
    chosen = np.zeros(len(places), bool)
    chosen[members[np.argsort(places[members], kind="stable")][:_round(fraction * len(members))]] = True
    return chosen


def _taken_for(noise: LabelNoise | None, where: str, classes: Sequence[str]) -> Ints:
    taken_for = np.full(len(classes), -1, np.int64)
    if noise is None or noise.fraction == 0:
        return taken_for
    if len(classes) < 2:
        raise BadInput(f"{where}: wrong labels need at least 2 classes; found {len(classes)}")
    if isinstance(noise.to, dict):
        for pair in noise.to.items():
            for name in pair:
                if name not in classes:
                    raise BadInput(f"{where}.to: there is no class {name!r}{nearest(name, list(classes))}; allowed: "
                                   f"{', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}")
            taken_for[classes.index(pair[0])] = classes.index(pair[1])
    return taken_for


def _round(number: float) -> int:
    return int(number + 0.5)
