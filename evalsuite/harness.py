"""Score a model on a suite with lm-eval's tasks, in this process; the only importer of lm_eval.

    score("runs/checkpoints/ab12", load_suite("micro-dev"))             a model folder
    score(model, suite, tokenizer=tokenizer, mirror=Path("../shared"))  a live model

lm-eval renders prompts, runs the model, extracts answers and judges them; this module finds
tasks without lm-eval's slow index, serves their data through `hubdata`, keeps each doc's result
and puts the process back as it was (random state, train mode, tokenizer).

Every doc of a task gets the same few-shots (its own text left out), whatever the limit, the
order or the batch size. A doc that yields no number, or whose model gives none (NaN, infinite),
is attempted and not scored, with its error. `bits_per_byte` is ours: bits of the scored text over
its bytes, for every task that asks for loglikelihoods of one gold text.

It cannot score tasks with pictures or sound, tasks that run generated code, or primary metrics
that are no mean over docs. It runs on one process: under a distributed launch one rank calls it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean as lm_eval_mean
from lm_eval.api.metrics import nanmean as lm_eval_nanmean
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from evalsuite import hubdata
from evalsuite.aggregate import BITS, Cell, Measured, all_scores
from evalsuite.docresults import Doc, gold_bits, gold_text, number, output_text, plain
from evalsuite.errors import UserError, did_you_mean
from evalsuite.files import content_id
from evalsuite.livemodel import (
    load_model,
    modes_put_back,
    no_number_steps,
    quiet,
    random_state_put_back,
)
from evalsuite.progress import Progress, silent
from evalsuite.records import Evaluation, ItemRow, Suite, Task
from evalsuite.taskfiles import find_task

FEWSHOT_SEED = 1234
_NO_NUMBERS = "the model gives NaN or infinite numbers"
_LIKELIHOOD = ("loglikelihood", "multiple_choice", "loglikelihood_rolling")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """A task with its docs, prompts and requests, ready for any model."""

    task: Task
    lm_task: Any
    docs: list[Doc]
    requests: list[list[Instance]]
    """Per doc; `resps` stay empty here, each evaluation works on copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cost:
    """What one request took."""

    tokens: int
    truncated: bool = False
    error: str | None = None


