"""Hypothesis 2 from planted explanations: the word, its pairing and family, what is left out, and what is refused."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from explained_folders import write_explanations
from study_folders import lay_down
from tlkd import explained, foreground, statistics
from tlkd.errors import BadInput
from tlkd.foreground import CERTAIN, Explanations, Share, find
from tlkd.observations import QUESTIONS, paired
from tlkd.regions import METRICS

MASKED = {"data": {"source": "folder:somewhere", "augment": [], "masks": "masks.json"}, "explanation": {}}
TWO_ARMS = [{"name": "tl", "kind": "tl"}, {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1"},
            {"name": "hot", "kind": "tl_kd", "teacher": "lite1", "temperature": 20}]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 799)
    monkeypatch.setattr(statistics, "FLIPS", 4999)


def study(path, seeds=10, per_class=4, **more):
    return lay_down(path, seeds=seeds, per_class=per_class, epochs=3, **{**MASKED, **more})


def rewrite(folder, who, change):
    """Change an explained network's regions in place."""
    path = explained.place(folder, who) / "regions.csv"
    table = explained.regions(folder, who)
    change(table).to_csv(path, index=False)


def rows(share, sd=0.0, images=24, uncertain=0, name="0"):
    """A regions table with these positive shares."""
    random = np.random.default_rng(list(name.encode()))
    share = np.clip(share + random.normal(0, sd, images), 0.01, 0.99)
    table = pd.DataFrame({"sample_id": [f"i{number}" for number in range(images)], "label": 0.0, "class": "cat",
                          "predicted": 0.0, "correct": 1.0, "uncertain": (np.arange(images) < uncertain).astype(float),
                          "fg_pos": share, "fg_neg": -0.3, "fg_diff": share - 0.3, "bg_pos": 1 - share, "bg_neg": -0.4,
                          "bg_diff": 0.6 - share, "area": 0.2})
    return table.assign(**dict.fromkeys(METRICS, share))


def judged(monkeypatch, tmp_path, shares, seeds=10, sd=0.01, images=24, uncertain=0, arms=None, **verdict):
    """Findings of a study whose regions are given by arm -> function of the seed, without any file of attributions."""
    found = study(tmp_path / "study", seeds=seeds, verdict=verdict, **({"arms": arms} if arms else {}))
    ease = np.random.default_rng(0).normal(0, 0.05, images)

    def table(folder, who):
        arm, _, seed = who.rsplit("-", 2)
        return rows(shares[arm](int(seed)) + ease, sd, images, uncertain, who)

    monkeypatch.setattr(explained, "explained_runs", lambda folder: [
        run for run in folder.finished() if shares.get(run.arm.name, lambda seed: None)(run.seed) is not None])
    monkeypatch.setattr(explained, "explained_teachers", lambda folder: {})
    monkeypatch.setattr(explained, "regions", table)
    result = find(found)
    assert isinstance(result, Explanations)
    return result


def test_a_planted_effect_is_supported_with_all_that_stands_behind_it(tmp_path, quick):
    folder = write_explanations(study(tmp_path / "s").path, shares={"tl": 0.5, "tl_kd": 0.6})
    found = find(folder)
    (each,) = found.foregrounds
    one, verdict = each.everything, each.everything.verdict
    assert (each.word, each.why, each.robust, each.unpaired) == ("supported", "", True, ())
    assert each.seeds == tuple(range(10)) and (one.n_images, one.left_out, found.n_uncertain) == (22, 0, 2)
    assert verdict.gain == pytest.approx(0.1, abs=0.03) and verdict.interval.low > 0
    assert verdict.interval.covers == "seeds and test images, given one teacher"
    assert verdict.smallest_gain == found.smallest_share == 0.01 and verdict.p_seed == 2**-9
    assert one.arm.mean - one.tl.mean == pytest.approx(verdict.gain) and 0 < one.tl.sd < 0.05
    tables = {arm: np.array([found.tables[f"{arm}-clean-{seed}"]["positive_share"] for seed in each.seeds])
              for arm in ("tl", "tl_kd")}
    differences = tables["tl_kd"] - tables["tl"]
    assert verdict.gain == pytest.approx(differences.mean()) and verdict.effect == pytest.approx(
        differences.mean() / differences.mean(axis=1).std(ddof=1))
    assert one.effect_images == pytest.approx(differences.mean() / differences.mean(axis=0).std(ddof=1))
    assert one.rising == (differences.mean(axis=0) > 0).mean()
    again = paired(tables["tl"].mean(axis=0), tables["tl_kd"].mean(axis=0), 0.05)
    assert (one.by_image.p, one.by_image.rises) == (again.p, again.rises)
    assert one.by_image.shift == pytest.approx(again.shift)
    assert each.certain.images == CERTAIN and each.certain.n_images == 20
    assert each.certain.verdict.gain == pytest.approx(differences[:, 2:].mean())
    assert found.foreground("tl_kd", "clean") is each and found.foreground("tl", "clean") is None


