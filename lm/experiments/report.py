"""From run folders to a report: report.html, report.md with PNG figures, and runs.csv."""

import os
from pathlib import Path

from lm.experiments.compare import compare
from lm.experiments.curves import find_run_folders, read_run

PAGE = "report.html"
FIGURES = ("sweep", "curves_steps", "curves_tokens", "curves_seconds")


def write_report(paths: list[Path], output: Path, title: str = "Report") -> Path:
    """Compare runs in a folder of files; an earlier report there is replaced.

    Returns:
        The HTML page, which needs neither a network nor the other files.

    Raises:
        FileNotFoundError: a path holds no run.
        FileExistsError: the output exists and is no report.
        ValueError: a run has no curves, or matplotlib is not installed.
    """
    if output.exists() and not (output.is_dir() and ((output / PAGE).is_file() or not any(output.iterdir()))):
        raise FileExistsError(f"{output} exists and is not a report; name another folder")
    comparison = compare([read_run(folder) for folder in find_run_folders(paths)])
    try:
        from lm.experiments.figures import draw_all
        from lm.experiments.page import write_csv, write_html, write_markdown

        pictures = draw_all(comparison)
    except ModuleNotFoundError as error:
        raise ValueError(f"reports need {error.name}; install it: pip install -e '.[report]'") from None
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    files["runs.csv"] = write_csv(comparison).encode()
    files["report.md"] = write_markdown(title, comparison, pictures).encode()
    files[PAGE] = write_html(title, comparison, pictures).encode()
    output.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        if f"{name}.png" not in files:
            (output / f"{name}.png").unlink(missing_ok=True)
    for name, content in files.items():
        temporary = output / f"{name}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, output / name)
    return output / PAGE
