"""Checkpoints: whole or absent, each byte accounted for, and good for any number of ranks."""

from __future__ import annotations

import errno
import functools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.errors import UserError
from evalsuite.files import sha256_file
from tests.trainloop import gradients
from tests.trainloop.gradients import fresh_policy, joined, loaded, record, resumed, steps
from tests.trainloop.ranked import together
from trainloop import checkpoint as checkpoints

KINDS = ("alone", "ddp", "fsdp")
IDS = ["first", "second", "third"]


def run(kind, *arguments, ranks=2, **options):
    """`steps` by this process or by several; what rank 0 has."""
    work = functools.partial(steps, kind, *arguments, **options)
    return work() if kind == "alone" else together(work, ranks=ranks)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two checkpoints by each kind of ranks, with a critic, and the weights of an undisturbed run.

    All were at the same weights after two steps.
    """
    root = tmp_path_factory.mktemp("made")
    for kind in KINDS:
        run(kind, 0, 2, root=root, save=kind, critic=True)
    return root, run("alone", 0, 4, root=root, critic=True)["weights"]


@pytest.fixture
def root(made, tmp_path):
    """A run folder of three good checkpoints: first, second, third."""
    for name, kind in zip(IDS, KINDS, strict=True):
        shutil.copytree(checkpoints.folder_of(made[0], kind), checkpoints.folder_of(tmp_path, name))
    return tmp_path


# --- any number of ranks -----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [("alone", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 3)])
def test_whoever_wrote_a_checkpoint_any_ranks_go_on_from_it(made, kind, count):
    root, undisturbed = made
    work = functools.partial(resumed, kind, root, KINDS)
    for found in work() if kind == "alone" else together(work, ranks=count)[0]:
        assert found.keys() == undisturbed.keys()
        for name, wanted in undisturbed.items():
            np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-12)


def test_shards_are_exported_as_one_process_exports(made):
    root, _ = made
    places = [checkpoints.folder_of(root, kind) for kind in KINDS]
    names = [sorted(str(f.relative_to(p)) for f in p.rglob("*") if f.is_file()) for p in places]
    assert names[0] == names[1]
    assert sorted({*names[2]} ^ {*names[0]}) == [
        "optimizer.safetensors",
        "optimizer/shard-00001-model-00001-of-00001.safetensors",
        "optimizer/shard-00002-model-00001-of-00001.safetensors",
    ]
    states = [loaded(place, critic=True).state_dict() for place in places]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for name, value in states[0].items():
            torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-13)


def test_nothing_in_a_checkpoint_is_pickled(made):
    root, _ = made
    files = [file for file in root.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    for file in files:
        start = file.read_bytes()[:2]
        assert start[:1] == b"{" if file.suffix == ".json" else start != b"\x80\x02", file


def test_a_checkpoint_that_stands_is_left_as_it_is(root):
    folder = checkpoints.folder_of(root, "third")
    before = {file: sha256_file(file) for file in folder.rglob("*.*") if file.is_file()}
    run("fsdp", 0, 1, root=root, save="third")
    assert {file: sha256_file(file) for file in before} == before


def test_a_disk_that_is_full_for_one_rank_stops_all_and_leaves_nothing(tmp_path):
    for said in together(_full_disk, tmp_path):
        assert "no space left on the disk" in said
        assert "checkpoints/full" in said
    assert list((tmp_path / "checkpoints").iterdir()) == []


def _full_disk(root):
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    write = HuggingFaceStorageWriter.write_data

    def full(self, plan, planner):
        if plan.storage_data["shard_index"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, plan, planner)

    HuggingFaceStorageWriter.write_data = full
    try:
        steps("fsdp", 0, 1, root=root, save="full")
    except UserError as error:
        return str(error)
    return "saved"


def test_the_state_of_another_model_is_refused(root):
    folder = checkpoints.folder_of(root, "first")
    with joined("alone") as ranks:
        policy = fresh_policy()  # it has no critic
        optimizer = torch.optim.AdamW(policy.parameters())
        with pytest.raises(UserError, match="which the model lacks"):
            checkpoints.restore(folder, policy, optimizer, ranks)


# --- damage ------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", IDS)
def test_a_flipped_bit_of_any_file_is_found(root, name):
    folder = checkpoints.folder_of(root, name)
    rng = random.Random(0)
    assert {"manifest.json", "model.safetensors", "checkpoint.json"} <= {
        file.name for file in files_of(folder)
    }
    for file in files_of(folder):
        whole = file.read_bytes()
        for place in {0, len(whole) - 1, *rng.choices(range(len(whole)), k=6)}:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=file.name) as caught:
                checkpoints.verify(folder)
            assert "\n" not in str(caught.value)
        for less in (whole[:-1], whole[: len(whole) // 2], b""):
            file.write_bytes(less)
            with pytest.raises(UserError, match=file.name):
                checkpoints.verify(folder)
            with pytest.raises(UserError, match=file.name):
                checkpoints.read(root, name)
        file.unlink()
        with pytest.raises(UserError, match=file.name):
            checkpoints.read(root, name)
        file.write_bytes(whole)
        checkpoints.verify(folder)


@pytest.fixture(scope="module")
def manifest(made):
    return checkpoints.folder_of(made[0], "alone") / "manifest.json"


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.data())
def test_no_byte_of_a_manifest_can_change_unseen(manifest, data):
    whole = manifest.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[place]))
    insert = data.draw(st.booleans())
    damaged = whole[:place] + bytes([byte]) + whole[place + (not insert) :]
    try:
        manifest.write_bytes(damaged)
        with pytest.raises(UserError, match=r"manifest\.json: its bytes"):
            checkpoints.verify(manifest.parent)
    finally:
        manifest.write_bytes(whole)


def damage(root, name, file="model.safetensors"):
    path = checkpoints.folder_of(root, name) / file
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def test_the_newest_checkpoint_that_is_whole_is_gone_on_from(root):
    assert checkpoints.newest_good(root, IDS) == ("third", [])
    damage(root, "third", "optimizer/shard-00002-model-00001-of-00001.safetensors")
    newest, [said] = checkpoints.newest_good(root, IDS)
    assert newest == "second"
    assert "shard-00002" in said
    assert f"moved to {root / 'damaged' / 'third-1'}" in said
    assert "goes on from checkpoint second" in said
    assert "\n" not in said
    assert not checkpoints.folder_of(root, "third").exists()
    assert (root / "damaged" / "third-1" / "model.safetensors").is_file()
    assert checkpoints.newest_good(root, IDS) == ("second", [])


def test_several_damaged_ones_are_all_named(root):
    damage(root, "third")
    damage(root, "second")
    (checkpoints.folder_of(root, "first") / "model.safetensors").unlink()
    newest, said = checkpoints.newest_good(root, IDS)
    assert newest is None
    assert [any(name in one for one in said) for name in IDS] == [True, False, False]
    assert "goes on from the start of its stage" in said[0]


def test_a_row_is_as_long_as_it_is_unbroken(root):
    shutil.rmtree(checkpoints.folder_of(root, "second"))
    assert checkpoints.newest_good(root, IDS) == ("first", [])
    assert checkpoints.newest_good(root, ["nowhere", *IDS]) == (None, [])
    assert checkpoints.newest_good(root, []) == (None, [])


def test_a_name_that_is_taken_among_the_damaged_is_not_overwritten(root):
    damage(root, "third")
    for number in (1, 2):
        checkpoints.newest_good(root, IDS)
        assert (root / "damaged" / f"third-{number}").is_dir()
        shutil.copytree(root / "damaged" / "third-1", checkpoints.folder_of(root, "third"))


# --- retiring ----------------------------------------------------------------------------------


def test_a_retired_checkpoint_keeps_its_record_and_nothing_else(root):
    before = checkpoints.read(root, "third")
    size = sum(file.stat().st_size for file in files_of(checkpoints.folder_of(root, "third")))
    freed = checkpoints.retire(root, "third")
    assert size * 0.9 < freed < size
    assert checkpoints.is_retired(root, "third")
    assert checkpoints.read(root, "third") == before
    assert [f.name for f in files_of(checkpoints.folder_of(root, "third"))] == [
        "checkpoint.json",
        "manifest.json",
    ]
    with pytest.raises(UserError, match="a retired checkpoint"):
        checkpoints.verify(checkpoints.folder_of(root, "third"))
    assert checkpoints.newest_good(root, IDS) == ("second", [])
    assert checkpoints.retire(root, "third") == 0


def test_retiring_that_was_killed_half_way_can_be_done_again(root, monkeypatch):
    unlink = Path.unlink
    left = [3]

    def killed(path, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.retire(root, "third")
    monkeypatch.undo()
    assert checkpoints.is_retired(root, "third")
    assert checkpoints.retire(root, "third") > 0
    assert len(files_of(checkpoints.folder_of(root, "third"))) == 2


def test_a_damaged_record_of_a_retired_checkpoint_is_found(root):
    checkpoints.retire(root, "second")
    damage(root, "second", "checkpoint.json")
    newest, said = checkpoints.newest_good(root, ["first", "second"])
    assert newest == "first"
    assert "checkpoint.json" in said[0]


def test_absent_checkpoints_have_no_record(tmp_path):
    assert checkpoints.read(tmp_path, "none") is None
    assert not checkpoints.is_retired(tmp_path, "none")
    assert record("x", 3).step == 3
    assert gradients.VOCABULARY % 2


def test_a_file_that_is_no_part_of_a_checkpoint_is_refused_by_name(finished, tmp_path):
    source = checkpoints.folder_of(finished.root, finished.run.final)
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    checkpoints.verify(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json: is no part of the checkpoint"):
        checkpoints.verify(folder)
