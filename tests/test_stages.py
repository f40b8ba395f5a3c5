"""The stages of studies under difficulties, on small real images: against literal twins, live runs, and each other."""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tlkd import corruptions, draws, evaluation, models, seeding, store, views
from tlkd.batches import Pixels, Rows
from tlkd.conditions import Condition
from tlkd.datasets import Dataset, open_dataset
from tlkd.folder import Run, StudyFolder
from tlkd.losses import hard_loss, label_smoothing_loss, make_loss, smoothing_for
from tlkd.reading import apply_set, validate
from tlkd.specs import Network, Study, Training
from tlkd.stages import shown_entropy
from tlkd.study import run_study
from tlkd.training import Task, fit

CPU = torch.device("cpu")
BLACK = {"kind": "center_black", "size": [0.4, 0.8], "variants": 2}
ARMS: list[dict[str, Any]] = [
    {"name": "tl", "kind": "tl"},
    {"name": "tl_kd", "kind": "tl_kd", "teacher": "big", "soft_weight": 0.5, "temperature": 4},
    {"name": "wise", "kind": "tl_kd", "teacher": "wise", "soft_weight": 0.5, "temperature": 4},
    {"name": "smooth", "kind": "label_smoothing", "teacher": "big", "temperature": 2},
    {"name": "shuffled", "kind": "tl_kd_shuffled", "teacher": "big", "soft_weight": 0.5, "temperature": 4},
    {"name": "own", "kind": "self", "soft_weight": 0.5, "temperature": 4}]
CONDITIONS: list[dict[str, Any]] = [
    {"name": "clean"},
    {"name": "few", "train_fraction": 0.5},
    {"name": "noisy", "label_noise": 0.4},
    {"name": "swapped", "label_noise": {"fraction": 0.5, "to": {"disc": "frame"}, "redraw": "epoch"}},
    {"name": "dark", "corruption": {**BLACK, "fraction": 0.5}},
    {"name": "flicker", "corruption": {**BLACK, "fraction": 0.25, "redraw": "epoch"}},
    {"name": "grainy", "corruption": {"kind": "gaussian_noise", "severity": 5, "scale": "cifar"}},
    {"name": "worst", "train_fraction": 0.5, "label_noise": 0.3, "corruption": {**BLACK, "fraction": 0.75}}]
ROBUSTNESS = [{"kind": "jpeg", "severities": [1, 5]}, {"kind": "center_black", "sizes": [0.5]}]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hard_study(folder: Path, *assignments: str, **keys: Any) -> Study:
    """Every kind of arm under every kind of condition: lite0 from lite1 at 32 pixels, two epochs."""
    raw: dict[str, Any] = {
        "name": "hard",
        "data": {"source": f"folder:{folder}", "dev_fraction": 0.2},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": 32},
        "teachers": {"big": {"model": "packaged:efficientnet_lite1", "input_size": 32},
                     "wise": {"model": "packaged:efficientnet_lite1", "input_size": 32, "trained_on": "clean",
                              "labels": "clean_view"}},
        "arms": ARMS, "conditions": CONDITIONS,
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.02}, "seeds": [0], **keys}
    raw = json.loads(json.dumps(raw))
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, "hard.yaml")


