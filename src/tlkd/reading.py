"""A study out of a file: YAML, `--set a.b=c`, the packaged studies, and what is wrong with one in plain words."""

import difflib
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tlkd import grids
from tlkd.conditions import as_tuples
from tlkd.errors import BadInput, nearest
from tlkd.schema import study_in
from tlkd.specs import PATTERNS, Study

LARGEST_FILE = 2 * 2**20  # bytes of a study's file: YAML is read at a megabyte every few seconds
DEEPEST = 100  # brackets in one another
MOST_VALUES = 100_000  # in one study's file, aliases written out
MOST_BITS = 1024  # of a whole number, which 0xfff... may have without end
LONGEST_NUMBER = 400  # characters: to base 60, as in 1:59:59, PyYAML takes the square of them in time


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-3 is a number, and a key that stands twice is an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.deep_construct = True  # so that a node which holds itself is an error, not an endless value

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level >= DEEPEST:  # PyYAML takes the square of the depth in time
            raise yaml.scanner.ScannerError(None, None, f"nested more than {DEEPEST} deep", self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > LONGEST_NUMBER:
            problem = f"a number of {len(node.value):,} characters; allowed: {LONGEST_NUMBER}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        whole = node.tag.endswith("int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *other`: what stands here goes before what it brings
                continue
            key = self.construct_object(key_node, deep=True)
            plain = isinstance(key, str | int | float | bool | None)
            if not plain or key in seen:
                problem = f"the key {key!r} {'stands twice' if plain else 'is not a word'}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


for _kind_of_number in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind_of_number}", _Loader.construct_number)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        breaks = any(character in data for character in "\x85\u2028\u2029")  # lost unless they are escaped
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if breaks else None)


_Dumper.add_representer(str, _Dumper.represent_str)

for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
                                list("-+.0123456789"))


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML text; `origin` is what an error calls it. No two places of the result share a list or mapping."""
    try:
        return _unshared(yaml.load(text, Loader=_Loader), [MOST_VALUES])
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise BadInput(f"{origin}{where}: not valid YAML: {problem}") from None
    except Exception as error:  # what PyYAML's constructors let through: the 13th month, nesting without end
        raise BadInput(f"{origin}: not valid YAML: {error}") from None


def _unshared(value: Any, left: list[int]) -> Any:
    """A copy in which an anchor's aliases are values of their own, so that `--set` changes the one it names.

    `left` holds how many values may still come: aliases of aliases multiply. Raises `ValueError` where none is left.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values, aliases written out")
    if isinstance(value, dict):
        return {_usable(key): _unshared(item, left) for key, item in value.items()}
    return [_unshared(item, left) for item in value] if isinstance(value, list) else _usable(value)


def _usable(value: Any) -> Any:
    """A number or text as it is. Raises `ValueError` for what YAML can write down and nobody can use."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f"it holds a whole number of {value.bit_length():,} bits; allowed: {MOST_BITS:,}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"it holds half a character: {value[:40]!a}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a study's YAML file as a raw mapping."""
    try:
        if (length := path.stat().st_size) > LARGEST_FILE:
            raise BadInput(f"{path}: is {length:,} bytes long; a study's file may have {LARGEST_FILE:,}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text: {error}") from None
    return _mapping(parse_yaml(text, str(path)), str(path))


def _mapping(raw: Any, origin: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise BadInput(f"{origin}: a study is a mapping of keys; found {found}")
    return raw


def dump_yaml(value: Any) -> str:
    """Write YAML that `parse_yaml` reads back as it was, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def apply_set(study: dict[str, Any], assignment: str) -> None:
    """Carry out one `key.path=value` on a raw study, as `put` does."""
    path, equals, text = assignment.partition("=")
    if not equals:
        raise BadInput(f"--set {assignment}: expected KEY.PATH=VALUE, e.g. training.epochs=5")
    put(study, path, parse_yaml(text, f"--set {path}"), f"--set {assignment}")


def put(study: dict[str, Any], path: str, value: Any, said: str) -> None:
    """Put a value at `key.path` of a raw study; a list is entered by index or by its items' names.

    A key that holds dots itself, as a grid's do, is found as it is written. `said` is what an error calls it.
    """
    parts = [part.strip() for part in path.split(".")]
    if not all(parts):
        raise BadInput(f"{said}: expected KEY.PATH=VALUE, e.g. training.epochs=5")
    here: Any = study
    depth = 0
    while True:
        rest, where, taken = parts[depth:], ".".join(parts[:depth]), 1
        if isinstance(here, list):
            key: Any = _index(here, rest[0], said, where)
        elif isinstance(here, dict):
            taken = next((count for count in range(len(rest), 1, -1) if ".".join(rest[:count]) in here), 1)
            key = ".".join(rest[:taken])
            if len(rest) > taken and here.get(key) is None:
                here[key] = {}
        else:
            raise BadInput(f"{said}: {where} is {_shown(here)}, which has no key {rest[0]!r}")
        depth += taken
        if depth == len(parts):
            here[key] = value
            return
        here = here[key]


def _index(items: list[Any], part: str, said: str, where: str) -> int:
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    if part in names:
        return next(i for i, item in enumerate(items) if isinstance(item, dict) and str(item.get("name")) == part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    allowed = ", ".join(names) if names else f"0 to {len(items) - 1}" if items else "none, since it is empty"
    raise BadInput(f"{said}: {where} has no item {part!r}{nearest(part, names)}; allowed: {allowed}")


def packaged_studies() -> dict[str, str]:
    """The studies that come with tlkd: their YAML texts by name."""
    folder = resources.files("tlkd").joinpath("studies")
    found = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def read_study(name: str, assignments: tuple[str, ...] = ()) -> Study:
    """Load a study from a YAML path or a packaged name, lay `--set` assignments on it, and validate it.

    Raises `BadInput` with one line that names the file and key, the value found, and what is allowed.
    """
    raw = raw_study(name)
    for assignment in assignments:
        apply_set(raw, assignment)
    return validate(raw, name)


def raw_study(name: str) -> dict[str, Any]:
    """A study from a YAML path or a packaged name, as it is written."""
    kind, packaged = _kind(Path(name)), packaged_studies()
    if kind == "file":
        raw = read_yaml(Path(name))
    elif name in packaged:
        raw = _mapping(parse_yaml(packaged[name], name), name)
    else:
        what = "is a folder, not a study's file" if kind == "folder" else "neither a file nor a packaged study"
        raise BadInput(f"{name}: {what}{nearest(name, list(packaged))}; packaged: {', '.join(packaged)}")
    return study_in(raw, name)  # a finished study's own file says more


def validate(raw: dict[str, Any], origin: str) -> Study:
    """Validate a raw study, its grid written out first; `origin` is what an error calls it."""
    try:
        raw = grids.expand(raw)
    except ValueError as error:
        raise BadInput(f"{origin}: {error}") from None
    try:
        return Study.model_validate(as_tuples(raw))
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(problem, raw) for problem in _own(error.errors(), raw)))
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise BadInput(f"{origin}: {lines[0]}{more}") from None


def _kind(path: Path) -> Literal["file", "folder"] | None:
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else None
    except OSError:  # a name too long to be one
        return None


def _own(problems: list[ErrorDetails], raw: dict[str, Any]) -> list[ErrorDetails]:
    """The problems that the person made: not those that follow from another, each where they wrote it."""
    def follows(problem: ErrorDetails) -> bool:
        loc, kind = problem["loc"], problem["type"]
        if loc and str(loc[-1]).startswith("literal[") and isinstance(problem["input"], dict):
            loc = loc[:-1]  # a word was allowed too, but the person wrote a mapping
        elif kind != "too_short":  # which follows where all items were refused
            return kind == "default_factory_not_called"
        return any(other is not problem and other["loc"][:len(loc)] == loc for other in problems)

    def moved(problem: ErrorDetails) -> ErrorDetails:
        match problem["loc"]:
            case ("teachers", name, "training", str() as key, *rest):
                teacher = raw["teachers"][name]
                if key not in (teacher.get("training") or {}):  # it was inherited
                    return {**problem, "loc": ("training", key, *rest)}
        return problem

    own = [moved(problem) for problem in problems if not follows(problem)]
    # A required key that is misspelt is unknown and missing: the first says more.
    return sorted(own, key=lambda problem: problem["type"] != "extra_forbidden")


WORDS = {
    "bool_type": "allowed: on, off",
    "dict_type": "expected a mapping of keys",
    "float_type": "expected a number",
    "int_type": "expected a whole number",
    "model_type": "expected a mapping of keys",
    "string_type": "expected text (in quotes, where YAML reads something else)",
    "too_short": "expected at least one item",
    "tuple_type": "expected a list, e.g. [a, b]",
}
"""What pydantic calls tuples, dictionaries and instances is lists and mappings in a study's file."""



def _explain(problem: ErrorDetails, raw: Any) -> str:
    """One pydantic problem in tlkd's words: key, value found, what is allowed."""
    keys: list[str] = []
    here, model, parent = raw, Study, Study  # type: Any, Any, Any
    for part in problem["loc"]:
        if isinstance(here, dict) and (part in here or part in _fields(model)):
            parent, model = model, _fields(model)[part].annotation if part in _fields(model) else _item_type(model)
            here = here.get(part)
            keys.append(str(part))
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here, model = here[part], _item_type(model)
            keys.append(str(here["name"]) if isinstance(here, dict) and "name" in here else str(part))
        else:  # the name of a branch of a union: nothing that the person wrote
            model = next((kind for kind in get_args(model) if getattr(kind, "__name__", "") == part), model)
    path, kind = ".".join(keys), problem["type"]
    if problem["loc"] and problem["loc"][-1] == "[key]":
        here = problem["input"]
    found = f"{path}: found {_shown(here)}; "
    if kind == "extra_forbidden":
        allowed = list(_fields(parent))
        return f"{path}: unknown key{_meant(keys[-1], allowed)}; allowed: {', '.join(allowed)}"
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        whole = isinstance(here, dict) or (isinstance(here, list) and "found" in message)
        own = message.partition(": ")[0] in _fields(model)  # a rule of this part names the key itself
        return f"{path}{'.' if own else ': '}{message}" if path and whole else f"{found}{message}" if path else message
    if kind == "too_long" or (kind == "missing" and isinstance(here, list)):
        return f"{found}expected {len(get_args(model))} items"
    if kind == "missing":
        return f"{path}: this key is missing"
    if kind == "string_pattern_mismatch":
        return found + PATTERNS[problem["ctx"]["pattern"]]
    return found + WORDS.get(kind, problem["msg"].replace("Input should be", "allowed:"))


def _fields(model: Any) -> dict[Any, Any]:
    if get_origin(model) is UnionType and len(found := [each for each in get_args(model) if _fields(each)]) == 1:
        model = found[0]  # a part that may be null
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}


def _shown(value: Any) -> str:
    """A value as an error shows it: as YAML writes it where that differs, and not longer than a line bears."""
    text = {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _meant(key: str, allowed: list[str]) -> str:
    """What a person may have meant by an unknown key: this very key elsewhere in a study, or one spelt like it."""
    elsewhere: dict[str, list[str]] = {}
    for path in sorted(_paths(Study), key=lambda path: path.count(".")):
        elsewhere.setdefault(path.rpartition(".")[2], []).append(path)
    here = nearest(key, allowed, 1)
    if key not in elsewhere and here:
        return here
    close = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)
    if not close:
        return ""
    paths = elsewhere[close[0]][:1 if close[0] in Study.model_fields else 2]
    return f"; did you mean {' or '.join(map(repr, paths))}?"


def _paths(model: Any, before: str = "") -> Iterator[str]:
    """The full paths of all keys below a model; NAME stands for what the person names."""
    for key, field in _fields(model).items():
        yield before + key
        item = _item_type(field.annotation)
        if _fields(item):
            yield from _paths(item, f"{before}{key}." if item is field.annotation else f"{before}{key}.NAME.")


def _item_type(annotation: Any) -> Any:
    """The type of an item of a tuple or of a value of a dict, as far as it can be told."""
    if get_origin(annotation) is Annotated:
        return _item_type(get_args(annotation)[0])
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if get_origin(annotation) is tuple and arguments else annotation
