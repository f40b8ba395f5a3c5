"""The search for each arm's hyperparameters: equally many trials for all, on the dev split alone.

Optuna proposes, in this process; the trainings are jobs of the same engine that runs a study. What was tried stands in
a journal and every training is an artifact, so that a search that was stopped goes on where it was.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from tlkd import banks, evaluation, models, progress, stages, store, study, tuned
from tlkd.batches import Rows, predict
from tlkd.engine import Executor, Inline, Job, Outcome, failure_line, run_all
from tlkd.errors import BadInput, RunFailed
from tlkd.folder import EXTENDABLE, KILLED, Run, StudyFolder, TeacherFit, plan, teacher_fit
from tlkd.proposals import ArmSearch, Attempt, demand, job_name, journal, understood
from tlkd.provenance import provenance
from tlkd.reading import dump_yaml, read_yaml
from tlkd.spaces import Search, shown_value, starts_from_tl, with_setting
from tlkd.specs import canonical
from tlkd.stages import SoftLabels
from tlkd.training import threads as held_to
from tlkd.tuned import Trials
from tlkd.workshop import Workshop, corrupted_views, inputs_of, learner, network_for, train

VERSION = 1  # of what a trial's training is; a change that alters results raises it
RECORD, JOURNAL = "search.yaml", "journal.log"


@dataclass(frozen=True)
class Context(study.Context):
    """What a worker needs to do any job of a search."""

    search: Search | None = None


MakeExecutor = Callable[[Callable[[Any, str], Outcome], Context], Executor]


def tune(search: Search, trials: int, out: Path, device: torch.device, command: str = "",
         executor: MakeExecutor = Inline, threads: int = 0) -> Trials:
    """Try `trials` settings of every arm, those of earlier starts among them, and write what was found into `out`.

    Raises `BadInput` for a folder of another search and for what the study's data or networks do not allow, before
    anything is written, and `RunFailed` where a teacher or a training failed by no fault of its setting.
    """
    demand()
    cache = store.cache_folder()
    context = Context(search.study, out.absolute(), cache.absolute(), str(device), threads, search=search)
    workshop = study.open_workshop(context)
    context = replace(context, images=workshop.dataset.address)
    refuse_other(out, search, workshop.dataset.content)
    if not (out / RECORD).is_file():
        study.build_all(workshop)
        study.check_conditions(workshop)
    with store.guard_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            if not (out / RECORD).is_file():
                record = {**_decisive(search, workshop.dataset.content), "provenance": provenance(command, device)}
                store.replace_text(out / RECORD, dump_yaml(record))
            with understood(out / JOURNAL):
                storage = journal(out / JOURNAL)
                searches = [ArmSearch(storage, search, arm) for arm in search.arms]
            if any(len(each.complete()) < trials for each in searches):
                _carry_on(context, searches, trials, executor)
            found = Trials(search, {each.arm.name: each.complete()[:trials] for each in searches})
            tuned.write(found, out, command)
            shutil.rmtree(out / ".work", ignore_errors=True)
    return found


def _carry_on(context: Context, searches: list["ArmSearch"], trials: int, make_executor: MakeExecutor) -> None:
    """Do what is left to do; `RunFailed` where something failed by no fault of its setting."""
    executor = make_executor(work, context)
    try:
        if not getattr(executor, "shared", True):
            raise BadInput("--engine ray: not every node sees the folder and the cache; a search needs an --out and a "
                           "TLKD_CACHE on storage that all nodes share")
        failures = _prepare(context, executor) or _search(searches, trials, executor)
    finally:
        executor.close()
    if failures:
        name, why = next(iter(failures.items()))
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        name = name if name.startswith(("features ", "teacher ")) else name.partition(" ")[0]
        raise RunFailed(f"{name} failed: {why}{more}; the same command tries it again")


# --- the folder -------------------------------------------------------------------------------------------------------


def refuse_other(out: Path, search: Search, content: str) -> None:
    """Refuse a folder that holds another search, naming what differs, or no search at all."""
    StudyFolder(out)  # which refuses what cannot be opened
    if (out / RECORD).is_file():
        old = {key: value for key, value in read_yaml(out / RECORD).items() if key != "provenance"}
        new = _decisive(search, content)
        if canonical(old) != canonical(new):
            where, was, now = _difference("", old, new)
            raise BadInput(f"{out}: holds a search with {where}: {was} (now {now}); choose another --out")
    elif out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; choose another --out")
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise BadInput(f"{out}: is not empty and holds no search; choose another --out")


def _decisive(search: Search, content: str) -> dict[str, Any]:
    """All that decides what a search finds, but for the number of trials."""
    raw = search.study.model_dump(mode="json", exclude={*EXTENDABLE, "seeds", "conditions", "arms", "teachers"})
    raw["data"].pop("masks")
    arms = {arm.name: arm.model_dump(mode="json") for arm in search.arms}
    wanted = {arm.teacher for arm in search.arms}
    return {"search": {name: {space.key: str(space) for space in spaces} for name, spaces in search.spaces.items()},
            "seeds": list(search.seeds), "metric": search.metric, "condition": search.condition.model_dump(mode="json"),
            "start": search.start and search.start.model_dump(mode="json"), **raw, "arms": arms,
            "teachers": {name: teacher.model_dump(mode="json") for name, teacher in search.study.teachers.items()
                         if name in wanted}, "content": content}


def _difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            if canonical(old.get(key)) != canonical(new.get(key)):
                return _difference(f"{path}.{key}" if path else key, old.get(key), new.get(key))
    return path, _brief(old), _brief(new)


def _brief(value: Any) -> str:
    return ", ".join(value) if isinstance(value, dict) else shown_value(value)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other searches out of the folder: what is unfinished in its journal is then nobody's but ours."""
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"{out}: another `tlkd tune` is at work there; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


