"""The README and docs say what is there: the study they print loads, every key and every command is named."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from tlkd.cli import app
from tlkd.conditions import Condition, Corruption, Exclusion, LabelNoise, Robustness, Spec
from tlkd.reading import parse_yaml, validate
from tlkd.specs import Arm, Background, Data, Explanation, Shapes, Student, Study, Teacher, Training, Verdict

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PARTS: list[type[Spec]] = [Study, Data, Student, Teacher, Arm, Training, Verdict, Explanation, Background, Shapes,
                           Condition, LabelNoise, Corruption, Exclusion, Robustness]


def test_the_study_in_the_readme_loads() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    study = validate(parse_yaml(text, "README.md"), "README.md")
    assert [arm.temperature for arm in study.arms] == [None, 10, 4]


def test_the_readme_names_every_command() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"`tlkd (\w+)", README)) == names


@pytest.mark.parametrize("part", PARTS)
def test_the_page_of_keys_names_every_key(part: type[BaseModel]) -> None:
    page = "".join((ROOT / "docs" / name).read_text() for name in ("studies.md", "difficulties.md"))
    known = page + " conditions model "  # named in the page's first lines or as parts of others
    assert [key for key in part.model_fields if not re.search(rf"\b{key}\b", known)] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"
