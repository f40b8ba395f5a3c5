"""Does tlkd find what is known to be true? Hypotheses 2 and 3 with planted truths, and the mathematics beside others'.

    python proofs/truth.py [--short]

Hypothesis 2: the scenes of `shapes` with warm objects on cold grounds, so that a network whose weights are set by hand
can tell them apart; one such network names the object by its outline and sees nothing else, one names the ground by its
texture. Hypothesis 3: accuracy curves that reach their thresholds, and cross, where a pencil says. Exit code 1, with a
line for each, where a truth is not found.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import oracles
from common import limits, options, publish, table
from tlkd import contrasts, foreground, regions, scenery, seeding, shapes
from tlkd.attribution import deep_shap
from tlkd.convergence import convergence, crossings
from tlkd.evaluation import reliability
from tlkd.folder import Run
from tlkd.program import Program, trace
from tlkd.reading import validate
from tlkd.specs import Shapes, Study

SIDE = 32
SETTINGS = Shapes(size=SIDE, train_per_class=40, test_per_class=40, tie=1.0)
WARM, COLD = np.array([1.0, 0.45, 0.1], np.float32), np.array([0.1, 0.45, 1.0], np.float32)
Floats = NDArray[np.float64]


# --- scenes and networks for hypothesis 2 -----------------------------------------------------------------------------


def scene(sample_id: str) -> Floats:
    """A scene of `shapes` whose object is painted in tones of one warm colour, its ground in tones of a cold one."""
    painted = shapes.compose(sample_id, SETTINGS, 0)
    warm, cold = (0.25 + 0.75 * each.mean(axis=0) for each in (painted.thing, painted.ground))
    painted = replace(painted, thing=warm * WARM[:, None, None], ground=cold * COLD[:, None, None])
    return shapes.photograph(painted, sample_id, SETTINGS, 0).transpose(2, 0, 1) / 255


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures `[image, RGB, row, column]` in [0, 1], their classes and masks."""

    ids: tuple[str, ...]
    images: Tensor
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def scenes(split: str, per_class: int) -> Scenes:
    """The first scenes of each class."""
    ids = tuple(f"{split}/{name}/{number:04d}" for name in shapes.CLASSES for number in range(per_class))
    return Scenes(ids, torch.from_numpy(np.stack([scene(each) for each in ids]).astype(np.float32)),
                  np.repeat(np.arange(len(shapes.CLASSES)), per_class),
                  np.stack([shapes.mask(each, SETTINGS, 0) for each in ids]))


def outlines(per_class: int) -> Tensor:
    """Outlines of each class, drawn anew at several sizes and turns, of length 1, `[class x outline, 1, 15, 15]`."""
    found = []
    for name, (outline, limit) in scenery.SILHOUETTES.items():
        rng = seeding.generator("truth", "outlines", name)
        for _ in range(per_class):
            turn, scale, mirror = np.radians(rng.uniform(-limit, limit)), rng.uniform(0.55, 0.98), rng.choice([-1, 1])
            pose = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * [[mirror], [1]]
            parts = [(tone, points @ pose) for tone, points in outline(rng)]
            solid = np.concatenate([points for tone, points in parts if tone != scenery.HOLE])
            middle, extent = (solid.max(0) + solid.min(0)) / 2, np.ptp(solid, axis=0).max()
            placed = [(tone, (points - middle) / extent * scale + 0.5) for tone, points in parts]
            drawn = scenery.pooled((scenery.tones(placed, 60) > 0).astype(np.float32), 4) / 16
            found.append(drawn / np.linalg.norm(drawn))
    return torch.tensor(np.stack(found), dtype=torch.float32)[:, None]


