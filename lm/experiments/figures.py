"""The figures of a report, in colours that the colour-blind can tell apart (Okabe-Ito; viridis for numbers)."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lm.experiments.compare import Comparison, number
from lm.experiments.curves import RunData, smooth
from lm.training.resume import DIVERGED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
STYLES = ("-", "--")
COLOURS = 256  # of a PNG, which makes it a third as large
MARKERS = "osDvP*h"
MOST_TICKS = 8
MOST_LINES = 12
WITHIN = 0.5  # of the lowest loss: a perfect model's line further down would leave the curves no room
BEYOND = 2  # times the median: losses above are named at the upper edge instead of squashing the rest
AXES = {"steps": "optimizer steps", "tokens": "tokens seen", "seconds": "seconds of training"}
LOSS = "loss (nats per token)"
SETTINGS: Any = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "lm",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Picture:
    """A figure, drawn: SVG for the page, PNG for Markdown."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Line:
    """What is drawn in one colour."""

    label: str
    runs: list[RunData]
    value: float | None  # on the colour scale
    colour: Any
    style: Any


def draw_all(comparison: Comparison) -> list[Picture]:
    """Learning curves against steps, tokens and seconds, and the sweep where runs form one."""
    lines, note = _lines(comparison)
    captions = "Left: validation. Right: training, as logged (light) and as a moving mean (full colour)." + note
    pictures = []
    if any(len(run.train.steps) for run in comparison.runs):
        pictures = [
            _picture(
                f"curves_{axis}",
                f"Loss against {words}",
                captions,
                lambda figure, axis=axis: _draw_curves(figure, comparison, lines, axis),
                height=4.6,
            )
            for axis, words in AXES.items()
        ]
    if (key := comparison.sweep_key) is not None:
        caption = "Lowest validation loss of each run."
        if len(comparison.runs) > len(comparison.groups):
            caption += " Light dots: single runs; points and bars: mean ± standard deviation over seeds."
        if any(group.diverged for group in comparison.groups):
            caption += " Crosses at the upper edge: runs that diverged."
        if any(group.mean > _limit(comparison) for group in comparison.groups):
            caption += " Triangles at the upper edge: losses beyond it."
        if not all(group.ended for group in comparison.groups):
            caption += " Hollow points: runs that did not train to their end."
        title = f"{comparison.short(key)} against best validation loss"
        pictures.insert(
            0, _picture("sweep", title, caption, lambda figure: _draw_sweep(figure, comparison, key), height=4.6)
        )
    return pictures


def _picture(name: str, title: str, caption: str, draw: "Callable[[Figure], None]", height: float) -> Picture:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with rc_context(SETTINGS):
        figure = Figure(figsize=(11, height))
        FigureCanvasAgg(figure)
        draw(figure)
        vector, raster = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
        figure.savefig(raster, format="png", dpi=100)
    svg, small = vector.getvalue(), io.BytesIO()
    Image.open(raster).convert("RGB").quantize(COLOURS).save(small, "png", optimize=True)
    return Picture(name, title, caption, svg[svg.index("<svg") :], small.getvalue())


