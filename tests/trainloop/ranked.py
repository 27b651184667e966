"""Work done by several processes together, each with its rank, on this machine.

    losses = together(gradients.losses, "fsdp", ranks=2)      # what each rank returned

The processes are forked with everything imported, and meet at a store that this process keeps on
a port the system chose, as they do under torchrun.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.distributed as dist

from tests.trainloop import minirun

SECONDS = 120


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process; the store at `port` is kept by somebody else."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def meeting_place() -> dist.TCPStore:
    """A store that ranks find each other at; it lives as long as the caller keeps it."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def together(work: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """`work(*arguments)` in so many processes; what each returned, or the first one's failure."""
    store = meeting_place()
    started = []
    for rank in range(ranks):
        mine, theirs = minirun.processes.Pipe()
        told = environment(rank, ranks, store.port)
        process = minirun.processes.Process(target=_run, args=(theirs, told, work, arguments))
        process.start()
        theirs.close()
        started.append((process, mine))
    try:
        return _results([mine for _, mine in started])
    finally:
        for process, mine in started:
            process.kill()
            process.join()
            mine.close()


def _results(pipes: list[Connection]) -> list[Any]:
    found: dict[Connection, Any] = {}
    while len(found) < len(pipes):
        ready = wait([pipe for pipe in pipes if pipe not in found], timeout=SECONDS)
        assert ready, f"ranks did not end within {SECONDS} s"
        for pipe in ready:
            failure, found[pipe] = pipe.recv()
            assert failure is None, failure
    return [found[pipe] for pipe in pipes]


def _run(
    pipe: Connection,
    told: dict[str, str],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= told
    try:
        pipe.send((None, work(*arguments)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
    if dist.is_initialized():
        dist.destroy_process_group()
