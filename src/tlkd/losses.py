"""The losses of the arms; an arm is a loss, nothing else."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tlkd.errors import BadInput

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(student logits `[sample, class]`, labels `[sample]`, soft labels `[sample, class]` or None) -> scalar."""


def distillation_loss(logits: Tensor, labels: Tensor, soft_labels: Tensor, soft_weight: float,
                      temperature: float) -> Tensor:
    """Hard and soft labels together, the mean over the batch.

    `(1 - w) CE(y, z_s) + w T^2 KL(softmax(z_t / T) || softmax(z_s / T))`, with `logits` z_s and `soft_labels` z_t
    the raw logits `[sample, class]`, `labels` y `[sample]`. Computed in float32 at least, with log-softmax on both
    sides. T^2 keeps the soft gradients' scale as T changes: Hinton, Vinyals and Dean, "Distilling the knowledge in a
    neural network", 2015, section 2; the thesis's equation 1.3. Raises `BadInput` for a weight outside [0, 1], a
    temperature that is not positive, or soft labels of another shape than the logits.
    """
    if not (0 <= soft_weight <= 1 and temperature > 0 and soft_labels.shape == logits.shape):
        raise BadInput(f"distillation_loss: found soft_weight {soft_weight}, temperature {temperature}, logits "
                       f"{list(logits.shape)}, soft_labels {list(soft_labels.shape)}; allowed: a weight from 0 to 1, a "
                       "temperature above 0, one shape for both")
    logits = _full(logits)
    # Left out, not multiplied by zero: zero times the infinite divergence of a wild teacher would be NaN.
    hard = functional.cross_entropy(logits, labels) if soft_weight < 1 else None
    if soft_weight == 0 and hard is not None:
        return hard
    target = functional.log_softmax(soft_labels.to(logits.dtype) / temperature, dim=1)
    given = functional.log_softmax(logits / temperature, dim=1)
    soft = functional.kl_div(given, target, reduction="batchmean", log_target=True) * (soft_weight * temperature**2)
    return soft if hard is None else hard * (1 - soft_weight) + soft


def hard_loss(logits: Tensor, labels: Tensor, soft_labels: Tensor | None = None) -> Tensor:
    """Cross-entropy with the labels alone: transfer learning, TL."""
    del soft_labels
    return functional.cross_entropy(_full(logits), labels)


def label_smoothing_loss(amount: float) -> Loss:
    """Cross-entropy with labels of which `amount` is spread evenly over all classes, the mean over the batch.

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016, section 7.
    """
    def loss(logits: Tensor, labels: Tensor, soft_labels: Tensor | None) -> Tensor:
        del soft_labels
        return functional.cross_entropy(_full(logits), labels, label_smoothing=amount)

    return loss


def mean_entropy(logits: NDArray[np.float32], temperature: float) -> float:
    """The mean entropy, in nats, of softmax(z / T) over rows of raw logits `[sample, class]`."""
    from scipy.special import log_softmax

    logs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-(np.exp(logs) * logs).sum(axis=1).mean())


def smoothing_for(entropy: float, classes: int) -> float:
    """The amount of label smoothing, in [0, 1], whose smoothed labels have this entropy in nats.

    The entropy grows with the amount from 0 to log(classes), which is the most that can be reached.
    """
    from scipy.optimize import brentq
    from scipy.special import entr

    def excess(amount: float) -> float:
        rest = amount / classes
        return float(entr(1 - amount + rest) + (classes - 1) * entr(rest)) - entropy

    if entropy <= 0:
        return 0.0
    return 1.0 if excess(1.0) <= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-12))


def _full(logits: Tensor) -> Tensor:
    """Half precision made float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def make_loss(kind: str, soft_weight: float | None = None, temperature: float | None = None) -> Loss:
    """The loss of an arm of this kind."""
    if kind == "tl":
        return hard_loss
    if kind != "tl_kd" or soft_weight is None or temperature is None:
        raise BadInput(f"arms: kind {kind!r}, soft_weight {soft_weight}, temperature {temperature} make no loss")

    def loss(logits: Tensor, labels: Tensor, soft_labels: Tensor | None) -> Tensor:
        assert soft_labels is not None, "an arm with a teacher needs its soft labels"
        return distillation_loss(logits, labels, soft_labels, soft_weight, temperature)

    return loss
