import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tlkd import power, statistics
from tlkd.statistics import (
    Needed,
    holm,
    image_permutation,
    interval,
    mcnemar,
    needed,
    sign_flip,
    t_interval,
    verdicts,
    wilcoxon,
)

# Columns of the thesis's table 6.3, airplane to truck.
FOREGROUND_POS = {"tl": [5532, 12010, 12293, 21465, 18192, 19277, 11510, 11404, 14029, 17514],
                  "kd": [5071, 12100, 10776, 43021, 20361, 27104, 13361, 14054, 15519, 17247]}
FOREGROUND_NEG = {"tl": [-5248, -8869, -10611, -16568, -15582, -16120, -8829, -9848, -11110, -12479],
                  "kd": [-3562, -6698, -7850, -30318, -15231, -17838, -9659, -11173, -10471, -11066]}
BACKGROUND_POS = {"tl": [18587, 13821, 30261, 3138, 7269, 9059, 8131, 8003, 10825, 10968],
                  "kd": [12327, 9726, 21938, 4802, 8670, 6302, 9657, 8272, 7560, 9585]}
FOREGROUND_DIFF = {"tl": [284, 3141, 1682, 4897, 2610, 3157, 2681, 1556, 2919, 5035],
                   "kd": [1509, 5402, 2926, 12703, 5130, 9266, 3702, 2881, 5048, 6181]}
BACKGROUND_DIFF = {"tl": [-816, -297, 5385, 27, 619, 1041, 500, 211, 2307, 1374],
                   "kd": [166, 390, 5063, -375, 912, 630, 1752, 796, 1841, 2000]}

seeds_of_differences = st.lists(st.integers(-50, 50), min_size=1, max_size=10)