def score(
    model: transformers.PreTrainedModel | str | Path,
    suite: Suite,
    *,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    mirror: Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
    dirty: Mapping[str, Collection[int]] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Run every task of `suite` on `model`: a Score per metric and subset, a row per doc.

    `limit` keeps the first docs of each task; scores that it cut are marked partial. `dirty`
    names the docs (task -> doc ids) that stand in training data; scores of the clean and dirty
    subsets then follow those of all docs. A folder is loaded to `device` (by default a GPU when
    there is one); a live model stays where it is.

    Raises UserError before the first model call for an unknown task, metric or filter and for
    data that cannot be had; afterwards when every doc of a task fails with an exception.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, but must be 1 or more")
    if batch_size < 1:
        raise UserError(f"batch size is {batch_size}, but must be 1 or more")
    prepared = [(capability, prepare(task, mirror)) for capability, task in suite.tasks]
    unknown = sorted(set(dirty or ()) - {task.task for _, task in suite.tasks})
    if unknown:
        raise UserError(f"dirty docs of task {unknown[0]!r}, which suite {suite.name!r} lacks")
    with ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(random_state_put_back())
        if isinstance(model, (str, Path)):
            model, tokenizer = load_model(model, mirror=mirror, device=device)
        elif tokenizer is None:
            raise UserError("a live model needs its tokenizer: score(model, suite, tokenizer=...)")
        stack.enter_context(modes_put_back(model))
        lm = _LM(model, tokenizer, batch_size)
        for _, ready in prepared:
            _check_room(ready, lm)
        meter = _Meter(f"score {suite.name}", prepared, limit, progress)
        measured = []
        for capability, ready in prepared:
            lm.tick = meter.tick
            measured.append(_measure(capability, ready, lm, limit))
            meter.task_done()
    scores = all_scores(suite, measured, dirty)
    items = [row for one in measured for row in one.rows]
    return Evaluation(suite=suite, scores=scores, items=items)


def docs(suite: Suite, *, mirror: Path | None = None) -> Iterator[Doc]:
    """Every doc that scoring the suite looks at, task after task."""
    for capability, task in suite.tasks:
        for doc in prepare(task, mirror).docs:
            yield dataclasses.replace(doc, capability=capability)


# --- tasks -------------------------------------------------------------------------------------


def prepare(task: Task, mirror: Path | None) -> _Prepared:
    """The task with its docs and prompts; kept for the process, as no model changes it."""
    hubdata.load_map(mirror)  # a mirror that is no folder is named as the user named it
    return _prepare(task, mirror.resolve() if mirror is not None else None)


@lru_cache(maxsize=512)
def _prepare(task: Task, mirror: Path | None) -> _Prepared:
    with quiet(), random_state_put_back():
        lm_task = _load_task(task, mirror)
        _check_metric(task, lm_task)
        found = [dict(doc) for doc in lm_task.eval_docs]
        if not found:
            raise UserError(f"task {task.task!r} has no docs to score")
        docs, requests = [], []
        for doc_id, doc in enumerate(found[: task.docs]):
            try:
                docs.append(_render(task, lm_task, doc_id, doc))
                requests.append(_requests(task, lm_task, doc_id, doc))
            except Exception as error:
                raise UserError(
                    f"task {task.task!r}, doc {doc_id}: its prompt cannot be built "
                    f"({type(error).__name__}: {_one_line(error)})"
                ) from error
    return _Prepared(task=task, lm_task=lm_task, docs=docs, requests=requests)


def _load_task(task: Task, mirror: Path | None) -> Any:
    """lm-eval's object for a task, with our data, split and shots in place of its own."""
    path = find_task(task.task)
    try:
        definition = load_yaml(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a task ({_one_line(error)})") from error
    splits = _Splits(definition, mirror)
    definition |= _scored_split(task, definition)
    definition["num_fewshot"] = task.shots
    if "class" in definition:
        definition["class"] = _served(definition["class"], splits)
    elif definition.get("custom_dataset") is None:
        definition["custom_dataset"] = lambda **_: splits
    try:
        manager = TaskManager(include_defaults=False)
        [lm_task] = manager.load(definition)["tasks"].values()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"task {task.task!r} ({path}) cannot be set up "
            f"({type(error).__name__}: {_one_line(error)})"
        ) from error
    if getattr(lm_task, "MULTIMODAL", False) or getattr(lm_task, "UNSAFE_CODE", False):
        raise UserError(f"task {task.task!r} needs pictures, sound or running generated code")
    lm_task.set_config(key="num_fewshot", value=task.shots)
    return lm_task


def _scored_split(task: Task, definition: dict[str, Any]) -> dict[str, Any]:
    """What to change in a task so that it scores our split and reads no split it needs not."""
    changed: dict[str, Any] = {}
    split = task.split or definition.get("test_split") or definition.get("validation_split")
    if split is not None:
        changed["test_split"] = split
    if task.shots == 0:
        changed |= {"training_split": None, "validation_split": None, "fewshot_split": None}
        changed["fewshot_config"] = None
    return changed


def _served(base: type, splits: _Splits) -> type:
    """A task written as a Python class, its download replaced by our data."""

    def download(self: Any, *args: Any, **kwargs: Any) -> None:
        splits.path = splits.path or self.DATASET_PATH
        splits.name = splits.name or self.DATASET_NAME
        self.dataset = splits

    return type(base.__name__, (base,), {"download": download})


class _Splits(dict[str, Any]):
    """Split -> Dataset, read through hubdata when a task first asks for it."""

    def __init__(self, definition: dict[str, Any], mirror: Path | None) -> None:
        super().__init__()
        self.path: str | None = definition.get("dataset_path")
        self.name: str | None = definition.get("dataset_name")
        self.mirror = mirror

    def __missing__(self, split: str) -> datasets.Dataset:
        if self.path is None:
            raise UserError("the task names no dataset_path")
        rows = hubdata.rows(self.path, self.name, split, mirror=self.mirror)
        self[split] = datasets.Dataset.from_list(rows)
        return self[split]


def _check_metric(task: Task, lm_task: Any) -> None:
    """UserError for a metric or filter the task lacks, or that is no mean over docs."""
    filters = [one.name for one in lm_task._filters]
    if task.filter not in filters:
        raise UserError(
            f"task {task.task!r} has no filter {task.filter!r}" + did_you_mean(task.filter, filters)
        )
    if (task.metric == BITS) != (task.unit == "bits"):
        raise UserError(
            f"task {task.task!r}: unit is {task.unit!r} with metric {task.metric!r}, "
            f"but bits go with {BITS} and shares with all others"
        )
    known = set(getattr(lm_task, "_metric_fn_list", lm_task.aggregation()))
    if getattr(lm_task, "OUTPUT_TYPE", None) in _LIKELIHOOD:
        known.add(BITS)
    if task.metric not in known:
        raise UserError(
            f"task {task.task!r} has no metric {task.metric!r}" + did_you_mean(task.metric, known)
        )
    if task.metric != BITS and not _is_mean(lm_task, task.metric):
        good = sorted(name for name in known if name == BITS or _is_mean(lm_task, name))
        raise UserError(
            f"task {task.task!r}: metric {task.metric!r} is no mean over docs, so it cannot be "
            f"its primary metric; those that can: {', '.join(good) or 'none'}"
        )


def _is_mean(lm_task: Any, metric: str) -> bool:
    return lm_task.aggregation().get(metric) in (lm_eval_mean, lm_eval_nanmean)


def _render(task: Task, lm_task: Any, doc_id: int, doc: dict[str, Any]) -> Doc:
    rolling = lm_task.OUTPUT_TYPE == "loglikelihood_rolling"
    text = lm_task.doc_to_text(doc)
    has_choices = getattr(lm_task.config, "doc_to_choice", None) is not None
    choices = [str(choice) for choice in lm_task.doc_to_choice(doc)] if has_choices else []
    return Doc(
        capability="",
        task=task.task,
        doc_id=doc_id,
        doc=doc,
        text=text if isinstance(text, str) else "",
        choices=choices,
        target=lm_task.doc_to_target(doc),
        rolling=rolling,
    )


def _requests(task: Task, lm_task: Any, doc_id: int, doc: dict[str, Any]) -> list[Instance]:
    lm_task.set_fewshot_seed(FEWSHOT_SEED)
    context = lm_task.fewshot_context(doc, task.shots, gen_prefix=lm_task.doc_to_prefix(doc))
    made = lm_task.construct_requests(
        doc=doc, ctx=context, metadata=(task.task, doc_id, lm_task.config.repeats or 1)
    )
    return made if isinstance(made, list) else [made]


# --- the model ---------------------------------------------------------------------------------


class _LM(HFLM):
    """lm-eval's Hugging Face model on a live model, telling what each request took."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            backend="causal",
        )
        self.tick = lambda rows: None
        self._chunk: tuple[str, ...] = ()
        self._chunk_lengths: list[int] = []
        self._generated: dict[str, _Cost] = {}

    def run(self, kind: str, requests: list[Instance]) -> list[tuple[Any, _Cost]]:
        """Response and cost of each request, in order; `kind` is lm-eval's request type."""
        if kind == "loglikelihood":
            return self._likelihoods(requests)
        if kind == "loglikelihood_rolling":
            answers = self.loglikelihood_rolling(requests, disable_tqdm=True)
            costs = [
                _Cost(tokens=len(self.tok_encode(one.args[0])), error=_no_number(answer))
                for one, answer in zip(requests, answers, strict=True)
            ]
        else:
            self._generated.clear()
            answers = self.generate_until(requests, disable_tqdm=True)
            costs = [self._generated[one.args[0]] for one in requests]
        return list(zip(answers, costs, strict=True))

    def _likelihoods(self, requests: list[Instance]) -> list[tuple[Any, _Cost]]:
        """Like HFLM.loglikelihood, but a continuation that cannot be scored stops only its doc."""
        encoded, costs = [], []
        for one in requests:
            context, continuation = one.args
            if context == "":
                after = self.tok_encode(continuation, add_special_tokens=False)
                before = [self.prefix_token_id]
                if after[:1] == before:
                    before, after = after[:1], after[1:]
            else:
                before, after = self._encode_pair(context, continuation)
            total = len(before) + len(after)
            error = None
            if not after or not before:
                error = "the text to score has no tokens of its own"
            elif len(after) > self.max_length:
                error = f"{len(after)} tokens to score, the model's context is {self.max_length}"
            costs.append(
                _Cost(
                    tokens=0 if error else min(total, self.max_length + 1),
                    truncated=total > self.max_length + 1,
                    error=error,
                )
            )
            encoded.append(((context, continuation), before, after))
        sound = [pair for pair, cost in zip(encoded, costs, strict=True) if cost.error is None]
        answers = iter(self._loglikelihood_tokens(sound, disable_tqdm=True) if sound else [])
        done: list[tuple[Any, _Cost]] = []
        for cost in costs:
            answer = (math.nan, False) if cost.error else next(answers)
            error = cost.error or _no_number(answer[0])
            done.append((answer, dataclasses.replace(cost, error=error)))
        return done

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = super()._model_call(inps, *args, **kwargs)
        self.tick(len(inps))
        return logits

    def tok_batch_encode(
        self,
        strings: Any,
        padding_side: str = "left",
        left_truncate_len: Any = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        self._chunk = tuple(strings)
        self._chunk_lengths = [len(self.tok_encode(text)) for text in strings]
        return ids, mask

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> Any:
        with torch.no_grad(), no_number_steps(self.model) as steps:
            out = super()._model_generate(context, max_length, stop, **kwargs)
        broken = torch.stack(steps, dim=1).view(len(context), -1, len(steps)).any(dim=1).tolist()
        ends = self.model.generation_config.eos_token_id
        eos = {self.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        rows = zip(
            self._chunk,
            self._chunk_lengths,
            out[:, context.shape[1] :].tolist(),
            broken,
            strict=True,
        )
        for text, length, written, wrong in rows:
            count, ended = self._until_end(written, stop, eos)
            cut = length > context.shape[1]
            self._generated[text] = _Cost(
                tokens=min(length, context.shape[1]) + count,
                truncated=cut or not ended,
                error=_NO_NUMBERS if any(wrong[:count]) else None,
            )
        self.tick(len(context))
        return out

    def _until_end(self, written: list[int], stop: list[str], eos: set[Any]) -> tuple[int, bool]:
        """(tokens up to and with the end, whether there is one); others of the batch ran on."""
        last = next((place + 1 for place, token in enumerate(written) if token in eos), None)
        whole = written[:last]

        def stopped(count: int) -> bool:
            text = self.tok_decode(whole[:count], skip_special_tokens=False)
            return any(mark in text for mark in stop if mark)

        if not stopped(len(whole)):
            return len(whole), last is not None
        low, high = 1, len(whole)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if stopped(middle) else (middle + 1, high)
        return low, True


def _no_number(loglikelihood: float) -> str | None:
    """What is wrong with a log-likelihood, if anything."""
    return None if math.isfinite(loglikelihood) else _NO_NUMBERS


def _check_room(ready: _Prepared, lm: _LM) -> None:
    """UserError when a task asks for as many new tokens as the model's whole context."""
    for one in ready.requests[0]:
        if one.request_type == "generate_until":
            asked = normalize_gen_kwargs(one.args[1], lm.max_gen_toks)["max_gen_toks"]
            if asked >= lm.max_length:
                raise UserError(
                    f"task {ready.task.task!r} asks for up to {asked} new tokens, but the model's "
                    f"context is {lm.max_length}; lower max_gen_toks in a task of your own"
                )


# --- one task on one model ---------------------------------------------------------------------


def _measure(capability: str, ready: _Prepared, lm: _LM, limit: int | None) -> Measured:
    """Ask the model everything a task wants and judge each doc."""
    task, lm_task = ready.task, ready.lm_task
    kept = ready.docs[:limit]
    asked = [
        [dataclasses.replace(one, resps=[], filtered_resps={}) for one in ones]
        for ones in ready.requests[:limit]
    ]
    costs = _ask(lm, [one for ones in asked for one in ones])
    lm_task._instances = [one for ones in asked for one in ones]
    try:
        lm_task.apply_filters()
    except Exception as error:
        raise UserError(
            f"task {task.task!r}: its filters fail ({type(error).__name__}: {_one_line(error)})"
        ) from error
    finally:
        lm_task._instances = None
    judged = [
        _judge(ready, doc, ones, [costs[id(one)] for one in ones])
        for doc, ones in zip(kept, asked, strict=True)
    ]
    if all(isinstance(verdict.failure, Exception) for verdict in judged):
        first = judged[0].failure
        raise UserError(
            f"task {task.task!r} cannot be scored: every doc fails, the first with "
            f"{type(first).__name__}: {_one_line(first)}"
        ) from first
    cells: dict[tuple[str, str], list[Cell | None]] = {}
    opaque: dict[tuple[str, str], list[Any]] = {}
    keys = {key for verdict in judged for key in verdict.cells}
    for key in keys | {(task.metric, task.filter)}:
        cells[key] = [verdict.cells.get(key) for verdict in judged]
    for key in {key for verdict in judged for key in verdict.opaque} - cells.keys():
        opaque[key] = [verdict.opaque.get(key) for verdict in judged]
    return Measured(
        capability=capability,
        task=task,
        rows=[
            _row(capability, ready, doc, ones, verdict)
            for doc, ones, verdict in zip(kept, asked, judged, strict=True)
        ],
        cells=cells,
        opaque=opaque,
        combine=lm_task.aggregation(),
        partial=len(kept) < len(ready.docs),
    )


def _ask(lm: _LM, requests: list[Instance]) -> dict[int, _Cost]:
    """Fill each request's `resps`; what each took, by its id()."""
    kinds: dict[str, list[Instance]] = defaultdict(list)
    for one in requests:
        kinds[one.request_type].extend([one] * (one.repeats or 1))
    costs: dict[int, _Cost] = {}
    for kind, ones in kinds.items():
        for one, (answer, cost) in zip(ones, lm.run(kind, ones), strict=True):
            one.resps.append(answer)
            so_far = costs.get(id(one), _Cost(tokens=0))
            costs[id(one)] = _Cost(
                tokens=so_far.tokens + cost.tokens,
                truncated=so_far.truncated or cost.truncated,
                error=so_far.error or cost.error,
            )
    return costs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """What one doc got."""

    cells: dict[tuple[str, str], Cell]
    opaque: dict[tuple[str, str], Any]
    tokens: int
    truncated: bool
    error: str | None
    failure: Exception | None


def _judge(ready: _Prepared, doc: Doc, ones: list[Instance], costs: list[_Cost]) -> _Verdict:
    cells: dict[tuple[str, str], Cell] = {}
    opaque: dict[tuple[str, str], Any] = {}
    failure: Exception | None = None
    error = next((cost.error for cost in costs if cost.error), None)
    ordered = sorted(ones, key=lambda one: one.idx)
    for name in ones[0].filtered_resps if error is None else ():
        answers = [one.filtered_resps[name] for one in ordered]
        try:
            results = ready.lm_task.process_results(copy.deepcopy(doc.doc), answers)
        except Exception as problem:  # recorded as the doc's error, never as a number
            failure, error = problem, f"{type(problem).__name__}: {_one_line(problem)}"
            continue
        for metric, raw in results.items():
            cell = number(metric, raw)
            if cell is not None and (metric == BITS or _is_mean(ready.lm_task, metric)):
                cells[metric, name] = cell
            elif raw is not None and not _is_mean(ready.lm_task, metric) and metric != BITS:
                opaque[metric, name] = raw
        bits = gold_bits(doc, ordered, answers)
        if bits is not None:
            cells.setdefault((BITS, name), bits)
    if error is None and (ready.task.metric, ready.task.filter) not in cells:
        error = f"{ready.task.metric} is no number"
    return _Verdict(
        cells=cells,
        opaque=opaque,
        tokens=sum(cost.tokens for cost in costs),
        truncated=any(cost.truncated for cost in costs),
        error=error,
        failure=failure,
    )


def _row(
    capability: str, ready: _Prepared, doc: Doc, ones: list[Instance], verdict: _Verdict
) -> ItemRow:
    task = ready.task
    primary = verdict.cells.get((task.metric, task.filter))
    prompt = str(ones[0].args[0])
    return ItemRow(
        capability=capability,
        task=task.task,
        doc_id=doc.doc_id,
        doc_hash=content_id(plain(doc.doc)),
        prompt_hash=content_id(prompt),
        prompt=prompt,
        gold=gold_text(doc),
        output=output_text(task, doc, ones),
        value=None if primary is None or verdict.error is not None else primary.value,
        metrics={f"{metric},{name}": cell.value for (metric, name), cell in verdict.cells.items()},
        weight=1.0 if primary is None else primary.weight,
        truncated=verdict.truncated,
        tokens=verdict.tokens,
        error=verdict.error,
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


class _Meter:
    """Counts forward rows into one Progress over all tasks."""

    def __init__(
        self, label: str, prepared: list[Any], limit: int | None, progress: Progress
    ) -> None:
        self.sizes = [sum(map(len, ready.requests[:limit])) for _, ready in prepared]
        self.label, self.progress, self.done, self.base = label, progress, 0, 0
        self.total = sum(self.sizes)
        self.left = list(self.sizes)

    def tick(self, rows: int) -> None:
        """`rows` more rows went through the model; never past the current task's share."""
        self.done = min(self.done + rows, self.base + self.left[0])
        self.progress(self.label, min(self.done, self.total - 1), self.total)

    def task_done(self) -> None:
        """The current task is over, however few rows it took."""
        self.base += self.left.pop(0)
        self.done = self.base
        self.progress(self.label, self.done, self.total)
