"""Draw mathematics.md's figures, the thesis's 1.10 to 1.13 by tlkd's code: python docs/draw_mathematics.py."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from PIL import Image
from torch import Tensor, nn

from tlkd import seeding, shapes
from tlkd.attribution import deep_shap
from tlkd.batches import Pixels
from tlkd.conditions import Distortion
from tlkd.distortions import describe
from tlkd.losses import distillation_loss, mean_entropy
from tlkd.specs import Shapes
from tlkd.views import View

FOLDER = Path(__file__).parent / "figures"
BLUE, ORANGE, GREY = "#1f5f8b", "#d9822b", "#5b6770"
LOGITS = (0.1, 0.14, 0.85, 0.55, 0.02)  # the thesis's sample
TEACHER = (-0.6, 0.2, 1.9, 0.3, -0.9)
PRIZES = {"A": 5, "B": 7, "C": 3, "AB": 15, "AC": 10, "BC": 13, "ABC": 21}  # the thesis's game
PLAYERS = {"A": "#c8453b", "B": "#4c9a52", "C": "#3f74b5"}
SIDE, SCENE = 96, 300
DISTORTIONS = (
    {"kind": "center_black", "size": (0.6, 0.6)}, {"kind": "border_black", "size": (0.7, 0.7)},
    {"kind": "quarter_black"}, {"kind": "gaussian_noise"}, {"kind": "gaussian_blur"},
    {"kind": "contrast"}, {"kind": "brightness"}, {"kind": "pixelate"}, {"kind": "jpeg"}, {"kind": "low_pass"})


def main() -> None:
    """All figures."""
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
                         "svg.hashsalt": "tlkd", "axes.titlesize": 10})
    FOLDER.mkdir(exist_ok=True)
    draw_softmax()
    draw_gradients()
    draw_views()
    draw_coalitions()
    draw_orders()


def draw_softmax() -> None:
    """Figure 1.10: one sample's logits through softmax at several temperatures."""
    figure, axes = _figure(9.6, 2.5, 1, 5, sharey=True)
    for place, temperature in zip(axes, (0.1, 0.3, 1.0, 3.0, 10.0), strict=True):
        softened = torch.softmax(torch.tensor(LOGITS) / temperature, 0).numpy()
        place.bar(range(1, 6), softened, color=BLUE)
        entropy = mean_entropy(np.array([LOGITS], np.float32), temperature)
        place.set_title(f"T = {temperature:g}\nentropy {entropy:.2f} of {math.log(5):.2f}")
        for number, height in enumerate(softened, 1):
            place.text(number, height + 0.02, f"{height:.2f}", ha="center", fontsize=8, color=GREY)
        place.set(xticks=range(1, 6), xlabel="class", ylim=(0, 1.08))
    axes[0].set_ylabel("softmax(z / T)")
    _save(figure, "softmax.svg")


def draw_gradients() -> None:
    """The soft loss's gradient against the temperature: by autograd through `distillation_loss`, beside its limit."""
    temperatures = np.geomspace(0.3, 30, 60)
    found = np.stack([_gradient(each) for each in temperatures])  # [temperature, class]
    difference = np.array(LOGITS) - np.array(TEACHER)
    limit = (difference - difference.mean()) / len(LOGITS)
    figure, (left, right) = _figure(9.6, 3.1, 1, 2)
    for number, colour in enumerate(("#1f5f8b", "#d9822b", "#4c9a52", "#8a5aa8", "#5b6770")):
        left.plot(temperatures, found[:, number], color=colour)
        left.plot(45, limit[number], marker="D", color=colour, clip_on=False, markersize=5)
        left.text(52, limit[number], f"class {number + 1}", color=colour, va="center", fontsize=8, clip_on=False)
    left.axhline(0, color="black", linewidth=0.5)
    left.set(xscale="log", xlabel="temperature T", title="gradient of the soft loss by logit, and its limit (diamonds)",
             xlim=(0.3, 45))
    size = np.linalg.norm(found, axis=1)
    right.plot(temperatures, size, color=BLUE, label="with T², as in the loss")
    right.plot(temperatures, size / temperatures**2, color=ORANGE, label="without T²")
    right.axhline(np.linalg.norm(limit), color=GREY, linestyle=":", label="limit with T²")
    right.set(xscale="log", yscale="log", xlabel="temperature T", title="size of that gradient")
    right.legend(frameon=False)
    for place in (left, right):
        place.set_xticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
        place.minorticks_off()
    _save(figure, "gradients.svg")


def _gradient(temperature: float) -> np.ndarray:
    logits = torch.tensor([LOGITS], dtype=torch.float64, requires_grad=True)
    soft = torch.tensor([TEACHER], dtype=torch.float64)
    distillation_loss(logits, torch.zeros(1, dtype=torch.long), soft, 1.0, float(temperature)).backward()
    assert logits.grad is not None
    return logits.grad[0].numpy()


def draw_views() -> None:
    """Figure 1.11: an image, the views that training draws from, and what conditions make of it."""
    settings = Shapes(size=SIDE)
    name = shapes.samples(settings, 0).ids[SCENE]
    image = np.asarray(shapes.render(name, settings, 0).resize((SIDE, SIDE), Image.Resampling.BILINEAR))[None]
    views = (("as it is", View()), ("hflip", View(flip=True)), *((f"crop {number}", View(crop=number)) for number in (
        1, 2, 3)), ("crop 4 + hflip", View(crop=4, flip=True)))
    shown = [(title, _seen(image, name, (view,), None, 0)) for title, view in views]
    for one in DISTORTIONS:
        distortion = Distortion(**one)
        shown.append((describe(distortion).replace(", ", ",\n"),
                      _seen(image, name, (View(), View(variant=1)), distortion, 1)))
    figure, axes = _figure(9.6, 3.3, 2, 8)
    for place, (title, pixels) in zip(axes.ravel(), shown, strict=True):
        place.imshow(pixels, interpolation="nearest")
        place.set_title(title, fontsize=8)
        place.set_axis_off()
    _save(figure, "views.png")