class SeesObjects(nn.Module):
    """Names the outline of what is warm: a colour detector, outlines laid everywhere, the best fit of each class."""

    def __init__(self, per_class: int = 24) -> None:
        super().__init__()
        self.colour, self.fit = nn.Conv2d(3, 2, 1), nn.Conv2d(1, per_class * 10, 15, padding=7, bias=False)
        self.head, self.per_class = nn.Linear(10, 10, bias=False), per_class
        with torch.no_grad():
            self.colour.weight.copy_(torch.tensor([[10.0, 0, -30.0]] * 2)[:, :, None, None])
            self.colour.bias.copy_(torch.tensor([-1.0, -2.0]))  # the difference of both, cut at 0, is 0 to 1
            self.fit.weight.copy_(outlines(per_class))
            self.head.weight.copy_(4 * (torch.eye(10) - 0.1))

    def forward(self, images: Tensor) -> Tensor:
        low, high = self.colour(images).relu().split(1, dim=1)
        fits = functional.max_pool2d(self.fit(functional.avg_pool2d(low - high, 2)), SIDE // 2)
        best = functional.max_pool2d(fits.reshape(-1, 1, 10, self.per_class), (1, self.per_class))
        return self.head(best.flatten(1))


def strokes() -> Tensor:
    """Even and odd waves in eight directions and two widths, of mean 0, `[filter, 1, 7, 7]`."""
    at = torch.arange(7) - 3.0
    down, right = torch.meshgrid(at, at, indexing="ij")
    found = []
    for number in range(8):
        along = right * np.cos(np.pi * number / 8) + down * np.sin(np.pi * number / 8)
        for length in (2.5, 5.0):
            for phase in (0.0, np.pi / 2):
                wave = torch.cos(2 * np.pi * along / length + phase) * torch.exp(-(down**2 + right**2) / 8)
                found.append(wave - wave.mean())
    return torch.stack(found)[:, None]


class SeesGrounds(nn.Module):
    """Names the ground by the strokes in what is cold; its head follows from classes' means, in closed form."""

    def __init__(self, learnt_from: Scenes) -> None:
        super().__init__()
        filters = strokes()
        self.colour, self.stroke = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2 * len(filters), 7, bias=False)
        self.head = nn.Linear(2 * len(filters) + 1, 10)
        with torch.no_grad():
            self.colour.weight.copy_(torch.tensor([-1.0, 0, 1.0])[None, :, None, None])
            self.colour.bias.fill_(-0.12)
            self.stroke.weight.copy_(torch.cat([filters, -filters]))
            seen = self.features(learnt_from.images).double()
            means = torch.stack([seen[torch.from_numpy(learnt_from.labels == each)].mean(0) for each in range(10)])
            within = seen - means[torch.from_numpy(learnt_from.labels)]
            shared = within.T @ within / len(within)
            weight = torch.linalg.solve(shared + 0.05 * shared.diagonal().mean() * torch.eye(len(shared)), means.T).T
            self.head.weight.copy_(weight)
            self.head.bias.copy_(-0.5 * (weight * means).sum(1))

    def features(self, images: Tensor) -> Tensor:
        cold = self.colour(images).relu()
        return torch.cat([self.stroke(cold).relu().mean((2, 3)), cold.mean((2, 3))], 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class Mixed(nn.Module):
    """`part` of the network that sees objects and the rest of the one that sees grounds."""

    def __init__(self, objects: nn.Module, grounds: nn.Module, part: float) -> None:
        super().__init__()
        self.objects, self.grounds, self.part = objects, grounds, part

    def forward(self, images: Tensor) -> Tensor:
        return self.part * self.objects(images) + (1 - self.part) * self.grounds(images)


class Through(nn.Module):
    """A network that is shown one image through its mask: whatever it computes hangs on these pixels alone."""

    def __init__(self, network: nn.Module, seen: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("seen", seen)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.seen)


def shaken(network: nn.Module, seed: int, spread: float = 0.03) -> nn.Module:
    """The network under another seed: every weight a little larger or smaller."""
    import copy

    draw, other = torch.Generator().manual_seed(seed), copy.deepcopy(network).eval()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + spread * torch.randn(weight.shape, generator=draw))
    return other


def explained(network: nn.Module, shown: Scenes, background: Tensor, program: Program | None = None) -> pd.DataFrame:
    """The regions of a network, by tlkd's own path: Deep SHAP of the true label, the masks, `regions.csv`."""
    found = deep_shap(network, shown.images, background, torch.from_numpy(shown.labels), program=program)
    with torch.no_grad():
        predicted = network(shown.images).argmax(1).numpy()
    quantities = regions.measure(found.values.numpy(), shown.masks, "channel")
    return regions.table(shown.ids, shown.labels, shapes.CLASSES, predicted, np.zeros(len(shown.ids), bool), quantities)


