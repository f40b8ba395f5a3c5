"""The real server of `tlkd annotate` under hostile requests: nobody let in, nobody kept waiting, nothing lost."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("cv2", reason="the extra annotate is not installed")

SAVES, IMAGES = 200, 24
TRIED: Counter[str] = Counter()


@dataclass
class Server:
    """`tlkd annotate` as it runs."""

    port: int
    token: str
    out: Path

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, bytes]:
        """One request as the page sends it, but for these headers (None leaves one out)."""
        sent = {"Host": f"127.0.0.1:{self.port}", "Origin": self.origin, "Content-Type": "application/json",
                **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None and "Content-Length" not in sent:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def raw(self, content: bytes) -> bytes:
        """The first part of what the server says to these bytes, empty where it hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line, contextlib.suppress(OSError):
            line.sendall(content)
            line.shutdown(socket.SHUT_WR)
            return line.recv(65536)
        return b""

    def save(self, image: int, revision: int, x: float) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"revision": revision, "state": "outlined",
                           "polygons": [[[x, 4.0], [x + 9, 4.0], [x, 30.0]]]}).encode()
        status, answer = self.ask("PUT", f"/{self.token}/api/images/{image}", body)
        return status, json.loads(answer)


@pytest.fixture(scope="module")
def server(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    at = tmp_path_factory.mktemp("hostile")
    with (at / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tlkd", "annotate", str(shapes_folder), "--out", str(at / "masks.json"),
             "--no-browser"],
            stdout=subprocess.PIPE, stderr=said, text=True, cwd=at, env={**os.environ, "TLKD_CACHE": str(at / "cache")})
    assert process.stdout is not None
    address = next(line.split()[1] for line in process.stdout if line.startswith("open "))
    parts = urlsplit(address)
    assert parts.port is not None
    yield Server(parts.port, parts.path.strip("/"), at / "masks.json")
    assert process.poll() is None  # nothing has brought it down
    process.kill()
    process.communicate()
    assert "Traceback" not in (at / "said").read_text()  # whatever it was sent


def attempts(server: Server) -> Iterator[tuple[str, str, dict[str, str | None]]]:
    """Requests that must not be let in: method, path, and headers other than the page's."""
    change, token = f"/{server.token}/api/images/0", server.token
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", f"127.0.0.1:{server.port}.evil.example",
                 f"0.0.0.0:{server.port}", "", f"127.0.0.1:{server.port}@evil.example", f"[::1]:{server.port}", None):
        for method in ("GET", "PUT"):
            yield method, change, {"Host": host}
    for origin in ("null", "http://evil.example", "https://127.0.0.1", f"http://127.0.0.1:{server.port + 1}",
                   f"{server.origin}.evil.example", "file://", "", f"{server.origin}/"):
        for method in ("GET", "PUT", "POST", "DELETE", "OPTIONS"):
            yield method, change, {"Origin": origin}
    yield "PUT", change, {"Origin": None}
    for site in ("cross-site", "same-site"):
        yield "GET", change, {"Sec_Fetch_Site": site}
    for wrong in ("", "x", token[:-1], token + "x", token.swapcase(), token + "%00", "%2e%2e", "..", "\\" + token,
                  f"x/{token}", f"%2f{token}", token[:5] + "%0d%0a" + token[5:]):
        for path in (f"/{wrong}/", f"/{wrong}/api/overview", f"/{wrong}/api/images/0"):
            yield "GET", path, {}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        yield "PUT", change, {"Content_Type": kind}


def test_nobody_else_is_let_in(server: Server) -> None:
    for method, path, headers in attempts(server):
        TRIED["requests of others"] += 1
        status, answer = server.ask(method, path, b"{}" if method != "GET" else None, **headers)
        assert 400 <= status < 500, (method, path, headers)
        assert server.token.encode() not in answer
        assert b"disc" not in answer
    assert not server.out.exists()


@pytest.mark.parametrize("path", [
    "..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "images/..%2f0", "images/0%00.png",
    "images/%2fetc%2fpasswd", "images//etc/passwd", "images/..\\..\\0", "images/-1", "images/1e3", "images/99999",
    "images/0/../../etc/passwd", "images/%D9%A3", "thumbnails/..", "thumbnails/%00", "vendor/../../reading.py",
    "desk.py", "index.html", "annotate.js.map", "api/images/0x0", "api/images/" + "9" * 5000, "api",
    "api/changes?since=-1", "api/changes?since=" + "9" * 400])
