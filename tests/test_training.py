"""The training loop against literal loops, and its promises: pairing, resuming to the bit, modes, failing in words."""

import copy
import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tlkd import conditions, models, progress, seeding, specs, views
from tlkd.batches import Pixels, Rows
from tlkd.draws import draw, whole
from tlkd.errors import RunFailed
from tlkd.losses import distillation_loss, hard_loss, make_loss
from tlkd.training import Fit, Task, _digest, epoch_batches, fit

CPU = torch.device("cpu")
CLASSES, WIDTH, SAMPLES, CHECKED = 3, 10, 41, 20
HALF = (0.5,) * 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- small worlds to train in -----------------------------------------------------------------------------------------


def convolutions():
    """With 3 x 3 kernels, whose channels-last layout is not the plain one, batch norm, and dropout in the middle."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def network_of(trainable, dropout=0.0):
    """`head`: for banked features, the backbone a stand-in; `all`: a small convolutional network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone, width = (nn.Linear(4, WIDTH), WIDTH) if trainable == "head" else (convolutions(), 6)
        network = models.Network(backbone, nn.Linear(width, CLASSES), name="tiny", classes=CLASSES, width=width,
                                 input_size=12, dropout=dropout, mean=HALF, sd=HALF, origin="here", licence=None)
    if trainable == "head":
        network.live = frozenset()
        network.backbone.requires_grad_(False)
    elif dropout == 0:
        network.backbone[3].p = 0.0
    return network.to(memory_format=torch.channels_last).eval()


def forward_of(network, trainable):
    return network.classify if trainable == "head" else network


def labels_of(count, seed):
    return np.random.default_rng(seed).integers(CLASSES, size=count)


def rows(count, seed, count_views=1, width=WIDTH):
    """Features that tell the classes apart, with much noise."""
    drawn = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLASSES, width))
    noise = drawn.standard_normal((count_views, count, width))
    return (centres[labels_of(count, seed)] + noise).astype(np.float32)


def pixels(count, seed, augment=("hflip", "crop:2")):
    drawn = np.random.default_rng(seed)
    colours = np.eye(3)[labels_of(count, seed)] * 80
    images = (drawn.integers(0, 176, (count, 14, 14, 3)) + colours[:, None, None]).astype(np.uint8)
    keys = seeding.keys([f"{seed}/{number}" for number in range(count)])
    return Pixels(images, np.arange(count), keys, views.train_views(augment), 12, 0, HALF, (0.25,) * 3, CPU)


def task_of(trainable, soft=False, **changes):
    if trainable == "head":
        train, check, count_views = Rows(rows(SAMPLES, 1, 2), CPU), Rows(rows(CHECKED, 2), CPU), 2
    else:
        train, check, count_views = pixels(SAMPLES, 1), pixels(CHECKED, 2, ()), 4
    teacher = Rows(rows(SAMPLES, 3, count_views, CLASSES) * 3, CPU) if soft else None
    task = {"inputs": train, "labels": labels_of(SAMPLES, 1), "views": count_views, "soft_labels": teacher,
            "check_name": "dev", "check_inputs": check, "check_labels": labels_of(CHECKED, 2)}
    task |= changes
    return Task(draw=whole(task.pop("labels")), **task)


def training(**changes):
    return specs.Training(**{"epochs": 4, "batch_size": 8, "learning_rate": 0.05, **changes})


def train(trainable, settings, *, loss=hard_loss, soft=False, dropout=0.0, seed=3, network=None, task=None, **options):
    network, task = network or network_of(trainable, dropout), task or task_of(trainable, soft)
    result = fit(network, forward_of(network, trainable), loss, task, settings, seed, CPU, **options)
    return network, result


def plain(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def same_bits(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- batches ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 70), st.integers(1, 6), st.integers(1, 20))
def test_an_epoch_holds_every_sample_once_and_no_lone_last_one(seed, epoch, count, count_views, size):
    batches = list(epoch_batches(seed, epoch, count, count_views, size))
    assert sorted(np.concatenate([samples for samples, _ in batches]).tolist()) == list(range(count))
    sizes = [len(samples) for samples, _ in batches]
    assert all(number == size for number in sizes[:-1])
    assert 1 <= sizes[-1] <= size + 1
    assert sizes[-1] > 1 or count == 1
    assert all(len(which) == len(samples) and which.dtype == np.int64 and set(which.tolist()) <= set(range(count_views))
               for samples, which in batches)