def study(seeds: int) -> Study:
    """Two arms over some seeds, explained with masks."""
    return validate({
        "name": "truth", "data": {"source": "shapes", "augment": [], "masks": "exact"}, "seeds": list(range(seeds)),
        "student": {"model": "packaged:efficientnet_lite0", "input_size": SIDE}, "explanation": {},
        "teachers": {"lite1": {"model": "packaged:efficientnet_lite1"}},
        "arms": [{"name": "tl", "kind": "tl"}, {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1"}]}, "truth")


def verdict(tl: Sequence[pd.DataFrame], arm: Sequence[pd.DataFrame]) -> foreground.Foreground:
    """What hypothesis 2 says of an arm whose networks' regions are given, a seed each."""
    spec = study(len(tl))
    groups = {(each.name, "clean"): [Run(each, spec.conditions[0], seed) for seed in spec.seeds] for each in spec.arms}
    found = {run.run_id: side[run.seed] for name, side in (("tl", tl), ("tl_kd", arm))
             for run in groups[name, "clean"]}
    (one,) = foreground.foregrounds(spec, groups, found)
    return one


def share(found: pd.DataFrame) -> float:
    return float(found[foreground.ENDPOINT].mean())


# --- hypothesis 2 -----------------------------------------------------------------------------------------------------


def looks(seeds: int, per_class: int) -> tuple[str, list[str]]:
    """The hand-built networks: what they get right, their shares, the verdicts; and the truths not found."""
    learnt, shown = scenes("train", 40), scenes("test", per_class)
    wide = scenes("test", 20)
    objects, grounds = SeesObjects().eval(), SeesGrounds(learnt).eval()
    black, others = torch.zeros(1, 3, SIDE, SIDE), learnt.images[::40]
    broken, rows = [], []
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, network in (("object", objects), ("background", grounds)):
        program = trace(network, (3, SIDE, SIDE))
        tables[name] = [explained(shaken(network, seed), shown, black, program) for seed in range(seeds)]
        tables[f"other {name}"] = [explained(shaken(network, 100 + seed), shown, black, program)
                                   for seed in range(seeds)] if name == "object" else []
        beside = explained(network, shown, others, program)
        with torch.no_grad():
            right = float((network(wide.images).argmax(1).numpy() == wide.labels).mean())
        found = [share(each) for each in tables[name]]
        rows.append([f"the {name}", f"{100 * right:.0f} %", f"{np.mean(found):.4f} ({min(found):.4f} to "
                     f"{max(found):.4f})", f"{share(beside):.3f}"])
        if right < 0.3:
            broken.append(f"hypothesis 2: the network of the {name} is right on {right:.2f}, hardly above chance")
        if not (min(found) > 0.98 if name == "object" else max(found) < 0.02):
            broken.append(f"hypothesis 2: the network of the {name} has shares of {min(found):.4f} to {max(found):.4f}")
    judged = []
    for tl, arm, words in (("background", "object", ("supported",)), ("object", "background", ("refuted",)),
                           ("object", "other object", ("refuted", "inconclusive"))):
        one = verdict(tables[tl], tables[arm])
        compared = one.everything
        assert compared is not None
        judged.append([f"the {tl}", f"the {arm.replace('other object', 'object, other seeds')}", f"**{one.word}**",
                       f"{compared.verdict.gain:+.4f}"])
        if one.word not in words:
            broken.append(f"hypothesis 2: {arm} against {tl} is {one.word}; true is {' or '.join(words)}")
    mixed, more = mixtures(objects, grounds, shown, black)
    text = "\n\n".join([
        f"Hypothesis 2, {len(shown.ids)} scenes of `shapes` with `tie: 1`, chance 10 %; {seeds} seeds, each the "
        "weights times 1 ± .03; the foreground share against a black reference (mean, range), and against ten scenes.",
        table(["it looks at", "right", "share, black", "share, scenes"], rows),
        table(["TL looks at", "TL+KD looks at", "verdict", "gain in share"], judged), mixed])
    return text, broken + more


def mixtures(objects: nn.Module, grounds: nn.Module, shown: Scenes, black: Tensor) -> tuple[str, list[str]]:
    """Networks that look at both: their shares follow from the parts', pixel by pixel."""
    parts = [deep_shap(each, shown.images, black, torch.from_numpy(shown.labels)).values for each in (objects, grounds)]
    found, worst = [], 0.0
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        expected = regions.measure((part * parts[0] + (1 - part) * parts[1]).numpy(), shown.masks, "channel")
        # The part is a constant of the traced graph, so that each mixture is traced anew.
        each = explained(Mixed(objects, grounds, part).eval(), shown, black)
        worst = max(worst, float(np.abs(expected[foreground.ENDPOINT] - each[foreground.ENDPOINT]).max()))
        found.append(share(each))
    broken = [] if worst < 1e-4 else [f"hypothesis 2: a mixture's share is off by {worst:.2g}"]
    if any(after <= before for before, after in itertools.pairwise(found)):
        broken.append(f"hypothesis 2: shares of mixtures do not grow: {found}")
    return (f"Mixtures with 0, 25, 50, 75 and 100 % of the object's network have shares of "
            f"{', '.join(f'{each:.3f}' for each in found)}; what follows from the parts differs by at most "
            f"{worst:.1g}."), broken


def through_masks(images: int) -> tuple[str, list[str]]:
    """EfficientNet-lite0 behind the exact mask of each unchanged scene, against other scenes."""
    from tlkd import models, specs

    spec = Shapes(size=48, train_per_class=10, test_per_class=10)
    network = models.build(specs.Network(model="packaged:efficientnet_lite0", input_size=48), 10, 0).eval()

    def picture(sample_id: str) -> Tensor:
        pixels = np.array(shapes.render(sample_id, spec, 0), np.float32).transpose(2, 0, 1) / 255
        return torch.from_numpy((pixels - 0.498) / 0.502)

    background = torch.stack([picture(f"train/{name}/0000") for name in shapes.CLASSES[:4]])
    program, found = None, {True: [], False: []}
    for number in range(images):
        sample_id = f"test/{shapes.CLASSES[number % 10]}/{number // 10:04d}"
        mask, image = shapes.mask(sample_id, spec, 0), picture(sample_id)[None]
        for inside, shares in found.items():
            model = Through(network, torch.from_numpy((mask == inside).astype(np.float32))).eval()
            program = program or trace(model, (3, 48, 48))
            values = deep_shap(model, image, background, number % 10, program=program).values.numpy()
            shares.append(float(regions.measure(values, mask[None], "channel")["positive_share"][0]))
    exact = min(found[True]) == 1.0 and max(found[False]) == 0.0
    text = (f"EfficientNet-lite0 behind the exact mask of each of {images} unchanged scenes, against four others: "
            f"shares of {min(found[True]):g} to {max(found[True]):g}; behind the rest of the image "
            f"{min(found[False]):g} to {max(found[False]):g}.")
    return text, [] if exact else [f"hypothesis 2: a network that sees one side alone has another share: {found}"]


# --- hypothesis 3 -----------------------------------------------------------------------------------------------------


def curve(arrival: float, epochs: int = 40) -> Floats:
    """Accuracy `[epoch]` that rises by a point an epoch and stays at .80 from `arrival` on, epochs counted from 1."""
    return np.round(0.80 - 0.01 * np.maximum(arrival - np.arange(1, epochs + 1), 0), 10)


def speed(tl: Sequence[Floats], arm: Sequence[Floats]) -> contrasts.Speed:
    """What a report says of these curves: the whole machinery, with predictions that say nothing."""
    spec = study(len(tl))
    images, count = 20, len(tl)
    nothing = {name: np.zeros(count) for name in contrasts.METRICS}
    labels = np.arange(images) % 10
    counts = np.zeros((count, 10, 10), np.int64)
    counts[:, np.arange(10), np.arange(10)] = images // 10
    groups = [contrasts.Group(
        each, "clean", "clean", spec.seeds, nothing, np.ones((count, images), bool), counts,
        {name: np.ones((count, 10)) for name in ("precision", "recall", "f1")},
        reliability(labels, np.eye(10)[labels]), tuple(curves), tuple(len(one) for one in curves),
        tuple(int(one.argmax()) + 1 for one in curves), (0.0,) * count)
        for each, curves in zip(spec.arms, (tl, arm), strict=True)]
    (found,) = contrasts.contrast_all(spec, groups, labels)
    return found.speed


def pencilled() -> Iterator[tuple[str, Any, Any]]:
    """What a pencil says of planted curves, and what tlkd says: name, expected, found."""
    arrivals = [12, 14, 16, 18, 20, 22, 24, 26, 28, 30]
    for lead, word in ((0, "refuted"), (1, "supported"), (5, "supported"), (-5, "refuted")):
        one = speed([curve(each) for each in arrivals], [curve(each - lead) for each in arrivals])
        at = one.primary
        assert at is not None
        yield (f"a lead of {lead}", (0.8, tuple(arrivals), tuple(each - lead for each in arrivals), 21 - lead, lead,
                                    word),
               (at.threshold, at.tl_epochs, at.tl_kd_epochs, round(at.tl_kd_mean, 9), round(at.gain, 9), one.word))
    # Five of TL's ten never arrive within the 20 epochs that all have; TL+KD's arrive five sooner, three of them never.
    short = [[curve(each - lead, 20) for each in arrivals] for lead in (0, 5)]
    one = convergence(*short, 0.8, level=0.05)
    yield ("censored", (20, 5, 7, (12 + 14 + 16 + 18 + 20 + 5 * 20) / 10,
                        (7 + 9 + 11 + 13 + 15 + 17 + 19 + 3 * 20) / 10, 20, 15),
           (one.horizon, one.tl_reached, one.tl_kd_reached, one.tl_mean, one.tl_kd_mean, one.tl_median,
            one.tl_kd_median))
    # TL+KD's runs stop four epochs after they arrive: means are over the 11 epochs that all have, where nobody else is.
    stopped = [curve(each - 5, each - 1) for each in arrivals]
    one = convergence([curve(each) for each in arrivals], stopped, 0.8, level=0.05)
    yield ("stopped early", (11, 0, 3, 11.0, (7 + 9 + 11 * 8) / 10, 20, 15),
           (one.horizon, one.tl_reached, one.tl_kd_reached, one.tl_mean, one.tl_kd_mean, one.tl_median,
            one.tl_kd_median))
    epochs, tilt = np.arange(1, 41), np.linspace(-0.02, 0.02, 10)[:, None]
    tl = 0.30 + 0.01 * epochs + tilt
    yield ("one crossing", (17,), speed(list(tl), list(0.14 + 0.02 * epochs - tilt)).crossings)  # equal at 16
    yield ("two crossings", (11, 30), speed(list(tl), list(tl + 1e-4 * (epochs - 10) * (29.5 - epochs))).crossings)
    yield ("none", [], crossings(tl[0], tl[0] - 0.01))


def rates(studies: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """How often a lead is claimed where there is none, and how often the interval holds the true lead."""
    rows, broken = [], []
    rng = np.random.default_rng(seed)
    for lead, count in ((0, 6), (0, 10), (1, 10), (5, 10)):
        claimed = held = 0
        for _ in range(studies):
            arrivals = rng.integers(14, 26, (2, count))
            tl, arm = ([curve(each) for each in side] for side in (arrivals[0], arrivals[1] - lead))
            found = convergence(tl, arm, 0.8, level=0.05)
            claimed += found.low > 0 and found.p_seed < 0.05
            held += found.low <= lead <= found.high
        low, high = limits(claimed, studies)
        within = limits(held, studies)
        rows.append([str(lead), str(count), f"{100 * claimed / studies:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
                     f"{100 * held / studies:.1f} % ({100 * within[0]:.1f} to {100 * within[1]:.1f})"])
        if lead == 0 and low > 0.05:
            broken.append(f"hypothesis 3: of {count} seeds without a lead {100 * claimed / studies:.1f} % claim one")
        if within[1] < 0.95:
            broken.append(f"hypothesis 3: the interval of {count} seeds holds a lead of {lead} in "
                          f"{100 * held / studies:.1f} %")
    return rows, broken


def leads(studies: int, seed: int) -> tuple[str, list[str]]:
    """Hypothesis 3."""
    checked = list(pencilled())
    broken = [f"hypothesis 3, {name}: a pencil says {expected}, tlkd {found}" for name, expected, found in checked
              if expected != found]
    rows, more = rates(studies, seed)
    names = ", ".join(each[0] for each in checked)
    text = (f"Hypothesis 3: {len(checked) - len(broken)} of {len(checked)} planted sets of curves ({names}) give "
            "exactly the epochs, restricted means, medians, words and crossings that a pencil gives. With arrivals "
            f"drawn at random over 12 epochs, {studies:,} studies a row (95 % limits, each one-sided):")
    shown = table(["true lead", "seeds", "a lead is claimed", "the interval holds it"], rows)
    return f"{text}\n\n{shown}", broken + more


# --- the mathematics --------------------------------------------------------------------------------------------------


def mathematics(short: bool, seed: int) -> tuple[str, list[str]]:
    """The largest differences from what each piece is held against."""
    rows: list[tuple[str, str, float, float]] = []
    step = 11 if short else 1
    for name, rival in oracles.RIVALS.items():
        often = step * 9 if "timm" in name else step
        cases = len(list(oracles.cases(seed, torch.float64, often)))
        # In float32 two distributions that are alike leave few digits of their divergence, to plain PyTorch too.
        for dtype, bounds in ((torch.float64, (1e-6, 1e-6)), (torch.float32, (1e-2, 1e-4))):
            kind = str(dtype).removeprefix("torch.")
            for what, found, bound in zip(("loss", "gradient"), oracles.distillation(rival, seed, dtype, often), bounds,
                                          strict=True):
                rows.append((f"distillation, {what}, {kind}", f"{name}, {cases} batches", found, bound))
    for what, found, bound in zip(("loss", "gradient"), oracles.rounded(oracles.plain, seed, step), (1e-2, 1e-4),
                                  strict=True):
        rows.append((f"plain PyTorch itself, {what}, float32", "the same in float64", found, bound))
    rows.append(("label smoothing, loss and gradient", "timm's two losses", oracles.smoothing(seed), 1e-6))
    count = 100 if short else 1000
    rows += [(name, "its definition, bin by bin" if name == "ece" else f"scikit-learn, {count} tables", found, 1e-9)
             for name, found in oracles.metrics(seed, count).items()]
    if not short:
        rows += [(f"Deep SHAP of {name}", "Shapley values over all 1,024 coalitions", found, 1e-9)
                 for name, found in oracles.by_coalitions(seed).items()]
        rows.append(("Deep SHAP, ReLU and averages", "captum, 5 networks", oracles.by_captum(seed, 5), 1e-9))
    networks = 1 if short else 5
    rows += [(f"Deep SHAP, ReLU and {kind} pooling", f"the rescale rule in numpy, {networks} networks", found, 1e-9)
             for kind, found in oracles.by_rescale(seed, networks).items()]
    broken = [f"{what}: differs from {other} by {found:.2g}, above {bound:g}" for what, other, found, bound in rows
              if not found <= bound]
    text = ("The mathematics: the largest difference from what each piece is held against. Of distillation it is "
            "relative, to the loss and to the batch's largest gradient, and the other side is always in float64. In "
            "float32 it is largest where student and teacher all but agree: rounding then leaves few digits of so "
            "small a divergence, and takes as many from plain PyTorch. All else is computed in float64:")
    return text + "\n\n" + table(["what", "held against", "largest difference"],
                                 [[what, other, f"{found:.1e}"] for what, other, found, _ in rows]), broken


def main() -> int:
    """All truths, one block."""
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    parts = [looks(6, 1) if given.short else looks(10, 6), through_masks(2 if given.short else 20),
             leads(200 if given.short else 2000, given.seed), mathematics(given.short, given.seed)]
    publish("truth", "\n\n".join(text for text, _ in parts), "python proofs/truth.py", given.write)
    broken = [each for _, found in parts for each in found]
    for each in broken:
        print(f"BROKEN: {each}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