@pytest.fixture(scope="module")
def ran(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyFolder]:
    """The finished study; its cache lies beside its folder and is everyone's for as long as this lasts."""
    root = tmp_path_factory.mktemp("hard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(root / "cache"))
        assert run_study(hard_study(shapes_folder, robustness=ROBUSTNESS), root / "out", CPU) == {}
        yield StudyFolder(root / "out")


@pytest.fixture(scope="module")
def dataset(ran: StudyFolder) -> Dataset:
    return open_dataset(ran.study.data, 32, ran.path.parent / "cache")


def run_of(folder: StudyFolder, arm: str, condition: str, seed: int = 0) -> Run:
    return next(run for run in folder.runs() if run.run_id == f"{arm}-{condition}-{seed}")


def weights(folder: StudyFolder, run: Run) -> dict[str, torch.Tensor]:
    return load_file(folder.run_path(run) / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def manifest(folder: StudyFolder, run: Run) -> dict[str, Any]:
    return dict(json.loads((folder.run_path(run) / "manifest.json").read_text()))


def address(folder: StudyFolder, run_id: str) -> str:
    return str(json.loads((folder.path / "runs" / run_id / "manifest.json").read_text())["address"])


# --- everything trains ------------------------------------------------------------------------------------------------


def test_every_arm_trains_under_every_condition(ran: StudyFolder) -> None:
    table = ran.results()
    assert len(table) == len(ARMS) * len(CONDITIONS) == len(ran.finished())
    assert table["teacher_agreement"].between(0, 1).all()
    assert not (ran.path / ".work").exists()


def test_runs_are_the_same_where_and_only_where_they_do_the_same(ran: StudyFolder) -> None:
    """Of clean images and a clean teacher, a teacher that labels the clean view does what the other does."""
    for value in (lambda run: weights(ran, run)["head.weight"].numpy().tobytes(),
                  lambda run: manifest(ran, run)["address"]):
        found = {run.run_id: value(run) for run in ran.runs()}
        assert found["tl_kd-clean-0"] == found.pop("wise-clean-0")
        assert len(set(found.values())) == len(found) == 47


def test_the_network_and_the_data_are_the_same_for_all(ran: StudyFolder) -> None:
    inputs = [manifest(ran, run)["inputs"] for run in ran.runs()]
    assert len({(each["data"], each["backbone"]) for each in inputs}) == 1


# --- what was drawn ---------------------------------------------------------------------------------------------------


def draw_of(study: Study, dataset: Dataset, condition: Condition, seed: int) -> draws.Draw:
    rows = dataset.splits["train"]
    keys = seeding.keys([dataset.ids[row] for row in rows])
    return draws.draw(condition, seed, dataset.classes, dataset.labels[rows], keys)


def test_what_was_drawn_lies_beside_each_run_and_is_the_same_for_all_arms(ran: StudyFolder, dataset: Dataset) -> None:
    for run in ran.runs():
        path = ran.run_path(run) / "drawn.npz"
        if run.condition.name == "clean":
            assert not path.exists()
            continue
        expected = draw_of(ran.study, dataset, run.condition, run.seed).stored(epochs=2)
        with np.load(path, allow_pickle=False) as found:
            assert set(found) == set(expected)
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)


def test_what_was_drawn_is_what_the_conditions_ask_for(ran: StudyFolder, dataset: Dataset) -> None:
    given = dataset.labels[dataset.splits["train"]]
    assert np.bincount(given).tolist() == [16, 16, 16]

    def drawn(condition: str) -> dict[str, Any]:
        with np.load(ran.path / "runs" / f"tl-{condition}-0" / "drawn.npz") as found:
            return dict(found)

    assert np.bincount(given[drawn("few")["samples"]]).tolist() == [8, 8, 8]
    assert (drawn("noisy")["labels"] != given).sum() == 19  # 0.4 of 48, to the nearest
    swapped = drawn("swapped")["labels"]
    assert swapped.shape == (2, 48)
    discs = given == dataset.classes.index("disc")
    assert (swapped[:, ~discs] == given[~discs]).all() and set(swapped[:, discs].ravel().tolist()) == {0, 1}
    assert (drawn("dark")["variants"] > 0).sum() == 24 and set(drawn("dark")["variants"].tolist()) == {0, 1, 2}
    assert drawn("flicker")["variants"].shape == (2, 48)
    assert (drawn("grainy")["variants"] == 1).all()
    worst = drawn("worst")
    assert [len(worst[name]) for name in ("samples", "labels", "variants")] == [24, 24, 24]
    assert (worst["variants"] > 0).sum() == 18 and (worst["labels"] != given[worst["samples"]]).sum() == 7


# --- a literal twin of the stages -------------------------------------------------------------------------------------


class Twin:
    """Teachers and students of one seed under one condition, by the loop alone: no bank, no store, no stage."""

    def __init__(self, study: Study, dataset: Dataset, condition: Condition, seed: int = 0) -> None:
        self.study, self.dataset, self.condition, self.seed = study, dataset, condition, seed
        self.draw = draw_of(study, dataset, condition, seed)
        clean = views.train_views(study.data.augment)
        variants = condition.corruption.variants if condition.corruption is not None else 0
        self.views, self.every = len(clean), clean + views.corrupted(clean, variants)

    def features(self, network: models.Network, split: str) -> np.ndarray:
        """`[view, sample, width]`: in all views, corrupted ones last, or in the identity."""
        rows, shown = self.dataset.splits[split], self.every if split == "train" else (views.IDENTITY,)
        keys = seeding.keys([self.dataset.ids[row] for row in rows])
        source = Pixels(self.dataset.images, rows, keys, shown, network.input_size, self.study.data.data_seed,
                        network.mean, network.sd, CPU, self.condition.distortion)
        everyone = np.arange(len(rows))
        with torch.no_grad():
            return np.stack([network.features(source(np.full_like(everyone, view), everyone)).numpy()
                             for view in range(len(shown))])

    def trained(self, spec: Network, loss: Any, soft: np.ndarray | None, drawn: draws.Draw, training: Training,
                seed: int) -> tuple[models.Network, np.ndarray]:
        """A network fitted, and the features `[view, sample, width]` of the training split."""
        network = models.build(spec, len(self.dataset.classes), seed)
        train, dev = self.features(network, "train"), self.features(network, "dev")
        task = Task(Rows(train, CPU), drawn, self.views, None if soft is None else Rows(soft, CPU), "dev",
                    Rows(dev, CPU), self.dataset.labels[self.dataset.splits["dev"]])
        fit(network, network.classify, loss, task, training, seed, CPU)
        return network, train

    def said(self, network: models.Network, features: np.ndarray) -> np.ndarray:
        """What a fitted network says of all views, `[view, sample, class]`."""
        with torch.no_grad():
            return np.stack([network.classify(torch.from_numpy(view)).numpy() for view in features])

    def teacher(self, name: str) -> np.ndarray:
        spec = self.study.teachers[name]
        if spec.trained_on == "clean" or self.condition.plain:
            labels, seed = self.dataset.labels[self.dataset.splits["train"]], seeding.seed_from("teacher")
            network, features = self.trained(spec, hard_loss, None, draws.whole(labels), spec.training, seed)
        else:
            network, features = self.trained(spec, hard_loss, None, self.draw, spec.training, self.seed)
        found = self.said(network, features)
        if spec.labels == "clean_view":
            found = found[np.arange(len(found)) % self.views]
        return found

    @cached_property
    def big(self) -> np.ndarray:
        return self.teacher("big")

    def smoothing(self, temperature: float) -> float:
        """The amount with the mean entropy of the teacher's soft labels, over all that the student is shown."""
        total, count = 0.0, 0
        for place, sample in enumerate(self.draw.samples):
            for view in range(self.views):
                logits = self.big[view + self.views * self.draw.variants(1)[place], sample].astype(float) / temperature
                chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
                total, count = total - float((chances * np.log(chances)).sum()), count + 1
        return smoothing_for(total / count, len(self.dataset.classes))

    def shuffled(self) -> np.ndarray:
        """The teacher's soft labels with the classes other than a sample's own in an order of their own."""
        found, classes = self.big.copy(), len(self.dataset.classes)
        anew = self.condition.label_noise is not None and self.condition.label_noise.redraw == "epoch"
        own_labels = self.draw.given if anew else self.draw.labels(1)  # where they change, those that are right
        labels = dict(zip(self.draw.samples.tolist(), own_labels.tolist(), strict=True))
        keys = seeding.keys([self.dataset.ids[row] for row in self.dataset.splits["train"]])
        for sample, own in labels.items():
            places = np.argsort(seeding.uniforms(keys[sample:sample + 1], classes, "shuffled", self.seed)[0]).tolist()
            others = [place for place in places if place != own]
            for target, place in zip([each for each in range(classes) if each != own], others, strict=True):
                found[:, sample, target] = self.big[:, sample, place]
        return found

    def student(self, arm: str) -> models.Network:
        spec = next(each for each in self.study.arms if each.name == arm)
        soft, loss = None, make_loss("tl_kd", spec.soft_weight, spec.temperature) if spec.soft_weight else hard_loss
        if arm == "smooth":
            assert spec.temperature is not None
            loss = label_smoothing_loss(self.smoothing(spec.temperature))
        elif arm == "own":
            soft = self.said(*self.trained(self.study.student, hard_loss, None, self.draw, self.study.training,
                                           self.seed))
        elif arm != "tl":
            soft = self.shuffled() if arm == "shuffled" else self.big if arm == "tl_kd" else self.teacher(arm)
        return self.trained(self.study.student, loss, soft, self.draw, self.study.training, self.seed)[0]


@pytest.mark.parametrize("name", ["clean", "swapped", "grainy", "worst"])
def test_every_run_is_what_the_loop_alone_makes_of_it(ran: StudyFolder, dataset: Dataset, name: str) -> None:
    condition = next(each for each in ran.study.conditions if each.name == name)
    twin = Twin(ran.study, dataset, condition)
    found = {arm["name"]: models.trained_state(twin.student(arm["name"])) for arm in ARMS}
    for arm, expected in found.items():
        stored = weights(ran, run_of(ran, arm, name))
        assert stored.keys() == expected.keys()
        for key in stored:
            torch.testing.assert_close(stored[key], expected[key], rtol=0, atol=2e-4)
    others = [(one["head.weight"] - other["head.weight"]).abs().max().item()
              for one, other in itertools.combinations([found[arm] for arm in found if arm != "wise"], 2)]
    assert min(others) > 1e-3  # so that one arm would not pass for another


def test_the_entropy_that_is_smoothed_away_is_that_of_all_that_a_run_is_shown(dataset: Dataset) -> None:
    bank = np.random.default_rng(0).normal(0, 2, (6, 48, 3)).astype(np.float32)
    bank[2:4] /= 10  # two views, clean and in two variants of which the first leaves the teacher unsure
    keys, labels = seeding.keys([str(number) for number in range(48)]), np.arange(48) % 3

    def entropy(view: int, sample: int) -> float:
        chances = np.exp(bank[view, sample].astype(float) / 2)
        chances /= chances.sum()
        return float(-(chances * np.log(chances)).sum())

    for redraw, fraction in itertools.product(("never", "epoch"), (0.0, 0.25, 1.0)):
        condition = Condition.model_validate({"name": "hard", "train_fraction": 0.5, "corruption": {
            "kind": "jpeg", "fraction": fraction, "variants": 2, "redraw": redraw}})
        drawn = draws.draw(condition, 0, ("a", "b", "c"), labels, keys)
        if redraw == "never":
            shown = [[(1.0, int(variant))] for variant in drawn.variants(1)]
        else:
            shown = [[(1 - fraction, 0), (fraction / 2, 1), (fraction / 2, 2)]] * len(drawn.samples)
        expected = np.mean([chance * entropy(view + 2 * variant, sample) for view in range(2)
                            for sample, chances in zip(drawn.samples, shown, strict=True)
                            for chance, variant in chances]) * len(shown[0])
        assert shown_entropy(Rows(bank, CPU), drawn, 2, 2.0) == pytest.approx(expected, rel=1e-6)


# --- banks ------------------------------------------------------------------------------------------------------------


def artifacts(folder: StudyFolder, kind: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (folder.path.parent / "cache" / kind).glob("*/manifest.json")]


def test_one_bank_of_corrupted_views_serves_every_fraction_seed_and_arm(ran: StudyFolder) -> None:
    """Clean views of student and teacher, squares and noise of both; robustness: three of the student."""
    features = artifacts(ran, "features")
    assert len(features) == 2 + 4 + 3
    assert sorted(each["spec"].get("distortion", {}).get("kind", "") for each in features
                  if each["spec"].get("split") != "test") == ["", "", "center_black", "center_black",
                                                              "gaussian_noise", "gaussian_noise"]
    assert sorted(each["spec"]["distortion"]["kind"] for each in features if each["spec"].get("split") == "test") == [
        "center_black", "jpeg", "jpeg"]
    squares = next(each for each in features if each["spec"].get("split") == "train"
                   and each["spec"]["distortion"]["kind"] == "center_black")
    assert squares["about"]["splits"] == {"train": [4, 48, 1280]}  # two views in two variants


def test_logits_are_banked_once_a_fitted_network(ran: StudyFolder) -> None:
    logits = artifacts(ran, "logits")
    clean = [each for each in logits if not each["spec"]]
    assert len(clean) == 8 + 8  # `big` under each condition (on clean images it is `wise`), the TL students of `own`
    assert len(logits) - len(clean) == 4 + 4  # corrupted views: not for `wise`, which labels the clean ones
    assert all(each["about"]["splits"].keys() == {"train"} for each in logits if each["spec"])


# --- teachers ---------------------------------------------------------------------------------------------------------


def test_a_teacher_under_a_condition_is_fitted_for_each_and_one_of_the_clean_for_all(ran: StudyFolder) -> None:
    folders = {path.name for path in (ran.path / "teachers").iterdir()}
    assert folders == {"big", "wise", *(f"big-{each['name']}-0" for each in CONDITIONS[1:])}
    assert len(artifacts(ran, "teachers")) == 8  # `wise` on clean images is `big` on clean images
    specs = [each["spec"] for each in artifacts(ran, "teachers")]
    assert {json.dumps(each["condition"], sort_keys=True) == "{}" for each in specs} == {True, False}
    assert {each["seed"] for each in specs if each["condition"]} == {0}
    assert {each["seed"] for each in specs if not each["condition"]} == {None}


def test_each_run_learns_from_the_teacher_of_its_condition(ran: StudyFolder) -> None:
    teachers = {run.condition.name: manifest(ran, run)["inputs"]["soft_labels"] for run in ran.runs()
                if run.arm.name == "tl_kd"}
    assert len(set(teachers.values())) == 8
    for run in ran.runs():
        inputs = manifest(ran, run)["inputs"]
        if run.arm.name in ("smooth", "shuffled"):
            assert inputs["soft_labels"] == teachers[run.condition.name]
        elif run.arm.name == "wise":
            assert inputs["soft_labels"] == teachers["clean"]
        elif run.arm.name == "own":
            assert inputs["soft_labels"] == address(ran, f"tl-{run.condition.name}-0")
        elif run.arm.name == "tl":
            assert set(inputs) == {"data", "backbone"}


# --- live -------------------------------------------------------------------------------------------------------------


def test_cached_and_live_agree_for_every_arm_under_difficulties(ran: StudyFolder, shapes_folder: Path,
                                                                tmp_path: Path) -> None:
    spec = hard_study(shapes_folder, "bank=off", conditions=[CONDITIONS[3], CONDITIONS[7]],
                      robustness=ROBUSTNESS[1:])
    assert run_study(spec, tmp_path, CPU) == {}
    live = StudyFolder(tmp_path)
    assert len(live.finished()) == 12
    for run in live.runs():
        cached = run_of(ran, run.arm.name, run.condition.name)
        np.testing.assert_allclose(ran.predictions(cached).logits, live.predictions(run).logits, rtol=0, atol=1e-3)
        for column in ("train_loss", "dev_loss"):
            np.testing.assert_allclose(ran.history(cached)[column], live.history(run)[column], rtol=1e-4)
        metrics = {key for key in ran.result(cached) if key.startswith("test_")} - {"test_log_loss", "test_ece"}
        assert all(ran.result(cached)[key] == live.result(run)[key] for key in metrics)
        robust, again = (pd.read_csv(each.robustness_path(which) / "robustness.csv").set_index("kind")
                         for each, which in ((ran, cached), (live, run)))
        assert robust.loc["center_black", "accuracy"] == again.loc["center_black", "accuracy"]


# --- addresses --------------------------------------------------------------------------------------------------------


def test_what_a_condition_is_called_changes_nothing_and_what_it_does_everything(ran: StudyFolder, shapes_folder: Path,
                                                                                tmp_path: Path) -> None:
    renamed = [{**each, "name": f"a_{each['name']}"} for each in CONDITIONS]
    noise: dict[str, Any] = {"fraction": 0.4}
    others = [
        {"name": "few2", "train_fraction": 0.75}, {"name": "noisy2", "label_noise": 0.5},
        {"name": "noisy3", "label_noise": {**noise, "to": "uniform"}},
        {"name": "noisy4", "label_noise": {**noise, "redraw": "epoch"}},
        {"name": "noisy5", "label_noise": {**noise, "to": {"disc": "frame"}}},
        {"name": "dark2", "corruption": {**BLACK, "fraction": 0.75}},
        {"name": "dark3", "corruption": {**BLACK, "fraction": 0.5, "redraw": "epoch"}},
        {"name": "dark4", "corruption": {**BLACK, "fraction": 0.5, "variants": 1}},
        {"name": "dark5", "corruption": {**BLACK, "fraction": 0.5, "size": [0.4, 0.9]}},
        {"name": "dark6", "corruption": {**BLACK, "fraction": 0.5, "kind": "border_black"}},
        {"name": "grainy2", "corruption": {"kind": "gaussian_noise", "severity": 4, "scale": "cifar"}}]
    tl, zero = ARMS[0], {**ARMS[1], "name": "zero", "soft_weight": 0}
    spec = hard_study(shapes_folder, arms=[tl, zero], conditions=[*renamed, *others])
    assert run_study(spec, tmp_path, CPU) == {}
    again = StudyFolder(tmp_path)
    for each in CONDITIONS:
        one, other = run_of(ran, "tl", each["name"]), run_of(again, "tl", f"a_{each['name']}")
        assert manifest(ran, one)["address"] == manifest(again, other)["address"]
        assert same(weights(ran, one), weights(again, other))
    addresses = [address(again, f"tl-{condition.name}-0") for condition in again.study.conditions]
    assert len(set(addresses)) == len(addresses)
    # And what must be TL is TL to the bit under each of them: a teacher that has no say.
    for condition in again.study.conditions:
        one, other = (run_of(again, arm, condition.name) for arm in ("tl", "zero"))
        assert same(weights(again, one), weights(again, other))
        assert np.array_equal(again.predictions(one).logits, again.predictions(other).logits)
        assert again.history(one)["train_loss"].tolist() == again.history(other)["train_loss"].tolist()


def test_auto_is_the_published_scale_that_it_stands_for(ran: StudyFolder, shapes_folder: Path, tmp_path: Path) -> None:
    auto = {"name": "auto", "corruption": {"kind": "gaussian_noise", "severity": 5}}
    run_study(hard_study(shapes_folder, arms=ARMS[:1], conditions=[auto]), tmp_path, CPU)
    assert address(StudyFolder(tmp_path), "tl-auto-0") == address(ran, "tl-grainy-0")


def test_another_data_seed_has_other_corruptions_where_the_splits_are_the_same(shapes_folder: Path, own_cache: Path,
                                                                               tmp_path: Path) -> None:
    """Without a dev split and caps nothing else hangs on it."""
    found = []
    for number in (0, 1):
        spec = hard_study(shapes_folder, f"data.data_seed={number}", "data.dev_fraction=0", "selection=test",
                          arms=ARMS[:2], conditions=[CONDITIONS[4]])
        assert run_study(spec, tmp_path / str(number), CPU) == {}
        folder = StudyFolder(tmp_path / str(number))
        found.append([(manifest(folder, run), weights(folder, run)) for run in folder.runs()])
    for (one, own), (other, theirs) in zip(*found, strict=True):
        assert one["inputs"]["data"] == other["inputs"]["data"]
        assert one["address"] != other["address"]
        assert not same(own, theirs)
    logits = [json.loads(path.read_text()) for path in (own_cache / "logits").glob("*/manifest.json")]
    assert len([each for each in logits if each["spec"]]) == 2  # one of corrupted views for each


# --- from TL ----------------------------------------------------------------------------------------------------------


def test_a_student_that_starts_from_tl_and_learns_from_it_has_nothing_to_learn(ran: StudyFolder, shapes_folder: Path,
                                                                               tmp_path: Path) -> None:
    """So long as it is shown what its teacher was asked: the same samples, views and variants."""
    own = {"name": "own", "kind": "self", "soft_weight": 1, "temperature": 2}
    kept = {**ARMS[1], "name": "kept", "training": {"learning_rate": 1e-12}}
    conditions = [CONDITIONS[5], CONDITIONS[7]]
    spec = hard_study(shapes_folder, "student.start=tl", "student.dropout=0", "training.weight_decay=0", seeds=[0, 1],
                      arms=[ARMS[0], own, kept], conditions=conditions)
    assert run_study(spec, tmp_path, CPU) == {}
    folder = StudyFolder(tmp_path)
    for condition, seed in itertools.product(("flicker", "worst"), (0, 1)):
        tl, same_again, at_rest = (run_of(folder, arm, condition, seed) for arm in ("tl", "own", "kept"))
        start = manifest(folder, tl)["address"]
        assert manifest(folder, same_again)["inputs"]["start"] == start
        assert manifest(folder, same_again)["inputs"]["soft_labels"] == start
        assert manifest(folder, at_rest)["inputs"]["start"] == start
        assert "start" not in manifest(folder, tl)["inputs"]
        for run in (same_again, at_rest):
            for name, tensor in weights(folder, tl).items():
                torch.testing.assert_close(weights(folder, run)[name], tensor, rtol=0, atol=1e-5)
        assert folder.history(same_again)["train_loss"].max() < 1e-6
        assert folder.history(tl)["train_loss"].min() > 0.1  # TL itself had something to learn


# --- overrides --------------------------------------------------------------------------------------------------------


def test_what_a_condition_overrides_takes_effect(ran: StudyFolder, shapes_folder: Path, tmp_path: Path) -> None:
    small = {"name": "small", "student": {"input_size": 24, "dropout": 0}, "training": {"learning_rate": 0.5},
             "arms": ["tl", "tl_kd"], "seeds": [5]}
    arms = [ARMS[0], {**ARMS[1], "training": {"epochs": 1}}, ARMS[5]]
    spec = hard_study(shapes_folder, arms=arms, conditions=[CONDITIONS[0], small])
    assert run_study(spec, tmp_path, CPU) == {}
    folder = StudyFolder(tmp_path)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name[0] != ".") == [
        "own-clean-0", "tl-clean-0", "tl-small-5", "tl_kd-clean-0", "tl_kd-small-5"]
    rates, sizes = {}, {}
    for run in folder.runs():
        stored = json.loads((folder.run_path(run) / "spec.json").read_text())
        rates[run.run_id] = folder.history(run)["learning_rate"].tolist()
        sizes[run.run_id] = stored["student"]["input_size"], stored["student"]["dropout"]
    assert sizes == {run: ((24, 0.0) if "small" in run else (32, 0.2)) for run in sizes}
    assert rates["tl-clean-0"] == pytest.approx([0.02, 0.01])  # cosine over two epochs
    assert rates["tl-small-5"] == pytest.approx([0.5, 0.25])
    assert rates["tl_kd-clean-0"] == [0.02] and rates["tl_kd-small-5"] == [0.5]
    assert address(folder, "tl-clean-0") == address(ran, "tl-clean-0")
    assert {path.name for path in (tmp_path / "teachers").iterdir()} == {"big"}  # of clean images: no difficulty


