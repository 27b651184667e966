"""Rollouts: what the policy writes to a stage's prompts, its rewards, and batches made of both.

    found = sample(model, tokenizer, [prompt_ids], samples=4, temperature=1.0,
                   max_new_tokens=64, seed=7, rows=64, ranks=ranks)
    found[0][3].text                # the fourth answer to the first prompt
    found[0][3].ended               # False: cut off at max_new_tokens

Each prompt is read once for all of its answers (evalsuite.generation). An answer is drawn with a
seed of its own, made of (seed, place of the prompt, number of the answer): it depends neither on
the batch nor on how many ranks share the work, but for rounding where two tokens are equally
likely to the last bits.

The file samples.jsonl has a line per answer: step (the rollout's first optimizer step, from 1),
prompt (the row's id), sample, reward (null: none could be told), ended, tokens, text, and `error`
where there is one.

What it cannot do: write for another tokenizer's policy, use tools, or hold several turns.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evalsuite.errors import UserError
from evalsuite.files import canonical_json
from trainloop.data import Batch, Tree, batch_of
from trainloop.rewards import check_able, judge

if TYPE_CHECKING:
    from trainloop.objectives import Floats, Live
    from trainloop.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer of the policy."""

    ids: tuple[int, ...]
    """All tokens written, the end-of-text token included."""
    ended: bool
    """Whether it ends with an end-of-text token; else it was cut off."""
    text: str
    """Without special tokens."""
    error: str | None = None
    """Why there is no whole answer: the model gave no usable number for a token."""


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt, the answers to it, and what they got."""

    prompt: Sequence[int]
    row: dict[str, Any]
    rollouts: list[Rollout]
    rewards: list[float | None]
    """None: not judged, or not written."""
    errors: list[str | None]
    """Why there is no reward."""


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    rows: int,
    ranks: Ranks,
) -> list[list[Rollout]]:
    """`samples` answers to each prompt, in order; the same on every rank.

    Rank r writes the answers to prompts r, r + count, ..., at most `rows` at a time, and all
    hear of all. The model is in eval mode meanwhile.

    Raises UserError where a prompt and its answer do not fit the model's context.
    """
    from evalsuite.generation import Prompt, generate

    mine = range(ranks.rank, len(prompts), ranks.count)
    found: dict[tuple[int, int], Rollout] = {}
    with ranks.together():
        asked = [
            Prompt(
                ids=tuple(int(token) for token in prompts[number]),
                max_new_tokens=max_new_tokens,
                samples=samples,
                temperature=temperature,
                seed=answer_seed(seed, number),
            )
            for number in mine
        ]
        check_context(model, prompts, max_new_tokens)
        for place, number, answer in generate(model, tokenizer, asked, rows=rows):
            found[mine[place], number] = Rollout(
                ids=answer.ids, ended=answer.ended == "eos", text=answer.text, error=answer.error
            )
    whole = {key: one for part in ranks.gather(found) for key, one in part.items()}
    return [[whole[place, n] for n in range(samples)] for place in range(len(prompts))]


def check_context(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises UserError where the longest prompt and its answer exceed the model's context."""
    from evalsuite.generation import context_length

    limit = context_length(model)
    longest = max(map(len, prompts), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise UserError(
            f"a prompt of {longest:,} tokens and max_new_tokens ({max_new_tokens:,}) exceed the "
            f"model's context of {limit:,}: lower the stage's options.max_new_tokens or its "
            "sequence_length"
        )


def answer_seed(seed: int, *numbers: int) -> int:
    """A seed below 2**63 made of others; the same on every machine."""
    content = array("q", [seed, *numbers]).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def collect(live: Live) -> list[Group]:
    """What the policy writes to this rollout's prompts, and what each answer is worth.

    By the options' `reward`: the verdict of the prompt's verifier times `verifier_weight`, the
    reward model's score times `model_weight`, or their sum. The rank that writes an answer
    judges it. What `counts` says is logged, and `verified`, the mean of the verdicts.

    Raises UserError without the reward model that is asked for, and, with the first reason, where
    not one answer could be written, or to several prompts not one judged.
    """
    options, where = live.options, f"stage {live.stage.name!r}"
    if options.reward != "verifier" and live.reward is None:
        raise UserError(
            f"{where}: options.reward is {options.reward!r}, but the stage names no reward_model"
        )
    rows = [row for _, row in live.prompts]
    prompts = [tree.branches[0] for tree, _ in live.prompts]
    with live.ranks.together():
        if options.reward != "model":
            check_able(rows)
    if options.engine == "vllm":
        from trainloop.rollouts_vllm import sample as write
    else:
        write = sample
    found = write(
        live.model,
        live.tokenizer,
        prompts,
        samples=options.samples,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        seed=answer_seed(live.seed, live.step),
        rows=options.rows,
        ranks=live.ranks,
    )
    groups = [
        Group(
            prompt,
            row,
            answers,
            rewards=[None if answer.error else 0.0 for answer in answers],
            errors=[answer.error for answer in answers],
        )
        for prompt, row, answers in zip(prompts, rows, found, strict=True)
    ]
    if options.reward != "model":
        groups = _judged(groups, live.ranks)
    without = [error for group in groups for error in group.errors if error]
    unwritten = all(one.error for group in groups for one in group.rollouts)
    if len(without) == len(groups) * options.samples and (unwritten or len(groups) > 1):
        raise UserError(
            f"{where}, step {live.step + 1:,}: none of the answers could be "
            f"{'written' if unwritten else 'judged'}; the first because: {without[0]}"
        )
    verified = counts(groups).get("reward")
    if options.reward != "model" and verified is not None:
        live.log({"verified": verified})
    groups = _scored(live, groups)
    live.log(counts(groups))
    return groups


def _scored(live: Live, groups: list[Group]) -> list[Group]:
    """The groups with the rewards that the options ask for, in place of verdicts."""
    options = live.options
    trees = [tree for tree in map(tree_of, groups) if tree is not None]
    if not trees:
        return groups
    batch = batch_of([part for tree in trees for part in cut(tree, live.stage.micro_tokens)])
    rewards = options.verifier_weight * batch.of_sequence["reward"]
    if options.reward != "verifier":
        assert live.reward is not None
        rewards = rewards + options.model_weight * live.reward(batch)
    return with_rewards(groups, rewards)


def with_rewards(groups: Sequence[Group], rewards: Floats) -> list[Group]:
    """The groups with `rewards` [S], in order, where they have a reward."""
    following = iter(rewards.tolist())
    return [
        replace(one, rewards=[None if told is None else next(following) for told in one.rewards])
        for one in groups
    ]


def tree_of(group: Group) -> Tree | None:
    """The prompt and its answers that have a reward, every token a target; None without any.

    Of each sequence: its `reward`, and whether it `ended` (1 or 0).
    """
    taken = [
        (answer, reward)
        for answer, reward in zip(group.rollouts, group.rewards, strict=True)
        if reward is not None
    ]
    if not taken:
        return None
    of_sequence = {
        "reward": [reward for _, reward in taken],
        "ended": [float(answer.ended) for answer, _ in taken],
    }
    branches = tuple(answer.ids for answer, _ in taken)
    return Tree(group.prompt, branches, tuple([True] * len(ids) for ids in branches), of_sequence)


def _judged(groups: list[Group], ranks: Ranks) -> list[Group]:
    mine = range(ranks.rank, len(groups), ranks.count)
    with ranks.together():
        asked = [
            (place, number)
            for place in mine
            for number, answer in enumerate(groups[place].rollouts)
            if answer.error is None
        ]
        judged = judge(
            [groups[place].row for place, _ in asked],
            [groups[place].rollouts[number].text for place, number in asked],
            workers=max(1, len(os.sched_getaffinity(0)) // ranks.count),
        )
        found = dict(zip(asked, judged, strict=True))
    # A judge may fail on one rank and not on another: all take the verdict of the one that asked.
    whole = {key: one for part in ranks.gather(found) for key, one in part.items()}
    told = []
    for place, group in enumerate(groups):
        verdicts = [
            whole.get((place, number), (None, answer.error))
            for number, answer in enumerate(group.rollouts)
        ]
        told.append(
            replace(
                group,
                rewards=[reward for reward, _ in verdicts],
                errors=[error for _, error in verdicts],
            )
        )
    return told


def counts(groups: Sequence[Group]) -> dict[str, float]:
    """What a step's metrics say about its rollout.

    reward: mean over judged answers, if there are any; ended: share with an end-of-text token;
    answer_tokens: mean; unjudged and unwritten: numbers of answers without a reward.
    """
    rollouts = [one for group in groups for one in group.rollouts]
    rewards = [one for group in groups for one in group.rewards if one is not None]
    unwritten = sum(one.error is not None for one in rollouts)
    reward = {"reward": float(np.mean(rewards))} if rewards else {}
    return reward | {
        "answers": float(len(rollouts)),
        "answer_tokens": float(np.mean([len(one.ids) for one in rollouts])),
        "ended": float(np.mean([one.ended for one in rollouts])),
        "unwritten": float(unwritten),
        "unjudged": float(len(rollouts) - len(rewards) - unwritten),
    }


# --- batches -----------------------------------------------------------------------------------


def cut(tree: Tree, tokens: int | None) -> list[Tree]:
    """The tree, or several of its prompt with fewer branches each, of at most `tokens` tokens.

    One that is longer with a single branch stays as it is.
    """
    parts: list[list[int]] = []
    size = 0
    for number, branch in enumerate(tree.branches):
        if not parts or (tokens is not None and size + len(branch) > tokens):
            parts.append([])
            size = len(tree.prompt)
        parts[-1].append(number)
        size += len(branch)
    return [
        Tree(
            tree.prompt,
            tuple(tree.branches[n] for n in part),
            tuple(tree.targets[n] for n in part),
            {name: [each[n] for n in part] for name, each in tree.of_sequence.items()},
            {name: [each[n] for n in part] for name, each in tree.of_target.items()},
        )
        for part in parts
    ]


def filled(trees: Sequence[Tree], numbers: dict[str, Floats]) -> list[Tree]:
    """The trees with more `of_target`: of each name [N], in the order of `batch_of(trees)`."""
    full, start = [], 0
    for tree in trees:
        ends = start + np.cumsum([sum(asked) for asked in tree.targets])
        starts = [start, *ends[:-1].tolist()]
        more: dict[str, Any] = {
            name: [each[one:end] for one, end in zip(starts, ends, strict=True)]
            for name, each in numbers.items()
        }
        full.append(replace(tree, of_target={**tree.of_target, **more}))
        start = int(ends[-1])
    return full


def step_batches(
    groups: Sequence[Sequence[Tree]], *, updates: int, epochs: int, seed: int
) -> list[Batch]:
    """A batch per optimizer step: `epochs` times all trees, each time in `updates` parts.

    A group's trees stay together. The first epoch keeps the order, later ones shuffle it. Where
    there are fewer groups than parts, some batches are empty: steps that change nothing.
    """
    batches = []
    for epoch in range(epochs):
        order = np.arange(len(groups))
        if epoch:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        for part in np.array_split(order, updates):
            batches.append(batch_of([tree for number in part for tree in groups[number]]))
    return batches


# --- samples.jsonl -----------------------------------------------------------------------------


def record(live: Live, groups: Sequence[Group]) -> None:
    """Append every answer to the stage's samples.jsonl; rank 0 alone, and where one is kept."""
    if live.samples is None or not live.ranks.main:
        return
    lines = []
    for group in groups:
        for number, (answer, reward, error) in enumerate(
            zip(group.rollouts, group.rewards, group.errors, strict=True)
        ):
            line = {
                "step": live.step + 1,
                "prompt": str(group.row.get("id", "")),
                "sample": number,
                "reward": reward,
                "ended": answer.ended,
                "tokens": len(answer.ids),
                "text": answer.text,
            }
            lines.append(canonical_json(line | ({"error": error} if error else {})) + "\n")
    live.samples.parent.mkdir(parents=True, exist_ok=True)
    with live.samples.open("a", encoding="utf-8") as handle:
        handle.write("".join(lines))
