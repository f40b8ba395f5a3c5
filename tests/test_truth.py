"""Quick pieces of `proofs/truth.py`: planted curves, and the mathematics beside other implementations of it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "proofs"))
import oracles
import truth


@pytest.mark.parametrize("name", ["plain PyTorch", "Hugging Face's formula", "timm's `LogitDistillationTask`"])
def test_distillation_is_what_others_compute(name):
    step = 125 if "timm" in name else 11
    loss, slope = oracles.distillation(oracles.RIVALS[name], 0, torch.float64, step)
    assert loss < 1e-12 and slope < 1e-12


def test_float32_takes_no_more_from_the_loss_than_from_plain_pytorch():
    ours, theirs = oracles.distillation(oracles.plain, 0, torch.float32, 11), oracles.rounded(oracles.plain, 0, 11)
    assert all(one < 1.5 * other for one, other in zip(ours, theirs, strict=True))
    assert ours[0] < 5e-3 and ours[1] < 5e-5  # relative; where both sides all but agree, few digits are left


@pytest.mark.parametrize("wrong", [
    lambda s, y, t, w, temperature: oracles.plain(s, y, t, w, temperature + 0.001),
    lambda s, y, t, w, temperature: oracles.plain(s, y, t, w, temperature) / temperature**2,
    lambda s, y, t, w, temperature: oracles.plain(t.detach() + s - s.detach(), y, s.detach(), w, temperature)])
def test_another_loss_would_be_noticed(wrong):
    loss, slope = oracles.distillation(wrong, 0, torch.float64, 11)
    assert loss > 1e-6 and slope > 1e-6


def test_label_smoothing_is_timms():
    assert oracles.smoothing(0) < 1e-12


def test_metrics_are_scikit_learns_where_classes_are_absent_alone_or_tied():
    found = oracles.metrics(0, 25)
    assert set(found) == {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "ece", "log_loss"}
    assert max(found.values()) < 1e-10


@pytest.mark.parametrize("kind", ["max", "average"])
def test_deep_shap_is_the_rescale_rule_written_out(kind):
    draw = torch.Generator().manual_seed(3)
    image, reference = torch.randn(2, 1, 2, 6, 6, generator=draw, dtype=torch.float64).unbind()
    layers = oracles.small(kind, 3)
    found = oracles.deep_shap(layers, image, reference, 1).values[0].numpy()
    expected = oracles.lift(layers, image[0], reference[0], 1)
    assert np.abs(found - expected).max() < 1e-9 < np.abs(found).max()
    gradient = torch.func.grad(lambda x: layers(x)[0, 1])(image)[0] * (image - reference)[0]
    assert np.abs(gradient.detach().numpy() - expected).max() > 1e-3  # gradient times difference would not pass


@pytest.mark.parametrize("case", list(truth.pencilled()), ids=lambda case: case[0])
def test_planted_curves_give_what_a_pencil_gives(case):
    _, expected, found = case
    assert found == expected


def test_a_network_that_sees_the_object_alone_is_seen_to():
    shown, black = truth.scenes("test", 1), torch.zeros(1, 3, truth.SIDE, truth.SIDE)
    objects = truth.explained(truth.SeesObjects(per_class=4).eval(), shown, black)
    grounds = truth.explained(truth.SeesGrounds(truth.scenes("train", 4)).eval(), shown, black)
    assert truth.share(objects) > 0.99 and truth.share(grounds) < 0.01
    assert objects["area"].between(0.05, 0.5).all()
