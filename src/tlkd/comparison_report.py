"""The report on several studies: tables, figures, a summary and one page, from their folders alone, without torch."""

from collections.abc import Sequence
from pathlib import Path

from tlkd import comparison_figures, comparison_sections, comparison_summary, comparison_tables, pages, store
from tlkd.comparison import Comparison, compare, shared_series
from tlkd.errors import BadInput
from tlkd.figures import Drawing
from tlkd.summary import CLAIMS


def write(folders: Sequence[Path], out: Path, labels: Sequence[str] = ()) -> Path:
    """Compare studies, write the report into the folder `out`, and return the page's path.

    What an earlier comparison left there is replaced. Raises `BadInput` as `compare` does, and for an `out` that holds
    something else or cannot be written.
    """
    _refuse(out)
    found = compare(folders, labels)
    if not out.is_dir():
        store.check_writable(out, "--out")  # after all that may be wrong with the studies, since it makes folders
    drawings = comparison_figures.draw(found)
    with store.guard_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        _forget_figures(out, drawings)
        for name, table in comparison_tables.draw(found).items():
            store.replace_text(out / f"{name}.csv", table.to_csv(index=False))
        for drawing in drawings:
            store.replace_text(out / "figures" / f"{drawing.name}.svg", drawing.svg)
            store.replace_bytes(out / "figures" / f"{drawing.name}.png", drawing.png)
        store.replace_text(out / "summary.txt", comparison_summary.plain(found))
        store.replace_text(out / "report.html", page(found, drawings))
    return out / "report.html"


def _refuse(out: Path) -> None:
    """Refuse to write over anything but an earlier comparison."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: is a file; choose another folder")
    if (out / "study.yaml").exists():
        raise BadInput(f"--out {out}: holds a study, whose own report would be lost; choose another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "comparison.csv").is_file():
        raise BadInput(f"--out {out}: is not empty and holds no comparison; choose another folder")


def _forget_figures(out: Path, drawings: Sequence[Drawing]) -> None:
    """Remove the figures of an earlier comparison that this one has not."""
    names = {drawing.name for drawing in drawings}
    for path in (out / "figures").glob("*"):
        if path.suffix in (".svg", ".png") and path.stem not in names:
            path.unlink(missing_ok=True)


def page(found: Comparison, drawings: Sequence[Drawing]) -> str:
    """The page as one HTML text that refers to nothing outside of itself."""
    return pages.render(
        "comparison.html", drawings, found=found, words=comparison_summary.summarise(found), claims=CLAIMS,
        sections=comparison_sections, lines=shared_series(found),
        names=", ".join(member.label for member in found.members),
        attends=any(each.attention is not None for each in found.entries))
