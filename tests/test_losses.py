"""The losses against slow twins in float64, their limits, and that an arm without its teacher is TL to the bit."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tlkd.errors import BadInput
from tlkd.losses import (
    distillation_loss,
    hard_loss,
    label_smoothing_loss,
    make_loss,
    mean_entropy,
    smoothing_for,
)

INF = float("inf")


def softmax(row, temperature):
    highest = max(value / temperature for value in row)
    powers = [math.exp(value / temperature - highest) for value in row]
    return [power / sum(powers) for power in powers]


def twin(student, labels, teacher, soft_weight, temperature):
    """Equation (1.3) written out, one number at a time."""
    total = 0.0
    for own, label, theirs in zip(student, labels, teacher, strict=True):
        hard = -math.log(softmax(own, 1.0)[label])
        given_by, target = softmax(own, temperature), softmax(theirs, temperature)
        soft = sum(t * (math.log(t) - math.log(s)) for s, t in zip(given_by, target, strict=True))
        total += (1 - soft_weight) * hard + soft_weight * temperature**2 * soft
    return total / len(student)


def batch(seed=0, samples=6, classes=5, scale=3.0):
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, samples, classes, generator=draw, dtype=torch.float64)).unbind()
    return student, torch.randint(classes, (samples,), generator=draw), teacher


@given(st.integers(0, 10**6), st.tuples(st.integers(1, 7), st.integers(2, 6), st.floats(0.1, 8)), st.floats(0, 1),
       st.floats(0.5, 20))
@settings(max_examples=50, deadline=None)
def test_the_loss_is_the_literal_sum(seed, shape_and_scale, soft_weight, temperature):
    student, labels, teacher = batch(seed, *shape_and_scale)
    expected = twin(student.tolist(), labels.tolist(), teacher.tolist(), soft_weight, temperature)
    found = distillation_loss(student, labels, teacher, soft_weight, temperature)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-11)
    single = distillation_loss(student.float(), labels, teacher.float(), soft_weight, temperature)
    assert single.item() == pytest.approx(expected, rel=1e-4, abs=1e-5 * (1 + temperature**2))
    assert make_loss("tl_kd", soft_weight, temperature)(student, labels, teacher).item() == found.item()


def test_the_divergence_is_taken_from_the_teacher_to_the_student():
    student, labels, teacher = batch()
    found = distillation_loss(student, labels, teacher, 1.0, 4.0).item()
    assert found == pytest.approx(twin(student.tolist(), labels.tolist(), teacher.tolist(), 1.0, 4.0))
    swapped = twin(teacher.tolist(), labels.tolist(), student.tolist(), 1.0, 4.0)
    assert abs(found - swapped) > 0.01 * found  # the twin with the sides swapped would not pass for it


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_the_square_of_the_temperature_stands_on_the_soft_term_only(temperature):
    student, labels, teacher = batch()
    hard = distillation_loss(student, labels, teacher, 0.0, temperature).item()
    soft = distillation_loss(student, labels, teacher, 1.0, temperature).item()
    assert hard == pytest.approx(torch.nn.functional.cross_entropy(student, labels).item(), rel=1e-12)
    divergence = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=teacher / temperature),
                                                   torch.distributions.Categorical(logits=student / temperature)).mean()
    assert soft == pytest.approx(temperature**2 * divergence.item(), rel=1e-12)
    mixed = distillation_loss(student, labels, teacher, 0.3, temperature).item()
    assert mixed == pytest.approx(0.7 * hard + 0.3 * soft, rel=1e-12)


@pytest.mark.parametrize("soft_weight", [0.0, 0.1, 0.5, 1.0])
def test_the_gradient_is_the_finite_difference_of_the_twin(soft_weight):
    student, labels, teacher = batch(samples=3, classes=4)
    student.requires_grad_()
    distillation_loss(student, labels, teacher, soft_weight, 3.0).backward()
    step = 1e-5
    for row, column in np.ndindex(3, 4):
        values = []
        for sign in (1, -1):
            moved = student.detach().clone()
            moved[row, column] += sign * step
            values.append(twin(moved.tolist(), labels.tolist(), teacher.tolist(), soft_weight, 3.0))
        assert student.grad[row, column].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def test_the_gradient_has_its_closed_form():
    """(1 - w)(p_s - y) + w T (p_s(T) - p_t(T)), over the batch's size: Hinton et al., equation 2."""
    student, labels, teacher = batch(samples=8)
    student.requires_grad_()
    weight, temperature = 0.4, 6.0
    distillation_loss(student, labels, teacher, weight, temperature).backward()
    own = student.detach()
    hard = own.softmax(1) - torch.nn.functional.one_hot(labels, 5)
    soft = temperature * ((own / temperature).softmax(1) - (teacher / temperature).softmax(1))
    torch.testing.assert_close(student.grad, ((1 - weight) * hard + weight * soft) / 8, rtol=1e-10, atol=1e-12)


