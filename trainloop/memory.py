"""Memory of training a decoder, per GPU: parameters counted exactly, and a formula for the rest.

    shape = model_shape(recipe.model, base=Path("recipes"))     # counted on torch's meta device
    memory(shape, SETTINGS[-1], tokens=4096, gpus=8).total / GIB

Weights, gradients and AdamW's two moments are float32: 4 + 4 + 8 bytes per parameter, whole under
ddp and 1/N of them under fsdp. Activations are those that a decoder layer of Llama's kind saves
for its backward pass (`_saved_per_token`); logits are held a tile at a time.
Against peaks metered on CPU (tests/trainloop/test_costs.py) the sum is 0 to 20 % high.
What the formulas leave out: models with experts; fragmentation and the CUDA context, for which
RESERVE stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalsuite.errors import UserError
from trainloop.records import Model

GIB = 2.0**30
RESERVE = 2.0 * GIB
"""Per GPU, for the CUDA context, communication buffers and fragmentation."""
HEAD_LOGITS = 2**27
"""Logits that head.py makes at a time on a GPU, about."""
HEAD_BYTES = 3 * 4 + 2
"""Per logit: itself, its float32 softmax and its gradient, and a narrower copy."""

Kind = Literal["ddp", "fsdp"]
Precision = Literal["float32", "bfloat16"]
KINDS: tuple[Kind, ...] = ("ddp", "fsdp")
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What costs depend on, of a decoder."""

    parameters: int
    """All of them; a tied matrix counts once."""
    layer_parameters: int
    """Of one decoder layer."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norms_on_queries: bool
    """Whether queries and keys are normalised (OLMo 2, Qwen 3)."""

    @property
    def outside(self) -> int:
        """Parameters outside the layers: embeddings, head, last norm."""
        return self.parameters - self.layers * self.layer_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How the processes share a model."""

    distributed: Kind
    precision: Precision
    gradient_checkpointing: bool

    def __str__(self) -> str:
        recompute = " + gradient checkpointing" if self.gradient_checkpointing else ""
        return f"{self.distributed} {self.precision}{recompute}"


