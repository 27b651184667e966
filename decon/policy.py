"""The rule a verdict follows, as a small data file with every parameter.

    load_policy("tulu3")            decon/policies/tulu3.yaml
    load_policy("my/rule.yaml")     a file of your own, in the same shape

A policy is data: the same policy over the same files gives the same verdicts, and every
certificate carries all of it. It says itself what it cannot catch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from evalsuite.config import load
from evalsuite.errors import UserError, did_you_mean

POLICIES = Path(__file__).parent / "policies"


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """Near-duplicates between documents and items: MinHash finds them, the Jaccard index decides.

    They are reported beside the n-gram verdict and change nothing in it.
    """

    shingle: int
    """Words per shingle."""
    threshold: float
    """Least Jaccard index (shared shingles / all shingles) of a near-duplicate."""
    permutations: int = 128
    """Length of a MinHash signature; longer misses fewer pairs near the threshold."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.shingle < 1:
            raise UserError(f"near: shingle is {self.shingle}, but must be 1 or more")
        if not 0 < self.threshold < 1:
            raise UserError(f"near: threshold is {self.threshold}, but must lie between 0 and 1")
        if self.permutations < 16:
            raise UserError(f"near: permutations is {self.permutations}, but must be 16 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """When an eval item counts as leaked, and when a source counts as contaminated."""

    name: str
    description: str
    ngram: int
    """Words per n-gram."""
    overlap: float
    """An item is hit when more than this share of its words lies in n-grams that it shares
    with one and the same document."""
    gate: float
    """A source is contaminated when more than this share of any one task's items is hit."""
    fields: list[Literal["question", "passage"]]
    """The texts of an item that are looked for; a hit on any of them hits the item."""
    join_short: bool
    """A question of fewer than `ngram` words is looked for together with its choices (or its
    answer, where it has no choices)."""
    near: Near | None
    """Near-duplicates to report as well; null costs nothing."""
    cannot_catch: str

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise UserError(f"policy {self.name!r}: ngram is {self.ngram}, but must be 1 or more")
        for key, value in (("overlap", self.overlap), ("gate", self.gate)):
            if not 0 <= value < 1:
                raise UserError(f"policy {self.name!r}: {key} is {value}, but must lie in [0, 1)")
        if not self.fields:
            raise UserError(f"policy {self.name!r}: fields is empty, so nothing would be found")
        if not self.cannot_catch.strip():
            raise UserError(f"policy {self.name!r}: cannot_catch is empty; say what it misses")

    def is_hit(self, covered: int, words: int) -> bool:
        """Whether `covered` of an item's `words` are more than `overlap`, exactly."""
        return covered > Fraction(str(self.overlap)) * words

    def is_contaminated(self, items_hit: int, items: int) -> bool:
        """Whether `items_hit` of a task's `items` are more than `gate`, exactly."""
        return items_hit > Fraction(str(self.gate)) * items

    def as_json(self) -> dict[str, Any]:
        """Every parameter."""
        return asdict(self)


def load_policy(name_or_path: str) -> Policy:
    """The policy of that name in decon/policies/, or in the YAML file of that path."""
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return load(Path(name_or_path), Policy)
    path = POLICIES / f"{name_or_path}.yaml"
    known = list_policies()
    if name_or_path not in known:
        raise UserError(f"no policy is named {name_or_path!r}{did_you_mean(name_or_path, known)}")
    return load(path, Policy)


def list_policies() -> list[str]:
    """The names in decon/policies/."""
    return sorted(path.stem for path in POLICIES.glob("*.yaml"))