@pytest.mark.parametrize(("count", "sizes"), [(41, [8, 8, 8, 8, 9]), (42, [8, 8, 8, 8, 8, 2]), (40, [8] * 5), (9, [9]),
                                              (8, [8]), (1, [1]), (7, [7])])
def test_a_last_batch_of_one_joins_the_one_before(count, sizes):
    assert [len(samples) for samples, _ in epoch_batches(0, 1, count, 1, 8)] == sizes


def test_the_literal_batches():
    order = np.random.default_rng(seeding.seed_from("order", 5, 2)).permutation(20)
    which = np.random.default_rng(seeding.seed_from("views", 5, 2)).integers(4, size=20)
    found = list(epoch_batches(5, 2, 20, 4, 8))
    np.testing.assert_array_equal(np.concatenate([samples for samples, _ in found]), order)
    np.testing.assert_array_equal(np.concatenate([views for _, views in found]), which[order])


def test_order_and_views_change_with_seed_and_epoch_not_with_batch_size():
    def flat(*arguments):
        batches = list(epoch_batches(*arguments))
        return [np.concatenate(column).tolist() for column in zip(*batches, strict=True)]

    assert flat(0, 1, 50, 4, 8) == flat(0, 1, 50, 4, 7)
    for other in ((1, 1, 50, 4, 8), (0, 2, 50, 4, 8)):
        assert all(mine != theirs for mine, theirs in zip(flat(0, 1, 50, 4, 8), flat(*other), strict=True))
    assert flat(0, 1, 50, 1, 8)[1] == [0] * 50


def test_all_views_are_drawn_alike():
    drawn = [which for epoch in range(1, 41) for _, which in epoch_batches(0, epoch, 100, 4, 32)]
    assert np.abs(np.bincount(np.concatenate(drawn), minlength=4) / 4000 - 0.25).max() < 0.03


# --- against literal loops --------------------------------------------------------------------------------------------


def cosine(epoch, settings):
    return settings.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2


@pytest.mark.parametrize("kind", ["tl", "tl_kd"])
def test_head_training_is_the_literal_loop_in_numpy(kind):
    """Softmax regression with its gradient written out, in float64: SGD, momentum, weight decay, cosine."""
    settings, weight, temperature = training(epochs=5), 0.4 if kind == "tl_kd" else 0.0, 4.0
    start = network_of("head")
    w, b = (tensor.detach().double().numpy().copy() for tensor in (start.head.weight, start.head.bias))
    features, teacher = rows(SAMPLES, 1, 2).astype(float), (rows(SAMPLES, 3, 2, CLASSES) * 3).astype(float)
    labels, speed = labels_of(SAMPLES, 1), [np.zeros_like(w), np.zeros_like(b)]

    def softmax(values):
        powers = np.exp(values - values.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    for epoch in range(1, 6):
        rate = cosine(epoch, settings)
        for samples, which in epoch_batches(3, epoch, SAMPLES, 2, 8):
            x, z_t = features[which, samples], teacher[which, samples]
            z = x @ w.T + b
            slope = (1 - weight) * (softmax(z) - np.eye(CLASSES)[labels[samples]])
            slope += weight * temperature * (softmax(z / temperature) - softmax(z_t / temperature))
            slope /= len(samples)
            speed = [settings.momentum * speed[0] + slope.T @ x + settings.weight_decay * w,
                     settings.momentum * speed[1] + slope.sum(0) + settings.weight_decay * b]
            w, b = w - rate * speed[0], b - rate * speed[1]
    network, result = train("head", settings, loss=make_loss(kind, weight, temperature), soft=kind == "tl_kd")
    np.testing.assert_allclose(network.head.weight.detach().numpy(), w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(network.head.bias.detach().numpy(), b, rtol=0, atol=1e-6)
    assert np.abs(w - start.head.weight.detach().numpy()).max() > 0.1  # it went somewhere
    rates = [row["learning_rate"] for row in result.history]
    np.testing.assert_allclose(rates, [cosine(epoch, settings) for epoch in range(1, 6)])


@pytest.mark.parametrize("kind", ["tl", "tl_kd"])
def test_full_training_is_the_literal_loop_in_pytorch(kind):
    """Everything trained, batch norm and all: PyTorch's plainest optimiser by hand, on memory laid out plainly."""
    settings, weight, temperature = training(epochs=3), 0.5 if kind == "tl_kd" else 0.0, 4.0
    twin = network_of("all").to(memory_format=torch.contiguous_format).train()
    task = task_of("all", soft=kind == "tl_kd")
    speed = {}
    for epoch in (1, 2, 3):
        for samples, which in epoch_batches(3, epoch, SAMPLES, 4, 8):
            logits = twin(task.inputs(which, samples).contiguous())
            labels = torch.from_numpy(task.draw.given[samples])
            loss = nn.functional.cross_entropy(logits, labels)
            if kind == "tl_kd":
                soft = (task.soft_labels(which, samples) / temperature).softmax(1)
                divergence = (soft * (soft.log() - (logits / temperature).log_softmax(1))).sum(1).mean()
                loss = (1 - weight) * loss + weight * temperature**2 * divergence
            for name, parameter in twin.named_parameters():
                gradient, = torch.autograd.grad(loss, parameter, retain_graph=True)
                gradient = gradient + settings.weight_decay * parameter.detach()
                speed[name] = settings.momentum * speed.get(name, 0) + gradient
            with torch.no_grad():
                for name, parameter in twin.named_parameters():
                    parameter.sub_(cosine(epoch, settings) * speed[name])
    network, result = train("all", settings, loss=make_loss(kind, weight, temperature), soft=kind == "tl_kd", task=task)
    start = network_of("all").state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name], rtol=1e-5, atol=2e-6)
        assert not torch.equal(tensor, start[name]), f"{name} was not trained"
    assert result.epochs == 3


