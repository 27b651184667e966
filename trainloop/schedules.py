"""Learning rate at a step: linear warm-up, then cosine, warm-up-stable-decay, linear or constant.

    climbing = Schedule(kind="linear", warmup=0.3, start=0.4, floor=0.2)
    rate(climbing, peak=10, step=1_000, steps=10_000)  ->  6.0
    # 4 at step 0, 10 at step 3,000, 2 at step 10,000

Steps count from 1, and the rate is the one used *in* that step: warm-up reaches the peak in its
last step, and step n of n is exactly at the floor (OLMo-core's convention). With floor 0 the last
step therefore changes nothing; the checkpoint after it is the annealed one. Step 0 is where the
curve begins, which no optimizer step sees: a stage whose peak is its parent's last rate goes on
from there without a jump.

`horizon` stretches cosine and linear: the curve is that of a stage so many times as long, cut off
at this stage's end, above its floor. OLMo 2 (arXiv:2501.00656) pretrains 7B on 4T tokens of a
cosine of 5T, horizon 1.25, and anneals from the rate reached. Cosine: Loshchilov & Hutter 2017
(arXiv:1608.03983). WSD: Hu et al. 2024 (arXiv:2404.06395).
"""

from __future__ import annotations

import math

from trainloop.records import Schedule


def rate(schedule: Schedule, *, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step` (1 to `steps`; 0 is where the curve begins)."""
    assert 0 <= step <= steps, f"step {step} of {steps}"
    warm = round(schedule.warmup * steps)
    if step < warm:
        return _between(schedule.start * peak, peak, step / warm)
    floor = schedule.floor * peak
    match schedule.kind:
        case "constant":
            return peak
        case "wsd":
            decay = round(schedule.decay * steps)
            into = step - (steps - decay)
            return _between(peak, floor, into / decay) if into > 0 else peak
    done = (step - warm) / max(schedule.horizon * steps - warm, 1)
    if schedule.kind == "linear":
        return _between(peak, floor, done)
    return _between(peak, floor, 0.5 * (1 - math.cos(math.pi * done)))


def _between(first: float, last: float, done: float) -> float:
    """From `first` at done = 0 to `last` at done = 1, exact at both."""
    return (1 - done) * first + done * last