@pytest.fixture
def quick(monkeypatch):
    """Fewer resamples, for tests that judge hundreds of times."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)


def judge(differences, smallest_gain, level):
    """The verdict on a family of one."""
    return verdicts({"": differences}, smallest_gain, level)[""]


def literal_flips(values):
    """All signs, one after the other."""
    observed = abs(math.fsum(values))
    signs = list(itertools.product([1, -1], repeat=len(values)))
    tolerance = 1e-9 * math.fsum(abs(value) for value in values)
    hits = [abs(math.fsum(s * v for s, v in zip(sign, values, strict=True))) >= observed - tolerance for sign in signs]
    return sum(hits) / len(hits)


def images(random, seeds, count, chances, effects=(0.0, 0.0)):
    """Differences -1, 0, 1 `[seed, image]` with chances of better and worse, and sd of image and seed effects."""
    shift = random.normal(0, effects[0], count) + random.normal(0, effects[1], (seeds, 1))
    uniform = random.random((seeds, count))
    better, worse = (np.clip(chance + sign * shift, 0, 1) for chance, sign in zip(chances, (1, -1), strict=True))
    return (uniform < better).astype(float) - (uniform > 1 - worse)


# Tests over seeds


@given(seeds_of_differences)
def test_sign_flip_equals_its_literal_twin(values):
    assert sign_flip(values) == pytest.approx(literal_flips(values), abs=1e-12)


def test_sign_flip_equals_scipys_exact_permutation_test():
    values = np.random.default_rng(0).normal(0.4, 1, 9)
    theirs = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(values) == pytest.approx(theirs.pvalue, abs=1e-12)


@given(seeds_of_differences, st.randoms(), st.floats(1e-6, 1e6))
def test_sign_flip_is_bounded_and_indifferent_to_sign_order_and_scale(values, random, scale):
    p = sign_flip(values)
    shuffled = random.sample(values, len(values))
    assert 2.0 ** (1 - len(values)) <= p <= 1
    assert p == sign_flip(shuffled) == sign_flip([-value for value in values])
    assert p == sign_flip([value * scale for value in values])


@pytest.mark.parametrize("seeds", [1, 2, 3, 6, 10, 20])
def test_the_smallest_p_over_seeds_is_what_the_design_says(seeds):
    assert sign_flip(np.ones(seeds)) == 2.0 ** (1 - seeds)


def test_ties_count_although_their_last_bits_differ():
    # 0.1 + 0.2 - 0.3 is 5.6e-17, not 0: without a tolerance the tie with the observed sum would be lost.
    assert sign_flip([0.3, -0.1, -0.2]) == 1
    assert sign_flip([0.1, 0.2, 0.3]) == 0.25


def test_all_differences_zero_gives_one():
    assert sign_flip([0, 0, 0]) == image_permutation(np.zeros((3, 5))) == wilcoxon([1, 2], [1, 2]) == 1


def test_many_seeds_are_flipped_at_random_and_agree_with_the_normal_law():
    values = np.random.default_rng(1).normal(0.25, 1, 60)
    p = sign_flip(values)
    normal = 2 * stats.norm.sf(abs(values.sum()) / math.sqrt((values**2).sum()))
    assert p == sign_flip(values)
    assert p == pytest.approx(normal, abs=0.01)
    assert sign_flip(np.ones(40)) == 1 / 100_000


def rejections(test, level=0.05, trials=1000):
    random = np.random.default_rng(2)
    return np.mean([test(random.normal(0, 1, 8)) < level for _ in range(trials)])


def test_sign_flip_keeps_its_level_and_a_planted_one_sided_p_would_not():
    margin = 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert 0.05 - 2 * margin < rejections(sign_flip) <= 0.05 + margin
    assert rejections(lambda values: sign_flip(values) / 2) > 0.05 + margin


# Tests over images


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(-1, 1), min_size=9, max_size=9), min_size=1, max_size=4))
def test_the_exact_image_test_equals_its_literal_twin(differences):
    assert image_permutation(differences) == pytest.approx(literal_flips(np.sum(differences, axis=0)), abs=1e-9)


@pytest.mark.parametrize("wins", [5000, 5010, 5100, 5300, 6000])
def test_the_exact_image_test_equals_the_binomial_where_all_images_weigh_the_same(wins):
    values = np.ones((1, 10_000))
    values[0, wins:] = -1
    assert image_permutation(values) == pytest.approx(max(stats.binomtest(wins, 10_000).pvalue, 1e-10), abs=2e-12)


def test_the_monte_carlo_image_test_agrees_with_enumeration_and_with_explicit_flips():
    values = np.random.default_rng(3).normal(0.15, 1, (3, 12))
    values[:, 7:] = values[:, :1]  # images of one magnitude share a binomial draw
    p = image_permutation(values)
    sums = values.sum(axis=0)
    flipped = np.random.default_rng(4).choice([-1.0, 1.0], (50_000, 12)) @ sums
    explicit = np.mean(np.abs(flipped) >= abs(sums.sum()) * (1 - 1e-9))
    assert 0.05 < p < 0.95
    assert p == image_permutation(values)
    assert p == pytest.approx(literal_flips(sums), abs=0.006)  # 4 sd of 99,999 draws
    assert p == pytest.approx(explicit, abs=0.012)


def test_the_image_test_never_says_zero():
    assert image_permutation(np.ones((2, 500))) == statistics.SMALLEST_EXACT_P
    assert image_permutation(np.full((1, 500), 0.5)) == statistics.SMALLEST_EXACT_P
    assert image_permutation(1 + np.random.default_rng(7).random((1, 500))) == 1 / 100_000


def test_sums_that_are_not_whole_are_enumerated_for_few_images_and_drawn_for_many():
    few = np.random.default_rng(8).normal(0.05, 0.1, (3, 12))
    assert image_permutation(few) == sign_flip(few.sum(axis=0)) == pytest.approx(literal_flips(few.sum(axis=0)))
    many = np.random.default_rng(9).normal(0.01, 0.1, (3, 60))
    signs = np.random.default_rng(0).choice([-1, 1], (100_000, 60))
    p = np.mean(np.abs(signs @ many.sum(axis=0)) >= abs(many.sum()))
    assert image_permutation(many) == pytest.approx(p, abs=0.006) and 0.01 < p < 0.9


def test_sums_of_one_unit_are_tested_exactly_and_others_by_monte_carlo():
    random = np.random.default_rng(5)
    differences = images(random, 4, 300, (0.10, 0.06))
    p = image_permutation(differences)
    assert image_permutation(differences * 0.37) == pytest.approx(p, abs=1e-12)
    means = np.mean([differences, images(random, 4, 300, (0.10, 0.06)), images(random, 4, 300, (0.1, 0.06))], axis=0)
    assert image_permutation(means) == pytest.approx(image_permutation(np.rint(3 * means)), abs=1e-12)
    assert image_permutation(differences * random.uniform(0.999, 1.001, 300)) == pytest.approx(p, abs=0.01)


# Intervals


def literal_half_width(table, level):
    """Cell by cell: the mean squares of a two-way layout without replication, and the rule of `spreads`."""
    seeds, images = table.shape
    by_seed, by_image, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    rest = sum((table[s, i] - by_seed[s] - by_image[i] + mean) ** 2 for s in range(seeds) for i in range(images))
    rest /= (seeds - 1) * (images - 1) * seeds * images
    unit = ((by_image - mean) ** 4).sum() / ((by_image - mean) ** 2).sum()
    over_seeds = stats.t.ppf(1 - level / 2, seeds - 1) ** 2 * by_seed.var(ddof=1) / seeds
    quantile = stats.t.ppf(1 - level / 2, images - 1) ** 2
    over_images = quantile * (by_image.var(ddof=1) / images + 3 * unit / images**2)
    return math.sqrt(max(over_seeds + over_images - quantile * rest, over_seeds, over_images))


@pytest.mark.parametrize(("seeds", "count"), [(2, 40), (9, 30), (10, 60), (12, 7)])
@pytest.mark.parametrize("effects", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_an_interval_equals_its_literal_twin_and_says_what_it_covers(seeds, count, effects):
    random = np.random.default_rng(6)
    differences = (0.1 + effects[0] * random.normal(0, 1, (seeds, 1)) + effects[1] * random.normal(0, 1, count)
                   + random.normal(0, 1, (seeds, count)))
    found = interval(differences, 0.1, given="one teacher")
    assert found.high - differences.mean() == pytest.approx(literal_half_width(differences, 0.1))
    assert found.low + found.high == pytest.approx(2 * differences.mean())
    assert found.covers == "seeds and test images, given one teacher"


def test_one_image_says_nothing_of_others():
    differences = np.random.default_rng(6).normal(0.1, 1, (5, 1))
    theirs = stats.ttest_1samp(differences[:, 0], 0).confidence_interval(0.95)
    found = interval(differences, 0.05)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.covers == "seeds, on this one test set"


def test_one_seed_gets_no_interval_and_no_claim():
    verdict = judge(np.ones((1, 100)), 0.005, 0.05)
    assert math.isnan(verdict.interval.low) and verdict.interval.method == "one seed: no interval"
    assert (verdict.word, verdict.p_seed) == ("inconclusive", 1)
    assert verdict.needed == Needed(None, None) and math.isnan(verdict.effect)


def test_tables_share_their_draws():
    random = np.random.default_rng(7)
    tables = np.array([images(random, 10, 300, (0.2, 0.15), (0.1, 0.02)) for _ in range(3)])
    means = statistics.resampled(tables)
    assert means.shape == (3, statistics.RESAMPLES)
    np.testing.assert_allclose(statistics.resampled(tables[:1] + tables[1:2])[0], means[0] + means[1], atol=1e-12)
    few = images(random, 3, 300, (0.2, 0.15))
    found = statistics.intervals({"a": tables[0], "few": few}, 0.05, {"a": "one teacher"})
    assert found == {"a": interval(tables[0], 0.05, "one teacher"), "few": interval(few, 0.05)}
    assert set(statistics.resampled_by_name({"a": tables[0], "few": few})) == {"a"}


def test_a_shared_draw_equals_its_literal_twin(quick):
    tables = np.random.default_rng(3).normal(size=(2, 11, 13))
    random = np.random.default_rng(list(b"bootstrap"))
    weights = random.multinomial(11, np.full(11, 1 / 11), size=statistics.RESAMPLES)
    for resample in range(3):
        rows = np.repeat(np.arange(11), weights[resample])
        columns = random.integers(0, 13, 13, dtype=np.int32)
        literal = tables[:, rows][:, :, columns].mean(axis=(1, 2))
        np.testing.assert_allclose(statistics.resampled(tables)[:, resample], literal, atol=1e-12)


def test_an_interval_sees_either_chance_alone():
    seeds_vary = np.repeat(np.random.default_rng(9).normal(0, 1, (10, 1)), 30, axis=1)
    images_vary = np.repeat(np.random.default_rng(10).normal(0, 1, (1, 900)), 10, axis=0)
    for table, half in ((seeds_vary, 2.262 * seeds_vary[:, 0].std(ddof=1) / math.sqrt(10)),
                        (images_vary, 1.963 * images_vary[0].std(ddof=1) / 30)):
        found = interval(table, 0.05)
        assert found.high - found.low == pytest.approx(2 * half, rel=0.01)


@pytest.mark.parametrize(("seeds", "effects", "most"), [(12, (0.03, 0.3), 1.0), (3, (0.05, 0.3), 1.0),
                                                        (6, (0.0, 0.3), 0.95), (12, (0.1, 0.0), 0.95)])
def test_an_interval_covers_a_true_gain_over_new_seeds_and_new_images(seeds, effects, most):
    random = np.random.default_rng(11)
    true = 0.05
    found = [interval(true + random.normal(0, effects[0], (seeds, 1)) + random.normal(0, effects[1], 80)
                      + random.normal(0, 0.1, (seeds, 80)), 0.1) for _ in range(400)]
    covered = np.mean([ends.low <= true <= ends.high for ends in found])
    assert 0.9 - 3 * math.sqrt(0.09 / 400) <= covered <= most


def test_rare_differences_are_not_taken_for_none():
    # Of 300 images one in a hundred is won, in all seeds: 5 % of samples have none, and none must not rule .01 out.
    random = np.random.default_rng(12)
    highs = [interval(np.tile(random.random(300) < 0.01, (10, 1)) * 1.0, 0.05).high for _ in range(2000)]
    assert np.mean(np.array(highs) < 0.01) < 0.05
    assert interval(np.zeros((10, 300)), 0.05).high == pytest.approx(1.968 * math.sqrt(3) / 300, rel=0.01)


def test_rounded_values_keep_a_least_spread():
    assert t_interval([2, 2, 2], 0.05) == (2, 2)
    low, high = t_interval([2, 2, 2], 0.05, least_spread=0.5)
    assert high - 2 == pytest.approx(2 - low) and high - 2 == pytest.approx(4.302653 * 0.5 / math.sqrt(3))


# Families and outside oracles


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]).size == 0
    # Six seeds give .031, which two contrasts already break.
    assert holm([2**-5, 2**-5])[0] > 0.05


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.5, 1.0])), min_size=1, max_size=30))
@settings(deadline=None)  # the first call imports statsmodels
def test_holm_is_that_of_statsmodels(ps):
    from statsmodels.stats.multitest import multipletests

    np.testing.assert_allclose(holm(ps), multipletests(ps, method="holm")[1], rtol=1e-12, atol=0)


def test_mcnemar_is_the_binomial_test_of_the_discordant_images():
    a = np.array([1] * 9 + [0] * 2 + [1] * 5)
    b = np.array([0] * 9 + [1] * 2 + [1] * 5)
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert mcnemar(a, a) == 1


@pytest.mark.parametrize(("a", "b", "p"), [
    (FOREGROUND_POS["tl"], np.abs(FOREGROUND_NEG["tl"]), 0.001953),
    (FOREGROUND_POS["kd"], np.abs(FOREGROUND_NEG["kd"]), 0.001953),
    (FOREGROUND_DIFF["tl"], FOREGROUND_DIFF["kd"], 0.001953),
    (BACKGROUND_DIFF["tl"], BACKGROUND_DIFF["kd"], 0.1934),
    (BACKGROUND_POS["tl"], BACKGROUND_POS["kd"], 0.1602),
    (FOREGROUND_NEG["tl"], FOREGROUND_NEG["kd"], 0.7695),
    (FOREGROUND_POS["tl"], FOREGROUND_POS["kd"], 0.084),
])
def test_wilcoxon_returns_the_theses_numbers(a, b, p):
    assert wilcoxon(a, b) == pytest.approx(p, abs=6e-5 if p != 0.084 else 5e-4)


def test_the_foreground_share_rises_in_eight_of_ten_images():
    share = {arm: np.array(FOREGROUND_POS[arm]) / (np.array(FOREGROUND_POS[arm]) + BACKGROUND_POS[arm])
             for arm in ("tl", "kd")}
    assert np.sum(share["kd"] > share["tl"]) == 8
    assert wilcoxon(share["kd"], share["tl"]) == pytest.approx(0.009766, abs=5e-7)


def test_wilcoxon_with_ties_equals_scipys_exact_permutation():
    a, b = np.array([3, 4, 5, 1, 9, 2, 2]), np.array([1, 2, 6, 0, 5, 2, 3])
    differences = (a - b)[a != b]
    exact = stats.wilcoxon(differences, method=stats.PermutationMethod(n_resamples=10**6)).pvalue
    assert wilcoxon(a, b) == pytest.approx(exact)


# How many seeds and images


def layout(random, seeds, count, sds):
    """A table `[seed, image]` whose mean squares are the middle ones of those that these sds give."""
    def standard(values):
        return (values - values.mean()) / values.std(ddof=1)

    seed, image, rest = sds
    cells = random.normal(size=(seeds, count))
    cells -= cells.mean(axis=0)
    cells -= cells.mean(axis=1, keepdims=True)
    cells *= math.sqrt((seeds - 1) * (count - 1) / np.square(cells).sum())
    typical = [math.sqrt(stats.chi2.median(size - 1) / (size - 1)) for size in (seeds, count)]
    return (typical[0] * math.sqrt(seed**2 + rest**2 / count) * standard(random.normal(size=seeds))[:, None]
            + typical[1] * math.sqrt(image**2 + rest**2 / seeds) * standard(random.normal(size=count)) + rest * cells)


def simulated_power(random, seeds, count, sds, gain, contrasts, trials=200):
    """How often a gain is supported, by the rule itself; the other contrasts of the family have no difference."""
    hits = 0
    for _ in range(trials):
        table = gain + sum(sd * random.normal(size=shape) for sd, shape in
                           zip(sds, ((seeds, 1), (1, count), (seeds, count)), strict=True))
        hits += (sign_flip(table.mean(axis=1)) * contrasts < 0.05 and interval(table, 0.05).low > 0
                 and image_permutation(table) * contrasts < 0.05)
    return hits / trials


@pytest.mark.parametrize(("seeds", "count", "sds", "gain", "contrasts"), [
    (10, 200, (0.004, 0.05, 0.3), 0.02, 1),  # the rest rules: seeds and images count alike
    (3, 200, (0.03, 0.05, 0.3), 0.05, 1),    # seeds rule
    (8, 300, (0.01, 0.3, 0.1), 0.06, 3),     # images rule, in a family
])
def test_what_is_needed_gives_eighty_percent_power_to_the_whole_rule(monkeypatch, seeds, count, sds, gain, contrasts):
    monkeypatch.setattr(statistics, "FLIPS", 999)
    monkeypatch.setattr(statistics, "EXACT_SEEDS", 12)
    random = np.random.default_rng(13)
    wanted = needed(layout(random, seeds, count, sds), gain, 0.05, contrasts)
    pairs = [(wanted.seeds, count), (seeds, wanted.images), wanted.together]
    tried = [simulated_power(random, *pair, sds, gain, contrasts) for pair in pairs if pair and None not in pair]
    assert tried and all(0.8 - 0.09 <= found <= 0.8 + 0.1 for found in tried)


def test_what_is_needed_is_said_to_be_out_of_reach_of_one_chance_alone():
    random = np.random.default_rng(14)
    assert needed(layout(random, 10, 100, (0.001, 0.5, 0.1)), 0.02, 0.05).seeds is None  # images rule
    assert needed(layout(random, 10, 100, (0.05, 0.01, 0.1)), 0.02, 0.05).images is None  # seeds rule
    both = needed(layout(random, 3, 100, (0.05, 0.5, 0.1)), 0.02, 0.05)
    assert both.seeds is None and both.images is None and both.together is not None
    assert both.together[1] == math.ceil(100 * both.together[0] / 3)


def test_what_is_needed_is_told_at_once():
    table = layout(np.random.default_rng(15), 10, 1000, (0.01, 0.1, 0.3))
    needed(table, 0.005, 0.05)
    start = time.process_time()
    for _ in range(5):
        needed(table, 0.005, 0.05)
    assert (time.process_time() - start) / 5 < 0.2  # about 10 ms on an idle core


@given(st.floats(-10, 10))
@settings(max_examples=20)
def test_needed_does_not_look_at_the_observed_gain(shift):
    differences = np.random.default_rng(14).normal(0, 1, (5, 40))
    assert needed(differences + shift, 0.2, 0.05) == needed(differences, 0.2, 0.05)


def test_needed_asks_for_at_least_what_the_sign_flip_permits():
    steady = np.random.default_rng(15).normal(0, 1e-6, (4, 30))
    for contrasts, fewest in ((1, 6), (2, 7), (8, 9)):
        found = needed(steady, 0.1, 0.05, contrasts)
        assert (found.seeds, found.images) == (fewest, None)  # four seeds are too few, whatever the images
        assert contrasts * 2.0 ** (1 - fewest) < 0.05 <= contrasts * 2.0 ** (2 - fewest)
    assert needed(np.eye(3)[:, :1], 0.1, 0.05).images is None


def test_few_ways_of_signs_are_counted_by_the_smallest_values():
    for values in np.random.default_rng(22).normal(1.0, 1, (300, 11)):
        ways = power._ways(values[None])[0]
        literal = 2**10 * sign_flip(values)
        assert ways == literal if literal < power.FEW else ways >= power.FEW


def test_what_is_needed_in_a_large_family_gives_eighty_percent_power(monkeypatch):
    # Ten seeds of a family of 20: their signs must all agree, which Student's t knows nothing of.
    monkeypatch.setattr(statistics, "FLIPS", 999)
    random, sds = np.random.default_rng(23), (0.03, 0.0, 0.05)
    parts = power._Components(*(sd**2 for sd in sds), 1.0)
    gain = next(gain for gain in np.arange(0.02, 0.2, 0.001) if power.power(parts, 10, 200, (gain, 0.05, 20)) >= 0.8)
    hits = 0
    for _ in range(300):
        table = gain + sds[0] * random.normal(size=(10, 1)) + sds[2] * random.normal(size=(10, 200))
        hits += 20 * sign_flip(table.mean(axis=1)) < 0.05 and interval(table, 0.05).low > 0
    assert 0.8 - 0.08 <= hits / 300 <= 0.8 + 0.08


# Verdicts


def test_a_clear_gain_is_supported_and_a_clear_loss_refuted_as_harmful(quick):
    differences = images(np.random.default_rng(16), 10, 2000, (0.10, 0.04))
    good, bad = judge(differences, 0.005, 0.05), judge(-differences, 0.005, 0.05)
    assert (good.word, good.too_small, good.harmful, good.needed) == ("supported", False, False, None)
    assert (bad.word, bad.harmful, bad.needed) == ("refuted", True, None)
    assert good.gain == pytest.approx(0.06, abs=0.01) and good.gain == -bad.gain and good.effect == -bad.effect
    assert (good.n_seeds, good.n_images) == (10, 2000)
    means = differences.mean(axis=1)
    assert good.effect == pytest.approx(means.mean() / means.std(ddof=1))


def test_a_sure_but_too_small_gain_is_supported_and_flagged(quick):
    verdict = judge(images(np.random.default_rng(17), 10, 5000, (0.012, 0.008)), 0.02, 0.05)
    assert verdict.word == "supported" and verdict.too_small


def test_no_difference_at_all_is_refuted_with_p_one():
    verdict = judge(np.zeros((10, 1000)), 0.005, 0.05)
    assert (verdict.word, verdict.p_seed, verdict.p_image, verdict.harmful) == ("refuted", 1, 1, False)
    assert math.isnan(verdict.effect)
    # Fifty images are too few to rule half a point out, even where none differs.
    assert judge(np.zeros((10, 50)), 0.005, 0.05).word == "inconclusive"


def test_three_seeds_cannot_support_anything():
    verdict = judge(images(np.random.default_rng(18), 3, 2000, (0.2, 0.0)), 0.005, 0.05)
    assert verdict.p_seed == 0.25 and verdict.interval.low > 0
    assert verdict.word == "inconclusive" and verdict.needed is not None and verdict.needed.seeds >= 6


def test_the_family_is_adjusted_together():
    differences = images(np.random.default_rng(19), 6, 2000, (0.1, 0.02))
    alone = judge(differences, 0.005, 0.05)
    pair = verdicts({"one": differences, "two": differences[:, ::-1]}, 0.005, 0.05)
    assert alone.word == "supported" and alone.p_seed == alone.p_seed_adjusted == 2**-5
    assert {verdict.word for verdict in pair.values()} == {"inconclusive"}
    assert pair["one"].p_seed_adjusted == 2**-4 and pair["one"].contrasts == 2
    assert verdicts({}, 0.005, 0.05) == {}


def test_support_needs_both_chances():
    # Six seeds agree, but they agree about two of a hundred images: another test set may hold no such image.
    differences = np.zeros((6, 100))
    differences[:, 0] = differences[1:, 1] = 1
    verdict = judge(differences, 0.005, 0.05)
    assert statistics.t_interval(differences.mean(axis=1), 0.05)[0] > 0 and verdict.p_seed == 2**-5
    assert verdict.interval.low < 0
    assert verdict.p_image == pytest.approx(0.5)
    assert verdict.word == "inconclusive"


def test_the_verdict_keeps_its_level_and_has_power(quick):
    random = np.random.default_rng(21)
    null = [judge(images(random, 10, 200, (0.15, 0.15), (0.03, 0.02)), 0.005, 0.05).word for _ in range(60)]
    gain = [judge(images(random, 10, 400, (0.20, 0.10), (0.03, 0.02)), 0.005, 0.05).word for _ in range(10)]
    assert null.count("supported") / 60 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 60)
    assert gain.count("supported") >= 9


@pytest.mark.parametrize("call", [
    lambda: sign_flip([]), lambda: sign_flip([1, math.nan]), lambda: image_permutation([1, 2]),
    lambda: interval(np.zeros((0, 3)), 0.05), lambda: holm([1.2]), lambda: holm([math.nan]),
    lambda: mcnemar([1, 0], [1]), lambda: wilcoxon([1, 2], [1]), lambda: needed(np.eye(3), 0, 0.05),
])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_few_images_are_not_resampled():
    few, many = np.random.default_rng(0).normal(0, 1, (12, 9)), np.ones((12, 10))
    assert set(statistics.resampled_by_name({"few": few, "many": many})) == {"many"}
