"""Schedules against their closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainloop.records import Schedule
from trainloop.schedules import rate


def rates(schedule: Schedule, steps: int, peak: float = 1.0) -> list[float]:
    return [rate(schedule, peak=peak, step=step, steps=steps) for step in range(steps)]


def test_linear_warm_up_reaches_the_peak_in_its_last_step():
    assert rates(Schedule(kind="wsd", warmup=0.4, decay=0.0), 10)[:5] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0]
    )


def test_cosine_is_half_way_in_the_middle_and_ends_just_above_its_floor():
    got = rates(Schedule(kind="cosine", floor=0.2), 100)
    assert got[50] == pytest.approx(0.6)
    assert got[99] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.99)))


def test_linear_would_be_zero_one_step_after_the_last():
    got = rates(Schedule(kind="linear"), 4)
    assert got == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_wsd_is_flat_until_its_decay_and_would_reach_the_floor_one_step_after_the_last():
    got = rates(Schedule(kind="wsd", decay=0.3, floor=0.0), 10)
    assert got == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])


@given(
    kind=st.sampled_from(["cosine", "wsd", "linear"]),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    floor=st.floats(0, 1),
    steps=st.integers(1, 200),
)
def test_every_rate_lies_between_zero_and_the_peak(kind, warmup, decay, floor, steps):
    schedule = Schedule(kind=kind, warmup=warmup, decay=decay, floor=floor)
    got = rates(schedule, steps, peak=3e-4)
    assert all(0 < value <= 3e-4 * (1 + 1e-12) for value in got)
    warm = round(warmup * steps)
    after = got[warm:]
    assert all(b <= a + 1e-18 for a, b in pairwise(after))
