"""Devices by name, with the peak rates of their makers' datasheets."""

import re
from typing import Literal, get_args

Precision = Literal["float32", "tf32", "bfloat16"]


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Peak rate of dense matrix products of one device, in operations per second, accumulated in float32.

    NVIDIA's datasheets and architecture whitepapers, without structured sparsity (where they print the sparse rate
    only, half of it), at boost clock. Variants with other rates, such as laptop chips and MIG slices, are unknown.

    Args:
        device_name: as `torch.cuda.get_device_name` prints it, for example "NVIDIA H100 80GB HBM3".
        precision: type of the products.

    Returns:
        The rate, or None where it is unknown or the device lacks the type.
    """
    words = set(re.findall(r"[A-Z0-9]+", device_name.upper()))
    if words & _OTHER_RATES:
        return None
    for needed, *rates in _PEAK_TERAFLOPS:
        if words.issuperset(needed.split()):
            rate = rates[get_args(Precision).index(precision)]
            return None if rate is None else rate * 1e12
    return None


def device_names() -> list[str]:
    """Names that `peak_flops` knows, shortest form."""
    return [name for name, *_ in _PEAK_TERAFLOPS]


def devices() -> dict[str, dict[Precision, float | None]]:
    """Peaks by type, in operations per second, of every device known."""
    kinds: tuple[Precision, ...] = get_args(Precision)
    return {name: {kind: peak_flops(name, kind) for kind in kinds} for name in device_names()}


# Words of the device's name, then float32, tf32 and bfloat16; the first row that matches counts.
_PEAK_TERAFLOPS: list[tuple[str, float, float | None, float | None]] = [
    ("B200", 75, 1125, 2250),
    ("H200 NVL", 60, 417.5, 835.5),
    ("H200", 66.9, 494.7, 989.4),
    ("GH200", 66.9, 494.7, 989.4),
    ("H100 PCIE", 51.2, 378, 756),
    ("H100 NVL", 60, 417.5, 835.5),
    ("H100", 66.9, 494.7, 989.4),
    ("H800 PCIE", 51.2, 378, 756),
    ("H800", 66.9, 494.7, 989.4),
    ("A100", 19.5, 156, 312),
    ("A800", 19.5, 156, 312),
    ("A30", 10.3, 82, 165),
    ("A40", 37.4, 74.8, 149.7),
    ("A10", 31.2, 62.5, 125),
    ("RTX A6000", 38.7, 77.4, 154.8),
    ("L40S", 91.6, 183, 362),
    ("L4", 30.3, 60, 121),
    ("RTX 3090", 35.6, 35.6, 71),
    ("RTX 4090", 82.6, 82.6, 165.2),
    ("V100 SXM2", 15.7, None, None),
    ("V100 PCIE", 14, None, None),
    ("T4", 8.1, None, None),
]
_OTHER_RATES = {"MIG", "LAPTOP", "TI", "D"}
