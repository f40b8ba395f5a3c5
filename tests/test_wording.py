import math

import pytest

from tlkd import wording
from tlkd.power import Needed
from tlkd.wording import enough


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert wording.number(-1234.5, 1) == "\N{MINUS SIGN}1,234.5"
    assert wording.number(-0.001, 1) == "0.0" and wording.gain(0.0) == "0.00"
    assert wording.number(math.nan) == wording.NONE and wording.number(math.inf) == "never"
    assert wording.percent(0.75375) == wording.percent(0.75375 - 1e-16) == "75.38"
    assert wording.gain(0.0083, 1) == "+0.8"


def test_p_counts_and_lists() -> None:
    assert wording.p_value(0.0312).replace(wording.SPACE, " ") == "p = 0.031"
    assert wording.p_value(1e-10).replace(wording.SPACE, " ") == "p < 0.001"
    assert wording.p_cell(0.5) == "0.50" and wording.p_cell(math.nan) == wording.NONE
    assert [wording.count(1, "class"), wording.count(2, "class"), wording.count(1000, "test image")] == [
        "1 class", "2 classes", "1,000 test images"]
    assert wording.listed(["a", "b", "c"]) == "a, b and c" and wording.listed(["a"]) == "a" and wording.listed([]) == ""
    assert (wording.duration(0.02), wording.duration(150), wording.size(2**21)) == ("0.02 s", "2.5 min", "2.0 MiB")


def test_narrow_intervals_get_more_decimals() -> None:
    assert (wording.digits_for(0.001, 0.003), wording.digits_for(0, 0.02), wording.digits_for(math.nan, 1)) == (2, 1, 1)


def test_numbers_of_one_size_share_their_decimals() -> None:
    assert [wording.decimals(values) for values in ([0.0123, -4.5], [12345.0], [0.00123], [], [0.0], [math.nan, 1.0])
            ] == [2, 0, 5, 0, 0, 2]


@pytest.mark.parametrize(("found", "seeds", "said"), [
    (Needed(39, 2029), 10, "needs at least 39 seeds with these 1,000 images, or 2,029 images with these 10 seeds."),
    (Needed(49, None), 5, "49 seeds with these 1,000 images; no number of images with these 5 seeds is enough."),
    (Needed(None, 9000), 10, "9,000 images with these 10 seeds; with these 1,000 images no number of seeds is enough."),
    (Needed(None, None), 3, "at least 10,000 seeds and in proportion more images together: with these 1,000 images no"),
    (Needed(None, None, (14, 4667)), 3, "at least 14 seeds and 4,667 images together: with these 1,000 images no"),
    (Needed(8, 500), 10, "There are enough seeds and images to show a gain of 0.5 points with 80 % power"),
    (Needed(None, None), 1, "more than one seed is needed before it can be said how many."),
])
def test_what_is_needed_is_said_for_either_alone_and_for_both(found: Needed, seeds: int, said: str) -> None:
    assert said in enough(found, seeds, 1000, 0.005, "image")
    assert enough(None, seeds, 1000, 0.005, "image") == ""
