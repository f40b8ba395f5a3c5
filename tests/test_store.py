"""The store: addresses, checksums, whole artifacts or none, killed and racing processes, full and closed disks."""

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tlkd import progress, store
from tlkd.errors import BadInput
from tlkd.specs import Training

INPUTS = {"data": "d" * 20, "backbone": "b" * 64}
SPEC = {"size": 48, "views": ["identity", "flip"]}


class Builder:
    """Writes two files and counts how often it was asked to."""

    def __init__(self, text="content", about=None):
        self.text, self.about, self.calls = text, about, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text(self.text)
        (folder / "b.bin").write_bytes(b"\x00" * 100)
        return self.about


def get(folder, build, spec=SPEC):
    return store.get(folder, "things", 1, spec, INPUTS, build)


def left_in(folder):
    """All that lies there beside locks and artifacts."""
    return [path.name for path in (folder / "things").iterdir() if path.name.startswith(".") and path.name != ".locks"]


def python(script, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture(autouse=True)
def _fresh_console():
    progress.console.cache_clear()
    yield
    progress.console.cache_clear()


# --- addresses --------------------------------------------------------------------------------------------------------


def test_an_address_is_what_it_was_in_the_first_version():
    assert store.address("things", 1, SPEC, INPUTS) == "4478647fe2a57877e843"


def test_an_address_changes_with_each_ingredient():
    other = [("thing", 1, SPEC, INPUTS), ("things", 2, SPEC, INPUTS), ("things", 1, {**SPEC, "size": 49}, INPUTS),
             ("things", 1, {**SPEC, "size": 48.5}, INPUTS), ("things", 1, {**SPEC, "more": None}, INPUTS),
             ("things", 1, {"size": 48, "views": ["flip", "identity"]}, INPUTS), ("things", 1, SPEC, {}),
             ("things", 1, SPEC, {**INPUTS, "data": "e" * 20}), ("things", 1, {**SPEC, **INPUTS}, {}),
             ("things", 1, SPEC, {"data": INPUTS["backbone"], "backbone": INPUTS["data"]}),
             ("things", 1, {"size": "48", "views": SPEC["views"]}, INPUTS)]
    addresses = [store.address(*ingredients) for ingredients in [("things", 1, SPEC, INPUTS), *other]]
    assert len(set(addresses)) == len(addresses)
    assert all(len(address) == 20 and set(address) <= set("0123456789abcdef") for address in addresses)


def test_an_address_does_not_change_with_the_order_of_keys():
    spec, inputs = dict(reversed(SPEC.items())), dict(reversed(INPUTS.items()))
    assert list(spec) != list(SPEC) and list(inputs) != list(INPUTS)
    assert store.address("things", 1, spec, inputs) == store.address("things", 1, SPEC, INPUTS)
    nested = store.address("x", 1, {"a": {"b": 1, "c": 2}}, {}), store.address("x", 1, {"a": {"c": 2, "b": 1}}, {})
    assert nested[0] == nested[1]


def test_a_model_and_what_it_dumps_have_one_address():
    training = Training(epochs=3)
    assert store.address("x", 1, training, {}) == store.address("x", 1, training.model_dump(mode="json"), {})
    assert store.address("x", 1, training, {}) != store.address("x", 1, Training(epochs=4), {})


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TLKD_CACHE", str(tmp_path / "c"))
    assert store.cache_folder() == tmp_path / "c"
    monkeypatch.setenv("TLKD_CACHE", "~/c")
    assert store.cache_folder() == Path.home() / "c"
    monkeypatch.delenv("TLKD_CACHE")
    assert store.cache_folder().name == "tlkd"


# --- hit, miss, damage ------------------------------------------------------------------------------------------------


def test_a_miss_builds_and_a_hit_does_not(tmp_path, capsys):
    build = Builder(about={"rows": 3})
    first = get(tmp_path, build)
    assert build.calls == 1 and first.path == tmp_path / "things" / store.address("things", 1, SPEC, INPUTS)
    assert (first.path / "deep" / "a.txt").read_text() == "content"
    again = get(tmp_path, build)
    assert build.calls == 1 and again == first and again.about == {"rows": 3}
    other = get(tmp_path, build, {**SPEC, "size": 1})
    assert build.calls == 2 and other.path != first.path and first.path.is_dir()
    assert left_in(tmp_path) == [] and capsys.readouterr().err == ""


def test_the_manifest_says_what_the_artifact_was_made_from(tmp_path):
    found = get(tmp_path, Builder())
    manifest = json.loads((found.path / "manifest.json").read_text())
    digest = store.checksum(found.path / "b.bin")
    assert digest == "cd00e292c5970d3c5e2f0ffa5171e555bc46bfc4faddfb4a418b6840b86e79a3"  # sha256sum of 100 zeros
    assert manifest["files"].keys() == {"b.bin", "deep/a.txt"}
    assert manifest["files"]["b.bin"] == {"bytes": 100, "sha256": digest}
    assert {key: manifest[key] for key in ("kind", "version", "spec", "inputs", "about", "address")} == {
        "kind": "things", "version": 1, "spec": SPEC, "inputs": INPUTS, "about": {}, "address": found.address}


def flip_a_byte(path):
    (path / "b.bin").write_bytes(b"\x00" * 57 + b"\x01" + b"\x00" * 42)


def cut_short(path):
    (path / "b.bin").write_bytes(b"\x00" * 99)


def remove_a_file(path):
    (path / "deep" / "a.txt").unlink()


def remove_the_manifest(path):
    (path / "manifest.json").unlink()


def cut_the_manifest_short(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[:len(text) // 2])


def put_zeros_into_the_manifest(path):
    (path / "manifest.json").write_bytes(b"\x00\xff" * 50)


def change_the_address(path):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "address": "0" * 20}))


