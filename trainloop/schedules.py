"""Learning rate at a step: linear warm-up, then cosine, warm-up-stable-decay, or linear.

    rate(Schedule(kind="linear", warmup=0.1), peak=1e-3, step=0, steps=100)  ->  1e-4

Steps count from 0, and the rate is the one used *in* that step; warm-up reaches the peak in its
last step. With floor 0 the rate would be exactly 0 one step after the last one, so that no step
is wasted on a zero rate. Cosine: Loshchilov & Hutter 2017 (arXiv:1608.03983). WSD: Hu et al.
2024 (arXiv:2404.06395).
"""

from __future__ import annotations

import math

from trainloop.records import Schedule


def rate(schedule: Schedule, *, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step` (0 to steps - 1)."""
    warm = round(schedule.warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    floor = schedule.floor * peak
    if schedule.kind == "wsd":
        decay = round(schedule.decay * steps)
        into = step - (steps - decay)
        return peak if into < 0 else peak + (floor - peak) * (into + 1) / (decay + 1)
    done = (step - warm) / max(steps - warm, 1)
    if schedule.kind == "linear":
        return peak + (floor - peak) * done
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))
