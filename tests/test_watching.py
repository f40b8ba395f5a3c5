"""`tlkd watch`: frames that fit the terminal and say the same without colour; a screen that ends clean."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import study_folders
from sealed_folders import lay_down
from test_standing import locked
from test_underway import checkpoint
from tlkd import store
from tlkd.outlook import Watcher
from tlkd.watching import frame, sparkline, watch


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of 130 runs in 65 groups, a part of them finished."""
    conditions = [{"name": "clean"}, *({"name": f"few{part}", "train_fraction": part / 100} for part in range(1, 13))]
    arms = [{"name": "tl", "kind": "tl"}, {"name": "self", "kind": "self"},
            *({"name": f"kd{weight}", "kind": "tl_kd", "teacher": "lite1", "soft_weight": weight / 10}
              for weight in (1, 5, 9))]
    missing = tuple(f"{arm['name']}-few{part}-{seed}" for arm in arms for part in range(8, 13) for seed in (0, 1))
    return study_folders.lay_down(tmp_path_factory.mktemp("many") / "out", seeds=2, classes=("a", "b"), per_class=20,
                                  conditions=conditions, arms=arms, missing=missing, failed=("kd5-few3-1",)).path


def shown(path: Path, width: int, height: int | None, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height or 25, force_terminal=False, emoji=False, highlight=False)
    console.print(frame(Watcher(path).look(), console, height), end="")
    file.seek(0)
    return file.read().splitlines()


def test_a_frame_tells_results_gains_epochs_and_failures(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", "seeds=[0,1,2]", waiting=("kd-clean-1", "kd-clean-2"), failed=("tl-clean-2",))
    run = next(run for run in folder.runs() if run.run_id == "kd-clean-1")
    checkpoint(folder.work_path(run) / "abc", 2, time.time())
    with locked(folder.run_path(run)):
        text = "\n".join(shown(folder.path, 100, None))
    results = {run.run_id: 100 * folder.result(run)["test_accuracy"] for run in folder.finished()}
    assert re.search(r"3/6, 1 running, 1 failed, 1 waiting", text)
    assert re.search(rf"TL +━+┄* +2/3 +{(results['tl-clean-0'] + results['tl-clean-1']) / 2:.1f} ± \d+\.\d", text)
    gain = results["kd-clean-0"] - results["tl-clean-0"]
    assert re.search(rf"TL\+KD +━+┄+ +1/3 +{results['kd-clean-0']:.1f} +[+−]?{abs(gain):.2f} \(1\)", text)
    assert re.search(r"kd-clean-1  epoch 2/3  2\.0  0\.50 s/epoch", text)
    assert "failed  tl-clean-2: epoch 2, step 5: the loss is nan" in text
    assert "teachers 1/1" in text


@pytest.mark.parametrize(("width", "height"), [(60, 24), (60, 12), (80, 24), (100, 30), (200, 50), (40, 10), (20, 5)])
def test_a_frame_fits_the_terminal(many: Path, width: int, height: int) -> None:
    lines = shown(many, width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("planted")
    assert "79/130" in lines[1]


def test_what_there_is_no_room_for_is_counted(many: Path) -> None:
    lines = shown(many, 60, 24)
    (more,) = [line for line in lines if "lines more" in line]
    rows = [line for line in lines if re.search(r" \d/2( |$)", line)]
    assert int(re.findall(r"\d+", more)[0]) + len(rows) == 65
    assert any(line.startswith("few8") for line in lines)  # where the work is


def test_all_groups_fit_as_a_line_a_condition(many: Path) -> None:
    lines = shown(many, 110, 30)
    rows = {line.split()[0]: line for line in lines if re.match(r"(clean|few\d+) ", line)}
    assert len(rows) == 13
    assert re.search(r"1/2 \d+\.\d \+\d+\.\d!", rows["few3"])  # one of it failed
    assert "lines more" not in "\n".join(lines)


def test_all_groups_are_printed_where_nothing_limits_the_height(many: Path) -> None:
    assert len([line for line in shown(many, 100, None) if re.search(r" \d/2( |$)", line)]) == 65


def test_a_terminal_without_such_signs_gets_others(many: Path) -> None:
    text = "\n".join(shown(many, 100, None, "ascii"))
    assert re.search(r"#+\.* +2/2 +\d+\.\d \(\d+\.\d\)", text)


def test_no_sign_that_a_terminal_lacks_ends_the_view(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "études − 1", "seeds=[0,1]", waiting=("kd-clean-1",))
    text = "\n".join(shown(folder.path, 200, None, "ascii"))
    assert "?tudes - 1" in text


@pytest.mark.parametrize(("values", "expected"), [
    ([0.0, 0.5, 1.0], "▁▄▇"), ([], ""), ([0.2] * 2, "▂▂"), ([0.0, 2.0], "▁▇")])
def test_a_curve_in_signs(values: list[float], expected: str) -> None:
    assert sparkline(values, 3, 10, (0.0, 1.0)) == expected


def test_a_long_curve_is_as_far_along_as_its_training() -> None:
    assert sparkline([0.1] * 50, 100, 10, (0.0, 1.0)) == "▂" * 5
    assert sparkline([0.1] * 100, 100, 10, (0.0, 1.0)) == "▂" * 10
    assert sparkline([0.5] * 3, 3, 10, (0.5, 0.5)) == "▄" * 3


def test_it_ends_by_itself_when_the_study_is_complete(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out")
    store.replace_text(folder.path / "report.html", "a report")
    file = io.StringIO()
    watch(folder.path, 0.1, False, Console(file=file, width=80, height=24, force_terminal=True))
    text = file.getvalue()
    assert text.index("\x1b[?1049h") < text.index("\x1b[?1049l") < text.rindex("complete: ")  # it stays on the screen


def test_ctrl_c_leaves_a_clean_terminal(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "out", waiting=("kd-clean-1",))
    mine, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "tlkd", "watch", str(folder.path), "--every", "0.2"],
                               stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said, until = b"", time.monotonic() + 60
    while b"Ctrl-C ends this view" not in said and time.monotonic() < until:
        said += os.read(mine, 4096) if select.select([mine], [], [], 1)[0] else b""
    process.send_signal(signal.SIGINT)
    while time.monotonic() < until:
        try:
            said += os.read(mine, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait(10) == 0
    assert said.index(b"\x1b[?1049h") < said.rindex(b"\x1b[?1049l")
    assert said.rindex(b"\x1b[?25l") < said.rindex(b"\x1b[?25h")  # the cursor is back
    assert b"Traceback" not in said
    os.close(mine)