def test_adamw_is_pytorchs():
    settings = training(optimiser="adamw", schedule="constant", weight_decay=0.1, learning_rate=0.01)
    network, _ = train("head", settings)
    twin, task = network_of("head").head, task_of("head")
    optimiser = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1, fused=False, foreach=False)
    for epoch in range(1, 5):
        for samples, which in epoch_batches(3, epoch, SAMPLES, 2, 8):
            optimiser.zero_grad()
            hard_loss(twin(task.inputs(which, samples)), torch.from_numpy(task.draw.given[samples])).backward()
            optimiser.step()
    torch.testing.assert_close(network.head.weight, twin.weight, rtol=0, atol=1e-6)


def test_the_history_is_what_happened():
    task, settings = task_of("head"), training(epochs=3)
    network, states = network_of("head"), []
    losses, means = [], []

    def noted(logits, labels, soft_labels):
        value = hard_loss(logits, labels)
        losses.append(value.item())
        return value

    def on_epoch(result):
        means.append(np.mean(losses))
        losses.clear()
        states.append(copy.deepcopy(network.head))
        assert result.epochs == len(states)

    _, result = train("head", settings, loss=noted, network=network, task=task, on_epoch=on_epoch)
    assert list(result.history[0]) == ["epoch", "learning_rate", "train_loss", "dev_loss", "dev_accuracy", "seconds"]
    checked, labels = torch.from_numpy(rows(CHECKED, 2)[0]), torch.from_numpy(task.check_labels)
    for number, (row, head) in enumerate(zip(result.history, states, strict=True)):
        logits = head(checked)
        assert row["epoch"] == number + 1 and row["seconds"] > 0
        assert row["train_loss"] == pytest.approx(means[number], rel=1e-6)
        assert row["dev_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
        assert row["dev_accuracy"] == (logits.argmax(1) == labels).double().mean().item()
    best = max(result.history, key=lambda row: row["dev_accuracy"])
    assert (result.best_epoch, result.best_accuracy) == (best["epoch"], best["dev_accuracy"])


def test_the_columns_are_called_after_what_is_looked_at():
    _, result = train("head", training(epochs=1), task=task_of("head", check_name="test"))
    assert "test_accuracy" in result.history[0] and not any(key.startswith("dev") for key in result.history[0])


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_training_lowers_the_loss(trainable, optimiser):
    settings = training(epochs=8, optimiser=optimiser, learning_rate=0.05 if optimiser == "sgd" else 0.02)
    _, result = train(trainable, settings, soft=True, loss=make_loss("tl_kd", 0.1, 4.0))
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert result.best_accuracy > 0.6


# --- pairing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("wild", [False, True])
def test_without_soft_weight_an_arm_is_tl_to_the_bit(trainable, wild):
    task = task_of(trainable, soft=True)
    if wild:
        task = replace(task, soft_labels=lambda which, samples: torch.full((len(samples), CLASSES), math.inf))
    settings = training(report_epoch="best")
    tl, tl_result = train(trainable, settings, dropout=0.3)
    kd, kd_result = train(trainable, settings, dropout=0.3, loss=make_loss("tl_kd", 0.0, 10.0), task=task)
    assert same_bits(tl, kd) and plain(tl_result.history) == plain(kd_result.history)
    other, _ = train(trainable, settings, dropout=0.3, loss=make_loss("tl_kd", 1e-3, 10.0), soft=True)
    assert not same_bits(tl, other)


def shown_in(trainable, loss, seed, soft):
    """Every batch that training asks for, and which units dropout left, in one training."""
    task, asked, kept = task_of(trainable, soft), [], []

    def inputs(which, samples):
        asked.append((which.tolist(), samples.tolist()))
        return task.inputs(which, samples)

    network = network_of(trainable, dropout=0.4)

    def note(module, given, result):
        if module.training:
            kept.append((result.detach() != 0) | (given[0] == 0))

    network.dropout.register_forward_hook(note)
    train(trainable, training(epochs=2), loss=loss, seed=seed, network=network, task=replace(task, inputs=inputs))
    return asked, kept


def test_arms_of_one_seed_see_the_same_samples_views_and_dropout():
    tl = shown_in("head", hard_loss, 5, False)
    kd = shown_in("head", make_loss("tl_kd", 0.9, 4.0), 5, True)
    assert tl[0] == kd[0] and len(tl[0]) == 2 * 5
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(tl[1], kd[1], strict=True))
    assert not all(mask.all() for mask in tl[1])
    other = shown_in("head", hard_loss, 6, False)
    assert other[0] != tl[0] and not torch.equal(other[1][0], tl[1][0])
    assert tl[0][:5] != tl[0][5:] and not torch.equal(tl[1][0], tl[1][5])  # nor are two epochs alike


