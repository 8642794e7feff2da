"""Kernels in Triton for NVIDIA GPUs, each beside the plain function that says what it computes."""

from importlib.util import find_spec

import torch

_INSTALLED = torch.version.hip is None and find_spec("triton") is not None
AMPERE = 8  # major compute capability; cards before it have no bfloat16


def has_triton(device: torch.device) -> bool:
    """Whether kernels in Triton run on this device: an NVIDIA GPU from Ampere on, where torch brought Triton."""
    return _INSTALLED and device.type == "cuda" and torch.cuda.get_device_properties(device).major >= AMPERE