SETTINGS = [
    Setting(distributed=kind, precision=precision, gradient_checkpointing=recompute)
    for precision in PRECISIONS
    for kind in KINDS
    for recompute in (False, True)
]
"""In the order in which they are tried: what computes fast first, then what is simple."""
THRIFTIEST = SETTINGS[3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on each GPU under a setting, at the largest micro-batch."""

    setting: Setting
    tokens: int
    """Of a micro-batch."""
    parameters: float
    gradients: float
    moments: float
    gathered: float
    """ddp in bfloat16: the cast matrices; fsdp: the layers and the head while they are whole."""
    activations: float
    """Kept from forward to backward."""
    again: float
    """Gradient checkpointing: one layer's activations, made again in the backward pass."""
    logits: float
    reference: float
    """The frozen models of an RL stage: the reference policy and the reward model."""
    critic: float
    """ppo: its parameters, gradients and moments."""
    critic_activations: float
    whole: float
    """fsdp: the whole copy that scores and writes answers; it and activations take turns."""
    cache: float
    """Keys and values while answers are written."""
    rollouts: bool
    """Whether the whole copy stays, as an RL stage needs it again and again."""

    @property
    def training(self) -> float:
        """The peak while gradients are computed."""
        kept = self.gathered + self.activations + self.critic_activations
        return self._standing + kept + max(self.again, self.logits) + self.whole * self.rollouts

    @property
    def total(self) -> float:
        """The peak of all: in training, or while a checkpoint is scored and answers are written."""
        return max(self.training, self._standing + self.whole + self.cache)

    @property
    def _standing(self) -> float:
        state = self.parameters + self.gradients + self.moments
        return state + self.reference + self.critic + RESERVE


# --- a model's shape ---------------------------------------------------------------------------


def shape_of(config: Any) -> Shape:
    """The shape of a transformers configuration, its parameters counted on the meta device.

    Raises UserError for a model that is no plain decoder.
    """
    import torch
    from transformers import AutoModelForCausalLM

    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if getattr(config, key, None):
            raise UserError(
                f"model_type {config.model_type!r}: {key} is {getattr(config, key)}, but plans are "
                "for models without experts"
            )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        heads = config.num_attention_heads
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        of_layers = sum(size for name, size in sizes.items() if ".layers." in name)
        found = Shape(
            parameters=sum(sizes.values()),
            layer_parameters=of_layers // config.num_hidden_layers,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab=config.vocab_size,
            norms_on_queries=any("q_norm" in name for name in sizes),
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        first = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"model_type {config.model_type!r}: it cannot be planned: {first}"
        ) from None
    if not found.layer_parameters:
        raise UserError(f"model_type {config.model_type!r}: no decoder layers were found in it")
    return found


def model_shape(model: Model, *, base: Path, mirror: Path | None = None) -> Shape:
    """The shape of a recipe's model: of its folder's config.json, or of its configuration."""
    from transformers import AutoConfig

    if model.path is not None:
        from evalsuite import hubdata

        folder = hubdata.model_folder(model.path, base=base, mirror=mirror)
        try:
            return shape_of(AutoConfig.from_pretrained(folder, local_files_only=True))
        except (OSError, ValueError) as error:
            first = " ".join(str(error).split())[:160]
            raise UserError(f"{folder}: no configuration to plan from: {first}") from None
    assert model.tokenizer is not None
    settings = {k: v for k, v in model.config.items() if k != "model_type"}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    try:
        config = AutoConfig.for_model(
            model.config["model_type"],
            **(special | settings),
            vocab_size=model.tokenizer.vocab_size,
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        first = " ".join(str(error).split())[:160]
        raise UserError(f"model config {model.config}: transformers refuses it: {first}") from None
    return shape_of(config)


# --- memory ------------------------------------------------------------------------------------


def memory(
    shape: Shape,
    setting: Setting,
    *,
    tokens: int,
    gpus: int = 1,
    reference: bool = False,
    critic: bool = False,
    reward: bool = False,
    answers: int = 0,
    answer_length: int = 0,
    head_logits: int = HEAD_LOGITS,
) -> Memory:
    """Bytes per GPU for micro-batches of `tokens` tokens, each of them a target.

    `answers` are written at once on each GPU, `answer_length` tokens long with their prompts.
    """
    wide = 2 if setting.precision == "bfloat16" else 4
    sharded = setting.distributed == "fsdp" and gpus > 1
    share = 1 / gpus if sharded else 1.0
    n = shape.parameters
    if sharded:
        # Two layers whole (one used, one on its way) and one layer's gradient; embeddings and
        # head stay whole from forward to backward, with their gradient.
        gathered = wide * (3.0 * shape.layer_parameters + 2.0 * shape.outside)
    else:
        # Autocast keeps its casts of the matrices until the backward pass has used them.
        cast = shape.layers * shape.layer_parameters + shape.vocab * shape.hidden
        gathered = 2.0 * cast if wide == 2 else 0.0
    layer = _saved_per_token(shape, setting.precision, sharded=sharded)
    stream = shape.hidden * (2 if wide == 2 and sharded else 4)
    # The last norm's input and what it normed, what the head reads, rotary angles, ids.
    last = 8 * shape.hidden + stream + 8 * shape.head_dim + 12
    recompute = setting.gradient_checkpointing
    activations = tokens * (shape.layers * (stream if recompute else layer) + last)
    held = min(tokens * shape.vocab, head_logits)
    frozen = 4.0 * n * share
    cache = 2.0 * shape.layers * shape.kv_heads * shape.head_dim * wide * answers * answer_length
    return Memory(
        setting=setting,
        tokens=tokens,
        parameters=4.0 * n * share,
        gradients=4.0 * n * share,
        moments=8.0 * n * share,
        gathered=gathered * (2 if critic else 1),
        activations=activations,
        again=tokens * layer if recompute else 0.0,
        # The gradient of the output matrix is summed over tiles, and then added to the others'.
        logits=float(HEAD_BYTES * held + 8 * shape.vocab * shape.hidden),
        reference=frozen * (reference + reward),
        critic=16.0 * n * share * critic,
        critic_activations=activations * critic,
        whole=4.0 * n if sharded else 0.0,
        cache=cache,
        rollouts=answers > 0,
    )


def _saved_per_token(shape: Shape, precision: str, *, sharded: bool) -> float:
    """Bytes that one decoder layer saves per token for its backward pass.

    Two norms save what they read and what they normed, in float32, and one scale each; the
    matrices save what they read; attention saves queries, keys, values, one number per head, and
    its output twice (by length of document, and as it lies); the gated MLP saves both halves, the
    gate's activation and the product. Under autocast (ddp in bfloat16) the residual stream stays
    float32, and each matrix that reads a norm's result keeps a cast of its own.
    """
    h, i = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    wide = 2 if precision == "bfloat16" else 4
    norms = 24.0 * h if precision == "float32" else 16.0 * h if sharded else 26.0 * h
    attention = wide * (3.0 * queries + 2.0 * keys) + 4.0 * shape.heads
    if shape.norms_on_queries:
        attention += 8.0 * (queries + keys)
        norms += 4.0 * h if sharded and wide == 2 else 0.0  # OLMo 2 scales in float32
    return norms + 8 + attention + wide * 4.0 * i
