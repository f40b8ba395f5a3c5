"""The page's server: it answers its own page, and nobody and nothing else."""

import hashlib
import io
import json
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import tlkd
from conftest import refused
from tlkd import annotator, gatekeeper, sources
from tlkd.annotator import Options, annotate, make_app
from tlkd.chosen import Choice
from tlkd.desk import Desk, Place
from tlkd.outlines import Outlines

TOKEN, PORT = "tok-EN_1", 8123
HOST, ORIGIN = f"127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT}"
SQUARE = [[4.0, 4.0], [20.0, 4.0], [20.0, 20.0], [4.0, 20.0]]
PAGE = Path(tlkd.__file__).parent / "annotator_page"
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture
def desk(shapes_folder: Path, tmp_path: Path) -> Desk:
    samples = sources.folder(shapes_folder, "shapes")
    assert samples.held_out is not None
    outlines = Outlines(tmp_path / "masks.json", samples, np.flatnonzero(samples.held_out))
    return Desk(outlines, Place("masks.json", "folder:shapes", "tlkd run"))


@pytest.fixture
def page(desk: Desk) -> TestClient:
    """What a browser does that has the page open: it says where its requests come from."""
    return TestClient(make_app(desk, TOKEN, PORT), base_url=f"{ORIGIN}/{TOKEN}/", headers={"Origin": ORIGIN})


def change(**more: Any) -> dict[str, Any]:
    return {"revision": 0, "state": "outlined", "polygons": [SQUARE], **more}


# What the page gets


def test_a_change_is_saved_and_told(page: TestClient, tmp_path: Path) -> None:
    overview = page.get("api/overview").json()
    assert [len(overview["images"]), overview["images"][0]] == [24, {"name": "test/disc/000.png", "label": "disc",
                                                                    "state": "open", "revision": 0}]
    saved = page.put("api/images/0", json=change(uncertain=True))
    assert (saved.status_code, saved.json()) == (200, {"state": "outlined", "polygons": [SQUARE], "uncertain": True,
                                                      "revision": 1})
    assert page.get("api/images/0").json() == {"width": 40, "height": 40, **saved.json()}
    assert page.get(f"api/changes?since={overview['clock']}").json() == {
        "clock": overview["clock"] + 1, "images": {"0": {"state": "outlined", "revision": 1}}, "outside": None}
    assert len(json.loads((tmp_path / "masks.json").read_text())["annotations"]) == 1


def test_a_stale_change_gets_what_a_merge_would_give(page: TestClient) -> None:
    page.put("api/images/0", json=change())
    other = [[1.0, 30.0], [9.0, 30.0], [9.0, 39.0]]
    answer = page.put("api/images/0", json=change(polygons=[other]))
    assert answer.status_code == 409
    body = answer.json()
    assert (body["kind"], body["current"]["polygons"], body["merged"]["polygons"]) == ("stale", [SQUARE],
                                                                                     [SQUARE, other])
    assert page.put("api/images/0", json=change(polygons=body["merged"]["polygons"], revision=1)).status_code == 200


def test_a_file_changed_outside_is_told_and_reloaded(page: TestClient, tmp_path: Path) -> None:
    page.put("api/images/0", json=change())
    (tmp_path / "masks.json").write_text((tmp_path / "masks.json").read_text().replace("20.0", "19.0"))
    assert page.get("api/changes?since=0").json()["outside"] == {"what": "changed", "kept": None}
    answer = page.put("api/images/1", json=change())
    assert (answer.status_code, answer.json()["kind"]) == (409, "outside")
    assert answer.json()["outside"]["kept"].endswith("masks.kept-1.json")
    assert page.post("api/reload", json={}).json()["outside"] is None
    assert page.get("api/images/0").json()["polygons"][0][1] == [19.0, 4.0]