# --- a study goes on --------------------------------------------------------------------------------------------------


def stamps(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")
            if path.is_file() and ".locks" not in path.parts}


def test_a_finished_study_extended_by_a_condition_repeats_nothing(ran: StudyFolder, shapes_folder: Path,
                                                                  own_cache: Path, tmp_path: Path) -> None:
    out, arms = tmp_path / "out", ARMS[:2]
    run_study(hard_study(shapes_folder, arms=arms, conditions=CONDITIONS[:2]), out, CPU)
    before, cached = {**stamps(out / "runs"), **stamps(out / "teachers")}, stamps(own_cache)
    assert run_study(hard_study(shapes_folder, arms=arms, conditions=[CONDITIONS[7], *CONDITIONS[:2]],
                                robustness=ROBUSTNESS[1:]), out, CPU) == {}
    after = stamps(out)
    assert {path: after[path] for path in before} == before
    assert {path: stamp for path, stamp in stamps(own_cache).items() if path in cached} == cached
    folder = StudyFolder(out)
    assert [run.run_id for run in folder.finished()] == [f"{arm}-{condition}-0" for condition in (
        "worst", "clean", "few") for arm in ("tl", "tl_kd")]
    assert sorted(path.name for path in (out / "robustness").iterdir() if path.name[0] != ".") == sorted(
        run.run_id for run in folder.runs())
    for run in folder.runs():  # and is what it would have been from the start
        assert same(weights(folder, run), weights(ran, run_of(ran, run.arm.name, run.condition.name)))
    made = [out / name for name in ("runs", "teachers", "robustness")]
    finished = [stamps(path) for path in made]
    run_study(folder.study, out, CPU)
    assert [stamps(path) for path in made] == finished


