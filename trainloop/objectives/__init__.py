"""What a stage optimizes. A new objective is one new file in this folder.

The file defines OBJECTIVE, an `Objective`; a recipe names it by the file's name:

    stages: [{name: pretrain, objective: next_token, ...}]    ->  objectives/next_token.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError, did_you_mean

Encoded = tuple[Sequence[int], Sequence[bool]]
"""Token ids of a document, and for each whether the loss asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """All that differs between stages; trainloop/train.py does the rest."""

    name: str
    version: int
    """Part of every checkpoint's id: raise it when the same data would train other weights."""
    splits_documents: bool
    """Whether a document may be cut where a row ends."""
    encode: Callable[[Iterable[dict[str, Any]], Any], Iterator[Encoded]]
    """encode(documents, tokenizer): each document's ids and targets, in order."""
    loss: Callable[[Any, dict[str, Any]], Any]
    """loss(model, micro-batch): the *sum* over its target tokens, a scalar tensor."""


def objective_names() -> list[str]:
    """The objectives there are: the files of this folder."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def load_objective(name: str) -> Objective:
    """The objective in objectives/`name`.py; UserError when there is no such file."""
    if name not in objective_names():
        raise UserError(f"no objective is named {name!r}" + did_you_mean(name, objective_names()))
    objective: Objective = importlib.import_module(f"trainloop.objectives.{name}").OBJECTIVE
    return objective
