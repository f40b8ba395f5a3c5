"""What a study is made of, by address, before it is made: banks, teachers and runs, and which of them are there."""

import time
from dataclasses import dataclass, field
from functools import cached_property

from tlkd import seeding, stages, store
from tlkd.conditions import Condition, Distortion
from tlkd.distortions import describe
from tlkd.folder import Run, StudyFolder, TeacherFit, plan, teacher_fit, teacher_fits
from tlkd.models import Network
from tlkd.specs import Network as NetworkSpec
from tlkd.specs import Study, canonical
from tlkd.study import Step, features_of, open_steps, steps
from tlkd.workshop import (
    Workshop,
    corrupted_views,
    distorted_recipe,
    features_recipe,
    inputs_of,
    is_banked,
    network_for,
)

CLEAN = stages.CLEAN


@dataclass(frozen=True)
class Bank:
    """A bank that the study uses: what it holds, its address, its shape, and whether it is in the cache, whole."""

    what: str
    group: str  # what is told of together
    recipe: store.Recipe
    rows: int
    width: int
    state: str  # there, damaged, missing
    network: Network
    distortion: Distortion | None = None
    logits: bool = False

    @property
    def bytes(self) -> int:
        """The size of its arrays, which hold float32."""
        return 4 * self.rows * self.width


@dataclass(frozen=True)
class Known:
    """A network as it is before any training, the inputs it stands for, and the seconds it took to build."""

    network: Network
    inputs: dict[str, str]
    seconds: float
    banked: bool  # its features come out of a bank


@dataclass(frozen=True)
class Use:
    """The banks that a step uses, whose teacher's fit it is, and whose run."""

    banks: tuple[Bank, ...]
    fit: TeacherFit | None = None
    run: Run | None = None


