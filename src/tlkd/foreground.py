"""Hypothesis 2: does an arm attend more to the foreground than TL? From the explained networks' regions; no torch.

The endpoint is the foreground share of the positive mass (`regions.measure`), of the true label's output in both arms.
Every difference is an arm minus TL, paired by seed and image, so that positive means more on the foreground.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tlkd import explained, statistics
from tlkd.contrasts import NOT_EXAMINED, SAME_AS_TL, judge, same_as_tl, tl_arm
from tlkd.errors import BadInput
from tlkd.folder import Run, StudyFolder, reading
from tlkd.observations import TWO_SCALES, Observation, Paired, observe, paired
from tlkd.regions import COLUMNS, METRICS, SUMS
from tlkd.series import base_conditions
from tlkd.specs import Arm, Study
from tlkd.wording import count, listed, number

Floats = NDArray[np.float64]
Key = tuple[str, str]  # arm, condition
Tables = Mapping[str, pd.DataFrame]  # who -> regions

ENDPOINT = "positive_share"
ALL, CERTAIN = "all images with a mask", "without the masks marked uncertain"


@dataclass(frozen=True)
class Share:
    """A mean over images: of each seed, and over seeds its mean and sd (nan for one seed)."""

    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds that have a value."""
        values = [value for value in self.by_seed if not math.isnan(value)]
        return float(np.mean(values)) if values else math.nan

    @property
    def sd(self) -> float:
        """The sd over the seeds that have a value."""
        values = [value for value in self.by_seed if not math.isnan(value)]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Compared:
    """The foreground share of an arm against TL's on one set of images, those whose share exists in every run.

    `verdict`: `statistics.Verdict` on the differences `[seed, image]`, its gain the mean paired difference.
    `by_image`: each image's share, averaged over seeds, with Wilcoxon's p beside `verdict.p_image`. `effect_images`:
    Cohen's d_z over images' averaged differences (`verdict.effect` is the one over seeds), nan where they do not vary.
    """

    images: str
    n_images: int
    left_out: int  # images of the set that some run has no share for: nothing positive in its attribution
    tl: Share
    arm: Share
    verdict: statistics.Verdict
    by_image: Paired
    effect_images: float

    @property
    def rising(self) -> float:
        """The share of images on which the averaged foreground share rises."""
        return self.by_image.rises / self.by_image.n


@dataclass(frozen=True)
class Right:
    """The same on the images that both arms classify right in a seed: described, not tested."""

    n_images: tuple[int, ...]  # [seed]
    tl: Share
    arm: Share
    difference: Share


@dataclass(frozen=True)
class Foreground:
    """One arm against TL under one condition, over the seeds explained in both.

    `word` follows from `everything`, as stated beforehand; `certain` says whether it would stand without the doubtful
    masks. Where nothing can be compared, `word` is not examined or inconclusive and `why` says so; `why` also says
    where the number of seeds or of images rules *supported* out.
    """

    arm: Arm
    condition: str
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]  # seeds explained in one of the two arms only
    word: str
    why: str
    everything: Compared | None  # on all images with a mask: the verdict
    certain: Compared | None  # without those marked uncertain: None where none is, or none is left
    right: Right
    observations: tuple[Observation, ...]  # the thesis's; its raw sums are on two scales
    same_as_tl: bool

    @property
    def counts(self) -> bool:
        """Whether hypothesis 1 takes this as evidence: not where too few seeds or images rule out *supported*."""
        return self.word in ("supported", "refuted") or not self.why

    @property
    def robust(self) -> bool | None:
        """Whether the word stands without the masks marked uncertain; None where none is, or no other is left."""
        return None if self.certain is None or self.same_as_tl else self.certain.verdict.word == self.word


@dataclass(frozen=True)
class Attention:
    """The mean quantities of an arm's explained students, or of a teacher: `regions.METRICS` -> share over seeds."""

    name: str
    condition: str  # empty for a teacher
    seeds: tuple[int, ...]
    metrics: Mapping[str, Share]


@dataclass(frozen=True, eq=False)
class Explanations:
    """All that the explained networks say of hypothesis 2."""

    foregrounds: tuple[Foreground, ...]
    arms: tuple[Attention, ...]
    teachers: tuple[Attention, ...]
    n_images: int  # with a mask
    n_uncertain: int
    smallest_share: float
    level: float
    warning: str  # what raw sums cannot say
    tables: Tables  # each explained network's regions, by run id or teacher name

    def foreground(self, arm: str, condition: str) -> Foreground | None:
        """The comparison of an arm under a condition, if there is one."""
        return next((each for each in self.foregrounds if (each.arm.name, each.condition) == (arm, condition)), None)


