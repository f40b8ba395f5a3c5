"""Model cards: text stays text. What a card says of a study is tested with exports."""

import html
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tlkd.cards import _classes, _source, _table, escaped


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


MARKS = st.text(st.sampled_from(list("`|<>&*_[](){}!\\~$#-=+:/.;'\" abx1\n")), max_size=30)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(MARKS)
@example("`a|<script>window.pwned=1</script>`")
@example("``<b>``")
@example("<img src=x onerror=alert(1)>")
@example("</td></tr></table><script>x</script>")
@example("![a](javascript:x)")
@example("&lt;script&gt;")
@example("`x\\`|<b>`")
@example("<!-- ")
@example("1. one")
def test_a_renderer_that_lets_html_through_shows_any_name_as_text(name: str) -> None:
    """As a class, in a paragraph and in a table of two columns, by a CommonMark renderer with tables."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    shown = " ".join(name.split())
    for source, allowed in ((f"Text: {escaped(name)} end", {"p", "code"}), (_classes([name, "b"]), {"p"}),
                            (_table([(name, name), ("b", name)]), {"table", "thead", "tbody", "tr", "th", "td",
                                                                   "code"})):
        page = renderer.render(source)
        tags = {tag.lower() for tag in re.findall(r"</?([a-zA-Z!][^\s>]*)", page)}
        assert tags <= allowed, page
        text = html.unescape(re.sub(r"<[^>]*>", "", page)).replace("`", "")
        assert " ".join(shown.replace("`", "").split()) in " ".join(text.split()), page
        assert page.count("<td") == (4 if "table" in allowed else 0)