@dataclass(eq=False)
class Inventory:
    """What a study is made of, by address, before it is made; each network is built once."""

    workshop: Workshop
    folder: StudyFolder
    banks: dict[str, Bank] = field(default_factory=dict)  # by address
    _known: dict[str, Known] = field(default_factory=dict)
    _whole: dict[str, bool] = field(default_factory=dict)

    @property
    def study(self) -> Study:
        """The study."""
        return self.workshop.study

    def known(self, spec: NetworkSpec, seed: int, key: str) -> Known:
        """A network and what it stands for; the seed matters only where its backbone is drawn from it."""
        drawn = seed if spec.weights == "none" else None
        name = canonical([spec.model_dump(mode="json", include={*NetworkSpec.model_fields, "fit"}), drawn])
        if name not in self._known:
            started = time.perf_counter()
            network = network_for(self.workshop, spec, seed, key, fit=getattr(spec, "fit", True))
            inputs = inputs_of(self.workshop, network)
            took = time.perf_counter() - started
            self._known[name] = Known(network, inputs, took, is_banked(self.workshop, network))
        return self._known[name]

    def student(self, run: Run) -> Known:
        """A run's student."""
        return self.known(self.study.student_of(run.condition), run.seed, stages.student_key(run.condition))

    def teacher(self, fit: TeacherFit) -> Known:
        """A teacher's network."""
        drawn = seeding.seed_from("teacher") if fit.seed is None else fit.seed
        return self.known(self.study.teachers[fit.name], drawn, f"teachers.{fit.name}")

    def teacher_recipe(self, fit: TeacherFit) -> store.Recipe:
        """What a fitted teacher is made from."""
        known = self.teacher(fit)
        return stages.teacher_recipe(self.workshop, known.network, fit, known.inputs)

    def run_recipe(self, run: Run) -> store.Recipe:
        """What a run is made from."""
        known, teacher, start = self.student(run), None, None
        if run.arm.teacher is not None:
            teacher = self.teacher_recipe(teacher_fit(self.study, run.arm.teacher, run.condition, run.seed)).address
        elif run.arm.kind == "self":
            teacher = self.tl_address(run)
        if stages.starts_from_tl(self.study, run):
            start = self.tl_address(run)
        return stages.run_recipe(self.workshop, known.network, run, known.inputs, teacher, start)

    def tl_address(self, run: Run) -> str:
        """The address of the TL student's run of the same condition and seed; none where there will be no such run."""
        tl = self._tl.get((run.condition.name, run.seed))
        return "" if tl is None else self.run_recipe(tl).address

    @cached_property
    def _tl(self) -> dict[tuple[str, int], Run]:
        return {(run.condition.name, run.seed): run for run in reversed(plan(self.study)) if run.arm.kind == "tl"}

    @cached_property
    def uses(self) -> dict[str, Use]:
        """What each step of the study uses, by the step's name."""
        study, found = self.study, dict[str, Use]()
        features: dict[str, Bank] = {}
        for fit in teacher_fits(study):
            known, who, spec = self.teacher(fit), f"teacher {fit.name}", study.teachers[fit.name]
            used = self.features(known, who, fit.condition)
            features |= dict(zip(features_of(study, who, spec, fit.condition), used, strict=False))
            logits = self.logits(known, self.teacher_recipe(fit).address, who, CLEAN)
            found[f"teacher {fit.fit_id}"] = Use((*used, *logits), fit)
        for run in plan(study):
            used, student = self.of_run(run), study.student_of(run.condition)
            features |= dict(zip(features_of(study, "student", student, run.condition), used, strict=False))
            if run.arm.teacher is not None:
                who, spec = f"teacher {run.arm.teacher}", study.teachers[run.arm.teacher]
                known = self.teacher(teacher_fit(study, run.arm.teacher, run.condition, run.seed))
                theirs = self.features(known, who, run.condition if spec.labels == "same_view" else CLEAN)
                features |= dict(zip(features_of(study, who, spec, run.condition), theirs, strict=False))
            found[f"run {run.run_id}"] = Use(tuple(used), None, run)
            if study.robustness:
                found[f"robustness of {run.run_id}"] = Use(tuple(self.tested(self.student(run))), None, run)
        return {step.name: found.get(step.name) or Use((features[step.name],)) for step in steps(study)}

    # --- banks

    def features(self, known: Known, who: str, condition: Condition | None) -> list[Bank]:
        """The banks of a frozen backbone's features: the clean views, and those that a condition corrupts."""
        if not known.banked:
            return []
        network, what = known.network, f"features of {who} at {known.network.input_size} px"
        recipe = features_recipe(self.workshop, network, known.inputs)
        found = [self._bank(what, what, recipe, self._clean_rows(), network.width, network)]
        if condition is not None and condition.distortion is not None:
            views, what = corrupted_views(self.workshop, condition), f"{what}, {describe(condition.distortion)}"
            recipe = distorted_recipe(self.workshop, network, known.inputs, "train", views, condition.distortion)
            found.append(self._bank(what, what, recipe, len(views) * self._count("train"), network.width, network,
                                    condition.distortion))
        return found

    def tested(self, known: Known) -> list[Bank]:
        """The banks of a frozen student's features of distorted test images, for robustness."""
        found = []
        for distortion in stages.distortions_of(self.study) if known.banked else []:
            recipe = distorted_recipe(self.workshop, known.network, known.inputs, "test", stages.DISTORTED, distortion)
            group = f"features of student at {known.network.input_size} px, distorted test images"
            found.append(self._bank(f"{group}, {describe(distortion)}", group, recipe, self._count("test"),
                                    known.network.width, known.network, distortion))
        return found

    def logits(self, known: Known, address: str, who: str, condition: Condition) -> list[Bank]:
        """The banks of a fitted network's logits: the clean views, and those that a condition corrupts."""
        if not self.study.bank:
            return []
        what, network, classes = f"logits of {who}", known.network, len(self.workshop.dataset.classes)
        recipe = stages.logits_recipe(self.workshop, address)
        found = [self._bank(what, what, recipe, self._clean_rows(), classes, network, None, True)]
        if condition.distortion is not None:
            recipe, views = stages.logits_recipe(self.workshop, address, condition), corrupted_views(
                self.workshop, condition)
            what = f"{what}, {describe(condition.distortion)}"
            found.append(self._bank(what, what, recipe, len(views) * self._count("train"), classes, network,
                                    condition.distortion, True))
        return found

    def of_run(self, run: Run) -> list[Bank]:
        """The banks that a run opens, in the order in which it does."""
        found, condition = [], run.condition
        if run.arm.teacher is not None:
            fit = teacher_fit(self.study, run.arm.teacher, condition, run.seed)
            shown = condition if self.study.teachers[fit.name].labels == "same_view" else CLEAN
            known, who = self.teacher(fit), f"teacher {fit.name}"
            found += self.features(known, who, shown) + self.logits(known, self.teacher_recipe(fit).address, who, shown)
        elif run.arm.kind == "self":
            found += self.logits(self.student(run), self.tl_address(run), "TL students", condition)
        return self.features(self.student(run), "student", condition) + found

    def _bank(self, what: str, group: str, recipe: store.Recipe, rows: int, width: int, network: Network,
              distortion: Distortion | None = None, logits: bool = False) -> Bank:
        where = recipe.address
        if where not in self.banks:
            path = self.workshop.cache / recipe.kind / where
            state = "missing" if not path.exists() else "there" if self.is_whole(recipe) else "damaged"
            self.banks[where] = Bank(what, group, recipe, rows, width, state, network, distortion, logits)
        return self.banks[where]

    def is_whole(self, recipe: store.Recipe) -> bool:
        """Whether the cache holds what is made from this, every file of it with its checksum."""
        where = recipe.address
        if where not in self._whole:
            self._whole[where] = store.find(self.workshop.cache / recipe.kind / where, where) is not None
        return self._whole[where]

    def _count(self, split: str) -> int:
        return len(self.workshop.labels[split])

    def _clean_rows(self) -> int:
        return len(self.workshop.views) * self._count("train") + self._count("dev") + self._count("test")


# --- what each step makes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """What a step makes that is not there: banks, and a teacher's fit, a run or a robustness."""

    step: Step
    banks: tuple[Bank, ...]
    fit: TeacherFit | None = None
    run: Run | None = None  # with kind robustness: whose


def made_by(inventory: Inventory) -> list[Made]:
    """The steps that a run of the study would take now, with what each will make; a bank is made by the first."""
    made: list[Made] = []
    taken: set[str] = set()
    for name, step in open_steps(inventory.study, inventory.folder).items():
        use, run, folder = inventory.uses[name], inventory.uses[name].run, inventory.folder
        if step.done(folder):
            continue
        banks = [bank for bank in use.banks if bank.state != "there" and bank.recipe.address not in taken]
        taken.update(bank.recipe.address for bank in banks)
        fit = None if use.fit is None or inventory.is_whole(inventory.teacher_recipe(use.fit)) else use.fit
        here = use.fit is None or folder.teacher_path(use.fit).is_dir()
        if banks or fit is not None or run is not None or not here:
            made.append(Made(step, tuple(banks), fit, run))
    return made
