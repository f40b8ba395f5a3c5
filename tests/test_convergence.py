import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tlkd.convergence import convergence, crossings, epochs_to

SETTINGS = {"level": 0.05}


def ramp(epoch, length=20):
    """A curve that reaches .9 at `epoch`, counted from 1; inf: never."""
    return [0.9 if number >= epoch else 0.5 for number in range(1, length + 1)]


def test_epochs_count_from_one_and_inf_means_never():
    curves = [[0.1, 0.5, 0.9, 0.4], [0.9], [0.1, 0.2], [0.1, 0.1, 0.1, 0.1, 0.9]]
    assert epochs_to(curves, 0.5, horizon=4).tolist() == [2, 1, math.inf, math.inf]
    assert epochs_to(np.array([[0.1, 0.5], [0.2, 0.3]]), 0.5, horizon=2).tolist() == [2, math.inf]


def test_a_threshold_is_reached_by_its_own_float32():
    assert float(np.float32(0.9)) < 0.9
    assert epochs_to([np.array([0.8, 0.9], dtype=np.float32)], 0.9, horizon=5).tolist() == [2]
    assert epochs_to([[0.8999]], 0.9, horizon=5).tolist() == [math.inf]


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 12))
@settings(max_examples=60)
def test_a_higher_threshold_is_never_reached_earlier(curves, horizon):
    low, high = epochs_to(curves, 0.3, horizon), epochs_to(curves, 0.7, horizon)
    assert (low <= high).all()
    assert ((low <= horizon) | np.isinf(low)).all()


def test_an_earlier_arm_is_supported_with_its_numbers():
    tl, kd = [9, 10, 11, 12, 9, 10, 14, 10], [5, 6, 6, 7, 5, 7, 8, 10]
    found = convergence([ramp(e) for e in tl], [ramp(e) for e in kd], 0.9, **SETTINGS)
    differences = np.subtract(tl, kd)
    theirs = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.low > 0 and found.horizon == 20
    assert found.gain == differences.mean() and (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.p_seed == 2**-6  # one difference is zero: 2 of 2^7 sign patterns of the other seven
    assert (found.tl_kd_first, found.tl_first, found.ties, found.p_first) == (7, 0, 1, 2**-6)
    assert (found.tl_median, found.tl_kd_median) == (10, 6)
    assert (found.tl_mean, found.tl_kd_mean) == (np.mean(tl), np.mean(kd))


def test_swapped_arms_are_refuted():
    early, late = [ramp(e) for e in (5, 6, 6, 7, 5, 7)], [ramp(e) for e in (9, 10, 11, 12, 9, 10)]
    found = convergence(early, late, 0.9, **SETTINGS)
    assert found.high < 0


def test_runs_stopped_early_are_compared_over_the_epochs_that_all_have():
    # Six of twelve TL runs stop at epoch 15 a thousandth short of the threshold; of later epochs nothing is known.
    short = [*ramp(math.inf, 14), 0.899]
    tl, kd = [short] * 6 + [ramp(14, 20)] * 6, [ramp(14, 20)] * 12
    found = convergence(tl, kd, 0.9, **SETTINGS)
    assert found.horizon == 15 and found.tl_reached == 6
    assert found.gain == 0.5 and found.high <= 15
    # A run that arrives after the common epochs has not arrived within them; the median still sees that it does.
    late = convergence([short, ramp(18), ramp(18)], [ramp(14)] * 3, 0.9, **SETTINGS)
    assert late.tl_reached == 0 and late.tl_mean == 15 and late.tl_median == 18


def test_runs_that_never_arrive_are_censored_not_dropped():
    tl = [ramp(4, 10), ramp(8), ramp(math.inf, 10), ramp(math.inf)]
    kd = [ramp(4), ramp(5), ramp(6), ramp(math.inf)]
    found = convergence(tl, kd, 0.9, **SETTINGS)
    assert (found.horizon, found.tl_reached, found.tl_kd_reached) == (10, 2, 3)
    assert found.tl_median == 8 and found.tl_kd_median == 5
    assert found.tl_mean == (4 + 8 + 10 + 10) / 4 and found.tl_kd_mean == (4 + 5 + 6 + 10) / 4
    assert (found.tl_kd_first, found.tl_first, found.ties) == (2, 0, 2)
    # Dropping the censored runs instead would have said 6, and hidden that half of them never arrived.
    assert found.tl_mean != np.mean([4, 8])


def test_kaplan_meier_median_equals_statsmodels():
    from statsmodels.duration.survfunc import SurvfuncRight

    random = np.random.default_rng(0)
    epochs, lengths = random.integers(1, 25, 30), random.integers(5, 20, 30)
    curves = [ramp(e, n) for e, n in zip(epochs, lengths, strict=True)]
    found = convergence(curves, curves, 0.9, **SETTINGS)
    theirs = SurvfuncRight(np.minimum(epochs, lengths), epochs <= lengths)
    assert found.tl_median == theirs.quantile(0.5)


def test_where_nobody_arrives_nothing_is_claimed():
    never = [ramp(math.inf)] * 6
    found = convergence(never, never, 0.9, **SETTINGS)
    assert (found.tl_reached, found.p_seed, found.p_first, found.tl_median) == (0, 1, 1, math.inf)


def test_two_agreeing_seeds_refute_nothing():
    # Epochs are whole numbers: two equal ones do not mean a spread of zero.
    assert convergence([ramp(7)] * 2, [ramp(7)] * 2, 0.9, **SETTINGS).high > 1
    assert math.isnan(convergence([ramp(7)], [ramp(3)], 0.9, **SETTINGS).high)


def test_interval_and_test_keep_their_level():
    random = np.random.default_rng(1)
    found = []
    for _ in range(200):
        tl, kd = ([ramp(epoch, 100) for epoch in random.integers(5, 95, 8)] for _ in range(2))
        found.append(convergence(tl, kd, 0.9, **SETTINGS))
    margin = 3 * math.sqrt(0.05 * 0.95 / 200)
    assert np.mean([result.low > 0 and result.p_seed < 0.05 for result in found]) <= 0.025 + margin
    assert np.mean([result.p_seed < 0.05 for result in found]) <= 0.05 + margin


def test_crossings_skip_ties_and_count_from_one():
    assert crossings([0.5, 0.6, 0.7, 0.8], [0.4, 0.6, 0.75, 0.7]) == [3, 4]
    assert crossings([0.5, 0.6], [0.5, 0.7]) == []
    assert crossings([0.5, math.nan, 0.6, 0.1], [0.6, 0.9, 0.5]) == [3]


def test_what_rounding_leaves_of_equal_means_is_no_lead():
    tl, kd = np.array([0.5, 0.46, 0.47]), np.array([0.4, 0.14 + 0.02 * 16, 0.48])
    assert crossings(tl, kd + np.array([0, 1e-16, 0])) == crossings(tl, kd - np.array([0, 1e-16, 0])) == [3]
    assert kd[1] + 1e-16 != tl[1] or kd[1] - 1e-16 != tl[1]


@pytest.mark.parametrize("call", [
    lambda: epochs_to([[0.5]], 0.9, horizon=0), lambda: epochs_to([[]], 0.9, horizon=3),
    lambda: convergence([[0.5]], [[0.5], [0.5]], 0.9, **SETTINGS), lambda: convergence([], [], 0.9, **SETTINGS),
])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()