def test_at_high_temperature_the_soft_term_matches_logits():
    """Hinton et al., equation 4: the gradient nears (z_s - z_t) / classes for logits of mean zero."""
    student, labels, teacher = batch(samples=4)
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    errors = []
    for temperature in (10.0, 100.0, 1000.0):
        student.grad = None
        student.requires_grad_()
        distillation_loss(student, labels, teacher, 1.0, temperature).backward()
        errors.append((student.grad - (student.detach() - teacher) / 5 / 4).abs().max().item())
    assert errors[2] < 1e-2 and errors[0] > 5 * errors[1] > 25 * errors[2]


def test_a_doubled_batch_has_the_same_loss_and_another_mean_would_not():
    student, labels, teacher = batch()
    once = distillation_loss(student, labels, teacher, 0.5, 4.0)
    twice = distillation_loss(student.repeat(2, 1), labels.repeat(2), teacher.repeat(2, 1), 0.5, 4.0)
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)
    # An added class that nobody believes in changes nothing either, as a mean over classes would.
    wider = [torch.cat([logits, torch.full((6, 1), -1e4, dtype=torch.float64)], 1) for logits in (student, teacher)]
    torch.testing.assert_close(distillation_loss(wider[0], labels, wider[1], 0.5, 4.0), once, rtol=1e-10, atol=0)


@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_logits_count_up_to_a_constant(seed, one, other):
    student, labels, teacher = batch(seed)
    torch.testing.assert_close(distillation_loss(student + one, labels, teacher + other, 0.5, 4.0),
                               distillation_loss(student, labels, teacher, 0.5, 4.0), rtol=1e-9, atol=1e-9)


def test_an_agreeing_teacher_asks_for_nothing():
    student, labels, _ = batch()
    student.requires_grad_()
    found = distillation_loss(student, labels, student.detach() + 3.0, 1.0, 5.0)
    found.backward()
    assert abs(found.item()) < 1e-12 and student.grad.abs().max() < 1e-12


def gradient_of(loss, student, *rest):
    leaf = student.clone().requires_grad_()
    value = loss(leaf, *rest)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("wild", [False, True])
def test_without_soft_weight_the_loss_is_tl_to_the_bit(dtype, wild):
    student, labels, teacher = batch()
    if wild:
        teacher = teacher.clone()
        teacher[0], teacher[1, 2], teacher[2, 0] = INF, -INF, float("nan")
    tl = gradient_of(make_loss("tl"), student.to(dtype), labels, None)
    for temperature in (1.0, 10.0):
        kd = gradient_of(make_loss("tl_kd", 0.0, temperature), student.to(dtype), labels, teacher.to(dtype))
        assert torch.equal(tl[0], kd[0]) and torch.equal(tl[1], kd[1])
    other = gradient_of(make_loss("tl_kd", 1e-3, 4.0), student.to(dtype), labels, teacher.to(dtype))
    assert not torch.equal(tl[1], other[1])


