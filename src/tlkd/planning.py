"""What `tlkd plan` says: what would run, what is there already, which banks are needed, and what the rest will cost.

Nothing is written into the study's folder. Images are decoded into the cache, as a run would do it.
"""

import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tlkd import estimate, explaining, provenance, stages, store
from tlkd.conditions import Condition
from tlkd.estimate import NOTHING, Gauge, Load, Seconds, makespan
from tlkd.folder import Run, StudyFolder, TeacherFit, plan, teacher_fit, teacher_fits, was_killed
from tlkd.inventory import Bank, Inventory, Known, Made, made_by
from tlkd.specs import Study, Training
from tlkd.study import Context, MakeExecutor, build_all, check_conditions, open_workshop, work
from tlkd.wording import count, listed, size
from tlkd.workshop import Workshop, is_banked

REPORT = ((3.0, 0.4, 0.02), (3.0, 1.3, 0.05))
"""Seconds of collecting results and drawing the report, the least and the most: to begin with, for each arm under each
condition, and for each run. Reckoned and not measured: so it was on 2 CPU cores."""

CONTENTION = 1.4  # what threads at work together cost each other at most, in caches and memory; two on 2 cores did

SPREAD = 1.25  # where the slowest is so many times the fastest or less, one number says it


# --- what it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """What is left to do costs so much; times are pairs `[2]` in seconds, the rest is bytes."""

    parts: dict[str, Seconds]  # the steps' own times, one after the other
    start: Seconds
    report: Seconds
    total: Seconds
    measured: float  # seconds that the measurement took
    others: float  # threads of others that were at work meanwhile
    worker: int  # memory of each worker process
    mapped: int  # banks that a step reads: memory-mapped, shared between workers
    cache: int
    folder: int
    meanwhile: int  # checkpoints, gone afterwards


@dataclass(eq=False)
class Prices:
    """What each step will cost, by what a gauge measures."""

    inventory: Inventory
    gauge: Gauge
    threads: int  # that build a bank
    cache: int = 0
    folder: int = 0
    weights: int = 0  # of the largest network that is trained

    @property
    def workshop(self) -> Workshop:
        """The study's data and networks."""
        return self.inventory.workshop

    def of(self, made: Made) -> dict[str, Seconds]:
        """The seconds of a step, by what they are spent on; what it leaves on the disk is added up."""
        parts: dict[str, Seconds] = {}
        for bank in made.banks:
            self.cache += bank.bytes
            parts["banks"] = parts.get("banks", NOTHING) + self._bank(bank)
        if made.step.kind == "teacher" and made.fit is not None:
            parts["teachers"] = self._teacher(made.fit)
        if made.run is not None and made.step.kind == "run":
            parts["runs"] = self._run(made.run)
        if made.run is not None and made.step.kind == "robustness":
            parts["robustness"] = self._robustness(made.run)
        return parts

    def _bank(self, bank: Bank) -> Seconds:
        if bank.logits and is_banked(self.workshop, bank.network):
            return bank.rows * self.gauge.head_row(bank.network, 1) / self.threads
        return bank.rows * self.gauge.bank_row(bank.network, bank.distortion) / self.threads

    def _teacher(self, fit: TeacherFit) -> Seconds:
        known, spec = self.inventory.teacher(fit), self.workshop.study.teachers[fit.name]
        seconds = self._rebuilt(known) + self._result(known, spec.training, copied=True)
        if not spec.fit:
            return seconds
        return seconds + self.trained(known, spec.training, None, fit.condition or stages.CLEAN)

    def _run(self, run: Run) -> Seconds:
        study, known = self.workshop.study, self.inventory.student(run)
        training, teacher = study.training_of(run.arm, run.condition), self.teacher_of(run)
        seconds = self._rebuilt(known) + self._result(known, training, copied=False)
        if teacher is not None:
            seconds = seconds + self._rebuilt(teacher)
        if teacher is not None and run.arm.kind == "label_smoothing" and not study.bank:
            views = len(self.workshop.views) * len(self.workshop.labels["train"])
            seconds = seconds + views * self.gauge.forward_row(teacher.network, training.threads)
        return seconds + self.trained(known, training, run, run.condition)

    def teacher_of(self, run: Run) -> Known | None:
        """The network that a run learns from."""
        if run.arm.kind == "self":
            return self.inventory.student(run)
        if run.arm.teacher is None:
            return None
        return self.inventory.teacher(teacher_fit(self.workshop.study, run.arm.teacher, run.condition, run.seed))

    def trained(self, known: Known, training: Training, run: Run | None, condition: Condition) -> Seconds:
        """A training alone, of a run or (None) of a teacher."""
        study = self.workshop.study
        draw = self.workshop.draw(condition, study.seeds_of(condition)[0])  # all seeds keep equally many
        teacher = None if run is None or study.bank else self.teacher_of(run)
        cost = self.gauge.fit(known.network, training, None if run is None else run.arm, condition, draw,
                              None if teacher is None else teacher.network)
        return cost.of(len(draw.samples), training.epochs)

    def _result(self, known: Known, training: Training, copied: bool) -> Seconds:
        cost, count = self.gauge.result(known.network, training), len(self.workshop.labels["test"])
        self.weights = max(self.weights, cost.weights)
        if copied:  # a teacher stays in the cache; all but its weights are copied into the folder
            self.cache += cost.size
            self.folder += cost.size - cost.weights
        else:
            self.folder += cost.size
        live = not is_banked(self.workshop, known.network)
        return cost.seconds + (count * self.gauge.forward_row(known.network, training.threads) if live else NOTHING)

    def _robustness(self, run: Run) -> Seconds:
        known, count = self.inventory.student(run), len(self.workshop.labels["test"])
        training = self.workshop.study.training_of(run.arm, run.condition)
        seconds, metrics = NOTHING, self.gauge.result(known.network, training).metrics
        for distortion in stages.distortions_of(self.workshop.study):
            if is_banked(self.workshop, known.network):
                row = self.gauge.head_row(known.network, training.threads)
            else:
                row = self.gauge.forward_row(known.network, training.threads) + self.gauge.distortion_row(
                    known.network, distortion)
            seconds = seconds + count * row + metrics
            self.folder += count
        return seconds + self._rebuilt(known)

    def _rebuilt(self, known: Known) -> Seconds:
        """What it takes to make a network again, where its backbone is not shared by all runs."""
        shared = any(known.network is each for each in self.workshop.networks.values())
        return NOTHING if shared else np.full(2, known.seconds)


