"""Draws docs/experiments/sgd.png: `python -m docs.tools.toy_sgd`."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from lm.experiments.figures import MARKERS, OKABE_ITO
from lm.optim import SGD

OUT = Path(__file__).parents[1] / "experiments" / "sgd.png"
RATES = (1, 10, 100, 1000)
STEPS = 10
LOWEST = 1e-6  # what is drawn of losses below


def losses(rate: float) -> list[float]:
    """The mean square of 10 x 10 numbers before each of ten steps of SGD."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter(5 * torch.randn(10, 10))
    optimizer = SGD([weights], lr=rate)
    seen = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (weights**2).mean()
        seen.append(loss.item())
        loss.backward()
        optimizer.step()
    return seen


def draw() -> None:
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for rate, colour, marker in zip(RATES, OKABE_ITO, MARKERS, strict=False):
        shown = [max(loss, LOWEST) for loss in losses(rate)]
        axes.plot(range(STEPS), shown, marker=marker, color=colour, label=f"{rate}")
    axes.set_yscale("log")
    axes.set_xlabel("steps taken")
    axes.set_ylabel(f"loss (below {LOWEST:g}: drawn there)")
    axes.grid(color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="learning rate", frameon=False)
    figure.savefig(OUT, dpi=100)


if __name__ == "__main__":
    draw()
