"""Score a model on a suite with lm-eval's tasks, in this process; the only importer of lm_eval.

    score("runs/checkpoints/ab12", load_suite("micro-dev"))             a model folder
    score(model, suite, tokenizer=tokenizer, mirror=Path("../shared"))  a live model
    score("local-completions:model=m,base_url=http://127.0.0.1:8000/v1/completions", suite)

lm-eval renders prompts, extracts answers and judges them; this module finds tasks without
lm-eval's slow index, serves their data through `hubdata`, has the model answer (`prefix_lm`,
`generation`, or any backend of lm-eval) and puts the process back as it was (random state, train
mode, tokenizer). `python -m evalsuite.harness run --model assay ...` is lm-eval's own command with
our model class beside its own.

Every doc of a task gets the same few-shots (its own text left out), whatever the limit, the
order or the batch size. A doc that yields no number, or whose model gives none (NaN, infinite),
is attempted and not scored, with its error. `bits_per_byte` is ours: bits of the scored text over
its bytes, for every task that asks for loglikelihoods of one gold text.

It cannot score tasks with pictures or sound, lm-eval's own tasks that run generated code (ours
have a verifier with a sandbox), or primary metrics that are no mean over docs. Processes that were
launched together share a suite's docs (shares.py) when each calls `score` with its rank.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import datasets
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean as lm_eval_mean
from lm_eval.api.metrics import nanmean as lm_eval_nanmean
from lm_eval.api.registry import get_model, register_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.models import MODEL_MAPPING
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import env as lm_eval_templates
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evalsuite import hubdata, verifiers
from evalsuite.aggregate import Measured, all_scores
from evalsuite.askers import Backend, Chat, Live, no_number
from evalsuite.checks import check_draws, check_metric, check_rows
from evalsuite.docresults import Doc
from evalsuite.errors import UserError, did_you_mean
from evalsuite.files import canonical_json, content_id, sha256_file
from evalsuite.journal import Journal, open_journal
from evalsuite.livemodel import (
    load_model,
    modes_put_back,
    quiet,
    random_state_put_back,
)
from evalsuite.measure import ask, measure, requests_of
from evalsuite.picks import picked
from evalsuite.prepared import WRITTEN, Asked, Lazily, Prepared, one_line
from evalsuite.progress import Meter, Progress, silent
from evalsuite.prompts import render, requests_of_doc, told_by_doc, unconditioned
from evalsuite.records import Evaluation, Suite, Task, as_json
from evalsuite.shares import Shares, alone
from evalsuite.taskfiles import definition_hash, find_task


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
    journal: Path | None = None,
    model_id: str | None = None,
    allow_missing: bool = False,
    progress: Progress = silent,
    ranks: tuple[int, int] = (0, 1),
    gather: Callable[[Any], list[Any]] = alone,
) -> Evaluation:
    """Run every task of `suite` on `model`: a Score per metric and subset, a row per doc.

    A model is a folder, a hub name, a .gguf file, a backend of lm-eval as "name:key=value,...", or
    a live model with its tokenizer. `limit` keeps so many docs of each task, spread over it
    (picks.py); scores that it cut are marked partial. `dirty` names the docs (task -> doc ids)
    that stand in training data; scores of the clean and dirty subsets then follow those of all
    docs. A folder is loaded to `device` (by default a GPU when there is one); a live model stays
    where it is.

    `journal` is a file that takes each answer as it comes: called again with it, only what is
    missing is asked. Answers are kept under `model_id`, by default a hash of the model folder's
    files; a live model must bring its own. With `allow_missing` a task that cannot be set up is
    shown as missing, with the reason, instead of ending the run.

    Under a distributed launch every rank calls with its (rank, number of ranks) and a `gather`
    that hands each the values of all: each has its share of the docs answered by its own whole
    model, rank 0 judges, and all get the same evaluation.

    Raises UserError before the first model call for an unknown task, metric or filter and for
    data that cannot be had; afterwards when every doc of a task fails with an exception.
    """
    _check_arguments(suite, limit, batch_size, dirty)
    missing: dict[str, str] = {}
    _drop_stale(mirror)
    for _, task in suite.tasks:
        try:
            prepare(task, mirror)
            if task.verifier is not None:
                verifiers.check_able(task.verifier)
        except UserError as error:
            if not allow_missing:
                raise
            missing[task.task] = str(error)
    name = model_id or (_model_id(str(model), mirror) if isinstance(model, (str, Path)) else None)
    if name is None and journal is not None:
        raise UserError("a live model needs a model_id to keep its answers under")
    with ExitStack() as stack:
        stack.enter_context(_rendering())
        asker = stack.enter_context(_asker(model, tokenizer, mirror, batch_size, device))
        plan: list[tuple[str, Task, Prepared | None, list[int]]] = []
        for capability, task in suite.tasks:
            if task.task in missing:
                plan.append((capability, task, None, []))
                continue
            ready = prepare(task, mirror, chat=asker.chat(task.task) if task.chat else None)
            asker.check(ready)
            plan.append((capability, task, ready, picked(ready.rows, limit, strata=task.strata)))
        # the same weights in other digits, or on another device, may answer otherwise
        told = f"{name} {asker.kind}"
        team = Shares(*ranks, gather)
        shares = [(ready, team.mine(places)) for _, _, ready, places in plan if ready]
        total = sum(requests_of(ready, places) for ready, places in shares)
        meter = Meter(f"score {suite.name}", total, progress)

        def asked(ready: Prepared, places: list[int], book: Journal) -> Asked:
            return ask(ready, places, asker, book, model=told, tick=meter.tick)

        def judged(book: Journal) -> Evaluation:
            measured = [
                measure(capability, found, asked(found, places, book))
                if found
                else Measured.missing(capability, task)
                for capability, task, found, places in plan
            ]
            return Evaluation(
                suite=suite,
                scores=all_scores(suite, measured, dirty),
                items=[row for one in measured for row in one.rows],
                missing=missing,
                notes=[],
            )

        with open_journal(journal, rank=team.rank) as own:
            book = team.pooled(own, lambda: [asked(*share, own) for share in shares])
            evaluation = team.by_first(lambda: judged(book))
        meter.end()
    return dataclasses.replace(evaluation, notes=team.union(asker.notes))


def docs(suite: Suite, *, mirror: Path | None = None) -> Iterator[Doc]:
    """Every doc that scoring the suite looks at, task after task."""
    for capability, task in suite.tasks:
        ready = prepare(task, mirror)
        with _rendering():
            rendered = list(ready.docs)
        for doc in rendered:
            yield dataclasses.replace(doc, capability=capability)


def _check_arguments(
    suite: Suite,
    limit: int | None,
    batch_size: int,
    dirty: Mapping[str, Collection[int]] | None,
) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, but must be 1 or more")
    if batch_size < 1:
        raise UserError(f"batch size is {batch_size}, but must be 1 or more")
    unknown = sorted(set(dirty or ()) - {task.task for _, task in suite.tasks})
    if unknown:
        raise UserError(f"dirty docs of task {unknown[0]!r}, which suite {suite.name!r} lacks")


# --- tasks -------------------------------------------------------------------------------------

_prepared: dict[tuple[str, Path | None, str], Prepared] = {}
"""Tasks that were set up in this process: no model changes one."""
_stamps: dict[Path, str | None] = {}
"""Each mirror's mark when tasks were last set up from it."""


