"""The losses of the arms; an arm is a loss, nothing else."""

from collections.abc import Callable

import torch
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
    neural network", 2015, section 2; the thesis's equation 1.3.
    """
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