# --- robustness -------------------------------------------------------------------------------------------------------


def test_robustness_is_what_each_student_says_of_distorted_test_images(ran: StudyFolder, dataset: Dataset) -> None:
    degrees = [("jpeg", 1.0), ("jpeg", 5.0), ("center_black", 0.5)]
    distortions = [each for one in ran.study.robustness for each in one.distortions]
    rows = dataset.splits["test"]
    keys = seeding.keys([dataset.ids[row] for row in rows])
    images = torch.from_numpy(np.array(dataset.images[rows]))
    for run in (run_of(ran, "tl", "clean"), run_of(ran, "own", "worst")):
        path = ran.robustness_path(run)
        table = pd.read_csv(path / "robustness.csv")
        assert list(zip(table["kind"], table["degree"], strict=True)) == degrees
        network = models.build(ran.study.student, 3, 0)
        models.load_trained(network, weights(ran, run))
        with np.load(path / "predicted.npz", allow_pickle=False) as stored:
            predicted = stored["predicted"]
        assert predicted.shape == (3, 24)
        for number, distortion in enumerate(distortions):
            shown = corruptions.on_images(distortion, images, keys, 1, 0)
            inputs = views.render(shown, keys, (views.IDENTITY,), np.zeros(24, np.int64), 32, 0, network.mean,
                                  network.sd)
            inputs = corruptions.on_input(distortion, inputs, keys, 1, 0, network.mean, network.sd)
            with torch.no_grad():
                logits = network(inputs).numpy()
            np.testing.assert_array_equal(predicted[number], logits.argmax(1))
            for name, value in evaluation.metrics(dataset.labels[rows], logits).items():
                assert table[name][number] == pytest.approx(value, abs=1e-4)
    assert len(list((ran.path / "robustness").glob("*/manifest.json"))) == len(ran.runs())


