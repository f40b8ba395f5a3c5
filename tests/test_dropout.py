"""Dropout: PyTorch's, but for where its random numbers come from."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from tlkd.dropout import STEPS, Dropout

RATES = [0.1, 0.2, 0.5, 0.9]


def dropped(values, rate, seed=0):
    torch.manual_seed(seed)
    return Dropout(rate)(values)


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_kept_and_units_are_independent(rate):
    gone = (dropped(torch.ones(400, 500), rate) == 0).numpy()
    assert stats.binomtest(int(gone.sum()), gone.size, rate).pvalue > 1e-3
    by_column, by_row = gone.sum(0), gone.sum(1)
    for counts, number in ((by_column, 400), (by_row, 500)):
        assert 0.7 < counts.var() / (number * rate * (1 - rate)) < 1.4
    assert abs(np.corrcoef(gone[:, :-1].ravel(), gone[:, 1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("rate", [*RATES, 1 / 3, 1e-4])
def test_the_expectation_is_exact(rate):
    """Each of the 65,536 draws is as likely; what is kept times its scale must be what went in."""
    steps_dropped = round(rate * STEPS)
    assert abs(steps_dropped / STEPS - rate) <= 0.5 / STEPS
    found = dropped(torch.ones(200, 500, dtype=torch.float64), rate)
    scale, = set(found[found != 0].tolist())
    assert Fraction(scale) * (STEPS - steps_dropped) / STEPS == pytest.approx(1, rel=1e-15)
    assert scale == pytest.approx(1 / (1 - rate), rel=1e-4)


@pytest.mark.parametrize("rate", RATES)
def test_over_all_draws_the_mean_is_one(rate, monkeypatch):
    class EveryDraw:
        def __init__(self, bits):
            pass

        def integers(self, steps, size, dtype):
            return np.arange(steps, dtype=dtype).reshape(size)

    monkeypatch.setattr(np.random, "Generator", EveryDraw)
    assert Dropout(rate)(torch.ones(256, 256, dtype=torch.float64)).mean().item() == pytest.approx(1, rel=1e-14)


def test_the_literal_mask():
    """Drawn by NumPy's SFC64 from one number of PyTorch's, and compared with the rate in 65,536ths."""
    values = torch.randn(7, 11)
    found = dropped(values, 0.3, seed=5)
    torch.manual_seed(5)
    drawn = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    draws = drawn.integers(65536, size=(7, 11), dtype=np.uint16)
    twin = np.where(draws >= 19661, values.numpy() * np.float32(65536 / (65536 - 19661)), 0)
    np.testing.assert_array_equal(found.numpy(), twin)


def test_the_mask_follows_from_the_seed_alone():
    values = torch.randn(64, 100)
    first = dropped(values, 0.2, seed=1)
    np.random.default_rng().random(10)
    np.random.seed(3)
    assert torch.equal(dropped(values, 0.2, seed=1), first)
    assert not torch.equal(dropped(values, 0.2, seed=2) == 0, first == 0)
    state = np.random.get_state()[1].copy()
    dropped(values, 0.2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_every_call_draws_anew_and_takes_one_number():
    torch.manual_seed(0)
    layer = Dropout(0.5)
    first, second = layer(torch.ones(1000)), layer(torch.ones(1000))
    assert not torch.equal(first, second)
    after = torch.rand(1)
    torch.manual_seed(0)
    layer(torch.ones(3)), layer(torch.ones(50, 50))  # the amount does not matter, so arms stay paired
    assert torch.equal(torch.rand(1), after)


def test_the_number_of_threads_does_not_matter():
    values, before, found = torch.randn(512, 1280), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(dropped(values, 0.2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_in_eval_mode_or_at_rate_zero_nothing_happens(rate, training):
    values = torch.randn(5, 6)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(rate).train(training)(values), values)
    if not training:
        assert torch.equal(torch.get_rng_state(), state)


def test_the_gradient_is_the_mask_with_its_scale():
    values = torch.randn(20, 30, requires_grad=True)
    found = dropped(values, 0.25)
    weights = torch.randn(20, 30)
    (found * weights).sum().backward()
    scale = (found != 0) / (1 - 0.25)
    torch.testing.assert_close(values.grad, weights * scale, rtol=1e-6, atol=0)
    assert (values.grad == 0).any() and (values.grad != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types_and_shapes_are_kept(dtype):
    for shape in ((4,), (3, 4), (2, 3, 4, 5), (0, 4)):
        found = dropped(torch.ones(shape, dtype=dtype), 0.5)
        assert found.dtype == dtype and found.shape == shape
        assert set(found.flatten().tolist()) <= {0.0, 2.0}
    assert torch.equal(dropped(torch.ones(40, dtype=dtype), 0.5) == 0, dropped(torch.ones(40), 0.5) == 0)


@pytest.mark.parametrize("rate", [1.0, 0.999999, 1e-7])
def test_rates_beyond_the_resolution_are_pytorchs(rate):
    torch.manual_seed(0)
    expected = nn.Dropout(rate)(torch.ones(1000))
    assert torch.equal(dropped(torch.ones(1000), rate), expected)


def test_it_is_a_dropout_layer_to_everyone_else():
    layer = Dropout(0.2)
    assert isinstance(layer, nn.Dropout) and not list(layer.state_dict()) and copy.deepcopy(layer).p == 0.2
    with pytest.raises(ValueError, match="dropout probability"):
        Dropout(1.5)


def test_it_leaves_the_input_alone():
    values = torch.ones(100)
    dropped(values, 0.5)
    assert torch.equal(values, torch.ones(100))
