"""The two ways in which tlkd says no; every floor may raise them."""

import errno
import importlib
from pathlib import Path
from typing import Any

LONGEST = 2000  # characters of a message

NO_MEMORY = "there was not enough memory"
"""How it begins what is said where memory ran out; that is nothing of a run's own, and it is tried again."""
AWAITED = "which is not there"
"""What a step says that fails for want of another's result."""


def one_line(text: str) -> str:
    """Any text as one line that a terminal only shows: control characters escaped, and not longer than it can bear.

    Names of files, keys and classes stand in messages, and whoever made them may have put anything into them.
    """
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode()
                   for each in " ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST // 2]} [...] {line[-LONGEST // 2 + 7:]}"


class BadInput(Exception):
    """Something that the person can put right: one line that names the file or key, the value and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RunFailed(Exception):
    """One training went wrong (a NaN loss, say); the other runs of the study go on."""


def memory_trouble(error: BaseException | None) -> str | None:
    """What is said where the machine's memory ran out, or where that set an error off; None for all other errors.

    A GPU's memory is not meant: how much of it a training needs lies in its own settings.
    """
    while error is not None:
        said = " ".join(str(error).split())
        if _is_of_memory(error, said):
            what = f"{type(error).__name__}: {said}" if said else type(error).__name__
            return f"{NO_MEMORY} ({what[:160]}); fewer --jobs need less"
        error = error.__cause__ or error.__context__
    return None


def _is_of_memory(error: BaseException, said: str) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = {RuntimeError: ("DefaultCPUAllocator", "std::bad_alloc", "can't start new thread",
                            "could not create a primitive", "could not create a memory object"),
             ImportError: ("failed to map segment", "annot allocate memory"),
             SystemError: ("without setting an exception",)}  # what Python itself makes of it here and there
    return isinstance(error, MemoryError) or any(
        isinstance(error, kind) and any(each in said for each in phrases) for kind, phrases in words.items())


def expanded(text: str, key: str) -> Path:
    """A path as a person writes it, `~` being their home. Raises `BadInput` where it can be none, whatever is there."""
    try:
        path = Path(text).expanduser()
        path.stat()
    except RuntimeError:
        raise BadInput(f"{key}: found {text!r}; nobody's home folder is known by that name; "
                       "allowed: a path, in which ~ is your own home") from None
    except ValueError:  # a null byte, half a character
        raise BadInput(f"{key}: found {text!r}; no file can have such a name") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            raise BadInput(f"{key}: found {shown!r}; it cannot be opened ({error.strerror})") from None
    return path


def missing(who: str, extra: str) -> BadInput:
    """What is said where `who` asks for a package of an optional extra that is not installed."""
    return BadInput(f"{who} needs the extra {extra}: pip install 'tlkd[{extra}]'")


def needs(module: str, who: str, extra: str) -> Any:
    """Import a package of an optional extra for `who` asks for it. Raises `BadInput` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise missing(who, extra) from None


def nearest(word: str, allowed: list[str], count: int = 3) -> str:
    """Name the allowed words nearest to `word` as `; did you mean 'a' or 'b'?`, or nothing where none is near."""
    import difflib

    # A name typed in full without its prefix ("lite2") is as common as a typing error.
    close = difflib.get_close_matches(word, allowed, n=count, cutoff=0.6)
    close += [name for name in allowed if word and word.lower() in name.lower() and name not in close]
    return f"; did you mean {' or '.join(repr(name) for name in close[:count])}?" if close else ""