def list_no_files(path):
    (path / "manifest.json").write_text(json.dumps({"address": path.name}))


def list_a_file_without_a_checksum(path):
    (path / "manifest.json").write_text(json.dumps({"address": path.name, "files": {"b.bin": {}}}))


def put_a_list_for_the_manifest(path):
    (path / "manifest.json").write_text("[1]")


DAMAGES = [flip_a_byte, cut_short, remove_a_file, remove_the_manifest, cut_the_manifest_short,
           put_zeros_into_the_manifest, change_the_address, list_no_files, list_a_file_without_a_checksum,
           put_a_list_for_the_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again_and_said(tmp_path, capsys, damage):
    build = Builder()
    whole = get(tmp_path, build)
    before = {path.relative_to(whole.path): path.read_bytes() for path in whole.path.rglob("*") if path.is_file()}
    damage(whole.path)
    assert store.find(whole.path, whole.address) is None
    assert get(tmp_path, build).path == whole.path
    after = {path.relative_to(whole.path): path.read_bytes() for path in whole.path.rglob("*") if path.is_file()}
    assert build.calls == 2 and after == before
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and str(whole.path) in said.err and "made again" in said.err and said.out == ""
    get(tmp_path, build)
    assert build.calls == 2 and left_in(tmp_path) == []


def test_a_flipped_bit_anywhere_in_a_manifest_is_found(tmp_path):
    found = get(tmp_path, Builder(about={"rows": 3, "loss": 0.25}))
    path = found.path / "manifest.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1:])
            assert store.find(found.path, found.address) is None, (place, bit)
    path.write_bytes(whole)
    assert store.find(found.path, found.address) == found


def test_a_manifest_of_an_older_version_has_no_checksum_of_its_own(tmp_path):
    found = get(tmp_path, Builder(about={"rows": 3}))
    older = {key: value for key, value in json.loads((found.path / "manifest.json").read_text()).items()
             if key != "sha256"}
    store.write_json(found.path / "manifest.json", older)
    assert store.find(found.path, found.address) == found


def test_damaged_names_the_files(tmp_path):
    path = get(tmp_path, Builder()).path
    assert store.damaged(path) == []
    flip_a_byte(path)
    remove_a_file(path)
    assert store.damaged(path) == ["b.bin", "deep/a.txt"]


def test_another_address_in_the_same_place_is_replaced(tmp_path, capsys):
    """A study's run folder is called by its arm and seed, whatever it was made from."""
    final = tmp_path / "runs" / "tl-0"
    store.publish(final, "one", {}, Builder("old"))
    assert store.find(final, "one") is not None and store.find(final, "two") is None
    store.publish(final, "two", {}, Builder("new"))
    assert (final / "deep" / "a.txt").read_text() == "new"
    assert capsys.readouterr().err == f"{final}: was made from something else; it is made again\n"
    assert [path.name for path in final.parent.iterdir() if path.name != ".locks"] == ["tl-0"]
    store.publish(final, "three", {}, Builder("newer"), renewed=True)
    assert (final / "deep" / "a.txt").read_text() == "newer" and capsys.readouterr().err == ""
    flip_a_byte(final)
    store.publish(final, "four", {}, Builder("newest"), renewed=True)
    assert capsys.readouterr().err == f"{final}: its checksums do not match; it is made again\n"


@pytest.mark.parametrize("error", [ValueError("no"), BadInput("no"), KeyboardInterrupt("no")])
def test_a_build_that_raises_leaves_nothing(tmp_path, error):
    def build(folder):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error), match="no"):
        get(tmp_path, build)
    assert [path.name for path in (tmp_path / "things").iterdir()] == [".locks"]
    get(tmp_path, Builder())  # and the lock is free


