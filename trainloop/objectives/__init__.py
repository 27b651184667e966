"""What a stage optimizes. A new objective is one new file in this folder.

The file defines OBJECTIVE, an `Objective`; a recipe names it by the file's name:

    stages: [{name: pretrain, objective: next_token, ...}]    ->  objectives/next_token.py

The loop hands an objective the log-probabilities of a micro-batch's targets and divides what it
returns, a sum, by `total` of the whole batch: so gradients do not depend on how a batch is split.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from evalsuite.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from trainloop.data import Batch, Tree
    from trainloop.policy import Outputs, Tensors
    from trainloop.ranks import Ranks
    from trainloop.records import Stage

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Loss:
    """What an objective says about a micro-batch."""

    total: Any
    """Scalar tensor: a *sum*, which the loop divides by `Objective.total` of the whole batch."""
    metrics: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Name -> (sum, count), tensors or numbers without gradient; the step logs sum / count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOptions:
    """The settings of an objective that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """What a rollout may use: the models as they are now, and this rollout's prompts."""

    stage: Stage
    options: Any
    """The objective's own settings."""
    seed: int
    step: int
    """The first optimizer step of this rollout, counted from 0."""
    tokenizer: Any
    prompts: list[tuple[Tree, dict[str, Any]]]
    """Tokens of each prompt (its Tree's one branch), and its row."""
    model: Any
    """A causal language model with whole weights, to write answers with."""
    logprobs: Callable[[Batch], Floats]
    """Of every target of a batch, by the policy that is trained; the same on all ranks."""
    values: Callable[[Batch], Floats] | None
    """By the critic, where each target is predicted."""
    reference: Callable[[Batch], Floats] | None
    """Like `logprobs`, by the weights the stage started from; None where nothing needs it."""
    reward: Callable[[Batch], Floats] | None
    """The reward model's score of each sequence; None without one."""
    ranks: Ranks
    log: Callable[[Mapping[str, float]], None]
    """Adds numbers to the metrics of the optimizer step `step`."""
    samples: Path | None
    """Where rank 0 appends what was written, as JSON lines."""


def no_forward(options: Any) -> dict[str, Any]:
    """The forward pass of an objective that needs log-probabilities alone."""
    return {}


def one_step(options: Any) -> int:
    """The steps per rollout of an objective that learns from each rollout once."""
    return 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """All that differs between stages; trainloop/train.py does the rest."""

    name: str
    version: int
    """Part of every checkpoint's id: raise it when the same data would train other weights."""
    documents: Literal["text", "conversation", "pair", "prompt"]
    """What its sources hold. Only texts may be cut where a row ends."""
    encode: Callable[[Iterable[dict[str, Any]], Any], Iterator[Tree]]
    """encode(rows, tokenizer): each row as a Tree, in order; without a target it is no document
    (but for prompts, which have none)."""
    loss: Callable[[Outputs, Tensors, Any], Loss]
    """loss(outputs, micro-batch, options)."""
    total: Callable[[Batch, Any], float]
    """total(batch, options): what the summed loss of a whole step is divided by."""
    options: type = NoOptions
    """The frozen dataclass of its own settings; a stage's `options` become one."""
    forward: Callable[[Any], dict[str, Any]] = no_forward
    """forward(options): keyword arguments of Policy.forward."""
    reference: bool = False
    """Whether of_sequence["reference"] must hold the summed log-probabilities of each sequence
    under the weights that the stage starts from."""
    rollout: Callable[[Live], list[Batch]] | None = None
    """The batches of the next `steps_per_rollout` optimizer steps, the same on every rank."""
    steps_per_rollout: Callable[[Any], int] = one_step
    needs_reference: Callable[[Any], bool] = bool
    """needs_reference(options): whether a rollout asks for Live.reference."""
    head: Literal["language", "score"] = "language"
    """What is trained: a language model, or a reward model with a scalar head."""
    critic: bool = False
    """Whether a critic is trained beside the policy (ppo)."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Published settings of a stage, used where a recipe gives none."""


def targets(batch: Batch, options: Any) -> float:
    """The `total` of losses per token."""
    return float(batch.target_tokens)


def documents(batch: Batch, options: Any) -> float:
    """The `total` of losses per document: a pair is one."""
    return float(batch.documents)


def sequences(batch: Batch, options: Any) -> float:
    """The `total` of losses per sequence."""
    return float(batch.sequences)


def objective_names() -> list[str]:
    """The objectives there are: the files of this folder."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def load_objective(name: str) -> Objective:
    """The objective in objectives/`name`.py; UserError when there is no such file."""
    if name not in objective_names():
        raise UserError(f"no objective is named {name!r}" + did_you_mean(name, objective_names()))
    objective: Objective = importlib.import_module(f"trainloop.objectives.{name}").OBJECTIVE
    return objective


def read_options(objective: Objective, given: Mapping[str, Any], stage: str) -> Any:
    """A stage's `options` as the objective's own dataclass; UserError for what it does not know."""
    from evalsuite.config import loads

    known = [each.name for each in dataclasses.fields(objective.options)]
    for key in given:
        if key not in known:
            raise UserError(
                f"stage {stage!r}: objective {objective.name!r} has no option {key!r}"
                + did_you_mean(key, known)
                + (f" (it has {', '.join(known)})" if known else " (it has none)")
            )
    if not given:
        return objective.options()
    # JSON is YAML: the one reader of settings checks these too.
    return loads(json.dumps(given), objective.options, place=f"stage {stage!r}, options")
