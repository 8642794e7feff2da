"""Kernels in Triton for NVIDIA GPUs, each beside the plain function that says what it computes."""

from importlib.util import find_spec

import torch

_INSTALLED = torch.version.hip is None and find_spec("triton") is not None


def has_triton(device: torch.device) -> bool:
    """Whether kernels in Triton run on this device."""
    return _INSTALLED and device.type == "cuda"
