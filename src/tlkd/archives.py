"""Archives of images, unpacked as if whoever packed them meant harm: nothing outside, no links, no bombs."""

import errno
import hashlib
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from tlkd.errors import BadInput

FORMS = "allowed: a folder, .tar, .tar.gz, .tgz, .zip"
MOST_GROWTH = 100  # an archive may unpack to so many times its own length: images are compressed already
ALWAYS = 2**30  # bytes that any archive may unpack to
BLOCK = 4096  # bytes that even an empty file takes up
LONGEST_HEADER = 2**20  # bytes: all that a tar says of a member is read into memory
CHUNK = 2**16  # bytes that are read of a member at a time
MOST_LINKS = 40  # that may lead to one another
NO_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # what Windows hides, as a dot hides elsewhere

Parts = tuple[str, ...]


class _Unsafe(Exception):
    """What an archive holds that nobody would pack who wanted to pass on images."""


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "__MACOSX" or name.lower() in SYSTEM_FILES


def fingerprint(archive: Path, name: str) -> str:
    """What an archive is known by: the hash of its bytes. Raises `BadInput` where it is no archive."""
    try:
        known = zipfile.is_zipfile(archive) or _is_tar(archive)
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"data.source: {name}: {archive} cannot be read ({error.strerror})") from None
    if not known:
        raise BadInput(f"data.source: {name}: {archive} is neither a folder nor an archive that can be read; {FORMS}")
    return f"archive {digest}"


def unpack(archive: Path, into: Path, name: str) -> Iterator[int]:
    """Unpack a tar or zip archive, yielding each per cent of the way; nothing lands outside of `into`.

    A link to a file of the archive becomes a copy of it. Raises `BadInput` for a damaged archive, for a member that
    points outside or is no plain file, and for one that unpacks to more than `MOST_GROWTH` times its own length.
    """
    place = _Place(into, max(ALWAYS, MOST_GROWTH * archive.stat().st_size))
    steps = _unzip(archive, place) if zipfile.is_zipfile(archive) else _untar(archive, place)
    reached = 0
    try:
        for fraction in steps:
            yield from range(reached, reached := max(reached, int(100 * fraction)))
        yield from range(reached, 100)
    except _Unsafe as error:
        raise BadInput(f"data.source: {name}: unsafe archive, not unpacked: {error}") from None
    except Exception as error:  # a damaged one can fail anywhere inside its parser
        if _of_the_disk(error):
            raise
        raise BadInput(f"data.source: {name}: the archive is damaged: {error or type(error).__name__}") from None


class _Place:
    """The folder that an archive is unpacked into, and how many bytes may still go there."""

    def __init__(self, into: Path, most: int) -> None:
        self.into, self.most, self.left = into, most, most
        self._there: set[Parts] = set()

    def spend(self, size: int) -> None:
        """Count bytes, whether they are said to come or have come. Raises `_Unsafe` where they are too many."""
        if size < 0:
            raise _Unsafe("one of its members is less than nothing long")
        self.left -= size
        if self.left < 0:
            raise _Unsafe(f"it unpacks to more than {self.most:,} bytes, {MOST_GROWTH} times its own length")

    def put(self, parts: Parts, content: IO[bytes]) -> None:
        """Write one member."""
        if parts in self._there:
            raise _Unsafe(f"its member {'/'.join(parts)[:80]!r} comes twice")
        self._there.add(parts)
        target = self.into.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                while chunk := content.read(CHUNK):
                    self.spend(len(chunk))
                    file.write(chunk)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            raise _Unsafe(f"its member {'/'.join(parts)!r} is a file and a folder") from None
        except (OSError, UnicodeError) as error:
            if _of_the_disk(error):
                raise
            raise _Unsafe(f"its member {'/'.join(parts)[:80]!r} has a name that no file can have") from None


def _parts(name: str) -> Parts:
    """A member's name as folders and file. Raises `_Unsafe` where it points out of the archive."""
    windows, parts = PureWindowsPath(name), PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or windows.drive or windows.root or "\0" in name:
        raise _outside(name)
    return parts


