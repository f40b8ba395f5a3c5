"""Where results live: addresses, manifests with checksums, atomic publishing, locks.

An artifact is a folder that appears by one rename when it is whole. Its address hashes what it was made from, so that
nothing is ever looked up by a name that could mean two things.
"""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike
from safetensors import SafetensorError

from tlkd.errors import BadInput
from tlkd.progress import say
from tlkd.specs import canonical_hash

MANIFEST = "manifest.json"
OWN_SUM = ',\n "sha256": "'  # the last key of a manifest: the checksum of all before it
_impatient: ContextVar[bool] = ContextVar("impatient", default=False)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILING = (errno.EIO, errno.ENXIO, errno.ESTALE)
MANY = 64  # files: to flush more of them one by one takes longer than to flush all that the machine has not written
NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Artifact:
    """A published folder."""

    path: Path
    address: str

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the artifact was made from and what lies in it: kind, version, spec, inputs, files, about."""
        manifest: dict[str, Any] = read_json(self.path / MANIFEST)
        return manifest

    @property
    def about(self) -> dict[str, Any]:
        """What its builder had to say of it."""
        about: dict[str, Any] = self.manifest["about"]
        return about


@dataclass(frozen=True)
class Recipe:
    """What an artifact is made from: known, and its address with it, before it is made."""

    kind: str
    version: int
    spec: dict[str, Any]
    inputs: dict[str, str]

    @property
    def address(self) -> str:
        """Where what is made from this lies."""
        return address(self.kind, self.version, self.spec, self.inputs)


def cache_folder() -> Path:
    """The cache that all studies share: `TLKD_CACHE`, or the user's cache folder."""
    import platformdirs

    named = os.environ.get("TLKD_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("tlkd"))


def address(kind: str, version: int, spec: Any, inputs: Mapping[str, str]) -> str:
    """The address of what stage `kind` of this version makes of `spec` and of the artifacts at `inputs`."""
    return canonical_hash({"kind": kind, "version": version, "spec": _plain(spec), "inputs": dict(inputs)})[:20]


def get(folder: Path, kind: str, version: int, spec: Any, inputs: Mapping[str, str],
        build: Callable[[Path], Mapping[str, Any] | None]) -> Artifact:
    """The artifact `folder/kind/address`: as it lies there when it is whole, made by `build` otherwise.

    `build` fills the temporary folder it is given; what it returns goes into the manifest as `about`.
    """
    where = address(kind, version, spec, inputs)
    return publish(folder / kind / where, where, {"kind": kind, "version": version, "spec": _plain(spec),
                                                  "inputs": dict(inputs)}, build)


def publish(final: Path, where: str, made_from: Mapping[str, Any],
            build: Callable[[Path], Mapping[str, Any] | None], renewed: bool = False) -> Artifact:
    """Publish at `final`, under the address `where`, unless it is there already and whole.

    What lies there and is damaged or has another address is made again, and that is said; with `renewed`, another
    address is no news.
    Correctness rests on the rename alone: the lock only keeps two processes from doing the same work twice.
    """
    if find(final, where) is not None:
        return Artifact(final, where)
    with guard_disk(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        locks = final.parent / ".locks"
        locks.mkdir(exist_ok=True)
        with _held(locks / f"{final.name}.lock"):
            _sweep(final)
            if find(final, where) is not None:  # made while we waited
                return Artifact(final, where)
            if final.exists() and not (renewed and _is_sound(final)):
                why = "was made from something else" if _is_sound(final) else "its checksums do not match"
                say(f"{final}: {why}; it is made again")
            temporary = _temporary(final)
            try:
                temporary.mkdir()
                about = build(temporary)
                _seal(temporary, where, made_from, about or {})
                _put(temporary, final, where)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return Artifact(final, where)


class Busy(Exception):
    """Another process is making this artifact."""


@contextmanager
def impatient() -> Iterator[None]:
    """Within this, `publish` raises `Busy` rather than wait for another process that makes the same artifact."""
    token = _impatient.set(True)
    try:
        yield
    finally:
        _impatient.reset(token)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=0 if _impatient.get() else -1)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(path.name) from None
    try:
        yield
    finally:
        lock.release()


def being_made(final: Path) -> bool:
    """Whether a process holds the lock of an artifact, that is, makes it now."""
    path = final.parent / ".locks" / f"{final.name}.lock"
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to lock: nobody of this user is at work there
        return False


def find(final: Path, where: str) -> Artifact | None:
    """The artifact at `final` if it has this address and every file has its checksum; otherwise None."""
    try:
        whole = _read_manifest(final / MANIFEST)["address"] == where and not damaged(final)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no manifest, or not one that we wrote
        return None
    return Artifact(final, where) if whole else None


def _is_sound(final: Path) -> bool:
    try:
        return not damaged(final)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def damaged(folder: Path, endings: tuple[str, ...] = ("",)) -> list[str]:
    """The files of an artifact (whose names end so) that are missing or do not have the checksum of its manifest."""
    bad = []
    for name, expected in _read_manifest(folder / MANIFEST)["files"].items():
        path = folder / name
        if not name.endswith(endings):
            continue
        if not path.is_file() or path.stat().st_size != expected["bytes"] or checksum(path) != expected["sha256"]:
            bad.append(name)
    return bad


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allocate(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> "np.memmap[Any, Any]":
    """A new memory-mapped `.npy` file of zeros whose space is really there.

    Reserved beforehand, a full disk is an `OSError` here; in a sparse file it would be a bus error on some later write.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, 1))
    return array


def read_json(path: Path) -> Any:
    """Parse a JSON file."""
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; NaN becomes null, since JSON has no word for it."""
    replace_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old text or the new one, never half of it."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it."""
    with guard_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = _temporary(path)
        try:
            temporary.write_bytes(content)
            _settle([temporary])
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path, option: str) -> None:
    """Raise `BadInput` where no file or folder can be made at `path`, before the work that it is for."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = _temporary(path)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        said = (getattr(error, "strerror", None) or str(error)).lower()
        raise BadInput(f"{option}: {str(path)[:200]} cannot be written ({said}); choose another place") from None


def replace_folder(path: Path, build: Callable[[Path], None]) -> None:
    """Make a folder that appears when it is whole, by a rename; one that stands there is removed at that moment.

    `build` fills the temporary folder it is given, which lies beside; where it raises, all stays as it was.
    """
    final = path.resolve()
    with guard_disk(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        temporary, aside = _temporary(final), _temporary(final)
        try:
            temporary.mkdir()
            build(temporary)
            if final.exists():
                final.rename(aside)
            try:
                temporary.rename(final)
            except OSError:
                if aside.exists():
                    aside.rename(final)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def guard_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that may not be written, into one plain line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = disk_trouble(error, folder)
        if said is None:
            raise
        raise BadInput(said) from error


def disk_trouble(error: OSError | SafetensorError, folder: Path | None = None) -> str | None:
    """What is said of a disk that is full, fails, or may not be written; None for all other errors."""
    number = _error_number(error)
    where = getattr(error, "filename", None) or folder or "a file"
    if number in FULL:
        return (f"{folder or where}: the disk is full ({os.strerror(number)}); what stood there before still stands. "
                "Make room, or choose another --out or TLKD_CACHE, and start again")
    if number in FAILING:
        return (f"{where}: the disk failed ({os.strerror(number)}); what is finished still stands. The same command "
                "goes on from here once the disk is well, or choose another --out or TLKD_CACHE")
    if number in NOT_WRITABLE:
        return f"{where}: cannot be written ({os.strerror(number)}); choose another --out or TLKD_CACHE"
    return None


def _error_number(error: OSError | SafetensorError) -> int | None:
    """The `errno` of an error; safetensors only says it in its text."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None


def _temporary(final: Path) -> Path:
    """A name beside `final` that says which process of which machine is at work there."""
    return final.with_name(f".{final.name}.tmp-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _sweep(final: Path) -> None:
    """Remove what killed processes of this machine left behind; those of other machines may be alive."""
    prefix = f".{final.name}.tmp-{platform.node()}-"
    for left in final.parent.glob(f"{glob.escape(prefix)}*"):
        process = left.name.removeprefix(prefix).partition("-")[0]
        if process.isdigit() and not _alive(int(process)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _settle(paths: Sequence[Path]) -> None:
    """Have the disk hold what was written, before a rename that says it is whole: a power cut must not part the two."""
    if len(paths) > MANY and hasattr(os, "sync"):
        os.sync()
        return
    for path in paths:
        with path.open("rb" if os.name == "posix" else "r+b") as file:
            os.fsync(file.fileno())


def _seal(folder: Path, where: str, made_from: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": checksum(path)}
             for path in paths}
    _settle(paths)
    manifest = {"address": where, **made_from, "files": files, "about": dict(about)}
    body = json.dumps(_finite(manifest), indent=1, allow_nan=False).removesuffix("\n}")
    replace_text(folder / MANIFEST, f'{body}{OWN_SUM}{_digest(body)}"\n}}\n')


def _read_manifest(path: Path) -> Any:
    """Parse a manifest; raises ValueError where it does not have its own checksum, unless an older version wrote it."""
    text = path.read_text()
    body, mark, rest = text.rpartition(OWN_SUM)
    older = text.endswith("}\n}\n") or not text.endswith("\n}\n")  # they end with what the builder had to say
    if not older and (not mark or rest != f'{_digest(body)}"\n}}\n'):
        raise ValueError("its own checksum does not match")
    return json.loads(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _put(temporary: Path, final: Path, where: str) -> None:
    """Rename into place, unless a process that no lock held back was first; what does not match steps aside."""
    if final.exists():
        if find(final, where) is not None:
            return
        aside = _temporary(final)
        final.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        temporary.rename(final)
    except OSError:
        if find(final, where) is None:
            raise


def _plain(spec: Any) -> Any:
    return spec.model_dump(mode="json") if hasattr(spec, "model_dump") else spec


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot hold, by null; NumPy's scalars by Python's."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
