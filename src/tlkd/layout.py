"""What the page is made of: tables of ready words, the evidence behind a verdict, and words that several share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tlkd.statistics import Interval
from tlkd.wording import NONE, ends, number, percent

LONGEST = 30  # rows; of more, tables show the first and the last ten
SHOWN = 10
MOST = 200  # rows of any table on a page; its CSV file holds all
ENDPOINTS = {"accuracy": "test accuracy", "balanced_accuracy": "balanced test accuracy"}


@dataclass(frozen=True)
class Table:
    """A table on the page: `heads` and `rows` of ready words; the first `words` columns are text, the rest numbers."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    file: str  # the CSV that holds its numbers
    words: int = 1
    totals: int = 0  # how many of the last rows are sums or means of those above
    note: str = ""
    groups: tuple[tuple[str, int], ...] = ()  # a row above the heads: a word, and how many columns it stands over
    dense: bool = False  # many columns: set smaller
    wraps: bool = False  # the second column holds long words, which may break
    breaks: bool = False  # words may break anywhere: many columns of long ones

    @property
    def shown(self) -> tuple[tuple[str, ...], ...]:
        """The rows that a page holds: of very many the first and the last, so that it opens in any browser."""
        if len(self.rows) <= MOST:
            return self.rows
        first, last = self.rows[:MOST // 2], self.rows[-MOST // 2:]
        where = f" in {self.file}" if self.file else ""
        gap = (f"\N{HORIZONTAL ELLIPSIS} {len(self.rows) - len(first) - len(last):,} more{where}",
               *[""] * (len(self.heads) - 1))
        return (*first, gap, *last)


@dataclass(frozen=True)
class Evidence:
    """The verdict on one arm: its word, one plain sentence, and what stands behind it, a paragraph each."""

    label: str
    word: str
    sentence: str
    details: tuple[str, ...]


def shortened(caption: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, file: str, totals: int,
              note: str, longest: int = LONGEST, groups: tuple[tuple[str, int], ...] = ()) -> Table:
    """A table whose middle is left out where it has too many rows."""
    body, last = list(rows[:len(rows) - totals]), rows[len(rows) - totals:]
    if len(body) > longest:
        left_out = len(body) - 2 * SHOWN
        gap = (f"\N{HORIZONTAL ELLIPSIS} {left_out} more in {file}", *[""] * (len(heads) - 1))
        body = [*body[:SHOWN], gap, *body[-SHOWN:]]
    return Table(caption, heads, (*body, *last), file, totals=totals, note=note, groups=groups,
                 dense=bool(groups))


def mean_sd(values: Any, nats: bool = False) -> str:
    """A mean and its sd over seeds, in percent, or as they are where they are `nats`."""
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan
    texts = (number(mean, 3), number(sd, 3)) if nats else (percent(mean), percent(sd))
    return f"{texts[0]} \N{PLUS-MINUS SIGN} {texts[1]}" if math.isfinite(sd) else texts[0]


def around(interval: Interval) -> str:
    """An interval of a difference of fractions in points, a dash where there is none."""
    return ends(interval.low, interval.high) if math.isfinite(interval.low) else NONE
