"""Studies over many runs."""

from lm.experiments.study import Study


def sweep(study: Study) -> None:
    """Run a study: many trainings that differ in a few keys. Stopped, it goes on where it was.

    Args:
        study: what varies and how; see configs/sweeps.
    """
    from lm.experiments.sweep import run_study

    rows = run_study(study)
    columns = ["trial", "outcome", "loss", *study.search]
    widths = [max(len(name), *(len(_cell(row.get(name))) for row in rows)) for name in columns] if rows else []
    for cells in [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def _cell(value: object) -> str:
    return (
        f"{value:.4f}"
        if isinstance(value, float) and value >= 0.1
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
