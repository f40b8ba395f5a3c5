"""The pipeline, to be read from top to bottom: the only place that wires stages to artifacts."""

import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tlkd import crew, evaluation, examples, explaining, progress, seals, stages, store
from tlkd.conditions import Condition
from tlkd.datasets import open_dataset, reopen
from tlkd.engine import Executor, Inline, Job, Outcome, failure_line, run_all
from tlkd.errors import BadInput, RunFailed, memory_trouble
from tlkd.folder import (
    RESULT_COLUMNS,
    Run,
    StudyFolder,
    TeacherFit,
    awaited,
    load_predictions,
    plan,
    reading,
    teacher_fit,
    teacher_fits,
    was_killed,
)
from tlkd.provenance import provenance
from tlkd.specs import Network, Study
from tlkd.workshop import Workshop, network_for


@dataclass(frozen=True)
class Step:
    """One piece of a study: what must be over before it, what it does, and where it says why it failed."""

    name: str
    kind: str  # features, teacher, run, robustness
    needs: tuple[str, ...]
    do: Callable[[Workshop, StudyFolder], None]
    done: Callable[[StudyFolder], bool]
    failure: Callable[[StudyFolder], Path]
    threads: int = 1


@dataclass(frozen=True)
class Context:
    """What a worker needs to take any step of a study; small and picklable."""

    study: Study
    out: Path
    cache: Path
    device: str
    threads: int = 0  # that build banks; 0: as many as torch has
    images: str = ""  # where the cache holds the decoded images, once they are there
    held: tuple[str, ...] = ()  # the steps of earlier starts whose results others need


MakeExecutor = Callable[[Callable[[Any, str], Outcome], Context], Executor]


def run_study(study: Study, out: Path, device: torch.device, command: str = "", executor: MakeExecutor = Inline,
              retry_failed: bool = True, threads: int = 0, begun: Callable[[], None] | None = None) -> dict[str, str]:
    """Run a study into the folder `out`: what is finished there stands, what failed is returned by run id.

    `executor` makes what carries out the steps (this process, if nothing else is said), each with `threads` threads for
    banks (0: as many as torch has). What failed by itself is tried again only with `retry_failed`; what was killed
    always. `begun` is called once the folder is there: from then on it tells all.
    """
    folder, cache = StudyFolder(out), store.cache_folder()
    damaged = _refuse_other(folder, study)
    refuse_newer(folder)
    context = Context(study, out.absolute(), cache.absolute(), str(device), threads)
    workshop = open_workshop(context)
    context = replace(context, images=workshop.dataset.address)
    _bench.take(context, workshop)  # an executor in this process goes on with what is open
    build_all(workshop)
    check_conditions(workshop)
    subject = explaining.prepare(workshop, folder)
    with store.guard_disk(out):
        folder.prepare(study, provenance(command, device), anew=damaged)
        with seals.alone(out):
            seals.mend(out)
        write_card(workshop, out)
        examples.write(workshop, out)
        folder.forget_failures(everything=retry_failed)
        _forget_consequences(study, folder)
        folder.unsound = unsound_runs(folder, workshop)
        if begun is not None:
            begun()
        try:
            take_steps(context, folder, executor)
        finally:
            folder.unsound = unsound_runs(folder, workshop, folder.unsound)
            collect(folder)
        if subject is None:
            explaining.forget_failures(folder)
        else:
            explaining.explain_all(workshop, folder, subject, sitters(workshop, folder, subject), attempt)
            write_stages(folder, workshop.stages)
        if not folder.failures():
            shutil.rmtree(out / ".work", ignore_errors=True)
        with seals.alone(out):
            seals.seal(out, seals.STUDY)
    return {**folder.failures(), **folder.robustness_failures(),
            **{f"explanation of {who}": why for who, why in folder.explanation_failures().items()}}


def _forget_consequences(study: Study, folder: StudyFolder) -> None:
    """Let what failed for want of another's result be tried again, where that one has not failed by itself."""
    if not any((folder.path / "failures").glob("*.txt")):
        return
    every = {step.name: step for step in steps(study)}
    for step in every.values():  # each behind what it needs
        path = step.failure(folder)
        if path.is_file() and awaited(path) and not any(every[need].failure(folder).is_file() for need in step.needs):
            path.unlink(missing_ok=True)


