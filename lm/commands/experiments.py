"""Studies over many runs, and reports on runs."""

from pathlib import Path

from lm.experiments.study import Study
from lm.terminal import say


def sweep(study: Study) -> None:
    """Run a study: many trainings that differ in a few keys. Stopped, it goes on where it was.

    Args:
        study: what varies and how; see configs/sweeps.
    """
    from lm.experiments.sweep import run_study

    rows = run_study(study)
    columns = ["trial", "outcome", "loss", *study.spaces]
    widths = [max(len(name), *(len(_cell(row.get(name))) for row in rows)) for name in columns] if rows else []
    for cells in [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]:
        say("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def report(runs: list[str], output: Path = Path("report"), title: str = "Report") -> None:
    """Compare runs: one HTML page, Markdown with figures, and a CSV table.

    Args:
        runs: run folders, or folders of runs.
        output: folder to write; an earlier report there is replaced.
        title: heading of the report.
    """
    from lm.experiments.report import write_report

    say(str(write_report([Path(run) for run in runs], output, title)))


def _cell(value: object) -> str:
    return (
        f"{value:.4f}"
        if isinstance(value, float) and value >= 0.1
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
