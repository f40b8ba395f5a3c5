"""Numbers as people read them: percentages, points, p-values, epochs, counts; pure functions."""

import math
from collections.abc import Sequence

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
