"""Devices by name, with the peak rates of their makers' datasheets."""

import re
from dataclasses import dataclass
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


def training_peak(device_name: str, products: Precision | None, mixed: bool) -> tuple[Precision, float]:
    """The type of a training step's products and its `peak_flops`.

    Args:
        device_name: as in `peak_flops`.
        products: the type; by default bfloat16 for mixed precision and what `fit` allows for float32, TF32, where the
            device has it.
        mixed: whether the precision is bf16-mixed.

    Raises:
        ValueError: the device or its rate is unknown.
    """
    chosen = products
    if chosen is None:
        chosen = "bfloat16" if mixed else "tf32"
        if chosen == "tf32" and peak_flops(device_name, "tf32") is None:
            chosen = "float32"
    peak = peak_flops(device_name, chosen)
    if peak is None and peak_flops(device_name, "float32") is None:
        raise ValueError(f"there is no device {device_name!r}; choose from {', '.join(device_names())}")
    if peak is None:
        raise ValueError(f"{device_name} has no {chosen} products; set products to float32")
    return chosen, peak


@dataclass(frozen=True)
class Links:
    """What a GPU sends at most, and receives at the same time, in bytes per second."""

    nvlink: float  # to the GPUs of its host
    network: float  # to other hosts


def host_links(device_name: str) -> Links:
    """Links of a GPU in NVIDIA's DGX host of eight, by the datasheets of DGX A100, H100, H200 and B200.

    Half of NVLink's bandwidth, which they give for both directions together, and one network adapter a GPU.

    Raises:
        ValueError: no such host is known.
    """
    if device_name.upper() not in _LINKS:
        raise ValueError(f"the links of {device_name!r} are not known; choose from {', '.join(_LINKS)}")
    return _LINKS[device_name.upper()]


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
_LINKS = {
    "B200": Links(900e9, 50e9),
    "H200": Links(450e9, 50e9),
    "H100": Links(450e9, 50e9),
    "A100": Links(300e9, 25e9),
}
_OTHER_RATES = {"MIG", "LAPTOP", "TI", "D"}
