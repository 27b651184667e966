"""Sides that train in turns: each a process of its own that takes one optimizer step per line.

    sides = [Side("ours", command), Side("TRL", command)]
    in_turns(sides, steps=6)
    sides[0].rows[2]  ->  {"cpu": 1.91, "wall": 1.95, "loss": 8.31, "peak": 612_000_000, ...}

A process is started with the path of a task, a JSON object; it writes {"ready": true} when it could
begin, then a row per line it gets. CPU seconds are those of the process, one thread; `peak` is its
largest resident memory so far. Keys of a task, all sides:

    side                trainer, packed, dpo, grpo, ppo (run_trl.py); ours ignores it
    model, data         folder of weights and tokenizer; JSON lines, a list of documents per step
    steps, seed         how many steps at most
    learning_rate, weight_decay, beta2, clip, optimizer         AdamW; the rate is constant
    parts               micro-batches per step
    shipped             leave precision, checkpointing and loss at the peer's defaults
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Side:
    """One process that trains; its rows so far."""

    def __init__(self, name: str, command: Sequence[str], task: dict[str, Any], work: Path) -> None:
        self.name, self.task = name, task
        self.rows: list[dict[str, Any]] = []
        stem = "".join(c if c.isalnum() else "_" for c in name)
        path = work / f"{stem}.json"
        path.write_text(json.dumps(task), encoding="utf-8")
        self.log = work / f"{stem}.log"
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.first = self.read()
        """What it said before its first step."""

    def read(self) -> dict[str, Any]:
        """The next row; the benchmark ends when there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8")[-3000:]
            raise SystemExit(f"{self.name} ended early:\n{tail}")
        row: dict[str, Any] = json.loads(line)
        return row

    def step(self) -> None:
        """One optimizer step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.rows.append(self.read())

    def close(self) -> None:
        """End the process: it ends itself when no more lines come."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def median(self, key: str, skip: int = 1) -> float:
        """Over the steps, less the first `skip`, which warm up."""
        return statistics.median(row[key] for row in self.rows[skip:])

    def total(self, key: str, skip: int = 1) -> float:
        """Over the steps, less the first `skip`."""
        return float(sum(row[key] for row in self.rows[skip:]))


def in_turns(sides: Sequence[Side], steps: int) -> None:
    """Each side takes so many steps; who goes first changes with each step."""
    for step in range(steps):
        first = step % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            side.step()
