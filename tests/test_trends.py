import itertools
import math

import numpy as np
import pytest

from tlkd import statistics, trends
from tlkd.trends import inner_peak, linear, peak


def planted(gains, seeds=10, images=60, noise=0.05, seed=0):
    """Differences `[place, seed, image]` whose mean at each place is exactly what was planted."""
    random = np.random.default_rng(seed)
    stack = random.normal(0, noise, (len(gains), seeds, images))
    return stack - stack.mean(axis=(1, 2), keepdims=True) + np.asarray(gains)[:, None, None]


def literal_inner(gains):
    """The two differences and the p, seed by seed, flip by flip."""
    places, seeds = gains.shape

    def above(end, signs):
        values = []
        for seed in range(seeds):
            scores = [np.mean([signs[other] * (gains[place, other] - gains[end, other])
                               for other in range(seeds) if other != seed]) for place in range(1, places - 1)]
            chosen = 1 + int(np.argmax(scores))
            values.append(signs[seed] * (gains[chosen, seed] - gains[end, seed]))
        return np.mean(values)

    ps, observed = [], []
    for end in (0, places - 1):
        here = above(end, [1] * seeds)
        flips = [above(end, signs) for signs in itertools.product([1, -1], repeat=seeds)]
        observed.append(here)
        ps.append(min(1.0, 2 * np.mean([each >= here - 1e-12 for each in flips])))
    return observed[0], observed[1], max(ps)


@pytest.mark.parametrize(("gains", "change"), [
    ([0.0, 0.01, 0.02, 0.03], 0.03), ([0.05, 0.05, 0.05], 0.0), ([0.06, 0.01], -0.05),
    ([0.0, 0.0, 0.0, 0.12], 0.108), ([0.01, 0.13, 0.01], 0.0)])
def test_the_trend_is_the_fitted_change_from_the_easiest_to_the_hardest(gains, change):
    table = linear(planted(gains))
    assert table.shape == (10, 60) and table.mean() == pytest.approx(change, abs=1e-12)
    slope = np.polyfit(np.arange(len(gains)), gains, 1)[0]
    assert table.mean() == pytest.approx(slope * (len(gains) - 1), abs=1e-12)


def test_the_trend_equals_its_literal_twin_and_keeps_still_under_a_shift():
    stack = planted([0.1, 0.0, 0.2, 0.05, 0.3])
    literal = np.empty((10, 60))
    for seed, image in itertools.product(range(10), range(60)):
        literal[seed, image] = np.polyfit(np.arange(5), stack[:, seed, image], 1)[0] * 4
    np.testing.assert_allclose(linear(stack), literal, atol=1e-10)
    np.testing.assert_allclose(linear(stack + 7), linear(stack), atol=1e-10)
    np.testing.assert_allclose(linear(stack[::-1]), -linear(stack), atol=1e-10)
    with pytest.raises(ValueError, match="at least 2 places, found 1"):
        linear(stack[:1])


def test_a_trend_of_whole_numbers_is_tested_exactly():
    random = np.random.default_rng(1)
    stack = random.integers(-1, 2, (5, 4, 80)).astype(float)
    assert statistics.image_permutation(linear(stack)) == pytest.approx(
        statistics.image_permutation(np.rint(linear(stack) * 10 / 4)), abs=1e-12)


@pytest.mark.parametrize(("gains", "place"), [
    ([0.01, 0.02, 0.05], 2), ([0.05, 0.02, 0.01], 0), ([0.01, 0.02, 0.12, 0.01], 2), ([0.05, 0.05, 0.05], 0)])
def test_the_peak_and_how_sure_its_place_is(gains, place):
    found = peak(planted(gains))
    assert found.place == place and found.gain == pytest.approx(max(gains))
    assert sum(found.shares) == pytest.approx(1)
    assert found.shares[place] == (max(found.shares) if max(gains) > 0.05 else found.shares[place])