def test_soft_labels_are_those_of_the_view_that_the_student_sees():
    task, asked = task_of("head", soft=True), {"inputs": [], "soft_labels": []}

    def spy(name):
        def source(which, samples):
            asked[name].append((which.tolist(), samples.tolist()))
            return getattr(task, name)(which, samples)
        return source

    targets = []

    def loss(logits, labels, soft_labels):
        targets.append((labels.tolist(), soft_labels.clone()))
        return distillation_loss(logits, labels, soft_labels, 0.5, 4.0)

    train("head", training(epochs=2), loss=loss, task=replace(task, **{name: spy(name) for name in asked}))
    assert asked["inputs"] == asked["soft_labels"] and len(targets) == 10
    for (which, samples), (labels, soft) in zip(asked["inputs"], targets, strict=True):
        assert labels == task.draw.given[samples].tolist()
        np.testing.assert_array_equal(soft.numpy(), (rows(SAMPLES, 3, 2, CLASSES) * 3)[which, samples])


def hard_draw(redraw="never", kept=0.7):
    """A third of the labels wrong and half of the images corrupted, of some of the samples."""
    condition = conditions.Condition.model_validate(conditions.as_tuples({
        "name": "hard", "train_fraction": kept, "label_noise": {"fraction": 0.3, "redraw": redraw},
        "corruption": {"kind": "jpeg", "fraction": 0.5, "variants": 2, "redraw": redraw}}))
    keys = seeding.keys([str(number) for number in range(SAMPLES)])
    return draw(condition, 3, ("a", "b", "c"), labels_of(SAMPLES, 1), keys)


