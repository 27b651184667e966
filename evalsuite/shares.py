"""One evaluation by several processes: each asks for its share of the docs, the first one judges.

    team = Shares(rank, count, gather)          gather(value) -> every rank's value, on every rank
    team.mine(places)                           this rank's docs of a task
    book = team.pooled(journal, answer)         all ranks' answers, after each ran `answer`
    team.by_first(judge)                        the first rank's result, on all

Docs are dealt like cards, so that each rank gets as many of every task. Rows are those of one
process; likelihoods agree to rounding, which depends on what goes through a model together (as it
does after a resumed scoring). What one rank raises all ranks raise, so that none waits for one that
is gone. How ranks reach each other is the caller's part (trainloop.ranks); every rank needs the
whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evalsuite.errors import UserError
from evalsuite.journal import Answer, Journal

T = TypeVar("T")


def alone(value: T) -> list[T]:
    """What a process without others gathers."""
    return [value]


@dataclass(frozen=True, slots=True)
class Shares:
    """This process among those that score together."""

    rank: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = alone

    def mine(self, places: Sequence[int]) -> list[int]:
        """This rank's part of the docs."""
        return list(places[self.rank :: self.count])

    def pooled(self, book: Journal, answer: Callable[[], object]) -> Journal:
        """A journal in memory of what all ranks know after each has run `answer`."""
        if self.count == 1:
            return book
        known: dict[str, Answer] = {}
        for part in self._each(lambda: (answer(), book.known)[1]):
            known |= part
        return Journal(known, None, None)

    def by_first(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, the only one that does it."""
        return self._each(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def union(self, notes: Sequence[str]) -> list[str]:
        """The notes of all ranks, each once."""
        return list(dict.fromkeys(note for part in self.gather(list(notes)) for note in part))

    def _each(self, work: Callable[[], T]) -> list[T]:
        value: T | None = None
        trouble: Exception | None = None
        try:
            value = work()
        except Exception as error:
            trouble = error
            if self.count == 1:
                raise
        said = self.gather((value, None if trouble is None else str(trouble)))
        if trouble is not None:
            raise trouble
        for rank, (_, text) in enumerate(said):
            if text is not None:
                raise UserError(f"rank {rank} of the scoring stopped: {text}")
        return [each for each, _ in said]
