"""`tlkd watch`: a study's folder as a screen that keeps up with it, or as one printed frame.

A frame fits the terminal: what there is no room for is counted, and nothing scrolls. Colour only repeats what words and
numbers say.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlkd import wording
from tlkd.outlook import Group, Outlook, Training, Watcher

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇"  # a full one would run into the line above
PLAIN_BLOCKS = "_.-=+*#"  # where the terminal knows no others
ASCII = str.maketrans({"−": "-", "–": "-", "±": "~", "…": "~"})
MOST_FAILURES = 3
STALE = 60.0  # seconds without a change after which a frame says so
GAP = 2  # columns between cells
SHORTEST = 8  # columns that a curve needs to say anything
Cell = tuple[str, str]
"""What stands in a cell, and its style."""


def watch(path: Path, every: float, once: bool, console: "Console") -> None:
    """Show the study in the folder until it is complete; one frame with `once`, or where there is no terminal.

    Raises `BadInput` where no study lies there.
    """
    watcher = Watcher(path)
    if once or not console.is_terminal:
        console.print(frame(watcher.look(), console, None), end="")
        return
    from rich.live import Live

    outlook = watcher.look()
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(frame(outlook, console, console.height), refresh=True)
                if outlook.complete:
                    break
                time.sleep(every)
                outlook = watcher.look()
        except KeyboardInterrupt:
            pass
    console.print(frame(outlook, console, None if outlook.complete else console.height), end="")  # what remains


def frame(outlook: Outlook, console: "Console", height: int | None) -> "RenderableType":
    """One frame: at most `height` lines, or all there is to say."""
    from rich.text import Text

    plain = console.options.ascii_only
    width = max(20, console.width)
    head = _head(outlook, width, plain)
    foot = _foot(outlook)
    training = _training(outlook, width, plain, None if height is None else max(2, height // 4))
    room = None if height is None else height - len(head) - len(foot) - len(training) - 2
    lines = [*head, *_groups(outlook, width, plain, room), *training, *foot]
    lines = lines if height is None else lines[:height - 1]
    for line in lines:
        if plain:  # names too: a terminal without other signs is not to end it
            line.plain = line.plain.translate(ASCII).encode("ascii", "replace").decode()
        line.truncate(width, overflow="ellipsis" if not plain else "crop")
    return Text("\n", no_wrap=True).join([*lines, Text()])


# --- what the study is at ---------------------------------------------------------------------------------------------


def _head(outlook: Outlook, width: int, plain: bool) -> list["Text"]:
    from rich.text import Text

    folder = outlook.found.folder
    counts = {state: sum(each.state == state for each in outlook.found.runs)
              for state in ("done", "running", "failed", "waiting")}
    title = Text.assemble((folder.study.name, "bold"), "  ", (str(folder.path), "dim"))
    bar = _bar(counts["done"] + counts["failed"], len(outlook.found.runs), max(0, min(40, width - 50)), plain)
    words = [(f"{number} {state}", style) for (state, number), style in
             zip(counts.items(), ("green", "cyan", "red", "dim"), strict=True) if number or state == "done"]
    progress = Text.assemble("runs  ", (bar, "green"), "  " if bar else "",
                             f"{counts['done']}/{len(outlook.found.runs)}")
    for text, style in words[1:]:
        progress.append(", ")
        progress.append(text, style)
    facts = [[*_clock(outlook), *_others(outlook)]]
    if 6 + len("   ".join(facts[0])) > width:
        facts = [each for each in (_clock(outlook), _others(outlook)) if each]
    return [title, progress, *(Text("      " + "   ".join(each)) for each in facts if each), Text()]


def _clock(outlook: Outlook) -> list[str]:
    said = [] if outlook.elapsed is None else [f"{'took' if outlook.complete else 'at work for'} "
                                               f"{_time(outlook.elapsed)}"]
    if outlook.left is not None:
        said.append(f"about {_time(outlook.left)} left")
    return said


def _others(outlook: Outlook) -> list[str]:
    """The steps that are no runs: teachers, robustness, explanations."""
    said = []
    for name, steps in (("teachers", outlook.found.teachers), ("robustness", outlook.found.robustness)):
        if steps:
            said.append(f"{name} {sum(each.state == 'done' for each in steps)}/{len(steps)}")
    if outlook.found.folder.study.explanation is not None:
        said.append(f"explained {outlook.explained}")
    if outlook.in_cache:
        said.append(f"{outlook.in_cache} teachers or banks being made")
    return said


# --- groups -----------------------------------------------------------------------------------------------------------


def _groups(outlook: Outlook, width: int, plain: bool, room: int | None) -> list["Text"]:
    """A line an arm and condition; where they are too many, a line a condition; where these are, the busiest."""
    from rich.text import Text

    selection = outlook.found.folder.study.selection
    lines = _long(outlook, width, plain)
    note = f"test {outlook.found.folder.study.verdict.metric.replace('_', ' ')} so far in %, gain over TL in points"
    curves = f"; curves: {selection}, each condition on a scale of its own"
    note += curves if len(note + curves) <= width and any(group.curve for group in outlook.groups) else ""
    if room is not None and len(lines) + 2 > room:
        wide = _matrix(outlook, width)
        lines = wide if wide and len(wide) < len(lines) else lines
    if room is not None and len(lines) + 2 > room:
        keep = max(1, room - 4)
        chosen = _busiest(outlook, lines, keep)
        lines = [*chosen, Text(f"… and {len(lines) - len(chosen)} lines more; --once prints them all", "dim")]
    return [*lines, Text(note, "dim"), Text()]


def _long(outlook: Outlook, width: int, plain: bool) -> list["Text"]:
    several = len({group.condition for group in outlook.groups}) > 1
    head = ["condition", "arm", "", "runs", "mean (sd)" if plain else "mean ± sd", "gain (n)"]
    rows: list[list[Cell]] = [[(cell, "dim") for cell in head]]
    for number, group in enumerate(outlook.groups):
        new = number == 0 or outlook.groups[number - 1].condition != group.condition
        rows.append([(group.condition if new else "", "bold"), (group.label, ""),
                     (_bar(_over(group), group.planned, 8, plain), "green"),
                     (f"{group.states.get('done', 0)}/{group.planned}", ""), (_mean(group, plain), ""),
                     (_gain(group), _sign(group.gain))])
    shown = [several, True, True, True, True, any(group.gains for group in outlook.groups)]
    widths = [max(len(row[column][0]) for row in rows) + GAP for column in range(len(head))]
    room = width - sum(each for each, show in zip(widths, shown, strict=True) if show)
    if room < SHORTEST:  # a curve says more than a bar
        shown[2], room = False, room + widths[2]
    span, scales = min(30, room) if room >= SHORTEST else 0, _scales(outlook)
    rows = [[cell for cell, show in zip(row, shown, strict=True) if show] for row in rows]
    for row, sparks in zip(rows, [("curve", "dim"), *((sparkline(group.curve, group.epochs, span, scales[
            group.condition], plain), "cyan") for group in outlook.groups)], strict=True):
        row.append(sparks if span else ("", ""))
    return _table(rows, width, left=2 if several else 1)


def _matrix(outlook: Outlook, width: int) -> list["Text"]:
    """A line a condition, a column an arm: as much of each cell as there is room for; empty where there is too little.
    """
    arms = list(dict.fromkeys(group.arm.name for group in outlook.groups))
    labels = {group.arm.name: group.label for group in outlook.groups}
    cells = {(group.condition, group.arm.name): group for group in outlook.groups}
    conditions = list(dict.fromkeys(group.condition for group in outlook.groups))
    for parts in (3, 2, 1):
        rows: list[list[Cell]] = [[("runs", "dim"), *((labels[arm], "dim") for arm in arms)]]
        for condition in conditions:
            rows.append([(condition, "bold"), *(_cell(cells.get((condition, arm)), parts) for arm in arms)])
        if sum(max(len(row[column][0]) for row in rows) + GAP for column in range(len(arms) + 1)) - GAP <= width:
            return _table(rows, width, left=1)
    return []


def _cell(group: Group | None, parts: int) -> Cell:
    if group is None:
        return ("-", "dim")
    said = [f"{group.states.get('done', 0)}/{group.planned}"]
    if parts > 1 and group.accuracies:
        said.append(_percent(group.mean))
    if parts > 2 and group.gains:
        said.append(wording.gain(group.gain, 1))
    failed, running = group.states.get("failed", 0), group.states.get("running", 0)
    return (" ".join(said) + ("!" if failed else ""),
            "red" if failed else "cyan" if running else "" if group.accuracies else "dim")


def _busiest(outlook: Outlook, lines: Sequence["Text"], keep: int) -> list["Text"]:
    """The heading and the lines around where the work is now."""
    by_line = len(lines) - 1 == len(outlook.groups)
    conditions = list(dict.fromkeys(group.condition for group in outlook.groups))
    at = 0
    for number, group in enumerate(outlook.groups):
        if group.states.get("running") or (not at and group.states.get("waiting")):
            at = number if by_line else conditions.index(group.condition)
            break
    start = min(max(0, at - keep // 2), max(0, len(lines) - 1 - keep))
    return [lines[0], *lines[1 + start:1 + start + keep]]


def _over(group: Group) -> int:
    return group.states.get("done", 0) + group.states.get("failed", 0)


def _mean(group: Group, plain: bool) -> str:
    if not group.accuracies:
        return ""
    spread = "" if math.isnan(group.sd) else f" ({_percent(group.sd)})" if plain else f" ± {_percent(group.sd)}"
    return _percent(group.mean) + spread


def _gain(group: Group) -> str:
    return f"{wording.gain(group.gain)} ({len(group.gains)})" if group.gains else ""


def _sign(gain: float) -> str:
    return "" if math.isnan(gain) or gain == 0 else "green" if gain > 0 else "red"


def _scales(outlook: Outlook) -> dict[str, tuple[float, float]]:
    """The lowest and highest accuracy of each condition's curves: its arms, and its runs, can be compared."""
    values: dict[str, list[float]] = {}
    for group in outlook.groups:
        values.setdefault(group.condition, []).extend(group.curve)
    for each in outlook.training:
        values.setdefault(each.run.condition.name, []).extend(each.accuracies)
    return {name: (min(found), max(found)) if found else (0.0, 0.0) for name, found in values.items()}