@pytest.mark.parametrize("redraw", ["never", "epoch"])
def test_a_drawn_training_sees_what_was_drawn_and_nothing_else(redraw):
    drawn, asked, told = hard_draw(redraw), [], []
    bank = rows(SAMPLES, 1, 6)  # two views, clean and in two variants

    def inputs(which, samples):
        asked.append((which, samples))
        return Rows(bank, CPU)(which, samples)

    def loss(logits, labels, soft_labels):
        told.append(labels.numpy())
        return hard_loss(logits, labels)

    train("head", training(epochs=3), loss=loss, task=replace(task_of("head"), draw=drawn, inputs=inputs))
    stored = drawn.stored(3)
    assert sum(len(samples) for _, samples in asked) == 3 * len(stored["samples"])
    place_of = {sample: place for place, sample in enumerate(stored["samples"].tolist())}
    seen, steps = [], len(asked) // 3
    for step, ((which, samples), labels) in enumerate(zip(asked, told, strict=True)):
        epoch = step // steps
        places = [place_of[sample] for sample in samples.tolist()]  # a sample that was dropped has none
        of_epoch = (stored[name][epoch] if redraw == "epoch" else stored[name] for name in ("labels", "variants"))
        expected_labels, variants = (each[places] for each in of_epoch)
        np.testing.assert_array_equal(labels, expected_labels)
        np.testing.assert_array_equal(which // 2, variants)
        seen += samples.tolist()
    assert sorted(seen) == sorted(stored["samples"].tolist() * 3)
    views_of_one_variant = {int(view) for which, _ in asked for view in which}
    assert views_of_one_variant == set(range(6))


@pytest.mark.parametrize("redraw", ["never", "epoch"])
def test_a_stopped_training_under_a_difficulty_goes_on_to_the_bit(tmp_path, redraw):
    task = replace(task_of("head"), draw=hard_draw(redraw), inputs=Rows(rows(SAMPLES, 1, 6), CPU))
    whole_one, _ = train("head", training(epochs=4), task=task)
    train("head", training(epochs=2, schedule="constant"), task=task, checkpoint=tmp_path / "a")
    steady, _ = train("head", training(epochs=4, schedule="constant"), task=task)
    resumed, result = train("head", training(epochs=4, schedule="constant"), task=task, checkpoint=tmp_path / "a")
    assert result.epochs == 4 and same_bits(resumed, steady)
    assert not same_bits(steady, whole_one)  # nor are two trainings the same whatever they do


def test_the_same_training_twice_gives_the_same_bits_and_another_seed_does_not():
    settings = training()
    first, _ = train("all", settings, dropout=0.2)
    torch.manual_seed(77)
    np.random.seed(77)
    assert same_bits(train("all", settings, dropout=0.2)[0], first)
    assert not same_bits(train("all", settings, dropout=0.2, seed=4)[0], first)


# --- resuming ---------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def interrupted(trainable, settings, stops, path, **options):
    """A training that is stopped after each of these epochs, and goes on each time in a new network."""
    for stop in stops:
        def kill(result, stop=stop):
            if result.epochs == stop:
                raise Killed

        with pytest.raises(Killed):
            train(trainable, settings, checkpoint=path, on_epoch=kill, **options)
    return train(trainable, settings, checkpoint=path, **options)


@pytest.mark.parametrize("trainable", ["head", "all"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_training_is_bit_identical(tmp_path, trainable, optimiser, schedule, dropout):
    settings = training(epochs=6, optimiser=optimiser, schedule=schedule, plateau_patience=0, plateau_factor=0.5,
                        report_epoch="best", learning_rate=0.03)
    options = {"dropout": dropout, "soft": True, "loss": make_loss("tl_kd", 0.3, 4.0)}
    whole, whole_result = train(trainable, settings, **options)
    for stops in ([1], [4], [2, 3]):
        path = tmp_path / str(stops) / "checkpoint.safetensors"
        resumed, result = interrupted(trainable, settings, stops, path, **options)
        assert same_bits(whole, resumed), f"stopped after epoch {stops}"
        assert plain(result.history) == plain(whole_result.history)
        assert (result.best_epoch, result.best_accuracy) == (whole_result.best_epoch, whole_result.best_accuracy)
        assert [item.name for item in path.parent.iterdir()] == ["checkpoint.safetensors"]
    if schedule == "plateau":  # the schedule's own state was put to the test
        assert whole_result.history[-1]["learning_rate"] < settings.learning_rate


@pytest.mark.parametrize("changes", [{"momentum": 0.0}, {"report_epoch": "last"}, {"precision": "bf16"},
                                     {"early_stopping": 3}])
def test_a_resumed_training_is_bit_identical_in_other_settings_too(tmp_path, changes):
    settings = training(**{"epochs": 6, **changes})
    whole, whole_result = train("all", settings, dropout=0.2)
    resumed, result = interrupted("all", settings, [2], tmp_path / "c.safetensors", dropout=0.2)
    assert same_bits(whole, resumed) and plain(result.history) == plain(whole_result.history)


def test_what_a_checkpoint_leaves_out_would_be_noticed(tmp_path):
    """The test above can fail: drop the momentum from the checkpoint and the weights differ."""
    settings, path = training(epochs=4), tmp_path / "c.safetensors"
    whole, _ = train("all", settings)

    def kill(result):
        if result.epochs == 2:
            raise Killed

    with pytest.raises(Killed):
        train("all", settings, checkpoint=path, on_epoch=kill)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert any(name.startswith("optimiser/") for name in tensors)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimiser/")}
    save_file(kept, path, metadata={**metadata, "sha256": _digest(metadata["rest"], kept)})
    assert not same_bits(train("all", settings, checkpoint=path)[0], whole)


def test_a_bit_that_flipped_in_a_checkpoint_never_comes_into_the_weights(tmp_path, capsys):
    settings, path = training(epochs=4), tmp_path / "c.safetensors"
    whole, _ = train("all", settings)

    def kill(result):
        if result.epochs == 2:
            raise Killed

    with pytest.raises(Killed):
        train("all", settings, checkpoint=path, on_epoch=kill)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # of a tensor, where safetensors itself looks at nothing
    path.write_bytes(content)
    assert same_bits(train("all", settings, checkpoint=path)[0], whole)
    assert "its checksum does not match); this training starts anew" in capsys.readouterr().err


def test_a_finished_training_is_not_repeated(tmp_path):
    settings, path = training(report_epoch="best"), tmp_path / "c.safetensors"
    whole, whole_result = train("all", settings, checkpoint=path)
    task = replace(task_of("all"), inputs=lambda *_: pytest.fail("it trained again"))
    again, result = train("all", settings, checkpoint=path, task=task, network=network_of("all").train())
    assert same_bits(whole, again) and result.history == whole_result.history
    assert not any(module.training for module in again.modules())


def test_a_killed_write_does_not_harm_the_last_checkpoint(tmp_path, monkeypatch):
    settings, path = training(epochs=4), tmp_path / "c.safetensors"
    whole, _ = train("all", settings)
    written = []

    def failing(tensors, target, metadata):
        written.append(target)
        if len(written) == 3:
            target.write_bytes(b"half")
            raise OSError("no more")
        save_file(tensors, target, metadata)

    monkeypatch.setattr("tlkd.training.save_file", failing)
    with pytest.raises(OSError, match="no more"):
        train("all", settings, checkpoint=path)
    assert [item.name for item in tmp_path.iterdir()] == ["c.safetensors"]
    monkeypatch.undo()
    (tmp_path / "c.tmp").write_bytes(b"half")  # as SIGKILL would leave it
    resumed, _ = train("all", settings, checkpoint=path)
    assert same_bits(whole, resumed) and [item.name for item in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "empty", "of another"])
def test_a_damaged_checkpoint_is_said_and_the_training_starts_anew(tmp_path, capsys, damage):
    progress.console.cache_clear()
    settings, path = training(epochs=2), tmp_path / "c.safetensors"
    whole, result = train("all", settings, checkpoint=path)
    if damage == "of another":
        save_file({"x": torch.zeros(3)}, path)
    else:
        path.write_bytes(path.read_bytes()[:-100 if damage == "cut" else 0])
    again, anew = train("all", settings, checkpoint=path)
    assert same_bits(again, whole) and plain(anew.history) == plain(result.history)
    said = capsys.readouterr().err
    progress.console.cache_clear()
    assert str(path) in said and "starts anew" in said


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    path = tmp_path / "c.safetensors"
    train("all", training(epochs=1), checkpoint=path)
    with safe_open(path, framework="pt") as file:
        rest = json.loads(file.metadata()["rest"])
        names = set(file.keys())
    assert {"history", "best_epoch", "groups", "scheduler"} <= set(rest)
    assert {name.split("/")[0] for name in names} == {"model", "best", "optimiser"}
    assert {"model/backbone.1.running_mean", "model/head.weight"} <= names


# --- schedules, stopping, choosing ------------------------------------------------------------------------------------


class Scripted:
    """Logits for the check whose accuracy is scripted, an epoch at a time."""

    def __init__(self, accuracies):
        self.accuracies, self.epoch = accuracies, 0

    def __call__(self, which, samples):
        right = round(self.accuracies[self.epoch] * CHECKED)
        self.epoch += 1
        labels = labels_of(CHECKED, 2)
        shown = np.where(np.arange(CHECKED) < right, labels, (labels + 1) % CLASSES)
        return torch.eye(CLASSES)[torch.from_numpy(shown)]


def scripted(accuracies, **changes):
    """Train a head while the check says what the script says; also each epoch's weights."""
    network, states = network_of("head"), []
    task = task_of("head", check_inputs=Scripted(accuracies))
    settings = training(**{"epochs": len(accuracies), **changes})
    result = fit(network, lambda x: network.classify(x) if network.training else x, hard_loss, task, settings, 3, CPU,
                 on_epoch=lambda _: states.append(copy.deepcopy(network)))
    assert [row["dev_accuracy"] for row in result.history] == pytest.approx(accuracies[:result.epochs])
    return network, result, states


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.3, 0.9])
def test_a_plateau_lowers_the_rate_by_its_factor_after_its_patience(patience, factor):
    accuracies = [0.2, 0.5, 0.5, 0.4, 0.5, 0.5, 0.55, 0.5, 0.5, 0.5, 0.5, 0.5]
    _, result, _ = scripted(accuracies, schedule="plateau", plateau_patience=patience, plateau_factor=factor)
    expected, rate, best, waited = [], 0.05, -1.0, 0
    for accuracy in accuracies:
        expected.append(rate)
        best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
        if waited > patience:
            rate, waited = rate * factor, 0
    assert [row["learning_rate"] for row in result.history] == pytest.approx(expected)
    assert expected[-1] < 0.05