def _outside(name: str) -> _Unsafe:
    return _Unsafe(f"its member {name!r} points outside of it or is no plain file")


class _Headers:
    """A tar's bytes, of which only so many may be read between what lies in one member and the next."""

    def __init__(self, file: Any) -> None:
        self._file, self.left = file, LONGEST_HEADER

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int) -> Any:
        """So many bytes, or fewer at the end."""
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of more than {LONGEST_HEADER:,} bytes")
        self.left -= size
        return self._file.read(size)


class _Tar(tarfile.TarFile):
    def __init__(self, name: Any = None, mode: Any = "r", fileobj: Any = None, **more: Any) -> None:
        super().__init__(name, mode, _Headers(fileobj), **more)


def _is_tar(archive: Path) -> bool:
    with archive.open("rb") as raw:
        try:
            _Tar.open(fileobj=raw).close()
        except Exception as error:  # whatever its parsers raise
            if _of_the_disk(error):
                raise
            return False
        return True


def _of_the_disk(error: Exception) -> bool:
    """Whether it tells of the machine. A name or a place in a file that cannot be is told of by the archive."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in NO_NAME


def _untar(archive: Path, place: _Place) -> Iterator[float]:
    size = max(1, archive.stat().st_size)
    links: dict[Parts, Parts] = {}
    with archive.open("rb") as raw, _Tar.open(fileobj=raw) as opened:
        headers: Any = opened.fileobj
        for member in opened:
            parts = _parts(member.name)
            place.spend(BLOCK + LONGEST_HEADER - headers.left)
            place.spend(0 if 0 <= member.size <= place.left else member.size)  # it must be read, or read past
            if any(map(hidden, parts)):
                place.spend(member.size)
            elif member.issym() or member.islnk():
                links[parts] = _target(member, parts)
            elif member.isfile() and not member.issparse():
                content = opened.extractfile(member)
                assert content is not None
                headers.left = sys.maxsize
                place.put(parts, content)
            elif not member.isdir():
                raise _outside(member.name)
            headers.left = LONGEST_HEADER
            # What was said of all members is not needed, and may be long: neither their list nor their common header.
            opened.members, opened.pax_headers = [], {}  # type: ignore[attr-defined]
            yield min(1.0, raw.tell() / size)
    for parts in links:
        place.spend(BLOCK)
        with _followed(parts, links, place).open("rb") as content:
            place.put(parts, content)


def _target(member: tarfile.TarInfo, parts: Parts) -> Parts:
    """Where a link leads. Raises `_Unsafe` where that is outside."""
    found = list(parts[:-1]) if member.issym() else []  # a hard link is told from the archive's root
    for part in PurePosixPath(member.linkname).parts:
        if part.startswith("/") or (part == ".." and not found):
            raise _outside(member.name)
        if part == "..":
            found.pop()
        else:
            found.append(part)
    return tuple(found)


def _followed(start: Parts, links: dict[Parts, Parts], place: _Place) -> Path:
    """The file that a link leads to in the end."""
    parts = start
    for _ in range(MOST_LINKS):
        if parts not in links:
            break
        parts = links[parts]
    target = place.into.joinpath(*parts)
    try:
        there = target.is_file()
    except OSError:  # a name that no file can have
        there = False
    if parts in links or not there:
        raise _Unsafe(f"its member {'/'.join(start)!r} is a link to no file in it; pack the files themselves (tar -h)")
    return target


def _unzip(archive: Path, place: _Place) -> Iterator[float]:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for number, member in enumerate(members, 1):
            parts = _parts(member.filename)
            place.spend(BLOCK)
            if not member.is_dir() and parts and not any(map(hidden, parts)):
                if member.file_size > place.left:
                    place.spend(member.file_size)
                with opened.open(member) as content:
                    place.put(parts, content)
            yield number / len(members)