def test_other_degrees_of_robustness_are_measured_anew_and_no_run_is_repeated(ran: StudyFolder, shapes_folder: Path,
                                                                              tmp_path: Path) -> None:
    def study(*robustness: dict[str, Any]) -> Study:
        return hard_study(shapes_folder, arms=ARMS[:1], conditions=CONDITIONS[:1], robustness=list(robustness))

    run_study(study(ROBUSTNESS[1]), tmp_path, CPU)
    run, path = stamps(tmp_path / "runs"), tmp_path / "robustness" / "tl-clean-0" / "robustness.csv"
    assert len(pd.read_csv(path)) == 1
    run_study(study(*ROBUSTNESS), tmp_path, CPU)
    assert len(pd.read_csv(path)) == 3
    whole = path.read_bytes()
    path.write_bytes(b"\xff\x00")
    run_study(study(*ROBUSTNESS), tmp_path, CPU)
    assert path.read_bytes() == whole  # what was damaged is made anew
    assert stamps(tmp_path / "runs") == run


# --- examples ---------------------------------------------------------------------------------------------------------


def test_examples_show_each_difficulty_once_on_an_image_of_each_class(ran: StudyFolder, dataset: Dataset) -> None:
    with np.load(ran.path / "examples.npz", allow_pickle=False) as stored:
        images = stored["images"]
    told = json.loads((ran.path / "examples.json").read_text())
    assert told["labels"] == ["disc", "frame", "stripes"]
    assert [each["of"] for each in told["rows"]] == ["clean", *["condition"] * 2, *["robustness"] * 3]
    assert [each["what"] for each in told["rows"]][1:] == [
        "CenterBlack, side 0.4 to 0.8", "Gaussian noise, severity 5 of CIFAR-10-C", "JPEG, severity 1",
        "JPEG, severity 5", "CenterBlack, side 0.5"]
    assert images.shape == (6, 3, 32, 32, 3) and images.dtype == np.uint8
    train = dataset.splits["train"]
    first = [train[np.flatnonzero(dataset.labels[train] == label)[0]] for label in range(3)]
    np.testing.assert_array_equal(images[0], dataset.images[first])  # stored at 32 pixels, as they are shown
    black = (images == 0).all(4).sum((2, 3))
    assert (black[5] >= 16**2).all() and (black[1] > black[0] + 10**2).all()
    assert black[1].tolist() != black[5].tolist()
    assert (np.abs(images[2].astype(int) - images[0]).mean((1, 2, 3)) > 3).all()
    assert set(told["taken_for"]) == {"noisy", "swapped", "worst"}
    for name, called in told["taken_for"].items():
        drawn = draw_of(ran.study, dataset, next(each for each in ran.study.conditions if each.name == name), 0)
        labels = dict(zip(train[drawn.samples].tolist(), drawn.labels(1).tolist(), strict=True))
        assert called == [dataset.classes[labels[row]] if row in labels else None for row in first]