# --- ask and tell -----------------------------------------------------------------------------------------------------


class _Turns:
    """Whose turn it is: trials that an earlier start left first, then the arm with the fewest under way.

    What failed by no fault of its setting leaves its trial open, for the next start; a worker that was killed is given
    one more try at once.
    """

    def __init__(self, searches: list[ArmSearch], trials: int, parallel: bool) -> None:
        self.searches, self.trials, self.parallel = searches, trials, parallel
        self.failures: dict[str, str] = {}
        self._left = deque(attempt for each in searches for attempt in each.unfinished() if attempt.number <= trials)
        self._jobs: deque[tuple[Attempt, int]] = deque()
        self._under_way = dict.fromkeys((each.arm.name for each in searches), 0)
        self._again: set[str] = set()

    @property
    def finished(self) -> int:
        """The number of trials that are over, of all arms."""
        return sum(min(len(each.complete()), self.trials) for each in self.searches)

    def next(self) -> tuple[Attempt, int] | None:
        """The next training, of a trial that is begun only now if none has one left; None where all are begun."""
        if not self._jobs:
            attempt = self._left.popleft() if self._left else self._ask()
            if attempt is None:
                return None
            self._under_way[attempt.searching.arm.name] += 1
            self._jobs.extend((attempt, seed) for seed in attempt.searching.search.seeds)
        return self._jobs.popleft()

    def _ask(self) -> Attempt | None:
        waiting = [each for each in self.searches if each.begun < self.trials]
        if not waiting:
            return None
        return min(waiting, key=lambda each: (self._under_way[each.arm.name], each.begun)).ask(self.parallel)

    def settle(self, attempt: Attempt, seed: int, job: Job, outcome: Outcome) -> bool:
        """Note how a training ended; whether its trial is over with it."""
        if outcome.failure.startswith(KILLED) and job.name not in self._again:
            self._again.add(job.name)
            self._jobs.appendleft((attempt, seed))
        elif outcome.failure:
            self.failures[job.name] = outcome.failure
        else:
            attempt.results[seed] = outcome.value
        if len(attempt.results) < len(attempt.searching.search.seeds):
            return False
        attempt.searching.tell(attempt)
        self._under_way[attempt.searching.arm.name] -= 1
        return True


def _search(searches: list[ArmSearch], trials: int, executor: Executor) -> dict[str, str]:
    """Try until every arm has its trials, with no slot idle; what failed by no fault of its setting, by job.

    With one slot all that went before a trial is over when it is asked for, so that a search can be repeated exactly.
    """
    turns = _Turns(searches, trials, executor.slots > 1)
    flight: dict[Future[Outcome], tuple[Attempt, int, Job]] = {}
    try:
        with progress.bar("trials", trials * len(searches), turns.finished) as advance:
            while True:
                while len(flight) < executor.slots and (turn := turns.next()) is not None:
                    job = turn[0].job(turn[1])
                    flight[executor.submit(job)] = *turn, job
                if not flight:
                    return turns.failures
                for future in wait(flight, return_when=FIRST_COMPLETED).done:
                    attempt, seed, job = flight.pop(future)
                    if turns.settle(attempt, seed, job, _outcome(job, future)):
                        advance()
    except BaseException:
        executor.close(now=True)
        raise


