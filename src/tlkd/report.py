"""The report: tables, figures and one self-contained page, drawn from a study's folder alone, without torch."""

from collections.abc import Sequence
from pathlib import Path

from tlkd import (
    difficulty_figures,
    difficulty_sections,
    difficulty_tables,
    figures,
    pages,
    pictures,
    seals,
    sections,
    series,
    shares,
    specimens,
    store,
    tables,
    wording,
)
from tlkd.album import AGAIN, albums
from tlkd.contrasts import arm_label
from tlkd.figures import Drawing
from tlkd.findings import Findings, find
from tlkd.folder import StudyFolder
from tlkd.specs import Study
from tlkd.summary import Statement, Summary, summarise

SAID = 40  # pieces of evidence a hypothesis that the page holds


def write(folder: Path) -> Path:
    """Write `tables/`, `figures/`, `summary.txt` and `report.html` into a study's folder, and return the page's path.

    Raises `BadInput` where no study lies there, or where the disk is full.
    """
    study = StudyFolder(folder)
    found = find(study)
    shown = list(albums(study, found.tl.name if found.tl is not None else ""))
    drawings = [*figures.draw(found), *difficulty_figures.draw(found), *specimens.draw(study, found),
                *shares.draw(found, shown), *pictures.draw(found, shown)]
    with seals.alone(folder):
        seals.unseal(folder, seals.REPORT)
        for name, table in {**tables.draw(found), **difficulty_tables.draw(found)}.items():
            store.replace_text(folder / "tables" / f"{name}.csv", table.to_csv(index=False))
        for drawing in drawings:
            store.replace_text(folder / "figures" / f"{drawing.name}.svg", drawing.svg)
            store.replace_bytes(folder / "figures" / f"{drawing.name}.png", drawing.png)
        store.replace_text(folder / "summary.txt", plain(summarise(found)))
        store.replace_text(folder / "report.html", page(found, drawings))
        if (folder / seals.NAME).is_file():  # not of a study at work
            seals.seal(folder, seals.REPORT)
    return folder / "report.html"


def plain(summary: Summary) -> str:
    """The summary as plain text: a headline and what stands beside it, then a line a hypothesis."""
    lines = [f"H{one.number} {one.claim}: {_verdict(one)}" for one in summary.statements]
    return "\n".join([summary.headline, *summary.beside, *lines]) + "\n"


def _verdict(one: Statement) -> str:
    if len(one.evidence) == 1:
        return f"{one.evidence[0].word}. {one.evidence[0].sentence}"
    return "; ".join(f"{each.label}: {each.word}" for each in one.evidence) or one.word


def page(found: Findings, drawings: Sequence[Drawing]) -> str:
    """The page as one HTML text that refers to nothing outside of itself."""
    return pages.render(
        "report.html", drawings, found=found, study=found.study, summary=summarise(found), sections=sections,
        hard=difficulty_sections,
        wording=wording, label_of=arm_label, numbered=figures.NUMBERED, facts=_facts(found),
        blocks=figures.blocks(found)[:figures.CONTRASTS],
        most=figures.CONTRASTS, series_drawn=difficulty_figures.SERIES, said=SAID,
        again=AGAIN, classes_shown=pictures.CLASSES, columns_shown=pictures.COLUMNS,
        scale_end=wording.number(100 * pictures.QUANTILE, 0),
        provenance=_provenance(found))


def _facts(found: Findings) -> list[tuple[str, str]]:
    """What was studied, in a few pairs."""
    study = found.study
    part = {"head": "its head trained", "all": "all of it trained"}.get(study.student.trainable,
                                                                        f"{study.student.trainable} trained")
    teachers = [f"{name}: {teacher.model}, {teacher.input_size} px" for name, teacher in study.used_teachers.items()]
    arms = []
    for arm in study.arms:
        how = [] if arm.teacher is None else [f"from {arm.teacher}"]
        how += [] if arm.soft_weight is None else [f"soft weight {arm.soft_weight:g}"]
        how += [] if arm.temperature is None else [f"temperature {arm.temperature:g}"]
        arms.append(arm_label(study, arm) + (f" ({', '.join(how)})" if how else ""))
    counts = found.card.get("counts", {})
    images = ", ".join(f"{wording.number(sum(each.values()), 0)} {split}" for split, each in counts.items() if each
                       and sum(each.values()))
    return [("Data", f"{study.data.source}: {wording.count(len(found.classes), 'class')}; {images} images"),
            ("Student", f"{study.student.model}, {study.student.input_size} px, {part}"),
            ("Teachers" if len(teachers) > 1 else "Teacher", "; ".join(teachers) or "none"),
            ("Arms", "; ".join(arms)),
            *([("Conditions", series.summarised(study.conditions))] if found.hard or len(study.conditions) > 1 else []),
            ("Runs", f"{found.planned - len(found.failures) - len(found.unfinished)} of {found.planned} finished: "
                     f"{_seeds(study)} an arm{' and condition' if len(study.conditions) > 1 else ''}, "
                     f"{wording.count(study.training.epochs, 'epoch')} at most")]


def _seeds(study: Study) -> str:
    """How many seeds an arm has, under each condition."""
    numbers = {len(study.seeds_of(each)) for each in study.conditions}
    return wording.count(max(numbers), "seed") if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)} seeds"


def _provenance(found: Findings) -> list[tuple[str, str]]:
    """Command, commit, hardware and versions, as pairs."""
    known = found.provenance
    rows = [(label, str(known[key])) for key, label in (("command", "command"), ("started", "started"),
                                                        ("git_commit", "git commit")) if known.get(key)]
    for group in ("hardware", "versions"):
        rows += [(str(key).replace("_", " "), str(value)) for key, value in (known.get(group) or {}).items()]
    return rows