def test_without_a_difficulty_there_are_no_examples(ran: StudyFolder, shapes_folder: Path, tmp_path: Path) -> None:
    run_study(hard_study(shapes_folder, arms=ARMS[:1], conditions=CONDITIONS[:2]), tmp_path, CPU)
    assert not list(tmp_path.glob("examples.*"))


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_failed_tl_student_fails_those_that_start_from_it_and_no_other(ran: StudyFolder, shapes_folder: Path,
                                                                         tmp_path: Path) -> None:
    arms = [{**ARMS[0], "training": {"learning_rate": 1e30, "weight_decay": 0.9}}, ARMS[1], ARMS[5]]
    spec = hard_study(shapes_folder, arms=arms, conditions=[CONDITIONS[1]], robustness=ROBUSTNESS[1:])
    failures = run_study(spec, tmp_path, CPU)
    assert failures["tl-few-0"].startswith("epoch ")
    assert failures["own-few-0"] == "own needs this seed's TL student, which is not there"
    assert [run.run_id for run in StudyFolder(tmp_path).finished()] == ["tl_kd-few-0"]
    assert failures["robustness of tl-few-0"] == "it needs the run tl-few-0, which is not there"
    assert set(failures) == {"tl-few-0", "own-few-0", "robustness of tl-few-0", "robustness of own-few-0"}