def test_a_build_that_raises_leaves_what_stood_there(tmp_path):
    final = tmp_path / "runs" / "tl-0"
    store.publish(final, "one", {}, Builder("old"))

    def build(folder):
        raise ValueError

    with pytest.raises(ValueError):
        store.publish(final, "two", {}, build)
    assert store.find(final, "one") is not None and (final / "deep" / "a.txt").read_text() == "old"


def test_a_builder_sees_only_its_own_temporary_folder(tmp_path):
    seen = []

    def build(folder):
        seen.append(folder)
        assert folder.parent == tmp_path / "things" and not list(folder.iterdir())
        assert not (tmp_path / "things" / store.address("things", 1, SPEC, INPUTS)).exists()

    get(tmp_path, build)
    assert len(seen) == 1 and not seen[0].exists()


# --- killed and racing processes --------------------------------------------------------------------------------------

BUILDER = """
    import sys, time
    from pathlib import Path
    from tlkd import store

    def build(folder):
        (folder / "half").write_text("half")
        print(folder.name, flush=True)
        time.sleep(60)

    store.get(Path(sys.argv[1]), "things", 1, {"size": 48, "views": ["identity", "flip"]},
              {"data": "d" * 20, "backbone": "b" * 64}, build)
"""


def test_what_a_killed_builder_left_is_swept_and_the_artifact_built(tmp_path, capsys):
    with python(BUILDER, tmp_path) as process:
        name = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert left_in(tmp_path) == [name] and f"-{process.pid}-" in name
    build = Builder()
    found = get(tmp_path, build)
    assert build.calls == 1 and store.damaged(found.path) == [] and left_in(tmp_path) == []
    assert not (found.path / "half").exists() and capsys.readouterr().err == ""


def test_only_what_dead_processes_of_this_machine_left_is_swept(tmp_path):
    where = store.address("things", 1, SPEC, INPUTS)
    with python("pass") as dead:
        dead.wait()
    here = platform.node()
    names = {f".{where}.tmp-{here}-{dead.pid}-aaaa": False, f".{where}.tmp-{here}-{os.getpid()}-bbbb": True,
             f".{where}.tmp-{here}-1-eeee": True, f".{where}.tmp-elsewhere-{dead.pid}-cccc": True,
             f".{'0' * 20}.tmp-{here}-{dead.pid}-dddd": True}
    for name in names:
        (tmp_path / "things" / name).mkdir(parents=True)
        (tmp_path / "things" / name / "half").write_text("half")
    get(tmp_path, Builder())
    assert {name: (tmp_path / "things" / name).exists() for name in names} == names


RACER = """
    import os, sys, time
    from pathlib import Path
    from tlkd import store

    folder, mine = Path(sys.argv[1]), sys.argv[2]
    if sys.argv[3] == "unlocked":  # as on a file system whose locks do nothing
        from contextlib import nullcontext
        store._held = lambda path: nullcontext()

    def build(target):
        with (folder / "log").open("a") as log:
            log.write(mine + "\\n")
        for number in range(20):
            (target / f"{number}.txt").write_text(mine * 1000)
            time.sleep(0.01)
        return {"by": mine}

    print("ready", flush=True)
    sys.stdin.readline()
    found = store.get(folder, "things", 1, {}, {}, build)
    texts = {path.read_text()[0] for path in found.path.glob("*.txt")}
    print(found.about["by"], "".join(sorted(texts)), len(store.damaged(found.path)), flush=True)
"""


