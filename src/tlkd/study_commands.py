"""The commands that make studies, follow them and look back on them; each imports what it needs when it is called."""

import json
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tlkd import crew
from tlkd.console import Changes, Device, Folder, StudyFile, app, device_of
from tlkd.errors import AWAITED, BadInput, nearest


@app.command()
def run(
    study: StudyFile,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where results go (default: out/<name>).")] = None,
    device: Device = "auto",
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
    track: Annotated[list[str] | None, typer.Option(
        "--track", metavar="mlflow[:URI]|wandb[:online]", help="Log to MLflow (default: an SQLite file in DIR) or to "
        "Weights & Biases (default: offline) as well. May be repeated.")] = None,
) -> None:
    """Run a study and write its report. What is finished already is not repeated: a stopped study goes on.

    [bold]Examples[/bold]

      tlkd run quickstart

      tlkd run cifar10 --set data.source=folder:my-images --set seeds=[0,1,2] --out out/mine

      tlkd run my-study.yaml --set training.epochs=10

      tlkd run cifar10-difficulties --jobs 2

      tlkd run cifar10-difficulties --engine ray:10.0.0.5:6379 --out /shared/difficulties

      tlkd run quickstart --track mlflow --track wandb
    """
    if crew.misled():
        raise BadInput(crew.misled())
    if crew.follows():
        from tlkd.study import follow

        follow(crew.join(device_of(device)))
        return
    trackers = _trackers(track)
    from tlkd.reading import read_study

    spec = read_study(study, tuple(changes or ()))
    folder = out if out is not None else Path("out") / spec.name
    from tlkd import engines, tracking

    engines.check(engine)
    chosen = device_of(device)  # torch is imported from here on, and not for a mistake in the study's file
    from tlkd import report
    from tlkd.study import run_study
    from tlkd.trackers import masked

    ways = engines.choose(engine, spec, folder, chosen, jobs, gpus_per_job)
    if crew.size() > 1:
        chosen = crew.join(chosen)
    followers = tracking.choose(trackers, folder)
    command = masked(shlex.join(["tlkd", *sys.argv[1:]]))
    with tracking.following(followers):
        try:
            failures = run_study(spec, folder, chosen, command, ways.executor, retry_failed, ways.threads,
                                 lambda: tracking.start(followers))
        finally:
            crew.dismiss()
        page = report.write(folder)
    summary = (folder / "summary.txt").read_text(encoding="utf-8")
    print(f"{summary}results: {folder / 'results.csv'}\nreport:  {page}")
    for line in [line for follower in followers for line in follower.lines]:
        print(line)
    if failures:
        _tell(failures, folder)
        raise typer.Exit(1)


def _tell(failures: dict[str, str], folder: Path) -> None:
    """Say on stderr what failed, and how it is tried again."""
    from tlkd.folder import is_passing

    for name, reason in failures.items():
        print(f"tlkd: {name} failed: {reason}", file=sys.stderr)
    causes = [reason for reason in failures.values() if AWAITED not in reason]  # others follow from these
    killed = sum(map(is_passing, causes))
    again = ("the same command tries them again" if killed == len(causes)
             else "the same command with --retry-failed tries them again" if not killed
             else f"the same command tries the {killed} again that were killed, with --retry-failed all")
    print(f"tlkd: {len(failures)} failed (logs: {folder / 'logs'}); {again}", file=sys.stderr)


def _trackers(track: list[str] | None) -> tuple[tuple[str, str], ...]:
    """What `--track` asks for, checked; nothing is imported where it asks for nothing."""
    if not track:
        return ()
    from tlkd import tracking

    return tracking.check(track)


@app.command()
def plan(
    study: StudyFile,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where results would go (default: "
                                             "out/<name>).")] = None,
    jobs: Annotated[int | None, typer.Option(
        min=1, show_default=False, help="How many steps would be taken at a time (default: as for "
        "`tlkd run`).")] = None,
    device: Device = "auto",
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

    spec = read_study(study, tuple(changes or ()))
    folder = out if out is not None else Path("out") / spec.name
    chosen = device_of(device)
    from tlkd import engines, planning

    ways = engines.choose("local", spec, folder, chosen, jobs, None)
    print(planning.draw_up(spec, folder, chosen, ways.executor, ways.threads, started), end="")