def _outcome(job: Job, future: Future[Outcome]) -> Outcome:
    """How a job ended. Raises `BadInput`."""
    try:
        return future.result()
    except BadInput:
        raise
    except Exception as error:  # of the executor itself
        return Outcome(job.name, failure=failure_line(error))


def _prepare(context: Context, executor: Executor) -> dict[str, str]:
    """Have everything made that trials learn from, as the study's own steps make it; what failed, by job."""
    jobs, failures = preparations(context), dict[str, str]()

    def note(outcome: Outcome) -> None:
        failure = outcome.failure or (outcome.value or {}).get("failure", "")
        if failure and not outcome.job.startswith("features of "):  # who needs such a bank makes it, and says why not
            failures[outcome.job] = failure

    run_all(jobs, executor, note)
    return failures


# --- jobs, in whatever process ----------------------------------------------------------------------------------------


def run_of(search: Search, name: str) -> Run:
    """The run that a training's name stands for; one without values is of the arm as it stands in the study."""
    head, *values = name.split(" ")
    arm, _, seed = head.rsplit("-", 2)
    keys = [space.key for space in search.spaces[arm]] if values else []
    setting = {key: json.loads(value) for key, value in zip(keys, values, strict=True)}
    return Run(with_setting(next(each for each in search.study.arms if each.name == arm), setting), search.condition,
               int(seed))


def preparations(context: Context) -> list[Job]:
    """The banks and teachers that the trials need, and the TL students that some start or learn from."""
    search = context.search
    assert search is not None
    steps, names = {step.name: step for step in study.steps(context.study)}, {arm.name for arm in search.arms}
    if search.start is not None:
        names.add(search.start.name)
    wanted = [f"run {run.run_id}" for run in plan(context.study) if run.arm.name in names
              and run.condition.name == search.condition.name and run.seed in search.seeds]
    chosen: set[str] = set()
    while wanted:
        new = [need for need in steps[wanted.pop()].needs if steps[need].kind != "run" and need not in chosen]
        chosen.update(new)
        wanted += new
    jobs = [Job(step.name, tuple(need for need in step.needs if need in chosen), step.threads)
            for step in steps.values() if step.name in chosen]
    if search.start is not None:
        training = context.study.training_of(search.start, search.condition)
        jobs += [Job(job_name(search.start.name, 1, seed, {}), tuple(job.name for job in jobs if job.name.startswith(
            "features of student")), training.threads) for seed in search.seeds]
    return jobs


@dataclass
class _Bench:
    """What a process keeps between the jobs it does."""

    context: Context | None = None
    workshop: Workshop | None = None
    steps: dict[str, study.Step] = field(default_factory=dict)
    teachers: dict[str, TeacherFit] = field(default_factory=dict)


_bench = _Bench()


def work(context: Context, name: str) -> Outcome:
    """Bank features, fit a teacher, or train a student of a trial; a training that failed by its setting is no failure.

    `BadInput` goes through: a full disk, say, after which nothing would fare better.
    """
    workshop, folder = _open(context), StudyFolder(context.out)
    workshop.stages.clear()
    with store.guard_disk(context.out):
        try:
            if name in _bench.steps:
                with store.impatient():
                    _bench.steps[name].do(workshop, folder)
            elif name in _bench.teachers:
                with store.impatient():
                    _fit(workshop, folder, _bench.teachers[name])
            else:
                assert context.search is not None
                made = _trained(workshop, context.search, run_of(context.search, name), folder, name)
                return Outcome(name, {**made.about, "address": made.address})
        except store.Busy:
            return Outcome(name, busy=True)
        except (RunFailed, torch.cuda.OutOfMemoryError) as error:
            return Outcome(name, {"failure": " ".join(str(error).split())})
    return Outcome(name)