def race(folder, how):
    racers = [python(RACER, folder, name, how, stdin=subprocess.PIPE) for name in "AB"]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    ends = [racer.communicate(timeout=60) for racer in racers]
    return ends, [racer.returncode for racer in racers], (folder / "log").read_text().split()


def test_two_processes_that_race_build_once_and_both_get_it(tmp_path):
    ends, codes, log = race(tmp_path, "locked")
    assert codes == [0, 0], ends
    assert len(log) == 1
    assert [out for out, _ in ends] == [f"{log[0]} {log[0]} 0\n"] * 2
    assert left_in(tmp_path) == []


def test_correctness_does_not_rest_on_the_lock(tmp_path):
    ends, codes, log = race(tmp_path, "unlocked")
    assert codes == [0, 0], ends
    assert sorted(log) == ["A", "B"]
    assert ends[0][0] == ends[1][0] and ends[0][0] in ("A A 0\n", "B B 0\n")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("whole", [True, False])
def test_another_process_may_publish_at_the_last_moment(tmp_path, monkeypatch, whole):
    """Between the look whether something is there and the rename."""
    final = tmp_path / "runs" / "tl-0"
    store.publish(final, "one", {}, Builder("first"))
    if not whole:
        flip_a_byte(final)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(store, "find", lambda *_, find=store.find, calls=[]: calls.append(1) or (
        find(final, "one") if len(calls) > 2 else None))
    if whole:
        store.publish(final, "one", {}, Builder("second"))
    else:
        with pytest.raises(OSError, match="not empty"):
            store.publish(final, "one", {}, Builder("second"))
    monkeypatch.undo()
    assert (final / "deep" / "a.txt").read_text() == "first" and len(list(final.parent.iterdir())) == 2


# --- files ------------------------------------------------------------------------------------------------------------


def test_allocate_gives_zeros_that_stay(tmp_path):
    array = store.allocate(tmp_path / "x.npy", (3, 4, 5), np.float32)
    assert array.shape == (3, 4, 5) and array.dtype == np.float32 and not array.any()
    array[1, 2] = 7
    array.flush()
    again = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(again, array)
    big = store.allocate(tmp_path / "y.npy", (1000, 1000), np.uint8)
    assert (tmp_path / "y.npy").stat().st_blocks * 512 >= big.nbytes  # really there, not a sparse file


def test_json_has_no_nan(tmp_path):
    value = {"a": math.nan, "b": [math.inf, -math.inf, 1.5, True, None, "NaN"],
             3: {"c": (np.float32("nan"), np.float64(0.5))}, "d": np.int64(7), "e": np.bool_(True),
             "f": np.array([[1.0, np.nan]]), "g": np.float32(0.25)}
    store.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    expected = {"a": None, "b": [None, None, 1.5, True, None, "NaN"], "3": {"c": [None, 0.5]}, "d": 7, "e": True,
                "f": [[1.0, None]], "g": 0.25}
    assert json.loads(text, parse_constant=pytest.fail) == expected == store.read_json(tmp_path / "x.json")
    assert json.loads(text)["e"] is True and text.endswith("}\n")
    assert value["b"][0] == math.inf  # the caller's own is left alone


def test_json_keeps_every_bit_of_a_float(tmp_path):
    values = np.random.default_rng(0).standard_normal(100) * 10.0 ** np.arange(-50, 50)
    store.write_json(tmp_path / "x.json", {"values": values})
    np.testing.assert_array_equal(store.read_json(tmp_path / "x.json")["values"], values)


def test_replace_text_replaces(tmp_path):
    path = tmp_path / "deep" / "x.csv"
    store.replace_text(path, "old")
    store.replace_text(path, "new é\n")
    assert path.read_text() == "new é\n" and [item.name for item in path.parent.iterdir()] == ["x.csv"]


def test_a_reader_never_sees_half_a_text(tmp_path):
    path = tmp_path / "x.txt"
    store.replace_text(path, "old")
    with path.open() as reader:
        store.replace_text(path, "new")
        assert reader.read() == "old"  # another file: it was renamed into place, not written over


# --- full and closed disks --------------------------------------------------------------------------------------------

