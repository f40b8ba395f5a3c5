"""`tlkd plan` in words: nothing is written into the folder, mistakes are those of a run, what is there counts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hard_studies import hard_study
from tlkd import planning
from tlkd.engine import Inline
from tlkd.errors import BadInput
from tlkd.estimate import bytes_in
from tlkd.specs import Study
from tlkd.study import run_study

CPU = torch.device("cpu")


def drawn_up(study: Study, out: Path) -> str:
    return planning.draw_up(study, out, CPU, Inline, 1, planning.time.perf_counter())


def rows(text: str) -> dict[str, str]:
    """What stands behind each row's first words."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition("  ")
        found[name] = rest.strip()
    return found


def in_bytes(words: str) -> float:
    number, unit = words.split()[:2]
    return float(number) * {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit.rstrip(",")]


def test_a_plan_before_and_after_its_study(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    study, out = hard_study(shapes_folder, "seeds=[0, 1]"), tmp_path / "out"
    text = drawn_up(study, out)
    assert not out.exists()
    assert [path.name for path in own_cache.iterdir() if path.name.startswith(".plan")] == []
    assert {path.name for path in own_cache.iterdir()} <= {"images", "archives"}
    found = rows(text)
    assert found["study"] == "hard: 26 runs, 4 more are left out"
    assert found["5 arms"].startswith("tl, kd (teacher lite1), kd_clean (teacher clean1), smooth")
    assert found["3 conditions"] == "clean, half, black"
    assert found["2 seeds"] == "0 and 1"
    assert "decoded into the cache just now" in found["images"]
    assert "0 done, 0 failed, 26 to do" in text
    assert "0 in the folder, 0 in the cache, 0 failed, of 6" in text
    assert "robustness  0 done, 26 to do" in text
    assert found["features of student at 32 px"].split()[:2] == ["0", "1"]
    assert found["logits of teacher lite1"].split()[:2] == ["0", "5"]
    assert "total, 1 job" in found and "not estimated" not in text

    assert run_study(study, out, CPU) == {}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    after = drawn_up(study, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "26 done, 0 failed, 0 to do" in after
    assert "6 in the folder, 6 in the cache, 0 failed, of 6" in after
    assert "26 done, 0 to do" in after
    assert rows(after)["logits of teacher lite1"].split()[:2] == ["5", "0"]
    assert "nothing is left to do" in after
    assert "total" not in after
    cache = sum(bytes_in(own_cache / kind) for kind in ("features", "logits", "teachers"))
    left = sum(bytes_in(out / kind) for kind in ("runs", "teachers", "robustness"))
    more, there = found["disk"].removeprefix("about ").split(" more in the cache, ")
    assert in_bytes(more) == pytest.approx(cache, rel=0.1)
    assert in_bytes(there) == pytest.approx(left, rel=0.25)


def test_what_the_cache_holds_counts_as_there(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    study = hard_study(shapes_folder, "robustness=[]", "conditions=[{name: clean}]", "exclude=[]")
    assert run_study(study, tmp_path / "one", CPU) == {}
    text = drawn_up(study, tmp_path / "two")
    found = rows(text)
    assert "0 in the folder, 2 in the cache, 0 failed, of 2" in text
    assert "(in the cache)" in found["images"]
    assert "banks" not in found and "teachers" not in text[text.index("estimate"):]
    assert found["disk"].startswith("about 0 bytes more in the cache")
    assert "0 done, 0 failed, 5 to do" in text


def test_more_robustness_is_more_to_do(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    wanted, out = ("conditions=[{name: clean}]", "exclude=[]", "arms=[{name: tl, kind: tl}]"), tmp_path / "out"
    assert run_study(hard_study(shapes_folder, *wanted), out, CPU) == {}
    text = drawn_up(hard_study(shapes_folder, *wanted, "robustness.0.sizes=[0.5, 0.25]"), out)
    assert "1 done, 0 failed, 0 to do" in text
    assert "robustness  0 done, 1 to do" in text
    assert rows(text)["features of student at 32 px, distorted test images"].split()[:2] == ["1", "1"]
    left = rows(text[text.index("estimate"):])
    assert {"banks", "robustness"} <= set(left)
    assert not {"runs", "teachers"} & set(left)


def test_a_failed_run_is_told_apart(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = hard_study(shapes_folder, "robustness=[]", "conditions=[{name: clean}]", "exclude=[]")
    run_study(study, out, CPU)
    (out / "runs" / "kd-clean-0").rename(tmp_path / "aside")
    (out / "failures").mkdir(exist_ok=True)
    (out / "failures" / "kd-clean-0.txt").write_text("epoch 1, step 2: the loss is nan\n")
    text = drawn_up(study, out)
    assert "4 done, 1 failed, 0 to do (what failed is tried again with --retry-failed)" in text
    assert "nothing is left to do" in text


@pytest.mark.parametrize(("assignment", "said"), [
    ("student.model=packaged:efficientnet_lite9", "student.model"),
    ("data.source=folder:/nowhere/at/all", "data.source"),
    ("conditions.half.train_fraction=0.001", "conditions.half.train_fraction"),
])
def test_a_plan_refuses_what_a_run_refuses(shapes_folder: Path, own_cache: Path, tmp_path: Path, assignment: str,
                                           said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        drawn_up(hard_study(shapes_folder, assignment), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_studys_folder_is_refused(shapes_folder: Path, own_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty and holds no study"):
        drawn_up(hard_study(shapes_folder), tmp_path / "out")


@pytest.mark.parametrize(("names", "said"), [
    (["clean"], "clean"),
    (["clean", "few_0_01", "few_0_05", "few_1", "noise_0_2"], "clean, few (3: few_0_01 to few_1), noise_0_2"),
    (["few_2_black", "few_3_black"], "few_2_black, few_3_black"),
])
def test_conditions_of_a_grid_are_told_of_together(names: list[str], said: str) -> None:
    assert planning._grouped(names) == said


@pytest.mark.parametrize(("low", "high", "said"), [
    (0.2, 0.9, "under 1 s"), (10, 11, "about 11 s"), (10, 20, "10 s to 20 s"), (80, 130, "80 s to 2.2 min"),
    (119, 121, "about 2 min"), (3600, 9000, "60 min to 2.5 h"), (100000, 400000, "28 h to 110 h"),
])
def test_times_are_rough(low: float, high: float, said: str) -> None:
    assert planning._range(np.array([low, high])) == said