def _drop_stale(mirror: Path | None) -> None:
    """Forget the tasks set up from a mirror whose files have changed since."""
    if mirror is None:
        return
    where, stamp = mirror.resolve(), hubdata.mirror_stamp(mirror)
    if _stamps.get(where) != stamp:
        for key in [key for key in _prepared if key[1] == where]:
            del _prepared[key]
        _stamps[where] = stamp


def prepare(task: Task, mirror: Path | None, chat: Chat | None = None) -> Prepared:
    """The task with its docs and prompts; kept for the process, as no model changes it.

    `chat` writes messages the way the model wants them; only a task with `chat` uses it.
    """
    hubdata.load_map(mirror)  # a mirror that is no folder is named as the user named it
    where = mirror.resolve() if mirror is not None else None
    own = [
        (split, Path(file).stat().st_mtime_ns if Path(file).is_file() else None)
        for split, file in sorted(task.data.items())
    ]
    made_of = [as_json(task), own, find_task(task.task).stat().st_mtime_ns]
    key = (canonical_json(made_of), where, chat.key if chat is not None and task.chat else "")
    if key not in _prepared:
        if len(_prepared) >= 512:
            _prepared.clear()
        _prepared[key] = _prepare(task, where, chat)
    return _prepared[key]


def _prepare(task: Task, mirror: Path | None, chat: Chat | None) -> Prepared:
    with _rendering():
        lm_task = _load_task(task, mirror)
        means = _means(lm_task)
        check_metric(task, lm_task, means)
        check_draws(task, lm_task)
        found = [dict(doc) for doc in lm_task.eval_docs]
        if not found:
            raise UserError(f"task {task.task!r} has no docs to score")
        found = found[: task.docs]
        check_rows(task, found)

        def requests(place: int) -> list[Instance]:
            return requests_of_doc(task, lm_task, place, found[place], chat)

        ready = Lazily(len(found), told_by_doc(task, requests))
        uncond = task.metric == "acc_uncond"
        return Prepared(
            task=task,
            definition=_definition(task),
            lm_task=lm_task,
            rows=found,
            docs=Lazily(
                len(found),
                told_by_doc(task, lambda place: render(task, lm_task, place, found[place])),
            ),
            requests=ready,
            alone=Lazily(
                len(found), lambda at: unconditioned(lm_task, ready[at]) if uncond else []
            ),
            means=means,
        )


