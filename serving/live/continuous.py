"""From a row of answers to candidate incidents: a running mean, and two thresholds so that one incident is one."""

from __future__ import annotations

from dataclasses import dataclass

from serving.live.config import ContinuousConfig


@dataclass
class CandidateFilter:
    """Smoothing and hysteresis over the probability of an offence."""

    config: ContinuousConfig
    level: float = 0.0
    """The running mean."""
    is_inside: bool = False
    """A candidate has begun and is not over."""

    def update(self, offence_probability: float) -> bool:
        """Take the next answer; return whether a candidate begins with it."""
        self.level += self.config.smoothing * (offence_probability - self.level)
        if self.is_inside:
            self.is_inside = self.level >= self.config.release
            return False
        self.is_inside = self.level >= self.config.threshold
        return self.is_inside
