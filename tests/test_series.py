from typing import Any

import pytest

from difficult_folders import ARMS, BLACK, blacks, fractions, noises
from tlkd.conditions import Condition
from tlkd.reading import validate
from tlkd.series import base_conditions, in_words, series_of, share, summarised, under
from tlkd.specs import Study

CLEAN: dict[str, Any] = {"name": "clean"}


def study(conditions: list[dict[str, Any]]) -> Study:
    return validate({"name": "s", "data": {"source": "folder:x", "augment": []},
                     "student": {"model": "packaged:efficientnet_lite0", "input_size": 48},
                     "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 64}},
                     "arms": ARMS, "conditions": conditions}, "s")


def of(conditions: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The places of each series, by its key."""
    return {each.key: [place.name for place in each.places] for each in series_of(study(conditions).conditions)}


def test_three_series_share_a_plain_easy_end_and_go_from_easy_to_hard() -> None:
    found = of([*fractions(0.1, 0.5, 0.01), CLEAN, *noises(0.8, 0.4), *blacks(1.0, 0.5, 0.95)])
    assert found == {"train_fraction": ["clean", "few_50", "few_10", "few_1"],
                     "label_noise": ["clean", "noise_40", "noise_80"],
                     "center_black": ["clean", "black_50", "black_95", "black_100"]}
    every = series_of(study([CLEAN, *fractions(0.1)]).conditions)
    assert [(place.number, place.easy) for place in every[0].places] == [(1.0, True), (0.1, False)]
    assert [place.name for place in every[0].hard] == ["few_10"]


def test_a_difficulty_without_a_plain_condition_needs_two_places() -> None:
    assert of(fractions(0.5, 0.1)) == {"train_fraction": ["few_50", "few_10"]}
    [alone] = series_of(study(fractions(0.5)).conditions)
    assert alone.lone and alone.places[0].name == "few_50" and not alone.places[0].easy


def test_other_settings_and_other_overrides_are_other_series() -> None:
    anew = [{"name": "anew_20", "label_noise": {"fraction": 0.2, "redraw": "epoch"}}]
    small = [{"name": "small", "student": {"input_size": 32}},
             {"name": "small_few", "student": {"input_size": 32}, "train_fraction": 0.5}]
    smaller = [{"name": "square", "corruption": {"kind": "center_black", "size": [0.5, 0.5], "fraction": 0.5}}]
    found = of([CLEAN, *noises(0.2), *anew, *small, *blacks(0.5), *smaller])
    assert found == {"label_noise": ["clean", "noise_20"], "label_noise_2": ["clean", "anew_20"],
                     "train_fraction": ["small", "small_few"], "center_black": ["clean", "black_50"],
                     "center_black_2": ["clean", "square"]}


def test_a_single_combined_condition_stands_alone_and_two_make_a_series_with_their_own_easy_end() -> None:
    def mixed(share: float) -> dict[str, Any]:
        black = {**BLACK, "fraction": share}
        return {"name": f"mixed_{round(100 * share)}", "train_fraction": 0.1, "corruption": black}

    found = of([CLEAN, *fractions(0.1), *blacks(0.95), mixed(0.95)])
    assert found["mixed_95"] == ["mixed_95"] and len(found) == 3
    found = of([CLEAN, *fractions(0.1), mixed(0.5), mixed(0.95)])
    assert found == {"train_fraction": ["clean", "few_10"], "center_black": ["few_10", "mixed_50", "mixed_95"]}
    [series] = [each for each in series_of(study([CLEAN, *fractions(0.1), mixed(0.5), mixed(0.95)]).conditions)
                if each.key == "center_black"]
    assert series.beside == "10 % of the training images" and [place.easy for place in series.places] == [True, False,
                                                                                                          False]


def test_a_number_that_does_nothing_is_the_easy_end_once() -> None:
    found = of([CLEAN, {"name": "noise_0", "label_noise": {"fraction": 0.0}}, *noises(0.4)])
    assert found == {"label_noise": ["clean", "noise_40"]}


@pytest.mark.parametrize(("conditions", "base"), [
    ([CLEAN, *fractions(0.1)], ("clean",)),
    ([CLEAN, {"name": "small", "student": {"input_size": 32}}, *fractions(0.1)], ("clean", "small")),
    ([*fractions(0.5, 0.1), {"name": "mixed", "train_fraction": 0.1, "label_noise": 0.2}], ("mixed",)),
    ([*fractions(0.1, 0.5), *noises(0.2, 0.4)], ("few_50", "noise_20")),
])
def test_the_base_conditions(conditions: list[dict[str, Any]], base: tuple[str, ...]) -> None:
    assert base_conditions(study(conditions)) == base


def test_conditions_in_words() -> None:
    mixed = Condition(name="mixed", train_fraction=0.005, label_noise={"fraction": 0.3, "to": "uniform"},
                      corruption={"kind": "gaussian_noise", "fraction": 0.5, "redraw": "epoch"})
    assert in_words(mixed) == ("0.5 % of the training images, 30 % of the labels made wrong (drawn over all classes), "
                               "Gaussian noise, severity 3 on 50 %, drawn anew each epoch")
    assert in_words(Condition(name="clean")) == "as they are"
    assert [share(each) for each in (1.0, 0.05, 0.0025)] == ["100 %", "5 %", "0.25 %"]
    every = series_of(study([CLEAN, *fractions(0.01, 0.5), *noises(0.4), *blacks(0.5, 0.95, 1.0)]).conditions)
    assert [under(each) for each in every] == [
        "With 1 and 50 % of the training images", "With 40 % of the training labels made wrong",
        "With CenterBlack, side 0.89 to 1 on 50 to 100 % of the training images"]


def test_many_conditions_are_told_in_a_few_words() -> None:
    mixed = [{"name": f"m{number}", "train_fraction": 0.1, "label_noise": 0.1 * number,
              "training": {"epochs": number}} for number in (1, 2, 3, 4)]
    text = summarised(study([CLEAN, *fractions(0.5, 0.1, 0.01), *noises(0.4), *mixed]).conditions)
    assert text == "9 conditions: clean; train fraction: 1 to 50 % (3); label noise: 40 %; 4 combined"
    grid = [{"name": f"k{10 * kept:.0f}_{10 * wrong:.0f}", "train_fraction": kept, "label_noise": {"fraction": wrong}}
            for kept in (1.0, 0.6, 0.3) for wrong in (0.0, 0.1, 0.2, 0.3, 0.4)]
    told = summarised(study(grid).conditions)
    assert len(told) < 400 and told.startswith("15 conditions: ") and told.endswith("; 3 series more")
