"""SHA256SUMS: the checksums of a study's files that no manifest holds, in the form that `sha256sum -c` reads.

A study at work has none: it is written when the study has come to its end, and again, for its own files, by a report.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath

from filelock import FileLock

from tlkd import store
from tlkd.errors import BadInput
from tlkd.progress import say

NAME = "SHA256SUMS"
STUDY = ("study.yaml", "data.json", "results.csv", "stages.json", "examples.json", "examples.npz", "teachers/*/*",
         "explanations/*.json", "explanations/*.npz")
"""What a run of the study leaves outside of its artifacts."""
REPORT = ("summary.txt", "report.html", "tables/*.csv", "figures/*.svg", "figures/*.png")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within this no other process writes what is sealed: of two drivers, one would seal what the other has half."""
    with store.guard_disk(folder):
        (folder / ".locks").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".locks" / "seals.lock"):
            yield


def seal(folder: Path, patterns: Iterable[str]) -> None:
    """Write the checksums of the files that these patterns name; those of other files stay as they are."""
    found = {name: store.checksum(folder / name) for name in _there(folder, patterns)}
    kept = {name: digest for name, digest in read(folder).items()
            if not any(Path(name).match(pattern) for pattern in patterns)}
    store.replace_text(folder / NAME, _lines({**kept, **found}))


def unseal(folder: Path, patterns: Iterable[str]) -> None:
    """Drop the checksums of what is about to be written, so that whoever is killed meanwhile leaves no wrong ones."""
    known = read(folder)
    kept = {name: digest for name, digest in known.items() if not any(Path(name).match(each) for each in patterns)}
    if kept == known:
        return
    if kept:
        store.replace_text(folder / NAME, _lines(kept))
    else:
        (folder / NAME).unlink(missing_ok=True)


def _lines(sums: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def _there(folder: Path, patterns: Iterable[str]) -> list[str]:
    return [path.relative_to(folder).as_posix() for pattern in patterns for path in sorted(folder.glob(pattern))
            if path.is_file() and not path.name.startswith(".")]


def read(folder: Path) -> dict[str, str]:
    """The checksums by file; empty where none were written. Lines of anything but files of this folder are left out.

    Raises `BadInput` where what is called so is no file.
    """
    try:
        lines = (folder / NAME).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{folder / NAME}: cannot be read ({error.strerror}); remove it, and the study's own `tlkd run` "
                       "writes it anew") from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if _inside(name)}


def _inside(name: str) -> bool:
    """Whether a name is of a file in the study's own folder: others are neither read nor removed."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def damaged(folder: Path, patterns: Iterable[str] = (*STUDY, *REPORT)) -> list[str]:
    """The files that these patterns name and that are gone, or are not what their checksums say."""
    return [name for name, digest in read(folder).items() if any(Path(name).match(each) for each in patterns)
            and (not (folder / name).is_file() or store.checksum(folder / name) != digest)]


def unsealed(folder: Path) -> list[str]:
    """The files of a study that has come to its end which have no checksum; none where it has not."""
    known = read(folder)
    return [name for name in _there(folder, STUDY) if name not in known] if known else []


def refuse(folder: Path, patterns: Iterable[str] = STUDY) -> None:
    """Raise `BadInput` that names the first damaged file."""
    for name in damaged(folder, patterns):
        raise BadInput(f"{folder / name}: is not what {NAME} says; the study's own `tlkd run` makes it anew")


def mend(folder: Path) -> None:
    """Remove what is damaged, and say so, before a run that makes it again; then the checksums, until its end."""
    for name in damaged(folder):
        if name == "study.yaml":  # which the run itself judges, and writes anew
            continue
        if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):  # a link leads to others' files
            continue
        say(f"{folder / name}: is not what {NAME} says; it is made again")
        (folder / name).unlink(missing_ok=True)
    (folder / NAME).unlink(missing_ok=True)