def forecast(inventory: Inventory, made: Sequence[Made], context: Context, slots: int, start: Seconds) -> Forecast:
    """What the steps cost that are left, with so many at a time."""
    workshop, cores = inventory.workshop, int(provenance.hardware(torch.device("cpu"))["cores"])
    threads = min(cores, context.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=workshop.cache) as scratch:
        gauge = Gauge(workshop, min(cores, slots * threads), Path(scratch))
        prices = Prices(inventory, gauge, 1 if workshop.device.type == "cuda" else threads)
        _measure_the_longest(prices, made)
        costs = {each.step.name: prices.of(each) for each in made}
    parts: dict[str, Seconds] = {}
    for cost in costs.values():
        for name, seconds in cost.items():
            parts[name] = parts.get(name, NOTHING) + seconds
    whole = {name: sum(cost.values(), NOTHING) for name, cost in costs.items()}
    loads = [[Load(each.step.name, each.step.needs, threads if each.step.kind == "features" else each.step.threads,
                   whole[each.step.name][which]) for each in made] for which in (0, 1)]
    others, ours = load_of_others(cores), slots * max(each.threads for each in loads[0])
    left = cores * ours / (ours + others)  # of the cores, where each thread at work gets as much as any other
    crowded = makespan(loads[0], slots, left) * (CONTENTION if ours > 1 else 1)
    ends = np.array([makespan(loads[0], slots, cores), max(makespan(loads[1], slots, cores), crowded)])
    workers = np.array([start[0], max(start[1], start[0] * slots / left)])  # they start at the same time
    runs = plan(workshop.study)
    sizes = np.array([1, len({(run.arm.name, run.condition.name) for run in runs}), len(runs)])
    report = np.array(REPORT) @ sizes
    mapped = max((sum(bank.bytes for bank in use.banks) for use in inventory.uses.values()), default=0)
    return Forecast(parts, start + workers, report, ends + start + workers + report, gauge.seconds,
                    others, estimate.peak() + gauge.growth, mapped, prices.cache, prices.folder,
                    3 * prices.weights * slots)


