"""A short piece of `proofs/calibration.py`: what the rule must keep, and what a bad rule would not."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tlkd import comparison, contrasts, power, statistics

sys.path.insert(0, str(Path(__file__).parent.parent / "proofs"))
import calibration
import nulls
from common import limits
from nulls import NULLS

STUDIES, SEEDS, IMAGES = 150, 6, 100
BITES = NULLS[0]  # two predictors that are equal in the population; each has images of its own


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
    return "winner" if calibration.named([verdict]) else verdict.word


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


def test_two_predictors_that_are_equal_are_as_good_as_equal_to_compare_unless_their_difference_is_planted():
    spec, words = calibration.study(0.2), []
    labels, random = np.arange(2000) % 2, np.random.default_rng(0)
    for gain in (0.0, 0.0, 0.3):
        answers = NULLS[3].answers(4, SEEDS, 2000, random)
        answers[3] |= NULLS[3].lucky(1, 2000, gain, random)[0]
        groups = [calibration.group(spec.arms[number % 2], "clean", np.where(each, labels, 1 - labels), labels,
                                    np.ones((SEEDS, 1))) for number, each in enumerate(answers)]
        words.append(calibration.compared(spec, labels, [groups[:2], groups[2:]]))
    assert words[:2] == [comparison.ALIKE] * 2
    assert words[2] == comparison.LARGER


def test_a_lead_is_named_either_way():
    early, late = (np.where(np.arange(1, 31) >= when, 0.8, 0.5) * np.ones((SEEDS, 1)) for when in (5, 15))
    spec = calibration.study()
    for before, after in ((late, early), (early, late)):
        groups = [calibration.group(arm, "clean", np.zeros((SEEDS, 2), int), np.arange(2), each)
                  for arm, each in zip(spec.arms, (before, after), strict=False)]
        speed = contrasts._speeds(spec, contrasts.pairs_with_tl(spec, groups))["tl_kd", "clean"]
        assert calibration.apart(speed)
        assert not calibration.apart(contrasts._speeds(spec, [(groups[0], groups[0])]).popitem()[1])


def test_the_lead_of_rising_curves_is_that_of_the_threshold():
    assert nulls.true_lead(2.0, 0.5, 4000) == pytest.approx(2.0, abs=0.1)
    assert 0 < nulls.true_lead(2.0, 0.8, 4000) < 1.9  # near the top many never arrive, and lead by nothing


def test_a_cell_that_is_too_high_is_looked_at_again_with_fresh_studies_and_told():
    rates = calibration.Rates()
    for study in range(100):
        rates.add((calibration.BITES, "good", "6 seeds"), study < 6)
        rates.add((calibration.BITES, "bad", "6 seeds"), study < 12)
        rates.add((calibration.NAIVE, "described", "6 seeds"), study < 50)
        rates.add((calibration.POOLED, calibration.ANY, "6 seeds"), study < 50)
    assert rates.over == [(calibration.BITES, "bad", "6 seeds")]
    assert rates.words(rates.over[0]).startswith("12 of 100, lower limit 0.0")

    part = calibration.Part("6 seeds", 400, lambda random: {(calibration.BITES, "often"): random.random() < 0.2})
    first, same, fresh = (part.counted((0, time, 0)).counts for time in (1, 1, 2))
    assert first == same != fresh
    again = calibration.Rates(fresh)
    assert again.over
    assert "again: " in calibration.twice(calibration.Rates(first), again)
