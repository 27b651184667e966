"""GRPO: of several answers to one prompt, those above the group's mean become likelier.

    Q: 2 + 2   ->  "4" "5" "4" "4."   ->  rewards 1 0 1 0   ->  advantages .87 -.87 .87 -.87

    {advantages: standardised, length: sequence}    GRPO (Shao et al. 2024): the defaults
    {advantages: centred, length: constant}         Dr. GRPO (Liu et al. 2025)
    {advantages: leave_one_out, length: tokens}     RLOO (Ahmadian et al. 2024), with clipping
    {truncated: masked, length: tokens, beta: 0}    DAPO's choices (Yu et al. 2025)

Per token the loss is -min(ratio A, clip(ratio) A) + beta k3, where ratio is the probability now
against the one when the answer was written. The latter is recomputed by the policy that is
trained, since an engine that writes may round otherwise; with one update per rollout the ratio is
1, and no pass is spent on it. The end-of-text token is a target where the policy wrote it.

The gradient of k3 is taken as published (Shao et al.); TRL 1.12 multiplies k3 by the ratio unless
told otherwise, as DeepSeek-V3.2 does, which changes it.

A prompt whose answers all got the same teaches nothing: the group is dropped and counted, and
the step is divided by what is left; where nothing is, the step changes nothing. (TRL keeps such
groups in its divisor, and their KL in its loss.) An answer that could not be judged is dropped
and counted before its group's mean is taken, never taken for wrong. One that was cut off at
max_new_tokens keeps what the verifier says about it; `truncated: masked` leaves it in the group's
mean, and out of the loss and its divisor.

Defaults: learning rate, beta and schedule as in Tulu 3's RLVR (Lambert et al. 2024), 16 answers
to each of 32 prompts as in DeepSeek-R1 (2025), clip .2 and .272 as in OLMo 3; all from memory.

What it cannot do: move a policy that is never right, or always.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from evalsuite.errors import UserError
from trainloop.advantages import group_advantages
from trainloop.data import Tree, batch_of
from trainloop.objectives import Floats, Live, Loss, Objective
from trainloop.objectives.next_token import render
from trainloop.records import Schedule
from trainloop.rollouts import answer_seed, collect, cut, filled, record, step_batches, tree_of

if TYPE_CHECKING:
    from trainloop.data import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Settings of grpo."""

    samples: int = 16
    """Answers per prompt."""
    temperature: float = 1.0
    max_new_tokens: int = 1024
    reward: Literal["verifier", "model", "both"] = "verifier"
    verifier_weight: float = 1.0
    """Times the verifier's verdict."""
    model_weight: float = 1.0
    """Times the score of the stage's reward model."""
    advantages: Literal["standardised", "centred", "leave_one_out"] = "standardised"
    length: Literal["sequence", "tokens", "constant"] = "sequence"
    """What a token counts: 1 / tokens of its answer, so that answers count alike; 1 / tokens of
    the whole batch; 1 / (answers x max_new_tokens)."""
    clip_low: float = 0.2
    clip_high: float = 0.272
    beta: float = 0.05
    """Weight of the KL to the policy the stage started from; 0 keeps no such policy."""
    updates: int = 1
    """Optimizer steps that share a rollout's prompts; each takes its own part."""
    epochs: int = 1
    """Times that a rollout is gone through."""
    truncated: Literal["kept", "masked"] = "kept"
    """What becomes of an answer that was cut off."""
    rows: int = 256
    """Answers that are written at a time: more are faster, and take more memory."""
    engine: Literal["own", "vllm"] = "own"
    """What writes the answers."""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UserError(f"options: samples is {self.samples}, but a group needs 2 or more")
        check_writing(self)
        for name in ("clip_low", "clip_high", "beta"):
            if not getattr(self, name) >= 0:
                raise UserError(f"options: {name} is {getattr(self, name)}, but must be 0 or more")


def check_writing(options: Any) -> None:
    """Raises UserError for settings of a rollout that cannot be."""
    for name in ("samples", "max_new_tokens", "updates", "epochs", "rows"):
        if getattr(options, name) < 1:
            raise UserError(f"options: {name} is {getattr(options, name)}, but must be 1 or more")
    if not options.temperature > 0:
        raise UserError(
            f"options: temperature is {options.temperature}, but must be above 0: answers are drawn"
        )