def test_right_images_are_described_seed_by_seed(tmp_path, quick):
    folder = write_explanations(study(tmp_path / "s", seeds=3).path)
    found = find(folder)
    right = found.foregrounds[0].right
    for seed in range(3):
        tl, arm = (found.tables[f"{name}-clean-{seed}"] for name in ("tl", "tl_kd"))
        both = (tl["correct"] == 1) & (arm["correct"] == 1)
        assert right.n_images[seed] == both.sum() < 22
        assert right.tl.by_seed[seed] == pytest.approx(tl["positive_share"][both].mean())
        assert right.difference.by_seed[seed] == pytest.approx(
            arm["positive_share"][both].mean() - tl["positive_share"][both].mean())


def test_arms_and_teachers_have_every_share_beside(tmp_path, quick):
    folder = write_explanations(study(tmp_path / "s", seeds=2).path)
    found = find(folder)
    assert [(each.name, each.condition, each.seeds) for each in found.arms] == [
        ("tl", "clean", (0, 1)), ("tl_kd", "clean", (0, 1))]
    (teacher,) = found.teachers
    assert (teacher.name, teacher.condition) == ("lite1", "") and teacher.metrics["positive_share"].mean > 0.65
    for each in (*found.arms, teacher):
        assert tuple(each.metrics) == METRICS
    for metric in METRICS:
        expected = [found.tables[f"tl-clean-{seed}"][metric].mean() for seed in (0, 1)]
        assert found.arms[0].metrics[metric].by_seed == pytest.approx(expected)
        assert found.arms[0].metrics[metric].sd == pytest.approx(np.std(expected, ddof=1))
    assert math.isnan(teacher.metrics["pointing"].sd)


def test_observations_come_from_the_paired_runs(tmp_path, quick):
    folder = write_explanations(study(tmp_path / "s", seeds=4).path, missing=("tl-clean-2",))
    found = find(folder)
    (each,) = found.foregrounds
    assert each.seeds == (0, 1, 3) and each.unpaired == (2,)
    assert [one.question for one in each.observations] == list(QUESTIONS)
    tl, arm = found.tables["tl-clean-3"], found.tables["tl_kd-clean-3"]
    assert each.observations[2].by_seed[2] == paired(tl["fg_diff"], arm["fg_diff"], 0.05)
    assert each.observations[5].by_seed[2] == paired(-tl["fg_neg"], -arm["fg_neg"], 0.05)
    assert each.observations[1].by_seed[2] == paired(-arm["fg_neg"], arm["fg_pos"], 0.05)
    assert each.observations[7].by_seed[2].rises == each.observations[7].by_seed[2].n - (
        arm["positive_share"] < tl["positive_share"]).sum()
    assert each.observations[7].over_seeds.shift == pytest.approx(each.everything.by_image.shift)
    assert each.observations[0].p_seed == 0.25 and "two scales" in found.warning