def test_the_shares_equal_a_literal_bootstrap_with_the_same_draws(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 199)
    stack = planted([0.01, 0.02, 0.02], seeds=11, images=13, noise=0.2)
    random = np.random.default_rng(list(b"bootstrap"))
    weights, hits = random.multinomial(11, np.full(11, 1 / 11), size=199), np.zeros(3)
    for resample in range(199):
        rows = np.repeat(np.arange(11), weights[resample])
        columns = random.integers(0, 13, 13, dtype=np.int32)
        hits[np.argmax(stack[:, rows][:, :, columns].mean(axis=(1, 2)))] += 1
    assert peak(stack).shares == pytest.approx(hits / 199)


def test_equal_gains_have_their_peak_at_the_easier_place():
    stack = np.repeat(planted([0.02, 0.05])[1:], 3, axis=0)
    assert peak(stack).place == 0 and peak(stack).shares == (1.0, 0.0, 0.0)
    assert math.isnan(peak(stack[:, :1]).shares[0])


@pytest.mark.parametrize("seed", range(4))
def test_the_test_of_an_inner_peak_equals_its_literal_twin(seed):
    gains = np.random.default_rng(seed).normal(0, 1, (5, 6)) + np.array([0, 0.5, 1.2, 0.4, 0])[:, None]
    assert inner_peak(gains) == pytest.approx(literal_inner(gains), abs=1e-12)


def test_with_one_inner_place_it_is_the_sign_flip_test():
    gains = np.random.default_rng(2).normal(0, 0.3, (3, 9)) + np.array([0, 0.5, 0.3])[:, None]
    first, last, p = inner_peak(gains)
    assert (first, last) == pytest.approx((np.mean(gains[1] - gains[0]), np.mean(gains[1] - gains[2])))
    assert p == pytest.approx(max(statistics.sign_flip(gains[1] - gains[end]) for end in (0, 2))) and 0.01 < p < 0.9


def test_planted_peaks_are_found_inside_and_only_there():
    def p(*gains):
        return inner_peak(planted(gains).mean(axis=2)).p

    assert p(0.05, 0.06, 0.13, 0.05) < 0.01  # the thesis's shape
    assert p(0.01, 0.03, 0.05, 0.08) > 0.9 and p(0.08, 0.05, 0.03, 0.01) > 0.9
    assert p(0.13, 0.05, 0.13) > 0.9
    assert inner_peak(planted([0.05, 0.13]).mean(axis=2)) == pytest.approx((math.nan,) * 3, nan_ok=True)
    assert math.isnan(inner_peak(planted([0.05, 0.13, 0.05], seeds=1).mean(axis=2)).p)


def test_the_test_does_not_mind_what_it_should_not():
    gains = np.random.default_rng(3).normal(0, 1, (5, 8)) + np.array([0, 0.5, 1.2, 0.4, 0])[:, None]
    p = inner_peak(gains).p
    assert inner_peak(gains[:, ::-1]).p == inner_peak(3 * gains).p == p
    assert inner_peak(gains + np.arange(8)).p == pytest.approx(p)  # what a seed adds everywhere
    assert inner_peak(gains[[0, 3, 1, 2, 4]]).p == p  # the order of inner places
    many = np.random.default_rng(4).normal(0, 1, (4, 20)) + np.array([0, 0.6, 0.9, 0])[:, None]
    assert inner_peak(many).p == inner_peak(many).p <= 0.05  # drawn, and drawn the same


@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.0, -10.0), (-10.0, 0.0)])
def test_choosing_the_place_does_not_make_peaks(ends):
    """No inner place exceeds the higher end: at most the level's share of draws may say that one does."""
    random, trials, level = np.random.default_rng(5), 500, 0.05
    means = np.array([ends[0], *[0.0] * 6, ends[1]])[:, None]
    said = np.mean([inner_peak(means + random.normal(0, 1, (8, 9))).p < level for _ in range(trials)])
    assert said <= level + 2 * math.sqrt(level * (1 - level) / trials)
    # The chosen place's own p, without the choice, says it far too often.
    naive = np.mean([max(statistics.sign_flip(row) < level and row.mean() > 0 for row in random.normal(0, 1, (6, 9)))
                     for _ in range(trials)])
    assert naive > 2 * level


def test_bad_stacks_are_refused():
    for bad in (np.ones((2, 3)), np.full((2, 3, 4), np.nan), np.empty((0, 3, 4))):
        with pytest.raises(ValueError, match="finite numbers"):
            trends.peak(bad)