# --- what is in training, and what is over ----------------------------------------------------------------------------


def _training(outlook: Outlook, width: int, plain: bool, most: int | None) -> list["Text"]:
    from rich.text import Text

    shown = outlook.training if most is None else outlook.training[:most]
    if not shown:
        return []
    scales, span = _scales(outlook), max(0, min(30, width - 56))
    rows = [_running(each, span, scales[each.run.condition.name], plain) for each in shown]
    lines = _table(rows, width, left=1)
    if len(shown) < len(outlook.training):
        lines.append(Text(f"… and {len(outlook.training) - len(shown)} more in training", "dim"))
    return [*lines, Text()]


def _running(each: Training, span: int, scale: tuple[float, float], plain: bool) -> list[Cell]:
    epochs = len(each.curve.epochs)
    seconds = each.curve.values("seconds")
    return [(each.run.run_id, "cyan"), (f"epoch {epochs}/{each.epochs}", ""),
            (_percent(each.accuracies[-1]) if each.accuracies else "", ""),
            (f"{wording.duration(sum(seconds) / len(seconds))}/epoch" if seconds else "", "dim"),
            *([(sparkline(each.accuracies, each.epochs, span, scale, plain), "cyan")] if span >= SHORTEST else [])]


def _foot(outlook: Outlook) -> list["Text"]:
    """The latest results, failures, and what to do."""
    from rich.text import Text

    lines = []
    for each in outlook.results[:1]:
        lines.append(Text.assemble(("latest  ", "dim"), f"{each.run.run_id}  {_percent(each.accuracy)} %  ",
                                   (f"in {wording.duration(each.seconds)}", "dim")))
    for failed in outlook.failed[:MOST_FAILURES]:
        lines.append(Text.assemble(("failed  ", "red"), f"{failed.name}: {failed.why}"))
    if len(outlook.failed) > MOST_FAILURES:
        lines.append(Text(f"        and {len(outlook.failed) - MOST_FAILURES} more: tlkd status "
                          f"{outlook.found.folder.path}"))
    lines.append(Text(_advice(outlook), "dim"))
    return lines


