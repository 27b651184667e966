"""Which of several launched processes this one is: told by the environment, without torch.

    RANK=1 WORLD_SIZE=2   ->   launched() == (1, 2)

It does not say that the others are there: ranks.join does. But launchers that start processes
which know nothing of each other, each of which would train as the only one, are found here.
"""

from __future__ import annotations

import os

from evalsuite.errors import UserError

FOREIGN = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where launchers that set no RANK say how many processes they started."""


def launched() -> tuple[int, int]:
    """(rank, ranks) as torchrun and `accelerate launch` tell them; (0, 1) without.

    Raises UserError where several processes were asked for and none was told its rank.
    """
    if "RANK" not in os.environ:
        _check_alone()
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


def _check_alone() -> None:
    for name in FOREIGN:
        if os.environ.get(name, "1") != "1":
            raise UserError(
                f"{name} says {os.environ[name]} processes were started, but RANK is not set: each "
                "would train as the only one; start them with torchrun or `accelerate launch`"
            )
    # It sets the address when asked for several processes, and starts one.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise UserError(
            "`accelerate launch` was asked for several processes (MASTER_ADDR is set) but started "
            "one, as it does with --cpu; launch with --multi_gpu, or with torchrun"
        )
