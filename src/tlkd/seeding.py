"""Seeds derived from names, so that no result depends on the order of calls."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

Name = str | int


def seed_from(*names: Name) -> int:
    """A seed in [0, 2^63) that depends on `names` alone, e.g. `seed_from("order", seed, epoch)`."""
    text = json.dumps(names, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(*names: Name) -> np.random.Generator:
    """A NumPy generator seeded by `names` alone."""
    return np.random.default_rng(seed_from(*names))


def keys(ids: list[str]) -> NDArray[np.uint64]:
    """A 64-bit key for each sample id, `[sample]`: what the draws that belong to a sample are made from."""
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def uniforms(sample_keys: NDArray[np.uint64], count: int, *names: Name) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for each sample, `[sample, count]`, a function of its key and `names` alone.

    A sample gets the same numbers in whatever batch it comes. The generator is SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", OOPSLA 2014) counted on from the sample's own key.
    """
    state = sample_keys.astype(np.uint64) ^ np.uint64(seed_from(*names))
    counter = np.arange(1, count + 1, dtype=np.uint64)
    mixed = state[:, None] + counter[None, :] * np.uint64(0x9E3779B97F4A7C15)  # wraps, as it should
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    fractions: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions
