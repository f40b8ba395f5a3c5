"""Numbers as people read them: percentages, points, p-values, epochs, counts; pure functions."""

import math
from collections.abc import Sequence

from tlkd.power import Needed

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"
NONE = "\N{EN DASH}"  # for a number that is not there


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number with a true minus sign and digits grouped by thousands; a dash for nan, `never` for inf."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "never"
    # First to 9 digits, so that numbers that differ in their last bits alone are not rounded apart; then no negative 0.
    rounded = round(round(value, 9), digits) + 0.0
    text = f"{rounded:{'+' if sign and rounded else ''},.{digits}f}"
    return text.replace("-", MINUS)


def decimals(values: Sequence[float], digits: int = 3) -> int:
    """How many decimals numbers of one unknown size share: so many digits for the largest of them."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if largest == 0 else max(0, digits - 1 - math.floor(math.log10(largest)))


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction as a percentage, without the sign of it."""
    return number(100 * fraction, digits)


def gain(fraction: float, digits: int = 2) -> str:
    """A difference of fractions in percentage points, with its sign and without the word."""
    return number(100 * fraction, digits, sign=True)


def ends(low: float, high: float, digits: int = 2, between: str = " to ") -> str:
    """An interval of a difference of fractions in points, no wider than such a difference can be."""
    return f"{gain(max(low, -1.0), digits)}{between}{gain(min(high, 1.0), digits)}"


def digits_for(low: float, high: float) -> int:
    """How many decimals an interval of fractions deserves when it is written in points."""
    width = 100 * (high - low)
    return 2 if math.isfinite(width) and width < 0.4 else 1


def p_value(p: float) -> str:
    """`p = 0.031`, or `p < 0.001`."""
    return f"p{SPACE}={SPACE}{p_cell(p)}" if p >= 0.001 else f"p{SPACE}{p_cell(p)}"


def p_cell(p: float) -> str:
    """A p for the cell of a table."""
    if math.isnan(p):
        return NONE
    return f"<{SPACE}0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(value: float, noun: str) -> str:
    """`1 seed`, `10 seeds`, `1,000 test images`."""
    plural = noun if value == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number(value, 0)} {plural}"


def enough(needed: Needed | None, seeds: int, images: int, gain: float, noun: str) -> str:
    """How many seeds and images would show a gain, a fraction; `noun` is what an image is called. Empty for None."""
    if needed is None:
        return ""
    show, here = f"show a gain of {number(100 * gain, 1)} points with 80 % power", f"these {count(seeds, 'seed')}"
    if seeds < 2:
        return f"To {show}, more than one seed is needed before it can be said how many."
    if needed.seeds is not None and needed.seeds <= seeds:
        return (f"There are enough seeds and {noun}s to {show}: the gain itself lies too near to the border to be "
                "called.")
    return f"To {show}, judged by the observed spread, needs at least {_more(needed, here, count(images, noun), noun)}."


def _more(needed: Needed, here: str, these: str, noun: str) -> str:
    """How many more: of one with what there is of the other, or of both."""
    no_seeds, no_images = f"with these {these} no number of seeds is enough", f"no number of {noun}s with {here}"
    more_seeds = f"{count(needed.seeds, 'seed')} with these {these}" if needed.seeds is not None else ""
    more_images = f"{count(needed.images, noun)} with {here}" if needed.images is not None else ""
    if more_seeds:
        return f"{more_seeds}, or {more_images}" if more_images else f"{more_seeds}; {no_images} is enough"
    if more_images:
        return f"{more_images}; {no_seeds}"
    both = needed.together
    counts = (f"{count(both[0], 'seed')} and {count(both[1], noun)}" if both
              else f"10,000 seeds and in proportion more {noun}s")  # `power.MOST_SEEDS`: nobody looked further
    return f"{counts} together: {no_seeds}, and {no_images}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def size(amount: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
