"""What a person sees while they wait: bars with the time left on a terminal, plain lines otherwise, both on stderr."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")


@cache
def console() -> "Console":
    """The console on stderr; results go to stdout."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)  # a path may hold `:key:`


def say(line: str) -> None:
    """Print one plain line on stderr."""
    console().print(line, markup=False)


_shown: "list[Progress]" = []  # the bar on the screen now: only one can be live, so inner work adds a line to it


@contextmanager
def bars() -> "Iterator[Progress | None]":
    """A live display with the time left, shared by nested work; None where stderr is no terminal."""
    from rich import progress as rich_progress

    if not console().is_terminal:
        yield None
    elif _shown:
        yield _shown[0]
    else:
        columns = (rich_progress.TextColumn("{task.description}", markup=False), rich_progress.BarColumn(),
                   rich_progress.MofNCompleteColumn(), rich_progress.TimeElapsedColumn(),
                   rich_progress.TextColumn("left"), rich_progress.TimeRemainingColumn())
        with rich_progress.Progress(*columns, console=console(), transient=True) as progress:
            _shown.append(progress)
            try:
                yield progress
            finally:
                _shown.clear()


@contextmanager
def bar(description: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar of `total` steps; call what it yields after each. Silent where stderr is no terminal."""
    with bars() as progress:
        if progress is None:
            yield lambda: None
            return
        task = progress.add_task(description, total=total, completed=done)
        try:
            yield lambda: progress.advance(task)
        finally:
            progress.remove_task(task)


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Hand the items on, showing how far it is and the time left."""
    with bar(description, total) as advance:
        for item in items:
            yield item
            advance()
