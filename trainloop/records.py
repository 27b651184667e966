"""What a recipe says, as frozen dataclasses; read by evalsuite.config, so every key is checked.

A Recipe names a model, suites, sources and stages; its optional Sweep says which stage's
mixture varies. docs/recipes.md shows each key with an example.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from decon.records import Decision
from evalsuite.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Plant:
    """Evaluation items put into a source on purpose, to see that decontamination finds them."""

    hub: str
    config: str | None = None
    split: str = "test"
    first: int
    """Plant the first so many rows."""
    template: str
    """How a row becomes text, e.g. "{question}\\n{answer}"."""

    def __post_init__(self) -> None:
        if self.first < 1:
            raise UserError(f"plant: first is {self.first}, but must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlantedLeaks:
    """Leaks of a suite's items that the micro-world's generator plants, with their truth beside."""

    suite: str
    rate: float
    forms: tuple[str, ...] = ("verbatim", "case_punctuation", "embedded")

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"leaks: rate is {self.rate}, but must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class OnPolicyPairs:
    """Pairs made by sampling a stage's model on prompts: a right answer above a wrong one."""

    prompts: str
    """The source of prompts with their verifier."""
    policy: str
    """The stage whose final checkpoint answers."""
    samples: int = 8
    """Answers per prompt; one without both a right and a wrong answer makes no pair."""
    temperature: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.samples < 2 or self.max_new_tokens < 1 or not self.temperature > 0:
            raise UserError(
                f"pairs: samples is {self.samples}, max_new_tokens {self.max_new_tokens} and "
                f"temperature {self.temperature}, but they must be 2 or more, 1 or more, above 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A named set of documents: a micro-world generator, files, or a public data set."""

    microworld: str | None = None
    """A kind of micro-world documents, e.g. facts or sft_math."""
    documents: int | None = None
    """How many documents: needed for a micro-world kind, else the first so many are kept."""
    seed: int = 0
    leaks: PlantedLeaks | None = None

    files: list[str] = field(default_factory=list)
    """Paths of JSONL(.gz .zst .bz2 .xz), Parquet or .txt files, from the recipe's folder."""

    hub: str | None = None
    """A public data set by its hub name, e.g. openai/gsm8k."""
    config: str | None = None
    split: str = "train"

    template: str | None = None
    """How a row becomes one text, e.g. "Question: {question}\\nAnswer: {answer}"."""
    prompt: str | None = None
    """Template of the user's turn; with one of the next four it says what the source holds."""
    response: str | None = None
    """Template of the assistant's turn: the source holds conversations."""
    chosen: str | None = None
    rejected: str | None = None
    """Templates of the better and the worse answer: the source holds pairs, for dpo or reward."""
    answer: str | None = None
    """Template of the right answer: the source holds prompts, for grpo and ppo."""
    verifier: str | None = None
    """What judges the answers to its prompts: a file of evalsuite/verifiers/."""
    pairs: OnPolicyPairs | None = None
    """Pairs that a stage of the recipe writes itself."""
    plant: Plant | None = None

    def __post_init__(self) -> None:
        origins = [bool(self.microworld), bool(self.files), bool(self.hub), bool(self.pairs)]
        if sum(origins) != 1:
            raise UserError(
                "a source has exactly one origin: microworld, files, hub or pairs; this one has "
                f"{sum(origins)}"
            )
        if self.pairs and (self.template or self.prompt or self.plant or self.verifier):
            raise UserError("on-policy pairs take neither template, prompt, verifier nor plant")
        if self.documents is not None and self.documents < 1:
            raise UserError(f"documents is {self.documents}, but must be 1 or more")
        if self.microworld and self.documents is None:
            raise UserError(f"source of micro-world kind {self.microworld!r} lacks 'documents'")
        if self.microworld and (self.template or self.prompt or self.plant):
            raise UserError("a micro-world source takes neither template, prompt nor plant")
        if self.leaks and not self.microworld:
            raise UserError("leaks are for micro-world sources; use 'plant' for other sources")
        if self.seed and not self.microworld:
            raise UserError(f"seed ({self.seed}) is for micro-world sources; drop it")
        if (self.config or self.split != "train") and not self.hub:
            raise UserError("config and split are for sources from the hub; drop them")
        if (self.chosen is None) != (self.rejected is None):
            raise UserError("chosen and rejected go together: give both or neither")
        ways = [self.response is not None, self.chosen is not None, self.answer is not None]
        if sum(ways) != (self.prompt is not None):
            raise UserError(
                "prompt goes with exactly one of response, chosen and rejected, or answer; "
                f"this source has {sum(ways)} of them and {'a' if self.prompt else 'no'} prompt"
            )
        if self.answer is not None and self.verifier is None:
            raise UserError("answer needs a verifier that judges by it, e.g. gsm8k")
        if self.template is not None and self.prompt is not None:
            raise UserError("give a source either a template or a prompt, not both")
        if self.plant is not None and self.prompt is not None:
            raise UserError("plant puts texts into a source of texts, not of conversations")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTokenizer:
    """A byte-level BPE trained on some of the recipe's own (cleaned) sources."""

    vocab_size: int
    train_on: list[str]

    def __post_init__(self) -> None:
        if self.vocab_size < 260:
            raise UserError(
                f"tokenizer: vocab_size is {self.vocab_size}, but needs 260 or more: "
                "256 bytes and the special tokens"
            )
        if not self.train_on:
            raise UserError("tokenizer: train_on names no source")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Where the first stage starts: a pretrained model, or a configuration with fresh weights."""

    path: str | None = None
    """A Hugging Face folder (from the recipe's folder) or a name known to the mirror or the hub."""
    config: dict[str, Any] = field(default_factory=dict)
    """A transformers configuration with its model_type, for weights from scratch."""
    tokenizer: NewTokenizer | None = None
    chat_template: str | None = None
    """Jinja template for conversations; needed for sft when the tokenizer has none."""

    def __post_init__(self) -> None:
        if (self.path is None) == (not self.config):
            raise UserError("model: give either 'path' (pretrained) or 'config' (from scratch)")
        if self.config and "model_type" not in self.config:
            raise UserError("model: config lacks 'model_type', e.g. llama")
        if self.config and self.tokenizer is None:
            raise UserError("model: a model from scratch needs a 'tokenizer'")
        if self.path and self.tokenizer:
            raise UserError("model: a pretrained model brings its own tokenizer; drop 'tokenizer'")
        if "vocab_size" in self.config:
            raise UserError(
                f"model: config has vocab_size ({self.config['vocab_size']}), but the tokenizer "
                "decides it; drop it, and set tokenizer.vocab_size"
            )
        for key, value in self.config.items():
            if not all(map(math.isfinite, _numbers(value))):
                raise UserError(f"model: config {key} is {value}, but must be a finite number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The learning rate over a stage, as shares of its steps (see schedules.py)."""

    kind: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup: float = 0.0
    """Share of the steps that climb linearly to the peak."""
    start: float = 0.0
    """Where the climb begins, as a share of the peak."""
    decay: float = 0.1
    """wsd only: share of the steps, at the end, that fall linearly to the floor."""
    floor: float = 0.0
    """Final rate as a share of the peak."""
    horizon: float = 1.0
    """cosine and linear: length of the whole curve in stages; above 1 the stage cuts it off."""

    def __post_init__(self) -> None:
        for name in ("warmup", "start", "decay", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"schedule: {name} is {getattr(self, name)}, not in [0, 1]")
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise UserError("schedule: warmup and decay together exceed the stage")
        if not self.horizon >= 1:
            raise UserError(f"schedule: horizon is {self.horizon}, but must be 1 or more")
        if self.horizon != 1 and self.kind not in ("cosine", "linear"):
            raise UserError(f"schedule: horizon is for cosine and linear, not for {self.kind}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """Hand on the stage's best checkpoint on a dev suite, instead of its last."""

    suite: str
    """One of the recipe's suites, with role dev."""
    capability: str
    patience: int | None = None
    """End the stage after so many scored checkpoints in a row without a new best."""

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise UserError(f"best: patience is {self.patience}, but must be 1 or more")


BASE: dict[str, Any] = {
    "schedule": Schedule(),
    "weight_decay": 0.1,
    "beta2": 0.95,
    "clip": 1.0,
}
"""What a stage gets where neither the recipe nor its objective says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One leg of training: what to read, how much, how fast, and when to score.

    A key left out takes the objective's published value, if there is one (`settled`).
    """

    name: str
    objective: str
    """A file of trainloop/objectives/, e.g. next_token or sft; or soup."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Source name -> weight; weights need not sum to 1. Shares of tokens, or of documents where
    the batch counts those; with epochs, how often each source is read in each of them."""
    options: dict[str, Any] = field(default_factory=dict)
    """The objective's own settings, e.g. {beta: 5}."""
    start_from: str | None = None
    """The stage whose result this one goes on from; by default the one before it."""
    reward_model: str | None = None
    """ppo, grpo: the stage that trained the reward model."""
    soup: list[str] = field(default_factory=list)
    """soup only: the stages whose results are averaged."""
    tokens: int | None = None
    """Training tokens to spend, counted after packing; goes with batch_tokens."""
    batch_tokens: int | None = None
    """Tokens per optimizer step, over all ranks."""
    epochs: float | None = None
    """Times each document is read; goes with batch."""
    steps: int = 0
    """Optimizer steps, instead of tokens or epochs; once settled, always the number of them."""
    batch: int | None = None
    """Documents (conversations, pairs, prompts) per optimizer step, over all ranks."""
    sequence_length: int = 0
    """Most tokens of a row, conversation, pair's half or prompt."""
    learning_rate: float | Literal["parent"] | None = None
    """Peak rate; "parent" is the rate at which the parent stage ended."""
    schedule: Schedule | None = None
    micro_tokens: int | None = None
    """Most tokens per forward pass; by default 1,024 on CPU, else the rank's whole share."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: weights stay in float32, matrices are multiplied in bfloat16."""
    gradient_checkpointing: bool = False
    """Keep no activations inside layers: less memory, a third more work."""
    score_every: int | None = None
    """Tokens (documents, where the batch counts those) between scored checkpoints."""
    held_out: list[str] = field(default_factory=list)
    """Sources that are measured at each checkpoint, not trained on: bits per byte or accuracy."""
    best: Best | None = None
    keep: Literal["all", "needed"] = "all"
    """needed: drop weights of checkpoints that are scored and neither best, last nor a parent."""
    repetition_cap: float | None = None
    """Most times a source may be read in this stage."""
    seed: int = 0
    """Added to the run's seed: siblings of one stage differ by it."""
    weight_decay: float | None = None
    beta2: float | None = None
    clip: float | None = None
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        where = f"stage {self.name!r}"
        if not self.name or set(self.name) & set("/\\ \t\n"):
            raise UserError(f"{where}: a stage's name is one word without slashes")
        if (self.objective == "soup") != bool(self.soup):
            raise UserError(f"{where}: objective soup and the list 'soup' go together")
        if self.objective == "soup":
            _check_soup(self, where)
            return
        if not self.mixture:
            raise UserError(f"{where}: the mixture names no source")
        check_weights(self.mixture, where)
        _check_numbers(self, where)
        _check_budget(self, where)
        if self.tokens is not None:
            assert self.batch_tokens is not None
            steps = self.tokens // self.batch_tokens
            if self.steps not in (0, steps):
                raise UserError(f"{where}: give tokens ({self.tokens:,}) or steps, not both")
            object.__setattr__(self, "steps", steps)

    def settled(self, defaults: Mapping[str, Any], documents: Mapping[str, int]) -> Stage:
        """The stage with every open key decided: by `defaults` (the objective's), else BASE.

        `documents` counts each source's documents, which turn epochs into steps. Raises
        UserError for what is needed and known to neither.
        """
        where = f"stage {self.name!r}"
        given = {**BASE, **defaults}
        if self.tokens is not None or self.steps:
            given = {k: v for k, v in given.items() if k != "epochs"}
        if self.batch_tokens is not None:
            given = {k: v for k, v in given.items() if k != "batch"}
        open_keys = {k: v for k, v in given.items() if getattr(self, k) is None}
        whole = replace(self, **open_keys)
        if whole.learning_rate is None:
            raise UserError(f"{where}: learning_rate is missing")
        sized = whole.batch is not None or whole.batch_tokens is not None
        if whole.steps and sized:
            return whole
        if whole.epochs is None or whole.batch is None:
            raise UserError(
                f"{where}: says not how much to train: give tokens and batch_tokens, or epochs "
                "(or steps) and batch"
            )
        for name in whole.mixture:
            if name not in documents:
                raise UserError(
                    f"{where}: how many documents {name!r} will have is not known before they are "
                    "written; give steps instead of epochs"
                )
        read = sum(w * whole.epochs * documents[name] for name, w in whole.mixture.items())
        return replace(whole, steps=max(1, math.ceil(read / whole.batch - 1e-9)))

    @property
    def peak(self) -> float:
        """The peak learning rate of a settled stage."""
        assert isinstance(self.learning_rate, (int, float)), "the stage is not settled"
        return self.learning_rate

    @property
    def batch_rows(self) -> int:
        """Sequences per optimizer step, where the batch counts tokens."""
        assert self.batch_tokens is not None
        return self.batch_tokens // self.sequence_length

    @property
    def checkpoint_steps(self) -> list[int]:
        """Steps after which a checkpoint is saved and scored; the last step is one."""
        assert self.steps or self.soup, "the stage is not settled"
        if self.score_every is None:
            return [self.steps]
        size = self.batch_tokens or self.batch
        assert size is not None
        every = max(1, self.score_every // size)
        # None right before the end: its scores would be the last ones' over again.
        return [*range(every, self.steps - every // 2, every), self.steps]


def _check_soup(stage: Stage, where: str) -> None:
    if len(stage.soup) < 2 or len(set(stage.soup)) != len(stage.soup):
        raise UserError(f"{where}: a soup needs two or more different stages, not {stage.soup}")
    for each in fields(stage):
        if each.name in ("name", "objective", "soup", "keep"):
            continue
        given = getattr(stage, each.name)
        if given and given != each.default:
            raise UserError(
                f"{where}: a soup is not trained, so {each.name} ({given}) says nothing; drop it"
            )


def _check_numbers(stage: Stage, where: str) -> None:
    above = ("tokens", "batch_tokens", "epochs", "batch", "clip", "micro_tokens", "repetition_cap")
    for name in above:
        value = getattr(stage, name)
        if value is not None and value <= 0:
            raise UserError(f"{where}: {name} is {value}, but must be above 0")
    rate = stage.learning_rate
    if isinstance(rate, (int, float)) and not 0 < rate < math.inf:
        raise UserError(f"{where}: learning_rate is {rate}, but must be above 0")
    if stage.steps < 0 or stage.seed < 0:
        raise UserError(f"{where}: steps and seed must be 0 or more")
    if stage.sequence_length < 2:
        raise UserError(f"{where}: sequence_length is {stage.sequence_length}, but needs 2")
    if not 0 <= (stage.beta2 or 0) < 1 or (stage.weight_decay or 0) < 0:
        raise UserError(f"{where}: beta2 must lie in [0, 1) and weight_decay be 0 or more")


def _check_budget(stage: Stage, where: str) -> None:
    if stage.batch_tokens is not None and stage.batch is not None:
        raise UserError(f"{where}: give batch_tokens or batch (documents), not both")
    if stage.tokens is not None and stage.batch_tokens is None:
        raise UserError(f"{where}: tokens ({stage.tokens:,}) goes with batch_tokens")
    if stage.batch_tokens is not None:
        if stage.tokens is None or stage.epochs is not None:
            raise UserError(f"{where}: batch_tokens goes with tokens")
        if stage.batch_tokens % stage.sequence_length:
            raise UserError(
                f"{where}: batch_tokens ({stage.batch_tokens:,}) is no multiple of "
                f"sequence_length ({stage.sequence_length:,})"
            )
        if stage.tokens < stage.batch_tokens:
            raise UserError(
                f"{where}: tokens ({stage.tokens:,}) is less than one batch "
                f"({stage.batch_tokens:,})"
            )
    if stage.score_every is not None and not (
        stage.score_every > 0 and (stage.tokens is None or stage.score_every <= stage.tokens)
    ):
        raise UserError(
            f"{where}: score_every is {stage.score_every:,}, but must lie between 1 and "
            + (f"tokens ({stage.tokens:,})" if stage.tokens else "the documents it reads")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A grid of one stage's mixtures and seeds; stages before it are trained once."""

    stage: str
    variants: dict[str, dict[str, float]]
    """Variant name -> mixture of that stage."""
    seeds: list[int]
    suite: str
    """The dev suite whose scores decide."""

    def __post_init__(self) -> None:
        if len(self.variants) < 2:
            raise UserError("sweep: needs two variants or more to compare")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"sweep: seeds must be one or more different numbers: {self.seeds}")
        for name, mixture in self.variants.items():
            if not mixture:
                raise UserError(f"sweep: variant {name!r} names no source")
            check_weights(mixture, f"sweep variant {name!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Model + suites + decontamination + sources + stages: everything a run needs."""

    name: str
    description: str
    suites: list[str]
    """Names of shipped suites, or YAML files by their paths from the recipe's folder."""
    policy: str = "tulu3"
    """The decontamination policy: a file of decon/policies/."""
    on_dev: Decision | None = None
    """What becomes of a source in which a dev suite's items are hit; none: as the policy says."""
    on_unseen: Decision | None = None
    """What becomes of a source contaminated with an unseen suite's task; likewise."""
    model: Model
    sources: dict[str, Source]
    stages: list[Stage]
    sweep: Sweep | None = None
    seed: int = 0
    cpu_threads: int = 1
    """Threads per process on CPU; the same bits need the same count."""
    distributed: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: each holds the whole model (ddp), or its share of every layer (fsdp)."""

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set("/\\ \t\n"):
            raise UserError(f"recipe name {self.name!r} is not one word without slashes")
        if not self.suites:
            raise UserError("the recipe names no suite to score and to decontaminate against")
        if not self.stages:
            raise UserError("the recipe has no stage")
        if self.cpu_threads < 1:
            raise UserError(f"cpu_threads is {self.cpu_threads}, but must be 1 or more")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}, but must be 0 or more")
        if self.sweep is not None and min(self.sweep.seeds) < 0:
            raise UserError(f"sweep: a seed is {min(self.sweep.seeds)}, but must be 0 or more")
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two stages are named {name!r}")
        for name in self.sources:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
                raise UserError(
                    f"source name {name!r}: it names a folder, so use letters, digits, . _ and -"
                )
        for number, stage in enumerate(self.stages):
            where = f"stage {stage.name!r}"
            self._check_sources(stage.mixture, where)
            self._check_sources(dict.fromkeys(stage.held_out, 1.0), f"{where} (held_out)")
            self._check_stage_links(stage, names[:number])
        if self.model.tokenizer:
            for name in self.model.tokenizer.train_on:
                self._check_sources({name: 1.0}, "tokenizer train_on")
                self._check_has_documents(name, "tokenizer train_on")
        if self.sweep is not None:
            if self.sweep.stage not in names:
                raise UserError(
                    f"sweep: no stage is named {self.sweep.stage!r}"
                    + did_you_mean(self.sweep.stage, names)
                )
            if self.sweep.suite not in self.suites:
                raise UserError(
                    f"sweep: suite {self.sweep.suite!r} is not among the recipe's suites"
                    + did_you_mean(self.sweep.suite, self.suites)
                )
            varied = self.stages[names.index(self.sweep.stage)]
            for name, mixture in self.sweep.variants.items():
                self._check_sources(mixture, f"sweep variant {name!r}")
                stage = replace(varied, mixture=mixture)
                self._check_stage_links(stage, names[: names.index(varied.name)])

    def _check_stage_links(self, stage: Stage, earlier: list[str]) -> None:
        """Every stage that `stage` names must come before it; its `best` suite must be there."""
        where = f"stage {stage.name!r}"
        links: list[tuple[str, str | None]] = [
            ("start_from", stage.start_from),
            ("reward_model", stage.reward_model),
        ]
        links += [("soup", name) for name in stage.soup]
        for pairs in (self.sources[name].pairs for name in stage.mixture):
            if pairs is not None:
                links.append(("the policy of its pairs", pairs.policy))
                self._check_sources({pairs.prompts: 1.0}, f"{where} (pairs)")
                self._check_has_documents(pairs.prompts, f"{where} (pairs)")
        for source in stage.held_out:
            self._check_has_documents(source, f"{where} (held_out)")
        if stage.epochs is not None and stage.steps:
            raise UserError(
                f"{where}: give epochs ({stage.epochs:g}) or steps ({stage.steps:,}), not both"
            )
        for key, name in links:
            if name is not None and name not in earlier:
                raise UserError(
                    f"{where}: {key} is {name!r}, which is no stage before it"
                    + did_you_mean(name, earlier)
                )
        both = sorted(set(stage.held_out) & {n for n, w in stage.mixture.items() if w > 0})
        if both:
            raise UserError(f"{where}: source {both[0]!r} is held out and in the mixture; drop one")
        if stage.best is not None and stage.best.suite not in self.suites:
            raise UserError(
                f"{where}: best names suite {stage.best.suite!r}, not among the recipe's suites"
                + did_you_mean(stage.best.suite, self.suites)
            )

    def _check_has_documents(self, name: str, where: str) -> None:
        if self.sources[name].pairs is not None:
            raise UserError(
                f"{where} names source {name!r}, pairs that a stage writes during the run: they "
                "are for mixtures alone; name a source with documents of its own"
            )

    def _check_sources(self, mixture: dict[str, float], where: str) -> None:
        for name in mixture:
            if name not in self.sources:
                raise UserError(
                    f"{where} names source {name!r}, which the recipe does not have"
                    + did_you_mean(name, self.sources)
                )


def _numbers(value: Any) -> Iterator[float]:
    """The floats in a configuration's value, however deep."""
    match value:
        case float():
            yield value
        case dict():
            for each in value.values():
                yield from _numbers(each)
        case list():
            for each in value:
                yield from _numbers(each)


def check_weights(mixture: dict[str, float], where: str) -> None:
    """UserError unless every weight is 0 or more and at least one is above."""
    for name, weight in mixture.items():
        if weight < 0:
            raise UserError(f"{where}: the weight of {name!r} is {weight}, but must be 0 or more")
    if not any(mixture.values()):
        raise UserError(f"{where}: all weights are 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A published checkpoint; `id` is the hash of everything that made it."""

    id: str
    parent: str | None
    stage: str
    stage_id: str
    objective: str
    step: int
    tokens: int
    """Training tokens of its stage so far."""
    total_tokens: int
    """Training tokens with all its ancestors."""
    final: bool
    seed: int
    mixture: dict[str, float]
    certificate: str | None
    flops: float
    """6 x parameters x tokens, with all its ancestors (Kaplan et al. 2020, arXiv:2001.08361)."""
    parameters: int
    cpu_threads: int
    precision: str = "float32"
    ranks: int = 1
    """Processes that trained it last: their count changes the last bits, not the data."""
    ingredients: list[str] = field(default_factory=list)
    """Other checkpoints it rests on: those a soup is the mean of (its parent is the first), or the
    reward model that judged its answers."""
