"""A soup: the mean of sibling checkpoints' weights, as a model of its own.

    soup([checkpoints / "a1", checkpoints / "b2", checkpoints / "c3"], out)

The plain mean of models that were trained from one parent on different data orders often scores
above each of them (Wortsman et al. 2022, arXiv:2203.05482); OLMo 2 (arXiv:2501.00656) ends its
mid-training with the mean of three. Sums are in float64, weights come out in the type they came
in: same folders in the same order, same bits. One tensor per folder is in memory at a time. What
it cannot do: weighted or greedy soups, or a mean over models of different shapes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite.errors import UserError
from evalsuite.files import read_json, write_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 << 30
"""Size of a file of weights, about; a larger model is written as several."""
TRAINER = ("optimizer.safetensors", "checkpoint.json", "manifest.json")
"""What a checkpoint holds beside its model: it belongs to the sibling, not to the soup."""


def soup(folders: Sequence[Path], out: Path) -> None:
    """Write the unweighted mean of the models in `folders` into `out`, an empty folder.

    Configuration and tokenizer are the first folder's. Raises UserError where the folders
    differ in the names, shapes or types of their tensors, or lack weights.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if len(folders) < 2:
        raise UserError(f"a soup needs two models or more, not {len(folders)}")
    places = [_places(folder) for folder in folders]
    for folder, found in zip(folders[1:], places[1:], strict=True):
        _check_names(folders[0], places[0], folder, found)
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for found in places:
            for file in found.values():
                if file not in files:
                    files[file] = stack.enter_context(safe_open(file, framework="pt"))
        readers = [{name: files[file] for name, file in found.items()} for found in places]
        shards = _shards(readers[0])
        weight_map: dict[str, str] = {}
        total = 0
        for number, names in enumerate(shards, 1):
            shard = _shard_name(number, len(shards))
            tensors = {name: _mean(name, folders, readers) for name in names}
            weight_map |= dict.fromkeys(names, shard)
            total += sum(tensor.nbytes for tensor in tensors.values())
            save_file(tensors, out / shard, metadata={"format": "pt"})
    if len(shards) > 1:
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _copy_rest(folders[0], out)


def _places(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file of `folder` that holds it, in the order of names."""
    from safetensors import SafetensorError, safe_open

    single = folder / "model.safetensors"
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX)["weight_map"]
        found = {name: folder / file for name, file in sorted(names.items())}
    elif single.is_file():
        try:
            with safe_open(single, framework="pt") as handle:
                found = dict.fromkeys(sorted(handle.keys()), single)
        except SafetensorError as error:
            raise UserError(f"{single}: not a whole safetensors file ({error})") from None
    else:
        raise UserError(f"{folder}: no safetensors weights there; its checkpoint may be retired")
    for file in set(found.values()):
        if not file.is_file():
            raise UserError(f"{file}: missing from the model's weights")
    return found


def _check_names(first: Path, names: dict[str, Path], folder: Path, found: dict[str, Path]) -> None:
    apart = sorted(names.keys() ^ found.keys())
    if apart:
        owner = first if apart[0] in names else folder
        raise UserError(
            f"soup of {first} and {folder}: only {owner.name} has {apart[0]!r} (and "
            f"{len(apart) - 1} more tensors differ); take siblings of one parent"
        )


def _shards(reader: dict[str, Any]) -> list[list[str]]:
    """Names of the tensors of each file to write."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, handle in reader.items():
        part = handle.get_slice(name)
        bytes_of = 4  # of float32; narrower types make smaller files
        for each in part.get_shape():
            bytes_of *= each
        if shards[-1] and size + bytes_of > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_of
    return shards


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _mean(name: str, folders: Sequence[Path], readers: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The mean of one tensor over all folders."""
    import torch

    first = readers[0][name].get_tensor(name)
    total = first.to(torch.float64) if first.is_floating_point() else first
    for folder, reader in zip(folders[1:], readers[1:], strict=True):
        here = reader[name].get_tensor(name)
        if here.shape != first.shape or here.dtype != first.dtype:
            raise UserError(
                f"soup of {folders[0]} and {folder}: {name!r} is {list(first.shape)} "
                f"{first.dtype} in one and {list(here.shape)} {here.dtype} in the other; take "
                "siblings of one parent"
            )
        if first.is_floating_point():
            total += here
        elif not torch.equal(here, first):
            raise UserError(
                f"soup of {folders[0]} and {folder}: {name!r} holds whole numbers that differ, "
                "which have no mean"
            )
    if not first.is_floating_point():
        return first
    return total.div_(len(folders)).to(first.dtype).contiguous()


def _copy_rest(folder: Path, out: Path) -> None:
    """Configuration, tokenizer and chat template."""
    for file in sorted(folder.iterdir()):
        weights = file.suffix == ".safetensors" or file.name == INDEX
        if file.is_file() and not weights and file.name not in TRAINER:
            shutil.copyfile(file, out / file.name)
