"""Lays explanations into a folder that `study_folders.lay_down` made, as the explanation stage would leave them.

Attributions are noise that is scaled so that each network's foreground share is what was planted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlkd import explained, regions, store
from tlkd.explained import Explained, ExplainedImages
from tlkd.folder import Predictions, StudyFolder, TeacherFit, load_predictions
from tlkd.seeding import generator

SHARES = {"tl": 0.55, "tl_kd": 0.65}
TEACHER_SHARE = 0.72


def write_explanations(folder: Path, *, shares: Mapping[str, float] | None = None, images: int = 24, masked: int = 22,
                       uncertain: int = 2, pictures: int = 4, side: int = 32, spread: float = 0.08,
                       seed_spread: float = 0.01, missing: tuple[str, ...] = (), teachers: bool = True) -> StudyFolder:
    """Fill `explanations/` of a study's folder: every finished run and every teacher, but those named in `missing`.

    `shares`: the mean foreground share by the name of an arm or a teacher (default: .55 for the arm `tl`, .65 for other
    arms, .72 for teachers). `spread`: its sd over images, half of it shared by all networks; `seed_spread`: its sd over
    seeds. Of `images` test images, the first `masked` have a mask, a disc, and of these the first `uncertain` are
    doubtful; every fourth mask has no outline. `pictures`: how many images show all classes. The study's own file is
    left alone: give `explanation={...}` and `data={..., "masks": ...}` to `lay_down`.
    """
    found = StudyFolder(folder)
    networks = {run.run_id: (run.arm.name, found.predictions(run)) for run in found.finished()}
    if teachers:
        for name, teacher in found.study.used_teachers.items():
            for seed in found.study.seeds if teacher.per_seed else [None]:
                path = found.teacher_path(TeacherFit(name, None, seed)) / "predictions.npz"
                networks[explained.teacher_name(name, seed)] = name, load_predictions(path)
    chosen = ExplainedFixture(next(iter(networks.values()))[1], images, masked, uncertain, side)
    root = folder / "explanations"
    root.mkdir()
    explained.save_images(root, chosen.images)
    explained.save_current(root, {who: "e" * 20 for who in networks if who not in missing})
    for who, (name, predictions) in networks.items():
        if who in missing:
            continue
        usual = TEACHER_SHARE if who.startswith("teacher-") else SHARES.get(name, SHARES["tl_kd"])
        mean = (shares or {}).get(name, usual) + generator("share", who).normal(0, seed_spread)
        one = chosen.explain(who, predictions, float(mean), spread, pictures)
        store.publish(root / who, "e" * 20, {"kind": "explanation"},
                      lambda target, one=one: _leave(target, one, chosen.images, tuple(found.card()["classes"])))
    return found


class ExplainedFixture:
    """The images that all networks share, and what a network of some foreground share makes of them."""

    def __init__(self, predictions: Predictions, count: int, masked: int, uncertain: int, side: int) -> None:
        random = generator("explained", "images")
        self.rows = np.linspace(0, len(predictions.labels) - 1, count).round().astype(int)
        self.classes = predictions.logits.shape[1]
        names = predictions.sample_ids[self.rows]
        centres, radii = random.uniform(0.35, 0.65, (count, 2)), random.uniform(0.2, 0.33, count)
        across = (np.arange(side) + 0.5) / side
        discs = np.array([(across[None] - x) ** 2 + (across[:, None] - y) ** 2 <= r**2
                          for (x, y), r in zip(centres, radii, strict=True)])
        has = np.arange(count) < masked
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outlines = {str(names[i]): (np.stack([centres[i, 0] + radii[i] * np.cos(turns),
                                              centres[i, 1] + radii[i] * np.sin(turns)], axis=1),)
                    for i in range(masked) if i % 4 != 3}
        colours = random.integers(120, 255, (count, 1, 1, 3))
        ground = random.integers(20, 110, (count, side, side, 3))
        self.images = ExplainedImages(
            sample_ids=names, labels=predictions.labels[self.rows],
            images=np.where(discs[..., None], colours, ground).astype(np.uint8), masked=has,
            masks=discs & has[:, None, None], uncertain=np.arange(count) < uncertain, outlines=outlines,
            notes=("a note on the masks",))
        self.discs, self.ease = discs, random.normal(0, 1, count)

    def explain(self, who: str, predictions: Predictions, mean: float, spread: float, pictures: int) -> Explained:
        random = generator("explained", who)
        count, side = self.discs.shape[:2]
        share = np.clip(mean + spread * np.sqrt(0.5) * (self.ease + random.normal(0, 1, count)), 0.02, 0.98)
        values = random.normal(0, 1, (count, 3, side, side))
        for each, disc, inside in zip(values, self.discs, share, strict=True):
            for region, mass in ((disc, inside), (~disc, 1 - inside)):
                part = each[:, region]
                each[:, region] = part * (mass / part[part > 0].sum())
        values = (values * random.uniform(0.5, 3)).astype(np.float32)  # each network has a scale of its own
        output = predictions.logits[self.rows, self.images.labels].astype(np.float32)
        expected = (output - values.sum(axis=(1, 2, 3), dtype=np.float64)).astype(np.float32)
        rows = np.arange(min(pictures, count))
        shown = random.normal(0, values.std(), (len(rows), self.classes, side, side))
        shown[rows, self.images.labels[rows]] = values[rows].sum(axis=1)
        return Explained(
            sample_ids=self.images.sample_ids, labels=self.images.labels,
            predicted=predictions.logits[self.rows].argmax(axis=1).astype(np.int64), values=values,
            output=output, expected=expected,
            residual=random.normal(0, 1e-7, count).astype(np.float32), picture_rows=rows,
            pictures=shown.astype(np.float32))


def _leave(target: Path, one: Explained, images: ExplainedImages, classes: tuple[str, ...]) -> dict[str, Any]:
    explained.save(target / "attributions.npz", one)
    has = images.masked
    quantities = regions.measure(one.values[has], images.masks[has], "channel")
    regions.table(one.sample_ids[has], one.labels[has], classes, one.predicted[has], images.uncertain[has],
                  quantities).to_csv(target / "regions.csv", index=False)
    return {}