def load_of_others(cores: int) -> float:
    """How many threads of other processes are at work on these cores, as far as the system tells."""
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0
    return max(0.0, load - 1) if cores == os.cpu_count() else 0.0  # else it is told of cores that are not ours


def _measure_the_longest(prices: Prices, made: Sequence[Made]) -> None:
    """Measure each kind of training on the run that has the most samples of it: few would tell little."""
    study, workshop = prices.workshop.study, prices.workshop
    runs = [each.run for each in made if each.run is not None and each.step.kind == "run"]
    kept = {run.condition.name: len(workshop.draw(run.condition, study.seeds_of(run.condition)[0]).samples)
            for run in runs}
    for run in sorted(runs, key=lambda run: -kept[run.condition.name]):
        prices.trained(prices.inventory.student(run), study.training_of(run.arm, run.condition), run, run.condition)


# --- in words ---------------------------------------------------------------------------------------------------------


def draw_up(study: Study, out: Path, device: torch.device, executor: MakeExecutor, threads: int, started: float) -> str:
    """The plan of a study, in words; `started` is when this process began (`time.perf_counter`).

    Raises BadInput for whatever a run would refuse.
    """
    folder, cache = StudyFolder(out), store.cache_folder()
    folder.refuse_other(study)
    vars(folder)["study"] = study  # as a run would write it before it looks what is done
    context = Context(study, out.absolute(), cache.absolute(), str(device), threads)
    before = set((cache / "images").glob("*"))
    opening = np.array([time.perf_counter(), time.process_time()])
    workshop = open_workshop(context)
    took = np.array([time.perf_counter(), time.process_time()]) - opening
    decoded = not {cache / "images" / workshop.dataset.address} <= before
    build_all(workshop)
    check_conditions(workshop)
    explaining.prepare(workshop, folder)
    start = np.sort(np.array([time.perf_counter() - started, time.process_time()]) - (took if decoded else 0.0))
    inventory = Inventory(workshop, folder)
    made, hands = made_by(inventory), executor(work, context)
    slots = hands.slots
    hands.close()
    lines = [*_expanded(workshop, decoded, float(took[0])), "", *_there(inventory), "", *_banks(inventory, made), ""]
    if not made:
        return "\n".join([*lines, "nothing is left to do, but for the report", ""])
    return "\n".join([*lines, *_reckoned(forecast(inventory, made, context, slots, start), study, slots, device), ""])


def _expanded(workshop: Workshop, decoded: bool, opened: float) -> list[str]:
    """The study written out."""
    study, runs, labels = workshop.study, plan(workshop.study), workshop.labels
    full = sum(len(study.arms) * len(study.seeds_of(condition)) for condition in study.conditions)
    left_out = f", {full - len(runs)} more are left out" if full > len(runs) else ""
    arms = [arm.name + (f" (teacher {arm.teacher})" if arm.teacher else "") for arm in study.arms]
    seeds = sorted({run.seed for run in runs})
    told = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)) else (
        listed([str(seed) for seed in seeds]))
    came = f"decoded into the cache just now, in {_rough(opened)}" if decoded else "in the cache"
    rows = [("study", f"{study.name}: {count(len(runs), 'run')}{left_out}"),
            (count(len(arms), "arm"), ", ".join(arms)),
            (count(len(study.conditions), "condition"), _grouped([each.name for each in study.conditions])),
            (count(len(seeds), "seed"), told),
            ("images", f"{len(labels['train']):,} train, {len(labels['dev']):,} dev, {len(labels['test']):,} test, "
                       f"{len(workshop.dataset.classes)} classes, {workshop.dataset.images.shape[1]} px ({came})")]
    return _columns(rows)


def _there(inventory: Inventory) -> list[str]:
    """What is done already."""
    study, folder, runs = inventory.study, inventory.folder, plan(inventory.study)
    done = sum(folder.done(run) for run in runs)
    failed = sum(not folder.done(run) and _failed(folder.failure_path(run)) for run in runs)
    rows = [("runs", f"{done} done, {failed} failed, {len(runs) - done - failed} to do"
             + (" (what failed is tried again with --retry-failed)" if failed else ""))]
    fits = teacher_fits(study)
    if fits:
        whole = sum(inventory.is_whole(inventory.teacher_recipe(fit)) for fit in fits)
        away = [fit for fit in fits if not folder.teacher_path(fit).is_dir()]
        failed = sum(_failed(folder.teacher_failure_path(fit)) for fit in away)
        rows.append(("teachers", f"{len(fits) - len(away)} in the folder, {whole} in the cache, {failed} failed, "
                                 f"of {len(fits)}"))
    if study.robustness:
        shown = sum(folder.robustness_done(run) for run in runs)
        rows.append(("robustness", f"{shown} done, {len(runs) - shown} to do"))
    nothing = "" if folder.path.is_dir() else " (not there yet)"
    return _columns([*rows, ("folder", f"{folder.path}{nothing}"), ("cache", str(inventory.workshop.cache))])