FULL = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from safetensors.numpy import save_file
    from tlkd import store
    from tlkd.errors import BadInput

    folder, limit = Path(sys.argv[1]), sys.argv[2]

    def small(target):
        (target / "a.txt").write_text("small")

    def bank(target):
        store.allocate(target / "bank.npy", (1000, 1000), np.float32)[:] = 1

    def weights(target):
        save_file({"x": np.ones(10**6, np.float32)}, target / "model.safetensors")

    def text(target):
        (target / "a.txt").write_text("x" * 4_000_000)

    store.publish(folder / "run", "one", {}, small)
    store.replace_text(folder / "results.csv", "old")
    if limit == "size":
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
    for build in (bank, weights, text):
        try:
            store.publish(folder / "run", "two", {}, build)
            print("published", build)
        except BadInput as error:
            print(error)
        assert store.find(folder / "run", "one") is not None
    try:
        store.replace_text(folder / "results.csv", "x" * 4_000_000)
        print("replaced")
    except BadInput as error:
        print(error)
    assert (folder / "results.csv").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == [".locks", "results.csv", "run"], list(folder.iterdir())
    store.replace_text(folder / "results.csv", "new")
    assert (folder / "results.csv").read_text() == "new"
"""


def in_own_mounts(options, folder, script):
    """Run a script with a small tmpfs at `folder` that no other process sees; skip where that is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    lines = f'mount -t tmpfs -o {options} tmpfs "{folder}" || exit 77; exec "$0" -c "$1" "$2" mounted'
    found = subprocess.run(["unshare", "-rm", "sh", "-c", lines, sys.executable, textwrap.dedent(script), folder],
                           capture_output=True, text=True, timeout=60, check=False)
    if found.returncode == 77 or "unshare failed" in found.stderr:
        pytest.skip(f"no mounts here: {found.stderr.strip()}")
    return found


def check_full(found, folder):
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 4, found.stdout
    for line in lines:
        assert line.startswith(f"{folder}: the disk is full (")
        assert "still stands" in line and "--out or TLKD_CACHE" in line


def test_a_full_disk_is_one_line_and_the_old_state_stands(tmp_path):
    found = in_own_mounts("size=1m", tmp_path, FULL)
    check_full(found, tmp_path)
    assert found.stdout.count("No space left on device") == 4


def test_a_limit_on_files_is_like_a_full_disk(tmp_path):
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(FULL), tmp_path, "size"], capture_output=True,
                           text=True, timeout=60, check=False)
    check_full(found, tmp_path)
    assert found.stdout.count("File too large") == 4


READ_ONLY = """
    import sys
    from pathlib import Path
    from tlkd import store
    from tlkd.errors import BadInput

    folder = Path(sys.argv[1])
    for attempt in (lambda: store.get(folder, "things", 1, {}, {}, lambda target: None),
                    lambda: store.replace_text(folder / "results.csv", "x")):
        try:
            attempt()
            print("written")
        except BadInput as error:
            print(error)
"""


def test_a_read_only_disk_is_one_line(tmp_path):
    found = in_own_mounts("ro", tmp_path, READ_ONLY)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(str(tmp_path)) and "cannot be written (Read-only file system)" in line


def test_a_folder_of_somebody_else_is_one_line():
    nobody = 65534
    folder = Path(tempfile.mkdtemp(dir=tempfile.gettempdir()))  # pytest's own lie in a folder that only we may enter
    folder.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(nobody)
        with pytest.raises(BadInput, match=rf"{folder}.*: cannot be written \(Permission denied\); choose another"):
            get(folder, Builder())
        with pytest.raises(BadInput, match="cannot be written"):
            store.replace_text(folder / "x.csv", "x")
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "out").write_text("I am a file")
    with pytest.raises(BadInput, match=r"out.*cannot be written \((Not a directory|File exists)\)"):
        get(tmp_path / "out", Builder())
    with pytest.raises(BadInput, match="cannot be written"):
        store.replace_text(tmp_path / "out" / "x.csv", "x")
    assert (tmp_path / "out").read_text() == "I am a file"


def test_other_errors_go_through_as_they_are(tmp_path):
    def gone(folder):
        (folder / "not there").read_text()

    with pytest.raises(FileNotFoundError):
        get(tmp_path, gone)

    def unwritable_tensors(folder):
        save_file({"x": np.ones(3)}, folder / "no such folder" / "x.safetensors")

    with pytest.raises(Exception, match="os error 2"):
        get(tmp_path, unwritable_tensors)
