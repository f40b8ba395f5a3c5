"""Finished runs as `contrasts.Group` holds them, made in memory: gains over TL are what was planted, seed by seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from difficult_folders import ARMS
from tlkd import evaluation
from tlkd.contrasts import METRICS, Group, arm_label
from tlkd.reading import validate
from tlkd.seeding import generator
from tlkd.specs import Study

IMAGES = 400
LABELS = np.repeat(np.arange(4), IMAGES // 4)


def study_of(conditions: Sequence[Mapping[str, Any]], arms: Sequence[Mapping[str, Any]] = ARMS, seeds: int = 10,
             **more: Any) -> Study:
    """A study with these conditions and arms."""
    return validate({"name": "s", "data": {"source": "folder:x", "augment": []},
                     "student": {"model": "packaged:efficientnet_lite0", "input_size": 48},
                     "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 64}},
                     "arms": list(arms), "conditions": list(conditions), "seeds": list(range(seeds)), **more}, "s")


def groups_of(study: Study, gains: Mapping[Any, float], *, missing: Sequence[tuple[str, str, int]] = (),
              luck: float = 0.01) -> list[Group]:
    """Every arm under every condition; `gains` by (arm, condition), or by arm. TL has about 60 % of images right.

    An arm turns so many of TL's errors right as its gain asks (or the reverse), and swaps some more at random.
    `missing`: runs (arm, condition, seed) that are not finished.
    """
    found = []
    for condition in study.conditions:
        for arm in study.arms:
            seeds = [seed for seed in study.seeds_of(condition) if (arm.name, condition.name, seed) not in missing]
            if seeds and (condition.arms is None or arm.name in condition.arms):
                gain = gains.get((arm.name, condition.name), gains.get(arm.name, 0.0))
                correct = np.array([_correct(condition.name, arm.name, gain, seed, luck) for seed in seeds])
                found.append(group_of(study, arm.name, condition.name, seeds, correct))
    return found


def _correct(condition: str, arm: str, gain: float, seed: int, luck: float) -> np.ndarray:
    random = generator("finished", condition, seed)
    right = random.random(IMAGES) < 0.6
    if arm == "tl":
        return right
    random = generator("finished", condition, arm, seed)
    swapped = 0.03
    gain += random.normal(0, luck)
    better = random.random(IMAGES) < (swapped + max(gain, 0.0)) / 0.4
    worse = random.random(IMAGES) < (swapped + max(-gain, 0.0)) / 0.6
    return np.where(right, ~worse, better)


def group_of(study: Study, arm: str, condition: str, seeds: Sequence[int], correct: np.ndarray) -> Group:
    """A group whose only telling part is which images are right `[seed, image]`."""
    spec = next(each for each in study.arms if each.name == arm)
    logits = np.zeros((IMAGES, 4))
    accuracy = correct.mean(axis=1)
    return Group(
        arm=spec, condition=condition, label=arm_label(study, spec), seeds=tuple(seeds),
        metrics=dict.fromkeys(METRICS, accuracy), correct=correct,
        confusions=np.array([np.eye(4, dtype=np.int64)] * len(seeds)),
        per_class={name: np.zeros((len(seeds), 4)) for name in ("precision", "recall", "f1")},
        reliability=evaluation.reliability(LABELS, logits), curves=tuple(np.array([each]) for each in accuracy),
        epochs=(1,) * len(seeds), best_epochs=(1,) * len(seeds), seconds=(1.0,) * len(seeds))