def test_with_soft_weight_one_the_labels_do_not_count():
    student, labels, teacher = batch()
    one = gradient_of(make_loss("tl_kd", 1.0, 4.0), student, labels, teacher)
    other = gradient_of(make_loss("tl_kd", 1.0, 4.0), student, (labels + 1) % 5, teacher)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    found = distillation_loss(student, torch.full_like(labels, 99), teacher, 1.0, 4.0)  # not even looked at
    assert torch.equal(found, one[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    student, labels, teacher = (value.to(dtype) if value.is_floating_point() else value for value in batch(scale=6.0))
    for loss in (hard_loss, make_loss("tl_kd", 0.5, 10.0)):
        found = loss(student, labels, teacher)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(student.float(), labels, teacher.float()))
    assert gradient_of(make_loss("tl_kd", 0.5, 10.0), student, labels, teacher)[1].dtype == dtype
    rounded = torch.nn.functional.cross_entropy(student, labels)  # what it would be without
    assert rounded.dtype == dtype and rounded.float() != hard_loss(student, labels)


def test_a_float32_bank_beside_half_precision_logits_loses_nothing():
    student, labels, teacher = batch()
    found = distillation_loss(student.bfloat16(), labels, teacher.float(), 0.5, 10.0)
    assert torch.equal(found, distillation_loss(student.bfloat16().float(), labels, teacher.float(), 0.5, 10.0))


def test_autocast_leaves_the_losses_in_float32():
    student, labels, teacher = (value.float() if value.is_floating_point() else value for value in batch())
    for loss in (hard_loss, make_loss("tl_kd", 0.5, 10.0)):
        outside = loss(student, labels, teacher)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(student, labels, teacher), outside)


def test_extreme_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    for temperature in (0.5, 1.0, 100.0):
        value, slope = gradient_of(make_loss("tl_kd", 0.5, temperature), student, torch.tensor([1, 0]), -student)
        assert torch.isfinite(value) and torch.isfinite(slope).all()


def test_the_teacher_gets_no_gradient_where_its_logits_come_from_a_bank():
    student, labels, teacher = batch()
    assert not teacher.requires_grad
    assert make_loss("tl_kd", 0.5, 4.0)(student.requires_grad_(), labels, teacher).requires_grad


@pytest.mark.parametrize("arguments", [("label_smoothing",), ("tl_kd",), ("tl_kd", 0.5), ("tl_kd", None, 4.0), ("",)])
def test_what_makes_no_loss_is_refused(arguments):
    with pytest.raises(BadInput, match="make no loss"):
        make_loss(*arguments)


def test_an_arm_with_a_teacher_needs_soft_labels():
    student, labels, _ = batch()
    with pytest.raises(AssertionError, match="soft labels"):
        make_loss("tl_kd", 0.5, 4.0)(student, labels, None)


# --- label smoothing --------------------------------------------------------------------------------------------------


def smoothing_twin(student, labels, amount):
    """Cross-entropy with a label of which `amount` is spread over all classes, one number at a time."""
    total = 0.0
    for own, label in zip(student, labels, strict=True):
        given_by = softmax(own, 1.0)
        for number, chance in enumerate(given_by):
            target = amount / len(own) + (1 - amount if number == label else 0.0)
            total -= target * math.log(chance)
    return total / len(student)


