"""A sweep: a grid of mixtures x seeds over shared stages, and what it decided.

    quickstart: pretrain once, then  math_heavy x {1, 2}  and  knowledge_heavy x {1, 2}
    ->  "math_heavy beats knowledge_heavy on micro-dev overall by 4.1 points [1.9, 6.3]"

Each cell runs in a process of its own with the recipe's thread count; a cell that fails is named
with its error and the others go on. The verdict pairs the final checkpoints' items, over all
seeds (evalsuite.stats.stratified_difference); an interval that holds zero is "not identified". What
it cannot do: correct for many comparisons, or tell how a mixture between two variants would do.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evalsuite import scorefiles
from evalsuite.errors import UserError
from evalsuite.files import write_json
from evalsuite.progress import Progress, silent
from evalsuite.records import ALL, ItemRow, Suite, Task
from trainloop.prepare import Prepared, deciding_suite
from trainloop.run import (
    Run,
    is_done,
    plan_stages,
    run_stages,
    score_folder,
    shared_stages,
    sweep_id,
)

if TYPE_CHECKING:
    from evalsuite.stats import Difference, Stratum


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Variant `a` against variant `b` on one capability, or on all of them (ALL)."""

    a: str
    b: str
    capability: str
    unit: str
    difference: float
    """a minus b, chance-corrected shares or bits per byte."""
    low: float
    high: float
    probability_better: float
    verdict: str
    """better, worse or not identified; of a, seen from b."""
    seeds: int
    items: int
    unpaired: int
    """Items left out because one side could not be scored."""


def run_sweep(prepared: Prepared, *, progress: Progress = silent) -> dict[str, Any]:
    """Train and score every cell, decide, and publish sweeps/<id>/sweep.json; returns its content.

    Raises UserError that names each failed cell; what finished is kept for the next try.
    """
    sweep = prepared.recipe.sweep
    if sweep is None:
        raise UserError(
            f"{prepared.recipe_file}: the recipe has no 'sweep'; run it with: "
            f"assay train {prepared.recipe_file}"
        )
    cells = [(variant, seed) for variant in sweep.variants for seed in sweep.seeds]
    shared = shared_stages(prepared.recipe)
    if shared:
        run_stages(prepared, seed=prepared.recipe.seed, stages=shared, progress=progress)
    runs = _run_cells(prepared, cells, progress)
    suite = deciding_suite(prepared)
    items = {
        cell: scorefiles.read_evaluation(score_folder(prepared, run.final, suite)).items
        for cell, run in runs.items()
    }
    comparisons = [
        comparison
        for a, b in combinations(sweep.variants, 2)
        for comparison in compare(
            a,
            b,
            [items[a, seed] for seed in sweep.seeds],
            [items[b, seed] for seed in sweep.seeds],
            suite,
        )
    ]
    result = {
        "id": sweep_id(prepared),
        "recipe": prepared.recipe.name,
        "stage": sweep.stage,
        "suite": suite.name,
        "variants": [{"name": n, "mixture": m} for n, m in sweep.variants.items()],
        "seeds": sweep.seeds,
        "runs": [
            {"variant": variant, "seed": seed, "run": run.id, "final": run.final}
            for (variant, seed), run in runs.items()
        ],
        "comparisons": [
            {name: getattr(row, name) for name in Comparison.__slots__} for row in comparisons
        ],
        "sentence": verdict_sentence(comparisons, suite),
    }
    write_json(prepared.root / "sweeps" / str(result["id"]) / "sweep.json", result)
    return result


def finished_cells(prepared: Prepared) -> tuple[int, int]:
    """How many cells of the sweep are trained and scored already, and how many there are."""
    assert prepared.recipe.sweep is not None
    sweep = prepared.recipe.sweep
    cells = [(variant, seed) for variant in sweep.variants for seed in sweep.seeds]
    return sum(_finished(prepared, *cell) is not None for cell in cells), len(cells)