def _open(context: Context) -> Workshop:
    if _bench.context != context or _bench.workshop is None:
        _bench.workshop = study.open_workshop(context)
        steps = study.steps(context.study)
        _bench.steps = {step.name: step for step in steps if step.kind == "features"}
        fits = [teacher_fit(context.study, run.arm.teacher, run.condition, run.seed) for run in plan(context.study)
                if run.arm.teacher is not None]
        _bench.teachers = {f"teacher {fit.fit_id}": fit for fit in fits}
        _bench.context = context
    return _bench.workshop


def _fit(workshop: Workshop, folder: StudyFolder, fit: TeacherFit) -> None:
    """Fit a teacher and bank its logits, in the cache, where a run of the study finds them."""
    artifact, network = stages.fitted_teacher(workshop, folder, fit)
    stages.soft_labels(workshop, network, artifact, f"teacher {fit.fit_id}", stages.CLEAN)


def _trained(workshop: Workshop, search: Search, run: Run, folder: StudyFolder, name: str) -> store.Artifact:
    """One training of a trial, judged on dev: curves and result, and the weights where others start from them.

    No prediction on the test split is made. Its address holds what decides it, so that a setting which comes up again
    costs nothing.
    """
    start = None
    if starts_from_tl(search.study, run.arm) and search.start is not None:
        start = _trained(workshop, search, replace(run, arm=search.start), folder, name)
    teacher = (_own_labels(workshop, run, start) if run.arm.kind == "self" and start is not None
               else stages.teacher_labels(workshop, folder, run))
    start = start if search.study.student.start == "tl" else None
    student, training = search.study.student_of(run.condition), search.study.training_of(run.arm, run.condition)
    network = network_for(workshop, student, run.seed, stages.student_key(run.condition))
    others = {"soft_labels": teacher, "start": start}
    inputs = {**inputs_of(workshop, network), **{key: each.address for key, each in others.items() if each is not None}}
    kept = run.arm == search.start
    spec = {**stages.run_spec(workshop, network, run), "weights": kept}
    work = folder.path / ".work" / store.address("trials", VERSION, spec, inputs)

    def make(target: Path) -> dict[str, Any]:
        given = learner(workshop, network, "student", run.condition)
        given = replace(given, who=name, sources={split: given.sources[split] for split in ("train", "dev")})
        if start is not None:
            models.load_trained(network, load_file(start.path / "model.safetensors"))
        loss, source = stages.arm_loss(workshop, run, teacher)
        drawn, labels = workshop.draw(run.condition, run.seed), workshop.labels["dev"]
        fitted = train(workshop, given, loss, source, training, drawn, seed=run.seed, work=work)
        with held_to(training.threads):
            found = evaluation.metrics(labels, predict(given.forward, given.sources["dev"], len(labels)))
        pd.DataFrame(fitted.history).to_csv(target / "history.csv", index=False)
        result = {**{f"dev_{key}": value for key, value in found.items()}, "epochs": fitted.epochs,
                  "best_epoch": fitted.best_epoch, "seconds": round(sum(each["seconds"] for each in fitted.history), 3)}
        store.write_json(target / "result.json", result)
        if kept:
            save_file(models.trained_state(network), target / "model.safetensors")
        return result

    try:
        artifact = store.get(folder.path, "trials", VERSION, spec, inputs, make)
    except RunFailed:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    return artifact


def _own_labels(workshop: Workshop, run: Run, start: store.Artifact) -> SoftLabels:
    """What the TL student of a run's seed says of the training views, and of no other images."""
    student, who = workshop.study.student_of(run.condition), f"logits of TL, seed {run.seed}"
    network = network_for(workshop, student, run.seed, stages.student_key(run.condition))
    models.load_trained(network, load_file(start.path / "model.safetensors"))
    network.eval()
    if not workshop.study.bank:
        return stages.soft_labels(workshop, network, start, who, run.condition)
    given = learner(workshop, network, "student", run.condition)
    views = len(workshop.views) + len(corrupted_views(workshop, run.condition))
    bank = banks.build(workshop.cache, "logits", {"split": "train"}, {"student": start.address}, network.classes,
                       {"train": (given.sources["train"], views, len(workshop.labels["train"]))}, given.forward, who,
                       workshop.threads)
    return SoftLabels(Rows(bank.arrays["train"], workshop.device), start.address)
