"""What the proofs share: their options, rates with their limits, and a block of docs/trust.md that a proof writes."""

import argparse
import math
import os
import platform
import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "trust.md"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"  # where the project's own machines have images


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that every proof has: `--short` for CI, `--write` for the page, `--seed`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a minute or less: shows that it works, proves little")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/trust.md")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def limits(hits: int, trials: int, level: float = 0.05) -> tuple[float, float]:
    """Exact (Clopper and Pearson, 1934) limits of a rate, each one-sided at `level`."""
    from scipy.stats import beta

    low = 0.0 if hits == 0 else float(beta.ppf(level, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - level, hits + 1, trials - hits))
    return low, high


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def machine() -> str:
    """The processor's name and what is installed, for a line under a table."""
    import torch

    named = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if os.name == "posix" else None
    name = named[1] if named else platform.processor()
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    return f"{name}, {os.cpu_count()} cores, {versions}"


def publish(name: str, text: str, command: str, write: bool) -> None:
    """Print a block; with `write`, put it into the page between its two marks, with the command and the machine."""
    print(text, flush=True)
    if not write:
        return
    block = f"{text}\n\n`{command}` ({machine()})"
    page = PAGE.read_text()
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{PAGE}: has no block {name!r}: <!-- begin {name} --> and <!-- end {name} -->")
    PAGE.write_text(pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", page))


def points(value: float) -> str:
    """A fraction in points of a hundred."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"
