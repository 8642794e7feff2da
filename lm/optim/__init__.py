"""Hand-written optimizers, learning-rate schedule and gradient clipping; equal to torch's own by test."""

from lm.optim.adamw import AdamW, adamw_update, parameter_groups
from lm.optim.clip import clipping_factor, gradient_clipping
from lm.optim.muon import Muon, muon_groups, orthogonalize
from lm.optim.schedule import get_lr_cosine_schedule
from lm.optim.sgd import SGD

__all__ = [
    "SGD",
    "AdamW",
    "Muon",
    "adamw_update",
    "clipping_factor",
    "get_lr_cosine_schedule",
    "gradient_clipping",
    "muon_groups",
    "orthogonalize",
    "parameter_groups",
]