def _lines(comparison: Comparison) -> tuple[list[Line], str]:
    """A line for each group, or for each run of a single group, and a remark on what is left out."""
    groups, key, note = comparison.groups, comparison.sweep_key, ""
    if len(groups) == 1:
        runs = comparison.runs
        seeds = len({run.seed for run in runs}) == len(runs) > 1
        labels = [f"seed {run.seed}" for run in runs] if seeds else comparison.names
        entries = [(label, [run], None) for label, run in zip(labels, runs, strict=True)]
    elif key is not None and len(comparison.naming) == 1:
        entries = [(group.label, group.counted, float(group.values[key])) for group in groups]
        colours = _ordered_colours([value for _, _, value in entries if value is not None])
        styles = STYLES if len(entries) <= MOST_LINES else STYLES[:1]
        looks = [(colour, styles[i % len(styles)]) for i, colour in enumerate(colours)]
        return [Line(*entry, *look) for entry, look in zip(entries, looks, strict=True)], ""
    elif key is not None:
        best = [min(groups, key=lambda group: _nan_last(group.mean)) for groups in comparison.series(key).values()]
        entries = [(f"{comparison.series_name(g, key)} ({number(g.values[key])})", g.counted, None) for g in best]
        note = f" Each at its best {comparison.short(key)}, in brackets; the table has all runs."
    else:
        entries = [(group.label, group.counted, None) for group in groups]
    if len(entries) > MOST_LINES:
        best = sorted(entries, key=lambda entry: min((r.best_loss for r in entry[1]), key=_nan_last))
        note += f" Of {len(entries)} kinds of runs the {MOST_LINES} best are drawn; the table has all."
        entries = [entry for entry in entries if entry in best[:MOST_LINES]]
    return [Line(*entry, *_look(i)) for i, entry in enumerate(entries)], note


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _look(index: int) -> tuple[str, str]:
    return OKABE_ITO[index % len(OKABE_ITO)], STYLES[index // len(OKABE_ITO) % len(STYLES)]


def _scale(values: list[float]) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    return (LogNorm if _wide(values, 10) else Normalize)(min(values), max(values))


def _colour_map() -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))  # its last yellow is faint on white


def _ordered_colours(values: list[float]) -> list[Any]:
    """By rank where a legend names each value, else by place on the scale, as the colour bar shows it."""
    colours, scale = _colour_map(), _scale(values)
    if len(values) <= MOST_LINES:
        return list(colours(np.linspace(0, 1, len(values))))
    return [colours(float(scale(value))) for value in values]


def _wide(values: "list[float] | np.ndarray", factor: float) -> bool:
    """Whether positive values span more than a factor."""
    return len(values) > 0 and min(values) > 0 and max(values) / min(values) > factor


def _draw_curves(figure: "Figure", comparison: Comparison, lines: list[Line], axis: str) -> None:
    left, right = figure.subplots(1, 2)
    for line in lines:
        for run in line.runs:
            valid, train = run.valid, run.train
            marker = "o" if len(valid.steps) <= 30 else ""
            left.plot(valid.x(axis), valid.loss, line.style, marker=marker, markersize=4, color=line.colour)
            right.plot(train.x(axis), train.loss, color=line.colour, alpha=0.25, linewidth=0.8)
            right.plot(train.x(axis), smooth(train.loss), line.style, color=line.colour, linewidth=1.6)
    drawn = [run for line in lines for run in line.runs]
    for axes, split in ((left, "val"), (right, "train")):
        curves = [run.valid if split == "val" else run.train for run in drawn]
        loss = np.concatenate([curve.loss for curve in curves])
        starts = [curve.x(axis)[0] for curve in curves if len(curve.steps)]
        ends = [curve.x(axis)[-1] for curve in curves if len(curve.steps)]
        within = WITHIN * np.nanmin(loss, initial=math.inf)
        known = {round(run.irreducible[split], 4) for run in drawn if split in run.irreducible}
        perfect = sorted(value for value in known if value > within)
        for value in perfect:
            axes.axhline(value, color="#555555", linestyle=(0, (5, 3)), linewidth=1.2)
            axes.annotate(
                f"perfect model: {value:.4g}",
                (0, value),
                (4, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color="#444444",
                fontsize=10,
            )
        if starts and min(starts) > 0 and max(ends) / min(starts) > 30:
            axes.set_xscale("log")
        _loss_scale(axes, list(loss[np.isfinite(loss)]))
        _plain_numbers(axes, axis)
        axes.set_xlabel(AXES[axis])
    left.set_ylabel(f"validation {LOSS}")
    right.set_ylabel(f"training {LOSS}")
    _legend(figure, right, comparison, lines)


def _loss_scale(axes: "Axes", losses: list[float]) -> None:
    """A log axis where losses span much, with plain numbers at its ticks."""
    if _wide(losses, 3):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7), numticks=20))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _plain_numbers(axes: "Axes", axis: str) -> None:
    from matplotlib.ticker import EngFormatter, LogFormatter

    if axis == "tokens" or axes.get_xscale() == "linear":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_xscale() == "log" and axis != "tokens":
        axes.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=True))


