"""What tlkd's mathematics is held against: plain PyTorch, timm, scikit-learn, captum, and definitions written out.

Each function draws cases from a seed and gives the largest difference. Not a proof by itself: `truth.py` prints them.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tlkd import evaluation, losses
from tlkd.attribution import deep_shap

Case = tuple[Tensor, Tensor, Tensor, float, float]  # student's logits, labels, teacher's logits, weight, temperature
Rival = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
GRID = (1.0, 2.0, 4.0, 10.0, 20.0), (0.0, 0.1, 0.5, 0.9, 1.0), (2, 3, 10, 100, 1000), (0.1, 3.0, 30.0)


# --- distillation -----------------------------------------------------------------------------------------------------


def cases(seed: int, dtype: torch.dtype, step: int = 1) -> Iterator[Case]:
    """Batches over temperatures, weights, numbers of classes and sizes of logits; every `step`-th of them."""
    draw = torch.Generator().manual_seed(seed)
    for temperature, weight, classes, scale in list(itertools.product(*GRID))[::step]:
        samples = int(torch.randint(1, 65, (), generator=draw))
        student, teacher = (scale * torch.randn(2, samples, classes, generator=draw, dtype=torch.float64)).to(dtype)
        yield student, torch.randint(classes, (samples,), generator=draw), teacher, weight, temperature


def plain(student: Tensor, labels: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """The loss in a few lines of PyTorch, with no function for losses in them."""
    hard = -student.log_softmax(1)[torch.arange(len(labels)), labels].mean()
    target = (teacher / temperature).softmax(1)
    soft = (target * ((teacher / temperature).log_softmax(1) - (student / temperature).log_softmax(1))).sum(1).mean()
    return (1 - weight) * hard + weight * temperature**2 * soft


def hugging_face(student: Tensor, labels: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """As Hugging Face's distillation examples have it: `KLDivLoss(batchmean)` times the squared temperature."""
    soft = nn.KLDivLoss(reduction="batchmean")(functional.log_softmax(student / temperature, dim=-1),
                                               functional.softmax(teacher / temperature, dim=-1)) * temperature**2
    return (1 - weight) * functional.cross_entropy(student, labels) + weight * soft


class _Says(nn.Module):
    """A network that answers with given logits, in the clothes that timm's task asks for."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.num_classes, self.in_chans = logits.shape[1], 3
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "num_classes": logits.shape[1]}

    def forward(self, images: Tensor) -> Tensor:
        del images
        return self.logits


def timm(student: Tensor, labels: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """timm's own distillation task, run whole."""
    from timm.task import LogitDistillationTask

    says = _Says(student.detach())
    says.logits = student  # type: ignore[assignment]
    task = LogitDistillationTask(says, _Says(teacher), criterion=nn.CrossEntropyLoss(), task_loss_weight=1 - weight,
                                 temperature=temperature, verbose=False)
    loss: Tensor = task(torch.zeros(len(labels), 3, 1, 1), labels)["loss"]
    return loss


RIVALS: dict[str, Rival] = {"plain PyTorch": plain, "Hugging Face's formula": hugging_face,
                            "timm's `LogitDistillationTask`": timm}


def distillation(rival: Rival, seed: int, dtype: torch.dtype, step: int = 1) -> tuple[float, float]:
    """The largest relative differences of losses, and of gradients: each over its batch's largest entry.

    Ours is computed in `dtype`, the other always in float64, on the same numbers.
    """
    worst, slope = 0.0, 0.0
    for student, labels, teacher, weight, temperature in cases(seed, dtype, step):
        values, slopes = [], []
        for loss, kind in ((losses.distillation_loss, dtype), (rival, torch.float64)):
            leaf = nn.Parameter(student.to(kind))
            value = loss(leaf, labels, teacher.to(kind), weight, temperature)
            value.backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            values.append(value.item())
            slopes.append(leaf.grad.double())
        worst = max(worst, abs(values[0] - values[1]) / abs(values[1]))
        slope = max(slope, float((slopes[0] - slopes[1]).abs().max() / slopes[1].abs().max()))
    return worst, slope


