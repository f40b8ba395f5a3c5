"""Model cards: text stays text. What a card says of a study is tested with exports."""

import pytest

from tlkd.cards import _classes, _source, escaped


@pytest.mark.parametrize(("text", "shown"), [
    ("tl_kd", r"tl\_kd"), ("a|b", r"a\|b"), ("<script>", "&lt;script&gt;"), ("[x](y)", r"\[x\](y)"),
    ("*a*  b\nc", r"\*a\* b c"), ("R&B", "R&amp;B"), ("see `a_b` there", "see `a_b` there"),
    ("a lone ` sign", r"a lone \` sign"), ("back\\slash", r"back\\slash"), ("$x$", r"\$x\$"), ("~~a~~", r"\~\~a\~\~")])
def test_signs_of_markdown_are_signs(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_class_names_are_never_code_and_many_are_cut() -> None:
    assert _classes(["`a`", "b\n# c"]) == r"In the order of the outputs, counted from 0: \`a\`, b # c."
    assert _classes([str(number) for number in range(1000)]).endswith("59, and 940 more, all of them in `config.json`.")


def test_a_source_is_named_without_the_folders_it_lies_in() -> None:
    assert _source("folder:/home/me/secret/photos.zip") == "folder: photos.zip"
    assert _source("torchvision:CIFAR10") == "torchvision:CIFAR10"