def _seen(image: np.ndarray, name: str, views: tuple[View, ...], distortion: Distortion | None,
          which: int) -> np.ndarray:
    source = Pixels(image, np.arange(1), seeding.keys([name]), views, SIDE, 0, (0.0,) * 3, (1.0,) * 3,
                    torch.device("cpu"), distortion)
    return source(np.full(1, which), np.arange(1))[0].permute(1, 2, 0).numpy().clip(0, 1)


def draw_coalitions() -> None:
    """Figure 1.12: the prize of every coalition of three players."""
    figure, axes = _figure(9.6, 1.5, 1, len(PRIZES))
    for place, (coalition, prize) in zip(axes, PRIZES.items(), strict=True):
        _box(place)
        _players(place, PLAYERS, set(coalition), 0.62)
        place.text(0.5, 0.22, f"${prize}", ha="center", va="center", fontsize=13)
    _save(figure, "coalitions.svg")


def draw_orders() -> None:
    """Figure 1.13: what each player adds in every order, the mean over orders, and what Deep SHAP gives."""
    orders = ["".join(each) for each in itertools.permutations(PLAYERS)]
    found = dict(zip(PLAYERS, explain_game(), strict=True))
    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1.6))
    for place, order in zip(above.subplots(1, len(orders)), orders, strict=True):
        _box(place)
        _players(place, order, set(order), 0.33)
        for number, added in enumerate(additions(order).values()):
            place.text(0.2 + 0.3 * number, 0.74, f"+{added}", ha="center", va="center", fontsize=11)
    _compare(below.subplots(), shapley(), found)
    _save(figure, "orders.svg")


def additions(order: str) -> dict[str, int]:
    """What each player adds to the prize when the players come in this order."""
    prizes = [0, *(PRIZES["".join(sorted(order[:count]))] for count in range(1, len(order) + 1))]
    return {player: prizes[place + 1] - prizes[place] for place, player in enumerate(order)}


def shapley() -> dict[str, float]:
    """The mean of each player's additions over all orders, literally."""
    found = [additions("".join(order)) for order in itertools.permutations(PLAYERS)]
    return {player: sum(each[player] for each in found) / len(found) for player in PLAYERS}


def _compare(place: Axes, shapley: Mapping[str, float], found: Mapping[str, float]) -> None:
    for number, (name, values, shade) in enumerate((("mean over the six orders: Shapley values", shapley, 1.0),
                                                    ("Deep SHAP, by the rules for products", found, 0.8))):
        left = 0.0
        for player, value in values.items():
            place.barh(1 - number, value, 0.62, left, color=PLAYERS[player], alpha=shade)
            place.text(left + value / 2, 1 - number, f"{player} {value:.2f}", ha="center", va="center", color="white",
                       fontweight="bold")
            left += value
        place.text(left + 0.2, 1 - number, f"sum {left:.2f}", va="center")
        place.text(0, 1.36 - number, name, va="bottom", fontsize=9, color=GREY)
    place.set(xlim=(0, 23.5), ylim=(-0.45, 1.75))
    place.set_axis_off()


class Game(nn.Module):
    """The game as a network: pixels 0 or 1 say who plays, and the output is the prize, by products of pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """Prizes `[image, 1]` of images `[image, 1, 1, 3]`."""
        a, b, c = images.flatten(1).unbind(1)
        prize = 5 * a + 7 * b + 3 * c + 3 * (a * b) + 2 * (a * c) + 3 * (b * c) - 2 * (a * b * c)
        return prize[:, None]


def explain_game() -> list[float]:
    """What Deep SHAP says that each player contributes to the prize of all three, against nobody."""
    everyone, nobody = torch.ones(1, 1, 1, 3), torch.zeros(1, 1, 1, 3)
    for coalition, prize in PRIZES.items():
        playing = torch.tensor([float(player in coalition) for player in PLAYERS]).reshape(1, 1, 1, 3)
        assert Game()(playing).item() == prize
    return [float(each) for each in deep_shap(Game(), everyone, nobody).values.flatten()]


def _figure(width: float, height: float, rows: int, columns: int, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, sharey=sharey)


def _box(place: Axes) -> None:
    place.add_patch(FancyBboxPatch((0.03, 0.03), 0.94, 0.94, "round,pad=0,rounding_size=0.06", facecolor="#f5f7f9",
                                   edgecolor="#c3cbd2"))
    place.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    place.set_axis_off()


def _players(place: Axes, order: Sequence[str] | Mapping[str, str], playing: set[str], height: float) -> None:
    for number, player in enumerate(order):
        there = player in playing
        place.add_patch(Circle((0.2 + 0.3 * number, height), 0.125, facecolor=PLAYERS[player] if there else "white",
                               edgecolor=PLAYERS[player] if there else "#c3cbd2"))
        place.text(0.2 + 0.3 * number, height - 0.005, player, ha="center", va="center", fontsize=10,
                   color="white" if there else "#9aa5ad")


def _save(figure: Figure, name: str) -> None:
    """Write a picture; the same code writes the same bytes."""
    dated = {"Date": None} if name.endswith(".svg") else {"Software": None}
    figure.savefig(FOLDER / name, dpi=100, metadata=dated)
    if name.endswith(".png"):
        Image.open(FOLDER / name).convert("RGB").quantize(200).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