def rounded(loss: Rival, seed: int, step: int = 1) -> tuple[float, float]:
    """The same of a loss in float32 against itself in float64: what rounding alone does to it."""
    worst = [0.0, 0.0]
    for student, labels, teacher, weight, temperature in cases(seed, torch.float32, step):
        found = []
        for kind in (torch.float32, torch.float64):
            leaf = nn.Parameter(student.to(kind))
            value = loss(leaf, labels, teacher.to(kind), weight, temperature)
            value.backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            found.append((value.detach().double(), leaf.grad.double()))
        worst = [max(most, float((one - other).abs().max() / other.abs().max()))
                 for most, one, other in zip(worst, *found, strict=True)]
    return worst[0], worst[1]


def smoothing(seed: int) -> float:
    """Label smoothing against timm's, in float64, losses and gradients."""
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    worst = 0.0
    for student, labels, _, weight, _ in cases(seed, torch.float64, 7):
        amount, classes = 0.9 * weight, student.shape[1]
        target = functional.one_hot(labels, classes).double() * (1 - amount) + amount / classes
        rivals = [LabelSmoothingCrossEntropy(amount), lambda logits, _, target=target: SoftTargetCrossEntropy()(
            logits, target)]
        found = []
        for loss in (lambda logits, given, amount=amount: losses.label_smoothing_loss(amount)(logits, given, None),
                     *rivals):
            leaf = student.clone().requires_grad_()
            value = loss(leaf, labels)
            value.backward()
            found.append(torch.cat([value.detach()[None], leaf.grad.flatten()]))
        worst = max(worst, *(float((found[0] - other).abs().max()) for other in found[1:]))
    return worst


# --- metrics ----------------------------------------------------------------------------------------------------------


