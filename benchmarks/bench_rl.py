"""How fast does our loop learn from what it writes, beside `generate` and TRL's trainers?

    python benchmarks/bench_rl.py --data ../shared/data --trl peer-trl/bin/python
    python benchmarks/bench_rl.py --data ../shared/data --tasks rollouts --models 5M    # no peer

Llama models with fresh weights, float32, one thread, CPU seconds; prompts are GSM8K's questions.

`rollouts`: our sampler beside transformers' `generate` in this process, in turns: several answers
to each prompt, and one greedy answer, whose tokens must be the same. `generate` gets the best of
several batch sizes. Where two tokens are equally likely to the last bits, either is right: `ties`
counts answers that differ from where the two best logits are closer than 1e-4.

`grpo`, `ppo`: whole optimizer steps, rollout included, of our `train_stage` beside TRL's
GRPOTrainer and PPOTrainer (trl.experimental.ppo), each side a process, a step each in turns. Fresh
weights hardly ever end an answer, so both write as many tokens as they may, and the same number.
The reward (grpo) is the share of different characters, the same function on both sides; for ppo a
reward model with the policy's shape scores, and a critic of that shape learns. Both keep a
reference policy. What they sample differs, so losses cannot be compared here: that they are equal
on equal batches is a test (tests/trainloop). TRL has bfloat16 and gradient checkpointing off, and
the best of several numbers of micro-batches; one line shows it as shipped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import run_ours
import torch
import transformers
from turns import Side, in_turns
from workload import workload

from trainloop.ranks import join
from trainloop.reward_model import reward_model
from trainloop.rollouts import sample

HERE = Path(__file__).parent
NEW_TOKENS = 64
ROWS = (64, 32, 16)
"""Answers that `generate` writes at a time; the fastest counts."""
PARTS = (1, 2, 4)
TRIAL = 2
GROUPS = {"several answers, sampled": (8, 8, 1.0), "one answer, greedy": (64, 1, 0.0)}
"""Name -> prompts, answers to each, temperature."""
COMMON = {"steps": 40, "seed": 1, "weight_decay": 0.0, "beta2": 0.95, "clip": 1.0} | {
    "optimizer": "adamw_torch_fused",
    "learning_rate": 1e-5,
    "max_new_tokens": NEW_TOKENS,
    "beta": 0.05,
    "clip_low": 0.2,
    "clip_high": 0.272,
    "shipped": False,
    "parts": 1,
    "source": "prompts",
}
STEPS: dict[str, dict[str, Any]] = {
    "grpo": {
        "objective": "grpo",
        "stage": {"steps": 40, "batch": 4, "sequence_length": 512},
        "samples": 8,
        "options": {"samples": 8, "max_new_tokens": NEW_TOKENS, "beta": 0.05},
    },
    "ppo": {
        "objective": "ppo",
        "stage": {"steps": 160, "batch": 8, "sequence_length": 512},
        "samples": 1,
        "epochs": 4,
        "options": {"samples": 1, "max_new_tokens": NEW_TOKENS, "beta": 0.05, "epochs": 4}
        | {"reward": "model", "without_end": None},
    },
}
BAR_ROLLOUTS, BAR_STEPS = 1.5, 2.0


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds, what it returned)"""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def prompts_of(task: dict[str, Any], count: int) -> list[list[int]]:
    """Token ids of the first so many prompts."""
    _, _, tokens, _ = run_ours.planned(task)
    return [list(tokens.tree(number).branches[0]) for number in range(count)]


# --- rollouts ------------------------------------------------------------------------------------


@torch.no_grad()
def generated(
    model: Any, prompts: list[list[int]], answers: int, temperature: float, rows: int, pad: int
) -> list[list[int]]:
    """What `generate` writes, `rows` answers at a time; prompts padded on the left."""
    found = []
    size = max(1, rows // answers)
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        longest = max(map(len, part))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part])
        drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=bool(temperature),
            num_return_sequences=answers,
            pad_token_id=pad,
            **drawn,
        )
        found += written[:, longest:].tolist()
    return found


def rollouts(size: str, given: argparse.Namespace, work: Path) -> Iterator[str]:
    """Lines of the table of one model."""
    made = workload(work, given.data, size)
    task = COMMON | STEPS["grpo"] | {"model": str(made.model), "root": str(work / "runs")}
    task["files"] = [str(file) for file in made.files["prompts"]]
    model = run_ours.load_model(made.model).eval()
    tokenizer = run_ours.load_tokenizer(made.model, None)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for name, (count, answers, temperature) in GROUPS.items():
        prompts = prompts_of(task, count)

        def ours(prompts: Any = prompts, answers: int = answers, heat: float = temperature) -> Any:
            return sample(
                model,
                tokenizer,
                prompts,
                samples=answers,
                temperature=heat,
                max_new_tokens=NEW_TOKENS,
                seed=1,
                rows=max(ROWS),
                ranks=join(),
            )

        torch.manual_seed(1)
        theirs: dict[int, list[float]] = {rows: [] for rows in ROWS}
        mine: list[float] = []
        for turn in range(given.rounds + 1):
            for rows in list(theirs):
                spent, written = timed(
                    lambda p=prompts, a=answers, t=temperature, r=rows: generated(
                        model, p, a, t, r, pad
                    )
                )
                told = [text[: text.index(end) + 1] if end in text else text for text in written]
                theirs[rows].append(spent / sum(map(len, told)))
            if turn == 0:  # warms up, and chooses
                best = min(theirs, key=lambda rows: theirs[rows][0])
                theirs = {best: theirs[best]}
            spent, groups = timed(ours)
            flat = [list(answer.ids) for group in groups for answer in group]
            mine.append(spent / sum(map(len, flat)))
        slow, fast = statistics.median(theirs[best][1:]), statistics.median(mine[1:])
        same = ties = ""
        if not temperature:
            differ = [
                n for n, pair in enumerate(zip(told, flat, strict=True)) if pair[0] != pair[1]
            ]
            close = sum(tied(model, prompts[n], told[n], flat[n]) for n in differ)
            same, ties = f"{len(flat) - len(differ)} of {len(flat)}", f"{close}"
        yield (
            f"| {size} | {name} | {count} x {answers} | {1 / slow:,.0f} ({best}) "
            f"| {1 / fast:,.0f} | **{slow / fast:.2f}** | {BAR_ROLLOUTS} | {same} | {ties} |"
        )


