"""How fast does our loop train, beside transformers' Trainer and TRL's trainers?

    python3 -m venv peer-trl && peer-trl/bin/pip install -r benchmarks/peers/trl.txt
    python benchmarks/bench_train.py --data ../shared/data --trl peer-trl/bin/python
    python benchmarks/bench_train.py --data ../shared/data --trl ... --tasks sft --models 5M
    python benchmarks/bench_train.py --data ../shared/data --tasks memory,saving        # no peer

Llama models with fresh weights, float32, one thread, CPU seconds. Every side is a process of its
own; they take one optimizer step each in turns, over the same documents in the same updates, from
the same weights, with AdamW (fused) at the same rate: so the loss curves must agree, and the table
shows by how much they do not. What a side pads, packs, shares or recomputes is its own affair:
tokens are those of the documents (of both rows of a pair, the prompt twice), per CPU second.

Peers get bfloat16 and gradient checkpointing off, which TRL switches on, and logging, saving and
evaluation off. Of several numbers of micro-batches per update, with documents of like length in
one, the fastest goes on, and one line shows TRL as shipped. `useful` is the share of the matrix
product speed of this machine, measured here, that goes into operations which every side must do:
6 per weight and token (of each pair's prompt once), 6 per output weight and target, attention
within documents; for dpo the reference's forward pass too, where it is live.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import run_ours
import torch
from turns import Side, in_turns
from workload import workload

from trainloop.data import Batch

HERE = Path(__file__).parent
PARTS = (4, 8)
"""Micro-batches per update that peers try; 1 and 2 were slower wherever they were measured."""
OURS = (1, 2)
TRIAL = 3
"""Steps in which the numbers of micro-batches compete, the first one not counted."""
COMMON = {"steps": 40, "seed": 1, "weight_decay": 0.1, "beta2": 0.95, "clip": 1.0} | {
    "optimizer": "adamw_torch_fused",
    "shipped": False,
    "parts": 1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One table: what is trained, and beside whom."""

    objective: str
    source: str
    stage: dict[str, Any]
    learning_rate: float
    options: dict[str, Any]
    peers: dict[str, dict[str, Any]]
    """Name -> keys of its task."""
    bars: dict[str, float]
    """How many times faster than a peer we want to be."""