@pytest.mark.parametrize(("schedule", "rates"), [
    ("constant", [0.05] * 4), ("cosine", [0.05, 0.05 * (2 + math.sqrt(2)) / 4, 0.025, 0.05 * (2 - math.sqrt(2)) / 4])])
def test_the_other_schedules(schedule, rates):
    _, result, _ = scripted([0.5] * 4, schedule=schedule)
    assert [row["learning_rate"] for row in result.history] == pytest.approx(rates)


@pytest.mark.parametrize(("accuracies", "patience", "epochs"), [
    ([0.5] * 6, 2, 3), ([0.5] * 6, None, 6), ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 5), ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 5),
    ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 3, 6), ([0.0, 0.0, 0.0, 0.5], 2, 3)])
def test_early_stopping_waits_as_long_as_it_says(accuracies, patience, epochs):
    _, result, _ = scripted(accuracies, early_stopping=patience)
    assert result.epochs == epochs


@pytest.mark.parametrize(("report_epoch", "epoch"), [("last", 5), ("best", 3)])
def test_the_reported_epochs_weights_are_left(report_epoch, epoch):
    """The first of the best ones, where two are as good."""
    network, result, states = scripted([0.2, 0.5, 0.8, 0.5, 0.8], report_epoch=report_epoch)
    assert result.best_epoch == 3 and result.best_accuracy == pytest.approx(0.8)
    assert [same_bits(network, state) for state in states] == [number == epoch for number in (1, 2, 3, 4, 5)]