def compare(
    a: str,
    b: str,
    rows_a: list[list[ItemRow]],
    rows_b: list[list[ItemRow]],
    suite: Suite,
) -> list[Comparison]:
    """Paired differences per capability and overall; `rows_x` holds one list of items per seed.

    Overall is the mean over capabilities of chance-corrected shares, each the mean of its
    tasks; capabilities in bits per byte have no share and stand alone.
    """
    result = []
    shares = [n for n, tasks in suite.capabilities.items() if tasks[0].unit == "share"]
    for capability in [ALL, *suite.capabilities] if shares else list(suite.capabilities):
        wanted = shares if capability == ALL else [capability]
        unit = "share" if capability == ALL else suite.capabilities[capability][0].unit
        result.append(_compare_on(a, b, rows_a, rows_b, suite, capability, wanted, unit))
    return result


def _compare_on(
    a: str,
    b: str,
    rows_a: list[list[ItemRow]],
    rows_b: list[list[ItemRow]],
    suite: Suite,
    capability: str,
    wanted: list[str],
    unit: str,
) -> Comparison:
    from evalsuite.stats import stratified_difference

    strata, seen = [], 0
    for name in wanted:
        tasks = suite.capabilities[name]
        for task in tasks:
            stratum, of_task = _stratum(rows_a, rows_b, task, 1 / (len(wanted) * len(tasks)))
            if stratum is None:
                raise UserError(
                    f"variants {a!r} and {b!r} cannot be compared on {suite.name}: too few items "
                    f"of task {task.task!r} are scored in all of their runs; see the errors in "
                    "the item rows"
                )
            strata.append(stratum)
            seen += of_task
    found: Difference = stratified_difference(strata)
    higher = unit == "share"
    p_better = found.probability_better if higher else 1 - found.probability_better
    verdict = "not identified"
    if found.low > 0 or found.high < 0:
        verdict = "better" if (found.low > 0) == higher else "worse"
    return Comparison(
        a=a,
        b=b,
        capability=capability,
        unit=unit,
        difference=found.difference,
        low=found.low,
        high=found.high,
        probability_better=p_better,
        verdict=verdict,
        seeds=found.seeds,
        items=found.items,
        unpaired=seen - found.items,
    )


def _stratum(
    rows_a: list[list[ItemRow]], rows_b: list[list[ItemRow]], task: Task, share: float
) -> tuple[Stratum | None, int]:
    """A task's items that every run scored (None below two), and how many items it has.

    Chance cancels in a difference but for the scale; items of bits per byte count by bytes.
    """
    from evalsuite.stats import Stratum

    runs = [[r for r in rows if r.task == task.task] for rows in rows_a + rows_b]
    scored = [{r.doc_id: r.value for r in run if r.value is not None} for run in runs]
    weight = {r.doc_id: r.weight for r in runs[0]}
    docs = sorted(set(scored[0]).intersection(*scored[1:]))
    items = len({r.doc_id for run in runs for r in run})
    if len(docs) < 2:
        return None, items
    values = [[found[doc] for doc in docs] for found in scored]
    stratum = Stratum(
        a=values[: len(rows_a)],
        b=values[len(rows_a) :],
        weights=[weight[doc] for doc in docs],
        factor=share / (1 - task.chance),
        range=1.0 if task.unit == "share" else 0.0,
    )
    return stratum, items


def verdict_sentence(comparisons: list[Comparison], suite: Suite) -> str:
    """What the sweep decided, in one line per pair of variants, that can be quoted.

    A suite of bits per byte alone has no overall; each of its capabilities gets a line.
    """
    lines = []
    for row in [row for row in comparisons if row.capability == ALL] or comparisons:
        share = row.unit == "share"
        scale, digits, unit = (100, 1, "points") if share else (1, 3, "bits per byte")
        where = "overall" if row.capability == ALL else f"on {row.capability}"
        size, low, high = (scale * x for x in (row.difference, row.low, row.high))
        basis = f"{row.items} items x {row.seeds} seeds of {suite.name}"
        if row.seeds == 1:
            basis = f"{row.items} items of {suite.name}, one seed: noise between seeds left out"
        if row.verdict == "not identified":
            lines.append(
                f"not identified: {row.a} minus {row.b} is {size:+.{digits}f} {unit} {where} "
                f"[{low:+.{digits}f}, {high:+.{digits}f}], an interval that holds zero ({basis})"
            )
            continue
        won, lost = (row.a, row.b) if row.verdict == "better" else (row.b, row.a)
        if size < 0:
            size, low, high = -size, -high, -low
        sure = max(row.probability_better, 1 - row.probability_better)
        lines.append(
            f"{won} beats {lost} {where} by {size:.{digits}f} {unit} "
            f"[{low:.{digits}f}, {high:.{digits}f}], "
            f"probability {'above 0.999' if sure > 0.999 else f'{sure:.3f}'} ({basis})"
        )
    return "; ".join(lines)