def find(folder: StudyFolder) -> Explanations | None:
    """What a study's explained networks say; None where none is explained.

    Raises `BadInput` where a table cannot be read, or networks were explained on different images.
    """
    runs, teachers = explained.explained_runs(folder), explained.explained_teachers(folder)
    names = [*[run.run_id for run in runs], *teachers.values()]
    if not names:
        return None
    tables = _read(folder, names)
    first = tables[names[0]]
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.arm.name, run.condition.name), []).append(run)
    verdict = folder.study.verdict
    return Explanations(
        foregrounds=foregrounds(folder.study, groups, tables),
        arms=tuple(_attention(arm, condition, group, [tables[run.run_id] for run in group])
                   for (arm, condition), group in groups.items()),
        teachers=tuple(_attention(name, "", (), [tables[who]]) for name, who in teachers.items()),
        n_images=len(first), n_uncertain=int(first["uncertain"].sum()), smallest_share=verdict.smallest_share,
        level=verdict.level, warning=TWO_SCALES, tables=tables)


def _read(folder: StudyFolder, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    tables: dict[str, pd.DataFrame] = {}
    for who in names:
        path = explained.place(folder, who) / "regions.csv"
        if not path.is_file() and folder.study.data.masks is None:
            table = pd.DataFrame(columns=list(COLUMNS))
        else:
            table = explained.regions(folder, who)
        with reading(path):
            missing = [name for name in COLUMNS if name not in table]
            if missing:
                raise ValueError(f"lacks the column {missing[0]}")
            numbers = [name for name in COLUMNS if name not in ("sample_id", "class")]
            tables[who] = table.astype(dict.fromkeys(numbers, np.float64))
        first = tables[names[0]]
        if any(table[name].tolist() != first[name].tolist() for name in ("sample_id", "label", "uncertain")):
            raise BadInput(f"{path}: is for other images or masks than {names[0]}'s; remove {folder.path}/explanations "
                           "and run the study again to explain all networks on the same ones")
    return tables


def _attention(name: str, condition: str, group: Sequence[Run], tables: Sequence[pd.DataFrame]) -> Attention:
    return Attention(name, condition, tuple(run.seed for run in group), {
        metric: Share(tuple(_mean(table[metric].to_numpy(np.float64)) for table in tables)) for metric in METRICS})


def _mean(values: Floats) -> float:
    """The mean of what is there, nan where nothing is."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else math.nan


# --- an arm against TL ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """The regions of TL's and an arm's runs over the same seeds: a column -> `[seed, image]`."""

    seeds: tuple[int, ...]
    tl: Mapping[str, Floats]
    arm: Mapping[str, Floats]
    uncertain: NDArray[np.bool_]  # [image]

    def kept(self, images: str) -> NDArray[np.bool_]:
        """The images `[image]` of a set."""
        return ~self.uncertain if images == CERTAIN else np.ones(len(self.uncertain), np.bool_)

    def whole(self, images: str) -> NDArray[np.bool_]:
        """Those of them whose share exists in every run."""
        there = np.isfinite(self.tl[ENDPOINT]) & np.isfinite(self.arm[ENDPOINT])
        return np.asarray(there.all(axis=0) & self.kept(images), np.bool_)


def foregrounds(study: Study, groups: Mapping[Key, Sequence[Run]], tables: Tables) -> tuple[Foreground, ...]:
    """Every `tl_kd` arm against TL; `groups` are the explained runs by arm and condition, `tables` their regions."""
    baseline = tl_arm(study)
    arms = {arm.name: arm for arm in study.arms}
    pairs: dict[Key, _Pair] = {}
    for (name, condition), group in groups.items():
        tl = groups.get((baseline.name, condition), []) if baseline is not None else []
        seeds = [run.seed for run in tl if run.seed in {each.seed for each in group}]
        if arms[name].kind == "tl_kd" and seeds:
            pairs[name, condition] = _pair(seeds, tl, group, tables)
    doubtful = any(pair.uncertain.any() for pair in pairs.values())
    compared = {ALL: _compare(study, pairs, ALL), CERTAIN: _compare(study, pairs, CERTAIN) if doubtful else {}}
    found = []
    for key, pair in pairs.items():
        arm, one = arms[key[0]], compared[ALL].get(key)
        both = {run.seed for name in (key[0], baseline.name if baseline else "") for run in groups[name, key[1]]}
        word, why = _word(one, same_as_tl(study, arm))
        found.append(Foreground(
            arm=arm, condition=key[1], seeds=pair.seeds, unpaired=tuple(sorted(both - set(pair.seeds))), word=word,
            why=why, everything=one, certain=compared[CERTAIN].get(key),
            right=_right(pair), observations=observe(pair.tl, pair.arm, study.verdict.level),
            same_as_tl=same_as_tl(study, arm)))
    return tuple(found)


def _pair(seeds: Sequence[int], tl: Sequence[Run], group: Sequence[Run], tables: Tables) -> _Pair:
    def stacked(runs: Sequence[Run]) -> dict[str, Floats]:
        by_seed = {run.seed: tables[run.run_id] for run in runs}
        return {name: np.array([by_seed[seed][name].to_numpy(np.float64) for seed in seeds])
                for name in ("correct", *SUMS, ENDPOINT)}

    return _Pair(tuple(seeds), stacked(tl), stacked(group), tables[tl[0].run_id]["uncertain"].to_numpy() != 0)


def _compare(study: Study, pairs: Mapping[Key, _Pair], images: str) -> dict[Key, Compared]:
    """Each pair that has images in this set: a family of tests over the base conditions, another over the others."""
    whole = {key: pair.whole(images) for key, pair in pairs.items() if pair.whole(images).any()}
    shares = {key: (pairs[key].tl[ENDPOINT][:, kept], pairs[key].arm[ENDPOINT][:, kept]) for key, kept in whole.items()}
    differences = {key: arm - tl for key, (tl, arm) in shares.items()}
    base = base_conditions(study)
    families = [{key: each for key, each in differences.items() if (key[1] in base) == own} for own in (True, False)]
    verdicts = {key: verdict for family in families
                for key, verdict in judge(study, family, study.verdict.smallest_share).items()}
    found = {}
    for key, (tl, arm) in shares.items():
        over_seeds = differences[key].mean(axis=0)
        spread = float(over_seeds.std(ddof=1)) if over_seeds.size > 1 else 0.0
        found[key] = Compared(
            images=images, n_images=int(whole[key].sum()),
            left_out=int(pairs[key].kept(images).sum() - whole[key].sum()),
            tl=Share(tuple(tl.mean(axis=1).tolist())), arm=Share(tuple(arm.mean(axis=1).tolist())),
            verdict=verdicts[key], by_image=paired(tl.mean(axis=0), arm.mean(axis=0), study.verdict.level),
            effect_images=float(over_seeds.mean()) / spread if spread > 1e-12 else math.nan)
    return found


def _word(one: Compared | None, same: bool) -> tuple[str, str]:
    """The verdict's word, and what keeps it from being another."""
    if same:
        return NOT_EXAMINED, SAME_AS_TL
    if one is None:
        return "inconclusive", "no image has a mask and a foreground share in every run"
    contrasts, level = one.verdict.contrasts, one.verdict.level
    family = f" (Holm-adjusted over {contrasts} contrasts)" if contrasts > 1 else ""
    few = [f"with {count(n, what)} p over {over} cannot fall below {number(smallest, 3)}{family}"
           for n, what, over in ((one.verdict.n_seeds, "seed", "seeds"), (one.n_images, "image", "images"))
           for smallest in [min(1.0, 2.0 ** (1 - n) * contrasts)] if smallest >= level]
    return one.verdict.word, f"{listed(few)}: nothing can be supported" if few else ""


def _right(pair: _Pair) -> Right:
    """Seed by seed over the images that both arms have right, so that the sets of images differ between seeds."""
    right = (pair.tl["correct"] > 0) & (pair.arm["correct"] > 0)
    right &= np.isfinite(pair.tl[ENDPOINT]) & np.isfinite(pair.arm[ENDPOINT])
    tl, arm = ([_mean(row[kept]) for row, kept in zip(side[ENDPOINT], right, strict=True)]
               for side in (pair.tl, pair.arm))
    return Right(tuple(right.sum(axis=1).tolist()), Share(tuple(tl)), Share(tuple(arm)),
                 Share(tuple(after - before for before, after in zip(tl, arm, strict=True))))
