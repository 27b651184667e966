"""Checkpoints: a Hugging Face folder plus the trainer's state, whole or absent.

    runs/checkpoints/<id>/   config.json model.safetensors tokenizer.json ...  any HF tool reads it
                             critic/                    ppo's value model, likewise
                             optimizer.safetensors      AdamW's moments, by parameter
                             optimizer/*.safetensors    the same in shards, one file per rank (fsdp)
                             checkpoint.json            its record
                             manifest.json              sha256 of each file, and of itself

A folder appears under its id by one rename, after every byte is on disk. `verify` compares it
with its manifest, and nothing is loaded unverified; `newest_good` moves what is damaged aside to
runs/damaged and finds the newest checkpoint to go on from. Sharded state is written and read by
torch.distributed.checkpoint in its safetensors form, which has no pickle; weights are never in it,
since the Hugging Face folder holds them in full precision. Whatever number of ranks wrote a
checkpoint, alone, ddp or fsdp, any other can go on from it. The random state is not saved: each
step draws from (seed, step, rank) anew (see train.py).

All ranks must see one file system.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite.errors import UserError
from evalsuite.files import (
    content_id,
    full_disk_is_a_user_error,
    publish,
    publish_file,
    read_json,
    remove_partials,
    sha256_file,
    write_json,
)
from trainloop.records import Checkpoint

if TYPE_CHECKING:
    from trainloop.ranks import Ranks

CRITIC = "critic"
"""Subfolder of ppo's value model."""
SHARDS = "optimizer"
WHOLE = "optimizer.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
RETIRED = ["checkpoint.json"]
"""What a retired checkpoint keeps beside its manifest."""


def folder_of(root: Path, checkpoint_id: str) -> Path:
    """Where the checkpoint stands, whether it exists or not."""
    return root / "checkpoints" / checkpoint_id


# --- saving and restoring ----------------------------------------------------------------------


def save(
    root: Path, checkpoint: Checkpoint, module: Any, tokenizer: Any, optimizer: Any, ranks: Ranks
) -> Path:
    """Publish a checkpoint and return its folder; an existing one is left as it is.

    `module` is the wrapped policy; all ranks call. Raises UserError on a full disk, on every rank.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # ours is the one progress display
    folder = folder_of(root, checkpoint.id)
    if ranks.share(folder.is_dir()):
        return folder
    policy = ranks.bare(module)
    sharded = ranks.kind == "fsdp"
    weights = ranks.whole(module) if sharded else None
    work = Path()
    with ExitStack() as published:
        with ranks.together():
            if ranks.main:
                remove_partials(folder.parent)
                work = published.enter_context(publish(folder))
                _write_models(work, policy, tokenizer, weights)
                if not sharded:
                    _write_moments(work, policy, optimizer)
                write_json(work / "checkpoint.json", asdict(checkpoint))
        if sharded:
            _write_shards(ranks.share(work), policy, optimizer, folder)
        with ranks.together():
            if ranks.main:
                _write_manifest(work)
                published.close()  # all is there: renamed now
    return folder


def publish_made(root: Path, checkpoint: Checkpoint, write: Callable[[Path], None]) -> Path:
    """Publish a checkpoint without trainer's state, whose model folder `write(folder)` makes."""
    folder = folder_of(root, checkpoint.id)
    with publish(folder) as work:
        write(work)
        write_json(work / "checkpoint.json", asdict(checkpoint))
        _write_manifest(work)
    return folder


def _write_models(work: Path, policy: Any, tokenizer: Any, weights: dict[str, Any] | None) -> None:
    for part, place in (("model", work), ("value", work / CRITIC)):
        model = getattr(policy, part, None)
        if model is None:
            continue
        state = None
        if weights is not None:
            start = part + "."
            state = {k[len(start) :]: v for k, v in weights.items() if k.startswith(start)}
        model.save_pretrained(place, state_dict=state)
    tokenizer.save_pretrained(work)


def _state(policy: Any, optimizer: Any) -> Iterator[tuple[str, Any]]:
    """AdamW's moments and step counts under the names of their parameters."""
    for name, parameter in policy.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}:{key}", value.detach()


