"""What a person sees while they wait: nothing but plain lines without a terminal, bars that nest on one."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tlkd import progress

SCRIPT = """
from tlkd import progress

with progress.bars(), progress.bar("outer", 2) as advance:
    for _ in range(2):
        assert list(progress.track(iter("abc"), "inner [/odd] :key:", 3)) == ["a", "b", "c"]
        progress.say("a line about [red] and :key:")
        advance()
print("result")
"""
RICH = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "JUPYTER_COLUMNS")
PLAIN = {key: value for key, value in os.environ.items() if key not in RICH}


@pytest.fixture
def terminal(monkeypatch):
    """A console that takes itself for a terminal, and what was written to it."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, emoji=False, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress, "console", lambda: console)
    yield written
    assert progress._shown == [], "a bar was left on the screen"


def test_without_a_terminal_there_are_plain_lines_on_stderr_and_no_bars():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=PLAIN, check=True)
    assert found.stdout == "result\n"
    assert found.stderr == "a line about [red] and :key:\n" * 2


def test_on_a_real_terminal_there_are_bars():
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, text=True,
                          env={**PLAIN, "TERM": "xterm", "COLUMNS": "100"}) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
            shown += part
        stdout = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    assert stdout == "result\n"
    text = shown.decode()
    assert "outer" in text and "inner [/odd] :key:" in text and "/3" in text and "/2" in text
    assert text.count("a line about [red] and :key:") == 2


def test_a_long_line_stays_one_line(capsys):
    progress.console.cache_clear()
    line = "a path " + "/very/long" * 40 + " :smile: [bold]x[/bold] 3.14 'text'"
    progress.say(line)
    captured = capsys.readouterr()
    assert captured.err == line + "\n" and captured.out == ""


def test_nested_bars_share_one_display(terminal):
    with progress.bars() as outer, progress.bar("runs", 3, done=1) as advance:
        with progress.bars() as inner, progress.bar("epochs", 5):
            assert inner is outer and len(outer.tasks) == 2
        assert [(task.description, task.completed, task.total) for task in outer.tasks] == [("runs", 1, 3)]
        advance()
        assert outer.tasks[0].completed == 2
        assert progress._shown == [outer]
    assert outer.tasks == [] and not outer.live.is_started
    with progress.bars() as later:
        assert later is not outer  # a display that was closed is not written to again


def test_an_error_inside_takes_the_bars_down(terminal):
    with pytest.raises(ZeroDivisionError), progress.bars() as display, progress.bar("runs", 3):
        for _ in progress.track([1, 2], "inner", 2):
            raise ZeroDivisionError
    assert progress._shown == [] and not display.live.is_started
    with progress.bar("again", 1) as advance:
        advance()


def test_a_loop_that_is_left_early_removes_its_bar(terminal):
    with progress.bars() as display:
        for item in progress.track(range(10), "inner", 10):
            if item == 3:
                break
        assert display.tasks == []


def test_a_bar_counts_what_was_done_with_not_what_was_handed_out(terminal):
    with progress.bars() as display:
        seen = [display.tasks[0].completed for _ in progress.track("abc", "letters", 3)]
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("on_terminal", [False, True])
def test_items_are_handed_on_one_at_a_time(on_terminal, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=on_terminal, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress, "console", lambda: console)
    drawn = []

    def numbers():
        for number in range(3):
            drawn.append(number)
            yield number

    handed = []
    for number in progress.track(numbers(), "numbers", 3):
        handed.append(number)
        assert drawn == handed  # nothing was drawn ahead
    assert handed == [0, 1, 2]
    assert (console.file.getvalue() != "") == on_terminal


def test_the_module_is_light():
    """It is imported wherever something takes long; rich itself only where something is shown."""
    script = "import sys, tlkd.progress; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert "tlkd.progress" in found.stdout.split() and not any(m.startswith("rich") for m in found.stdout.split())


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(terminal, monkeypatch):
    """This process as a worker with a clock that stands still: what it told its driver, and how to set the clock."""
    news, clock = [], [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    progress.relay(news.append)
    yield news, clock
    progress.relay(None)


def test_a_worker_tells_where_its_bars_stand_and_shows_nothing(told, terminal):
    news, clock = told
    with progress.bars() as display, progress.bar("epochs", 100, done=10) as advance:
        assert display is None
        for _ in range(50):
            clock[0] += 0.06
            advance()
        assert list(progress.track("ab", "inner", 2)) == ["a", "b"]
    epochs = [each for each in news if each.text == "epochs"]
    assert [each.done for each in epochs] == [10, *range(14, 61, 4), None]  # five times a second, then gone
    assert {each.total for each in epochs[:-1]} == {100}
    assert [(each.done, each.bar) for each in news if each.text == "inner"] == [(0, 1), (None, 1)]
    assert terminal.getvalue() == ""


def test_a_worker_whose_bars_nobody_sees_tells_lines_alone(told, terminal):
    news, clock = told
    progress.relay(news.append, bars=False)
    with progress.bar("epochs", 2) as advance:
        clock[0] += 1
        advance()
        progress.say("a line about [red]")
    assert news == [progress.News("a line about [red]")]
    assert "a line about " in terminal.getvalue()  # which is its log


def test_news_become_rows_of_the_display(terminal):
    rows, others = progress.Rows(), progress.Rows()
    with progress.bars() as display, progress.bar("jobs", 9):
        rows.show(progress.News("epochs", 0, 3, 30), "run tl-0")
        others.show(progress.News("epochs", 0, 5, 30), "run tl-1")
        rows.show(progress.News("teacher lite2", 1, 0, 10), "teacher lite2")
        rows.show(progress.News("epochs", 0, 4, 30), "run tl-0")
        assert [(task.description, task.completed, task.total) for task in display.tasks] == [
            ("jobs", 0, 9), ("run tl-0: epochs", 4, 30), ("run tl-1: epochs", 5, 30), ("teacher lite2", 0, 10)]
        rows.show(progress.News("epochs", 0), "run tl-0")
        rows.show(progress.News("epochs", 0), "run tl-0")  # a bar that is gone may go again
        rows.show(progress.News("a line"), "run tl-0")
        assert [task.description for task in display.tasks] == ["jobs", "run tl-1: epochs", "teacher lite2"]
        rows.clear()
        assert [task.description for task in display.tasks] == ["jobs", "run tl-1: epochs"]
        others.clear()
    assert "a line" in terminal.getvalue()


def test_rows_without_a_display_are_left_out(terminal):
    rows = progress.Rows()
    rows.show(progress.News("epochs", 0, 3, 30), "run tl-0")
    rows.show(progress.News("epochs", 0), "run tl-0")
    rows.clear()
    assert terminal.getvalue() == ""
