"""`tlkd annotate` in a real Chromium, against the real command: drawn by mouse and by keyboard, saved, used."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlkd.datasets import open_dataset
from tlkd.masks import open_masks
from tlkd.specs import Data

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install 'tlkd[dev]'")
pytest.importorskip("cv2", reason="the extra annotate is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium or google-chrome on this machine")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
SIDE = 40  # pixels of the images
SQUARE = [(8, 8), (30, 8), (30, 32), (8, 32)]


@dataclass
class Server:
    """`tlkd annotate` as it runs."""

    process: "subprocess.Popen[str]"
    address: str
    out: Path
    images: Path

    def file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found

    def outlines(self) -> list[list[float]]:
        return [each["segmentation"][0] for each in self.file()["annotations"]] if self.out.exists() else []

    def states(self) -> dict[str, str]:
        return {each["file_name"]: each["tlkd"]["state"] for each in self.file()["images"]}

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)[0]


@pytest.fixture
def serve(shapes_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    running = []

    def start(*words: str, images: Path = shapes_folder) -> Server:
        out = tmp_path / "masks.coco.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "tlkd", "annotate", str(images), "--out", str(out), "--no-browser", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "TLKD_CACHE": str(tmp_path / "cache")})
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("open "):
                return Server(process, line.split()[1], out, images)
        raise AssertionError(process.communicate()[1])

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@dataclass
class Tab:
    """The page as a person sees it."""

    page: Any
    said: list[str]  # errors of the console: there shall be none
    may_fail: bool = False  # some requests of this test are to fail

    def open(self, address: str) -> "Tab":
        self.page.goto(address)
        self.page.wait_for_selector(".a9s-annotationlayer")
        return self

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where on the page a pixel of the image lies."""
        box = self.page.locator("#stage canvas").bounding_box()
        return box["x"] + x / SIDE * box["width"], box["y"] + y / SIDE * box["height"]

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.place(x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*end), steps=4)
        self.page.mouse.up()

    def draw(self, points: list[tuple[float, float]]) -> None:
        for point in [*points, points[0]]:
            self.click(*point)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def suggest(self) -> None:
        self.press("s")
        self.page.wait_for_selector("#proposal:not([hidden])", timeout=20_000)

    def text(self, name: str) -> str:
        found: str = self.page.inner_text(f"#{name}")
        return found

    def at(self, name: str) -> None:
        """Wait until this image is shown."""
        self.page.wait_for_function("name => document.getElementById('name').textContent === name && "
                                    "!document.getElementById('suggest').disabled", arg=name)

    def wait(self, name: str, part: str) -> None:
        """Wait until an element's text has this in it."""
        self.page.wait_for_function("([name, part]) => document.getElementById(name).textContent.includes(part)",
                                    arg=[name, part])


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., Tab]]:
    opened = []

    def new(**more: Any) -> Tab:
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, **more)
        found = Tab(context.new_page(), [])
        found.page.set_default_timeout(10_000)
        found.page.on("console", lambda line: found.said.append(line.text) if line.type != "log" else None)
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        opened.append((context, found))
        return found

    yield new
    for context, found in opened:
        context.close()
        asked = "Failed to load resource" if found.may_fail else "nothing"
        assert [line for line in found.said if not line.startswith(asked)] == []


