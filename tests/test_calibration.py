"""A short piece of `proofs/calibration.py`: what the rule must keep, and what a bad rule would not."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tlkd import power, statistics

sys.path.insert(0, str(Path(__file__).parent.parent / "proofs"))
import calibration
from common import limits

STUDIES, SEEDS, IMAGES = 150, 6, 100
BITES = calibration.NULLS[0]  # two predictors that are equal in the population; each has images of its own


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What no word rests on is left out."""
    monkeypatch.setattr(statistics, "needed", lambda *_: power.Needed(None, None))


def by_seeds_alone(differences, smallest):
    """The planted bad rule: the words of an interval and a test that know of seeds only."""
    low, high = statistics.t_interval(differences.mean(axis=1), 0.05)
    if (low > 0 or high < 0) and statistics.sign_flip(differences.mean(axis=1)) < 0.05:
        return "winner"
    return "refuted" if high < smallest else "inconclusive"


def by_the_rule(differences, smallest):
    verdict = statistics.verdicts({"": differences}, smallest, 0.05)[""]
    return "winner" if verdict.word == "supported" or calibration._words([verdict])[1] else verdict.word


def errors(rule, word, gain, null=BITES):
    random = np.random.default_rng(0)
    tables = [null.tables(SEEDS, IMAGES, random, gain)["0"] for _ in range(STUDIES)]
    return sum(rule(each, gain or 0.1) == word for each in tables)


def test_a_null_that_bites_names_winners_by_seeds_alone_and_none_by_the_rule():
    assert limits(errors(by_seeds_alone, "winner", 0.0), STUDIES)[0] > 0.3
    assert limits(errors(by_the_rule, "winner", 0.0), STUDIES)[0] <= 0.05


def test_a_gain_that_is_there_is_refuted_by_seeds_alone_and_not_by_the_rule():
    assert limits(errors(by_seeds_alone, "refuted", 0.1), STUDIES)[0] > 0.05
    assert limits(errors(by_the_rule, "refuted", 0.1), STUDIES)[0] <= 0.05


def test_the_null_is_one_and_what_is_planted_is_planted():
    random = np.random.default_rng(1)
    for gain in (0.0, 0.1):
        gains = [BITES.tables(2, 4000, random, gain)["0"].mean() for _ in range(30)]
        assert np.mean(gains) == pytest.approx(gain, abs=4 * np.std(gains) / np.sqrt(30))


def test_a_rate_that_is_too_high_is_told():
    rates = calibration.Rates()
    for study in range(100):
        rates.add("good", "6 seeds", study < 6)
        rates.add("bad", "6 seeds", study < 12)
    (line,) = rates.broken()
    assert line.startswith("bad, 6 seeds: 12 of 100, lower limit 0.0")
