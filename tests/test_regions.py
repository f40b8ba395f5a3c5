"""Attribution and mask to quantities: against literal loops, under what must not change them, and at the edges."""

import math

import numpy as np
import pandas as pd
import pytest

from tlkd.regions import COLUMNS, METRICS, QUANTITIES, RATIOS, measure, ratios, table

SHARES = ("positive_share", "absolute_share", "density", "pointing", "rank_accuracy")


def drawn(images=6, side=7, channels=3, ties=False, seed=0):
    random = np.random.default_rng(seed)
    values = random.normal(0, 1, (images, channels, side, side))
    if ties:
        values = random.integers(-2, 3, values.shape).astype(float)
    masks = random.random((images, side, side)) < random.uniform(0.2, 0.7, (images, 1, 1))
    masks[:, 0, 0], masks[:, 1, 1] = True, False
    return values.astype(np.float32), masks


def literal(value, mask, signs):
    """Every quantity of one image, pixel by pixel."""
    channels, height, width = value.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    summed = {(y, x): math.fsum(float(value[c, y, x]) for c in range(channels)) for y, x in pixels}
    sums = {f"{side}_{sign}": [] for side in ("fg", "bg") for sign in ("pos", "neg")}
    for y, x in pixels:
        numbers = [float(value[c, y, x]) for c in range(channels)] if signs == "channel" else [summed[y, x]]
        for number in numbers:
            if number != 0:
                sums[f"{'fg' if mask[y, x] else 'bg'}_{'pos' if number > 0 else 'neg'}"].append(number)
    found = {name: math.fsum(numbers) for name, numbers in sums.items()}
    found |= {f"{side}_diff": found[f"{side}_pos"] - abs(found[f"{side}_neg"]) for side in ("fg", "bg")}
    inside = [pixel for pixel in pixels if mask[pixel]]
    found["area"] = len(inside) / len(pixels)
    found["positive_share"] = found["fg_pos"] / (found["fg_pos"] + found["bg_pos"])
    mass = {side: found[f"{side}_pos"] - found[f"{side}_neg"] for side in ("fg", "bg")}
    found["absolute_share"] = mass["fg"] / (mass["fg"] + mass["bg"])
    found["density"] = found["positive_share"] / found["area"]
    best = [pixel for pixel in pixels if summed[pixel] == max(summed.values())]
    found["pointing"] = sum(pixel in inside for pixel in best) / len(best)
    # Ties at rank K broken at random, in the mean: each tied pixel has the same chance of the places that are left.
    order = sorted(summed.values(), reverse=True)
    last = order[len(inside) - 1]
    places = len(inside) - sum(number > last for number in order)
    chance = places / sum(number == last for number in order)
    found["rank_accuracy"] = math.fsum(1.0 if summed[pixel] > last else chance if summed[pixel] == last else 0.0
                                       for pixel in inside) / len(inside)
    return found


@pytest.mark.parametrize("signs", ["channel", "summed"])
@pytest.mark.parametrize("ties", [False, True])
def test_every_quantity_equals_its_literal_twin(signs, ties):
    values, masks = drawn(ties=ties)
    found = measure(values, masks, signs)
    assert tuple(found) == QUANTITIES
    for number in range(len(values)):
        twin = literal(values[number], masks[number], signs)
        assert set(twin) == set(QUANTITIES)
        for name, expected in twin.items():
            assert found[name].dtype == np.float64
            assert found[name][number] == pytest.approx(expected, rel=1e-12, abs=1e-12), name


def test_ties_count_as_they_would_in_the_mean_over_random_orders():
    values, masks = drawn(images=1, side=5, ties=True, seed=3)
    pixels, random = values[0].sum(axis=0, dtype=np.float64), np.random.default_rng(0)
    count = int(masks[0].sum())
    hits, points = [], []
    for _ in range(20_000):
        order = np.lexsort((random.random(pixels.size), -pixels.ravel()))
        hits.append(masks[0].ravel()[order[:count]].mean())
        points.append(masks[0].ravel()[order[0]])
    found = measure(values, masks, "channel")
    assert found["rank_accuracy"][0] == pytest.approx(np.mean(hits), abs=0.005)
    assert found["pointing"][0] == pytest.approx(np.mean(points), abs=0.015)