def encode(rows: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[Tree]:
    """Ids of each prompt by the chat template, up to where the answer begins; no targets."""
    if not tokenizer.chat_template:
        raise UserError(
            "prompts need a chat template, and the tokenizer has none: give the recipe's model a "
            "chat_template"
        )
    texts = []
    for row in rows:
        if not row.get("messages"):
            raise UserError(
                f"document {row.get('id')!r} has no 'messages', which a prompt needs; give its "
                "source prompt, answer and verifier templates"
            )
        texts.append(render(tokenizer, row["messages"], add_generation_prompt=True))
    if texts:
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
        for ids in encoded["input_ids"]:
            yield Tree((), (ids,), ([False] * len(ids),))


def steps_per_rollout(options: Any) -> int:
    """Optimizer steps that learn from one rollout."""
    return int(options.updates * options.epochs)


def rollout(live: Live) -> list[Batch]:
    """Write, judge and compare answers; the batches of the next optimizer steps."""
    options: Options = live.options
    groups = collect(live)
    record(live, groups)
    kept, same, masked = [], 0, 0
    for tree in map(tree_of, groups):
        found = group_advantages(tree.of_sequence["reward"] if tree else [], options.advantages)
        if tree is None or not found.any():
            same += 1
            continue
        taken = [
            number
            for number, ended in enumerate(tree.of_sequence["ended"])
            if ended or options.truncated == "kept"
        ]
        masked += len(found) - len(taken)
        if taken:
            learnt = Tree(
                tree.prompt,
                tuple(tree.branches[number] for number in taken),
                tuple(tree.targets[number] for number in taken),
                {"advantage": found[taken].tolist()},
            )
            kept.append(cut(learnt, live.stage.micro_tokens))
    live.log({"groups": len(groups), "dropped_groups": same, "masked_answers": masked})
    flat = [tree for part in kept for tree in part]
    whole = iter(filled(flat, _numbers(live, batch_of(flat)) if flat else {}))
    return step_batches(
        [[next(whole) for _ in part] for part in kept],
        updates=options.updates,
        epochs=options.epochs,
        seed=answer_seed(live.seed, live.step),
    )


def _numbers(live: Live, batch: Batch) -> dict[str, Floats]:
    """What the loss needs beside the advantages, each [N]."""
    numbers = {}
    if steps_per_rollout(live.options) > 1:
        numbers["old"] = live.logprobs(batch)
    if live.options.beta:
        assert live.reference is not None
        numbers["reference"] = live.reference(batch)
    return numbers


def loss(outputs: Any, batch: Any, options: Any) -> Loss:
    """The clipped objective with KL, summed; see the module.

    Metrics: kl (k3 per token, nats), answer_kl (per answer), clipped_low and clipped_high
    (shares of tokens whose gradient the clip took away), entropy (per token, estimated by
    -log p of what was drawn).
    """
    import torch

    new = outputs.logprobs
    tokens = len(new)
    advantage = batch.of_sequence["advantage"][batch.sequence]
    old = batch.of_target.get("old", new.detach())
    ratio = torch.exp(new - old)
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    each = -torch.minimum(ratio * advantage, bounded * advantage)
    metrics: dict[str, tuple[Any, Any]] = {
        "entropy": (-new.detach().sum(), tokens),
        "clipped_low": (((ratio < 1 - options.clip_low) & (advantage < 0)).sum(), tokens),
        "clipped_high": (((ratio > 1 + options.clip_high) & (advantage > 0)).sum(), tokens),
    }
    if options.beta:
        behind = batch.of_target["reference"] - new
        kl = torch.expm1(behind) - behind
        each = each + options.beta * kl
        far = kl.detach().sum()
        metrics |= {"kl": (far, tokens), "answer_kl": (far, len(batch.last))}
    if options.length == "sequence":
        each = each / torch.bincount(batch.sequence, minlength=len(batch.last))[batch.sequence]
    return Loss(each.sum(), metrics)


def total(batch: Batch, options: Any) -> float:
    """What the summed loss is divided by, counted over what was not dropped; 0 if nothing is left.

    Answers (length: sequence), tokens, or answers x max_new_tokens (constant).
    """
    if options.length == "tokens":
        return float(batch.target_tokens)
    every = options.max_new_tokens if options.length == "constant" else 1
    return float(batch.sequences * every)


def forward(options: Any) -> dict[str, Any]:
    """Log-probabilities at the temperature that the answers are drawn with."""
    return {"temperature": options.temperature}


def needs_reference(options: Any) -> bool:
    """Whether the KL to the stage's first policy is asked for."""
    return bool(options.beta)


OBJECTIVE = Objective(
    name="grpo",
    version=1,
    documents="prompt",
    encode=encode,
    loss=loss,
    total=total,
    options=Options,
    forward=forward,
    rollout=rollout,
    steps_per_rollout=steps_per_rollout,
    needs_reference=needs_reference,
    defaults={
        "learning_rate": 3e-7,
        "schedule": Schedule(kind="linear"),
        "batch": 32,
        "weight_decay": 0.0,
    },
)
