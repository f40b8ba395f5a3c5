"""What is tried next in a search, and what was tried: Optuna's sampler and journal, an arm at a time."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkd import seeding, store
from tlkd.engine import Job
from tlkd.errors import BadInput, needs
from tlkd.spaces import Search, Space, with_setting
from tlkd.specs import Arm
from tlkd.tuned import Trial

if TYPE_CHECKING:
    import optuna

DRAWN_FIRST = 6  # trials before the sampler trusts what it has seen; the study's own setting is one of them


def demand() -> None:
    """Make sure that Optuna is there, and quiet."""
    optuna = needs("optuna", "tlkd tune", "tune")
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def journal(path: Path) -> "optuna.storages.BaseStorage":
    """The journal of all trials, whatever a process that was killed may have left of its last line and of its lock.

    It is JSON, a line an entry; of Optuna's backends and samplers only others unpickle.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # nobody else is here
    if path.is_file():
        content = path.read_bytes()
        whole = content[:content.rfind(b"\n") + 1]
        if whole != content:
            store.replace_bytes(path, whole)
    return JournalStorage(JournalFileBackend(str(path)))


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or edited journal sets off into one plain line."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # it can fail anywhere inside Optuna
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {error}); choose another --out") from error


@dataclass
class Attempt:
    """A trial that is under way: what each seed gave so far."""

    searching: "ArmSearch"
    number: int
    trial: "optuna.Trial"
    setting: dict[str, Any]
    results: dict[int, dict[str, Any]] = field(default_factory=dict)

    def job(self, seed: int) -> Job:
        """One training of it."""
        search, arm = self.searching.search, self.searching.arm
        setting = {} if self.number == 1 else self.setting  # the first is the study's own, whatever that is
        training = search.study.training_of(with_setting(arm, setting), search.condition)
        return Job(job_name(arm.name, self.number, seed, setting), threads=training.threads)


class ArmSearch:
    """The search of one arm: what was tried, as the journal has it, and what is tried next."""

    def __init__(self, storage: "optuna.storages.BaseStorage", search: Search, arm: Arm) -> None:
        import optuna

        self.search, self.arm, self.spaces = search, arm, search.spaces[arm.name]
        self._states = optuna.trial.TrialState
        self._study = optuna.create_study(storage=storage, study_name=arm.name, direction="maximize",
                                          load_if_exists=True)
        for trial in self._study.get_trials(states=[self._states.RUNNING]):
            if "setting" not in trial.user_attrs:  # killed while it was asked for: the same is proposed again
                self._study.tell(trial.number, state=self._states.FAIL)
        self.begun = len(self._trials())
        self.complete(), self.unfinished()  # what cannot be read is known at once

    def _trials(self) -> list["optuna.trial.FrozenTrial"]:
        """All that were begun, in order: a trial's place among them is its number."""
        return self._study.get_trials(states=[self._states.RUNNING, self._states.COMPLETE])

    def complete(self) -> list[Trial]:
        """The finished trials before the first that is not."""
        found = []
        for number, trial in enumerate(self._trials(), start=1):
            if trial.state != self._states.COMPLETE:
                break
            told = trial.user_attrs
            found.append(Trial(self.arm.name, number, self._setting(told), _by_seed(told["scores"], float),
                               _by_seed(told["losses"], float), float(told["seconds"]), str(told["failure"]),
                               _by_seed(told["artifacts"], str)))
        return found

    def unfinished(self) -> list[Attempt]:
        """The trials that an earlier start left in the middle."""
        import optuna

        return [Attempt(self, number, optuna.Trial(self._study, trial._trial_id), self._setting(trial.user_attrs))
                for number, trial in enumerate(self._trials(), start=1) if trial.state == self._states.RUNNING]

    def _setting(self, told: Mapping[str, Any]) -> dict[str, Any]:
        setting = dict(told["setting"])
        if setting.keys() != {space.key for space in self.spaces}:
            raise ValueError(f"a trial of {self.arm.name} has other keys than were searched")
        changed = {} if setting == self.search.own(self.arm) else setting
        self.search.study.training_of(with_setting(self.arm, changed), self.search.condition)
        return setting

    def ask(self, parallel: bool) -> Attempt:
        """Begin the next trial: the study's own setting first, then what the sampler proposes.

        The sampler is made anew for each, seeded by the arm's name and the trial's number, so that a search which was
        stopped proposes what an uninterrupted one would have.
        """
        number = self.begun + 1
        seed = seeding.seed_from("tune", self.arm.name, number) % 2**32
        own = self.search.own(self.arm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Optuna calls experimental
            from optuna.samplers import TPESampler

            self._study.sampler = TPESampler(seed=seed, n_startup_trials=DRAWN_FIRST, constant_liar=parallel)
            if number == 1 and not self._study.get_trials(states=[self._states.WAITING]):
                # Where the study's own value lies outside of its space, the sampler is told the nearest inside.
                self._study.enqueue_trial({space.key: space.nearest(own[space.key]) for space in self.spaces})
            trial = self._study.ask({space.key: _distribution(space) for space in self.spaces})
        setting = own if number == 1 else {space.key: space.rounded(trial.params[space.key]) for space in self.spaces}
        trial.set_user_attr("setting", setting)
        self.begun = number
        return Attempt(self, number, trial, setting)

    def tell(self, attempt: Attempt) -> None:
        """Finish a trial whose trainings are all over: the mean over seeds, or the worst value where one failed."""
        results = {seed: attempt.results[seed] for seed in self.search.seeds}
        failure = next((result["failure"] for result in results.values() if "failure" in result), "")
        scores = {} if failure else {seed: each[f"dev_{self.search.metric}"] for seed, each in results.items()}
        losses = {} if failure else {seed: each["dev_log_loss"] for seed, each in results.items()}
        seconds = sum(result.get("seconds", 0.0) for result in results.values())
        artifacts = {seed: result["address"] for seed, result in results.items() if "address" in result}
        told = Trial(self.arm.name, attempt.number, attempt.setting, scores, losses, seconds, failure, artifacts)
        for key in ("scores", "losses", "seconds", "failure", "artifacts"):
            attempt.trial.set_user_attr(key, getattr(told, key))
        self._study.tell(attempt.trial, told.value)


def _by_seed(stored: Mapping[str, Any], kind: Callable[[Any], Any]) -> dict[int, Any]:
    return {int(seed): kind(value) for seed, value in stored.items()}  # in JSON all keys are text


def _distribution(space: Space) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choices:
        return CategoricalDistribution(space.choices)
    if space.whole:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)


def job_name(arm: str, number: int, seed: int, setting: Mapping[str, Any]) -> str:
    """A training's name, which holds all that it needs to know: `tl_kd-7-0 0.02 4.5`, values in their keys' order."""
    return " ".join([f"{arm}-{number}-{seed}", *(json.dumps(value) for value in setting.values())])
