"""The table of floors: a module imports only from lower floors. Read from the source, so that no import is missed."""

import ast
import re
from pathlib import Path

import pytest

import tlkd

FLOORS = {
    # ground, itself in this order: anyone may import it
    "errors": -3, "conditions": -2, "specs": -1,
    # what statistics stands on
    "spreads": -2, "power": -1,
    # 0, pure
    "grids": 0, "schema": 0, "crew": 0, "seeding": 0, "losses": 0, "statistics": 0, "progress": 0,
    "dropout": 0, "evaluation": 0,
    "images": 0, "wording": 0, "naming": 0, "regions": 0, "scenery": 0, "program": 0,
    "gatekeeper": 0, "archives": 0, "arrays": 0,
    # 1
    "store": 1, "views": 1, "reading": 1, "convergence": 1, "weights": 1, "sources": 1, "rasters": 1, "shapes": 1,
    "observations": 1, "pairs": 1, "distortions": 1, "trends": 1, "frames": 1, "layout": 1,
    "draws": 1, "corruptions": 1, "standalone": 1, "console": 1,
    # 2
    "datasets": 2, "models": 2, "batches": 2, "folder": 2, "annotations": 2, "contributions": 2, "compositions": 2,
    "series": 2, "engine": 2, "seals": 2, "suggestion": 2, "licences": 2,
    # 3
    "banks": 3, "training": 3, "provenance": 3, "contrasts": 3, "explained": 3, "masks": 3, "rules": 3, "coco": 3,
    "plain": 3, "onnx_file": 3, "spaces": 3, "workers": 3, "ray_engine": 3, "underway": 3,
    # 4
    "workshop": 4, "foreground": 4, "album": 4, "doctor": 4, "checks": 4, "attribution": 4, "outlines": 4, "chosen": 4,
    "results": 4, "difficulties": 4, "controls": 4, "robustness": 4, "standing": 4, "trackers": 4,
    "subjects": 4, "footprint": 4,
    # 5
    "findings": 5, "explainers": 5, "showcase": 5, "estimate": 5, "stages": 5, "examples": 5, "desk": 5, "outlook": 5,
    "mlflow_tracker": 5, "wandb_tracker": 5,
    # 6
    "explaining": 6, "annotator": 6, "tables": 6, "figures": 6, "evidence": 6, "watching": 6, "chronicle": 6,
    "difficulty_tables": 6, "difficulty_evidence": 6,
    # 7, what reads or runs a whole study
    "study": 7, "tuned": 7, "sections": 7, "pictures": 7, "shares": 7, "summary": 7,
    "pages": 7, "spec_differences": 7, "comparison": 7,
    "tracking": 7, "difficulty_figures": 7, "difficulty_sections": 7, "specimens": 7,
    "comparison_figures": 8, "comparison_tables": 8, "comparison_sections": 8, "comparison_summary": 8,
    "comparison_report": 9,
    "report": 8, "proposals": 8, "gallery": 8, "inventory": 8, "recomputation": 8,
    "carried": 8, "cards": 8, "exporting": 9, "predicting": 9, "tuning": 9, "planning": 9, "engines": 9,
    "api": 10, "study_commands": 10, "tool_commands": 10,
    "cli": 11, "__main__": 12,
}
TORCHLESS = ("gatekeeper", "suggestion", "coco", "outlines", "chosen", "desk", "annotator",
             "specs", "conditions", "grids",
             "reading", "spreads", "power", "statistics", "evaluation", "convergence", "store", "folder", "checks",
             "contrasts", "naming", "seals", "rasters", "annotations", "regions", "observations", "contributions",
             "explained", "foreground", "album",
             "evidence", "pictures", "shares", "findings", "tables", "figures", "summary", "sections",
             "report", "standing", "underway", "outlook", "watching", "trackers",
             "mlflow_tracker", "wandb_tracker", "chronicle", "tracking", "distortions", "trends", "frames",
             "layout", "series", "results", "difficulties", "controls", "robustness", "difficulty_tables",
             "difficulty_evidence", "difficulty_figures", "difficulty_sections", "specimens", "spaces", "tuned",
             "pages", "spec_differences", "comparison", "comparison_figures", "comparison_tables",
             "comparison_sections", "comparison_summary", "comparison_report")
"""What may import torch nowhere at all, floors aside: the report is drawn without it."""


def imports(tree: ast.Module) -> set[str]:
    """The modules of tlkd, and the packages, that a source imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "tlkd":
            found |= {f"tlkd.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def breaches(sources: dict[str, str]) -> list[str]:
    """The imports that go sideways or upwards, or bring torch where it may not be."""
    bad = []
    for name, source in sources.items():
        for imported in sorted(imports(ast.parse(source))):
            package, _, inner = imported.partition(".")
            if package == "torch" and name in TORCHLESS:
                bad.append(f"{name} imports {imported}")
            target = inner.partition(".")[0]
            if package == "tlkd" and target in FLOORS and FLOORS[target] >= FLOORS[name]:
                bad.append(f"{name} (floor {FLOORS[name]}) imports {target} (floor {FLOORS[target]})")
    return bad


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    folder = Path(tlkd.__file__).parent
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def test_every_module_has_a_floor(sources: dict[str, str]) -> None:
    assert set(sources) == set(FLOORS)


def test_the_architecture_page_shows_the_same_floors() -> None:
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()
    shown = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        floor = cells[1].partition(",")[0] if len(cells) == 4 else ""
        if floor.lstrip("-").isdigit():
            shown |= dict.fromkeys(re.findall(r"`(\w+)`(?! [a-z]+`)", cells[2]), int(floor))
    assert {name: floor for name, floor in shown.items() if name in FLOORS} == FLOORS


def test_imports_go_downwards(sources: dict[str, str]) -> None:
    assert breaches(sources) == []


@pytest.mark.parametrize(("module", "line", "said"), [
    ("losses", "from tlkd.study import run_study", "losses (floor 0) imports study (floor 7)"),
    ("training", "def f():\n    from tlkd import banks", "training (floor 3) imports banks (floor 3)"),
    ("report", "import torch.nn", "report imports torch.nn"),
])
def test_a_planted_import_is_found(sources: dict[str, str], module: str, line: str, said: str) -> None:
    assert breaches({**sources, module: sources[module] + "\n" + line}) == [said]
