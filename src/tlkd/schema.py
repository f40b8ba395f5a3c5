"""The version of what a study's folder holds and where, and what is said of a folder in another one."""

from collections.abc import Mapping
from typing import Any

from tlkd import __version__
from tlkd.errors import BadInput

SCHEMA = 1  # what an older tlkd would misread raises it; a folder that names none is of the first
RECORDED = ("schema", "provenance")  # what `study.yaml` in a study's folder says beside the study


def study_in(raw: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The study alone in a study's file. Raises `BadInput` where it was written in a schema that this tlkd cannot read.
    """
    schema = raw.get("schema", SCHEMA)
    if isinstance(schema, bool) or not isinstance(schema, int):
        raise BadInput(f"{origin}: schema: found {str(schema)[:80]!r}; allowed: {SCHEMA}, as `tlkd run` writes it")
    if schema != SCHEMA:
        age, remedy = ("a newer", "update tlkd") if schema > SCHEMA else ("an older", "use that one")
        raise BadInput(f"{origin}: {age} tlkd wrote this folder, in schema {schema}{written_by(raw)}, and this tlkd "
                       f"reads schema {SCHEMA}: {remedy}, or choose another folder")
    return {key: value for key, value in raw.items() if key not in RECORDED}


def written_by(raw: Mapping[str, Any]) -> str:
    """Which tlkd wrote a study's file, in brackets; nothing where this one did, or nobody says."""
    known: Any = raw.get("provenance")
    for key in ("versions", "tlkd"):
        known = known.get(key) if isinstance(known, dict) else None
    return f" (tlkd {str(known)[:40]}; this is {__version__})" if known and str(known) != __version__ else ""
