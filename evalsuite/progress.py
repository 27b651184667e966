"""Progress of long work: a bar with ETA on a terminal, plain lines without one.

Library code takes a `Progress` (a plain function) and never prints. A command opens
the display and hands its function down:

    with show_progress() as progress:
        scan(files, progress=progress)      # calls progress("scan web", done, total)

The function may be called from one thread only; worker processes send their calls
through a queue (see trainloop/sweep.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

Progress = Callable[[str, float, float], None]
"""progress(label, done, total): `label` names one piece of work; done == total ends it."""

PLAIN_SECONDS = 10.0
"""Least time between two plain lines of one piece of work."""
WORTH_A_LINE = 1.0
"""Work that ends within so many seconds leaves no line and no bar behind."""


def silent(label: str, done: float, total: float) -> None:
    """The Progress that shows nothing."""


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Open a display on `stream` (standard error by default) and yield its Progress."""
    out = stream if stream is not None else sys.stderr
    if out.isatty():
        with _bars(out) as progress:
            yield progress
    else:
        yield _plain_lines(out)


@contextmanager
def _bars(out: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=out)) as bars:
        known: dict[str, Any] = {}
        reached: dict[str, float] = {}

        def progress(label: str, done: float, total: float) -> None:
            if label not in known:
                known[label] = bars.add_task(label, total=total)
            elif done < reached[label]:
                bars.reset(known[label], visible=True)  # the same work again, e.g. next scores
            reached[label] = done
            bars.update(known[label], completed=done, total=total)
            elapsed = bars.tasks[bars.task_ids.index(known[label])].elapsed
            if done >= total and (elapsed or 0.0) < WORTH_A_LINE:
                bars.update(known[label], visible=False)

        yield progress


def _plain_lines(out: TextIO) -> Progress:
    started: dict[str, tuple[float, float]] = {}
    printed: dict[str, float] = {}
    reached: dict[str, float] = {}

    def progress(label: str, done: float, total: float) -> None:
        now = time.monotonic()
        if done < reached.get(label, done):
            started.pop(label)  # the same work again, e.g. the next checkpoint's scores
        ended = reached.get(label) == done >= total
        reached[label] = done
        if ended:
            return
        start, first = started.setdefault(label, (now, done))
        if done >= total:
            if now - start >= WORTH_A_LINE:
                print(f"{label}: done in {now - start:.1f} s", file=out, flush=True)
        elif now - max(printed.get(label, start), start) >= PLAIN_SECONDS:
            printed[label] = now
            rate = (done - first) / max(now - start, 1e-9)
            eta = f", ETA {(total - done) / rate:.0f} s" if rate > 0 else ""
            print(f"{label}: {100 * done / total:.0f} %{eta}", file=out, flush=True)

    return progress


class Meter:
    """Counts answers into one Progress over all tasks."""

    def __init__(self, label: str, total: int, progress: Progress) -> None:
        self.label, self.total, self.progress, self.done = label, total, progress, 0

    def tick(self) -> None:
        """One more answer is there; the last step is the judging's."""
        self.done += 1
        self.progress(self.label, min(self.done, self.total - 1), self.total)

    def end(self) -> None:
        """Everything is judged."""
        self.progress(self.label, self.total, self.total)