def _write_moments(work: Path, policy: Any, optimizer: Any) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.cpu().contiguous() for name, value in _state(policy, optimizer)}
    save_file(tensors, work / WHOLE)


def _write_shards(work: Path, policy: Any, optimizer: Any, final: Path) -> None:
    """Each rank's part of the moments as a file of its own; all ranks call."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    writer = HuggingFaceStorageWriter(str(work / SHARDS), save_distributed=True)
    with full_disk_is_a_user_error(final):
        try:
            save(dict(_state(policy, optimizer)), storage_writer=writer)
        except CheckpointException as error:
            [first, *_] = error.failures.values()
            raise first[0] from error


def restore(folder: Path, module: Any, optimizer: Any, ranks: Ranks) -> None:
    """Put the saved moments and step counts into `optimizer`, sharded as `module` is now.

    The weights are those of the Hugging Face folder, loaded before the module was wrapped. The
    caller has verified the folder.
    """
    import torch

    policy = ranks.bare(module)
    wanted: dict[str, Any] = {}
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not parameter.requires_grad:
                continue
            state = optimizer.state[parameter]
            # As AdamW makes them: the count on the CPU unless it is a fused one on a GPU.
            fused = optimizer.defaults.get("fused") and parameter.is_cuda
            device = parameter.device if fused else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            wanted |= {f"{name}:{key}": state[key] for key in MOMENTS}
        found = _read_moments(folder, wanted, ranks)
    for name, parameter in policy.named_parameters():
        if f"{name}:step" not in found:  # it never had a gradient
            optimizer.state.pop(parameter, None)


def _read_moments(folder: Path, wanted: dict[str, Any], ranks: Ranks) -> set[str]:
    """Fill the tensors from the checkpoint, in place; the names that it has."""
    from safetensors import safe_open
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.tensor import DTensor, distribute_tensor

    if (folder / SHARDS).is_dir():
        reader = HuggingFaceStorageReader(str(folder / SHARDS))
        names = set(reader.read_metadata().state_dict_metadata)
        _check_names(names, wanted, folder)
        with warnings.catch_warnings():  # each rank reads for itself, as we want it
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({name: wanted[name] for name in names}, storage_reader=reader, no_dist=True)
        return names
    with safe_open(folder / WHOLE, framework="pt") as file:
        names = set(file.keys())
        _check_names(names, wanted, folder)
        for name in sorted(names):
            target, value = wanted[name], file.get_tensor(name)
            if isinstance(target, DTensor):
                value = distribute_tensor(
                    value.to(ranks.device),
                    target.device_mesh,
                    target.placements,
                    src_data_rank=None,
                )
            target.copy_(value)
    return names


def _check_names(names: set[str], wanted: dict[str, Any], folder: Path) -> None:
    if not names <= wanted.keys():
        raise UserError(
            f"{folder}: its optimizer state is of parameter {sorted(names - wanted.keys())[0]!r}, "
            "which the model lacks; give the run another folder with --runs"
        )


# --- looking at what is there ------------------------------------------------------------------


def read(root: Path, checkpoint_id: str) -> Checkpoint | None:
    """The record of a published checkpoint whose files have their full sizes; None if absent.

    A retired one has a record too. Raises UserError for a damaged one.
    """
    folder = folder_of(root, checkpoint_id)
    if not folder.is_dir():
        return None
    _check(folder, content=False)
    return Checkpoint(**read_json(folder / "checkpoint.json"))


def verify(folder: Path) -> None:
    """UserError unless the checkpoint can be loaded: each file has the bytes it was saved with."""
    if _check(folder, content=True)["retired"]:
        raise UserError(
            f"{folder}: a retired checkpoint, its weights were removed to save space; delete the "
            "folder and run the same command again: it is trained anew"
        )


def is_retired(root: Path, checkpoint_id: str) -> bool:
    """Whether the checkpoint is published, but without its weights."""
    folder = folder_of(root, checkpoint_id)
    return folder.is_dir() and bool(_manifest(folder)["retired"])


def retire(root: Path, checkpoint_id: str) -> int:
    """Remove weights and trainer's state, keep the record; returns the bytes that were freed.

    A kill on the way leaves a retired checkpoint with files too many: retire it again.
    """
    folder = folder_of(root, checkpoint_id)
    if not _manifest(folder)["retired"]:
        _check(folder, content=False)
        _write_manifest(folder, only=RETIRED)
    freed = 0
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif path.name not in (*RETIRED, "manifest.json") or path.parent != folder:
            freed += path.stat().st_size
            path.unlink()
    return freed


def newest_good(root: Path, ids: Sequence[str]) -> tuple[str | None, list[str]]:
    """The checkpoint to go on from, and a message for each damaged one, which is moved aside.

    `ids` are a stage's due checkpoints in the order of training. All are checked for missing
    files and wrong sizes; of those up to the first that is absent, the newest is then read to
    the last byte, and those before it while that finds damage. None: the stage starts anew.
    """
    said: list[tuple[Path, UserError]] = []

    def is_sound(one: str, *, content: bool) -> bool:
        folder = folder_of(root, one)
        try:
            _check(folder, content=content)
        except UserError as error:
            said.append((_move_aside(root, one), error))
            return False
        return True

    there = [folder_of(root, one).is_dir() and is_sound(one, content=False) for one in ids]
    row = list(ids[: there.index(False)] if False in there else ids)
    while row and (is_retired(root, row[-1]) or not is_sound(row[-1], content=True)):
        row.pop()
    newest = row[-1] if row else None
    goes_on = f"checkpoint {newest}" if newest else "the start of its stage"
    return newest, [
        f"{_reason(error)}; moved to {aside}, and the run goes on from {goes_on}"
        for aside, error in said
    ]


def _reason(error: UserError) -> str:
    return str(error).partition(";")[0]


def _move_aside(root: Path, checkpoint_id: str) -> Path:
    """Take a damaged checkpoint out of the way; where it is now."""
    rooms = root / "damaged"
    rooms.mkdir(exist_ok=True)
    number = 1
    while (aside := rooms / f"{checkpoint_id}-{number}").exists():
        number += 1
    os.rename(folder_of(root, checkpoint_id), aside)
    return aside


# --- the manifest ------------------------------------------------------------------------------


def _write_manifest(folder: Path, *, only: list[str] | None = None) -> None:
    """Publish the manifest of a folder's files; with `only`, of a retired checkpoint's."""
    names = only or [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    files = {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(names)
    }
    with publish_file(folder / "manifest.json") as handle:
        handle.write(_text({"files": files, "retired": only is not None}))


def _text(told: dict[str, Any]) -> str:
    """The one text of a manifest: any other, by a single byte, is a damaged one."""
    whole = {"files": told["files"], "retired": told["retired"]}
    return json.dumps(whole | {"self": content_id(whole, length=64)}, indent=1, sort_keys=True)


def _way_out(folder: Path) -> str:
    return f"delete the folder {folder} and run the same command again: it is trained anew"


def _manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says; UserError unless it is, to the byte, as it was written."""
    path = folder / "manifest.json"
    try:
        text = path.read_bytes().decode()
        found: dict[str, Any] = json.loads(text)
        if _text(found) == text:
            return found
    except FileNotFoundError:
        raise UserError(
            f"{folder}: the checkpoint lacks its manifest.json; {_way_out(folder)}"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: its bytes are not those that were saved; {_way_out(folder)}")


def _check(folder: Path, *, content: bool) -> dict[str, Any]:
    """The manifest of a folder whose files have their sizes, and with `content` their bytes."""
    manifest = _manifest(folder)
    for name, known in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint; {_way_out(folder)}")
        size = path.stat().st_size
        if size != known["bytes"]:
            raise UserError(
                f"{path}: {size:,} bytes where {known['bytes']:,} were saved; {_way_out(folder)}"
            )
        whole = content or manifest["retired"]  # what a retired one keeps is quickly read
        if whole and sha256_file(path) != known["sha256"]:
            raise UserError(f"{path}: its bytes are not those that were saved; {_way_out(folder)}")
    if content:
        named = {folder / name for name in (*manifest["files"], "manifest.json")}
        for path in sorted(folder.rglob("*")):
            # A loader takes what it finds: a stray index, adapter or shard would be read.
            if path not in named and not path.is_dir():
                raise UserError(f"{path}: is no part of the checkpoint; remove the file")
    return manifest
