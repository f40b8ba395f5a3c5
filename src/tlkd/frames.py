"""What the data frames of a study's tables have in common."""

import math
from typing import Any

import numpy as np
import pandas as pd

from tlkd.statistics import Verdict

Row = dict[str, Any]


def frame_of(columns: str, rows: Any) -> pd.DataFrame:
    """Rows as a data frame with these columns, named in one text."""
    return pd.DataFrame(list(rows), columns=columns.split())


def judged(verdict: Verdict) -> Row:
    """All that stands behind a verdict, in the columns that every table of verdicts has."""
    same = ("word", "gain", "p_seed", "p_image", "p_seed_adjusted", "p_image_adjusted", "effect", "contrasts",
            "smallest_gain", "level", "too_small", "harmful")
    together = (verdict.needed.together if verdict.needed else None) or (None, None)
    return {**{name: getattr(verdict, name) for name in same},
            **{name: getattr(verdict.interval, name) for name in ("low", "high", "covers", "method")},
            "seeds": verdict.n_seeds, "images": verdict.n_images,
            "seeds_needed": verdict.needed.seeds if verdict.needed else None,
            "images_needed": verdict.needed.images if verdict.needed else None,
            "seeds_needed_together": together[0], "images_needed_together": together[1]}


def sd_of(values: Any) -> float:
    """The sd over seeds (ddof = 1), nan for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def finite(value: Any) -> Any:
    """A number for a cell, None where it is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