@pytest.mark.parametrize(("gain", "seed_sd", "seeds", "word"), [
    (0.05, 0.005, 10, "supported"), (0.0, 0.002, 10, "refuted"), (-0.05, 0.005, 10, "refuted"),
    (0.01, 0.04, 10, "inconclusive"), (0.05, 0.001, 5, "inconclusive"), (0.05, 0.001, 6, "supported"),
    (0.0, 0.001, 4, "refuted"), (0.005, 0.0001, 10, "supported"),
])
def test_the_word_follows_interval_and_both_p(monkeypatch, tmp_path, quick, gain, seed_sd, seeds, word):
    luck = np.random.default_rng(3).normal(0, seed_sd, 10)
    luck[:seeds] -= luck[:seeds].mean()
    found = judged(monkeypatch, tmp_path, {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.5 + gain + luck[seed]},
                   seeds=seeds, sd=0.001)
    (each,) = found.foregrounds
    verdict = each.everything.verdict
    assert each.word == verdict.word == word
    assert (word == "supported") == (verdict.interval.low > 0 and max(verdict.p_seed, verdict.p_image) < 0.05)
    if word == "refuted":
        assert verdict.interval.high < 0.01
    assert (verdict.needed is not None) == (word == "inconclusive")
    assert verdict.too_small == (gain == 0.005)
    assert each.why.startswith("with 5 seeds p over seeds cannot fall below 0.06" if seeds == 5 else
                               "with 4 seeds p over seeds cannot fall below 0.125" if seeds == 4 else "")
    assert bool(each.why) == (seeds < 6)
    assert each.certain is None and each.robust is None


def test_smallest_share_decides_what_is_refuted(monkeypatch, tmp_path, quick):
    shares = {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.5 + 0.012 + 0.02 * (-1) ** seed}
    assert judged(monkeypatch, tmp_path, shares).foregrounds[0].word == "inconclusive"
    wide = judged(monkeypatch, tmp_path / "wide", shares, smallest_share=0.05).foregrounds[0]
    assert wide.word == "refuted" and wide.everything.verdict.smallest_gain == 0.05


def test_few_images_keep_it_from_being_supported(monkeypatch, tmp_path, quick):
    found = judged(monkeypatch, tmp_path, {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.6 + 0.001 * seed}, images=5,
                   sd=0.001)
    (each,) = found.foregrounds
    assert each.word == "inconclusive" and each.everything.verdict.p_image == 0.0625
    assert "with 5 images p over images cannot fall below 0.062" in each.why
    assert each.everything.verdict.interval.covers == "seeds and test images, given one teacher"


def test_one_seed_is_never_supported(monkeypatch, tmp_path, quick):
    found = judged(monkeypatch, tmp_path, {"tl": lambda seed: 0.3, "tl_kd": lambda seed: 0.8}, seeds=1)
    (each,) = found.foregrounds
    assert each.word == "inconclusive" and each.everything.verdict.p_seed == 1
    assert math.isnan(each.everything.verdict.interval.low) and math.isnan(each.everything.tl.sd)
    assert each.why == "with 1 seed p over seeds cannot fall below 1.000: nothing can be supported"
    assert each.everything.verdict.needed.seeds is None and len(each.observations[0].by_seed) == 1


def test_holm_goes_over_all_arms(monkeypatch, tmp_path, quick):
    shares = {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.55 + 0.002 * seed, "hot": lambda seed: 0.5 + 0.001 * seed}
    found = judged(monkeypatch, tmp_path, shares, seeds=6, arms=TWO_ARMS, sd=0.001)
    strong = found.foreground("tl_kd", "clean")
    assert strong.everything.verdict.contrasts == 2
    assert strong.everything.verdict.p_seed == 1 / 32 and strong.everything.verdict.p_seed_adjusted == 1 / 16
    assert strong.word == "inconclusive" and "Holm-adjusted over 2 contrasts" in strong.why