def tables(seed: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels and logits: random ones, absent classes, one class alone, one sample, ties, wild confidence."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        classes, samples = int(rng.integers(2, 40)), int(rng.integers(1, 300))
        labels = rng.integers(0, classes, samples)
        logits = rng.normal(0, rng.choice([0.1, 2, 30]), (samples, classes))
        logits[np.arange(samples), labels] += rng.choice([0, 1, 4])
        kind = number % 5
        if kind == 1:
            labels = labels // 2  # the upper classes are absent, and predicted still
        elif kind == 2:
            labels = np.full(samples, classes - 1)
        elif kind == 3:
            logits = np.round(logits / logits.std())  # the largest logit is shared by several classes
        elif kind == 4:
            logits[:, 0] = 1e3  # one class is always predicted
        yield labels, logits


def ece(labels: np.ndarray, logits: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error, bin by bin, as it is defined."""
    from scipy.special import softmax

    chances = softmax(logits, axis=1)
    confidence, right, total = chances.max(1), chances.argmax(1) == labels, 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            total += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


def metrics(seed: int, count: int) -> dict[str, float]:
    """The largest difference of each metric from scikit-learn's, and of ece from its definition."""
    from scipy.special import softmax
    from sklearn import metrics as theirs

    worst: dict[str, float] = {}
    for labels, logits in tables(seed, count):
        found, predicted, there = evaluation.metrics(labels, logits), logits.argmax(1), np.unique(labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that are predicted and do not occur
            macro = {"labels": there, "average": "macro", "zero_division": 0}
            chances = softmax(logits, axis=1)
            expected = {
                "accuracy": theirs.accuracy_score(labels, predicted),
                "balanced_accuracy": theirs.balanced_accuracy_score(labels, predicted),
                "precision": theirs.precision_score(labels, predicted, **macro),
                "recall": theirs.recall_score(labels, predicted, **macro),
                "f1": theirs.f1_score(labels, predicted, **macro), "ece": ece(labels, logits)}
            if chances.min() > 1e-12:  # below, scikit-learn cuts probabilities off
                expected["log_loss"] = theirs.log_loss(labels, chances, labels=np.arange(logits.shape[1]))
        for name, value in expected.items():
            worst[name] = max(worst.get(name, 0.0), abs(found[name] - float(value)))
    return worst


# --- Deep SHAP --------------------------------------------------------------------------------------------------------


class OfPixels(nn.Module):
    """A function of pixels `[image, pixel]` as a network of images, in float64."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("anchor", torch.zeros(1, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images.flatten(1))[:, None]


def shapley(model: nn.Module, image: Tensor, reference: Tensor) -> Tensor:
    """Shapley values by their definition: every coalition of pixels shows the image, the others the reference."""
    count = image.numel()
    players = torch.tensor(list(itertools.product((False, True), repeat=count)))  # [coalition, pixel]
    shown = torch.where(players, image.flatten(), reference.flatten())
    with torch.no_grad():
        prize = model(shown.reshape(-1, *image.shape))[:, 0]
    size, values = players.sum(1), torch.zeros(count, dtype=torch.float64)
    weight = torch.tensor([math.factorial(k) * math.factorial(count - k - 1) / math.factorial(count)
                           for k in range(count)], dtype=torch.float64)
    place = 2 ** torch.arange(count - 1, -1, -1)
    for player in range(count):
        without = torch.nonzero(~players[:, player]).flatten()
        values[player] = (weight[size[without]] * (prize[without + place[player]] - prize[without])).sum()
    return values.reshape(image.shape)


def solvable(seed: int) -> dict[str, nn.Module]:
    """Networks of 10 pixels for which the rules give the Shapley values themselves."""
    draw = torch.Generator().manual_seed(seed)
    weight, other = torch.randn(2, 10, generator=draw, dtype=torch.float64)
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, (1, 2)), nn.ReLU(), nn.AvgPool2d((1, 3)),
                           nn.Flatten(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for layer in (layers[0], layers[2]):
            layer.bias.fill_(60.0)  # every unit is active for every coalition: one piece of a network of ReLUs
            layer.bias[0] = -200.0  # but one, which never is
    return {
        "a linear function": OfPixels(lambda x: x @ weight),
        "a sum of functions of one pixel each": OfPixels(
            lambda x: (functional.silu(weight * x) + (x - 1).relu()).sum(1)),
        "a product of two sums of other pixels": OfPixels(lambda x: (x[:, :4] @ weight[:4] + 1)
                                                          * (x[:, 4:] @ other[4:] - 2)),
        "a sum of products of two pixels": OfPixels(lambda x: (x[:, :5] * x[:, 5:].sigmoid()).sum(1)),
        "a maximum that the same pixel always has": OfPixels(lambda x: functional.max_pool2d(
            (x * weight + 90 * (torch.arange(10) == 3)).reshape(-1, 1, 2, 5), (2, 5)).flatten() + x @ other),
        "a convolutional network of ReLUs, within one piece": layers,
    }


def by_coalitions(seed: int) -> dict[str, float]:
    """Deep SHAP against all 1,024 coalitions, over three references; the largest difference of each network."""
    draw = torch.Generator().manual_seed(seed + 1)
    images, background = (torch.randn(count, 1, 2, 5, generator=draw, dtype=torch.float64) for count in (2, 3))
    worst = {}
    for name, model in solvable(seed).items():
        found = deep_shap(model.eval(), images, background, 0).values
        expected = torch.stack([torch.stack([shapley(model, image, each) for each in background]).mean(0)
                                for image in images])
        worst[name] = float((found - expected).abs().max())
    return worst


def small(kind: str, seed: int) -> nn.Sequential:
    """A small network of ReLUs, with maxima or averages pooled, that is not in one piece."""
    torch.manual_seed(seed)
    pool = nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(),
                           nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    with torch.no_grad():
        for name, weight in layers.named_parameters():
            weight.mul_(4 if name.endswith("weight") else 1)  # so that contributions are of order 1
    return layers


def lift(layers: nn.Sequential, image: Tensor, reference: Tensor, target: int) -> np.ndarray:
    """DeepLIFT by the rescale rule in numpy, layer by layer: linear layers as matrices, all else entry by entry."""
    with torch.no_grad():
        steps = [(image[None], reference[None])]
        for layer in layers:
            steps.append((layer(steps[-1][0]), layer(steps[-1][1])))
        multipliers = np.eye(steps[-1][0].numel())[target]
        for layer, (x, r) in zip(reversed(layers), reversed(steps[:-1]), strict=True):
            a, b = x.flatten().numpy(), r.flatten().numpy()
            if isinstance(layer, nn.ReLU):
                slope = [max(p, 0) - max(q, 0) for p, q in zip(a, b, strict=True)]
                multipliers = multipliers * np.divide(slope, a - b, out=np.zeros_like(a), where=a != b)
            elif isinstance(layer, nn.MaxPool2d):
                multipliers = _maxima(a.reshape(x.shape[1:]), b.reshape(x.shape[1:]), multipliers)
            else:
                basis = torch.eye(len(a), dtype=torch.float64).reshape(-1, *x.shape[1:])
                matrix = (layer(basis) - layer(torch.zeros_like(basis))).flatten(1).numpy()  # [input, output]
                multipliers = matrix @ multipliers
    return np.asarray(multipliers * (image - reference).flatten().numpy()).reshape(image.shape)


def _maxima(x: np.ndarray, r: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """Maxima of squares of two by two: up to the larger maximum at the image's place, from there at the reference's."""
    channels, height, width = x.shape
    found = np.zeros_like(x)
    windows = itertools.product(range(channels), range(0, height - 1, 2), range(0, width - 1, 2))
    for (channel, top, left), multiplier in zip(windows, multipliers, strict=True):
        inside = [(channel, top + i, left + j) for i in range(2) for j in range(2)]
        here, there = max(inside, key=lambda at: x[at]), max(inside, key=lambda at: r[at])
        most = max(x[here], r[there])
        for at, change in ((here, most - r[there]), (there, x[here] - most)):
            if change:
                found[at] += multiplier * change / (x[at] - r[at])
    return found.flatten()


def by_rescale(seed: int, networks: int) -> dict[str, float]:
    """Deep SHAP against the rescale rule written out, over networks with random weights."""
    worst = {"max": 0.0, "average": 0.0}
    for kind, number in itertools.product(worst, range(networks)):
        draw = torch.Generator().manual_seed(seed + number)
        images, background = (torch.randn(count, 2, 6, 6, generator=draw, dtype=torch.float64) for count in (2, 3))
        layers = small(kind, seed + number)
        found = deep_shap(layers, images, background, 1).values.numpy()
        expected = [np.mean([lift(layers, image, each, 1) for each in background], axis=0) for image in images]
        worst[kind] = max(worst[kind], float(np.abs(found - np.array(expected)).max()))
    return worst


def by_captum(seed: int, networks: int) -> float:
    """Deep SHAP against captum's, where captum's sums are right: without maxima, no module used twice."""
    import copy

    from captum.attr import DeepLiftShap

    worst = 0.0
    for number in range(networks):
        layers = small("average", seed + number)
        draw = torch.Generator().manual_seed(seed + number)
        images, background = (torch.randn(count, 2, 6, 6, generator=draw, dtype=torch.float64) for count in (2, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum sets hooks, and says so
            theirs = DeepLiftShap(copy.deepcopy(layers)).attribute(images, background, target=1)
        worst = max(worst, float((deep_shap(layers, images, background, 1).values - theirs.detach()).abs().max()))
    return worst
