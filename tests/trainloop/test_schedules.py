"""Schedules against their closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainloop.records import Schedule
from trainloop.schedules import rate

OLMO = Schedule(kind="linear", warmup=0.3, start=0.4, floor=0.2)


def rates(schedule: Schedule, steps: int, peak: float = 1.0) -> list[float]:
    return [rate(schedule, peak=peak, step=step, steps=steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 4.0), (1000, 6.0), (3000, 10.0), (5000, 10 - 8 * 2 / 7), (10_000, 2.0)],
)
def test_warm_up_from_a_share_of_the_peak_and_a_linear_fall_agree_with_olmo(step, expected):
    assert rate(OLMO, peak=10, step=step, steps=10_000) == pytest.approx(expected, rel=1e-12)


def test_linear_warm_up_reaches_the_peak_in_its_last_step():
    assert rates(Schedule(kind="constant", warmup=0.4), 10)[:6] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    )


@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_last_step_is_exactly_at_the_floor(kind, steps):
    to_zero = Schedule(kind=kind, decay=1.0)
    assert rate(to_zero, peak=3e-4, step=steps, steps=steps) == 0.0
    to_a_tenth = Schedule(kind=kind, decay=1.0, floor=0.1)
    assert rate(to_a_tenth, peak=3e-4, step=steps, steps=steps) == 0.1 * 3e-4


def test_linear_falls_by_the_same_amount_in_every_step():
    assert rates(Schedule(kind="linear"), 4) == pytest.approx([0.75, 0.5, 0.25, 0.0])


def test_cosine_is_half_way_in_the_middle():
    got = rates(Schedule(kind="cosine", floor=0.2), 100)
    assert got[49] == pytest.approx(0.6)
    assert got[98] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.99)))


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_horizon_cuts_off_the_curve_of_a_longer_stage(kind):
    long = rates(Schedule(kind=kind, warmup=0.08, floor=0.1), 125)
    cut = rates(Schedule(kind=kind, warmup=0.1, floor=0.1, horizon=1.25), 100)
    assert cut == pytest.approx(long[:100], rel=1e-12)
    assert cut[-1] > 0.1


def test_wsd_is_flat_until_its_decay():
    got = rates(Schedule(kind="wsd", decay=0.3, floor=0.0), 10)
    assert got == pytest.approx([1.0] * 7 + [2 / 3, 1 / 3, 0.0])


def test_a_stage_at_its_parents_last_rate_goes_on_without_a_jump_and_ends_at_zero():
    parent = Schedule(kind="cosine", warmup=0.01, floor=0.1, horizon=1.25)
    reached = rate(parent, peak=3e-4, step=1000, steps=1000)
    child = Schedule(kind="linear")
    assert rate(child, peak=reached, step=0, steps=50) == reached
    assert rate(child, peak=reached, step=1, steps=50) == pytest.approx(reached * 49 / 50)
    assert rate(child, peak=reached, step=50, steps=50) == 0.0


@given(
    kind=st.sampled_from(["cosine", "wsd", "linear", "constant"]),
    warmup=st.floats(0, 0.5),
    start=st.floats(0, 1),
    decay=st.floats(0, 0.5),
    floor=st.floats(0, 1),
    horizon=st.floats(1, 3),
    steps=st.integers(1, 200),
)
def test_every_rate_lies_between_zero_and_the_peak_and_falls_once_warm(
    kind, warmup, start, decay, floor, horizon, steps
):
    more = {"horizon": horizon} if kind in ("cosine", "linear") else {}
    schedule = Schedule(kind=kind, warmup=warmup, start=start, decay=decay, floor=floor, **more)
    got = rates(schedule, steps, peak=3e-4)
    assert all(0 <= value <= 3e-4 * (1 + 1e-12) for value in got)
    warm = round(warmup * steps)
    assert all(b >= a - 1e-18 for a, b in pairwise(got[:warm]))
    after = got[max(warm - 1, 0) :]
    assert all(b <= a + 1e-18 for a, b in pairwise(after))
