"""The command line: exit codes, errors in one line, and all commands; these import late, so that `--help` is quick."""

import sys
import traceback
from contextlib import suppress
from typing import Annotated

import typer

from tlkd import __version__, crew, study_commands, tool_commands
from tlkd.console import app, complain, say
from tlkd.errors import BadInput, memory_trouble

STOPPED = 130  # what a shell calls a command that Ctrl-C ended
COMMANDS = (study_commands, tool_commands)  # importing them registers their commands


def main() -> None:
    """Run the command line: exit code 0 all well, 1 something failed, 2 bad input (one line on stderr)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # whoever calls this may have put something else in its place
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # few letters are no reason to fail
    try:
        code = app(prog_name="tlkd", standalone_mode=False)
    except BadInput as error:
        code = complain(_short_of_memory(error) or str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except crew.Parted as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        say(f"{error}, so that all that train together end here; the same command goes on from here")
        code = 1
    except OSError as error:  # outside of what guards itself: a picture, a log, a file that is read
        from tlkd.store import disk_trouble

        said = _short_of_memory(error) or disk_trouble(error)
        if said is None or isinstance(error, BrokenPipeError):
            raise
        code = complain(said)
    except Exception as error:
        short = _short_of_memory(error)
        if short is not None:
            code = complain(short)
        elif hasattr(error, "format_message"):  # a usage error of the command line itself
            command = getattr(getattr(error, "ctx", None), "command_path", "tlkd")
            message = error.format_message()
            code = complain(f"{message} (see `{command} --help`)") if message else 2  # without one, help was printed
        else:
            raise
    if code == STOPPED and not crew.follows():  # some versions of Typer turn the key into this code, others raise
        say("stopped; the same command goes on from here")
    sys.exit(code if isinstance(code, int) else 0)


def _short_of_memory(error: BaseException) -> str | None:
    """What is said where memory ran out, whatever was then made of it on the way here."""
    said = memory_trouble(error)
    return None if said is None else f"{said}. What is finished still stands; the same command goes on from here"


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


if __name__ == "__main__":
    main()