def test_the_best_epochs_batch_statistics_come_back_too():
    network, states = network_of("all"), []
    settings = training(epochs=6, report_epoch="best", learning_rate=0.2)
    _, result = train("all", settings, network=network, on_epoch=lambda _: states.append(copy.deepcopy(network)))
    assert result.best_epoch < 6, "choose a rate at which the last epoch is not the best"
    assert same_bits(network, states[result.best_epoch - 1]) and not same_bits(network, states[-1])


# --- failing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_fails_with_epoch_and_step(value, word):
    calls = itertools.count(1)

    def loss(logits, labels, soft_labels):
        return hard_loss(logits, labels) * (value if next(calls) == 8 else 1)

    with pytest.raises(RunFailed, match=rf"^epoch 2, step 3: the loss is {word}; .*training\.learning_rate"):
        train("head", training(), loss=loss)
    assert next(calls) <= 12  # it did not go on for another epoch


def test_a_learning_rate_that_is_too_high_fails_in_words():
    with pytest.raises(RunFailed, match=r"^epoch 1, step \d+: the loss is (nan|inf)"):
        train("all", training(learning_rate=1e30))


def test_weights_spoilt_by_the_very_last_step_are_noticed():
    """No training loss is taken after it; only the look at dev can tell."""
    with pytest.raises(RunFailed, match=r"^epoch 1, step 1: the dev loss after it is nan"):
        train("head", training(epochs=1, batch_size=64, learning_rate=3e38, momentum=0.0, schedule="constant"),
              task=task_of("head", inputs=lambda which, samples: torch.full((len(samples), WIDTH), 1e3)))


