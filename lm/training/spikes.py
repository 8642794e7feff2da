"""Loss spikes: values far above what a running mean and variance lead one to expect."""

import math
from dataclasses import dataclass

LIMIT = 6.0  # standard deviations above the mean
DECAY = 0.98  # of the running figures: about the last 50 values
FIRST = 20  # values before anything counts as a spike
NARROWEST = 0.005  # least standard deviation, as a share of the mean


@dataclass
class Spikes:
    """Exponentially weighted mean and variance of a falling curve; a spike moves them no further than to the limit."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def add(self, loss: float) -> float | None:
        """Take in a value; returns how many standard deviations it lies above the mean where that is a spike."""
        deviation = max(math.sqrt(self.variance), NARROWEST * abs(self.mean))
        height = (loss - self.mean) / deviation if deviation else 0.0
        spike = self.count >= FIRST and height > LIMIT
        if spike:
            loss = self.mean + LIMIT * deviation
        weight = max(1 - DECAY, 1 / (self.count + 1))
        difference = loss - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)
        self.count += 1
        return height if spike else None
