"""Take the tutorial's screenshots in a real browser, of a study that is made on the spot.

    python docs/take_screenshots.py                  # all of them, into docs/screenshots
    python docs/take_screenshots.py report watch     # these alone

The folder of images is painted (tlkd's source `shapes`), the study is the tutorial's own. The browser is the system's
Chromium; CHROMIUM names another one. Work lies in out/screenshots, and what is finished there is not repeated.
"""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tlkd import shapes
from tlkd.specs import Shapes

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "screenshots"
WORK = HERE.parent / "out" / "screenshots"
TLKD = [sys.executable, "-m", "tlkd"]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"]
SIZE = {"width": 1200, "height": 800}
LARGEST = 200_000  # bytes of a picture
TRAIN, TEST = 100, 50  # painted scenes of each class
PATIENCE = 120.0  # seconds for a server to answer


def main(names: list[str]) -> None:
    """Take the screenshots of these names, or all."""
    for name in names:
        if name not in SCREENSHOTS:
            raise SystemExit(f"{name}: no such screenshot; allowed: {', '.join(SCREENSHOTS)}")
    FOLDER.mkdir(exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)  # so that no path of this machine is shown
    make_images()
    make_study()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name in names or SCREENSHOTS:
            SCREENSHOTS[name](browser)
            print(f"{FOLDER / name}.png  {(FOLDER / f'{name}.png').stat().st_size:,} bytes")
        browser.close()


# --- what is shown ----------------------------------------------------------------------------------------------------


def make_images() -> None:
    """Paint the tutorial's folder `images/{train,test}/<class>/*.png`."""
    settings = Shapes(size=96, train_per_class=TRAIN, test_per_class=TEST)
    listed = shapes.samples(settings, 0)
    for name, label, held_out in zip(listed.ids, listed.labels, listed.held_out, strict=True):
        path = WORK / "images" / ("test" if held_out else "train") / shapes.CLASSES[label] / f"{Path(name).name}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shapes.render(name, settings, 0).save(path)


def make_study() -> None:
    """Run the tutorial's study, stopping once in its middle for a look at `tlkd watch`."""
    (text,) = re.findall(r"```yaml\n(name: mine.*?)```", (HERE / "tutorial.md").read_text(), re.DOTALL)
    (WORK / "mine.yaml").write_text(text)
    if not (WORK / "watch.html").exists():
        running = subprocess.Popen([*TLKD, "run", "mine.yaml", "--jobs", "1"])
        try:
            while running.poll() is None and not write_frame(at_least=5):
                time.sleep(0.5)
        finally:
            running.terminate()
            running.wait()
    if not (WORK / "out/mine/report.html").exists():
        subprocess.run([*TLKD, "run", "mine.yaml", "--jobs", "1"], check=True)


def write_frame(at_least: int) -> bool:
    """Keep a frame of `tlkd watch` as a page once this many runs are done and another one is in training."""
    from rich.console import Console

    from tlkd.errors import BadInput
    from tlkd.outlook import Watcher
    from tlkd.watching import frame

    try:
        outlook = Watcher(Path("out/mine")).look()
    except BadInput:
        return False  # nothing is there yet
    if sum(run.state == "done" for run in outlook.found.runs) < at_least or not outlook.training:
        return False
    os.environ.pop("NO_COLOR", None)
    console = Console(width=104, height=24, record=True, force_terminal=True, color_system="truecolor",
                      file=Path(os.devnull).open("w"), highlight=False, emoji=False, markup=False)  # noqa: SIM115
    console.print(frame(outlook, console, console.height), end="")
    from rich.terminal_theme import MONOKAI

    (WORK / "watch.html").write_text(console.export_html(theme=MONOKAI, code_format=TERMINAL), encoding="utf-8")
    return True


TERMINAL = """<!doctype html><meta charset="utf-8"><style>{stylesheet}
body {{ margin: 0; background: {background}; color: {foreground}; }}
pre {{ display: inline-block; margin: 0; padding: 18px 22px; font: 15px/1.35 "DejaVu Sans Mono", monospace; }}
</style><pre><span>$ tlkd watch out/mine</span>

{code}</pre>"""


# --- the screenshots --------------------------------------------------------------------------------------------------