def test_a_failure_leaves_the_last_good_checkpoint(tmp_path):
    calls = itertools.count(1)

    def loss(logits, labels, soft_labels):
        return hard_loss(logits, labels) * (math.nan if next(calls) == 8 else 1)

    path = tmp_path / "c.safetensors"
    with pytest.raises(RunFailed):
        train("head", training(), loss=loss, checkpoint=path)
    with safe_open(path, framework="pt") as file:
        assert len(json.loads(file.metadata()["rest"])["history"]) == 1
        assert all(torch.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118


# --- modes, randomness, threads, precision ----------------------------------------------------------------------------


def watch(network):
    """What mode each module was in whenever it ran, by phase: training, or looking."""
    seen = {}

    def note(name):
        def hook(module, _):
            phase = "look" if torch.is_inference_mode_enabled() else "train"
            seen.setdefault((phase, name), set()).add(module.training)
        return hook

    for name, module in network.named_modules():
        module.register_forward_pre_hook(note(name))
    return seen


@pytest.mark.parametrize(("trainable", "batch_norm"), [("all", "eval"), ("last:1", "eval"), ("last:1", "train"),
                                                       ("head", "eval")])
def test_what_is_trained_is_in_train_mode_while_it_is_and_at_no_other_time(trainable, batch_norm):
    """On a real network, in parts: timm's smallest ResNet."""
    spec = specs.Network(model="timm:test_resnet", weights="none", input_size=32, trainable=trainable,
                         batch_norm=batch_norm)
    network = models.build(spec, CLASSES, 0)
    before = copy.deepcopy(network.state_dict())
    seen = watch(network)
    shown, looked_at = (replace(pixels(10, number), size=32) for number in (0, 1))
    task = task_of("all", inputs=shown, labels=labels_of(10, 0), check_inputs=looked_at, check_labels=labels_of(10, 1))
    train("all", training(epochs=2), network=network, task=task)
    assert not any(module.training for module in network.modules())
    modes = {phase: {name: mode for (where, name), mode in seen.items() if where == phase}
             for phase in ("train", "look")}
    assert all(mode == {False} for mode in modes["look"].values()) and "head" in modes["look"]
    assert modes["train"].pop("") == modes["train"].pop("head") == modes["train"].pop("dropout") == {True}
    for name, mode in modes["train"].items():
        assert mode == {name.removeprefix("backbone").removeprefix(".") in network.live}, name
    assert len(network.live) > 5 or (trainable, batch_norm) == ("head", "eval")
    trained = models.trained_state(network).keys()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trained, "what is frozen stays; what is trained moves"


@pytest.mark.parametrize("how", ["to the end", "failing", "stopped"])
def test_global_randomness_and_threads_are_left_as_they_were(how):
    during = []

    def loss(logits, labels, soft_labels):
        during.append(torch.get_num_threads())
        return hard_loss(logits, labels) * (math.nan if how == "failing" else 1)

    def on_epoch(result):
        if how == "stopped":
            raise Killed

    torch.manual_seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.is_grad_enabled()
    assert torch.get_num_threads() == 1
    try:
        train("head", training(threads=2), dropout=0.5, loss=loss, on_epoch=on_epoch)
    except (RunFailed, Killed):
        assert how != "to the end"
    assert set(during) == {2} and torch.get_num_threads() == 1
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate(), torch.is_grad_enabled()
    assert torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1]) and before[2:] == after[2:]


def test_the_callers_randomness_does_not_reach_in_and_heads_do_not_mind_threads():
    settings = training()
    torch.manual_seed(1)
    first, _ = train("head", settings, dropout=0.5)
    torch.manual_seed(2)
    assert same_bits(train("head", settings, dropout=0.5)[0], first)
    more, _ = train("head", training(threads=2), dropout=0.5)
    torch.testing.assert_close(more.head.weight, first.head.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_precision_is_that_of_the_network_alone(precision):
    """Weights, images and the loss stay in float32; in between the network computes in what the study says."""
    half = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    network, inputs, outputs = network_of("all"), [], []
    network.register_forward_pre_hook(lambda _, given: inputs.append(given[0].dtype))

    def loss(logits, labels, soft_labels):
        value = distillation_loss(logits, labels, soft_labels, 0.5, 4.0)
        outputs.append((logits.dtype, soft_labels.dtype, value.dtype))
        return value

    _, result = train("all", training(epochs=3, precision=precision), network=network, soft=True, loss=loss)
    assert set(inputs) == {torch.float32}
    assert set(outputs) == {(half, torch.float32, torch.float32)}
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in network.state_dict().values())
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    full, _ = train("all", training(epochs=3), soft=True, loss=make_loss("tl_kd", 0.5, 4.0))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, full.state_dict()[name], rtol=0, atol=0.2)
    assert same_bits(network, full) == (precision == "float32")


def test_frozen_parameters_do_not_move_and_have_no_gradient():
    network, _ = train("head", training(weight_decay=0.1))
    assert same_bits(network.backbone, network_of("head").backbone)
    assert all(parameter.grad is None for parameter in network.backbone.parameters())


def test_an_empty_fit():
    assert Fit().epochs == 0 and Fit().best_epoch == 0
