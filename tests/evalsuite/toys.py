"""Toy tasks with their data in a small mirror, and the suite entries that name them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from evalsuite.records import Suite, Task

MEAN = {"aggregation": "mean", "higher_is_better": True}
SUMS = [{"question": f"{a} + {b}", "answer": str(a + b)} for a in range(1, 5) for b in range(1, 4)]

WRITTEN = Task(task="sums_written", metric="exact_match")
CHOICE = Task(task="sums_choice", metric="acc", chance=1 / 6)
GOLD = Task(task="sums_gold", metric="bits_per_byte", unit="bits")
TEXT = Task(task="sums_text", metric="bits_per_byte", unit="bits")


class Toys:
    """A folder of toy tasks and the mirror that holds their data."""

    def __init__(self, folder: Path) -> None:
        self.tasks, self.mirror = folder / "tasks", folder / "mirror"
        self.tasks.mkdir(parents=True)
        self.mirror.mkdir()
        self.sets: list[dict] = []

    def data(self, name: str, **splits: list[dict]) -> None:
        """Put rows into the mirror as data set `name`, one JSONL file per split."""
        files = {}
        for split, rows in splits.items():
            files[split] = f"{name.replace('/', '-')}-{split}.jsonl"
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (self.mirror / files[split]).write_text(lines, encoding="utf-8")
        self.sets = [one for one in self.sets if one["names"] != [name]]
        self.sets.append({"names": [name], "splits": files, "format": "jsonl"})
        (self.mirror / "mirror.yaml").write_text(yaml.safe_dump({"sets": self.sets}))

    def task(self, name: str, **definition: object) -> None:
        """Write a task's YAML; a value "!function x" keeps its tag."""
        text = yaml.safe_dump({"task": name, **definition}, sort_keys=False)
        text = text.replace("'!function ", "!function ").replace("_END'", "")
        (self.tasks / f"{name}.yaml").write_text(text, encoding="utf-8")

    def suite(self, *tasks: Task, **capabilities: list[Task]) -> Suite:
        """A suite of these tasks, all of one capability when given plainly."""
        return Suite(
            name="toy",
            description="For tests.",
            role="dev",
            capabilities=capabilities or {"sums": list(tasks)},
        )
