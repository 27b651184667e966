"""Checkpoints: a Hugging Face folder plus the trainer's state, whole or absent.

    runs/checkpoints/<id>/   config.json model.safetensors tokenizer.json ...  any HF tool reads it
                             optimizer.safetensors                             the trainer's state
                             checkpoint.json                                   its record
                             manifest.json                                     sha256 of each file

A folder appears under its id by one rename, after every byte is on disk. `verify` compares it
with its manifest, and nothing is loaded unverified. The random state is not saved: each step
draws from (seed, step, rank) anew (see train.py).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.files import publish, read_json, sha256_file, write_json
from trainloop.records import Checkpoint


def folder_of(root: Path, checkpoint_id: str) -> Path:
    """Where the checkpoint stands, whether it exists or not."""
    return root / "checkpoints" / checkpoint_id


def save(root: Path, checkpoint: Checkpoint, model: Any, tokenizer: Any, optimizer: Any) -> Path:
    """Publish a checkpoint and return its folder; an existing one is left as it is."""
    from safetensors.torch import save_file
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # ours is the one progress display
    folder = folder_of(root, checkpoint.id)
    if folder.is_dir():
        return folder
    with publish(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        save_file(_optimizer_tensors(model, optimizer), work / "optimizer.safetensors")
        write_json(work / "checkpoint.json", asdict(checkpoint))
        files = sorted(path for path in work.rglob("*") if path.is_file())
        sums = {
            str(path.relative_to(work)): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in files
        }
        write_json(work / "manifest.json", {"files": sums})
    return folder


def _optimizer_tensors(model: Any, optimizer: Any) -> dict[str, Any]:
    """AdamW's moments and step counts under the names of their parameters."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}:{key}"] = value.detach().cpu().contiguous()
    return tensors


def restore_optimizer(folder: Path, model: Any, optimizer: Any) -> None:
    """Put the saved moments and step counts back into `optimizer`."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.pop(f"{name}:{key}")
            device = "cpu" if key == "step" else parameter.device
            optimizer.state[parameter][key] = value.to(device)
    assert not tensors, f"optimizer state of unknown parameters: {sorted(tensors)[:3]}"


def read(root: Path, checkpoint_id: str) -> Checkpoint | None:
    """The record of a published checkpoint whose files have their full sizes; None if absent."""
    folder = folder_of(root, checkpoint_id)
    if not folder.is_dir():
        return None
    _check(folder, content=False)
    return Checkpoint(**read_json(folder / "checkpoint.json"))


def verify(folder: Path) -> None:
    """UserError unless every file of the checkpoint is there with the bytes it was saved with."""
    _check(folder, content=True)


def _check(folder: Path, *, content: bool) -> None:
    way_out = f"delete the folder {folder} and run the same command again: it is trained anew"
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: the checkpoint lacks its manifest.json; {way_out}")
    for name, known in read_json(folder / "manifest.json")["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint; {way_out}")
        size = path.stat().st_size
        if size != known["bytes"]:
            raise UserError(
                f"{path}: {size:,} bytes where {known['bytes']:,} were saved; {way_out}"
            )
        if content and sha256_file(path) != known["sha256"]:
            raise UserError(f"{path}: its bytes are not those that were saved; {way_out}")