def wait_for(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            if true():
                return
        time.sleep(0.05)
    raise AssertionError("it did not come true")


def corners(outline: list[float]) -> list[tuple[float, float]]:
    return list(zip(outline[::2], outline[1::2], strict=True))


def test_an_outline_drawn_corrected_and_used(serve: Callable[..., Server], tab: Callable[..., Tab],
                                             shapes_folder: Path, tmp_path: Path) -> None:
    server, here = serve(), tab()
    here.open(server.address)
    box = here.page.locator("#stage canvas").bounding_box()
    assert min(box["width"], box["height"]) >= 512
    assert here.page.evaluate("getComputedStyle(document.querySelector('#stage canvas')).imageRendering") == "pixelated"
    here.draw(SQUARE)
    wait_for(lambda: len(server.outlines()) == 1)
    np.testing.assert_allclose(corners(server.outlines()[0]), SQUARE, atol=0.1)
    here.wait("saved", "Saved")

    here.drag((30, 32), (36, 36))  # a point
    wait_for(lambda: abs(server.outlines()[0][4] - 36) < 0.1)
    here.page.keyboard.press("Control+z")
    wait_for(lambda: abs(server.outlines()[0][4] - 30) < 0.1)
    here.page.keyboard.press("Control+y")
    wait_for(lambda: abs(server.outlines()[0][4] - 36) < 0.1)

    here.click(20, 20)  # the outline
    here.page.wait_for_selector(".a9s-corner-handle")
    here.page.wait_for_timeout(300)  # no hand is quicker; Annotorious would take both for one click
    here.click(36, 36)  # a point of it
    here.page.wait_for_selector(".a9s-handle-selected")
    here.press("Delete")  # the marked point alone
    wait_for(lambda: len(server.outlines()[0]) == 6)
    here.page.keyboard.press("Control+z")
    wait_for(lambda: len(server.outlines()[0]) == 8)

    here.press("Escape")
    here.draw([(2, 2), (6, 2), (2, 6)])  # several outlines
    wait_for(lambda: len(server.outlines()) == 2)
    here.press("Delete")  # the one that was drawn last is marked
    wait_for(lambda: len(server.outlines()) == 1)
    here.page.keyboard.press("Control+z")
    wait_for(lambda: len(server.outlines()) == 2)

    here.press("n")
    here.at("test/disc/001.png")
    here.page.reload()
    here.at("test/disc/001.png")  # where it was
    here.press("p")
    here.at("test/disc/000.png")
    assert here.page.locator("[data-id^='outline']").count() == 2
    assert here.text("progress") == "1 done, 23 left"

    said = server.stop()
    assert "1 of 24 images done, 23 left" in said
    assert f"--set data.masks={server.out}" in said
    data = Data(source=f"folder:{shapes_folder}", masks=str(server.out))
    dataset = open_dataset(data, SIDE, tmp_path / "cache")
    found = open_masks(data, dataset, SIDE, tmp_path / "cache")
    assert [dataset.ids[row] for row in found.rows] == ["test/disc/000.png"]
    assert found.masks[0, 9:31, 9:29].all()
    assert found.masks[0, 3, 3]
    assert not found.masks[0, :8, 10:].any()


def test_the_keyboard_is_enough(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, here = serve("--per-class", "2"), tab()
    here.open(server.address)
    images = json.loads(here.page.request.get(f"{server.address}api/overview").text())["images"]
    names = [image["name"] for image in images]
    here.suggest()
    assert server.outlines() == []  # a suggestion is not an outline yet
    here.press("Enter")
    wait_for(lambda: server.states()[names[0]] == "outlined")
    here.press("Enter")
    here.at(names[1])
    here.press("k")
    here.at(names[2])
    here.press("f")
    here.at(names[3])
    here.press("u")
    here.suggest()
    here.press("Escape")  # discarded
    here.press("ArrowRight")
    here.at(names[4])
    here.press("ArrowLeft", "ArrowLeft")
    here.at(names[2])
    expected = ["outlined", "skipped", "no_foreground"]  # by name: the file lists images in the order they were saved
    wait_for(lambda: [server.states().get(name) for name in names[:3]] == expected)
    assert here.text("state") == "no foreground"
    assert here.text("progress") == "2 done, 3 left, 1 skipped"
    here.press("ArrowLeft", "ArrowLeft")
    here.at(names[0])
    before = server.outlines()[0]
    here.page.locator("[data-id^='outline']").first.click()
    here.page.wait_for_selector(".a9s-corner-handle")
    here.page.locator(".a9s-corner-handle .a9s-handle-buffer").first.focus()
    assert here.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Point 1 of ")
    here.press("ArrowRight")
    wait_for(lambda: abs(server.outlines()[0][0] - before[0] - 1) < 0.02)
    assert here.text("name") == names[0]
    here.press("Escape", "?")
    assert here.page.locator("#keys").evaluate("dialog => dialog.open")
    here.press("Escape")
    assert not here.page.locator("#keys").evaluate("dialog => dialog.open")


def test_a_suggestion_is_corrected_by_dragging(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, here = serve(), tab()
    here.open(server.address)
    here.press("b")
    here.drag((2, 2), (36, 36))
    here.page.wait_for_selector("#proposal:not([hidden])", timeout=20_000)
    assert server.outlines() == []
    handle = here.page.locator(".a9s-corner-handle").first.bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    here.page.mouse.move(x, y)
    here.page.mouse.down()
    here.page.mouse.move(x + 15, y + 10, steps=4)
    here.page.mouse.up()
    wait_for(lambda: len(server.outlines()) == 1)
    assert here.page.locator("#proposal").is_hidden()
    here.press("Escape")
    dashes = "() => getComputedStyle(document.querySelector('[data-id] .a9s-inner')).strokeDasharray"
    assert here.page.evaluate(dashes) == "none"


def test_points_can_be_taken_back_while_drawing(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, here = serve(), tab()
    here.open(server.address)
    for point in [*SQUARE[:3], (38, 38)]:
        here.click(*point)
    here.press("Backspace")
    here.click(*SQUARE[3])
    here.press("Enter")
    wait_for(lambda: len(server.outlines()) == 1)
    np.testing.assert_allclose(corners(server.outlines()[0]), SQUARE, atol=0.1)
    for point in [(1, 1), (5, 1), (1, 5)]:
        here.click(*point)
    here.press("ArrowRight")  # one that is not closed yet is closed
    wait_for(lambda: len(server.outlines()) == 2)


def test_two_tabs_lose_nothing(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, one, two = serve(), tab(), tab()
    two.may_fail = True
    two.page.route("**/api/changes*", lambda route: route.abort())  # it has not looked yet at what the other did
    one.open(server.address)
    two.open(server.address)
    one.draw(SQUARE)
    wait_for(lambda: len(server.outlines()) == 1)
    two.draw([(2, 2), (6, 2), (2, 6)])
    wait_for(lambda: len(server.outlines()) == 2)
    two.wait("say", "both tabs")
    assert two.page.locator("[data-id^='outline']").count() == 2
    one.wait("say", "Another tab has changed this image")
    assert one.page.locator("[data-id^='outline']").count() == 2
    one.press("k")
    assert server.states()["test/disc/000.png"] == "outlined"  # skipping does not throw outlines away


def test_a_change_in_another_tab_does_not_end_an_outline_that_is_begun_meanwhile(serve: Callable[..., Server],
                                                                                tab: Callable[..., Tab]) -> None:
    server, one, two = serve(), tab(), tab()
    two.may_fail = True
    one.open(server.address)
    two.open(server.address)
    late: list[Any] = []

    def hold(route: Any) -> None:
        late.append(route)

    two.page.route("**/api/images/0", hold)
    one.draw(SQUARE)
    for _ in range(100):
        if late:
            break
        two.page.wait_for_timeout(100)
    two.click(2, 2)  # while the answer is under way
    late.pop().continue_()
    two.page.unroute("**/api/images/0")
    two.page.wait_for_timeout(300)
    two.click(6, 2)
    two.click(2, 6)
    two.press("Enter")
    wait_for(lambda: len(server.outlines()) == 2)
    two.wait("say", "both tabs")


def test_a_file_changed_outside(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, here = serve(), tab()
    here.open(server.address)
    here.draw(SQUARE)
    wait_for(lambda: len(server.outlines()) == 1)
    here.may_fail = True
    theirs = server.out.read_text().replace('"area"', '"by_hand": 1, "area"')
    server.out.write_text(theirs)
    here.press("Escape")
    here.draw([(2, 2), (6, 2), (2, 6)])
    here.wait("alert-text", "changed by something else")
    kept = server.out.with_name("masks.coco.kept-1.json")
    here.wait("alert-text", str(kept))
    here.wait("saved", "Kept in another file")
    assert server.out.read_text() == theirs
    assert len(json.loads(kept.read_text())["annotations"]) == 2
    here.page.click("#alert-action")
    here.page.wait_for_selector("#alert", state="hidden")
    here.wait("say", str(kept))
    assert here.page.locator("[data-id^='outline']").count() == 1
    here.press("u")
    wait_for(lambda: server.file()["annotations"][0]["attributes"]["uncertain"] is True)
    assert server.file()["annotations"][0]["by_hand"] == 1


def test_a_server_that_is_gone(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, here = serve(), tab(accept_downloads=True)
    here.open(server.address)
    server.stop()
    here.may_fail = True
    here.draw(SQUARE)
    here.wait("alert-text", "1 image could not be saved")
    with here.page.expect_download() as download:
        here.page.click("#alert-action")
    found = json.loads(Path(download.value.path()).read_text())
    np.testing.assert_allclose(corners(found["annotations"][0]["segmentation"][0]), SQUARE, atol=0.1)
    saved = server.out.with_name("unsaved.json")
    saved.write_text(json.dumps(found))
    again = serve("--open", str(saved))
    assert len(again.outlines()) == 1


def test_hostile_names_are_text(serve: Callable[..., Server], tab: Callable[..., Tab], tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='pwned'\">"
    for part in ("train", "test"):
        for name in (hostile, "b"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (SIDE, SIDE), (90, 20, 20)).save(folder / "<script>document.title=1<_script>.png")
    server, here = serve(images=tmp_path / "images"), tab()
    here.open(server.address)
    assert here.text("label") == hostile
    assert hostile in here.text("classes")
    assert here.page.locator("#label img, #classes .label img, #name script").count() == 0
    assert here.page.title().startswith("<img")
    here.draw(SQUARE)
    wait_for(lambda: len(server.outlines()) == 1)


def test_an_image_that_vanished_is_said_and_passed_over(serve: Callable[..., Server], tab: Callable[..., Tab],
                                                        shapes_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_folder, tmp_path / "images")
    server, here = serve(images=tmp_path / "images"), tab()
    (tmp_path / "images" / "test" / "disc" / "000.png").unlink()
    here.may_fail = True
    here.page.goto(server.address)
    here.page.wait_for_selector(".blank")
    assert "test/disc/000.png: this image cannot be read: the file is gone" in here.text("stage")
    here.press("Enter")
    here.at("test/disc/001.png")
    here.draw(SQUARE)
    wait_for(lambda: len(server.outlines()) == 1)


def test_keys_that_come_before_the_image_are_not_lost(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, here = serve("--per-class", "2"), tab()
    here.open(server.address)
    here.page.route("**/images/*", lambda route: (time.sleep(0.2), route.continue_()))
    here.press("k", "f", "k", "f")
    here.page.wait_for_function("() => document.getElementById('position').textContent === '5 of 6'")
    wait_for(lambda: [state for _, state in sorted(server.states().items())] == ["skipped", "no_foreground"] * 2)


def test_zoom(serve: Callable[..., Server], tab: Callable[..., Tab]) -> None:
    server, here = serve(), tab()
    here.open(server.address)
    width = here.page.locator("#stage canvas").bounding_box()["width"]
    here.page.mouse.move(*here.place(30, 30))
    for _ in range(3):
        here.page.mouse.wheel(0, -120)
    here.page.wait_for_function("() => document.getElementById('zoom').textContent !== '100 %'")
    assert here.page.locator("#stage canvas").bounding_box()["width"] > 1.4 * width
    here.draw([(29, 29), (32, 29), (32, 32)])  # where the pointer was is still in view
    wait_for(lambda: len(server.outlines()) == 1)
    np.testing.assert_allclose(corners(server.outlines()[0]), [(29, 29), (32, 29), (32, 32)], atol=0.1)
    here.press("0")
    assert here.page.locator("#stage canvas").bounding_box()["width"] == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_can_be_read(serve: Callable[..., Server], tab: Callable[..., Tab],
                                                  scheme: str) -> None:
    server, here = serve("--per-class", "1"), tab(color_scheme=scheme)
    here.open(server.address)
    names = here.page.evaluate("""() => [...document.querySelectorAll('button, input, svg[role], [role=button]')]
        .filter(each => each.tagName === 'svg' || each.offsetParent)
        .map(each => (each.getAttribute('aria-label') || each.labels?.[0]?.textContent || each.textContent).trim())""")
    assert len(names) > 20
    assert all(names)
    assert here.page.get_attribute("#say", "aria-live") == "polite"
    assert here.page.evaluate("document.documentElement.lang") == "en"
    assert here.page.evaluate("document.documentElement.scrollWidth <= innerWidth "
                              "&& document.documentElement.scrollHeight <= innerHeight")
    pairs = here.page.evaluate("""() => {
        const shown = element => { // the first background that is not see-through
            for (let each = element; each; each = each.parentElement) {
                const colour = getComputedStyle(each).backgroundColor;
                if (!/, 0\\)$/.test(colour)) return colour;
            }
            return 'rgb(255, 255, 255)';
        };
        return [...document.querySelectorAll('button:not(:disabled), legend, #progress, #name, #position, #state, kbd')]
            .filter(each => each.offsetParent && !each.closest(':disabled') && each.textContent.trim())
            .map(each => [each.textContent.trim(), getComputedStyle(each).color, shown(each)]);
    }""")
    assert len(pairs) > 20
    for text, front, back in pairs:
        assert contrast(front, back) >= 4.5, (text, front, back)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 defines it."""
    lights = []
    for colour in (one, other):
        parts = np.array([float(each) for each in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)
