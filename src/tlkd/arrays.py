"""Arrays out of `.npz` files that others may have written: nothing is unpickled, and nothing fills memory by a lie."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALWAYS, MOST_GROWTH = 2**30, 100  # bytes that any .npz file may unpack to, and how many times its own length
CHUNK = 2**20


class Arrays:
    """The arrays of an open `.npz` file by name, each read when it is asked for."""

    def __init__(self, packed: zipfile.ZipFile) -> None:
        self._packed = packed

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Raises `KeyError` where it is not there, `ValueError` where it holds objects or is not as long as it says."""
        info = self._packed.getinfo(f"{name}.npy")
        with self._packed.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"{name} is of version {version} of NumPy's format; allowed: 1.0, 2.0")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("Object arrays cannot be loaded: they are pickles")
            size, there = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
            if min(shape, default=0) < 0 or size != there:
                raise ValueError(f"{name} is said to be {list(shape)} of {dtype}, and has {there:,} bytes")
            content = bytearray(size)
            at = 0
            while at < size:
                part = file.read(min(CHUNK, size - at))
                if not part:
                    raise ValueError(f"{name} ends after {at:,} of {size:,} bytes")
                content[at:at + len(part)] = part
                at += len(part)
        return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


@contextmanager
def stored(path: Path) -> Iterator[Arrays]:
    """The arrays of an `.npz` file by name, none unpickled. Raises `ValueError` where they would fill memory."""
    with path.open("rb") as file, zipfile.ZipFile(file) as packed:  # none unpacks to more than it says here
        size, most = sum(each.file_size for each in packed.infolist()), max(ALWAYS, MOST_GROWTH * packed.start_dir)
        if size > most:
            raise ValueError(f"it unpacks to {size:,} bytes; allowed: {most:,}")
        yield Arrays(packed)
