"""The command line; every command imports what it needs when it is called, so that `--help` is quick."""

import json
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tlkd import __version__, crew
from tlkd.errors import BadInput, nearest

if TYPE_CHECKING:
    import torch

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})

STOPPED = 130  # what a shell calls a command that Ctrl-C ended

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder, as `tlkd run --out` made it.")]


def main() -> None:
    """Run the command line: exit code 0 all well, 1 something failed, 2 bad input (one line on stderr)."""
    try:
        code = app(prog_name="tlkd", standalone_mode=False)
    except BadInput as error:
        code = _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except crew.Parted as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        _say(f"{error}, so that all that train together end here; the same command goes on from here")
        code = 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error of the command line itself
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "tlkd")
        message = error.format_message()
        code = _complain(f"{message} (see `{command} --help`)") if message else 2  # without one, help was printed
    if code == STOPPED and not crew.follows():  # some versions of Typer turn the key into this code, others raise
        _say("stopped; the same command goes on from here")
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str) -> int:
    _say(" ".join(message.split()))
    return 2


def _say(line: str) -> None:
    if not crew.silent():
        print(f"tlkd: {crew.signature()}{line}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tlkd {__version__}")
        raise typer.Exit()


@app.callback()
def tlkd(context: typer.Context,
         version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                               help="Print the version and stop.")] = False) -> None:
    """Does a bigger teacher make a fine-tuned small network better: by how much, how surely, and why?

    Start with [bold]tlkd run quickstart[/bold], then point a study at your own images:
    [bold]tlkd run cifar10 --set data.source=folder:PATH[/bold].
    """
    if crew.follows() and context.invoked_subcommand != "run":  # the others are there to train
        raise typer.Exit()