def _legend(figure: "Figure", axes: "Axes", comparison: Comparison, lines: list[Line]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    key = comparison.sweep_key
    if len(lines) > MOST_LINES and key is not None:
        scale = _scale([line.value for line in lines if line.value is not None])
        figure.colorbar(ScalarMappable(scale, _colour_map()), ax=axes, label=comparison.short(key))
        return
    if len(lines) < 2:
        return
    handles = [
        Line2D([], [], color=line.colour, linestyle=line.style, linewidth=2.5, label=_with_fate(line)) for line in lines
    ]
    title = comparison.series_title()
    figure.legend(handles=handles, title=title, loc="outside right upper", fontsize=11, alignment="left")


def _with_fate(line: Line) -> str:
    diverged = sum(run.status == DIVERGED for run in line.runs)
    if not diverged:
        return line.label
    return f"{line.label} (diverged)" if diverged == len(line.runs) else f"{line.label} ({diverged} diverged)"


def _limit(comparison: Comparison) -> float:
    """Highest loss that a sweep draws in its place."""
    means = [group.mean for group in comparison.groups if group.losses()]
    return BEYOND * float(np.median(means)) if means else math.inf


def _draw_sweep(figure: "Figure", comparison: Comparison, key: str) -> None:
    axes = figure.subplots()
    series, edge = comparison.series(key), axes.get_xaxis_transform()
    limit = _limit(comparison)
    for i, (name, groups) in enumerate(series.items()):
        colour, style = _look(i)
        alive = [group for group in groups if group.mean <= limit]
        x = [group.values[key] for group in alive]
        axes.plot(x, [group.mean for group in alive], style, color=colour, linewidth=1.6, label=name)
        for group in alive:
            bars = None if math.isnan(group.deviation) else group.deviation
            look: Any = {"fmt": MARKERS[i % len(MARKERS)], "color": colour, "markersize": 7, "capsize": 4}
            axes.errorbar(
                group.values[key], group.mean, bars, markerfacecolor=colour if group.ended else "white", **look
            )
            if bars is not None:
                axes.plot([group.values[key]] * len(group.losses()), group.losses(), "o", color=colour, alpha=0.35)
        height = 0.97 - 0.06 * i
        for group in groups:
            if group.mean > limit:
                at = (group.values[key], height)
                axes.plot(*at, "^", color=colour, markersize=9, transform=edge)
                axes.annotate(f"{group.mean:.2f}", at, (8, -5), xycoords=edge, textcoords="offset points", fontsize=10)
        lost = [group.values[key] for group in groups if group.diverged]
        axes.plot(lost, [height] * len(lost), "X", color=colour, markersize=10, transform=edge)
    alive = [group for group in comparison.groups if group.mean <= limit]
    values = sorted({group.values[key] for group in comparison.groups})
    if _wide(values, 3):
        axes.set_xscale("log")
        if len(values) <= MOST_TICKS:
            axes.set_xticks(values, [number(value) for value in values])
            axes.set_xticks([], minor=True)
    _loss_scale(axes, [group.mean for group in alive])
    if alive:
        best = min(alive, key=lambda group: group.mean)
        axes.annotate(
            f"{best.mean:.4f} at {number(best.values[key])}",
            (best.values[key], best.mean),
            (0, -18),
            textcoords="offset points",
            ha="center",
        )
    axes.margins(x=0.08, y=0.18)
    if any(group.diverged or group.mean > limit for group in comparison.groups):
        low, high = axes.get_ylim()
        room = 0.07 * len(series)  # above the lines, for crosses and triangles
        is_log = axes.get_yscale() == "log"
        axes.set_ylim(low, high * (high / low) ** room if is_log else high + (high - low) * room)
    axes.set_xlabel(key)
    axes.set_ylabel(f"best validation {LOSS}")
    if len(series) > 1:
        figure.legend(title=comparison.series_title(), loc="outside right upper", fontsize=11, alignment="left")
