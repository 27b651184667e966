"""Progress without a terminal: few plain lines, an ETA, and nothing for what took no time."""

from __future__ import annotations

import io

import pytest

from evalsuite import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_long_work_prints_a_line_with_an_eta_now_and_then(clock):
    out = io.StringIO()
    with progress.show_progress(out) as show:
        for done in range(101):
            show("train", done, 100)
            clock[0] += 0.25
    lines = out.getvalue().splitlines()
    assert lines[0] == "train: 40 %, ETA 15 s"
    assert lines[-1] == "train: done in 25.0 s"
    assert len(lines) == 3


def test_work_that_took_no_time_prints_nothing(clock):
    out = io.StringIO()
    with progress.show_progress(out) as show:
        show("tokens", 1, 2)
        show("tokens", 2, 2)
    assert out.getvalue() == ""


def test_the_same_work_done_again_is_shown_again_and_its_end_only_once(clock):
    out = io.StringIO()
    with progress.show_progress(out) as show:
        for _ in range(2):
            show("score", 0, 2)
            clock[0] += 2
            show("score", 2, 2)
            show("score", 2, 2)
    assert out.getvalue().splitlines() == ["score: done in 2.0 s"] * 2


def test_a_terminal_gets_bars(clock):
    out = Terminal()
    with progress.show_progress(out) as show:
        show("train", 0, 10)
        show("train", 5, 10)
        show("train", 1, 10)
    assert "train" in out.getvalue()
    assert "ETA" in out.getvalue()