def test_an_arm_equal_to_tl_is_not_examined_and_leaves_the_family(monkeypatch, tmp_path, quick):
    arms = [*TWO_ARMS[:2], {"name": "hot", "kind": "tl_kd", "teacher": "lite1", "soft_weight": 0.0}]
    shares = {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.55 + 0.002 * seed, "hot": lambda seed: 0.5}
    found = judged(monkeypatch, tmp_path, shares, seeds=6, arms=arms, sd=0.001)
    assert found.foreground("tl_kd", "clean").everything.verdict.contrasts == 1
    assert found.foreground("tl_kd", "clean").word == "supported"
    same = found.foreground("hot", "clean")
    assert (same.word, same.why, same.same_as_tl, same.robust) == (
        "not examined", "equal to TL by construction", True, None)


def test_doubtful_masks_make_a_line_of_their_own(monkeypatch, tmp_path, quick):
    plain = judged(monkeypatch, tmp_path, {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.55 + 0.002 * seed},
                   uncertain=20).foregrounds[0]
    assert plain.word == "supported" and plain.certain.n_images == 4
    assert plain.certain.verdict.word == "inconclusive" and plain.robust is False
    every = judged(monkeypatch, tmp_path / "all", {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.6}, uncertain=24)
    assert every.foregrounds[0].certain is None and every.foregrounds[0].robust is None


def test_only_seeds_explained_in_both_arms_are_paired(monkeypatch, tmp_path, quick):
    found = judged(monkeypatch, tmp_path, {"tl": lambda seed: 0.5 if seed != 1 else None,
                                           "tl_kd": lambda seed: 0.6 if seed != 4 else None}, seeds=6)
    (each,) = found.foregrounds
    assert each.seeds == (0, 2, 3, 5) and each.unpaired == (1, 4) and each.everything.verdict.n_seeds == 4
    none = judged(monkeypatch, tmp_path / "none", {"tl": lambda seed: 0.5 if seed < 2 else None,
                                                   "tl_kd": lambda seed: 0.6 if seed > 1 else None}, seeds=4)
    assert none.foregrounds == () and len(none.arms) == 2


def test_an_image_without_a_share_in_one_run_is_left_out_of_all(tmp_path, quick):
    folder = write_explanations(study(tmp_path / "s", seeds=3).path)
    before = find(folder).foregrounds[0].everything
    rewrite(folder, "tl_kd-clean-1", lambda table: table.assign(
        positive_share=table["positive_share"].where(table.index != 7), density=math.nan))
    found = find(folder)
    one = found.foregrounds[0].everything
    assert (one.n_images, one.left_out) == (21, 1) and one.verdict.n_images == 21
    differences = np.array([found.tables[f"tl_kd-clean-{seed}"]["positive_share"]
                            - found.tables[f"tl-clean-{seed}"]["positive_share"] for seed in range(3)])
    assert one.verdict.gain == pytest.approx(np.delete(differences, 7, axis=1).mean()) != before.verdict.gain
    assert math.isnan(found.arms[1].metrics["density"].by_seed[1])
    assert found.arms[1].metrics["density"].mean == pytest.approx(np.mean(
        [found.arms[1].metrics["density"].by_seed[seed] for seed in (0, 2)]))


def test_no_shares_at_all_are_inconclusive_and_say_why(tmp_path, quick):
    folder = write_explanations(study(tmp_path / "s", seeds=2).path)
    for seed in (0, 1):
        rewrite(folder, f"tl-clean-{seed}", lambda table: table.assign(positive_share=math.nan))
    (each,) = find(folder).foregrounds
    assert (each.word, each.everything, each.certain) == ("inconclusive", None, None)
    assert each.why == "no image has a mask and a foreground share in every run" and each.right.n_images == (0, 0)


def test_explanations_without_masks_have_no_shares(tmp_path, quick):
    folder = write_explanations(study(tmp_path / "s", seeds=2, data={"source": "folder:x", "augment": []},
                                      explanation={"images": 2}).path, masked=0, uncertain=0)
    found = find(folder)
    assert found.n_images == 0 and found.foregrounds[0].everything is None
    for who in found.tables:
        (explained.place(folder, who) / "regions.csv").unlink()
    assert find(folder).n_images == 0


