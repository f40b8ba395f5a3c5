"""Is tlkd safe with what it is given? Readers fuzzed, bad inputs counted, the annotation page attacked.

The properties and the catalogue are those of `tests/`; here each property is tried on many more examples, drawn at
random.
"""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import common

TESTS = Path(__file__).parent.parent / "tests"


def main() -> None:
    """Fuzz, count, and write the block."""
    options = common.options(__doc__).parse_args()
    many = 8 if options.short else 1500
    os.environ["TLKD_FUZZ"] = str(many)
    sys.path.insert(0, str(TESTS))
    import test_bad_inputs
    import test_fuzz
    import test_fuzz_folders

    warnings.simplefilter("ignore")
    broken, began = [], time.monotonic()
    for each in (*test_fuzz.PROPERTIES, *test_fuzz_folders.PROPERTIES):
        try:
            each()
        except Exception as error:  # a broken promise, whichever
            broken.append(f"{each.__name__}: {' '.join(str(error).split())[:300]}")
    rows = [[kind, f"{count:,}"] for kind, count in sorted(test_fuzz.TRIED.items())]
    files = ["test_hostile_page.py", "test_bad_inputs.py", *([] if options.short else ["test_markup.py"])]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                           *(str(TESTS / each) for each in files)], check=False, capture_output=True, text=True)
    if done.returncode:
        broken += [line for line in done.stdout.splitlines() if line.startswith("FAILED")] or [done.stdout[-300:]]
    text = ("Read from files made at random, or by changing sound ones; each was taken, or refused in one line, in "
            f"bounded time; nothing ran and nothing was written elsewhere. {len(broken)} promises broken.\n\n"
            + common.table(["what was read", "examples"], rows)
            + f"\n\nBeside these, {len(test_bad_inputs.BAD)} distinct bad inputs stand with their one line each in "
              "`tests/test_bad_inputs.py`; the annotation page's own server refuses what `tests/test_hostile_page.py` "
              "sends (others' hosts and origins, paths, bodies, slow clients), and of 200 saves at once loses none.")
    common.publish("safety", text, "python proofs/safety.py" + (" --short" if options.short else ""), options.write)
    print(f"{time.monotonic() - began:.0f} s")
    for line in broken:
        print(f"broken: {line}", file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