def _definition(task: Task) -> str:
    """Hash of all about a task that changes an answer or a prompt."""
    told = {k: v for k, v in as_json(task).items() if k not in ("differs", "data", "docs")}
    return content_id([definition_hash([task.task]), told])


@contextmanager
def _rendering() -> Iterator[None]:
    """Quiet, no draws left behind, and each template compiled once, not once per doc."""
    with quiet(), random_state_put_back():
        compiled = lm_eval_templates.from_string
        lm_eval_templates.from_string = lru_cache(maxsize=1024)(compiled)
        try:
            yield
        finally:
            lm_eval_templates.from_string = compiled


def check(task: Task) -> list[tuple[str, str | None, str]]:
    """Resolve a task, its metric and its filter without its data; what it would read of it.

    Returns (data set, config, split) of each split. Raises UserError as `score` does for a task,
    metric or filter that is not there.
    """
    with _rendering():
        lm_task = _set_up(task, None, bare=True)
        check_metric(task, lm_task, _means(lm_task))
    config, few = lm_task.config, lm_task.fewshot_cfg
    if task.data or config.custom_dataset is not None:
        return []
    splits = [config.test_split or config.validation_split]
    if task.shots and few.split:
        splits.append(few.split)
    elif task.shots and few.samples is None:
        splits.append(config.training_split or config.validation_split or config.test_split)
    return [(config.dataset_path, config.dataset_name, one) for one in dict.fromkeys(splits) if one]


def _load_task(task: Task, mirror: Path | None) -> Any:
    """lm-eval's object for a task, with our data, split and shots in place of its own."""
    return _set_up(task, mirror, bare=False)


