"""The processes that train one model together: alone, in parallel over data, or sharded.

    ranks = join("fsdp")                       # torchrun or `accelerate launch` said who is there
    module = ranks.wrap(policy, precision="bfloat16")
    for number, piece in enumerate(pieces):
        with ranks.no_sync(module, last=number == len(pieces) - 1), ranks.autocast("bfloat16"):
            loss(module(tensors(piece))).backward()
    norm = ranks.clip(module, 1.0)             # over all ranks' gradients

Gradients are *summed* over ranks, not averaged: a rank's loss is its part of a sum that was
divided by the count of the whole batch. `ddp` keeps the model whole on every rank, `fsdp` keeps
1/N of parameters, gradients and moments (FSDP2, Zhao et al. 2023, arXiv:2304.11277, in its
per-parameter form); on one process both are "alone", and every function here does nothing.

Traps that `join` and `wrap` look for: processes that do not know of each other and would all
train as rank 0; a sharding that silently did not happen. What this cannot do: tensor or pipeline
parallelism, or go on after a rank was lost (start again: the run goes on from its checkpoint).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_type_hints

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from evalsuite.errors import UserError
from trainloop.launch import launched

T = TypeVar("T")

WAIT_HOURS = 24
"""How long a rank waits for another that makes data or scores."""
JOIN_MINUTES = 10
"""How long the first processes wait for the last one to start."""

Kind = Literal["alone", "ddp", "fsdp"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device
    kind: Kind

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    # --- what is said among ranks ---

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.count > 1:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over ranks, on every rank; `value` stays as it is."""
        found = value.detach().clone()
        if self.count > 1:
            dist.all_reduce(found)
        return found

    def share(self, value: T) -> T:
        """Rank 0's `value` on every rank. It may be any object: ranks trust each other."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """What stops one rank inside the block stops all at its end, with that rank's reason.

        Otherwise those that had no trouble would wait for one that is gone.
        """
        trouble: BaseException | None = None
        try:
            yield
        except Exception as error:
            trouble = error
        said = self.gather(None if trouble is None else str(trouble))
        if trouble is not None:
            raise trouble
        for rank, text in enumerate(said):
            if text is not None:
                raise UserError(f"rank {rank} stopped: {text}")

    # --- the model ---

    def wrap(self, policy: Module, *, precision: str = "float32") -> Module:
        """`policy` ready to train on all ranks; its forward must be the one way through it.

        Weights must be alike on all ranks. Under fsdp they become shards in place: make the
        optimizer afterwards. Raises UserError where the model has no layers to shard.
        """
        if self.kind == "fsdp":
            _shard(policy, precision, self)
            return policy
        policy = policy.to(self.device)
        if self.kind == "alone":
            return policy
        ids = [self.device.index] if self.device.type == "cuda" else None
        parallel = DistributedDataParallel(
            policy, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        parallel.register_comm_hook(None, _summed)
        return parallel

    def bare(self, module: Module) -> Any:
        """What was wrapped."""
        return module.module if isinstance(module, DistributedDataParallel) else module

    @contextmanager
    def no_sync(self, module: Module, *, last: bool = False) -> Iterator[None]:
        """Gradients of all but the `last` micro-batch are only added up, and reduced once.

        That is so under ddp. Under fsdp each micro-batch is reduced into the rank's shard: to
        hold the whole gradient back would take the memory that sharding saves.
        """
        hold = isinstance(module, DistributedDataParallel) and not last
        with module.no_sync() if hold else nullcontext():
            yield

    def autocast(self, precision: str) -> Any:
        """The context of a forward pass: bfloat16 unless fsdp casts by itself."""
        if precision == "float32" or self.kind == "fsdp":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def clip(self, module: Module, max_norm: float) -> float:
        """Scale all gradients so that their norm over all ranks is at most `max_norm`.

        Returns the norm before.
        """
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm)
        return float(full(norm))

    def whole(self, module: Module, *, everywhere: bool = False) -> dict[str, Tensor]:
        """The bare module's state with whole tensors on the CPU: on rank 0, else empty.

        `everywhere` gives it to every rank. Under fsdp all ranks must call.
        """
        found: dict[str, Tensor] = {}
        done: dict[int, Tensor | None] = {}
        for name, value in self.bare(module).state_dict(keep_vars=True).items():
            if id(value) not in done:  # tied weights stay tied
                whole = full(value.detach())
                done[id(value)] = whole.cpu() if self.main or everywhere else None
            kept = done[id(value)]
            if kept is not None:
                found[name] = kept
        return found

    def full_model(self, module: Module, like: Any = None, *, part: str = "model") -> Any:
        """The transformers model inside, with whole weights, for generation and scoring.

        Alone and under ddp that is the live one. Under fsdp every rank gets a copy on its
        device; give the last copy back as `like` to have its memory filled anew. `part` is
        the attribute of the bare module that holds the model.
        """
        live = getattr(self.bare(module), part)
        if self.kind != "fsdp":
            return live
        for each in module.modules():
            if isinstance(each, FSDPModule):
                each.reshard()  # after a pass without gradient the root is whole, and rounded
        if like is None:
            with torch.device("meta"):
                like = type(live)(deepcopy(live.config))
            like.eval()
            if live.can_generate():  # it may name more end-of-text tokens than the config
                like.generation_config = deepcopy(live.generation_config)
        # Buffers too: some are in no state dict.
        for name, value in [*live.named_parameters(), *live.named_buffers()]:
            _put(like, name, full(value.detach()))
        like.tie_weights()
        return like


# --- joining -----------------------------------------------------------------------------------


def join(kind: str = "ddp") -> Ranks:
    """Join the processes that were launched together; UserError unless all are there.

    `kind` is "ddp" or "fsdp"; a process that was launched alone is "alone".
    """
    rank, count = launched()
    device = _device(int(os.environ.get("LOCAL_RANK", 0)))
    if count == 1:
        return Ranks(0, 1, device, "alone")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {count}, but {missing[0]} is not set: start with torchrun or "
            "`accelerate launch`"
        )
    patience = timedelta(hours=WAIT_HOURS)
    try:
        store, at, of = next(dist.rendezvous("env://", timeout=timedelta(minutes=JOIN_MINUTES)))
        store.set_timeout(patience)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=at,
            world_size=of,
            timeout=patience,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"rank {rank} of {count} could not join the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}); start all "
            "processes together with torchrun or `accelerate launch`"
        ) from error
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device, _kind(kind))
    seen = ranks.gather((rank, count, kind))
    if seen != [(each, count, kind) for each in range(count)]:
        leave()
        raise UserError(
            f"{count} processes were launched, but {len(seen)} joined, as (rank, ranks, kind) "
            f"{seen}; start them with one torchrun or `accelerate launch`"
        )
    return ranks


def leave() -> None:
    """Leave the other processes, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _kind(text: str) -> Kind:
    assert text in ("ddp", "fsdp"), text
    return text  # type: ignore[return-value]


