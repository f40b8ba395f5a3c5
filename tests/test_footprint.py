"""Sizes against what libraries publish, and latencies that tell slow from fast."""

import time

import pytest
from torchvision.models import get_model, get_model_weights

from tlkd import footprint


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16", "swin_t"])
def test_multiply_adds_are_those_that_torchvision_publishes(name: str) -> None:
    published = get_model_weights(name)["IMAGENET1K_V1"].meta
    found = footprint.size_of(get_model(name).eval(), 224)
    assert found.parameters == published["num_params"]
    assert found.macs is not None
    assert found.macs / 1e9 == pytest.approx(published["_ops"], abs=6e-4)
    assert 4 * found.parameters <= found.bytes < 4.1 * found.parameters


def test_latencies_tell_slow_from_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "BUDGET", 0.2)
    calls = {"fast": lambda: None, "slow": lambda: time.sleep(0.003)}
    found = footprint.latencies(calls)
    assert found["slow"].median >= 0.003 > found["fast"].high
    assert all(one.low <= one.median <= one.high and one.repeats >= footprint.FEWEST for one in found.values())
    assert found["fast"].repeats == found["slow"].repeats
