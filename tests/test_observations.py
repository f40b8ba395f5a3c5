"""Paired comparisons of images: against literal twins, R's published interval, and what must not change them."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tlkd import observations
from tlkd.observations import NORMAL, QUESTIONS, hodges_lehmann, observe, paired, rank_biserial, signed_rank

# Hollander and Wolfe's depression data (Hamilton factor IV), R's example of wilcox.test: estimate -0.46, W = 5.
BEFORE = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
AFTER = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]


def literal_interval(values, level):
    """The shifts that the signed-rank test, over all signs, does not reject: the ends of the Walsh averages kept."""
    n = len(values)
    sums = [sum(rank for rank, sign in zip(range(1, n + 1), signs, strict=True) if sign)
            for signs in itertools.product([0, 1], repeat=n)]
    walsh = sorted((values[i] + values[j]) / 2 for i in range(n) for j in range(i, n))
    chances = {k: np.mean(np.array(sums) <= k - 1) for k in range(1, len(walsh) // 2 + 1)}
    skipped = max((k for k, chance in chances.items() if chance <= level / 2), default=0)
    return (walsh[skipped - 1], walsh[-skipped]) if skipped else (math.nan, math.nan)


def test_the_depression_data_give_the_published_numbers():
    found = paired(BEFORE, AFTER, 0.05)
    assert found.p == pytest.approx(0.03906, abs=5e-6) and found.method == "exact"
    assert found.shift == pytest.approx(-0.46) and (found.low, found.high) == pytest.approx((-0.786, -0.01), abs=5e-4)
    assert (found.n, found.rises, found.falls) == (9, 2, 7)
    assert found.rank_biserial == pytest.approx((5 - 40) / 45)
    assert (found.before, found.after) == (1.68, 1.06)


@pytest.mark.parametrize("n", [2, 5, 6, 9, 12])
@pytest.mark.parametrize("level", [0.05, 0.0625, 0.2])  # .0625: what five images reach to the last bit
def test_the_interval_equals_its_literal_twin(n, level):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    _, low, high = hodges_lehmann(values, level)
    assert (low, high) == pytest.approx(literal_interval(values.tolist(), level), nan_ok=True)


def test_the_interval_leaves_0_out_just_where_the_test_rejects():
    random = np.random.default_rng(0)
    for _ in range(300):
        values = random.normal(0.5, 1, int(random.integers(6, 30)))
        _, low, high = hodges_lehmann(values, 0.05)
        assert (low > 0 or high < 0) == (stats.wilcoxon(values, method="exact").pvalue < 0.05)


def test_the_normal_interval_meets_the_exact_one(monkeypatch):
    values = np.random.default_rng(1).normal(0.1, 1, 150)
    exact = hodges_lehmann(values, 0.05)
    monkeypatch.setattr(observations, "EXACT_IMAGES", 10)
    observations._outside.cache_clear()
    assert hodges_lehmann(values, 0.05) == pytest.approx(exact, abs=0.005)
    observations._outside.cache_clear()


def test_many_differences_are_thinned_without_harm(monkeypatch):
    values = np.random.default_rng(2).normal(0.1, 1, 800)
    whole = hodges_lehmann(values, 0.05)
    monkeypatch.setattr(observations, "WALSH_IMAGES", 400)
    assert hodges_lehmann(values, 0.05) == pytest.approx(whole, abs=0.005)


@pytest.mark.parametrize("ties", [False, True])
def test_the_normal_p_is_scipys(ties):
    values = np.random.default_rng(3).normal(0.05, 1, 400)
    values = np.round(values, 1) if ties else values
    p, method = signed_rank(values)
    theirs = stats.wilcoxon(values[values != 0], method="approx", correction=False).pvalue
    assert method == NORMAL and p == pytest.approx(theirs, rel=1e-9)


def test_tied_sizes_stay_exact_beyond_twenty_images():
    values = np.random.default_rng(4).integers(-3, 5, 60).astype(float)
    p, method = signed_rank(values)
    kept = values[values != 0]
    random = np.random.default_rng(0)
    ranks = stats.rankdata(np.abs(kept))
    drawn = np.abs(random.choice([-1, 1], (200_000, kept.size)) @ ranks)
    assert method == "exact"
    assert p == pytest.approx(np.mean(drawn >= abs((np.sign(kept) * ranks).sum()) - 1e-9), abs=0.003)


def test_images_without_a_number_are_left_out_and_none_says_nothing():
    some = paired([1.0, math.nan, 3.0], [2.0, 5.0, math.nan], 0.05)
    assert (some.n, some.rises, some.p) == (1, 1, 1.0) and math.isnan(some.low)
    none = paired([math.nan], [1.0], 0.05)
    assert (none.n, none.p, none.method) == (0, 1.0, "no image") and math.isnan(none.shift)
    same = paired([1.0, 2.0], [1.0, 2.0], 0.05)
    assert (same.p, same.method, same.rank_biserial, same.rises, same.falls) == (1.0, "no image differs", 0.0, 0, 0)


def test_exchanging_the_sides_turns_every_sign():
    one, two = paired(BEFORE, AFTER, 0.05), paired(AFTER, BEFORE, 0.05)
    assert (two.p, two.shift, two.low, two.high) == pytest.approx((one.p, -one.shift, -one.high, -one.low))
    assert (two.rises, two.falls, two.rank_biserial) == (one.falls, one.rises, -one.rank_biserial)


def test_rank_biserial_is_what_ranks_say():
    assert rank_biserial([1, 2, 3]) == 1 and rank_biserial([-1, -2, 0]) == -1
    assert rank_biserial([-1, 2, 3]) == pytest.approx((5 - 1) / 6)
    assert rank_biserial([0, 0]) == 0


def test_the_questions_are_the_theses_five_and_two_beside():
    assert [question.number for question in QUESTIONS] == [1, 1, 2, 3, 4, 5, None, None]
    assert [question.two_scales for question in QUESTIONS] == [False, False, True, True, True, True, True, False]
    assert QUESTIONS[0].words("TL", "X") == "foreground pos against |neg|, TL"
    assert QUESTIONS[1].words("TL", "X") == "foreground pos against |neg|, X"
    assert QUESTIONS[2].words("TL", "X") == "foreground diff (A, B), TL against X"


def test_observations_go_by_seed_and_over_seeds():
    random = np.random.default_rng(5)
    tl = {name: random.uniform(1, 2, (4, 12)) * sign for name, sign in (
        ("fg_pos", 1), ("fg_neg", -1), ("bg_pos", 1), ("bg_neg", -1))}
    arm = {name: values * 3 for name, values in tl.items()}
    for sums in (tl, arm):
        sums |= {f"{side}_diff": sums[f"{side}_pos"] + sums[f"{side}_neg"] for side in ("fg", "bg")}
    found = dict(zip(QUESTIONS, observe(tl, arm, 0.05), strict=True))
    for question, each in found.items():
        assert each.question == question and len(each.by_seed) == 4 and each.over_seeds.n == 12
    # A network of thrice the scale: all raw sums rise, the share stays as it is.
    pos, neg, share = found[QUESTIONS[6]], found[QUESTIONS[5]], found[QUESTIONS[7]]
    assert pos.over_seeds.rises == neg.over_seeds.rises == 12 and pos.p_seed == 2 / 16
    assert pos.over_seeds.shift == pytest.approx(paired(tl["fg_pos"].mean(0), arm["fg_pos"].mean(0), 0.05).shift)
    assert pos.by_seed[2] == paired(tl["fg_pos"][2], arm["fg_pos"][2], 0.05)
    assert abs(share.over_seeds.shift) < 1e-12 and neg.over_seeds.before > 0