def test_no_path_leads_elsewhere(server: Server, path: str) -> None:
    TRIED["paths"] += 1
    status, answer = server.ask("GET", "/" + server.token + "/" + path)
    assert status in (400, 404, 405, 422)
    assert b"root:" not in answer
    assert b"import " not in answer


@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"revision": 1e999}',
    b'{"revision": NaN, "state": "open", "polygons": []}',
    b'{"revision": 0, "state": "open", "polygons": [[[NaN, 1]]]}',
    b'{"revision": 0, "state": "<script>", "polygons": []}', b'{"revision": -1, "state": "open", "polygons": []}',
    b'{"revision": 0, "state": "open", "polygons": [], "__proto__": {"x": 1}}', b"9" * 100_000,
    b'{"revision": 0, "state": "outlined", "polygons": [[[1e308, 1], [2, 2], [3, 3]]]}',
    b'{"revision": 0, "state": "outlined", "polygons": ' + b"[" * 50 + b"]" * 50 + b"}"])
def test_no_body_but_a_change_is_taken(server: Server, body: bytes) -> None:
    TRIED["bodies"] += 1
    status, answer = server.ask("PUT", f"/{server.token}/api/images/0", body)
    assert status in (413, 422)
    assert set(json.loads(answer)) == {"reason"}
    assert len(answer) < 1000
    assert not server.out.exists()


def test_bodies_without_end_are_cut_off(server: Server) -> None:
    change = f"PUT /{server.token}/api/images/0 HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
    change += f"Origin: {server.origin}\r\nContent-Type: application/json\r\n".encode()
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    for content in (change + b"Content-Length: 99999999999\r\n\r\n{}", change + b"Content-Length: -5\r\n\r\n{}",
                    change + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 64,  # 4 MiB, of which no length was told
                    change + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
                    change + b"Content-Length: 2\r\nContent-Length: 7\r\n\r\n{}GET / ",  # smuggling
                    change + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                    b"\x16\x03\x01" * 99,
                    b"A" * 100_000, b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 20_000 + b"\r\n",
                    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", b"\r\n" * 1000, b"GET / HTTP/1.1\nHost: x\n\n"):
        TRIED["raw bytes"] += 1
        answer = server.raw(content)
        assert answer == b"" or answer.split(b" ")[1][:1] == b"4", answer[:100]
    assert not server.out.exists()
    assert server.ask("GET", f"/{server.token}/api/overview")[0] == 200


def test_slow_clients_keep_nobody_waiting(server: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(200)]
    try:
        for number, line in enumerate(slow):
            head = f"PUT /{server.token}/api/images/0 HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            if number % 2:  # one half stops in the headers, the other in the body
                head += f"Origin: {server.origin}\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n" + "{"
            line.sendall(head.encode())
            TRIED["slow clients"] += 1
        began = time.monotonic()
        assert server.ask("GET", f"/{server.token}/api/overview")[0] == 200
        assert time.monotonic() - began < 10
    finally:
        for line in slow:
            line.close()


def test_of_two_hundred_saves_at_once_nothing_is_lost(server: Server) -> None:
    """Every one knows the revision that it starts from, and starts again from another's where that was first."""
    accepted: dict[int, list[tuple[int, float]]] = {image: [] for image in range(IMAGES)}

    def save(number: int) -> int:
        image, x, revision, tries = number % IMAGES, number / 10, 0, 0
        while True:
            tries += 1
            status, answer = server.save(image, revision, x)
            if status == 200:
                accepted[image].append((answer["revision"], x))
                return tries
            assert (status, answer["kind"]) == (409, "stale")
            revision = answer["current"]["revision"]

    with ThreadPoolExecutor(SAVES) as pool:
        tries = list(pool.map(save, range(SAVES)))
    TRIED["saves at once"] += len(tries)
    assert max(tries) > 1  # some were stale, so that the test shows something
    found = json.loads(server.out.read_text())
    by_image = {each["id"]: each for each in found["images"]}
    last = {by_image[each["image_id"]]["file_name"]: each["segmentation"][0][0] for each in found["annotations"]}
    names = [each["name"] for each in json.loads(server.ask("GET", f"/{server.token}/api/overview")[1])["images"]]
    for image, saves in accepted.items():
        revisions = [revision for revision, _ in saves]
        assert len(set(revisions)) == len(revisions)  # no two were taken for the same
        assert last[names[image]] == pytest.approx(max(saves)[1], abs=0.01)
    assert sum(map(len, accepted.values())) == SAVES
    assert [path.name for path in server.out.parent.glob("*.json")] == [server.out.name]
