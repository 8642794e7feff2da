"""Kernels in Triton for NVIDIA GPUs, each beside the plain function that says what it computes."""

from importlib.util import find_spec

import torch


def has_triton(device: torch.device) -> bool:
    """Whether kernels in Triton run on this device."""
    return device.type == "cuda" and torch.version.hip is None and find_spec("triton") is not None