def test_what_failed_for_want_of_a_killed_run_is_tried_again_with_it(shapes_folder: Path, tmp_path: Path) -> None:
    spec = hard_study(shapes_folder, arms=[ARMS[0], ARMS[5]], conditions=[CONDITIONS[1]], robustness=ROBUSTNESS[1:])
    assert run_study(spec, tmp_path, CPU) == {}
    folder = StudyFolder(tmp_path)
    whole = {str(path): path.read_bytes() for path in sorted(tmp_path.glob("robustness/*/robustness.csv"))}
    assert len(whole) == 2

    def undone(why: str) -> dict[str, str]:
        for run in folder.runs():
            shutil.rmtree(folder.run_path(run))
            shutil.rmtree(folder.robustness_path(run))
            store.replace_text(folder.robustness_failure_path(run),
                               f"it needs the run {run.run_id}, which is not there")
        store.replace_text(folder.failure_path(folder.runs()[0]), why)
        store.replace_text(folder.failure_path(folder.runs()[1]),
                           "own needs this seed's TL student, which is not there")
        return run_study(spec, tmp_path, CPU, retry_failed=False)

    assert undone("its worker was killed by signal 9") == {}
    assert whole == {str(path): path.read_bytes() for path in sorted(tmp_path.glob("robustness/*/robustness.csv"))}
    assert len(undone("epoch 3: the loss is nan")) == 4  # and that is left alone until it is asked for
    assert not list(tmp_path.glob("runs/*-*"))


def test_views_that_a_distortion_is_not_for_are_left_alone(dataset: Dataset, ran: StudyFolder) -> None:
    """The twin above would not notice a corruption that does nothing, were the stages to do nothing as well."""
    twin = Twin(ran.study, dataset, next(each for each in ran.study.conditions if each.name == "worst"))
    network = models.build(ran.study.student, 3, 0)
    features = twin.features(network, "train")
    assert features.shape == (6, 48, 1280)
    moved = np.abs(features[2:].reshape(2, 2, 48, -1) - features[None, :2]).max(-1)
    assert (moved > 0.05).all()
    plain = replace(twin.draw, condition=Condition(name="clean"))
    assert not plain.variants(1).any() and twin.draw.variants(1).any()
