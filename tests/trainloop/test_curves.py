"""Curves of a finished run, their text, and a sampled KL against an exact one."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from evalsuite.errors import UserError
from tests.trainloop.conftest import LLAMA
from trainloop import curves
from trainloop.curves import Point, SampledKl, curve, kl_to_reference, lines, read, write
from trainloop.ranks import join


def with_kl(finished: SimpleNamespace, root: Path, number: int, name: str) -> Any:
    """A copy of the finished run whose stage `number` logged its step as its KL."""
    import dataclasses

    shutil.copytree(finished.root, root)
    plan = finished.run.stages[number]
    path = root / "stages" / plan.id / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {name: row["step"]}) + "\n" for row in rows))
    return dataclasses.replace(finished.prepared, root=root), plan


def test_a_curve_has_a_point_per_checkpoint_and_capability_with_its_score(finished):
    plan = finished.run.stages[0]
    points = curve(finished.prepared, plan)
    assert [p.step for p in points if p.capability == "math"] == plan.stage.checkpoint_steps
    assert {p.capability for p in points} == {"math", "knowledge"}
    assert all(p.low <= p.score <= p.high and p.kl is None for p in points)
    assert [p.tokens for p in points] == sorted(p.tokens for p in points[:3]) * 2


def test_a_later_stage_starts_at_its_parents_score_and_no_distance(finished, tmp_path):
    prepared, plan = with_kl(finished, tmp_path / "runs", 1, "answer_kl")
    points = [p for p in curve(prepared, plan) if p.capability == "math"]
    assert points[0].checkpoint == finished.run.stages[0].checkpoint_ids[-1]
    assert (points[0].step, points[0].tokens, points[0].kl) == (0, 0, 0.0)
    before = [p for p in curve(prepared, finished.run.stages[0]) if p.capability == "math"]
    assert points[0].score == before[-1].score


def test_the_kl_of_a_checkpoint_is_the_mean_of_the_last_logged_steps(finished, tmp_path):
    prepared, plan = with_kl(finished, tmp_path / "runs", 1, "kl")
    last = curve(prepared, plan)[-1]
    assert last.step == 12 and last.kl == np.mean(range(3, 13)) and last.kl_kind == "kl"


def test_a_sampled_kl_counts_before_a_logged_one(finished, tmp_path):
    prepared, plan = with_kl(finished, tmp_path / "runs", 1, "kl")
    known = {plan.checkpoint_ids[-1]: SampledKl(kl=2.5, stderr=0.1, answers=8, tokens=9.0)}
    last = curve(prepared, plan, sampled=known)[-1]
    assert (last.kl, last.kl_kind) == (2.5, "sampled")


def test_a_stage_without_scores_is_a_mistake_that_says_so(finished, tmp_path):
    import dataclasses

    shutil.copytree(finished.root, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "scores")
    prepared = dataclasses.replace(finished.prepared, root=tmp_path / "runs")
    with pytest.raises(UserError, match="'pretrain': none of its checkpoints is scored"):
        curve(prepared, finished.run.stages[0])


def test_points_are_read_back_as_they_were_written(finished, tmp_path):
    points = curve(finished.prepared, finished.run.stages[0])
    write(points, tmp_path / "curve.jsonl")
    assert read(tmp_path / "curve.jsonl") == points


def points_of(*values: tuple[float, float, float], **changes: Any) -> list[Point]:
    """Points with (low, score, high) at steps 0, 10, 20 ..."""
    settings = {"stage": "rl", "suite": "dev", "capability": "math", "kl_kind": "answer_kl"}
    settings |= {"higher_is_better": True} | changes
    return [
        Point(
            checkpoint=f"c{n}",
            step=10 * n,
            tokens=1000 * n,
            kl=0.5 * n,
            score=score,
            low=low,
            high=high,
            **settings,
        )
        for n, (low, score, high) in enumerate(values)
    ]


def test_a_last_checkpoint_below_the_bests_interval_is_told_to_stop_earlier():
    said = lines(points_of((0.2, 0.3, 0.4), (0.6, 0.7, 0.8), (0.4, 0.5, 0.6)))
    assert said[-1].strip() == (
        "best at step 10; the last one is worse than that one's interval: stop earlier"
    )
    assert said[0] == "rl: dev math" and "KL per answer" in said[1]
    assert [line.count("o") for line in said[2:5]] == [1, 1, 1]


def test_a_last_checkpoint_within_the_bests_interval_is_not():
    said = lines(points_of((0.2, 0.3, 0.4), (0.6, 0.7, 0.8), (0.5, 0.65, 0.8)))
    assert said[-1].strip() == "best at step 10; the last one lies within that one's interval"


def test_bits_per_byte_are_better_when_fewer():
    values = ((1.1, 1.2, 1.3), (0.9, 1.0, 1.1), (1.3, 1.4, 1.5))
    said = lines(points_of(*values, higher_is_better=False))
    assert "fewer are better" in said[0]
    assert "best at step 10; the last one is worse" in said[-1]
    assert lines(points_of(*values))[-1].strip() == "best at step 20, the last one"


def test_what_was_not_scored_has_no_bar_and_is_not_best():
    scored = points_of((0.2, 0.3, 0.4))
    import dataclasses

    lost = dataclasses.replace(scored[0], step=10, score=None, low=None, high=None)
    said = lines([*scored, lost])
    assert said[3].endswith("not scored") and "best at the start" in said[-1]
    assert lines([lost])[-1].strip() == "no checkpoint has a score"


# --- a sampled KL ------------------------------------------------------------------------------


class Letters:
    """A tokenizer of single letters, of which the last ends a text."""

    eos_token_id = 5
    pad_token_id = 5
    all_special_ids = (5,)

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(chr(97 + int(each)) for each in ids)


def small_model(seed: int) -> Any:
    settings = {k: v for k, v in LLAMA.items() if k != "model_type"}
    torch.manual_seed(seed)
    settings |= {"vocab_size": 6, "eos_token_id": 5, "pad_token_id": 5, "bos_token_id": None}
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**settings, initializer_range=1.0), attn_implementation="sdpa"
    )
    return model.eval()


@torch.no_grad()
def exact_kl(model: Any, reference: Any, prompt: list[int], length: int) -> float:
    """Over every answer of at most `length` tokens."""
    total = 0.0
    answers = [
        ids
        for n in range(1, length + 1)
        for ids in itertools.product(range(6), repeat=n)
        if 5 not in ids[:-1] and (n == length or ids[-1] == 5)
    ]
    for ids in answers:
        row = torch.tensor([[*prompt, *ids]])
        logs = []
        for each in (model, reference):
            table = each(row).logits[0, len(prompt) - 1 : -1].double().log_softmax(dim=-1)
            logs.append(float(table.gather(1, torch.tensor(ids)[:, None]).sum()))
        total += math.exp(logs[0]) * (logs[0] - logs[1])
    return total


def test_a_sampled_kl_is_the_exact_one_within_its_error():
    model, reference = small_model(1), small_model(2)
    prompts = [[1, 2], [3], [0, 4, 4], [2, 2]] * 10
    expected = np.mean([exact_kl(model, reference, prompt, 2) for prompt in prompts[:4]])
    found = kl_to_reference(
        model,
        reference,
        prompts,
        tokenizer=Letters(),
        ranks=join(),
        samples=25,
        max_new_tokens=2,
    )
    assert found.answers == 1000 and 1 <= found.tokens <= 2
    assert abs(found.kl - expected) < 4 * found.stderr < 0.5 * expected


def test_a_model_is_at_no_distance_from_itself():
    model = small_model(1)
    found = kl_to_reference(
        model, model, [[1], [2]], tokenizer=Letters(), ranks=join(), max_new_tokens=3
    )
    assert found.kl == 0 and found.stderr == 0


def test_a_stages_checkpoints_are_sampled_on_its_own_prompts(finished):
    plan = finished.run.stages[2]
    shown: list[str] = []
    found = curves.sample(
        finished.prepared, plan, prompts=3, progress=lambda label, *_: shown.append(label)
    )
    assert list(found) == plan.checkpoint_ids and shown[0] == "sft: KL"
    assert found[plan.checkpoint_ids[-1]].answers == 12
    assert found[plan.checkpoint_ids[-1]].kl > 0
    last = curve(finished.prepared, plan, sampled=found)[-1]
    assert last.kl == found[last.checkpoint].kl


def test_a_stage_without_a_starting_policy_or_conversations_is_told_so(finished):
    with pytest.raises(UserError, match="'pretrain': no policy that it started from"):
        curves.sample(finished.prepared, finished.run.stages[0], prompts=3)
    with pytest.raises(UserError, match="'midtrain': its sources hold no conversations"):
        curves.sample(finished.prepared, finished.run.stages[1], prompts=3)


def test_a_kl_without_prompts_is_a_mistake():
    with pytest.raises(UserError, match="none were given"):
        kl_to_reference(None, None, [], tokenizer=None, ranks=join())