def _advice(outlook: Outlook) -> str:
    path = outlook.found.folder.path
    if outlook.complete:
        return f"complete: {path / 'report.html'}"
    if all(each.state in ("done", "failed") for each in outlook.found.steps):
        return "all runs are over; explanations and report follow"
    if not outlook.training and not outlook.in_cache and outlook.quiet > STALE:
        return f"no change for {_time(outlook.quiet)}; if it was stopped, start it again"
    return "Ctrl-C ends this view, not the study"


# --- small things -----------------------------------------------------------------------------------------------------


def sparkline(values: Sequence[float], epochs: int, width: int, scale: tuple[float, float], plain: bool = False) -> str:
    """A curve in at most `width` signs, as far along as its values are of `epochs`; `scale` is its lowest and highest.
    """
    width = min(width, epochs)
    blocks, (low, high) = PLAIN_BLOCKS if plain else BLOCKS, scale
    signs = []
    for place in range(width):
        last = math.ceil((place + 1) * epochs / width) - 1  # of the epochs that this sign stands for
        if last >= len(values):
            break
        part = (values[last] - low) / (high - low) if high > low else 0.5
        signs.append(blocks[round(min(1.0, max(0.0, part)) * (len(blocks) - 1))])
    return "".join(signs)


def _bar(done: int, of: int, width: int, plain: bool) -> str:
    filled = width if done == of else min(width - 1, round(width * done / of)) if of else 0
    return ("#" if plain else "━") * filled + ("." if plain else "┄") * (width - filled)


def _percent(fraction: float) -> str:
    return wording.percent(fraction, 1)


def _time(seconds: float) -> str:
    """Seconds as a clock shows them: 0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _table(rows: Sequence[Sequence[Cell]], width: int, left: int) -> list["Text"]:
    """Rows in columns: the first `left` and the last begin under each other, the others end so; names give way."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    count = len(rows[0])
    widths = [max(cell_len(row[column][0]) for row in rows) for column in range(count)]
    for column in range(left):
        widths[column] -= max(0, min(widths[column] - 8, sum(widths) + GAP * (count - 1) - width))
    lines = []
    for row in rows:
        line = Text()
        for column, (text, style) in enumerate(row):
            shown = text if cell_len(text) <= widths[column] else set_cell_size(text, widths[column] - 1) + "…"
            blank = " " * (widths[column] - cell_len(shown))
            right = left <= column < count - 1
            line.append(blank if right else "")
            line.append(shown, style)
            line.append(("" if right else blank) + (" " * GAP if column < count - 1 else ""))
        line.rstrip()
        lines.append(line)
    return lines
