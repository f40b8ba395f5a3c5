"""Names are text, never markup: a real study of real folders with hostile names, its pages in a real browser."""

import html
import os
import shutil
from pathlib import Path

import pytest
import torch

from bad_workplace import images
from tlkd import comparison_report, report
from tlkd.reading import validate
from tlkd.study import run_study

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install 'tlkd[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium or google-chrome on this machine")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
CLASSES = ("<script>window.__pwned=1<\u2215script>", '"><img src=x onerror="window.__pwned=2">', "{{7*7}}{%x%}",
           "<\u2215style><svg onload=window.__pwned=3>", "&amp;&lt;b&gt;",
           "$x^2$ \\frac _a_ **b** `c` [d](javascript:e)",
           "\u202eright to left", "\U0001f600 emoji", "$unclosed")
FOOTNOTE = "<script>window.__pwned=4</script> {{8*8}} `<img src=x onerror=window.__pwned=5>` $y"
FILE = '"><img src=x onerror=window.__pwned=6>&lt;.png'  # of a sound image, and of one that is left out
BROKEN = "<script>window.__pwned=7<\u2215script>.png"
LABEL = "<script>window.__pwned=8</script> & {{9*9}}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages of a study with a footnote, run on these classes, and of its comparison with itself."""
    at = tmp_path_factory.mktemp("markup")
    images(at / "images", CLASSES, train=3, test=2)
    first = at / "images" / "test" / CLASSES[0]
    (first / "0.png").rename(first / FILE)
    (first / BROKEN).write_bytes(b"no image")
    raw = {"name": "markup", "data": {"source": f"folder:{at / 'images'}", "augment": [], "dev_fraction": 0,
                                    "on_bad_image": "skip"},
           "selection": "test", "student": {"model": "timm:test_resnet", "weights": "none", "input_size": 32},
           "teachers": {"big": {"model": "timm:test_resnet", "weights": "none", "input_size": 32}},
           "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "big"}],
           "training": {"epochs": 1}, "seeds": [0, 1], "footnotes": [FOOTNOTE]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKD_CACHE", str(at / "cache"))
        for name in ("one", "two"):
            run_study(validate({**raw, "name": name}, name), at / name, torch.device("cpu"))
            report.write(at / name)
        comparison_report.write([at / "one", at / "two"], at / "both", [LABEL, "two"])
    found = {str(path.relative_to(at)): path.read_text() for path in at.rglob("*.html")}
    return {**found, **{str(path.relative_to(at)): path.read_text() for path in at.rglob("*.svg")}}


@pytest.mark.slow
def test_pages_and_figures_show_names_and_run_nothing(pages: dict[str, str], tmp_path: Path) -> None:
    assert {"one/report.html", "two/report.html"} <= set(pages)
    assert any(name.startswith("both/") for name in pages)
    said: list[str] = []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for name, text in pages.items():
            place = tmp_path / name.replace(os.sep, "-")
            place.write_text(text)
            page = browser.new_page()
            page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(place.as_uri())
            assert page.evaluate("window.__pwned") is None, name
            assert all(url.startswith((place.as_uri(), "data:")) for url in asked), (name, asked)
            assert page.locator("[onerror], [onload], img[src=x], a[href^=javascript]").count() == 0, name
            if name.endswith("report.html") and name.startswith("one"):
                shown = page.evaluate("document.documentElement.textContent")
                for each in (*CLASSES, FOOTNOTE.partition("`")[0]):
                    assert each in shown, each
                assert "{{7*7}}" in shown
                assert BROKEN in shown
                assert html.escape(CLASSES[0]) in text
            if name.startswith("both") and name.endswith(".html"):
                assert LABEL in page.evaluate("document.documentElement.textContent")
            page.close()
        browser.close()
    assert not said