@torch.no_grad()
def tied(model: Any, prompt: list[int], one: list[int], other: list[int]) -> bool:
    """Whether two answers part where the model can hardly tell their tokens apart."""
    at = next(n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    logits = model(torch.tensor([prompt + one[:at]]), use_cache=False).logits[0, -1]
    return abs(float(logits[one[at]] - logits[other[at]])) < 1e-4


# --- steps ---------------------------------------------------------------------------------------


class Steps:
    """GRPO or PPO steps of one model."""

    def __init__(self, name: str, size: str, given: argparse.Namespace, work: Path) -> None:
        self.name, self.given, self.work = name, given, work
        made = workload(work, given.data, size)
        self.task: dict[str, Any] = COMMON | STEPS[name] | {"model": str(made.model)}
        self.task |= {"files": [str(file) for file in made.files["prompts"]]}
        self.task |= {"root": str(work / "runs"), "data": str(work / f"{name}-{size}.jsonl")}
        tokenizer = run_ours.load_tokenizer(made.model, None)
        if name == "ppo":
            folder = work / f"reward-{size}"
            made_of = run_ours.load_model(made.model)
            reward_model(made_of, tokenizer, seed=1).save_pretrained(folder)
            self.task["reward_model"] = str(folder)
        _, _, tokens, plan = run_ours.planned(self.task)
        epochs = self.task.get("epochs", 1)
        steps = []
        for step in range(given.steps + TRIAL):
            # One of our rollouts reads the prompts of all of its optimizer steps.
            numbers = [d for s in range(epochs) for _, d in plan.documents(step * epochs + s)]
            ids = [list(tokens.tree(number).branches[0]) for number in numbers]
            steps.append([{"ids": each, "text": tokenizer.decode(each)} for each in ids])
        rows = (json.dumps(step) + "\n" for step in steps)
        Path(self.task["data"]).write_text("".join(rows), encoding="utf-8")
        self.count = len(steps)

    def start(self, name: str, **more: Any) -> Side:
        """A side."""
        if name == "ours":
            command = [sys.executable, str(HERE / "run_ours.py")]
        else:
            command = [str(self.given.trl), "-I", str(HERE / "peers" / "run_trl.py")]
            more = {"side": self.name, "steps": self.count} | more
        return Side(name, command, self.task | more, self.work)

    def best(self) -> Side:
        """TRL at its fastest number of micro-batches."""
        best: Side | None = None
        for parts in PARTS:
            side = self.start("TRL", parts=parts)
            in_turns([side], TRIAL)
            if best is None or side.median("cpu") < best.median("cpu"):
                best, side = side, best or side
            if side is not best:
                side.close()
                break
        assert best is not None
        return best

    def measured(self) -> Iterator[str]:
        """The table's lines."""
        sides = [self.best()]
        sides.append(self.start("TRL as shipped", shipped=True, parts=sides[0].task["parts"]))
        sides.append(self.start("ours"))
        in_turns(sides[1:], TRIAL)
        in_turns(sides, self.given.steps)
        ours = sides[-1]
        for side in sides:
            side.close()
            fast, slow = ours.median("cpu", TRIAL), side.median("cpu", TRIAL)
            written = side.median("written", TRIAL)
            cells = [
                side.name,
                str(side.task["parts"]) if side is not ours else "",
                f"{slow:.2f}",
                f"{side.median('wall', TRIAL):.2f}",
                f"{written:,.0f}",
                f"{written / slow:,.0f}",
                "" if side is ours else f"**{slow / fast:.2f}**",
                f"{BAR_STEPS}" if side is sides[0] else "",
                f"{side.rows[-1]['peak'] / 1e6:,.0f}",
            ]
            yield f"| {' | '.join(cells)} |"


HEADS = (
    "side",
    "micro-batches",
    "CPU s per step",
    "wall s",
    "tokens written",
    "tokens per CPU s",
    "we are faster by",
    "at least",
    "peak MB",
)


def main() -> None:
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--trl", type=Path, help="the interpreter of the peers' environment")
    parser.add_argument("--models", default="5M,30M")
    parser.add_argument("--tasks", default="rollouts,grpo,ppo")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    tasks = given.tasks.split(",")
    if given.trl is None and set(tasks) & set(STEPS):
        parser.error("grpo and ppo need a peer: --trl, or --tasks rollouts")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, Python {platform.python_version()}; one thread")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for task in tasks:
            if task == "rollouts":
                print(
                    "\n## rollouts\n\n| model | what | prompts x answers | generate, tokens per "
                    "CPU s (rows) | ours | times | at least | greedy alike | ties |\n"
                    + "| --- " * 9
                    + "|",
                    flush=True,
                )
                for size in given.models.split(","):
                    for line in rollouts(size, given, work):
                        print(line, flush=True)
                continue
            for size in given.models.split(","):
                print(f"\n## {task}, {size}\n\n| {' | '.join(HEADS)} |")
                print("| --- " * len(HEADS) + "|", flush=True)
                for line in Steps(task, size, given, work).measured():
                    print(line, flush=True)


if __name__ == "__main__":
    main()