def _set_up(task: Task, mirror: Path | None, *, bare: bool) -> Any:
    path = find_task(task.task)
    try:
        definition = load_yaml(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a task ({one_line(error)})") from error
    splits = _Splits(definition, task, mirror)
    definition |= _scored_split(task, definition)
    definition["num_fewshot"] = task.shots
    if task.generation:
        definition["generation_kwargs"] = {
            **(definition.get("generation_kwargs") or {}),
            **({"do_sample": True} if task.generation.get("temperature", 0) > 0 else {}),
            **task.generation,
        }
    base = definition.get("class")
    if bare:
        definition["class"] = _Bare if base is None else type(base.__name__, (_Bare, base), {})
    elif base is not None:
        definition["class"] = _served(base, splits)
    elif task.data or definition.get("custom_dataset") is None:
        definition["custom_dataset"] = lambda **_: splits
    try:
        manager = TaskManager(include_defaults=False)
        [lm_task] = manager.load(definition)["tasks"].values()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"task {task.task!r} ({path}) cannot be set up "
            f"({type(error).__name__}: {one_line(error)})" + _data_hint(task)
        ) from error
    if getattr(lm_task, "MULTIMODAL", False):
        raise UserError(f"task {task.task!r} needs pictures or sound")
    if getattr(lm_task, "UNSAFE_CODE", False) and task.verifier is None:
        raise UserError(
            f"task {task.task!r} runs generated code where it stands; name verifier: programs, "
            "which runs it in the sandbox"
        )
    lm_task.set_config(key="num_fewshot", value=task.shots)
    return lm_task


def _data_hint(task: Task) -> str:
    if not task.data:
        return ""
    files = ", ".join(sorted(task.data.values()))
    return f"; do its data ({files}) have the columns that the task's templates read?"


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

    def __init__(self, definition: dict[str, Any], task: Task, mirror: Path | None) -> None:
        super().__init__()
        self.path: str | None = definition.get("dataset_path")
        self.name: str | None = definition.get("dataset_name")
        self.files = {split: Path(file) for split, file in task.data.items()}
        self.task, self.mirror = task.task, mirror

    def __missing__(self, split: str) -> datasets.Dataset:
        if self.files:
            if split not in self.files:
                raise UserError(
                    f"task {self.task!r} reads split {split!r}, which its data: does not name"
                    + did_you_mean(split, self.files)
                )
            rows = hubdata.local_rows({split: self.files[split]})[split]
        elif self.path is None:
            raise UserError("the task names no dataset_path")
        else:
            rows = hubdata.rows(self.path, self.name, split, mirror=self.mirror)
        self[split] = datasets.Dataset.from_list(rows)
        return self[split]


class _NoDocs:
    """Docs of a task whose data nobody reads."""

    features: ClassVar[dict[str, Any]] = {}

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {}


class _Bare(ConfigurableTask):
    """A task without its data: lm-eval reads a first doc to set a task up, here there is none."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: config[key] for key in config if key != "class"})

    def download(self, *args: Any, **kwargs: Any) -> None:
        self.dataset: dict[str, Any] = {}

    def fewshot_docs(self) -> None:
        return None

    @property
    def eval_docs(self) -> _NoDocs:
        return _NoDocs()

    def doc_to_text(self, *args: Any, **kwargs: Any) -> str:
        return ""

    def doc_to_target(self, *args: Any, **kwargs: Any) -> str:
        return ""

    def doc_to_choice(self, *args: Any, **kwargs: Any) -> list[str]:
        return ["-"]


def _means(lm_task: Any) -> frozenset[str]:
    """The task's metrics that are means over docs."""
    ways = lm_task.aggregation()
    return frozenset(name for name in ways if ways[name] in (lm_eval_mean, lm_eval_nanmean))


# --- models ------------------------------------------------------------------------------------


