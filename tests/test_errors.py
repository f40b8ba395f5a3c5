"""The two exceptions, and the words that a mistyped name is answered with."""

import pytest

from tlkd.errors import BadInput, RunFailed, nearest

ALLOWED = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet18"]


@pytest.mark.parametrize(("word", "said"), [
    ("resnet81", "; did you mean 'resnet18'?"),
    ("lite2", "; did you mean 'efficientnet_lite2'?"),  # a part of a name is far from it in letters
    ("LITE2", "; did you mean 'efficientnet_lite2'?"),
    ("lite", "; did you mean 'efficientnet_lite0' or 'efficientnet_lite1' or 'efficientnet_lite2'?"),
    ("zzz", ""),
    ("", ""),
])
def test_the_nearest_names_are_named(word: str, said: str) -> None:
    assert nearest(word, ALLOWED) == said


def test_the_count_of_names_is_held() -> None:
    assert nearest("lite", ALLOWED, 1) == "; did you mean 'efficientnet_lite0'?"


def test_nothing_is_near_where_nothing_is_allowed() -> None:
    assert nearest("resnet18", []) == ""


def test_bad_input_and_a_failed_run_are_not_caught_as_each_other() -> None:
    assert not issubclass(BadInput, RunFailed)
    assert not issubclass(RunFailed, BadInput)
    assert not issubclass(BadInput, ValueError)  # pydantic would swallow it in a validator