def _refuse_other(folder: StudyFolder, study: Study) -> bool:
    """Refuse a folder that holds another study; whether its `study.yaml` is damaged, and says the same even so."""
    damaged = bool(seals.damaged(folder.path, ("study.yaml",)))
    try:
        folder.refuse_other(study)
    except BadInput as error:
        if damaged:
            raise BadInput(f"{folder.path / 'study.yaml'}: is not what {seals.NAME} says, and not this study as it is "
                           f"({error}). Put a copy in its place, such as the same command with another --out begins "
                           "with") from None
        raise
    if damaged:
        progress.say(f"{folder.path / 'study.yaml'}: is not what {seals.NAME} says; it is written again")
    return damaged


def open_workshop(context: Context) -> Workshop:
    """The study's data and networks on this machine."""
    device = torch.device(context.device)
    if device.type == "cuda":  # float32 means float32: TensorFloat-32 keeps ten bits of the fraction
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if context.images:
        dataset = reopen(context.study.data, context.cache, context.images)
    else:
        dataset = open_dataset(context.study.data, context.study.max_input_size, context.cache)
    return Workshop(context.study, dataset, context.cache, device, context.threads)


def build_all(workshop: Workshop) -> None:
    """Build every network once, before anything is written: what does not fit is known at once."""
    study = workshop.study
    for student, condition in {study.student_of(each): each for each in reversed(study.conditions)}.items():
        network_for(workshop, student, study.seeds[0], stages.student_key(condition))
    for name, teacher in study.used_teachers.items():
        network_for(workshop, teacher, study.seeds[0], f"teachers.{name}", fit=teacher.fit)


def check_conditions(workshop: Workshop) -> None:
    """Draw every condition once: what does not fit the classes is known at once."""
    classes = len(workshop.dataset.classes)
    for arm in workshop.study.arms:
        if arm.kind == "tl_kd_shuffled" and classes < 3:
            raise BadInput(f"arms.{arm.name}.kind: found 'tl_kd_shuffled' with {classes} classes; it needs at least 3, "
                           "since the one class beside the label's has nothing to change places with")
    for condition in workshop.study.conditions:
        for seed in workshop.study.seeds_of(condition)[:1]:  # how many of a class are kept is the same for all seeds
            workshop.draw(condition, seed)


def refuse_newer(folder: StudyFolder) -> None:
    """Refuse a folder in which a newer tlkd has made something, since this one would make it again in its own way."""
    for kind, version in (("runs", stages.VERSION), ("robustness", stages.ROBUSTNESS_VERSION),
                          ("explanations", explaining.VERSION)):
        for path in sorted((folder.path / kind).glob(f"[!.]*/{store.MANIFEST}")):
            with suppress(OSError, ValueError, LookupError, TypeError):  # damaged: it is made again
                found = store.read_json(path)["version"]
                if isinstance(found, int) and found > version:
                    raise BadInput(f"{path.parent}: a newer tlkd made this (version {found} of {kind}, this tlkd makes "
                                   f"{version}): update tlkd, or choose another --out")


