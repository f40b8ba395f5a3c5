"""What a condition draws: how many, which, nested as fractions grow, by name alone; and what cannot be drawn."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tlkd import seeding
from tlkd.conditions import Condition, as_tuples
from tlkd.draws import Draw, draw, whole
from tlkd.errors import BadInput

CLASSES = ("cat", "dog", "bird", "ship", "truck", "frog", "deer")
COUNT = 21_000  # 3,000 of each class
LABELS = np.random.default_rng(5).permutation(np.arange(COUNT) % len(CLASSES))
KEYS = seeding.keys([f"train/{number:05}.png" for number in range(COUNT)])
CHANCE = 1e-4  # of a right draw failing one of the tests below by bad luck; the seeds are fixed, so it is once for all


def condition(**keys: Any) -> Condition:
    return Condition.model_validate(as_tuples({"name": "hard", **keys}))


def drawn(labels: Any = LABELS, keys: Any = KEYS, seed: int = 0, classes: tuple[str, ...] = CLASSES,
          **hard: Any) -> Draw:
    return draw(condition(**hard), seed, classes, np.asarray(labels), keys)


def noise(fraction: float, **keys: Any) -> dict[str, Any]:
    return {"label_noise": {"fraction": fraction, **keys}}


def corruption(fraction: float, **keys: Any) -> dict[str, Any]:
    return {"corruption": {"kind": "center_black", "fraction": fraction, **keys}}


def wrong(found: Draw, epoch: int = 1) -> dict[int, int]:
    """The samples whose label is not the one given, with the label that they are taken for."""
    labels = found.labels(epoch)
    return {int(found.samples[place]): int(labels[place]) for place in np.flatnonzero(labels != found.given)}


def corrupted(found: Draw, epoch: int = 1) -> dict[int, int]:
    """The samples that are corrupted, with their variants."""
    variants = found.variants(epoch)
    return {int(found.samples[place]): int(variants[place]) for place in np.flatnonzero(variants)}


def as_likely(count: int, of: int, chance: float) -> bool:
    return bool(stats.binomtest(count, of, chance).pvalue > CHANCE)


def even(counts: Any) -> bool:
    return bool(stats.chisquare(counts).pvalue > CHANCE)


# --- which samples are kept -------------------------------------------------------------------------------------------


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@settings(deadline=None)
@given(sizes, st.floats(0.001, 1), st.integers(0, 3))
def test_as_many_of_each_class_are_kept_as_the_fraction_says_to_the_nearest_sample(counts: list[int], fraction: float,
                                                                                   seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = [int(np.floor(fraction * count + 0.5)) for count in counts]
    names = CLASSES[:len(counts)]
    if min(expected) == 0:
        with pytest.raises(BadInput):
            drawn(labels, KEYS[:len(labels)], seed, names, train_fraction=fraction)
        return
    found = drawn(labels, KEYS[:len(labels)], seed, names, train_fraction=fraction)
    assert np.bincount(labels[found.samples], minlength=len(counts)).tolist() == expected


def test_a_half_sample_is_one() -> None:
    labels, keys = np.repeat([0, 1], [5, 10]), KEYS[:15]
    assert np.bincount(drawn(labels, keys, classes=("a", "b"), train_fraction=0.5).given).tolist() == [3, 5]


def test_what_is_kept_is_a_part_of_the_split_in_its_order() -> None:
    found = drawn(train_fraction=0.1)
    assert found.samples.dtype == np.int64 and len(found.samples) == COUNT / 10
    assert (np.diff(found.samples) > 0).all()
    np.testing.assert_array_equal(found.given, LABELS[found.samples])
    np.testing.assert_array_equal(found.keys, KEYS[found.samples])
    np.testing.assert_array_equal(found.labels(1), found.given)
    assert not found.variants(1).any()


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_what_a_small_fraction_keeps_a_larger_one_keeps_too(seed: int) -> None:
    kept = [set(drawn(seed=seed, train_fraction=fraction).samples.tolist())
            for fraction in (0.01, 0.02, 0.1, 0.5, 0.9, 1)]
    assert all(small < large for small, large in itertools.pairwise(kept))
    assert len(kept[-1]) == COUNT


def test_each_seed_keeps_others_and_each_sample_is_as_likely() -> None:
    kept = [drawn(seed=seed, train_fraction=0.1).samples for seed in range(20)]
    assert len({samples.tobytes() for samples in kept}) == 20
    common = len(set(kept[0].tolist()) & set(kept[1].tolist()))
    assert as_likely(common, len(kept[0]), 0.1)
    times = np.bincount(np.bincount(np.concatenate(kept), minlength=COUNT), minlength=21)
    expected = stats.binom.pmf(np.arange(21), 20, 0.1) * COUNT
    assert even_to(times, expected)


def even_to(counts: Any, expected: Any) -> bool:
    """Whether counts are as expected; the rare ones, from the first of under five, are taken together."""
    last = int(np.argmax(np.asarray(expected) < 5))
    found, wanted = ([*each[:last], sum(each[last:])] for each in (counts, expected))
    return bool(stats.chisquare(found, np.array(wanted) * sum(found) / sum(wanted)).pvalue > CHANCE)


# --- wrong labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0001, 0.1, 0.4, 0.8, 1])
@pytest.mark.parametrize("kept", [1, 0.1])
def test_as_many_labels_are_wrong_as_the_fraction_says(fraction: float, kept: float) -> None:
    found = drawn(train_fraction=kept, **noise(fraction))
    assert len(wrong(found)) == int(fraction * COUNT * kept + 0.5)


def test_a_different_label_is_never_the_same_and_each_other_is_as_likely() -> None:
    for redraw in ("never", "epoch"):
        found = drawn(**noise(1, redraw=redraw))
        labels = found.labels(1)
        assert not (labels == found.given).any()
        assert labels.min() == 0 and labels.max() == len(CLASSES) - 1
        for label in range(len(CLASSES)):
            counts = np.bincount(labels[found.given == label], minlength=len(CLASSES))
            assert even(np.delete(counts, label))


def test_of_two_classes_the_different_label_is_the_other() -> None:
    labels = LABELS[:100] % 2
    np.testing.assert_array_equal(drawn(labels, KEYS[:100], classes=("a", "b"), **noise(1)).labels(1), 1 - labels)


def test_a_uniform_label_may_be_the_same_and_each_is_as_likely() -> None:
    found = drawn(**noise(1, to="uniform"))
    for label in range(len(CLASSES)):
        assert even(np.bincount(found.labels(1)[found.given == label], minlength=len(CLASSES)))
    assert as_likely(len(wrong(drawn(**noise(0.5, to="uniform")))), COUNT, 0.5 * 6 / 7)


def test_a_class_map_touches_the_mapped_classes_alone() -> None:
    found = drawn(**noise(0.4, to={"cat": "dog", "ship": "truck"}))
    labels = found.labels(1)
    chosen = np.isin(LABELS, [0, 3])
    np.testing.assert_array_equal(labels[~chosen], LABELS[~chosen])
    assert set(labels[LABELS == 0].tolist()) == {0, 1} and set(labels[LABELS == 3].tolist()) == {3, 4}
    assert len(wrong(found)) == 0.4 * 6000  # of the mapped classes' samples


def test_classes_may_be_mapped_to_each_other() -> None:
    labels = drawn(**noise(1, to={"cat": "dog", "dog": "cat"})).labels(1)
    np.testing.assert_array_equal(labels, np.where(LABELS == 0, 1, np.where(LABELS == 1, 0, LABELS)))


# --- corrupted images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0001, 0.5, 0.95, 1])
@pytest.mark.parametrize("kept", [1, 0.1])
def test_as_many_samples_are_corrupted_as_the_fraction_says(fraction: float, kept: float) -> None:
    found = drawn(train_fraction=kept, **corruption(fraction, variants=3))
    assert len(corrupted(found)) == int(fraction * COUNT * kept + 0.5)
    assert found.variants(1).dtype == np.int64


@pytest.mark.parametrize("redraw", ["never", "epoch"])
def test_each_variant_is_as_likely(redraw: str) -> None:
    assert set(corrupted(drawn(**corruption(1, redraw=redraw))).values()) == {1}
    counts = np.bincount(drawn(**corruption(0.9, variants=5, redraw=redraw)).variants(1), minlength=6)
    assert len(counts) == 6 and even(counts[1:])


def test_kept_mislabelled_and_corrupted_have_nothing_to_do_with_each_other() -> None:
    found = drawn(train_fraction=0.5, **noise(0.5), **corruption(0.5))
    hit = np.isin(found.samples, list(wrong(found)))
    dark = found.variants(1) > 0
    assert as_likely(int((hit & dark).sum()), len(hit), 0.25)
    everyone = set(wrong(drawn(**noise(0.5))))
    assert as_likely(len(everyone & set(found.samples.tolist())), len(everyone), 0.5)


# --- nested -----------------------------------------------------------------------------------------------------------


GROWING = (0.01, 0.1, 0.2, 0.4, 0.8, 1)
to = st.sampled_from(["different", "uniform", {"cat": "dog", "bird": "ship"}])


@settings(deadline=None, max_examples=25)
@given(to, st.sampled_from(["never", "epoch"]), st.sampled_from([1, 0.3, 0.05]), st.integers(0, 3), st.integers(1, 3))
def test_what_a_small_fraction_mislabels_a_larger_one_does_too_in_the_same_way(to: Any, redraw: str, kept: float,
                                                                                seed: int, epoch: int) -> None:
    found = [wrong(drawn(seed=seed, train_fraction=kept, **noise(fraction, to=to, redraw=redraw)), epoch)
             for fraction in GROWING]
    assert all(small.items() <= large.items() for small, large in itertools.pairwise(found))
    assert len(found[0]) < len(found[-1])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.sampled_from(["never", "epoch"]), st.sampled_from([1, 0.3, 0.05]), st.integers(0, 3),
       st.integers(1, 3))
def test_what_a_small_fraction_corrupts_a_larger_one_does_too_in_the_same_way(variants: int, redraw: str, kept: float,
                                                                               seed: int, epoch: int) -> None:
    found = [corrupted(drawn(seed=seed, train_fraction=kept, **corruption(fraction, variants=variants, redraw=redraw)),
                       epoch) for fraction in GROWING]
    assert all(small.items() <= large.items() for small, large in itertools.pairwise(found))
    assert len(found[0]) < len(found[-1])


def test_with_less_data_a_sample_is_mislabelled_and_corrupted_as_it_was() -> None:
    """Drawn anew, just so; drawn once, as far as the whole number of those that are hit allows."""
    for redraw in ("never", "epoch"):
        hard = noise(0.4, redraw=redraw) | corruption(0.6, variants=4, redraw=redraw)
        few, many = drawn(train_fraction=0.1, **hard), drawn(train_fraction=0.6, **hard)
        kept = set(few.samples.tolist())
        for what in (wrong, corrupted):
            small, large = what(few), {sample: value for sample, value in what(many).items() if sample in kept}
            differing = {sample for sample in small.keys() | large.keys() if small.get(sample) != large.get(sample)}
            assert len(differing) <= (0 if redraw == "epoch" else 0.05 * len(kept))
            assert all(small[sample] == large[sample] for sample in small.keys() & large.keys())


# --- redraw -----------------------------------------------------------------------------------------------------------


HARD = noise(0.3) | corruption(0.3, variants=2)
ANEW = noise(0.3, redraw="epoch") | corruption(0.3, variants=2, redraw="epoch")


def test_drawn_once_it_is_the_same_in_all_epochs() -> None:
    found = drawn(**HARD)
    for epoch in (2, 3, 100):
        np.testing.assert_array_equal(found.labels(epoch), found.labels(1))
        np.testing.assert_array_equal(found.variants(epoch), found.variants(1))


def test_drawn_anew_each_epoch_has_its_own_with_the_chance_that_was_asked_for() -> None:
    found, epochs = drawn(**ANEW), range(1, 9)
    for what in (wrong, corrupted):
        hit = [set(what(found, epoch)) for epoch in epochs]
        assert len({frozenset(each) for each in hit}) == len(epochs)
        assert all(as_likely(len(each), COUNT, 0.3) for each in hit)
        assert as_likely(len(hit[0] & hit[1]), COUNT, 0.09)
        times = np.bincount([sum(sample in each for each in hit) for sample in range(COUNT)], minlength=9)
        assert even_to(times, stats.binom.pmf(np.arange(9), 8, 0.3) * COUNT)
    assert even(np.bincount(list(corrupted(found).values()))[1:])


def test_each_seed_draws_its_own() -> None:
    for hard in (HARD, ANEW):
        one, other = drawn(seed=0, **hard), drawn(seed=1, **hard)
        assert as_likely(len(wrong(one).keys() & wrong(other).keys()), COUNT, 0.09)
        assert as_likely(len(corrupted(one).keys() & corrupted(other).keys()), COUNT, 0.09)


def test_once_and_the_first_epoch_are_other_draws() -> None:
    assert wrong(drawn(**HARD)).keys() != wrong(drawn(**ANEW)).keys()


@pytest.mark.parametrize("hard", [HARD, ANEW, {"train_fraction": 0.2, **HARD}])
def test_a_draw_is_the_same_whenever_and_in_whatever_order_it_is_asked_for(hard: dict[str, Any]) -> None:
    one, other = drawn(seed=3, **hard), drawn(seed=3, **hard)
    late = one.labels(7), one.variants(5)
    one.labels(1)
    np.testing.assert_array_equal(late[0], other.labels(7))
    np.testing.assert_array_equal(late[1], other.variants(5))
    np.testing.assert_array_equal(one.labels(1), other.labels(1))


@pytest.mark.parametrize("hard", [HARD, ANEW, {"train_fraction": 0.2, **HARD}])
def test_the_order_of_the_samples_does_not_matter(hard: dict[str, Any]) -> None:
    order = np.random.default_rng(9).permutation(COUNT)
    one, other = drawn(**hard), drawn(LABELS[order], KEYS[order], **hard)
    assert {int(order[sample]) for sample in other.samples} == set(one.samples.tolist())
    assert {int(order[sample]): label for sample, label in wrong(other, 2).items()} == wrong(one, 2)
    assert {int(order[sample]): variant for sample, variant in corrupted(other, 2).items()} == corrupted(one, 2)


def test_drawn_anew_a_sample_does_not_depend_on_which_others_there_are() -> None:
    some = np.arange(0, COUNT, 7)
    one, other = drawn(**ANEW), drawn(LABELS[some], KEYS[some], **ANEW)
    np.testing.assert_array_equal(other.labels(4), one.labels(4)[some])
    np.testing.assert_array_equal(other.variants(4), one.variants(4)[some])


def test_draws_stay_what_they_were() -> None:
    """Finished studies rest on them."""
    labels, keys = np.arange(12) % 3, seeding.keys([f"{number}" for number in range(12)])
    found = drawn(labels, keys, 7, CLASSES[:3], train_fraction=0.5, **noise(0.5), **corruption(0.5, variants=3))
    assert found.samples.tolist() == GOLDEN["samples"]
    assert found.labels(1).tolist() == GOLDEN["labels"]
    assert found.variants(1).tolist() == GOLDEN["variants"]
    anew = drawn(labels, keys, 7, CLASSES[:3], **noise(0.5, redraw="epoch"),
                 **corruption(0.5, variants=3, redraw="epoch"))
    assert anew.labels(2).tolist() == GOLDEN["labels of epoch 2"]
    assert anew.variants(2).tolist() == GOLDEN["variants of epoch 2"]


GOLDEN = {
    "samples": [0, 3, 5, 7, 10, 11],
    "labels": [2, 0, 1, 1, 1, 0],
    "variants": [0, 0, 1, 1, 3, 0],
    "labels of epoch 2": [1, 0, 0, 0, 2, 2, 0, 1, 1, 0, 0, 1],
    "variants of epoch 2": [2, 0, 0, 0, 3, 3, 0, 3, 1, 2, 0, 3],
}


# --- nothing drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [{}, noise(0), noise(0, redraw="epoch"), corruption(0), corruption(0, redraw="epoch"),
                                  {"train_fraction": 1}, noise(0, to={"cat": "no class"})])
def test_without_a_difficulty_all_is_as_it_was_given(hard: dict[str, Any]) -> None:
    found = drawn(**hard)
    np.testing.assert_array_equal(found.samples, np.arange(COUNT))
    np.testing.assert_array_equal(found.labels(3), LABELS)
    assert found.variants(3).shape == (COUNT,) and not found.variants(3).any()
    assert list(found.stored(3)) == ["samples"]


def test_whole_is_a_split_as_it_is() -> None:
    found = whole(LABELS[:50])
    np.testing.assert_array_equal(found.samples, np.arange(50))
    np.testing.assert_array_equal(found.labels(1), LABELS[:50])
    assert found.variants(2).tolist() == [0] * 50
    assert found.condition.plain and list(found.stored(2)) == ["samples"]


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_what_is_stored_is_what_was_trained_on() -> None:
    once = drawn(train_fraction=0.1, **HARD)
    stored = once.stored(4)
    assert {name: array.shape for name, array in stored.items()} == {
        "samples": (2100,), "labels": (2100,), "variants": (2100,)}
    anew = drawn(train_fraction=0.1, **ANEW)
    assert {name: array.shape for name, array in anew.stored(4).items()} == {
        "samples": (2100,), "labels": (4, 2100), "variants": (4, 2100)}
    for found, of_epoch in ((once, lambda array, epoch: array), (anew, lambda array, epoch: array[epoch - 1])):
        stored = found.stored(4)
        np.testing.assert_array_equal(stored["samples"], found.samples)
        for epoch in range(1, 5):
            np.testing.assert_array_equal(of_epoch(stored["labels"], epoch), found.labels(epoch))
            np.testing.assert_array_equal(of_epoch(stored["variants"], epoch), found.variants(epoch))


@pytest.mark.parametrize("redraw", ["never", "epoch"])
def test_what_is_stored_is_small_and_holds_every_label(redraw: str) -> None:
    labels = np.arange(900) % 300
    names = tuple(f"class {number}" for number in range(300))
    for fraction in (0.5, 0.001):
        found = drawn(labels, KEYS[:900], classes=names, **noise(fraction, redraw=redraw))
        stored = found.stored(2)["labels"]
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored[0] if redraw == "epoch" else stored, found.labels(1))
    assert drawn(**HARD).stored(1)["labels"].dtype == np.uint8


# --- what cannot be drawn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[1, 40], [40, 3], [45, 7, 45], [6000, 9000], [12_000, 11_999], [5, 5]])
def test_a_fraction_that_leaves_a_class_empty_is_named_with_the_least_that_does_not(counts: list[int]) -> None:
    labels, names = np.repeat(np.arange(len(counts)), counts), CLASSES[:len(counts)]
    keys = seeding.keys([str(number) for number in range(len(labels))])
    fraction = 0.3 / min(counts)
    with pytest.raises(BadInput) as caught:
        drawn(labels, keys, classes=names, train_fraction=fraction)
    said = re.fullmatch(r"conditions\.hard\.train_fraction: found ([\d.e-]+), which leaves none of the (\d+) training "
                        r"images of class '(\w+)'; allowed: at least ([\d.e-]+)", str(caught.value))
    assert said is not None, str(caught.value)
    assert float(said[1]) == pytest.approx(fraction, rel=1e-5)
    assert int(said[2]) == min(counts) and said[3] == names[counts.index(min(counts))]
    least = float(said[4])
    drawn(labels, keys, classes=names, train_fraction=least)
    with pytest.raises(BadInput):
        drawn(labels, keys, classes=names, train_fraction=least * 0.99)


@pytest.mark.parametrize(("mapping", "said"), [
    ({"cta": "dog"}, r"there is no class 'cta'; did you mean 'cat'\?; allowed: cat, dog, bird, .*, deer$"),
    ({"cat": "dog", "dog": "wolf"}, r"there is no class 'wolf'; allowed: cat, dog, "),
])
def test_an_unknown_class_in_a_map_is_named(mapping: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=rf"^conditions\.hard\.label_noise\.to: {said}"):
        drawn(**noise(0.1, to=mapping))


def test_of_many_classes_some_are_named() -> None:
    names = tuple(f"c{number}" for number in range(1000))
    with pytest.raises(BadInput, match=r"allowed: c0, c1, .*, c19, \.\.\.$") as caught:
        drawn(np.arange(1000), KEYS[:1000], classes=names, **noise(0.1, to={"x": "c1"}))
    assert len(str(caught.value)) < 300


def test_wrong_labels_need_two_classes() -> None:
    one = np.zeros(10, np.int64)
    with pytest.raises(BadInput, match=r"^conditions\.hard\.label_noise: wrong labels need at least 2 classes"):
        drawn(one, KEYS[:10], classes=("a",), **noise(0.1))
    assert drawn(one, KEYS[:10], classes=("a",), **noise(0)).labels(1).tolist() == [0] * 10
    assert len(drawn(one, KEYS[:10], classes=("a",), train_fraction=0.5).samples) == 5