def _failed(path: Path) -> bool:
    return path.is_file() and not was_killed(path)


def _banks(inventory: Inventory, made: Sequence[Made]) -> list[str]:
    """A line for each kind of bank: how many there are, and what will be made."""
    making = {bank.recipe.address for each in made for bank in each.banks}
    groups: dict[str, dict[str, Bank]] = {}
    for use in inventory.uses.values():
        for bank in use.banks:
            groups.setdefault(bank.group, {})[bank.recipe.address] = bank
    if not groups:
        return ["banks  none: every network is run live"]
    rows = [("bank", "there", "to make", "each", "")]
    for group, banks in sorted(groups.items()):
        there = sum(bank.state == "there" for bank in banks.values())
        damaged = sum(bank.state == "damaged" for bank in banks.values())
        rows.append((group, str(there), str(sum(address in making for address in banks)),
                     size(max(bank.bytes for bank in banks.values())), f"{damaged} damaged" if damaged else ""))
    return _columns(rows, right=(1, 2, 3))


def _reckoned(costs: Forecast, study: Study, slots: int, device: torch.device) -> list[str]:
    """The estimate."""
    machine = provenance.hardware(device)
    rows = [*((name, _range(seconds)) for name, seconds in costs.parts.items()),
            ("start", f"{_range(costs.start)}: of this process, as it was, and of the workers"),
            ("report", f"{_range(costs.report)}: reckoned, not measured")]
    if study.explanation is not None:
        rows.append(("explanations", "not estimated, and not in the total"))
    rows += [(f"total, {count(slots, 'job')}", _range(costs.total)),
             ("memory", f"about {size(costs.worker)} a worker, and up to {size(costs.mapped)} of banks that are mapped "
              "and shared"),
             ("disk", f"about {size(costs.cache)} more in the cache, {size(costs.folder)} in the folder; meanwhile up "
              f"to {size(costs.meanwhile)} of checkpoints")]
    if costs.others >= 1:
        rows.append(("busy", f"about {costs.others:.0f} threads of others are at work here: the total's upper end is "
                     "for that, its lower end for a machine without"))
    early = any(study.training_of(arm, each).early_stopping for arm in study.arms for each in study.conditions)
    what = machine.get("gpu", machine["processor"])
    return [f"estimate, from {_rough(costs.measured)} of measurement on {what}, {machine['cores']} cores; the steps' "
            "own times, one after the other" + (", if none stops early" if early else ""), *_columns(rows, indent="  ")]


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: str = "") -> list[str]:
    """Rows of text in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = [">" if number in right else "<" for number in range(len(widths))]
    return [(indent + "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in
                                zip(row, signs, widths, strict=True))).rstrip() for row in rows]


def _grouped(names: Sequence[str]) -> str:
    """Names in a line; those that differ in numbers at their ends alone are told of together."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(re.sub(r"(_\d+)+$", "", name), []).append(name)
    return ", ".join(each[0] if len(each) == 1 else f"{stem} ({len(each)}: {each[0]} to {each[-1]})"
                     for stem, each in stems.items())


def _range(seconds: Seconds) -> str:
    """A time as a range, or about one number where its ends are close."""
    low, high = float(seconds[0]), float(seconds[1])
    if high < 1:
        return "under 1 s"
    return f"about {_rough(high)}" if high <= SPREAD * low or _rough(low) == _rough(high) else (
        f"{_rough(low)} to {_rough(high)}")


def _rough(seconds: float) -> str:
    """Seconds to two digits, in the unit that people would say them in."""
    for unit, length in (("s", 1.0), ("min", 60.0), ("h", 3600.0)):
        value = seconds / length
        if value < 100 or unit == "h":
            return f"{float(f'{value:.2g}'):g} {unit}"
    raise AssertionError
