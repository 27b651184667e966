"""Which of several launched processes this one is: told by the environment, without torch.

    RANK=1 WORLD_SIZE=2   ->   launched() == (1, 2)

It does not say that the others are there: ranks.join does.
"""

from __future__ import annotations

import os

from evalsuite.errors import UserError


def launched() -> tuple[int, int]:
    """(rank, ranks) as torchrun and `accelerate launch` tell them; (0, 1) without."""
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
        text = os.environ.get(name, default)
        if not text.isdigit():
            raise UserError(
                f"{name} is {text!r} in the environment, but must be a number: start with torchrun "
                "or `accelerate launch`, which set it"
            )
        found.append(int(text))
    rank, count = found
    if not 0 <= rank < count:
        raise UserError(
            f"RANK is {rank} and WORLD_SIZE {count} in the environment: start with torchrun or "
            "`accelerate launch`, which set both"
        )
    return rank, count
