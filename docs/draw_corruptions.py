"""Draw `corruptions.png`, the picture in difficulties.md: python docs/draw_corruptions.py."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tlkd import seeding, shapes
from tlkd.batches import Pixels
from tlkd.conditions import Distortion
from tlkd.distortions import describe
from tlkd.specs import Shapes
from tlkd.views import View

SIDE, SCENES = 96, (1, 300, 700)
SHOWN = (
    {"kind": "center_black", "size": (0.5, 0.9)}, {"kind": "border_black", "size": (0.5, 0.9)},
    {"kind": "quarter_black"},
    {"kind": "gaussian_noise"}, {"kind": "gaussian_blur"}, {"kind": "contrast"}, {"kind": "brightness"},
    {"kind": "pixelate"}, {"kind": "jpeg"}, {"kind": "low_pass"}, {"kind": "band_pass"}, {"kind": "high_pass"})


def main() -> None:
    """Three painted scenes as they are, and under each kind of distortion."""
    settings = Shapes(size=SIDE)
    listed = shapes.samples(settings, 0)
    scenes = [np.asarray(shapes.render(listed.ids[number], settings, 0).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
              for number in SCENES]
    images, keys = np.stack(scenes), seeding.keys([listed.ids[number] for number in SCENES])
    columns = [("as they are", None)] + [(describe(each), each) for each in (Distortion(**one) for one in SHOWN)]
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * len(SCENES) - 2, 7, squeeze=False)
    for number, (name, distortion) in enumerate(columns):
        source = Pixels(images, np.arange(3), keys, (View(), View(variant=1)), SIDE, 0, (0.0,) * 3, (1.0,) * 3,
                        torch.device("cpu"), distortion)
        shown = source(np.full(3, 0 if distortion is None else 1), np.arange(3)).permute(0, 2, 3, 1).numpy()
        for row in range(2):
            place = axes[2 * (number // 7) + row, number % 7]
            place.imshow(shown[row].clip(0, 1), interpolation="nearest")
            if row == 0:
                place.set_title(name.replace(", ", ",\n"), fontsize=9)
    for place in axes.ravel():
        place.set_axis_off()
    figure.savefig(Path(__file__).with_name("corruptions.png"), dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