@pytest.mark.parametrize("signs", ["channel", "summed"])
@pytest.mark.parametrize("scale", [8, 2**-40])
def test_a_positive_scale_changes_sums_alone(signs, scale):
    values, masks = drawn()
    once, scaled = measure(values, masks, signs), measure(values * np.float32(scale), masks, signs)
    for name in QUANTITIES:
        factor = 1 if name in (*SHARES, "area") else scale
        np.testing.assert_allclose(scaled[name], factor * once[name], rtol=1e-12)


@pytest.mark.parametrize("signs", ["channel", "summed"])
def test_moving_pixels_with_their_mask_changes_nothing(signs):
    values, masks = drawn(ties=True)
    once = measure(values, masks, signs)
    order = np.random.default_rng(1).permutation(49)
    shuffled = values.reshape(6, 3, 49)[:, :, order].reshape(values.shape)
    others = [(shuffled, masks.reshape(6, 49)[:, order].reshape(6, 7, 7)), (values[..., ::-1], masks[..., ::-1]),
              (values.transpose(0, 1, 3, 2), masks.transpose(0, 2, 1)), (values[:, ::-1], masks)]
    for other in others:
        for name, quantity in measure(*other, signs).items():
            np.testing.assert_allclose(quantity, once[name], rtol=1e-12, atol=1e-12, err_msg=name)


def test_swapping_inside_and_outside_swaps_the_sides():
    values, masks = drawn()
    once, swapped = measure(values, masks, "channel"), measure(values, ~masks, "channel")
    for sign in ("pos", "neg", "diff"):
        np.testing.assert_allclose(swapped[f"fg_{sign}"], once[f"bg_{sign}"])
    for name in ("area", "positive_share", "absolute_share", "pointing"):
        np.testing.assert_allclose(swapped[name], 1 - once[name])


def test_turning_signs_turns_pos_and_neg():
    values, masks = drawn()
    once, turned = measure(values, masks, "channel"), measure(-values, masks, "channel")
    np.testing.assert_allclose(turned["fg_pos"], -once["fg_neg"])
    np.testing.assert_allclose(turned["absolute_share"], once["absolute_share"])


def test_signs_change_pos_and_neg_and_never_diff():
    values, masks = drawn()
    channel, summed = measure(values, masks, "channel"), measure(values, masks, "summed")
    for name in ("fg_diff", "bg_diff", "pointing", "rank_accuracy"):
        np.testing.assert_allclose(channel[name], summed[name], rtol=1e-12)
    assert (channel["fg_pos"] > summed["fg_pos"]).all()
    one_channel = values[:, :1]
    for name, quantity in measure(one_channel, masks, "channel").items():
        np.testing.assert_array_equal(quantity, measure(one_channel, masks, "summed")[name])


def test_an_image_does_not_depend_on_its_neighbours():
    values, masks = drawn()
    alone = measure(values[2:3], masks[2:3], "channel")
    assert all(quantity[2] == alone[name][0] for name, quantity in measure(values, masks, "channel").items())


def test_sums_are_made_in_float64():
    values = np.full((1, 1, 64, 64), 0.1, np.float32)
    values[0, 0, 0, 0] = 1e7
    found = measure(values, np.ones((1, 64, 64), bool), "channel")
    assert found["fg_pos"][0] == pytest.approx(1e7 + 4095 * float(np.float32(0.1)), abs=1e-3)


def test_an_even_attribution_has_the_area_as_share_and_density_1():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :3] = True
    found = measure(np.ones((1, 3, 10, 10)), masks, "channel")
    assert {name: float(found[name][0]) for name in SHARES} == pytest.approx(
        {"positive_share": 0.3, "absolute_share": 0.3, "density": 1, "pointing": 0.3, "rank_accuracy": 0.3})


