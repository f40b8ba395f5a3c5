"""The README and docs say what is there: studies load, commands parse, every key and page is named, the pages build."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from tlkd import specs
from tlkd.cli import app
from tlkd.conditions import Condition, Corruption, Exclusion, LabelNoise, Robustness, Spec
from tlkd.reading import parse_yaml, validate

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = sorted(DOCS.glob("*.md"))
PARTS: list[type[Spec]] = [
    specs.Study, specs.Data, specs.Student, specs.Teacher, specs.Arm, specs.Training, specs.Verdict, specs.Explanation,
    specs.Background, specs.Shapes, Condition, LabelNoise, Corruption, Exclusion, Robustness]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def module(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A Python file of docs/ as a module."""
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    spec = importlib.util.spec_from_file_location(Path(path).stem, DOCS / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def commands(page: Path) -> Iterator[str]:
    """Every `tlkd` command that stands behind a prompt on a page."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for line in re.findall(r"^\$ (?:.* -m )?(tlkd .*)$", block, re.MULTILINE):
            yield re.split(r"\s+(?:#|\||>) ?", line)[0]


def parse(line: str) -> None:
    """Parse a command line as the program would, and run nothing. Raises Click's usage errors."""
    name, *arguments = shlex.split(line)[1:]
    COMMANDS[name].make_context(name, arguments)


def studies_in(text: str) -> list[specs.Study]:
    """The whole studies among the YAML blocks of a page."""
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("name:")]
    return [validate(parse_yaml(block, "page"), "page") for block in blocks]


def test_the_study_in_the_readme_loads() -> None:
    (study,) = studies_in(README)
    assert [arm.temperature for arm in study.arms] == [None, 10, 4]


def test_the_study_in_the_tutorial_loads_and_could_be_supported() -> None:
    (study,) = studies_in((DOCS / "tutorial.md").read_text())
    assert 2.0 ** (1 - len(study.seeds)) < study.verdict.level
    assert study.name == "mine"  # its folder is out/mine in all that follows


def test_the_readme_names_every_command() -> None:
    assert set(re.findall(r"`tlkd (\w+)", README)) == set(COMMANDS)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_commands_on_pages_are_real_commands_with_real_options(page: Path) -> None:
    for line in commands(page):
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{page.name}: {line}: {getattr(error, 'message', error)}")


def test_examples_in_helps_are_real_commands_with_real_options() -> None:
    found = [line.strip() for command in COMMANDS.values() for line in command.help.splitlines()
             if line.strip().startswith("tlkd ")]
    assert len(found) >= len(COMMANDS)
    for line in found:
        parse(re.split(r"\s+(?:\||>) ", line)[0])


@pytest.mark.parametrize("line", ["tlkd run", "tlkd run quickstart --sett a=1", "tlkd nothing"])
def test_a_command_that_is_none_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)missing|no such option|nothing"):
        parse(line)


@pytest.mark.parametrize("part", PARTS)
def test_the_page_of_keys_names_every_key(part: type[BaseModel]) -> None:
    page = "".join((DOCS / name).read_text() for name in ("studies.md", "difficulties.md"))
    known = page + " conditions model "  # named in the page's first lines or as parts of others
    assert [key for key in part.model_fields if not re.search(rf"\b{key}\b", known)] == []


def test_the_reference_defines_every_key_of_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = module("extensions/study_reference.py", monkeypatch)
    sections, text = dict(reference.sections()), reference.text()
    assert set(sections.values()) == {*PARTS, specs.Normalisation}
    for path, part in sections.items():
        for key, field in part.model_fields.items():
            assert field.description, f"{part.__name__}.{key} says nothing of what it means"
            name = f"{path}.{key}" if path else key
            assert f"\n`{name}`\n: {field.description.split()[0]}" in text


def test_the_reference_of_commands_has_every_argument_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = module("extensions/command_reference.py", monkeypatch)
    assert list(reference.commands()) == list(COMMANDS)
    for name, command in COMMANDS.items():
        taken = reference.takes(reference.commands()[name])
        assert [each.help for each in taken] == [each.help or "" for each in command.params]
        options = [each for each in command.params if each.param_type_name == "option"]
        assert [each.names for each in taken if each.names] == [(*each.opts, *each.secondary_opts) for each in options]


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_every_page_stands_in_the_table_of_contents() -> None:
    listed = re.findall(r"^(\w+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != "index")


def test_figures_say_what_the_page_says_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, page = module("draw_mathematics.py", monkeypatch), (DOCS / "mathematics.md").read_text()
    assert drawing.explain_game() == pytest.approx([7, 9.5, 4.5])
    assert "Hence 7, 9.5 and 4.5" in page
    assert list(drawing.shapley().values()) == pytest.approx([6.83, 9.33, 4.83], abs=0.005)
    assert "the Shapley values 6.83, 9.33 and 4.83" in page.replace("\n", " ")
    for name in re.findall(r"\(figures/([\w.]+)\)", page):
        assert (DOCS / "figures" / name).exists()


def test_the_pages_build_without_a_warning_and_load_nothing_from_the_network(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", str(DOCS), str(tmp_path)],
                          capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert loaded == [], f"{page.name} loads {loaded}"
    assert (tmp_path / "mathematics.html").read_text().count("<math ") > 100
