"""A report's words: one HTML page with its figures inside, Markdown with figures beside it, and a CSV table."""

import csv
import html
import io
import math
import re
from typing import Any

from lm.experiments.compare import Comparison, number
from lm.experiments.curves import RunData
from lm.experiments.figures import Picture

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:1150px;margin:2em auto;padding:0 1em;color:#1a1a1a;
background:#fff}table{border-collapse:collapse;font-size:14px}.wide{overflow-x:auto}th,td{padding:.3em .7em;
border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}th:first-child,td:first-child{text-align:left}
figure{margin:1em 0}figure svg{max-width:100%;height:auto}figcaption{color:#444;font-size:14px}
pre{white-space:pre-wrap;background:#f6f6f6;padding:1em}"""
MOST_SAMPLES = 12
Table = tuple[list[str], list[list[str]]]


def write_csv(comparison: Comparison) -> str:
    """A row for each run, in full precision, with keys by their full names."""
    rows = [_row(comparison, i) for i in range(len(comparison.runs))]
    output = io.StringIO()
    writer = csv.DictWriter(output, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return output.getvalue()


def write_html(title: str, comparison: Comparison, pictures: list[Picture]) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in _summary(comparison))]
    for heading, table in _tables(comparison):
        parts += [f"<h2>{heading}</h2>", _html_table(table)]
    for picture in pictures:
        parts.append(f"<h2>{html.escape(picture.title)}</h2><figure>{_unique_ids(picture)}")
        parts.append(f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>")
    for name, text in _samples(comparison):
        parts.append(f"<h2>Text by {html.escape(name)}</h2><pre>{html.escape(text)}</pre>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def write_markdown(title: str, comparison: Comparison, pictures: list[Picture]) -> str:
    parts = [f"# {_inline(title)}", *map(_inline, _summary(comparison))]
    for heading, (names, rows) in _tables(comparison):
        lines = [names, ["---"] + ["---:"] * (len(names) - 1), *([_inline(cell) for cell in row] for row in rows)]
        parts += [f"## {heading}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    for picture in pictures:
        parts += [f"## {picture.title}", f"![{picture.title}]({picture.name}.png)", picture.caption]
    for name, text in _samples(comparison):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        parts += [f"## Text by {_inline(name)}", f"{fence}text\n{text}\n{fence}"]
    return "\n\n".join(parts) + "\n"


def _row(comparison: Comparison, index: int) -> dict[str, Any]:
    run = comparison.runs[index]
    return {
        "run": comparison.names[index],
        **{key: run.config.get(key) for key in comparison.differing},
        "seed": run.seed,
        "status": run.status,
        "final_loss": run.final_loss,
        "best_loss": run.best_loss,
        "perplexity": run.perplexity,
        "bits_per_byte": run.bits_per_byte,
        "tokens_seen": run.facts.get("tokens_seen"),
        "training_seconds": run.facts.get("training_seconds"),
        "tokens_per_second": run.tokens_per_second,
        "parameters": run.facts.get("parameters"),
        "device": f"{run.facts.get('devices', 1)} × {run.facts.get('device', 'unknown')}",
    }


def _shared(comparison: Comparison) -> dict[str, Any]:
    """What is the same in all of several runs, and need not be a column."""
    first, *others = [_row(comparison, i) for i in range(len(comparison.runs))]
    return {name: value for name, value in first.items() if others and all(row[name] == value for row in others)}


def _summary(comparison: Comparison) -> list[str]:
    """The best run, what all runs share, and what they ran on."""
    runs = comparison.runs
    lines = []
    alive = [(run.best_loss, i) for i, run in enumerate(runs) if math.isfinite(run.best_loss)]
    if len(alive) > 1:
        best = comparison.names[min(alive)[1]]
        group = next(group for group in comparison.groups if runs[min(alive)[1]] in group.runs)
        label = f" ({group.label})" if group.label else ""
        lines.append(f"Best of {len(runs)} runs: {best}{label}, {min(alive)[0]:.4f} nats per token.")
    if shared := _shared(comparison):
        told = ", ".join(f"{name.replace('_', ' ')} {_cell(name, value)}" for name, value in shared.items())
        lines.append(f"The same in all runs: {told}.")
    facts = {"precision": "", "torch": "torch ", "started": "", "cpu_cores": "CPU cores: "}
    seen = {
        name: sorted({str(run.facts[name]).partition("T")[0] for run in runs if name in run.facts}) for name in facts
    }
    ran = "; ".join(f"{words}{', '.join(seen[name])}" for name, words in facts.items() if seen[name])
    return [*lines, f"Made with {ran}."] if ran else lines


def _tables(comparison: Comparison) -> list[tuple[str, Table]]:
    shared = _shared(comparison)
    rows = [
        {name: value for name, value in _row(comparison, i).items() if name not in shared}
        for i in range(len(comparison.runs))
    ]
    names = [comparison.short(n) if n in comparison.differing else n.replace("_", " ") for n in rows[0]]
    tables = [("Runs", (names, [[_cell(name, value) for name, value in row.items()] for row in rows]))]
    if len(comparison.groups) < len(comparison.runs):
        names = [*map(comparison.short, comparison.differing), "runs", "diverged", "best loss, mean ± deviation"]
        cells = [
            [
                *(number(group.values[key]) for key in comparison.differing),
                str(len(group.counted)),
                str(group.diverged),
                f"{_cell('loss', group.mean)} ± {_cell('loss', group.deviation)}",
            ]
            for group in comparison.groups
        ]
        tables.append(("Over seeds", (names, cells)))
    return tables


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if name.endswith(("loss", "perplexity", "bits_per_byte")):
        return f"{value:.4f}"
    return f"{value:,.0f}" if name == "tokens_per_second" else number(value)


def _html_table(table: Table) -> str:
    names, rows = table
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _samples(comparison: Comparison) -> list[tuple[str, str]]:
    """The newest text of the first run of each group, best first."""
    names = {id(run): name for run, name in zip(comparison.runs, comparison.names, strict=True)}
    firsts: list[RunData] = [group.runs[0] for group in comparison.groups if group.runs[0].sample]
    firsts.sort(key=lambda run: math.inf if math.isnan(run.best_loss) else run.best_loss)
    return [(names[id(run)], run.sample or "") for run in firsts[:MOST_SAMPLES]]


def _unique_ids(picture: Picture) -> str:
    """The SVG with ids of its own in the page, and without the names of XML's vocabularies, which HTML knows."""
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", picture.svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{picture.name}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{picture.name}-", svg)


def _inline(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
