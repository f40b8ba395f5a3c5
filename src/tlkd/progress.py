"""What a person sees while they wait: bars with the time left on a terminal, plain lines otherwise, both on stderr.

A worker process shows nothing itself: what its bars and lines have to say goes to its driver as `News`.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")

NEWS_EVERY = 0.2  # seconds: no bar of a worker reports more often


@cache
def console() -> "Console":
    """The console on stderr; results go to stdout."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)  # a path may hold `:key:`


def say(line: str) -> None:
    """Print one plain line on stderr; a worker's driver prints it too."""
    console().print(line, markup=False)
    if _relay is not None:
        _relay.send(News(line))


@dataclass(frozen=True)
class News:
    """What a worker tells its driver: a line to print, or how far one of its bars is (`done` None: it is gone)."""

    text: str
    bar: int | None = None
    done: int | None = None
    total: int = 0


@dataclass(frozen=True)
class Relay:
    """Where a worker's news goes; `send` may lose some but must not block. Without `bars` it is lines alone."""

    send: Callable[[News], None]
    bars: bool
    numbers: Iterator[int]


_relay: Relay | None = None  # set in a worker, None in the process that owns the screen


def relay(send: Callable[[News], None] | None, *, bars: bool = True) -> None:
    """Make this process a worker, whose lines and bars go to `send` as well; None ends that."""
    global _relay  # noqa: PLW0603 (there is one screen, so a process is a worker or it is not)
    _relay = None if send is None else Relay(send, bars, itertools.count())


class Rows:
    """The rows that one worker has in this process's display; the worker's job is named before each."""

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[Progress, TaskID]] = {}

    def show(self, news: News, job: str) -> None:
        """Print a line, or move, add or remove a row; rows are left out where nothing is on the screen."""
        screen = _shown[:1]  # the thread that owns the display may take it down meanwhile
        if news.bar is None:
            say(news.text)
        elif news.done is None:
            self._remove(news.bar)
        elif news.bar in self._tasks:
            progress, task = self._tasks[news.bar]
            progress.update(task, completed=news.done)
        elif screen:
            text = news.text if news.text.startswith(job) else f"{job}: {news.text}"
            self._tasks[news.bar] = (screen[0], screen[0].add_task(text, total=news.total, completed=news.done))

    def clear(self) -> None:
        """Remove them all: the job is over, whether or not its last news arrived."""
        for bar in list(self._tasks):
            self._remove(bar)

    def _remove(self, bar: int) -> None:
        if bar in self._tasks:
            progress, task = self._tasks.pop(bar)
            progress.remove_task(task)


_shown: "list[Progress]" = []  # the bar on the screen now: only one can be live, so inner work adds a line to it


@contextmanager
def bars() -> "Iterator[Progress | None]":
    """A live display with the time left, shared by nested work; None where stderr is no terminal."""
    from rich import progress as rich_progress

    if _relay is not None or not console().is_terminal:
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
    if _relay is not None:
        with _relayed(_relay, description, total, done) as advance:
            yield advance
        return
    with bars() as progress:
        if progress is None:
            yield lambda: None
            return
        task = progress.add_task(description, total=total, completed=done)
        try:
            yield lambda: progress.advance(task)
        finally:
            progress.remove_task(task)


@contextmanager
def _relayed(relay: Relay, description: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A worker's bar: it tells where it starts, where it stands at most every `NEWS_EVERY` seconds, and its end."""
    if not relay.bars:
        yield lambda: None
        return
    number, told = next(relay.numbers), time.monotonic()
    relay.send(News(description, number, done, total))

    def advance() -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told >= NEWS_EVERY:
            told = time.monotonic()
            relay.send(News(description, number, done, total))

    try:
        yield advance
    finally:
        relay.send(News(description, number))


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Hand the items on, showing how far it is and the time left."""
    with bar(description, total) as advance:
        for item in items:
            yield item
            advance()