def test_suggestions(page: TestClient) -> None:
    for body in ({}, {"box": None}, {"box": [2, 2, 38, 38]}, {"box": [-5, -5, 99, 99]}):
        answer = page.post("api/images/0/suggestion", json=body)
        assert answer.status_code == 200
        assert isinstance(answer.json()["polygons"], list)
    answer = page.post("api/images/0/suggestion", json={"box": [5, 5, 5.5, 30]})
    assert (answer.status_code, "less than a pixel" in answer.json()["reason"]) == (422, True)


def test_pictures(page: TestClient) -> None:
    answer = page.get("images/3")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(page.get("thumbnails/3").content)).size == (40, 40)
    assert Image.open(io.BytesIO(answer.content)).size == (40, 40)


def test_an_image_that_vanished_is_told(shapes_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_folder, tmp_path / "images")
    samples = sources.folder(tmp_path / "images", "shapes")
    desk = Desk(Outlines(tmp_path / "masks.json", samples, np.arange(3)), Place("", "", ""))
    client = TestClient(make_app(desk, TOKEN, PORT), base_url=f"{ORIGIN}/{TOKEN}/", headers={"Origin": ORIGIN})
    (tmp_path / "images" / samples.ids[1]).unlink()
    for path in ("images/1", "thumbnails/1", "api/images/1"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["reason"]) == (410, "this image cannot be read: the file is gone")
    assert client.get("images/2").status_code == 200


def test_the_page_s_own_files(page: TestClient) -> None:
    for name in ("", *annotator.PAGE[1:], *annotator.VENDORED):
        answer = page.get(name)
        assert (answer.status_code, len(answer.content) > 100) == (200, True)
    assert page.get("").headers["content-type"] == "text/html; charset=utf-8"
    for name in ("vendor/LICENSE", "../cli.py", "%2e%2e/cli.py", "annotator.py"):
        assert page.get(name).status_code in (403, 404)


def test_the_vendored_files_are_what_their_page_says() -> None:
    said = dict(re.findall(r"\| `(\S+)` \| `(\w{64})` \|", (PAGE / "vendor" / "README.md").read_text()))
    assert set(said) == set(annotator.VENDORED)
    for name, digest in said.items():
        assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == digest
    assert "BSD 3-Clause" in (PAGE / "vendor" / "LICENSE").read_text()


def test_the_page_s_scripts_make_no_markup_of_text() -> None:
    """A class may be called `<script>`: what is shown is set as text alone."""
    for path in PAGE.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\.cssText",
                             path.read_text()), path


# What others get


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Host": f"localhost:{PORT}"}, 200), ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1"}, 403),
    ({"Host": f"127.0.0.1:{PORT}.evil.example"}, 403), ({"Host": f"evil.example:{PORT}"}, 403), ({"Host": ""}, 403),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Origin": f"https://127.0.0.1:{PORT}"}, 403), ({"Origin": f"{ORIGIN}.evil.example"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403), ({"Sec-Fetch-Site": "none"}, 200),
])
def test_hosts_and_origins(desk: Desk, headers: dict[str, str], status: int) -> None:
    client = TestClient(make_app(desk, TOKEN, PORT), base_url=f"{ORIGIN}/{TOKEN}/")
    assert client.get("images/0", headers=headers).status_code == status
    assert client.get("api/overview", headers=headers).status_code == status
    put = client.put("api/images/0", json=change(), headers={"Origin": ORIGIN, **headers})
    assert put.status_code == status


@pytest.mark.parametrize("path", ["", "/", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/", "//", "/%00/", f"/{TOKEN.lower()}/",
                                  "/images/0", f"/x/{TOKEN}/images/0", "/é/images/0"])
def test_without_the_token_there_is_nothing(desk: Desk, path: str) -> None:
    client = TestClient(make_app(desk, TOKEN, PORT), base_url=ORIGIN)
    answer = client.get(f"{path}api/overview" if path.endswith("/") else path)
    assert answer.status_code == 403
    assert TOKEN not in answer.text
    assert client.put(f"{path}api/images/0", json=change(), headers={"Origin": ORIGIN}).status_code == 403
    assert desk.outlines.entry(0).state == "open"