@app.command()
def run(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a packaged study's name.")],
    assignments: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key, e.g. arms.tl_kd.temperature=4. May be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where results go (default: out/<name>).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    jobs: Annotated[int | None, typer.Option(
        min=1, show_default=False, help="How many steps are taken at a time, each in a process of its own (default: "
        "what cores and memory allow, or the GPUs).")] = None,
    engine: Annotated[str, typer.Option(metavar="local|ray[:ADDRESS]", help="Where: on this machine, or on a Ray "
                                        "cluster, an existing one at HOST:PORT.")] = "local",
    gpus_per_job: Annotated[float | None, typer.Option(
        min=0, show_default=False, help="On Ray: the part of a GPU that a job takes, e.g. 0.25 (default: 1 where the "
        "device is cuda).")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed by itself in an earlier "
                                               "start; what was killed is always tried again.")] = False,
) -> None:
    """Run a study and write its report. What is finished already is not repeated: a stopped study goes on.

    [bold]Examples[/bold]

      tlkd run quickstart

      tlkd run cifar10 --set data.source=folder:my-images --set seeds=[0,1,2] --out out/mine

      tlkd run my-study.yaml --set training.epochs=10

      tlkd run cifar10-difficulties --jobs 2

      tlkd run cifar10-difficulties --engine ray:10.0.0.5:6379 --out /shared/difficulties
    """
    if crew.misled():
        raise BadInput(crew.misled())
    if crew.follows():
        from tlkd.study import follow

        follow(crew.join(_device(device)))
        return
    from tlkd.reading import read_study

    spec = read_study(study, tuple(assignments or ()))
    folder = out if out is not None else Path("out") / spec.name
    from tlkd import engines

    engines.check(engine)
    chosen = _device(device)  # torch is imported from here on, and not for a mistake in the study's file
    from tlkd import report
    from tlkd.study import run_study

    ways = engines.choose(engine, spec, folder, chosen, jobs, gpus_per_job)
    if crew.size() > 1:
        chosen = crew.join(chosen)
    try:
        failures = run_study(spec, folder, chosen, shlex.join(["tlkd", *sys.argv[1:]]), ways.executor, retry_failed,
                             ways.threads)
    finally:
        crew.dismiss()
    page = report.write(folder)
    print((folder / "summary.txt").read_text() + f"results: {folder / 'results.csv'}\nreport:  {page}")
    for name, reason in failures.items():
        print(f"tlkd: {name} failed: {reason}", file=sys.stderr)
    if failures:
        print(f"tlkd: {len(failures)} failed (logs: {folder / 'logs'}); the same command with --retry-failed tries "
              "them again", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def plan(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a packaged study's name.")],
    assignments: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key, as for `tlkd run`. May be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where results would go (default: "
                                             "out/<name>).")] = None,
    jobs: Annotated[int | None, typer.Option(
        min=1, show_default=False, help="How many steps would be taken at a time (default: as for "
        "`tlkd run`).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Print what a study would run, what is there already, which banks it needs, and what the rest will cost.

    Time, memory and disk are estimated from a short measurement. The study's folder is not touched; images are decoded
    into the cache.

    [bold]Examples[/bold]

      tlkd plan cifar10-difficulties

      tlkd plan cifar10 --set data.source=folder:my-images --set seeds=[0,1,2] --out out/mine --jobs 4
    """
    started = time.perf_counter()
    from tlkd.reading import read_study

    spec = read_study(study, tuple(assignments or ()))
    folder = out if out is not None else Path("out") / spec.name
    chosen = _device(device)
    from tlkd import engines, planning

    ways = engines.choose("local", spec, folder, chosen, jobs, None)
    print(planning.draw_up(spec, folder, chosen, ways.executor, ways.threads, started), end="")


@app.command()
def tune(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a packaged study's name.")],
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="How many settings are tried for every "
                                        "arm, the study's own among them.")],
    assignments: Annotated[list[str] | None, typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one key, as for `tlkd run`. May be repeated.")] = None,
    search: Annotated[list[str] | None, typer.Option(
        "--search", metavar="KEY=SPACE", help="Where a key is searched: LOW..HIGH, log:LOW..HIGH, choices with commas "
        "between, or fixed. Keys: training.NAME, soft_weight, temperature. May be repeated.")] = None,
    arms: Annotated[str | None, typer.Option(metavar="A,B", help="Tune these arms alone (default: all).")] = None,
    condition: Annotated[str | None, typer.Option(metavar="NAME", help="Under which condition (default: the study's "
                                                  "first).")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, metavar="K", help="A trial is the mean over the study's first K "
                                              "seeds (default: 2).")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where results go (default: "
                                             "out/<name>-tuning).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    jobs: Annotated[int | None, typer.Option(
        min=1, show_default=False, help="How many trainings run at a time (default: as for `tlkd run`). With 1 the "
        "search can be repeated exactly.")] = None,
    engine: Annotated[str, typer.Option(metavar="local|ray[:ADDRESS]", help="Where: on this machine, or on a Ray "
                                        "cluster that shares the folder and the cache.")] = "local",
) -> None:
    """Search each arm's hyperparameters, equally many trials for every arm, on the dev split alone.

    Leaves tuned.yaml, a study that `tlkd run` takes, trials.csv and a picture. The same command goes on where a search
    was stopped; with a larger N it tries more.

    [bold]Examples[/bold]

      tlkd tune quickstart --trials 20

      tlkd tune my-study.yaml --trials 40 --search training.batch_size=16,32,64 --search training.weight_decay=fixed

      tlkd tune cifar10 --set data.source=folder:my-images --trials 20 --jobs 1 --out out/search
    """
    from tlkd.reading import read_study

    spec = read_study(study, tuple(assignments or ()))
    folder = out if out is not None else Path("out") / f"{spec.name}-tuning"
    from tlkd import engines, spaces

    engines.check(engine)
    if crew.size() > 1:
        raise BadInput(f"tlkd tune: found {crew.size()} processes that were started together; start one, and let "
                       "--jobs train several networks at a time")
    names = [name.strip() for name in arms.split(",")] if arms is not None else []
    what = spaces.search_of(spec, condition, names, seeds, tuple(search or ()))
    chosen = _device(device)
    from tlkd import tuned, tuning
    from tlkd.errors import RunFailed

    ways = engines.choose(engine, spec, folder, chosen, jobs, None)
    try:
        found = tuning.tune(what, trials, folder, chosen, shlex.join(["tlkd", *sys.argv[1:]]), ways.executor,
                            ways.threads)
    except RunFailed as error:
        print(f"tlkd: {error} (logs: {folder / 'logs'})", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{tuned.text(found)}\ntuned:   {folder / 'tuned.yaml'}\ntrials:  {folder / 'trials.csv'}\n"
          f"picture: {folder / 'search.png'}")


@app.command()
def studies(
    name: Annotated[str | None, typer.Argument(help="Print this study's YAML instead of the list.")] = None,
) -> None:
    """List the packaged studies, or print one: a start for your own.

    [bold]Examples[/bold]

      tlkd studies

      tlkd studies cifar10 > my-study.yaml
    """
    from tlkd.reading import packaged_studies

    found = packaged_studies()
    if name is None:
        width = max(map(len, found))
        for title, text in found.items():
            print(f"{title:{width}}  {text.splitlines()[0].lstrip('# ')}")
    elif name in found:
        print(found[name], end="")
    else:
        raise BadInput(f"{name}: no packaged study is called so{nearest(name, list(found))}; "
                       f"allowed: {', '.join(found)}")


@app.command()
def status(
    folder: Folder,
    everything: Annotated[bool, typer.Option("--all", help="A line for every run, however many there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same for machines.")] = False,
) -> None:
    """Show which teachers and runs of a study are done, running, failed or waiting.

    More than 60 runs are counted by condition and arm, with a line for each failure.

    [bold]Examples[/bold]

      tlkd status out/quickstart

      tlkd status out/cifar10-difficulties --all

      tlkd status out/quickstart --json | jq .totals.runs
    """
    from tlkd import standing
    from tlkd.folder import StudyFolder

    found = standing.standings(StudyFolder(folder))
    if as_json:
        print(json.dumps(standing.record(found), indent=1))
    else:
        print(standing.text(found, everything), end="")


@app.command()
def report(folder: Folder) -> None:
    """Draw tables, figures and report anew from stored results alone.

    [bold]Example[/bold]

      tlkd report out/quickstart
    """
    from tlkd import report as drawing

    print(drawing.write(folder))


@app.command()
def verify(folder: Folder) -> None:
    """Check a study's files against their checksums, and its metrics against the stored predictions.

    [bold]Example[/bold]

      tlkd verify out/quickstart
    """
    from tlkd.checks import verify as check

    count, problems = check(folder)
    for problem in problems:
        print(problem)
    print(f"{count} runs checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def regions(
    table: Annotated[Path, typer.Argument(metavar="TABLE.csv", help="Sums of attributions inside and outside objects, "
                                          "a row an image, with the columns of the thesis's table 6.3.")],
) -> None:
    """Test a table of foreground and background contributions, TL against TL+KD, as the thesis prints it.

    Columns: class, then tl_fg_pos, tl_fg_neg, tl_bg_pos, tl_bg_neg, and the same with kd_.

    [bold]Example[/bold]

      tlkd regions table_6_3.csv
    """
    from tlkd import contributions

    print(contributions.text(contributions.read(table)), end="")


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="A finished run's folder, e.g. "
                                         "out/quickstart/runs/tl-clean-0, or packaged:NAME, torchvision:NAME or "
                                         "timm:NAME.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="PATH", show_default=False, help="More images, as a "
                                                      "shell makes of `--images photos/*.jpg`.")] = None,
    images: Annotated[list[Path] | None, typer.Option(
        "--images", metavar="PATH", help="An image file, or a folder of them. May be repeated.")] = None,
    background: Annotated[str | None, typer.Option(
        metavar="SOURCE", help="What images are compared with: black, a folder, archive or file of images, mnist5k, "
        "shapes, cifar10, torchvision:NAME; of a run also train, its training images "
        "(default: train for a run, black otherwise).")] = None,
    background_size: Annotated[int, typer.Option(min=1, help="How many images are drawn for the background.")] = 20,
    seed: Annotated[int | None, typer.Option(
        min=0, show_default=False, help="Seed of that draw (default: a run's data_seed, or 0).")] = None,
    weights: Annotated[str | None, typer.Option(
        metavar="NAME|PATH", help="Of a bare network: imagenet, a name of torchvision's, a checkpoint file, or none "
        "(default: imagenet).")] = None,
    input_size: Annotated[int | None, typer.Option(
        min=8, show_default=False, help="Of a bare network: side of its square input, in pixels (default: the "
        "weights' own).")] = None,
    fit: Annotated[str | None, typer.Option(help="How images are laid onto the square: crop, stretch or pad (default: "
                                            "as the run's study, or crop).")] = None,
    classes: Annotated[str, typer.Option(help="winner, top:K, all, or names or numbers with commas "
                                         "between.")] = "winner",
    explainer: Annotated[str, typer.Option(help="deep_shap, deep_lift, integrated_gradients, gradient_shap, grad_cam "
                                           "or occlusion.")] = "deep_shap",
    output: Annotated[str, typer.Option(help="What is explained: logit or probability.")] = "logit",
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Where results go (default: out/explanations/<name>).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Draw what in an image speaks for a class and what against it, in the eyes of a run or of any network.

    Leaves a picture an image, attributions.npz and attributions.csv.

    [bold]Examples[/bold]

      tlkd explain out/quickstart/runs/tl-clean-0 --images digit.png

      tlkd explain packaged:efficientnet_lite0 --images photos --background other-photos --classes top:3

      tlkd explain torchvision:resnet18 --weights my.pth --images a.jpg --images b.jpg --explainer grad_cam
    """
    chosen = _device(device)
    from tlkd import gallery
    from tlkd.errors import RunFailed

    options = gallery.Options((*(images or ()), *(more or ())), background, background_size, seed, weights,
                              input_size, fit, explainer, output, classes, out)
    try:
        made = gallery.explain(model, options, chosen)
    except RunFailed as error:
        print(f"tlkd: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for drawn in made.drawn:
        print(f"{drawn.path}  {', '.join(f'{name} {share:.3f}' for name, share in drawn.probabilities.items())}")
    print(f"attributions: {made.path / 'attributions.npz'}\ntable:        {made.path / 'attributions.csv'}")


@app.command()
def models(
    name: Annotated[str, typer.Argument(metavar="NAME", help="packaged:NAME, torchvision:NAME or timm:NAME.")],
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the new head.")] = 10,
    input_size: Annotated[int, typer.Option(min=8, help="Side of the square input, in pixels.")] = 224,
    trainable: Annotated[str, typer.Option(help="head, all or last:N.")] = "head",
) -> None:
    """Print a network's layers and its trainable, frozen and total parameters; nothing is downloaded.

    [bold]Examples[/bold]

      tlkd models packaged:efficientnet_lite0

      tlkd models torchvision:resnet18 --classes 10 --trainable last:2
    """
    from tlkd.models import describe

    found = describe(name, classes, input_size, trainable)
    rows = [("layer", "kind", "output", "parameters", "")]
    for layer in found.layers:
        output = "x".join(map(str, layer.output)) if layer.output else "-"
        part = "" if not layer.parameters else "trained" if layer.trainable else "frozen"
        rows.append((layer.name, layer.kind, output, f"{layer.parameters:,}", part))
    names, kinds, outputs, counts = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:4])
    for row in rows:
        print(f"{row[0]:{names}}  {row[1]:{kinds}}  {row[2]:>{outputs}}  {row[3]:>{counts}}  {row[4]}".rstrip())
    print()
    digits = len(f"{found.total:,}")
    for part, count in {"trainable": found.trainable, "frozen": found.frozen, "total": found.total}.items():
        print(f"{part:9}  {count:>{digits},}")


@app.command()
def doctor() -> None:
    """Show versions, devices, the cache, and which packaged weights and data are there.

    [bold]Example[/bold]

      tlkd doctor
    """
    from tlkd.doctor import examine

    for line in examine():
        print(line)


def _device(name: str) -> "torch.device":
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device: found {name!r}; allowed: auto, cpu, cuda")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device: found 'cuda', but torch sees no GPU here; allowed: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
