"""What all commands share: the application, its messages, its common arguments."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tlkd import crew
from tlkd.errors import BadInput, one_line

if TYPE_CHECKING:
    import torch

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder, as `tlkd run --out` made it.")]
StudyFile = Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or a packaged study's name.")]
Changes = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE", help="Change one key, e.g. arms.tl_kd.temperature=4. May be repeated.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def complain(message: str) -> int:
    """Say what was wrong with what was given, in one line; return the exit code of bad input."""
    say(one_line(message))
    return 2


def say(line: str) -> None:
    """Print one line to stderr, unless this process is one of a crew that stays silent."""
    if not crew.silent():
        print(f"tlkd: {crew.signature()}{line}", file=sys.stderr)


def device_of(name: str) -> "torch.device":
    """The device that `--device` names; torch is imported only for a name that is allowed."""
    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device: found {name!r}; allowed: auto, cpu, cuda")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device: found 'cuda', but torch sees no GPU here; allowed: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