def take_report(browser: Browser) -> None:
    """The first screen of the report."""
    with page_at(browser, (WORK / "out/mine/report.html").as_uri()) as page:
        keep(page.screenshot(), "report")


def take_attributions(browser: Browser) -> None:
    """The report's pictures of attributions."""
    with page_at(browser, (WORK / "out/mine/report.html").as_uri()) as page:
        page.get_by_role("heading", name="Pictures").evaluate(
            "element => window.scrollTo(0, element.getBoundingClientRect().top + window.scrollY - 16)")
        keep(page.screenshot(), "attributions")


def take_watch(browser: Browser) -> None:
    """`tlkd watch` in the middle of the study."""
    with page_at(browser, (WORK / "watch.html").as_uri()) as page:
        keep(page.locator("pre").screenshot(), "watch")


def take_annotate(browser: Browser) -> None:
    """The page for drawing masks: some images are done, and for the next one an outline is suggested."""
    Path("masks.coco.json").unlink(missing_ok=True)
    with served([*TLKD, "annotate", "--study", "out/mine", "--out", "masks.coco.json", "--no-browser"]) as process:
        assert process.stdout is not None
        address = next(found.group() for line in process.stdout if (found := re.search(r"http://\S+", line)))
        with page_at(browser, address) as page:
            for number in range(4):
                page.locator("#stage canvas, #stage img").first.wait_for()
                page.keyboard.press("s")
                page.locator("#proposal").wait_for()
                if number < 3:
                    page.keyboard.press("Enter")  # take it
                    page.locator("#proposal").wait_for(state="hidden")
                    page.keyboard.press("Enter")  # and go on
                    page.wait_for_timeout(1000)
            keep(page.screenshot(), "annotate")


def take_mlflow(browser: Browser) -> None:
    """MLflow's own page with the study's runs."""
    subprocess.run([*TLKD, "run", "mine.yaml", "--track", "mlflow"], check=True)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///out/mine/mlflow.db", "--port",
               str(port)]
    with served(command):
        wait_for(f"http://127.0.0.1:{port}/health")
        with page_at(browser, f"http://127.0.0.1:{port}/") as page:
            page.get_by_text("mine", exact=True).first.click()
            page.get_by_text("Model training", exact=True).first.click(force=True)  # below what it advertises
            page.get_by_text("Runs", exact=True).first.click(force=True)
            page.get_by_role("button", name="Close", exact=True).first.click(force=True)
            page.locator("input[value=CHART]").evaluate("element => element.click()")
            page.wait_for_timeout(3000)
            box = page.locator(".ag-row").get_by_text("mine", exact=True).first.bounding_box()
            assert box is not None
            page.mouse.click(box["x"] - 32, box["y"] + box["height"] / 2)  # the nameless sign that unfolds a study
            page.get_by_text("tl_kd-clean-0").first.wait_for()
            page.wait_for_timeout(8000)  # its charts come in late, and it never stops asking
            keep(page.screenshot(), "mlflow")


SCREENSHOTS: dict[str, Callable[[Browser], None]] = {
    "report": take_report, "attributions": take_attributions, "watch": take_watch, "annotate": take_annotate,
    "mlflow": take_mlflow}


# --- small things -----------------------------------------------------------------------------------------------------


@contextmanager
def page_at(browser: Browser, address: str) -> Iterator[Page]:
    """A fresh page, light, at an address."""
    context = browser.new_context(viewport=SIZE, color_scheme="light", reduced_motion="reduce")  # type: ignore[arg-type]
    try:
        page = context.new_page()
        page.goto(address)
        yield page
    finally:
        context.close()


@contextmanager
def served(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server as long as it is needed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(address: str) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise SystemExit(f"{address}: no answer in {PATIENCE:.0f} seconds") from None
            time.sleep(0.5)


def keep(picture: bytes, name: str) -> None:
    """Store a picture with as few colours as it takes to stay small."""
    path = FOLDER / f"{name}.png"
    path.write_bytes(picture)
    shown = Image.open(path).convert("RGB")
    for colours in (256, 128, 64, 32):
        shown.quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return
    raise SystemExit(f"{path}: larger than {LARGEST:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
