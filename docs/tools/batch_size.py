"""Draws loss and speed against the batch size: `python -m docs.tools.batch_size`, after its four studies."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from lm.experiments.compare import number
from lm.experiments.curves import RunData, find_run_folders, read_run
from lm.experiments.figures import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).parents[1] / "experiments" / "batch_size" / "sizes.png"
TICKS = (1, 4, 16, 64, 256, 1024)
LOGS = Path("lightning_logs")
ALONE = ("batch_size_speed", "batch_size_large")  # studies of one run at a time, whose speed means something


def read(*studies: str) -> dict[int, list[RunData]]:
    """Finished runs by batch size."""
    runs = [read_run(folder) for folder in find_run_folders([LOGS / study for study in studies])]
    sizes = sorted({run.config["data.batch_size"] for run in runs if run.status == "finished"})
    return {size: [run for run in runs if run.config["data.batch_size"] == size and run.is_whole] for size in sizes}


def best_losses(*studies: str) -> list[tuple[float, float, str]]:
    """Of each batch size the lowest loss, labelled with its learning rate."""
    best = {size: min(runs, key=lambda run: run.best_loss) for size, runs in read(*studies).items()}
    return [(size, run.best_loss, f"{run.config['model.optimizer.max_learning_rate']:g}") for size, run in best.items()]


def plot(
    axes: "Axes", points: Iterable[tuple[float, float, str]], name: str, style: str, colour: str, below: bool = False
) -> None:
    x, y, labels = zip(*points, strict=True)
    axes.plot(x, y, style, color=colour)
    for i, (size, value, label) in enumerate(zip(x, y, labels, strict=True)):
        if below or (i > 0 and size < 2 * x[i - 1]):  # under the line, or beside its neighbour's label
            at, side = (8, -12), "left"
        else:  # off the line
            at, side = ((-7, 6), "right") if i == 0 or value > y[i - 1] else ((0, -18), "center")
        axes.annotate(label, (size, value), at, textcoords="offset points", ha=side, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_xticks(TICKS, [number(size) for size in TICKS])
    axes.set_xlabel("sequences a step")
    axes.set_ylabel(name)
    axes.grid(color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.18, y=0.12)


def draw() -> None:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    name = "best validation loss (nats per token)"
    plot(left, best_losses("batch_size", "batch_size_large"), name, "o-", OKABE_ITO[0])
    plot(left, best_losses("batch_size_warmup"), name, "s--", OKABE_ITO[2], below=True)
    left.legend(left.get_lines(), ["a twentieth of the steps", "half of the steps"], title="warmup", frameon=False)
    left.set_title("Labels: peak learning rate", fontsize=11)
    speeds = {size: max(run.tokens_per_second for run in runs) for size, runs in read(*ALONE).items()}
    plot(
        right,
        [(size, speed, f"{speed / 1000:,.0f}k") for size, speed in speeds.items()],
        "tokens a second",
        "o-",
        OKABE_ITO[1],
    )
    right.set_yscale("log")
    right.yaxis.set_major_formatter(EngFormatter(sep=""))
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=100)


if __name__ == "__main__":
    draw()