def _device(local: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {local}, but this machine has {torch.cuda.device_count()} GPUs; "
            "start one process per GPU"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


# --- sharding ----------------------------------------------------------------------------------


def _summed(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients added over ranks; DDP itself would average them."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


# DDP compares them with the classes; as in every module here they are texts so far.
_summed.__annotations__.update(get_type_hints(_summed))


def layers_of(model: Module) -> list[Module]:
    """The decoder layers of a transformers model: the blocks it must not be split within."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    inner = {id(below) for one in found for below in one.modules() if below is not one}
    return [module for module in found if id(module) not in inner]


def _shard(policy: Module, precision: str, ranks: Ranks) -> None:
    """FSDP2 on each decoder layer, then on the root; asserts that parameters are shards.

    Each layer goes to the device as it is sharded: no device ever holds the whole model.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    bf16 = precision == "bfloat16"
    mixed = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32 if bf16 else None
    )
    layers = [layer for model in policy.children() for layer in layers_of(model)]
    if not layers:
        raise UserError(
            f"distributed: fsdp: {type(policy).__name__} has no decoder layers that transformers "
            "names (_no_split_modules); use distributed: ddp"
        )
    for module in [*layers, policy]:
        sharded = fully_shard(module, mesh=mesh, mp_policy=mixed)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    assert isinstance(policy, FSDPModule)
    for name, parameter in policy.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} was not sharded"
        assert parameter.device_mesh.size() == ranks.count > 1, name


def full(value: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; then all ranks must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _put(model: Module, name: str, value: Tensor) -> None:
    """Give `model` a whole tensor: copied where it has memory, else as it is."""
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    held = getattr(owner, last)
    if not held.is_meta:
        held.detach().copy_(value)
    elif isinstance(held, torch.nn.Parameter):
        setattr(owner, last, torch.nn.Parameter(value, requires_grad=False))
    else:
        setattr(owner, last, value)
