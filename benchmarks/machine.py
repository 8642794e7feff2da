"""What a measurement was made on, and how its repetitions are summed up."""

import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GB, GPUs, versions and date, to stand beside every figure."""
    import torch

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu,
        "cores": cores,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def median(values: Sequence[float]) -> float:
    """The median of repeated measurements."""
    return statistics.median(values)


def ratio_to_fastest(seconds: dict[str, float], ours: str = "lm") -> str:
    """How many times faster than the fastest rival we are, and which that is; "-" if nothing else was measured."""
    rivals = {name: value for name, value in seconds.items() if name != ours}
    if ours not in seconds or not rivals:
        return "-"
    fastest = min(rivals, key=rivals.__getitem__)
    return f"{rivals[fastest] / seconds[ours]:.2f} ({fastest})"


def save(path: Path, results: object) -> None:
    """Write `{"machine": ..., "results": ...}` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n", encoding="utf-8")