def test_nothing_explained_is_none_and_a_teacher_alone_is_something(tmp_path, quick):
    folder = study(tmp_path / "s", seeds=1)
    assert find(folder) is None
    write_explanations(folder.path, missing=("tl-clean-0", "tl_kd-clean-0"))
    found = find(folder)
    assert found.foregrounds == found.arms == () and len(found.teachers) == 1


def test_a_study_without_tl_has_shares_and_no_comparison(tmp_path, quick):
    folder = study(tmp_path / "s", seeds=1, arms=TWO_ARMS[1:])
    found = find(write_explanations(folder.path))
    assert found.foregrounds == () and [each.name for each in found.arms] == ["tl_kd", "hot"]


@pytest.mark.parametrize(("change", "said"), [
    (lambda table: table[::-1], "is for other images or masks than tl-clean-0's"),
    (lambda table: table[1:], "is for other images or masks than tl-clean-0's"),
    (lambda table: table.assign(uncertain=1), "is for other images or masks"),
    (lambda table: table.drop(columns="density"), "lacks the column density"),
    (lambda table: table.assign(fg_pos="much"), "cannot be read"),
])
def test_tables_that_do_not_fit_are_refused_in_one_line(tmp_path, quick, change, said):
    folder = write_explanations(study(tmp_path / "s", seeds=1).path)
    rewrite(folder, "tl_kd-clean-0", change)
    with pytest.raises(BadInput, match=said) as caught:
        find(folder)
    assert "tl_kd-clean-0/regions.csv" in str(caught.value) and "\n" not in str(caught.value)


def nulls(count, run_sd, liking_sd):
    """Differences where both arms draw from one law: runs differ in level, arms in what they like of each image."""
    random = np.random.default_rng(11)
    for _ in range(count):
        ease, liking = random.normal(0.5, 0.1, 40), random.normal(0, liking_sd, 40)
        tl, arm = (ease + sign * liking / 2 + random.normal(0, run_sd, (10, 1)) + random.normal(0, 0.03, (10, 40))
                   for sign in (-1, 1))
        yield arm - tl


def test_under_no_effect_each_p_is_uniform_in_its_own_chance_and_little_is_supported(monkeypatch, quick):
    monkeypatch.setattr(statistics, "RESAMPLES", 199)
    monkeypatch.setattr(statistics, "FLIPS", 999)
    by_seed = np.array([statistics.sign_flip(table.mean(axis=1)) for table in nulls(150, 0.01, 0.0)])
    by_image = np.array([statistics.image_permutation(table) for table in nulls(150, 0.0, 0.03)])
    for ps in (by_seed, by_image):
        assert abs(ps.mean() - 0.5) < 0.08 and 0.03 < (ps < 0.1).mean() < 0.17 and 0.03 < (ps > 0.9).mean() < 0.17
    both = [statistics.verdicts({"": table}, 0.01, 0.05)[""] for table in nulls(150, 0.01, 0.03)]
    # With both chances at work each p alone finds too much; asked together, with the interval, they do not.
    assert min(sum(verdict.p_seed < 0.05 for verdict in both), sum(verdict.p_image < 0.05 for verdict in both)) > 8
    assert sum(verdict.word == "supported" for verdict in both) <= 8


def test_a_share_passes_over_what_is_missing():
    assert Share((1.0, math.nan, 3.0)).mean == 2 and Share((1.0, math.nan, 3.0)).sd == pytest.approx(math.sqrt(2))
    assert math.isnan(Share((math.nan,)).mean) and math.isnan(Share((1.0,)).sd)


def test_what_is_found_is_frozen(monkeypatch, tmp_path, quick):
    found = judged(monkeypatch, tmp_path, {"tl": lambda seed: 0.5, "tl_kd": lambda seed: 0.6}, seeds=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.foregrounds[0].word = "supported"
    assert foreground.ENDPOINT == "positive_share"
