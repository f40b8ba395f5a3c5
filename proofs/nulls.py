"""Laws by which studies are drawn that are equal in the population, for `calibration.py`; not a proof by itself."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tlkd import contrasts

Floats = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True)
class Null:
    """Predictors whose answers are right with chances of their own for each image, by a logistic law.

    `hardness` is what images share between the arms, `own` what each arm alone finds hard (sd on the logistic scale),
    `seed` the sd of a seed's own shift in an arm, `easy` the mean.
    """

    name: str
    hardness: float
    own: float
    seed: float
    easy: float
    contrasts: int = 1

    def chances(self, arms: int, seeds: int, images: int, random: Random) -> Floats:
        """Chances of being right `[arm, seed, image]`."""
        shape = self.hardness * random.normal(size=images) + self.own * random.normal(size=(arms, 1, images))
        return np.asarray(1 / (1 + np.exp(-(self.easy + shape + self.seed * random.normal(size=(arms, seeds, 1))))))

    def answers(self, arms: int, seeds: int, images: int, random: Random) -> NDArray[np.bool_]:
        """Who is right, `[arm, seed, image]`."""
        chances = self.chances(arms, seeds, images, random)
        return np.asarray(random.random(chances.shape) < chances)

    def lucky(self, arms: int, images: int, gain: float, random: Random) -> NDArray[np.bool_]:
        """Images `[arm, 1, image]` that, got right, make an arm better by `gain` in the population."""
        return np.asarray(random.random((arms, 1, images)) < gain / (1 - self.accuracy))

    def tables(self, seeds: int, images: int, random: Random, gain: float = 0.0) -> dict[str, Floats]:
        """Differences `[seed, image]` of each arm from the first; `gain` is planted in whole images of the others."""
        correct = self.answers(1 + self.contrasts, seeds, images, random)
        if gain:
            correct[1:] |= self.lucky(self.contrasts, images, gain, random)
        return {str(number): row * 1.0 - correct[0] for number, row in enumerate(correct[1:])}

    @property
    def accuracy(self) -> float:
        """Accuracy in the population, by Gauss and Hermite's quadrature."""
        points, weights = np.polynomial.hermite_e.hermegauss(64)
        spread = np.sqrt(self.hardness**2 + self.own**2 + self.seed**2)
        return float(weights @ (1 / (1 + np.exp(-(self.easy + spread * points)))) / weights.sum())


NULLS = (
    Null("own images, alike in all seeds", 0.0, 8.0, 0.0, 2.0),
    Null("half shared hardness", 4.0, 4.0, 0.0, 2.0),
    Null("own images and own seeds", 2.0, 1.5, 0.15, 1.0),
    Null("seeds alone", 2.0, 0.0, 0.3, 1.0),
    Null("accuracy near 1", 6.0, 3.0, 0.2, 14.0),
    Null("a family of 3", 4.0, 4.0, 0.1, 2.0, contrasts=3),
)


def shares(seeds: int, images: int, random: Random) -> Floats:
    """Differences of foreground shares `[seed, image]`, symmetric about 0: an image's own, a seed's own, and a rest."""
    middle = random.normal(0, 1, images)
    sides = [middle + random.normal(0, 0.4, images) + random.normal(0, 0.1, (seeds, 1))
             + random.normal(0, 0.2, (seeds, images)) for _ in range(2)]
    return np.asarray(np.subtract(*(1 / (1 + np.exp(-side)) for side in sides)))


# --- curves -----------------------------------------------------------------------------------------------------------


HORIZON = 30


def steps(seeds: int, lead: float, spread: float, late: float, random: Random) -> Floats:
    """Curves `[seed, epoch]` that leap over .8 at about epoch 14, `lead` epochs earlier; a share `late` never does."""
    arrive = np.rint(14 - lead + spread * random.normal(size=seeds))
    arrive[random.random(seeds) < late] = 99
    return np.where(np.arange(1, HORIZON + 1) >= arrive[:, None], 0.805, 0.5)


def rising(seeds: int, lead: float, random: Random) -> Floats:
    """Curves `[seed, epoch]` that rise to about .8 and tremble, so that each percent is reached at its own time."""
    mean = 0.8 * (1 - np.exp(-(np.arange(1, HORIZON + 1) + lead) / 6))
    return np.asarray(mean + 0.01 * random.normal(size=(seeds, 1)) + 0.01 * random.normal(size=(seeds, HORIZON)))


@cache
def true_lead(lead: float, threshold: float, runs: int = 40_000) -> float:
    """By how many epochs `rising` curves with a lead reach an accuracy earlier: the restricted mean in the population.

    The same draws for all thresholds; off by about .03 epochs.
    """
    means = []
    for each in (0.0, lead):
        reached = rising(runs, each, np.random.default_rng(1)) >= threshold - 1e-7
        means.append(np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, HORIZON).mean())
    return float(means[0] - means[1])


def near_the_primary(curves: Floats) -> None:
    """Leave out thresholds that only describe: around the one that a report takes by TL's curves a few are enough."""
    best = np.sort(curves.max(axis=1))[::-1]
    middle = int(100 * best[(len(best) + 1) // 2 - 1] + 1e-6)
    contrasts.THRESHOLDS = tuple(step / 100 for step in (middle - 1, middle, middle + 1))  # type: ignore[assignment]