def test_zeros_have_no_share_and_point_everywhere_alike():
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0] = True
    found = {name: float(quantity[0]) for name, quantity in measure(np.zeros((1, 3, 4, 4)), masks, "channel").items()}
    assert all(math.isnan(found[name]) for name in ("positive_share", "absolute_share", "density"))
    assert found["pointing"] == found["rank_accuracy"] == found["area"] == 0.25
    assert found["fg_pos"] == found["bg_diff"] == 0


def test_nothing_positive_leaves_magnitudes_to_share():
    found = measure(-np.ones((1, 1, 4, 4)), np.eye(4, dtype=bool)[None], "channel")
    assert math.isnan(found["positive_share"][0]) and found["absolute_share"][0] == 0.25


def test_an_empty_mask_has_sums_and_no_shares_and_a_full_one_has_all():
    values, _ = drawn(images=2)
    masks = np.stack([np.zeros((7, 7), bool), np.ones((7, 7), bool)])
    found = measure(values, masks, "channel")
    for name in METRICS:
        assert math.isnan(found[name][0]) and found[name][1] == 1
    assert found["fg_pos"][0] == 0 and found["bg_pos"][0] > 0 and found["bg_pos"][1] == 0


def test_no_images_give_empty_columns():
    found = measure(np.zeros((0, 3, 4, 4)), np.zeros((0, 4, 4), bool), "channel")
    assert all(quantity.shape == (0,) for quantity in found.values())


@pytest.mark.parametrize(("values", "masks", "signs", "said"), [
    (np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 5), bool), "channel", "shapes"),
    (np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4)), "channel", "float64"),
    (np.zeros((3, 4, 4)), np.zeros((3, 4, 4), bool), "channel", "shapes"),
    (np.full((1, 1, 2, 2), np.nan), np.ones((1, 2, 2), bool), "channel", "not finite"),
    (np.zeros((1, 1, 2, 2)), np.ones((1, 2, 2), bool), "pixel", "allowed: channel, summed"),
])
def test_what_does_not_fit_is_refused(values, masks, signs, said):
    with pytest.raises(ValueError, match=said):
        measure(values, masks, signs)


def test_the_table_has_a_row_an_image_and_goes_through_a_file(tmp_path):
    values, masks = drawn(images=3)
    quantities = measure(values, masks, "channel")
    made = table(["a", "b", "nan"], np.array([1, 0, 1]), ("cat", "None"), np.array([1, 1, 0]),
                 np.array([False, True, False]), quantities)
    assert tuple(made.columns) == COLUMNS
    assert made["class"].tolist() == ["None", "cat", "None"]
    assert made["correct"].tolist() == [1, 0, 0] and made["uncertain"].tolist() == [0, 1, 0]
    assert made["fg_pos"].tolist() == quantities["fg_pos"].tolist()
    made.to_csv(tmp_path / "regions.csv", index=False)
    back = pd.read_csv(tmp_path / "regions.csv", dtype={"sample_id": str, "class": str}, keep_default_na=False,
                       na_values=[""])
    pd.testing.assert_frame_equal(made, back, check_exact=True, check_dtype=False)


def test_an_empty_table_has_all_columns():
    none = {name: np.zeros(0) for name in QUANTITIES}
    made = table([], np.zeros(0, int), ("cat",), np.zeros(0, int), np.zeros(0, bool), none)
    assert tuple(made.columns) == COLUMNS and len(made) == 0


def test_ratios_divide_tl_by_the_arm_and_a_divisor_of_0_gives_nan():
    tl = pd.DataFrame({"sample_id": ["a", "b"], "fg_diff": [1.0, 2.0], "bg_diff": [3.0, 4.0]})
    arm = pd.DataFrame({"sample_id": ["a", "b"], "fg_diff": [2.0, 0.0], "bg_diff": [-1.5, 8.0]})
    found = ratios(tl, arm)
    assert tuple(found.columns) == RATIOS
    assert found.iloc[0].tolist() == [0.5, -2.0, -0.25]
    assert math.isnan(found.iloc[1, 0]) and found.iloc[1, 1] == 0.5 and math.isnan(found.iloc[1, 2])
    with pytest.raises(ValueError, match="same images"):
        ratios(tl, arm[::-1])
    with pytest.raises(ValueError, match="same images"):
        ratios(tl, arm[:1])
