"""Two processes do what one does: the same steps, the same item rows, one set of files."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from evalsuite import harness
from evalsuite.errors import UserError
from evalsuite.journal import Journal, open_journal
from evalsuite.livemodel import load_model
from evalsuite.scorefiles import read_evaluation
from evalsuite.suites import load_suite
from tests.trainloop import minirun
from tests.trainloop.gradients import joined
from tests.trainloop.ranked import together
from trainloop import checkpoint as checkpoints

LAUNCHERS = {
    "torchrun": [
        "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-addr", "127.0.0.1", "--master-port",
    ],
    "accelerate launch": [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port",
    ],
}  # fmt: skip


def free_port() -> str:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(launcher: str, command: Sequence[str], folder: Path, log: Path) -> None:
    """Run `python COMMAND` in two processes under the launcher; fails unless both end well."""
    words = [sys.executable, *LAUNCHERS[launcher], free_port(), *command]
    process = minirun.Command(words, folder, log)
    process.join(240)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"{launcher} did not end:\n{log.read_text()}")
    assert process.exitcode == 0, log.read_text()


@pytest.mark.parametrize(("launcher", "kind"), [("torchrun", "fsdp"), ("accelerate launch", "ddp")])
def test_two_processes_train_what_one_does(launcher, kind, finished, repository, tmp_path):
    recipe = minirun.write_recipe(tmp_path, minirun.recipe_text() | {"distributed": kind})
    root, log = tmp_path / "runs", tmp_path / "log"
    launch(launcher, ["-m", "assay", "train", str(recipe), "--runs", str(root)], repository, log)
    said = log.read_text()
    assert said.count(f"is in {root}") == 1, "one process speaks"
    assert said.count("plants in sums: 6 of 6") == 1
    for plan in finished.run.stages:
        place = Path("stages") / plan.id / "metrics.jsonl"
        alone = list(map(json.loads, (finished.root / place).read_text().splitlines()))
        both = list(map(json.loads, (root / place).read_text().splitlines()))
        for key in ("step", "tokens", "target_tokens"):
            assert [row[key] for row in both] == [row[key] for row in alone]
        assert [row["loss"] for row in both] == pytest.approx(
            [row["loss"] for row in alone], rel=1e-4
        )
        for checkpoint in plan.checkpoint_ids:
            folder = root / "checkpoints" / checkpoint
            checkpoints.verify(folder)
            record = checkpoints.read(root, checkpoint)
            assert record is not None
            assert record.ranks == 2
            shards = list(folder.glob("optimizer/*.safetensors"))
            assert len(shards) == (2 if kind == "fsdp" else 0), "it is what was asked for"
            [scores] = (root / "scores" / checkpoint).iterdir()
            assert len(read_evaluation(scores).items) == 2 * minirun.ITEMS
    for room in ("checkpoints", "scores", "stages", "tokens"):
        assert sorted(f.name for f in (root / room).iterdir()) == sorted(
            f.name for f in (finished.root / room).iterdir()
        )


def test_accelerates_way_to_start_one_process_for_two_is_refused(finished, repository, tmp_path):
    words = [*LAUNCHERS["accelerate launch"], free_port(), "-m", "assay", "train"]
    words[words.index("--multi_gpu")] = "--cpu"
    log = tmp_path / "log"
    command = [sys.executable, *words, str(finished.recipe), "--runs", str(tmp_path / "runs")]
    process = minirun.Command(command, repository, log)
    process.join(240)
    assert process.exitcode == 1
    assert "was asked for several processes (MASTER_ADDR is set) but started one" in log.read_text()
    assert not (tmp_path / "runs" / "checkpoints").exists()


# --- scoring -----------------------------------------------------------------------------------


def scored(folder: Path, suite: Path, journal: Path | None = None):
    """The evaluation of a checkpoint by the ranks of this launch, and what each one asked."""
    asked = []
    with joined("ddp") as ranks:
        model, tokenizer = load_model(folder)
        evaluation = harness.score(
            model,
            load_suite(str(suite)),
            tokenizer=tokenizer,
            journal=journal,
            model_id="m",
            ranks=(ranks.rank, ranks.count),
            gather=ranks.gather,
            progress=lambda what, done, total: asked.append(total),
        )
        return evaluation, max(asked)


@pytest.fixture
def last(finished):
    """The finished run's last checkpoint, its suite's file and its published evaluation."""
    checkpoint = finished.run.stages[-1].checkpoint_ids[-1]
    [scores] = (finished.root / "scores" / checkpoint).iterdir()
    folder = checkpoints.folder_of(finished.root, checkpoint)
    return folder, finished.folder / "tiny.yaml", read_evaluation(scores)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_share_a_suites_docs_make_the_item_rows_of_one_process(last, ranks):
    folder, suite, published = last
    alone, total = scored(folder, suite)
    minirun.assert_same_items(alone.items, published.items)
    parts = together(scored, folder, suite, ranks=ranks)
    for evaluation, asked in parts:
        minirun.assert_same_items(evaluation.items, alone.items)
        assert [one.value for one in evaluation.scores] == pytest.approx(
            [one.value for one in alone.scores], rel=1e-5
        )
        assert evaluation.notes == alone.notes
        assert asked == total / ranks


def test_a_scoring_that_two_ranks_began_another_number_of_ranks_ends(last, tmp_path):
    folder, suite, published = last
    journal = tmp_path / "answers.jsonl"
    [(_, share), _] = together(scored, folder, suite, journal)
    written = {file.name: file.read_bytes() for file in sorted(tmp_path.iterdir())}
    assert list(written) == ["answers.jsonl", "answers.jsonl.1"]
    with open_journal(journal) as book:
        assert len(book) == 2 * share, "each answer once"
    # The second rank was cut down in the middle of a line, the first one is alone now.
    second = tmp_path / "answers.jsonl.1"
    second.write_bytes(written[second.name][: -len(written[second.name]) // 3])
    left = len(open_lines(journal)) + len(open_lines(second))
    evaluation, _ = scored(folder, suite, journal)
    minirun.assert_same_items(evaluation.items, published.items)
    added = len(open_lines(journal)) - len(written[journal.name].splitlines())
    assert added == 2 * share - left, "what the other rank knew is not asked again"


def open_lines(journal: Path) -> list[bytes]:
    """The whole lines of a file."""
    return [line for line in journal.read_bytes().splitlines(True) if line.endswith(b"\n")]


def test_what_stops_one_rank_of_a_scoring_stops_all(last, tmp_path):
    folder, suite, _ = last
    for said in together(_stopped, folder, suite, tmp_path / "answers.jsonl"):
        assert "no space" in said


def _stopped(folder, suite, journal):
    put = Journal.put

    def refused(journal, key, answer):
        if journal._place.name.endswith(".1"):
            raise UserError("no space")
        put(journal, key, answer)

    Journal.put = refused
    try:
        scored(folder, suite, journal)
    except UserError as error:
        return str(error)
    return "went on"