def unsound_runs(folder: StudyFolder, workshop: Workshop, among: frozenset[str] | None = None) -> frozenset[str]:
    """The finished runs (of those `among`) that are damaged, or were made of other images or by another version."""
    def sound(path: Path) -> bool:
        try:
            manifest = store.read_json(path / store.MANIFEST)
            same = (manifest["inputs"]["data"], manifest["version"]) == (workshop.dataset.content, stages.VERSION)
            return same and not store.damaged(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no manifest that we wrote
            return False

    return frozenset(run.run_id for run in folder.runs() if (among is None or run.run_id in among)
                     and (folder.run_path(run) / store.MANIFEST).is_file() and not sound(folder.run_path(run)))


def write_card(workshop: Workshop, out: Path) -> None:
    """Write `data.json`: what the report says of the data."""
    dataset = workshop.dataset
    store.write_json(out / "data.json", {**dataset.card, "classes": list(dataset.classes), "content": dataset.content})


# --- the steps --------------------------------------------------------------------------------------------------------


def steps(study: Study) -> tuple[Step, ...]:
    """Every step of a study in the order of its urgency: banks; runs, each behind its teacher; robustness."""
    features, teachers = _feature_steps(study), _teacher_steps(study)
    ordered = dict(features)
    for step in _run_steps(study, features):
        ordered |= {name: teachers[name] for name in step.needs if name in teachers}
        ordered[step.name] = step
    return (*ordered.values(), *(_robustness_steps(study) if study.robustness else ()))


def _banked(study: Study, spec: Network) -> bool:
    return study.bank and stages.frozen(spec)


def features_of(study: Study, who: str, spec: Network, condition: Condition | None) -> tuple[str, ...]:
    """The names of the steps that bank what a frozen network gives under a condition, the clean views first."""
    if not _banked(study, spec):
        return ()
    clean = f"features of {who} at {spec.input_size} px"
    if condition is None or condition.distortion is None or condition.corruption is None:
        return (clean,)
    names = {(other.distortion, other.corruption.variants): other.name for other in reversed(
        study.conditions) if other.distortion is not None and other.corruption is not None}
    return clean, f"{clean}, {names[condition.distortion, condition.corruption.variants]}"


def _feature_steps(study: Study) -> dict[str, Step]:
    found: dict[str, Step] = {}
    wanted: list[tuple[str, str, Network, Condition]] = []
    for run in plan(study):
        wanted.append(("student", stages.student_key(run.condition), study.student_of(run.condition), run.condition))
        if run.arm.teacher is not None:
            teacher = study.teachers[run.arm.teacher]
            same = teacher.labels == "same_view" or teacher.trained_on == "condition"
            wanted.append((f"teacher {run.arm.teacher}", f"teachers.{run.arm.teacher}", teacher,
                           run.condition if same else stages.CLEAN))
    for who, key, spec, condition in wanted:
        names = features_of(study, who, spec, condition)
        if names and names[0] not in found:
            found[names[0]] = Step(names[0], "features", (), partial(_features, spec, key, who), _never, _nowhere)
        if len(names) == 2 and names[1] not in found:
            found[names[1]] = Step(names[1], "features", (), partial(_corrupted, spec, key, who, condition), _never,
                                   _nowhere)
    return dict(sorted(found.items(), key=lambda pair: pair[0].count(",")))


def _features(spec: Network, key: str, who: str, workshop: Workshop, folder: StudyFolder) -> None:
    stages.publish_features(workshop, spec, key, who)


def _corrupted(spec: Network, key: str, who: str, condition: Condition, workshop: Workshop,
               folder: StudyFolder) -> None:
    stages.publish_corrupted_features(workshop, spec, key, who, condition)


def _never(folder: StudyFolder) -> bool:
    return False  # whether a bank is there, only its address tells: opening it costs little


def _nowhere(folder: StudyFolder) -> Path:
    return folder.path / ".work" / "failed-bank.txt"  # those that need the bank make it themselves, and say why not


def _teacher_steps(study: Study) -> dict[str, Step]:
    def of(fit: TeacherFit) -> Step:
        spec = study.teachers[fit.name]
        needs = features_of(study, f"teacher {fit.name}", spec, fit.condition)
        return Step(f"teacher {fit.fit_id}", "teacher", needs,
                    lambda workshop, folder: stages.publish_teacher(workshop, folder, fit), _never,
                    lambda folder: folder.teacher_failure_path(fit), spec.training.threads)

    return {step.name: step for step in map(of, teacher_fits(study))}


def _run_steps(study: Study, features: dict[str, Step]) -> list[Step]:
    runs = plan(study)
    tl = {(run.condition.name, run.seed): f"run {run.run_id}" for run in reversed(runs) if run.arm.kind == "tl"}

    def of(run: Run) -> Step:
        needs = [*features_of(study, "student", study.student_of(run.condition), run.condition)]
        if run.arm.teacher is not None:
            needs.append(f"teacher {teacher_fit(study, run.arm.teacher, run.condition, run.seed).fit_id}")
            spec = study.teachers[run.arm.teacher]
            needs += [name for name in features_of(study, f"teacher {run.arm.teacher}", spec, run.condition)
                      if name in features]
        if (run.arm.kind == "self" or study.student.start == "tl") and run.arm.kind != "tl":
            needs += [tl[run.condition.name, run.seed]] if (run.condition.name, run.seed) in tl else []
        return Step(f"run {run.run_id}", "run", tuple(dict.fromkeys(needs)),
                    lambda workshop, folder: stages.publish_run(workshop, folder, run),
                    lambda folder: folder.done(run), lambda folder: folder.failure_path(run),
                    study.training_of(run.arm, run.condition).threads)

    return [of(run) for run in runs]


def _robustness_steps(study: Study) -> list[Step]:
    def of(run: Run) -> Step:
        return Step(f"robustness of {run.run_id}", "robustness", (f"run {run.run_id}",),
                    lambda workshop, folder: stages.publish_robustness(workshop, folder, run),
                    lambda folder: folder.robustness_done(run), lambda folder: folder.robustness_failure_path(run))

    return [of(run) for run in plan(study)]


# --- carrying them out ------------------------------------------------------------------------------------------------


def take_steps(context: Context, folder: StudyFolder, make_executor: MakeExecutor) -> None:
    """Take every step that is neither done nor failed, and those that it needs."""
    needed = open_steps(context.study, folder)
    held = tuple(name for name, step in needed.items() if step.done(folder))
    chosen = {name: step for name, step in needed.items() if name not in held}
    jobs = [Job(name, tuple(need for need in step.needs if need in chosen), step.threads)
            for name, step in chosen.items()]
    if not jobs:
        return

    def note(outcome: Outcome) -> None:
        step = chosen[outcome.job]
        if outcome.failure and not step.failure(folder).is_file():  # a worker that was killed could not say so itself
            store.replace_text(step.failure(folder), f"{outcome.failure}\n")
        write_stages(folder, outcome.value or [])

    executor = make_executor(work, replace(context, held=held))
    try:
        run_all(jobs, executor, note)
    finally:
        executor.close()


def open_steps(study: Study, folder: StudyFolder) -> dict[str, Step]:
    """The steps that are neither done nor failed, and those that they need, in their order and by name.

    A step whose worker was killed has not failed: the next start takes it again.
    """
    def is_open(step: Step) -> bool:
        failure = step.failure(folder)
        if step.kind == "features" or (failure.is_file() and not was_killed(failure)):
            return False
        return not (step.name in teachers if step.kind == "teacher" else step.done(folder))

    teachers = {f"teacher {fit.fit_id}" for fit in teacher_fits(study) if folder.teacher_there(fit)}
    everything = {step.name: step for step in steps(study)}
    needed = _with_needs([step for step in everything.values() if is_open(step)], everything, folder)
    return {name: step for name, step in everything.items() if name in needed}


def _with_needs(wanted: list[Step], everything: dict[str, Step], folder: StudyFolder) -> set[str]:
    """The names of these steps and of what they need; what a step that is done needed, nobody needs any more."""
    chosen: set[str] = set()
    waiting = [step.name for step in wanted]
    while waiting:
        name = waiting.pop()
        if name not in chosen:
            chosen.add(name)
            waiting += () if everything[name].done(folder) else everything[name].needs
    return chosen


@dataclass
class _Bench:
    """What a process keeps between the steps it takes."""

    context: Context | None = None
    workshop: Workshop | None = None
    folder: StudyFolder | None = None  # which reads its study once: that takes longer than a step's own looking about
    steps: dict[str, Step] = field(default_factory=dict)

    def take(self, context: Context, workshop: Workshop) -> None:
        """Keep an open study for the steps to come."""
        self.context, self.workshop, self.folder = context, workshop, StudyFolder(context.out)
        self.steps = {step.name: step for step in steps(context.study)}


_bench = _Bench()


def _at_bench(context: Context) -> tuple[Workshop, StudyFolder]:
    context = replace(context, held=())
    if _bench.context != context or _bench.workshop is None or _bench.folder is None:
        _bench.take(context, open_workshop(context))
    assert _bench.workshop is not None and _bench.folder is not None
    return _bench.workshop, _bench.folder


def work(context: Context, name: str) -> Outcome:
    """Take one step of a study, in whatever process: its outcome carries what the stages cost.

    `BadInput` goes through: a full disk, say, after which nothing would fare better.
    """
    workshop, folder = _at_bench(context)
    step = _bench.steps[name]
    workshop.stages.clear()
    try:
        with store.guard_disk(context.out), store.impatient():
            failure = attempt_step(step, workshop, folder)
    except store.Busy:
        return Outcome(name, busy=True)
    return Outcome(name, [dict(stage) for stage in workshop.stages], failure)


def leading(work: Callable[[Any, str], Outcome], context: Context) -> Executor:
    """An executor for a crew's main process: steps are taken here, and every training by all processes together."""
    crew.lead(context)
    return Inline(work, context, context.out / "logs")


def follow(device: torch.device) -> None:
    """Train along with a crew's main process until it lets go; nothing is published here, and nothing shown."""
    def take(context: Context, do: Callable[[Workshop, StudyFolder, Any], Any], what: Any) -> None:
        workshop, folder = _at_bench(replace(context, device=str(device)))
        do(workshop, folder, what)
        workshop.stages.clear()

    progress.relay(lambda news: None, bars=False)
    crew.follow(take)


def published_by(context: Context, name: str) -> list[str]:
    """The folders in the cache, relative to it, that the step which this process took last has published."""
    if _bench.workshop is None or _bench.context != replace(context, held=()):
        return []
    kinds = {"features": ("features",), "teacher": ("teachers", "logits")}.get(_bench.steps[name].kind, ())
    places = [str(stage["place"]) for stage in _bench.workshop.stages if stage["place"].partition("/")[0] in kinds]
    return list(dict.fromkeys(places))


def attempt_step(step: Step, workshop: Workshop, folder: StudyFolder) -> str:
    """Take a step; where it fails, keep why and return the first line of it."""
    failure = step.failure(folder)
    attempt(failure, lambda: step.do(workshop, folder))
    return failure.read_text().partition("\n")[0] if failure.is_file() else ""


def attempt(failure: Path, do: Callable[[], Any]) -> Any:
    """Do one piece of work; if it fails, keep why in the file `failure` and let the others go on."""
    try:
        made = do()
    except store.Busy:
        raise
    except RunFailed as error:
        store.replace_text(failure, f"{error}\n")
    except Exception as error:
        if isinstance(error, BadInput) and memory_trouble(error) is None:
            raise
        store.replace_text(failure, f"{failure_line(error)}\n\n{traceback.format_exc()}")
    else:
        failure.unlink(missing_ok=True)
        return made
    return None


def write_stages(folder: StudyFolder, made: list[dict[str, Any]]) -> None:
    """Add to `stages.json` what stages cost: those of earlier starts stay."""
    if made:
        with seals.alone(folder.path):
            known = {stage["address"]: stage for stage in [*made, *folder.stages()]}
            seals.unseal(folder.path, seals.STUDY)  # of another driver, which has come to its end before this one
            store.write_json(folder.path / "stages.json", list(known.values()))


# --- explanations -----------------------------------------------------------------------------------------------------


def sitters(workshop: Workshop, folder: StudyFolder, subject: explaining.Subject) -> list[explaining.Sitter]:
    """The finished networks that the study explains: its first seeds' students, and each teacher once."""
    study, spec = workshop.study, subject.spec
    wanted = study.seeds if spec.seeds == "all" else study.seeds[:spec.seeds]
    shown = spec.conditions or [each.name for each in study.conditions if each.plain and each.student is None]
    found = [explaining.of_run(workshop, folder, run) for run in folder.finished()
             if run.seed in wanted and run.condition.name in shown]
    if spec.teachers:
        for fit in teacher_fits(study):
            if fit.condition is None and fit.seed in (None, study.seeds[0]) and folder.teacher_path(fit).is_dir():
                artifact, _ = stages.fitted_teacher(workshop, folder, fit)
                found.append(explaining.of_teacher(workshop, fit.name, fit.seed, artifact.path))
    return found


# --- results ----------------------------------------------------------------------------------------------------------


def collect(folder: StudyFolder) -> pd.DataFrame:
    """Write `results.csv` from the finished runs."""
    rows = []
    for run in folder.finished():
        row = {"run_id": run.run_id, "arm": run.arm.name, "condition": run.condition.name, "seed": run.seed,
               **folder.result(run)}
        teacher = folder.teacher_of(run)
        if teacher is not None and teacher.is_dir():
            theirs, ours = load_predictions(teacher / "predictions.npz"), folder.predictions(run)
            with reading(folder.run_path(run) / "predictions.npz"):  # edited, they may not fit the teacher's
                row["teacher_agreement"] = evaluation.agreement(ours.logits, theirs.logits)["top1"]
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(RESULT_COLUMNS))
    with seals.alone(folder.path):
        seals.unseal(folder.path, seals.STUDY)
        store.replace_text(folder.path / "results.csv", table.to_csv(index=False))
    return table
