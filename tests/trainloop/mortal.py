"""Processes of `assay` that die by SIGKILL at the n-th thing they do.

    [process] = start(["train", ...], log, root=root, at=120)  # at its 120th
    start([...], log, root=root, at=120, ranks=2, dies=1)  # rank 1 of 2

What counts are changes of the run folder (files opened to write, renamed, removed; folders made),
the two sides of each optimizer step, and each answer of the model while it is written: half its
line is there. The last line of root/../moments says what a killed process was about to do.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.trainloop import minirun
from tests.trainloop.ranked import environment, meeting_place

CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    root: Path,
    at: int | None = None,
    ranks: int = 1,
    dies: int = 0,
) -> list[Any]:
    """`assay ARGUMENTS` in so many processes, of which rank `dies` may not live to the end.

    The first process keeps what the ranks meet at alive: hold on to the list.
    """
    store = meeting_place() if ranks > 1 else None
    started = []
    for rank in range(ranks):
        told = environment(rank, ranks, store.port) if store is not None else {}
        mine = at if rank == dies else None
        process = minirun.processes.Process(
            target=_live, args=(list(arguments), str(log), str(root), mine, told)
        )
        process.start()
        started.append(process)
    started[0].store = store
    return started


def _live(arguments: list[str], log: str, root: str, at: int | None, told: dict[str, str]) -> None:
    os.environ |= told
    _watch(root, at)
    minirun.run_assay(arguments, log)


def _watch(root: str, at: int | None) -> None:
    """Count what this process does, and die at the `at`-th thing."""
    numbers = itertools.count(1)
    moments = os.open(Path(root).parent / "moments", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def moment(what: str, finally_: Any = None) -> None:
        if next(numbers) != at:
            return
        os.write(moments, f"{what}\n".encode())
        if finally_ is not None:
            finally_()
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and str(arguments[0]).startswith(root):
            if event == "open" and arguments[1] in ("r", "rb", None):
                return
            moment(f"{event} {str(arguments[0])[len(root) :]}")

    sys.addaudithook(hook)
    _watch_steps(moment)
    _watch_answers(moment)


def _watch_steps(moment: Any) -> None:
    import torch

    step = torch.optim.AdamW.step

    def watched(optimizer: Any, *arguments: Any, **options: Any) -> Any:
        moment("before a step")
        found = step(optimizer, *arguments, **options)
        moment("after a step")
        return found

    torch.optim.AdamW.step = watched  # type: ignore[method-assign]


def _watch_answers(moment: Any) -> None:
    from evalsuite.journal import Journal

    put = Journal.put

    def watched(journal: Any, key: str, answer: Any) -> None:
        handle = journal._handle

        def half() -> None:
            if handle is not None:
                handle.write(f'["{key}", [-0.2')
                handle.flush()

        moment("an answer", half)
        put(journal, key, answer)

    Journal.put = watched  # type: ignore[method-assign]