ROW = 1024
KINDS = {
    "sft": Kind(
        objective="sft",
        source="sft",
        stage={"tokens": 40 * 2 * ROW, "batch_tokens": 2 * ROW, "sequence_length": ROW},
        learning_rate=1e-3,
        options={},
        peers={
            "Trainer, padded": {"side": "trainer", "tried": (1,), "sorted": False},
            "Trainer, best grouping": {"side": "trainer", "sorted": True},
            "TRL SFT, packed": {"side": "packed", "row": ROW, "tried": (2, 4)},
            "TRL SFT, packed, as shipped": {
                "side": "packed",
                "row": ROW,
                "shipped": True,
                "tried": (2,),
            },
        },
        bars={"Trainer, padded": 2.0, "Trainer, best grouping": 2.0, "TRL SFT, packed": 2.5},
    ),
    "pretrain": Kind(
        objective="next_token",
        source="text",
        stage={"tokens": 40 * 2 * ROW, "batch_tokens": 2 * ROW, "sequence_length": ROW // 2},
        learning_rate=1e-3,
        options={},
        peers={
            "Trainer, rows": {"side": "trainer", "sorted": False, "tried": (2, 4)},
            "TRL SFT, packed": {"side": "packed", "row": ROW // 2, "tried": (2, 4)},
            "TRL SFT, packed, as shipped": {
                "side": "packed",
                "row": ROW // 2,
                "shipped": True,
                "tried": (2,),
            },
        },
        bars={"Trainer, rows": 1.0, "TRL SFT, packed": 1.5},
    ),
    "dpo": Kind(
        objective="dpo",
        source="pairs",
        stage={"steps": 40, "batch": 8, "sequence_length": 512},
        learning_rate=1e-4,
        options={"beta": 0.1},
        peers={
            "TRL DPO, live reference": {"side": "dpo", "cached": False, "beta": 0.1},
            "TRL DPO, cached reference": {"side": "dpo", "cached": True, "beta": 0.1},
            "TRL DPO, as shipped": {
                "side": "dpo",
                "cached": False,
                "beta": 0.1,
                "shipped": True,
                "tried": (4,),
            },
        },
        bars={"TRL DPO, live reference": 3.0, "TRL DPO, cached reference": 3.0},
    ),
}
PAIRS = 40 * 8
"""The first so many pairs are read; the reference reads no others."""


# --- what both sides get -------------------------------------------------------------------------


def documents(batch: Batch) -> list[dict[str, list[int]]]:
    """A batch's documents for the peers: ids and labels, or prompt, chosen and rejected."""
    labels = [-100] * batch.tokens
    for place, label in zip(batch.predict_from.tolist(), batch.labels.tolist(), strict=True):
        # A pair's rejected answer is predicted from the prompt's end too: pairs need no labels.
        labels[min(place + 1, batch.tokens - 1)] = label
    ids = batch.input_ids.tolist()
    spans = batch.segments[:, :2].tolist()
    if batch.sequences == batch.documents:
        return [{"ids": ids[a:b], "labels": labels[a:b]} for a, b in spans]
    thirds = [ids[a:b] for a, b in spans]
    parts = zip(thirds[::3], thirds[1::3], thirds[2::3], strict=True)
    return [dict(zip(("prompt", "chosen", "rejected"), part, strict=True)) for part in parts]


def tokens_of(batch: Batch) -> int:
    """Of the documents; a pair's prompt counts for both of its rows."""
    start, end, prefix_start, prefix_end = batch.segments.T
    twice = (prefix_end - prefix_start).sum() // 2 if batch.sequences > batch.documents else 0
    return int((end - start).sum() + twice)


def operations(batch: Batch, model: Any, *, reference: bool) -> float:
    """Floating-point operations that the update needs, forward and backward."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - head
    start, end, prefix_start, prefix_end = batch.segments.T
    own, before = end - start, prefix_end - prefix_start
    seen = float((own * (own + 1) / 2 + own * before).sum())
    width = config.num_attention_heads * config.head_dim
    forward = 2.0 * (body * batch.tokens + head * batch.target_tokens)
    forward += 4.0 * seen * width * config.num_hidden_layers
    return forward * (4 if reference else 3)


def matmul_speed() -> float:
    """The best of several shapes of float32 matrix products, in operations per CPU second."""
    best = 0.0
    for rows, inner, columns in ((2048, 192, 512), (2048, 384, 1024), (1024, 1024, 1024)):
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        for _ in range(10):
            before = time.process_time()
            for _ in range(10):
                a @ b
            spent = time.process_time() - before
            best = max(best, 20.0 * rows * inner * columns / spent)
    return best


# --- the tables ----------------------------------------------------------------------------------


class Table:
    """One kind of training of one model: its sides, and what they measured."""

    def __init__(self, kind: Kind, size: str, given: argparse.Namespace, work: Path) -> None:
        self.kind, self.given, self.work = kind, given, work
        made = workload(work, given.data, size)
        files = made.files[kind.source]
        if kind.source == "pairs":
            files = [shortened(files[0], PAIRS)]
        self.task: dict[str, Any] = COMMON | {
            "model": str(made.model),
            "data": str(work / f"{kind.source}-{size}.jsonl"),
            "learning_rate": kind.learning_rate,
            "objective": kind.objective,
            "options": kind.options,
            "stage": kind.stage,
            "source": kind.source,
            "files": [str(file) for file in files],
            "root": str(work / "runs"),
        }
        *_, plan = run_ours.planned(self.task)
        self.batches = [plan.batch(step) for step in range(given.steps + TRIAL)]
        with Path(self.task["data"]).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(documents(batch)) + "\n" for batch in self.batches)
        self.model = run_ours.load_model(made.model)
        self.longest = max(int((b.segments[:, 1] - b.segments[:, 0]).max()) for b in self.batches)
        self.most = max(batch.tokens for batch in self.batches)

    def start(self, name: str, **more: Any) -> Side:
        """A side by its name, "ours" or a peer's."""
        if name == "ours":
            command = [sys.executable, str(HERE / "run_ours.py")]
            pieces = -(-self.most // more["parts"])
            more["stage"] = self.kind.stage | {"micro_tokens": pieces}
        else:
            command = [str(self.given.trl), "-I", str(HERE / "peers" / "run_trl.py")]
            more = self.kind.peers[name] | {"steps": len(self.batches)} | more
        return Side(name, command, self.task | more, self.work)

    def best(self, name: str) -> Side:
        """The side at the number of micro-batches that is fastest in a few steps."""
        peer = self.kind.peers.get(name, {})
        best: Side | None = None
        for parts in OURS if name == "ours" else peer.get("tried", PARTS):
            # A packed row holds whole documents.
            if peer.get("side") == "packed" and parts * self.longest > self.most:
                continue
            side = self.start(name, parts=parts)
            in_turns([side], TRIAL)
            if best is None or side.median("cpu") < best.median("cpu"):
                best, side = side, best or side
            if side is not best:
                side.close()
        assert best is not None
        return best

    def measured(self) -> Iterator[str]:
        """The table's lines."""
        sides = [self.best(name) for name in self.kind.peers if self.given.trl]
        sides.append(self.best("ours"))
        in_turns(sides, self.given.steps)
        for side in sides:
            side.close()
        speed = matmul_speed()
        ours = sides[-1]
        for side in sides:
            yield self.line(side, ours, speed, live="live" in side.name or "shipped" in side.name)
        if "reference_cpu" in ours.first:
            yield self.line(ours, ours, speed, live=True)
        stall = ours.total("waited", TRIAL) / ours.total("wall", TRIAL)
        yield f"\nOur loader kept the loop waiting for {stall:.2%} of the wall time."

    def line(self, side: Side, ours: Side, speed: float, *, live: bool) -> str:
        """One side's cells. For pairs, a live reference costs us its passes, made beforehand."""
        batches = self.batches[TRIAL:]
        tokens = sum(map(tokens_of, batches))
        pairs = sum(batch.documents for batch in batches)
        reference = pairs * ours.first.get("reference_cpu", 0.0) if live else 0.0
        mine = ours.total("cpu", TRIAL) + reference
        spent = mine if side is ours else side.total("cpu", TRIAL)
        wall = side.total("wall", TRIAL) + (reference if side is ours else 0.0)
        needed = sum(
            operations(b, self.model, reference=live and "reference_cpu" in ours.first)
            for b in batches
        )
        apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(side.rows, ours.rows, strict=True))
        losses = f"{side.rows[0]['loss']:.4f} to {side.rows[-1]['loss']:.4f}"
        bar = self.kind.bars.get(side.name)
        name = side.name + (", reference included" if side is ours and live else "")
        cells = [
            name,
            str(side.task["parts"]),
            f"{tokens / spent:,.0f}",
            f"{tokens / wall:,.0f}",
            "" if side is ours else f"**{spent / mine:.2f}**",
            "" if bar is None else f"{bar}",
            f"{needed / spent / speed:.0%}",
            f"{side.rows[-1]['peak'] / 1e6:,.0f}",
            losses,
            "" if side is ours else f"{apart:.1e}",
        ]
        return f"| {' | '.join(cells)} |"


HEADS = (
    "side",
    "micro-batches",
    "tokens per CPU s",
    "per wall s",
    "we are faster by",
    "at least",
    "useful",
    "peak MB",
    "loss",
    "largest difference",
)


def shortened(path: Path, rows: int) -> Path:
    """A file of the first so many rows."""
    short = path.with_name(f"{path.stem}-{rows}.jsonl")
    lines = path.read_text(encoding="utf-8").split("\n")[:rows]
    short.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return short


# --- saving, memory ------------------------------------------------------------------------------


def saving(sizes: Sequence[str], data: Path, work: Path) -> Iterator[str]:
    """Seconds of a checkpoint beside those of 100 steps of SFT."""
    from trainloop import checkpoint, train
    from trainloop.ranks import join

    yield "| model | a step, wall s | a save, wall s (CPU s) | MB | share at a save per 100 steps |"
    yield "| --- " * 5 + "|"
    for size in sizes:
        made = workload(work, data, size)
        kind = KINDS["sft"]
        task = COMMON | {"objective": "sft", "options": {}, "source": "sft"}
        task |= {"model": str(made.model), "files": list(map(str, made.files["sft"]))}
        task |= {"root": str(work / "runs"), "learning_rate": 1e-3}
        rows = kind.stage["batch_tokens"]
        task["stage"] = kind.stage | {"tokens": 6 * rows, "score_every": rows}
        spent: list[tuple[float, float]] = []
        real = checkpoint.save

        def timed(*arguments: Any, real: Any = real, spent: Any = spent) -> Path:
            wall, cpu = time.perf_counter(), time.process_time()
            folder: Path = real(*arguments)
            spent.append((time.perf_counter() - wall, time.process_time() - cpu))
            return folder

        run = f"saving-{size}"
        leg = run_ours.leg(task, run)
        models = train.Models(policy=run_ours.load_model(made.model))
        tokenizer = run_ours.load_tokenizer(made.model, None)
        checkpoint.save = timed
        try:
            last = train.train_stage(
                leg, models, tokenizer, join(), after_checkpoint=lambda *_: False
            )
        finally:
            checkpoint.save = real
        metrics = leg.root / "stages" / run / "metrics.jsonl"
        lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
        steps = [rows / row["tokens_per_second"] for row in lines]
        folder = checkpoint.folder_of(leg.root, last.id)
        megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        wall, cpu = (statistics.median(column) for column in zip(*spent, strict=True))
        step = statistics.median(steps)
        yield (
            f"| {size} | {step:.2f} | {wall:.2f} ({cpu:.2f}) | {megabytes:,.0f} "
            f"| {wall / (wall + 100 * step):.2%} |"
        )


VOCABULARIES = (8192, 24576, 49152, 128256)
TARGETS, WIDTH = 2048, 384


def memory() -> Iterator[str]:
    """Peak memory and time of cross-entropy, each in a process of its own."""
    yield f"{TARGETS:,} targets, width {WIDTH}, float32; forward and backward.\n"
    yield "| vocabulary | way | MB above the weights and their gradient | CPU s |"
    yield "| --- " * 4 + "|"
    for vocabulary in VOCABULARIES:
        for way in ("plain", "ours"):
            command = [sys.executable, __file__, "--head", f"{way}:{vocabulary}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, spent = json.loads(done.stdout)
            yield f"| {vocabulary:,} | {way} | {peak / 1e6:,.0f} | {spent:.2f} |"


def head(way: str, vocabulary: int) -> tuple[float, float]:
    """(bytes, CPU seconds) of one forward and backward pass of the output head."""
    from trainloop.head import Head, target_logprobs

    torch.set_num_threads(1)
    linear = torch.nn.Linear(WIDTH, vocabulary, bias=False)
    hidden = torch.randn(TARGETS, WIDTH, requires_grad=True)
    labels = torch.randint(vocabulary, (TARGETS,))

    def loss(count: int) -> torch.Tensor:
        if way == "plain":
            return torch.nn.functional.cross_entropy(linear(hidden[:count]), labels[:count])
        found, _ = target_logprobs(Head(linear=linear), hidden[:count], labels[:count])
        return -found.mean()

    loss(16).backward()  # the gradient is there, and the libraries are warm
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    standing = resident()
    before = time.process_time()
    loss(TARGETS).backward()
    return peak_resident() - standing, time.process_time() - before


def resident() -> float:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def peak_resident() -> float:
    """The most there were since clear_refs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [found] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return float(found) * 1024


def main() -> None:
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--trl", type=Path, help="the interpreter of the peers' environment")
    parser.add_argument("--models", default="5M,30M")
    parser.add_argument("--tasks", default="sft,pretrain,dpo,saving,memory")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--head", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.head:
        way, vocabulary = given.head.split(":")
        print(json.dumps(head(way, int(vocabulary))))
        return
    torch.set_num_threads(1)
    speed = matmul_speed()
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}; one thread; matrix "
        f"products {speed / 1e9:.0f} GFLOP/s"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in given.tasks.split(","):
            if name == "memory":
                print("\n## cross-entropy\n", *memory(), sep="\n", flush=True)
            elif name == "saving":
                rows = saving(given.models.split(","), given.data, work)
                print("\n## saving\n", *rows, sep="\n", flush=True)
            else:
                for size in given.models.split(","):
                    print(f"\n## {name}, {size}\n\n| {' | '.join(HEADS)} |")
                    print("| --- " * len(HEADS) + "|", flush=True)
                    for line in Table(KINDS[name], size, given, work).measured():
                        print(line, flush=True)


if __name__ == "__main__":
    main()