@app.command()
def tune(
    study: StudyFile,
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="How many settings are tried for every "
                                        "arm, the study's own among them.")],
    changes: Changes = None,
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
    device: Device = "auto",
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

    spec = read_study(study, tuple(changes or ()))
    folder = out if out is not None else Path("out") / f"{spec.name}-tuning"
    from tlkd import engines, spaces

    engines.check(engine)
    if crew.size() > 1:
        raise BadInput(f"tlkd tune: found {crew.size()} processes that were started together; start one, and let "
                       "--jobs train several networks at a time")
    names = [name.strip() for name in arms.split(",")] if arms is not None else []
    what = spaces.search_of(spec, condition, names, seeds, tuple(search or ()))
    chosen = device_of(device)
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
def watch(
    folder: Folder,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How often it looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end, as where there is no "
                                       "terminal.")] = False,
) -> None:
    """Follow a study while it runs: how far it is, curves, results so far, failures, and about how long yet.

    Everything is read from the study's folder: it may be started and ended at any time, several times, and from another
    machine that shares the disk. It ends by itself when the study is complete.

    [bold]Examples[/bold]

      tlkd watch out/quickstart

      tlkd watch out/cifar10-difficulties --every 10

      tlkd watch out/quickstart --once > so-far.txt
    """
    from rich.console import Console

    from tlkd.watching import watch as follow

    follow(folder, every, once, Console(highlight=False, emoji=False, markup=False))


@app.command()
def report(folder: Folder) -> None:
    """Draw tables, figures and report anew from stored results alone.

    [bold]Example[/bold]

      tlkd report out/quickstart
    """
    from tlkd import report as drawing

    print(drawing.write(folder))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Studies' folders, two or more; they need not "
                                                  "be finished.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")] = Path("out/comparison"),
    labels: Annotated[list[str] | None, typer.Option(
        "--label", metavar="NAME", show_default=False, help="What to call a study, once for each, in their order "
        "(default: their names, or their folders').")] = None,
) -> None:
    """Put several studies side by side: what differs in their specs, gains with intervals, teachers, cost, verdicts.

    Where studies share images, student and seeds, their gains are compared by paired tests.

    [bold]Examples[/bold]

      tlkd compare out/from-lite1 out/from-lite2

      tlkd compare out/pets out/birds --label pets --label birds --out out/pets-and-birds
    """
    from tlkd import comparison_report

    page = comparison_report.write(folders, out, labels or ())
    summary = (out / "summary.txt").read_text(encoding="utf-8")
    print(f"{summary}numbers: {out / 'comparison.csv'}\nreport:  {page}")


@app.command()
def verify(
    folder: Folder,
    sample: Annotated[int, typer.Option("--sample", metavar="N", min=0, help="How many rows of each bank, and of each "
                                        "network's predictions, are recomputed from the images (0: none).")] = 16,
    everything: Annotated[bool, typer.Option("--all", help="Recompute every row of every bank, and the predictions of "
                                             "all runs.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, show_default=False, help="What draws the rows (default: others "
                                             "each time; the seed is said).")] = None,
) -> None:
    """Check a study's files against their checksums, and its numbers against what they were computed from.

    Metrics are computed again from predictions, regions from attributions and masks; of banks and predictions a sample,
    from the images through the networks, as far as the cache still holds them.

    [bold]Examples[/bold]

      tlkd verify out/quickstart

      tlkd verify out/quickstart --sample 0

      tlkd verify out/quickstart --all
    """
    from tlkd.checks import covered
    from tlkd.checks import verify as check

    count, problems = check(folder)
    lines = covered(folder)
    if everything or sample:
        if not problems:
            from tlkd.recomputation import recompute

            drawn = secrets.randbelow(10**6) if seed is None else seed
            again = recompute(folder, None if everything else sample, everything, drawn)
            problems = again.problems
            lines += again.lines(None if everything else sample)
            lines += [] if everything else [f"rows drawn by --seed {drawn}"]
        else:
            lines.append("not recomputed: banks and predictions, since files are damaged")
    else:
        lines.append("not recomputed: banks and predictions (--sample 0)")
    for line in [*problems, *lines]:
        print(line)
    print(f"{count} runs checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)
