"""`tlkd annotate`: a page on this machine's loopback address, on which a person outlines what images show."""

import errno
import os
import secrets
import shlex
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from tlkd import gatekeeper, images, store, wording
from tlkd.chosen import Choice, Chosen, choose
from tlkd.desk import Body, Change, Desk, Place, Refused, Wish
from tlkd.errors import BadInput, needs
from tlkd.outlines import Outlines

LOOPBACK = "127.0.0.1"
PAGE = ("index.html", "annotate.js", "desk.js", "drawing.js", "overview.js", "annotate.css", "icon.svg")
VENDORED = ("annotorious.js", "annotorious.css")
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8",
         "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Options:
    """What a person asks for beside the choice of images."""

    out: Path
    opened: tuple[Path, ...] = ()
    port: int = 0  # 0: one that is free
    browser: bool = True


def annotate(choice: Choice, options: Options) -> None:
    """Serve the page until Ctrl-C. Raises `BadInput` for whatever the person can put right."""
    for package in ("cv2", "starlette", "uvicorn"):
        needs(package, "tlkd annotate", "annotate")
    with alone(options.out), _listener(options.port) as listener:
        chosen = choose(choice, store.cache_folder())
        outlines = Outlines(options.out, chosen.samples, chosen.numbers, options.opened)
        port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        use = command(chosen, options.out, choice.study)
        desk = Desk(outlines, Place(str(options.out), chosen.data.source, use))
        address = f"http://{LOOPBACK}:{port}/{token}/"
        for line in (*outlines.notes, f"{options.out}: {progress(outlines)}", f"open {address}",
                     "Ctrl-C ends; everything is saved as you draw"):
            print(line, flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn ends in good order first, and then raises what it was told
            if options.browser and _has_screen():
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            _serve(make_app(desk, token, port), listener)
        print(f"\n{options.out}: {progress(outlines)}\nuse it:  {use}", flush=True)


def make_app(desk: Desk, token: str, port: int) -> gatekeeper.App:
    """The server's application: a desk behind a gatekeeper."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import Route

    def index(request: Request) -> int:
        return desk.index(request.path_params["index"])

    routes = [
        Route("/api/overview", _answer(lambda _: desk.overview()), methods=["GET"]),
        Route("/api/changes", _answer(lambda request: desk.changes(request.query_params.get("since", ""))),
              methods=["GET"]),
        Route("/api/images/{index}", _answer(lambda request: desk.entry(index(request))), methods=["GET"]),
        Route("/api/images/{index}", _answer(lambda request, change: desk.save(index(request), change), Change),
              methods=["PUT"]),
        Route("/api/images/{index}/suggestion",
              _answer(lambda request, wish: desk.suggest(index(request), wish), Wish), methods=["POST"]),
        Route("/api/reload", _answer(lambda request, _: desk.reload(), Body), methods=["POST"]),
        Route("/images/{index}", _answer(lambda request: desk.picture(index(request))), methods=["GET"]),
        Route("/thumbnails/{index}", _answer(lambda request: desk.thumbnail(index(request))), methods=["GET"]),
        Route("/", _file("index.html"), methods=["GET"]),
        *(Route(f"/{name}", _file(name), methods=["GET"]) for name in PAGE[1:]),
        *(Route(f"/{name}", _file("vendor", name), methods=["GET"]) for name in VENDORED),
    ]
    return gatekeeper.Gatekeeper(Starlette(routes=routes), token, port)


def _answer(work: Callable[..., Any], model: type[Body] | None = None) -> Callable[..., Any]:
    """What the server does with a request: it works in a thread, and says whatever goes wrong as JSON."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response

    async def answer(request: Request) -> Response:
        try:
            more = [] if model is None else [model.model_validate_json(await request.body())]
            found = await run_in_threadpool(work, request, *more)
        except (gatekeeper.TooLarge, ClientDisconnect):  # of one that hung up nobody hears: not the terminal either
            return JSONResponse({"reason": gatekeeper.TOO_LARGE}, 413)
        except ValidationError as error:
            return JSONResponse({"reason": _first_problem(error)}, 422)
        except Refused as refused:
            return JSONResponse(refused.body, refused.status)
        except images.BadImage as bad:
            return JSONResponse({"reason": f"this image cannot be read: {bad}", "kind": "image"}, 410)
        except BadInput as bad:
            return JSONResponse({"reason": str(bad), "kind": "disk"}, 507)
        return Response(found, media_type="image/png") if isinstance(found, bytes) else JSONResponse(found)

    return answer


def _file(*parts: str) -> Callable[..., Any]:
    """One of the page's own files, from the package."""
    from starlette.requests import Request
    from starlette.responses import Response

    async def answer(request: Request) -> Response:
        content = resources.files("tlkd").joinpath("annotator_page", *parts).read_bytes()
        return Response(content, headers={"content-type": TYPES[parts[-1].rpartition(".")[2]]})

    return answer


def _first_problem(error: ValidationError) -> str:
    """What is wrong with a request's body, in one line; without what it held, which may be long."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    return f"{where}: {first['msg']}"


def progress(outlines: Outlines) -> str:
    """How far a person has come, in words."""
    counts = outlines.counts()
    none, skipped = counts["no_foreground"], counts["skipped"]
    parts = [f"{counts['outlined'] + none:,} of {wording.count(len(outlines), 'image')} done"]
    parts += [f"{none:,} of them without foreground"] if none else []
    parts += [f"{skipped:,} skipped"] if skipped else []
    return ", ".join([*parts, f"{counts['open']:,} left"])


def command(chosen: Chosen, out: Path, study: Path | None) -> str:
    """The command that uses what was drawn."""
    what = ["STUDY", "--set", shlex.quote(f"data.source={chosen.data.source}")]
    if study is not None:
        what = [shlex.quote(str(study / "study.yaml")), "--out", shlex.quote(str(study))]
    return " ".join(["tlkd run", *what, "--set", shlex.quote(f"data.masks={out}")])


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a file against other annotators, and see that it can be written. Raises `BadInput`."""
    path = out.parent / f".{out.name}.lock"  # an empty name means a folder
    lock = FileLock(path, timeout=0)
    try:
        if out.is_dir():
            raise BadInput(f"--out: {out}: is a folder; name a file, masks.coco.json for example")
        out.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # FileLock would take a folder that cannot be written for a lock that is held
        if out.exists():
            out.open("r+b").close()
        lock.acquire()
    except Timeout:
        raise BadInput(f"--out: {out}: another `tlkd annotate` is at work on it; go on in its page, or choose "
                       "another --out") from None
    except OSError as error:
        raise BadInput(f"--out: {out}: cannot be written ({error.strerror}); choose another --out") from None
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)


@contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    """A socket that listens on the loopback address alone. Raises `BadInput` where the port cannot be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if os.name == "posix":  # elsewhere it would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "is in use by another program" if taken else f"cannot be had ({error.strerror})"
            raise BadInput(f"--port: {port} {why}; choose another, or leave it out and one that is free is "
                           "taken") from None
        yield listener


def _serve(app: gatekeeper.App, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", ws="none", proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=2))
    server.run(sockets=[listener])


def _has_screen() -> bool:
    """Whether a browser with windows may open; without one, `webbrowser` would start one that takes the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in
                                                     ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