@given(st.integers(0, 10**6), st.tuples(st.integers(1, 7), st.integers(2, 6), st.floats(0.1, 8)), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_label_smoothing_is_the_literal_sum(seed, shape_and_scale, amount):
    student, labels, teacher = batch(seed, *shape_and_scale)
    found = label_smoothing_loss(amount)(student, labels, teacher)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(smoothing_twin(student.tolist(), labels.tolist(), amount), rel=1e-9, abs=1e-11)
    assert label_smoothing_loss(amount)(student, labels, None).item() == found.item()


def test_nothing_smoothed_is_tl_and_all_of_it_knows_no_label():
    student, labels, _ = batch()
    tl = gradient_of(hard_loss, student, labels, None)
    none = gradient_of(label_smoothing_loss(0.0), student, labels, None)
    assert none[0] == tl[0] and torch.equal(none[1], tl[1])
    one, other = (gradient_of(label_smoothing_loss(1.0), student, each, None)[1] for each in (labels, (labels + 1) % 5))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert not torch.equal(gradient_of(label_smoothing_loss(0.1), student, labels, None)[1], tl[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_label_smoothing_is_computed_in_float32_at_least(dtype):
    student, labels, _ = batch()
    found = label_smoothing_loss(0.3)(student.to(dtype), labels, None)
    assert found.dtype == torch.float32
    assert found.item() == label_smoothing_loss(0.3)(student.to(dtype).float(), labels, None).item()


def entropy_twin(row, temperature):
    return -sum(chance * math.log(chance) for chance in softmax(row, temperature) if chance > 0)


@given(st.integers(0, 10**6), st.tuples(st.integers(1, 7), st.integers(2, 6), st.floats(0.1, 8)), st.floats(0.5, 20))
@settings(max_examples=50, deadline=None)
def test_the_mean_entropy_is_the_literal_one(seed, shape_and_scale, temperature):
    logits = batch(seed, *shape_and_scale)[0].float().numpy()
    expected = np.mean([entropy_twin(row, temperature) for row in logits.tolist()])
    assert mean_entropy(logits, temperature) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_mean_entropy_has_its_limits():
    assert mean_entropy(np.full((3, 7), 5.0, np.float32), 2.0) == pytest.approx(math.log(7))
    assert mean_entropy(np.array([[1e4, 0, -1e4], [0, 1e30, 0]], np.float32), 1.0) == 0.0
    sure, unsure = np.array([[9.0, 0, 0]], np.float32), np.array([[1.0, 0, 0]], np.float32)
    both = mean_entropy(np.concatenate([sure, unsure]), 1.0)
    assert both == pytest.approx((mean_entropy(sure, 1.0) + mean_entropy(unsure, 1.0)) / 2)
    assert mean_entropy(sure, 1.0) < mean_entropy(sure, 4.0) < math.log(3)


def smoothed_entropy(amount, classes):
    """The entropy of a label of which `amount` is spread over all classes, written out."""
    chances = [1 - amount + amount / classes, *[amount / classes] * (classes - 1)]
    return -sum(chance * math.log(chance) for chance in chances if chance > 0)


@given(st.floats(0, 1), st.integers(2, 1000))
@settings(max_examples=100, deadline=None)
def test_the_smoothing_has_the_entropy_that_was_asked_for(amount, classes):
    entropy = smoothed_entropy(amount, classes)
    found = smoothing_for(entropy, classes)
    assert 0 <= found <= 1
    assert smoothed_entropy(found, classes) == pytest.approx(entropy, abs=1e-9)
    if 1e-6 < amount < 0.999:  # where it is steep enough to be turned about
        assert found == pytest.approx(amount, rel=1e-4)


@pytest.mark.parametrize(("entropy", "classes", "amount"), [
    (0.0, 10, 0.0), (-1e-9, 10, 0.0), (math.log(10), 10, 1.0), (math.log(10) + 1e-6, 10, 1.0), (5.0, 2, 1.0)])
def test_the_smoothing_has_its_limits(entropy, classes, amount):
    assert smoothing_for(entropy, classes) == pytest.approx(amount, abs=1e-4)


def test_more_entropy_is_more_smoothing():
    amounts = [smoothing_for(entropy, 10) for entropy in np.linspace(0, math.log(10), 50)]
    assert all(one < other for one, other in itertools.pairwise(amounts))
