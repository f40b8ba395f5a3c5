"""tlkd from Python: names that come late, studies out of anything, results as frames, and the examples in the docs."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import tlkd
from study_folders import lay_down
from tlkd.api import Results

ROOT = Path(__file__).parent.parent
SMALL = {"name": "small", "data": {"source": "mnist5k"}, "student": {"model": "timm:resnet18"},
         "teachers": {"big": {"model": "timm:resnet50"}},
         "arms": [{"name": "tl", "kind": "tl"}, {"name": "tl_kd", "kind": "tl_kd", "teacher": "big"}]}


def in_new_process(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    (folder / "script.py").write_text(textwrap.dedent(script))
    return subprocess.run([sys.executable, "script.py"], cwd=folder, check=False, capture_output=True, text=True,
                          timeout=240, env={**os.environ, "TLKD_CACHE": str(folder / "cache")})


# --- the names --------------------------------------------------------------------------------------------------------


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(tlkd, name) is not None for name in tlkd.__all__)
    assert set(dir(tlkd)) == {*tlkd.__all__, "__version__"}
    assert tlkd.regions.measure and tlkd.regions.__name__ == "tlkd.regions"
    with pytest.raises(AttributeError, match="module 'tlkd' has no attribute 'run'"):
        _ = tlkd.run


def test_names_come_late_and_torch_later(tmp_path: Path) -> None:
    lay_down(tmp_path / "out", seeds=2, per_class=4, epochs=2)
    done = in_new_process("""
        import sys, time
        started = time.perf_counter()
        import tlkd
        assert time.perf_counter() - started < 0.1
        heavy = {"torch", "pandas", "numpy", "pydantic"}
        assert not heavy & set(sys.modules)
        results = tlkd.open_results("out")
        assert tlkd.load_study("quickstart", {"seeds": [1]}).seeds == (1,)
        assert len(results.runs if (results.path / "results.csv").exists() else results.curves) and results.summary
        assert {"pandas", "numpy"} <= set(sys.modules) and "torch" not in sys.modules
        tlkd.distillation_loss
        assert "torch" in sys.modules
    """, tmp_path)
    assert done.returncode == 0, done.stderr


# --- studies ----------------------------------------------------------------------------------------------------------


def test_a_study_comes_out_of_a_name_a_file_a_mapping_or_a_study(tmp_path: Path) -> None:
    packaged = tlkd.load_study("quickstart")
    assert packaged.name == "quickstart"
    (tmp_path / "mine.yaml").write_text("{name: mine, data: {source: mnist5k}, student: {model: 'timm:resnet18'}, "
                                        "arms: [{name: tl, kind: tl}]}")
    assert tlkd.load_study(tmp_path / "mine.yaml").name == "mine"
    own = tlkd.load_study(SMALL)
    assert own.arms[1].temperature == 10
    assert tlkd.load_study(own) == own
    again = tlkd.load_study(own, {"arms.tl_kd.temperature": 3, "seeds": range(4), "data.root": tmp_path,
                                  "training.learning_rate": np.float64(0.5)})
    assert (again.arms[1].temperature, again.seeds, again.data.root) == (3, (0, 1, 2, 3), str(tmp_path))
    assert again.training.learning_rate == 0.5 and again.teachers["big"].training.learning_rate == 0.01
    assert SMALL["arms"][1] == {"name": "tl_kd", "kind": "tl_kd", "teacher": "big"}  # the mapping is left as it was


@pytest.mark.parametrize(("study", "changes", "said"), [
    ("quikstart", {}, "quikstart: neither a file nor a packaged study; did you mean 'quickstart'"),
    ({"name": "x"}, {}, "study: data: this key is missing"),
    ({**SMALL, "seeds": object()}, {}, "study: found a object; allowed: what YAML can say"),
    (SMALL, {"training.epoch": 1}, "study: training.epoch: unknown key; did you mean 'epochs'?"),
    (SMALL, {"arms.kd.temperature": 1}, "changes: arms.kd.temperature: arms has no item 'kd'; did you mean 'tl_kd'"),
    (SMALL, {"seeds": 3}, "study: seeds: found 3; expected a list"),
    (SMALL, {"arms.tl.kind.x": 3}, "changes: arms.tl.kind.x: arms.tl.kind is 'tl', which has no key 'x'"),
    (SMALL, {".": 3}, "changes: .: expected KEY.PATH"),
    (SMALL, "seeds=[0]", "changes: found a str; allowed: a mapping"),
])
def test_what_does_not_fit_is_said_in_one_line(study: object, changes: dict[str, object], said: str) -> None:
    with pytest.raises(tlkd.BadInput) as caught:
        tlkd.load_study(study, changes)  # type: ignore[arg-type]
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = lay_down(tmp_path_factory.mktemp("results"), seeds=10, epochs=6, failed=("tl_kd-clean-9",))
    return tlkd.open_results(folder.path)


def test_results_are_frames(results: Results) -> None:
    assert repr(results).endswith("19 of 20 runs>")
    assert len(results.curves) == 19 * 6
    assert list(results.curves.columns[:5]) == ["run_id", "arm", "condition", "seed", "epoch"]
    assert results.gains["seed"].tolist() == list(range(9))
    assert results.verdicts.loc[0, "word"] == "supported"
    assert results.verdicts.loc[0, "gain"] == pytest.approx(results.gains["gain"].mean())
    assert {"metrics", "verdicts", "classes", "curves", "settings"} <= set(results.tables)
    assert results.failures == {"tl_kd-clean-9": "epoch 3, step 4: the loss is nan"}
    assert results.summary.startswith("The teacher helps")


def test_predictions_bear_the_metrics_out(results: Results) -> None:
    for who in ("tl_kd-clean-3", "lite1"):
        frame = results.predictions(who)
        assert frame["correct"].equals(frame["label"] == frame["predicted"])
        logits = frame[[name for name in frame if name.startswith("logit_")]]
        assert (logits.idxmax(axis=1).str.removeprefix("logit_") == frame["predicted"]).all()
    gains = results.gains.set_index("seed")
    assert results.predictions("tl_kd-clean-3")["correct"].mean() == pytest.approx(gains.loc[3, "value"])
    with pytest.raises(tlkd.BadInput, match=r"found 'tl-clean-11'; did you mean 'tl-clean-1'.*14 more"):
        results.predictions("tl-clean-11")


def test_a_folder_without_a_study_or_without_results_is_refused(tmp_path: Path, results: Results) -> None:
    with pytest.raises(tlkd.BadInput, match="no study lies here"):
        tlkd.open_results(tmp_path)
    with pytest.raises(tlkd.BadInput, match="no results yet"):
        _ = results.runs  # its results.csv was never written
    empty = tlkd.open_results(lay_down(tmp_path / "s", seeds=1, missing=("tl-clean-0", "tl_kd-clean-0")).path)
    assert empty.curves.empty and empty.verdicts.empty


@pytest.mark.parametrize(("options", "said"), [
    ({"jobs": 0}, "jobs: found 0"), ({"jobs": True}, "jobs: found True"), ({"device": "tpu"}, "device: found 'tpu'"),
    ({"track": "mlfow"}, "track: found 'mlfow'; did you mean 'mlflow'"),
])
def test_a_wrong_option_is_refused_before_anything_is_written(tmp_path: Path, options: dict[str, object],
                                                              said: str) -> None:
    with pytest.raises(tlkd.BadInput, match=said):
        tlkd.run_study(SMALL, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# --- scripts and examples ---------------------------------------------------------------------------------------------


def test_workers_do_not_run_the_script_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "labour.py").write_text("from tlkd.engine import Outcome\n\n\ndef work(context, job):\n"
                                        "    return Outcome(job, value=context + job)\n")
    done = in_new_process("""
        from pathlib import Path
        from labour import work
        from tlkd.engine import Job, run_all
        from tlkd.workers import Local
        with Path("begun").open("a") as file:
            file.write("begun\\n")
        said = []
        executor = Local(work, "did ", 2, Path("logs"))
        run_all([Job("a"), Job("b")], executor, lambda outcome: said.append(outcome.value or outcome.failure))
        executor.close()
        print(sorted(said))
    """, tmp_path)
    assert (done.stdout, done.returncode) == ("['did a', 'did b']\n", 0), done.stderr
    assert (tmp_path / "begun").read_text() == "begun\n"


def test_work_that_stands_in_the_script_is_found_there(tmp_path: Path) -> None:
    done = in_new_process("""
        from pathlib import Path
        from tlkd.engine import Job, Outcome, run_all
        from tlkd.workers import Local

        def work(context, job):
            return Outcome(job, value=context + job)

        if __name__ == "__main__":
            executor = Local(work, "did ", 1, Path("logs"))
            run_all([Job("a")], executor, lambda outcome: print(outcome.value or outcome.failure))
            executor.close()
    """, tmp_path)
    assert (done.stdout, done.returncode) == ("did a\n", 0), done.stderr


def test_the_examples_in_the_docs_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 8
    done = in_new_process("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<tlkd.Results 'digits' in 'out/digits': 6 of 6 runs>" in done.stdout
    assert "training.epoch: unknown key; did you mean 'epochs'?" in done.stdout
    assert (tmp_path / "out" / "digits" / "report.html").is_file()
