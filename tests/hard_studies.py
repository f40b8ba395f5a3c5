"""A small study with every kind of step and every kind of bank."""

from pathlib import Path
from typing import Any

from tlkd.reading import apply_set, validate
from tlkd.specs import Study


def hard_study(folder: Path, *assignments: str) -> Study:
    """A student, two teachers, five arms, three conditions and robustness; seconds."""
    raw: dict[str, Any] = {
        "name": "hard", "data": {"source": f"folder:{folder}", "dev_fraction": 0.2},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
        "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 32},
                     "clean1": {"model": "packaged:efficientnet_lite1", "input_size": 32, "trained_on": "clean",
                                "labels": "clean_view"}},
        "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "lite1"},
                 {"name": "kd_clean", "kind": "tl_kd", "teacher": "clean1"},
                 {"name": "smooth", "kind": "label_smoothing", "teacher": "lite1"}, {"name": "own", "kind": "self"}],
        "conditions": [{"name": "clean"}, {"name": "half", "train_fraction": 0.5},
                       {"name": "black", "corruption": {"kind": "center_black", "variants": 2}}],
        "exclude": [{"arms": ["smooth", "own"], "conditions": ["half"]}],
        "robustness": [{"kind": "center_black", "sizes": [0.5]}],
        "training": {"epochs": 1}, "seeds": [0]}
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, "hard.yaml")
