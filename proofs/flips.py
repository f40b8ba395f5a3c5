"""Flip one bit in every file of a cache and of a finished study: is it named, refused or rebuilt, and never used?

    python proofs/flips.py [--short]

Every file gets a bit flipped at random places, one flip at a time. What vouches for the file must notice: the manifest
of its artifact, SHA256SUMS of the study, or its reader. Then, for several kinds of files, all of them flipped at once,
`tlkd verify` must name each, `tlkd report` and `tlkd explain` must refuse by name in one line, and `tlkd run` must make
them again, so that the study is to the byte what it was.
"""

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from common import options, publish, table
from studies import command, contents, differences, start, write_small
from tlkd import checks, seals, store

LARGE = 2**16  # bytes: files above get several flips
FLIPS = 5
UNCHECKED = (".lock", ".log")


def flip(path: Path, draws: random.Random) -> tuple[int, int]:
    """Flip one bit; its place."""
    place, bit = draws.randrange(path.stat().st_size), draws.randrange(8)
    undo(path, (place, bit))
    return place, bit


def undo(path: Path, where: tuple[int, int]) -> None:
    """Flip a bit, or flip it back."""
    with path.open("r+b") as file:
        file.seek(where[0])
        byte = file.read(1)[0] ^ (1 << where[1])
        file.seek(where[0])
        file.write(bytes([byte]))


def kind_of(path: Path, root: Path) -> str:
    """What a file is, for the table."""
    parts = path.relative_to(root).parts
    if root.name == "cache":
        return f"cache: {parts[0]}"
    return f"study: {parts[0]}" if len(parts) > 1 else f"study: {path.name}"


def noticed(path: Path, root: Path) -> str:
    """What finds that a file is damaged; empty where nothing does."""
    name = path.relative_to(root).as_posix()
    if path.name == seals.NAME:  # a digest that fits nothing, or a name that is missing
        return "verify" if seals.damaged(root) or seals.unsealed(root) else ""
    if (path.parent / store.MANIFEST).is_file():
        address = path.parent.name if root.name == "cache" else ADDRESSES[path.parent]
        return "manifest" if store.find(path.parent, address) is None else ""
    return seals.NAME if root.name != "cache" and name in seals.damaged(root) else ""


ADDRESSES: dict[Path, str] = {}


def one_at_a_time(roots: list[Path], draws: random.Random) -> tuple[list[list[str]], list[str]]:
    """Rows of the table, and the flips that nothing noticed."""
    files, flips, found, missed = Counter[str](), Counter[str](), Counter[str](), []
    for root in roots:
        for path in sorted(each for each in root.rglob("*") if each.is_file() and each.suffix not in UNCHECKED):
            if path.stat().st_size == 0:
                continue
            kind = kind_of(path, root)
            files[kind] += 1
            for _ in range(FLIPS if path.stat().st_size > LARGE else 1):
                where = flip(path, draws)
                flips[kind] += 1
                by = noticed(path, root)
                found[kind] += bool(by)
                missed += [] if by else [f"{path.relative_to(root.parent)}: byte {where[0]}, bit {where[1]}: unnoticed"]
                undo(path, where)
    return [[kind, str(files[kind]), str(flips[kind]), str(found[kind])] for kind in sorted(files)], missed


def tlkd(*words: str, cache: Path) -> tuple[int, str, str]:
    """A command of tlkd: exit code, what it printed, what it complained of."""
    process = start([sys.executable, "-m", "tlkd", *words], cache, quiet=False)
    out, error = process.communicate()
    return process.returncode, out, error


def at_use(study: str, out: Path, cache: Path, whole: dict[str, str], draws: random.Random) -> list[str]:
    """Flip a bit in a file of each kind at once, and use the study."""
    run = sorted((out / "runs").glob("[!.]*"))[0]
    victims = [run / "model.safetensors", sorted((out / "runs").glob("[!.]*"))[1] / "history.csv",
               sorted((out / "runs").glob("[!.]*"))[2] / store.MANIFEST, out / "results.csv", out / "data.json",
               next((out / "teachers").glob("*/predictions.npz")), next((out / "robustness").glob("[!.]*/*.csv")),
               out / "report.html"]
    in_cache = [next((cache / kind).glob("[!.]*/*.np[yz]")) for kind in ("images", "features", "logits", "teachers")]
    for path in [*victims, *in_cache]:
        flip(path, draws)
    problems = []
    code, said, error = tlkd("verify", str(out), "--sample", "0", cache=cache)
    problems += [f"verify does not name {path.relative_to(out)}" for path in victims
                 if path.relative_to(out).as_posix() not in said + error]
    problems += [] if code in (1, 2) else [f"verify: exit code {code}"]
    for words in (("report", str(out)), ("explain", str(run), "--images", str(out / "nowhere.png"))):
        code, _, error = tlkd(*words, cache=cache)
        plain = code == 2 and "Traceback" not in error and len(error.strip().splitlines()) == 1
        problems += [] if plain else [f"{words[0]}: exit code {code}: {error[-300:]}"]
    line = command(study, out, "--jobs", "1")
    process = start(line, cache, quiet=False)
    _, error = process.communicate()
    problems += [f"run: exit code {process.returncode}: {error[-300:]}"] if process.returncode else []
    problems += [f"run does not say that it makes {path.parent.name} again" for path in (victims[0], victims[1])
                 if path.parent.name not in error]
    if not process.returncode:
        problems += [f"{name} differs" for name in differences(whole, contents(out))]
        problems += [f"verify afterwards: {line}" for line in checks.verify(out)[1]]
    return problems


def main() -> int:
    """Make a study, flip its bits one by one, then several at once."""
    asked = options(__doc__).parse_args()
    draws = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        study, out, cache = write_small(scratch / "small.yaml", not asked.short), scratch / "out", scratch / "cache"
        code = start(command(study, out, "--jobs", "1"), cache).wait()
        if code:
            print(f"the study itself: exit code {code}")
            return 1
        whole = contents(out)
        for path in out.rglob(store.MANIFEST):
            ADDRESSES[path.parent] = store.read_json(path)["address"]
        rows, problems = one_at_a_time([cache, out], draws)
        total = sum(int(row[2]) for row in rows)
        problems += at_use(study, out, cache, whole, draws)
    print("\n".join(problems))
    found = sum(int(row[3]) for row in rows)
    text = (f"{total} bits flipped, one at a time, in {sum(int(row[1]) for row in rows)} files; {found} found.\n\n"
            + table(["files", "number", "bits flipped", "found"], rows))
    publish("flips", text, "python proofs/flips.py", asked.write and not problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
