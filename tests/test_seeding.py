"""Seeds from names: the same whatever was called before, whatever the batch, whatever the process."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tlkd.seeding import generator, keys, seed_from, uniforms

IDS = [f"train/{number}.png" for number in range(4000)]
WORD = 2**64


def splitmix(state: int, count: int) -> list[int]:
    """The published generator, in Python's integers."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % WORD
        outputs.append(mixed ^ (mixed >> 31))
    return outputs


def test_a_seed_is_what_it_was_in_the_first_version():
    assert seed_from("order", 0, 1) == int.from_bytes(hashlib.sha256(b'["order",0,1]').digest()[:8], "little") // 2
    assert seed_from("order", 0, 1) == 6874446884649272786


names = st.lists(st.one_of(st.text(), st.integers()), max_size=4)


@given(names, names)
def test_seeds_fit_63_bits_and_differ_where_names_do(one, other):
    assert 0 <= seed_from(*one) < 2**63
    assert (seed_from(*one) == seed_from(*other)) == (one == other)


@pytest.mark.parametrize(("one", "other"), [
    ((1,), ("1",)), (("a", "b"), ("ab",)), (("a", "b"), ("b", "a")), (("a",), ("a", 0)), (("a,b",), ("a", "b")),
    (('a","b',), ("a", "b"))])
def test_names_that_look_alike_give_other_seeds(one, other):
    assert seed_from(*one) != seed_from(*other)


def test_a_generator_starts_anew_at_each_call():
    first = generator("views", 3, 2).integers(2**32, size=5)
    np.random.default_rng(0).random(1000)
    np.testing.assert_array_equal(generator("views", 3, 2).integers(2**32, size=5), first)
    np.testing.assert_array_equal(np.random.default_rng(seed_from("views", 3, 2)).integers(2**32, size=5), first)
    assert not np.array_equal(generator("views", 3, 3).integers(2**32, size=5), first)


def test_a_key_belongs_to_its_id_alone():
    found = keys(IDS)
    assert found.dtype == np.uint64 and found.shape == (4000,)
    assert int(found[7]) == int.from_bytes(hashlib.sha256(IDS[7].encode()).digest()[:8], "little")
    np.testing.assert_array_equal(keys(IDS[::-1]), found[::-1])
    assert len(set(found.tolist())) == 4000
    assert keys([]).shape == (0,)


def test_the_published_generator_gives_its_published_numbers():
    """Rosetta Code lists the first five outputs of SplitMix64 from 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                 16408922859458223821]
    assert splitmix(1234567, 5) == published
    key = np.array([1234567 ^ seed_from("any", 1)], np.uint64)
    np.testing.assert_array_equal(uniforms(key, 5, "any", 1)[0], [(number >> 11) / 2**53 for number in published])


def test_uniforms_are_the_literal_generator_from_each_key():
    sample_keys = keys(IDS[:50])
    seed = seed_from("crop", 0, 2)
    twin = [[(number >> 11) / 2**53 for number in splitmix(int(key) ^ seed, 4)] for key in sample_keys]
    np.testing.assert_array_equal(uniforms(sample_keys, 4, "crop", 0, 2), twin)


@given(st.permutations(range(12)), st.integers(1, 12))
def test_a_sample_draws_the_same_in_every_batch(order, size):
    whole = uniforms(keys(IDS[:12]), 3, "x")
    batch = order[:size]
    np.testing.assert_array_equal(uniforms(keys([IDS[i] for i in batch]), 3, "x"), whole[batch])
    np.testing.assert_array_equal(uniforms(keys(IDS[:12]), 2, "x"), whole[:, :2])


def test_uniforms_are_uniform_and_unrelated():
    draws = uniforms(keys(IDS), 4, "crop", 0, 0)
    assert draws.min() >= 0 and draws.max() < 1
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in draws.T)
    others = [uniforms(keys(IDS), 4, *names) for names in (("crop", 0, 1), ("crop", 1, 0), ("flip", 0, 0))]
    related = np.corrcoef(np.hstack([draws, *others]).T) - np.eye(16)
    assert np.abs(related).max() < 5 / np.sqrt(len(IDS))


def test_uniforms_stay_below_one_at_the_largest_word():
    """2^64 - 1 as a float64 would be rounded to 1."""
    state = _unmix(WORD - 1) - 0x9E3779B97F4A7C15
    key = np.array([(state % WORD) ^ seed_from("x")], np.uint64)
    assert uniforms(key, 1, "x")[0, 0] == 1 - 2**-53


def _unmix(value: int) -> int:
    """The state whose mixed word this is."""
    value = _unshift(value, 31)
    value = _unshift(value * pow(0x94D049BB133111EB, -1, WORD) % WORD, 27)
    return _unshift(value * pow(0xBF58476D1CE4E5B9, -1, WORD) % WORD, 30)


def _unshift(value: int, by: int) -> int:
    found = value
    for _ in range(64 // by + 1):
        found = value ^ (found >> by)
    return found
