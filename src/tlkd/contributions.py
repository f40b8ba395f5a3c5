"""A table of contributions as the thesis prints it (tables 6.3 and 6.4), read from a CSV file and tested anew."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
import pandas as pd

from tlkd.errors import BadInput, nearest
from tlkd.observations import QUESTIONS, TWO_SCALES, Floats, Paired, Question, paired, sides
from tlkd.regions import RATIOS, ratios

LEVEL = 0.05
DIFFS = {"tl_fg_diff": "tl_fg_diff_A", "kd_fg_diff": "kd_fg_diff_B", "tl_bg_diff": "tl_bg_diff_C",
         "kd_bg_diff": "kd_bg_diff_D"}
SUMS = tuple(f"{arm}_{side}_{sign}" for arm in ("tl", "kd") for side in ("fg", "bg") for sign in ("pos", "neg"))
NEEDED = ("class", *SUMS)
KNOWN = (*NEEDED, *DIFFS.values(), *RATIOS)


@dataclass(frozen=True, eq=False)
class Contributions:
    """A table's rows: the sums of both networks `[row]`, the ratios, the tests, and what is odd about the table."""

    name: str
    classes: tuple[str, ...]
    tl: Mapping[str, Floats]  # regions.SUMS -> [row]
    kd: Mapping[str, Floats]
    ratios: pd.DataFrame  # regions.RATIOS, recomputed
    tests: Mapping[Question, Paired]
    notes: tuple[str, ...]


def read(path: Path) -> Contributions:
    """Read a CSV file with the columns of the thesis's table 6.3 and test it.

    Needed are `class` and the sums of positive and negative values; diff and ratio columns may be there and are
    checked: a diff that is not pos + neg is refused, a ratio that does not follow to two decimals is noted. Raises
    `BadInput` for a file that cannot be read, a column that is missing, or a cell that cannot be right.
    """
    header, rows = _rows(path)
    _demand_columns(path, header)
    if len(rows) < 2:
        raise BadInput(f"{path}: has {len(rows)} row{'' if len(rows) == 1 else 's'}; a paired test needs 2 at least")
    columns = [name for name in header if name in KNOWN and name != "class"]
    cells = {name: [_cell(path, line, row, name) for line, row in rows] for name in columns}
    classes = tuple(row["class"] for _, row in rows)
    lines = [f"{path}: line {line} ({row['class']})" for line, row in rows]
    tables = {arm: _sums(arm, cells, lines) for arm in ("tl", "kd")}
    tl, kd = ({name: np.array([float(cell) for cell in column]) for name, column in tables[arm].items()}
              for arm in ("tl", "kd"))
    again = ratios(pd.DataFrame(tl), pd.DataFrame(kd))
    tests = {question: paired(*sides(question, tl, kd), LEVEL) for question in QUESTIONS}
    unused = [name for name in header if name not in KNOWN]
    notes = [f"column {name!r} is not used{nearest(name, list(KNOWN), 1)}" for name in unused]
    return Contributions(path.name, classes, tl, kd, again, tests, (*notes, *_ratio_notes(cells, again, classes)))


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and each row with its line in the file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or 'cannot be opened').lower()}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: is not a CSV file in UTF-8 ({error})") from None
    if not lines:
        raise BadInput(f"{path}: is empty; expected the columns {', '.join(NEEDED)}")
    header = lines[0][1]
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise BadInput(f"{path}: has the column {twice[0]!r} twice")
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise BadInput(f"{path}: line {line} has {len(row)} cells, expected {len(header)}, as the header has")
    return header, [(line, dict(zip(header, row, strict=True))) for line, row in lines[1:]]


def _demand_columns(path: Path, header: list[str]) -> None:
    missing = [name for name in NEEDED if name not in header]
    if missing:
        spare = [name for name in header if name not in KNOWN]
        raise BadInput(f"{path}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
                       f"{nearest(missing[0], spare)}; expected {', '.join(NEEDED)}")


def _cell(path: Path, line: int, row: Mapping[str, str], name: str) -> Decimal:
    """A cell as it is written, so that its decimals are known."""
    where = f"{path}: line {line} ({row['class']}), column {name}: found {row[name]!r}"
    if name in RATIOS and not row[name]:  # a ratio that cannot be formed is left empty
        return Decimal("nan")
    try:
        value = Decimal(row[name])
    except InvalidOperation:
        raise BadInput(f"{where}, expected a number") from None
    if not math.isfinite(float(value)) and name not in RATIOS:
        raise BadInput(f"{where}, expected a finite number")
    if (name.endswith("_pos") and value < 0) or (name.endswith("_neg") and value > 0):
        raise BadInput(f"{where}, expected 0 or {'more' if name.endswith('_pos') else 'less'}: the sum of the "
                       f"{'positive' if name.endswith('_pos') else 'negative'} values")
    return value


def _sums(arm: str, cells: Mapping[str, list[Decimal]], lines: list[str]) -> dict[str, list[Decimal]]:
    """One network's sums under the names of `regions.SUMS`; diff as printed where it is there and right."""
    found: dict[str, list[Decimal]] = {}
    for side in ("fg", "bg"):
        pos, neg = cells[f"{arm}_{side}_pos"], cells[f"{arm}_{side}_neg"]
        printed = cells.get(DIFFS[f"{arm}_{side}_diff"])
        for row, values in enumerate(zip(pos, neg, printed, strict=True) if printed else ()):
            # Three numbers that were rounded to so many decimals may be off by one and a half of the last together.
            step = Decimal(1).scaleb(max(int(value.as_tuple().exponent) for value in values))
            if abs(values[2] - values[0] - values[1]) > step * 3 / 2:
                raise BadInput(f"{lines[row]}, column {DIFFS[f'{arm}_{side}_diff']}: found {values[2]}, but pos + neg "
                               f"is {values[0] + values[1]}")
        found |= {f"{side}_pos": pos, f"{side}_neg": neg,
                  f"{side}_diff": printed or [one + two for one, two in zip(pos, neg, strict=True)]}
    return found


def _ratio_notes(cells: Mapping[str, list[Decimal]], again: pd.DataFrame, classes: tuple[str, ...]) -> Iterator[str]:
    for name in RATIOS:
        for row, printed in enumerate(map(float, cells.get(name, []))):
            value = float(again[name].iloc[row])
            if math.isnan(value) != math.isnan(printed) or abs(value - printed) > 0.005 + 1e-9:
                yield f"{name} of row {row + 1} ({classes[row]}): printed {_two(printed)}, recomputed {_two(value)}"


# --- text -------------------------------------------------------------------------------------------------------------


def text(found: Contributions) -> str:
    """What `tlkd regions` prints."""
    n = len(found.classes)
    below = int((found.ratios[RATIOS[0]] < 1).sum())
    shown: list[tuple[str, ...]] = [("class", "A/B", "C/D", "(A/B)/(C/D)")]
    shown += [(name, *map(_two, row)) for name, row in zip(
        found.classes, found.ratios[list(RATIOS)].to_numpy(np.float64).tolist(), strict=True)]
    return "\n".join([
        f"{found.name}: {n} images, each explained with TL and with TL+KD", "", *_tests(found), "",
        *_aligned(shown, left=1), "",
        f"A/B lies below 1 in {below} of {n}: where both are positive, TL+KD's foreground diff is the larger.",
        *[f"note: {note}" for note in found.notes]]) + "\n"


def _tests(found: Contributions) -> Iterator[str]:
    head = ("", "comparison", "before", "after", "rises", "shift", f"{100 * (1 - LEVEL):.0f} % interval", "r_rb", "p")
    body = [("" if question.number is None else str(question.number), question.words(), _short(each.before),
             _short(each.after), f"{each.rises} of {each.n}", _short(each.shift),
             "-" if math.isnan(each.low) else f"{_short(each.low)} to {_short(each.high)}",
             f"{each.rank_biserial:+.3f}", f"{each.p:#.4g}") for question, each in found.tests.items()]
    yield from _aligned([head, *body], left=2)
    methods = sorted({each.method for each in found.tests.values()})
    yield ""
    yield "The number before a comparison is that of the thesis's observation (section 6.2)."
    yield f"p: two-sided paired Wilcoxon test ({', '.join(methods)}), not corrected for the number of tests."
    if len(found.classes) < 20:
        yield f"With {len(found.classes)} images no p can fall below {2.0 ** (1 - len(found.classes)):#.4g}."
    yield "before, after: medians, of TL and TL+KD, or of |neg| and pos within one network."
    yield "shift: Hodges-Lehmann estimate, after minus before. r_rb: matched-pairs rank-biserial correlation."
    yield TWO_SCALES


def _aligned(rows: list[tuple[str, ...]], left: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if number < left else cell.rjust(width)
                      for number, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def _short(value: float) -> str:
    """Whole and half numbers in full, as medians of counts are; others to four significant digits."""
    return "-" if math.isnan(value) else f"{value:,.10g}" if (2 * value).is_integer() else f"{value:.4g}"


def _two(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