class PrefixLM(HFLM):
    """lm-eval's Hugging Face model, its requests answered by our engines.

    Takes the arguments of lm-eval's own `hf` model, or a live model and its tokenizer.
    """

    def __init__(self, pretrained: Any, *args: Any, **options: Any) -> None:
        super().__init__(pretrained, *args, **options)
        self.live = Live(self, rows=self.batch_size if isinstance(self.batch_size, int) else 64)

    @property
    def tokenizer_key(self) -> str:
        """The same for tokenizers that give the same ids."""
        if self.tokenizer not in _tokenizers:
            fast = getattr(self.tokenizer, "backend_tokenizer", None)
            told = fast.to_str() if fast is not None else f"the {next(_numbers)}. without a text"
            roles = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
            ends = [self.prefix_token_id, self.eot_token_id, self.add_bos_token]
            _tokenizers[self.tokenizer] = content_id([told, roles, *ends])
        return _tokenizers[self.tokenizer]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """lm-eval's way to cut the ids of both texts together in two."""
        return self._encode_pair(context, continuation)

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A long text as (context ids, continuation ids) that score each token once."""
        return [
            make_disjoint_window(window)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]

    def settings(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Generation settings under one name each, the end of text among the stops."""
        settings = dict(normalize_gen_kwargs(raw, self.max_gen_toks))
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        settings["until"] = handle_stop_sequences(settings.get("until"), eos=eos)
        return settings

    def stock_likelihoods(self, requests: Any) -> list[tuple[float, bool]]:
        """What lm-eval's own class does."""
        return super()._loglikelihood_tokens(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        found: list[Any] = [None] * len(requests)
        pairs = [(before, after) for _, before, after in requests]
        for number, value, greedy in self.live.likelihoods(pairs):
            _refuse_error(no_number(value))
            found[number] = value, greedy
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        found = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, one in enumerate(requests):  # a repeated request wants another sample
            alike.setdefault(canonical_json(one.args), []).append(number)
        for count in {len(numbers) for numbers in alike.values()}:
            groups = [numbers for numbers in alike.values() if len(numbers) == count]
            asked = [requests[numbers[0]] for numbers in groups]
            answers = self.live.answers(WRITTEN, asked, samples=count, shared=False)
            for number, sample, answer in answers:
                _refuse_error(answer.error)
                found[groups[number][sample]] = answer.value
        return found


_tokenizers: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_numbers = itertools.count(1)


def _refuse_error(error: str | None) -> None:
    # lm-eval would make a 0.0 of it; our own scoring keeps such docs apart.
    if error is not None:
        raise UserError(f"{error}: lm-eval's command cannot tell such an answer from a wrong one")


@contextmanager
def _asker(
    model: Any, tokenizer: Any, mirror: Path | None, batch_size: int, device: str | None
) -> Iterator[Live | Backend]:
    """What answers for this model; a live one is afterwards as it was."""
    if isinstance(model, str) and (backend := _backend(model)) is not None:
        yield backend
        return
    if isinstance(model, (str, Path)):
        model, tokenizer = load_model(model, mirror=mirror, device=device)
    elif tokenizer is None:
        raise UserError("a live model needs its tokenizer: score(model, suite, tokenizer=...)")
    with modes_put_back(model):
        own = copy.deepcopy(tokenizer)
        yield PrefixLM(
            pretrained=model, tokenizer=own, batch_size=batch_size, backend="causal"
        ).live


def _backend(text: str) -> Backend | None:
    """The backend of lm-eval that "name:key=value,..." asks for; None for what is no such text."""
    name, colon, arguments = text.partition(":")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or _is_there(text):
        return None
    if name not in MODEL_MAPPING:
        raise UserError(
            f"model {text!r}: lm-eval has no backend {name!r}" + did_you_mean(name, MODEL_MAPPING)
        )
    try:
        kind = get_model(name)
        lm = kind.create_from_arg_string(arguments)
    except Exception as error:
        raise UserError(
            f"model {text!r}: lm-eval cannot make it ({type(error).__name__}: {one_line(error)})"
        ) from error
    return Backend(lm, text, seeded=isinstance(lm, TemplateAPI))


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # too long for a name
        return False


def _model_id(name: str, mirror: Path | None) -> str:
    """What tells a model's answers from another's: a hash of its files, or a backend's text."""
    if re.fullmatch(r"[a-z][a-z0-9_-]*:.*", name) and not _is_there(name):
        return name
    path = Path(name).expanduser()
    if path.is_file():
        return sha256_file(path)
    folder = hubdata.model_folder(name, base=Path(), mirror=mirror)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return content_id({file.name: sha256_file(file) for file in files})


def main() -> None:
    """lm-eval's own command, with `--model assay` for PrefixLM."""
    from lm_eval.__main__ import cli_evaluate

    register_model("assay")(PrefixLM)
    cli_evaluate()


if __name__ == "__main__":
    main()
