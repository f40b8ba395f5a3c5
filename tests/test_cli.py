"""The command line: exit codes, one line for every mistake, no traceback, and help that is quick and shows how."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer

import tlkd
from sealed_folders import lay_down, small_raw
from tlkd import cli
from tlkd.reading import dump_yaml, packaged_studies, parse_yaml, validate

COMMANDS = ["run", "plan", "tune", "studies", "status", "watch", "report", "compare", "verify", "annotate", "explain",
            "export", "predict", "regions", "models", "doctor"]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run `tlkd` with these words in this process, in an empty folder: (exit code, stdout, stderr)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "cache"))

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tlkd", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, plain(out), plain(err)

    return command


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return lay_down(tmp_path / "whole").path


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def refused(result: tuple[int, str, str]) -> str:
    """What bad input is answered with: exit code 2, nothing on stdout, one line on stderr."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("tlkd: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err.removeprefix("tlkd: ").rstrip("\n")


def in_new_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, timeout=60)


# --- help and version -------------------------------------------------------------------------------------------------


def test_the_commands_are_those_promised() -> None:
    assert sorted(typer.main.get_command(cli.app).commands) == sorted(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(call: Call, command: str) -> None:
    for option in ("--help", "-h"):
        code, out, err = call(command, option)
        assert (code, err) == (0, "")
        assert re.search(rf"Examples?\s+tlkd {command}\b", out)


def test_the_help_names_every_command_and_a_start(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert all(f" {command} " in out for command in COMMANDS)
    assert "tlkd run quickstart" in out


def test_no_words_at_all_show_the_help(call: Call) -> None:
    code, out, err = call()
    assert code in (0, 2)
    assert "tlkd run quickstart" in out + err
    assert "see `tlkd" not in err


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version") == (0, f"tlkd {tlkd.__version__}\n", "")


def heavy_imports(*words: str) -> set[str]:
    """Which heavy packages a command imports, in a process of its own."""
    done = in_new_process(
        "-c", "import json, sys\n"
        f"sys.argv = {['tlkd', *words]!r}\n"
        "from tlkd.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'sklearn', 'scipy', 'matplotlib', 'timm', 'yaml'}\n"
        "print('\\n' + json.dumps(sorted(heavy & set(sys.modules))))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    assert heavy_imports("--help") == set()
    assert heavy_imports("run", "--help") == set()


def test_a_command_imports_what_it_needs_and_no_more() -> None:
    assert heavy_imports("studies") == {"yaml"}
    assert heavy_imports("run", "quickstart", "--set", "nonsense=1") == {"yaml"}
    assert heavy_imports("plan", "quickstart", "--set", "nonsense=1") == {"yaml"}
    found = heavy_imports("status", "nowhere")
    assert {"pandas", "numpy"} <= found  # so the look at what was imported can find something
    assert "torch" not in found


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    ("rum quickstart", "No such command 'rum'"),
    ("--nonsense", "No such option: --nonsense"),
    ("run", "Missing argument 'STUDY'"),
    ("run a b", "unexpected extra argument"),
    ("run quickstart --nonsense", "No such option: --nonsense"),
    ("run quickstart --set", "requires an argument"),
    ("status", "Missing argument 'DIR'"),
    ("models timm:resnet18 --classes ten", "Invalid value for '--classes'"),
    ("models timm:resnet18 --classes 1", "Invalid value for '--classes'"),
    ("models timm:resnet18 --input-size 0", "Invalid value for '--input-size'"),
    ("run nowhere.yaml", "nowhere.yaml: neither a file nor a packaged study; packaged: cifar10, "),
    ("run quikstart", "quikstart: neither a file nor a packaged study; did you mean 'quickstart'?"),
    ("run .", ".: is a folder, not a study's file"),
    ("run quickstart --set nonsense=1", "quickstart: nonsense: unknown key; allowed: name, data, "),
    ("run quickstart --set training.epoch=1", "training.epoch: unknown key; did you mean 'epochs'?"),
    ("run quickstart --set learning_rate=1", "did you mean 'training.learning_rate'"),
    ("run quickstart --set training.epochs=0", "training.epochs: found 0; allowed: greater than or equal to 1"),
    ("run quickstart --set arms.tl_kd.teacher=x", "no teacher is called 'x'; allowed: lite1"),
    ("run quickstart --set training", "--set training: expected KEY.PATH=VALUE"),
    ("run quickstart --set grid={}", "grid: found {}, an empty grid; allowed: conditions.NAME.KEY"),
    ("run nowhere.yaml --track mlfow", "--track: found 'mlfow'; did you mean 'mlflow'?; allowed: mlflow, mlflow:http"),
    ("run quickstart --track mlflow:", "--track: found 'mlflow:'; allowed: mlflow, mlflow:http"),
    ("run quickstart --track mlflow:runs.db", "--track: found 'mlflow:runs.db'; allowed: mlflow, mlflow:http"),
    ("run quickstart --track wandb --track wandb:of", "--track: found 'wandb:of'; allowed: mlflow, mlflow:http"),
    ("run quickstart --device tpu", "--device: found 'tpu'; allowed: auto, cpu, cuda"),
    ("run quickstart --set data.source=folder:nowhere", "nowhere"),
    ("plan", "Missing argument 'STUDY'"),
    ("plan nowhere.yaml", "nowhere.yaml: neither a file nor a packaged study; packaged: cifar10, "),
    ("plan quickstart --set training.epochs=0", "training.epochs: found 0; allowed: greater than or equal to 1"),
    ("plan quickstart --jobs 0", "Invalid value for '--jobs'"),
    ("plan quickstart --device tpu", "--device: found 'tpu'; allowed: auto, cpu, cuda"),
    ("plan quickstart --set data.source=folder:nowhere", "nowhere"),
    ("studies cifar", "cifar: no packaged study is called so; did you mean 'cifar10'"),
    ("status nowhere", "nowhere: no study lies here (there is no study.yaml)"),
    ("watch nowhere", "nowhere: no study lies here (there is no study.yaml)"),
    ("watch . --once", ".: no study lies here"),
    ("watch", "Missing argument 'DIR'"),
    ("watch nowhere --every 0", "Invalid value for '--every'"),
    ("verify nowhere", "nowhere: no study lies here (there is no study.yaml)"),
    ("report nowhere", "nowhere: no study lies here (there is no study.yaml)"),
    ("status .", ".: no study lies here"),
    ("compare", "Missing argument 'DIR...'"),
    ("compare out", "found one folder, out; name at least two"),
    ("compare out nowhere", "out: no study lies here"),
    ("models resnet18", "found 'resnet18'"),
    ("models keras:resnet18", "allowed: packaged:NAME, torchvision:NAME, timm:NAME"),
    ("models torchvision:resnet19", "did you mean 'resnet18'"),
    ("models packaged:lite0", "did you mean 'efficientnet_lite0'"),
    ("models timm:resnet18_", "did you mean 'resnet18'"),
    ("models timm:resnet18 --trainable last:99", "trainable: found 'last:99'"),
    ("models timm:resnet18 --trainable nonsense", "trainable: found 'nonsense'"),
    ("models torchvision:vit_b_16 --input-size 17", "input_size: found 17"),
])
def test_a_mistake_is_answered_with_one_line(call: Call, words: str, said: str) -> None:
    assert said in refused(call(*words.split()))
    assert list(Path.cwd().iterdir()) == []  # nothing half-written


def test_a_mistake_in_a_commands_words_points_to_that_commands_help(call: Call) -> None:
    assert refused(call("run")).endswith("(see `tlkd run --help`)")
    assert refused(call("rum")).endswith("(see `tlkd --help`)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused(call: Call) -> None:
    said = refused(call("run", "quickstart", "--device", "cuda"))
    assert said == "--device: found 'cuda', but torch sees no GPU here; allowed: auto, cpu"


@pytest.mark.parametrize("content", [b"", b"\x89PNG\xff", b"name: [\n", b"- a\n", b"name: &a [*a]\n",
                                     b"name: a\nname: b\n", b"5: 6\n"])
def test_a_file_that_is_no_study_is_answered_with_one_line(call: Call, content: bytes) -> None:
    Path("odd.yaml").write_bytes(content)
    assert refused(call("run", "odd.yaml")).startswith("odd.yaml")
    Path("out").mkdir()
    Path("out/study.yaml").write_bytes(content)
    for command in ("status", "verify", "report"):
        assert refused(call(command, "out")).startswith("out/study.yaml")


def test_a_folder_that_holds_something_else_is_refused_before_anything_is_written(
        call: Call, shapes_folder: Path) -> None:
    Path("out").mkdir()
    Path("out/photo.txt").write_text("mine")
    Path("small.yaml").write_text(dump_yaml(
        {**small_raw("student.input_size=32", "student.weights=none", "teachers={}", "arms=[{name: tl, kind: tl}]"),
         "data": {"source": f"folder:{shapes_folder}"}}))
    said = refused(call("run", "small.yaml", "--out", "out", "--device", "cpu"))
    assert said == "out: is not empty and holds no study; choose another --out"
    assert [path.name for path in Path("out").iterdir()] == ["photo.txt"]


def test_a_damaged_result_is_no_traceback(call: Call, whole: Path) -> None:
    (whole / "runs" / "tl-clean-0" / "result.json").write_bytes(b"\xff{")
    assert "result.json: cannot be read" in refused(call("status", str(whole)))
    code, out, err = call("verify", str(whole))
    assert (code, err) == (1, "")
    assert "runs/tl-clean-0/result.json: missing, or not what its checksum says" in out
    (whole / "runs" / "tl-clean-0" / "result.json").write_text("{}")
    assert "lacks epochs, best_epoch, seconds" in refused(call("status", str(whole)))
    (whole / "results.csv").write_bytes(b"")
    assert "results.csv: cannot be read" in refused(call("verify", str(whole)))


def test_what_is_no_mistake_of_the_person_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tlkd.reading.packaged_studies", broken)
    monkeypatch.setattr(sys, "argv", ["tlkd", "studies"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_a_stopped_command_says_how_to_go_on(call: Call, monkeypatch: pytest.MonkeyPatch,
                                             error: type[BaseException]) -> None:
    def stopped() -> dict[str, str]:
        raise error

    monkeypatch.setattr("tlkd.reading.packaged_studies", stopped)
    assert call("studies") == (130, "", "tlkd: stopped; the same command goes on from here\n")


def test_the_installed_command_exits_with_the_code() -> None:
    done = in_new_process("-m", "tlkd", "studies", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tlkd: nonsense: ")
    assert "Traceback" not in done.stderr


# --- what the commands print ------------------------------------------------------------------------------------------


def test_studies_lists_every_packaged_study_in_a_line(call: Call) -> None:
    code, out, err = call("studies")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(packaged_studies())
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.mark.parametrize("name", list(packaged_studies()))
def test_studies_prints_a_study_that_loads(call: Call, name: str) -> None:
    code, out, err = call("studies", name)
    assert (code, err) == (0, "")
    assert out == packaged_studies()[name]
    assert validate(parse_yaml(out, name), name).name == name


def test_status_tells_done_failed_and_waiting_apart(call: Call, tmp_path: Path) -> None:
    path = lay_down(tmp_path / "out", waiting=("kd-clean-1",), failed=("tl-clean-1",)).path
    code, out, err = call("status", str(path))
    assert (code, err) == (0, "")
    done = json.loads((path / "runs" / "tl-clean-0" / "result.json").read_text())["test_accuracy"]
    lines = out.splitlines()
    assert lines[0] == "teacher big  done"
    assert lines[1] == f"tl-clean-0   done     accuracy {done:.4f}  1.2 s"
    assert lines[3] == "tl-clean-1   failed   epoch 2, step 5: the loss is nan (failures/tl-clean-1.txt)"
    assert lines[4] == "kd-clean-1   waiting"
    assert lines[6] == "2 done, 0 running, 1 failed, 1 waiting of 4"
    assert lines[7] == "start again with --retry-failed to try these once more"
    code, out, err = call("status", str(path), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["totals"]["runs"] == {"done": 2, "running": 0, "failed": 1, "waiting": 1}


def test_a_run_that_failed_and_was_made_later_is_done(call: Call, whole: Path) -> None:
    (whole / "failures").mkdir()
    (whole / "failures" / "tl-clean-0.txt").write_text("an old failure\n")
    assert "4 done, 0 running, 0 failed, 0 waiting of 4" in call("status", str(whole))[1]


def test_a_plan_is_printed_and_leaves_the_folder_alone(call: Call, shapes_folder: Path) -> None:
    Path("small.yaml").write_text(dump_yaml(
        {**small_raw("student={model: packaged:efficientnet_lite0, input_size: 32}", "teachers={}",
                     "arms=[{name: tl, kind: tl}]"), "data": {"source": f"folder:{shapes_folder}"}}))
    code, out, err = call("plan", "small.yaml", "--device", "cpu", "--jobs", "2", "--set", "seeds=[4]")
    assert code == 0, err
    assert out.startswith("study        small: 1 run\n")
    assert "0 done, 0 failed, 1 to do" in out
    assert "folder  out/small (not there yet)" in out
    assert "total, 2 jobs" in out
    assert [path.name for path in Path.cwd().iterdir()] == ["small.yaml"]


def test_verify_exits_with_what_it_found(call: Call, whole: Path) -> None:
    code, out, err = call("verify", str(whole))
    assert (code, err) == (0, "") and out.endswith("\n4 runs checked, 0 problems\n")
    assert out.startswith("4 runs: files, metrics from predictions, results.csv, best epochs from curves\n")
    assert "not recomputed: " in out
    path = whole / "runs" / "kd-clean-0" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    code, out, err = call("verify", str(whole))
    assert (code, err) == (1, "") and out.endswith("\n4 runs checked, 1 problems\n")
    assert "runs/kd-clean-0/model.safetensors: missing, or not what its checksum says\n" in out


@pytest.mark.parametrize(("name", "trainable", "frozen", "total"), [  # the thesis's table 4.1, its head counted once
    ("torchvision:resnet18", "5,130", "11,176,512", "11,181,642"),
    ("torchvision:wide_resnet50_2", "20,490", "66,834,240", "66,854,730"),
    ("torchvision:vit_b_16", "7,690", "85,798,656", "85,806,346"),
])
def test_models_repeats_the_thesiss_table(call: Call, name: str, trainable: str, frozen: str, total: str) -> None:
    code, out, err = call("models", name, "--classes", "10")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["trainable", trainable], ["frozen", frozen], ["total", total]]


def test_models_lists_layers_in_columns(call: Call) -> None:
    words = "models torchvision:resnet18 --classes 7 --input-size 64 --trainable last:1"
    code, out, _ = call(*words.split())
    assert code == 0
    head, *layers = out[:out.index("\n\n")].splitlines()
    assert head.split() == ["layer", "kind", "output", "parameters"]
    end = head.index("parameters") + len("parameters")
    counted = 0
    for line in layers:
        name, kind, output, count = line[:end].split()
        counted += int(count.replace(",", ""))
        assert line[:end] == line[:end].rstrip()  # numbers end under each other
        assert line[end:].strip() == ("" if count == "0" else "trained" if re.match(r"backbone\.layer4\.1|head", name)
                                      else "frozen"), (name, kind, output)
    assert layers[0].split() == ["backbone.conv1", "Conv2d", "64x32x32", "9,408", "frozen"]
    assert layers[-1].split() == ["head", "Linear", "7", "3,591", "trained"]
    assert f"total      {counted:,}\n" in out


def test_models_needs_no_weights(call: Call, tmp_path: Path) -> None:
    assert call("models", "packaged:efficientnet_lite0")[0] == 0
    assert not (tmp_path / "cache").exists()


def test_doctor_prints_what_is_there(call: Call) -> None:
    code, out, err = call("doctor")
    assert (code, err) == (0, "")
    assert out.startswith("python ")
    assert f"{tlkd.__version__}\n" in out


# --- run --------------------------------------------------------------------------------------------------------------


WILD, KILLED = {"kd-clean-1": "epoch 3, step 4: the loss is nan"}, {"tl-clean-0": "its worker was killed by signal 9"}


@pytest.mark.parametrize(("failures", "code", "again"), [
    ({}, 0, ""), (WILD, 1, "the same command with --retry-failed tries them again"),
    (KILLED, 1, "the same command tries them again"),
    (WILD | KILLED, 1, "the same command tries the 1 again that were killed, with --retry-failed all")])
def test_run_hands_over_the_study_and_exits_with_what_failed(
        call: Call, monkeypatch: pytest.MonkeyPatch, failures: dict[str, str], code: int, again: str) -> None:
    given = {}

    def run_study(study: object, out: Path, device: torch.device, command: str, executor: object, retry_failed: bool,
                  threads: int, begun: Callable[[], None]) -> dict[str, str]:
        begun()
        given.update(study=study, out=out, device=device, command=command)
        assert callable(executor) and not retry_failed and threads >= 1
        return failures

    monkeypatch.setattr("tlkd.study.run_study", run_study)
    def write(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "summary.txt").write_text("The teacher helps.\n")
        return folder / "report.html"

    monkeypatch.setattr("tlkd.report.write", write)
    found = call("run", "quickstart", "--set", "training.epochs=2", "--set", "name=mine", "--device", "cpu")
    assert found[0] == code
    assert found[1] == "The teacher helps.\nresults: out/mine/results.csv\nreport:  out/mine/report.html\n"
    said = "".join(f"tlkd: {name} failed: {why}\n" for name, why in failures.items())
    assert found[2] == said + (f"tlkd: {len(failures)} failed (logs: out/mine/logs); {again}\n" if failures else "")
    assert given["study"].training.epochs == 2
    assert given["out"] == Path("out/mine")
    assert given["device"] == torch.device("cpu")
    assert given["command"] == "tlkd run quickstart --set training.epochs=2 --set name=mine --device cpu"
    call("run", "quickstart", "--out", "elsewhere")
    assert given["out"] == Path("elsewhere")


def test_report_draws_anew_and_says_where(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlkd.report.write", lambda folder: folder / "report.html")
    assert call("report", "out/mine") == (0, "out/mine/report.html\n", "")