def test_a_change_must_say_where_it_comes_from_and_what_it_is(desk: Desk) -> None:
    client = TestClient(make_app(desk, TOKEN, PORT), base_url=f"{ORIGIN}/{TOKEN}/")
    assert client.put("api/images/0", json=change()).status_code == 403
    form = {"Origin": ORIGIN, "Content-Type": "text/plain"}  # what a form of another page can send
    assert client.post("api/reload", content="{}", headers=form).status_code == 415
    assert desk.outlines.entry(0).state == "open"


@pytest.mark.parametrize("index", ["24", "-1", "1e1", "x", "0x1", "٣", "1" * 5000, "..", "%2e%2e", "%2fetc%2fpasswd",
                                   "0.0"])
def test_images_are_named_by_their_number_alone(page: TestClient, index: str) -> None:
    for path in ("images", "thumbnails", "api/images"):
        answer = page.get(f"{path}/{index}")
        assert answer.status_code in (403, 404)
        assert not answer.content.startswith(b"\x89PNG")


@pytest.mark.parametrize("body", [
    "", "[]", "null", "{}", '{"revision": 0}', "[" * 100_000, json.dumps(change(revision=-1)),
    json.dumps(change(revision="0")), json.dumps(change(revision=2**70)), json.dumps(change(more=1)),
    json.dumps(change(state="done")), json.dumps(change(state="skipped")), json.dumps(change(polygons=[])),
    json.dumps(change(polygons=[SQUARE[:2]])), json.dumps(change(polygons=[[*SQUARE, [1]]])),
    json.dumps(change(polygons=[[*SQUARE, [1, 2, 3]]])), json.dumps(change(polygons=[[*SQUARE, ["1", 2]]])),
    json.dumps(change(polygons=[[*SQUARE, [float("nan"), 2]]])), json.dumps(change(polygons=[[*SQUARE, [1e999, 2]]])),
    json.dumps(change(polygons=[[*SQUARE, [1e308, 2]]])), json.dumps(change(polygons=[[*SQUARE, [True, 2]]])),
    json.dumps(change(polygons=[[[x + 50, y] for x, y in SQUARE]])), json.dumps(change(polygons=[SQUARE] * 501)),
    json.dumps(change(polygons=[[[1, 2]] * 5001])), json.dumps(change(uncertain="no")), '{"a": "\\ud800"}', "\x00",
])
def test_bodies_that_are_no_change(page: TestClient, desk: Desk, tmp_path: Path, body: str) -> None:
    answer = page.put("api/images/0", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    reason = answer.json()["reason"]
    assert "\n" not in reason
    assert len(reason) < 300
    assert desk.outlines.entry(0).state == "open"
    assert not (tmp_path / "masks.json").exists()


def test_bodies_that_are_too_long(page: TestClient) -> None:
    headers, much = {"Content-Type": "application/json"}, b" " * (gatekeeper.LARGEST_BODY + 1)
    assert page.put("api/images/0", content=much, headers=headers).status_code == 413

    def in_pieces() -> Iterator[bytes]:  # without saying how long it is
        for _ in range(40):
            yield much[:100_000]

    assert page.put("api/images/0", content=in_pieces(), headers=headers).status_code == 413
    assert page.put("api/images/0", content=b"{}", headers={**headers, "Content-Length": "9" * 40}).status_code == 413
    assert page.put("api/images/0", json=change()).status_code == 200


def test_what_every_answer_says(desk: Desk) -> None:
    client = TestClient(make_app(desk, TOKEN, PORT), base_url=ORIGIN)
    for path in (f"/{TOKEN}/", f"/{TOKEN}/images/0", f"/{TOKEN}/nowhere", "/wrong/"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
    assert client.options(f"/{TOKEN}/api/images/0", headers={"Origin": "http://evil.example"}).status_code == 403


def test_names_are_sent_as_they_are(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("/", "\u2215")
    for name in (hostile, "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "<img src=x onerror=alert(1)>.png")
    samples = sources.folder(tmp_path / "images", "x")
    desk = Desk(Outlines(tmp_path / "masks.json", samples, np.arange(2)), Place("", "", ""))
    client = TestClient(make_app(desk, TOKEN, PORT), base_url=f"{ORIGIN}/{TOKEN}/", headers={"Origin": ORIGIN})
    answer = client.get("api/overview")
    assert answer.headers["content-type"] == "application/json"
    assert hostile in [image["label"] for image in answer.json()["images"]]
    assert hostile not in client.get("").text


def test_fifty_saves_at_once(page: TestClient, desk: Desk) -> None:
    def save(number: int) -> int:
        polygon = [[number / 5, 1.0], [number / 5 + 9, 1.0], [number / 5, 30.0]]
        return page.put(f"api/images/{number % 24}", json=change(polygons=[polygon])).status_code

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(save, range(50)))
    assert sorted(found) == [200] * 24 + [409] * 26
    assert desk.outlines.counts() == {"outlined": 24}
    assert len(json.loads(desk.outlines.path.read_text())["annotations"]) == 24


# How it is started


@pytest.fixture
def start(shapes_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tlkd annotate` up to where it would wait for requests."""
    monkeypatch.setattr(annotator, "_serve", lambda app, listener: None)

    def starting(out: Path, **more: Any) -> None:
        annotate(Choice(str(shapes_folder)), Options(out, browser=False, **more))

    return starting


def test_it_says_where_it_is_and_what_comes_next(start: Callable[..., None], tmp_path: Path, shapes_folder: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    start(tmp_path / "new" / "masks.json")
    out = capsys.readouterr().out
    assert re.search(r"^open http://127\.0\.0\.1:\d+/[\w-]{32}/$", out, re.MULTILINE)
    assert "0 of 24 images done, 24 left" in out
    assert f"tlkd run STUDY --set data.source=folder:{shapes_folder} --set data.masks={tmp_path}/new/masks.json" in out
    assert list((tmp_path / "new").iterdir()) == []
    start(tmp_path / "new" / "masks.json")
    assert len(set(re.findall(r":\d+/([\w-]+)/", out + capsys.readouterr().out))) == 2  # a new token each time


def test_a_port_in_use_is_said(start: Callable[..., None], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(lambda: start(tmp_path / "masks.json", port=port), "--port", str(port), "in use")
    assert list(tmp_path.glob("*masks*")) == []


def test_a_file_that_another_works_on_is_said(start: Callable[..., None], tmp_path: Path) -> None:
    with annotator.alone(tmp_path / "masks.json"):
        refused(lambda: start(tmp_path / "masks.json"), "--out", "masks.json", "another `tlkd annotate`")
    start(tmp_path / "masks.json")


def test_places_that_cannot_be_written(start: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(lambda: start(tmp_path), "--out", "is a folder")
    refused(lambda: start(Path()), "--out", "is a folder")
    refused(lambda: start(tmp_path / "file" / "masks.json"), "cannot be written", "choose another --out")
    refused(lambda: start(tmp_path / f"{'n' * 300}.json"), "cannot be written", "File name too long")
    if Path("/proc").is_dir():
        refused(lambda: start(Path("/proc/masks.json")), "/proc/masks.json", "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_is_no_coco_file_stays(start: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    for content in ("", "{}", '{"_via_img_metadata": {}}'):
        path.write_text(content)
        refused(lambda: start(path), "masks.json")
        assert path.read_text() == content


@pytest.mark.parametrize("package", ["cv2", "starlette", "uvicorn"])
def test_a_missing_extra_is_said(start: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused(lambda: start(tmp_path / "masks.json"), "needs the extra annotate: pip install 'tlkd[annotate]'")
    assert list(tmp_path.glob("*masks*")) == []