def capability_lines(result: dict[str, Any]) -> list[str]:
    """One line per pair of variants and capability of a sweep.json: who is ahead, how surely."""
    lines = []
    for row in result["comparisons"]:
        if row["capability"] == ALL:
            continue
        share = row["unit"] == "share"
        scale, unit = (100, "points") if share else (1, "bits per byte")
        size, low, high = (scale * row[name] for name in ("difference", "low", "high"))
        ahead, behind = row["a"], row["b"]
        if (size < 0) == share:
            ahead, behind = behind, ahead
        if size < 0:
            size, low, high = -size, -high, -low
        how = f"{ahead} {'above' if share else 'below'} {behind}"
        if size == 0:
            how = f"{ahead} and {behind} differ"
        sure = "" if row["verdict"] != "not identified" else ", not identified"
        lines.append(
            f"{row['capability']}: {how} by {size:.{1 if share else 3}f} {unit} "
            f"[{low:.{1 if share else 3}f}, {high:.{1 if share else 3}f}]{sure}"
        )
    return lines


def _run_cells(
    prepared: Prepared, cells: list[tuple[str, int]], progress: Progress
) -> dict[tuple[str, int], Run]:
    """Every cell's run; cells that are done already need no process."""
    done = {cell: run for cell in cells if (run := _finished(prepared, *cell)) is not None}
    todo = [cell for cell in cells if cell not in done]
    if todo:
        done |= _in_processes(prepared, todo, progress)
    return {cell: done[cell] for cell in cells}


def _finished(prepared: Prepared, variant: str, seed: int) -> Run | None:
    plans = plan_stages(prepared, variant=variant, seed=seed)
    if not all(is_done(prepared, plan) for plan in plans):
        return None
    return run_stages(prepared, variant=variant, seed=seed)


def _in_processes(
    prepared: Prepared, cells: list[tuple[str, int]], progress: Progress
) -> dict[tuple[str, int], Run]:
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = max(1, min(len(cells), (cores or 1) // prepared.recipe.cpu_threads))
    label = f"sweep {prepared.recipe.name}: {len(cells)} cells"
    runs: dict[tuple[str, int], Run] = {}
    failed: list[str] = []
    progress(label, 0, len(cells))
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(reports, os.getpid())
    ) as pool:
        waiting: dict[Future[Run], tuple[str, int]] = {
            pool.submit(_run_cell, prepared, *cell): cell for cell in cells
        }
        while waiting:
            finished, _ = wait(waiting, timeout=0.2)
            _show_reports(reports, progress)
            for future in finished:
                cell = waiting.pop(future)
                try:
                    runs[cell] = future.result()
                except UserError as error:
                    failed.append(f"{cell[0]} seed {cell[1]}: {error}")
                except BrokenProcessPool:
                    failed.append(f"{cell[0]} seed {cell[1]}: its process died (out of memory?)")
                except Exception as error:
                    why = " ".join(f"{type(error).__name__}: {error}".split())
                    failed.append(f"{cell[0]} seed {cell[1]}: {why}")
                progress(label, len(cells) - len(waiting), len(cells))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed ({'; '.join(failed)}); the others are "
            "kept: mend the cause and run the same command again"
        )
    return runs


_reports: Any = None
"""In a worker process: the queue to the display in the parent."""


def _start_worker(reports: Any, parent: int) -> None:
    global _reports
    _reports = reports

    def die_with_parent() -> None:
        # A worker that outlives a killed sweep would train beside its successor.
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()


def _run_cell(prepared: Prepared, variant: str, seed: int) -> Run:
    return run_stages(prepared, variant=variant, seed=seed, progress=_report)


def _report(label: str, done: float, total: float) -> None:
    _reports.put((label, done, total))


def _show_reports(reports: Any, progress: Progress) -> None:
    while True:
        try:
            progress(*reports.get_nowait())
        except queue.Empty:
            return
