"""What a model says of every target of a batch: the forward pass of every objective.

    policy = Policy(model)                       # a causal LM, or a reward model with a scalar head
    batch = tensors(batch_of(trees), "cpu")
    out = policy(batch, temperature=1.0, entropy=True)
    out.logprobs                                 # [N] of the targets' tokens, with gradients

Documents go through the model end to end in one row, without padding: attention runs per segment
(`trainloop.flat`), so a shared prompt is encoded once, and the output head only where a target is
predicted (`trainloop.head`). A critic (`Policy(model, value=critic)`) reads the same tokens.

Models that cannot be read so (`unsupported` says why; it tries a small batch on the model itself)
get one padded row per sequence instead, prompts repeated: the same numbers, slower. Everything
runs inside `forward`, so a policy can be wrapped by DDP, or sharded by `fully_shard` (its layers
and the policy itself, not the model in between). It cannot read encoder-decoders.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from evalsuite.errors import UserError
from evalsuite.livemodel import modes_put_back
from trainloop.data import Batch, Tree, batch_of
from trainloop.flat import Layout, make_flat
from trainloop.head import Head, from_logits, target_logprobs

PROBE_TOLERANCE, PROBE_TOLERANCE_HALF = 1e-3, 0.25
"""By how much the probe may differ from plain forward passes (nats); half precision rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensors:
    """A `trainloop.data.Batch` on a device; the fields of the same names, and how it attends."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor
    predict_from: torch.Tensor
    labels: torch.Tensor
    sequence: torch.Tensor
    document: torch.Tensor
    last: torch.Tensor
    of_sequence: dict[str, torch.Tensor]
    of_target: dict[str, torch.Tensor]
    padding: bool
    tokens: int
    sequences: int
    documents: int
    target_tokens: int
    layout: Layout
    rows: _PaddedRows
    """Where the padded way finds everything."""


class Outputs(NamedTuple):
    """What was asked for; the rest is None. Float32, or float64 of float64 models.

    A named tuple, since sharding (FSDP2) looks into tuples for what will be differentiated.
    """

    logprobs: torch.Tensor | None = None
    """[N] log-probability of each target (nats)."""
    entropy: torch.Tensor | None = None
    """[N] of the distribution that the target was drawn from (nats)."""
    values: torch.Tensor | None = None
    """[N] the critic's, before the target."""
    scores: torch.Tensor | None = None
    """[S] of a reward model, at each sequence's last token."""


def tensors(
    batch: Batch, device: torch.device | str, *, dtype: torch.dtype = torch.float32
) -> Tensors:
    """The batch on `device`: integers as int64, the objective's own numbers as `dtype`."""

    def on(array: Any, kind: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device=device, dtype=kind)

    return Tensors(
        input_ids=on(batch.input_ids),
        position_ids=on(batch.position_ids),
        segments=on(batch.segments),
        predict_from=on(batch.predict_from),
        labels=on(batch.labels),
        sequence=on(batch.sequence),
        document=on(batch.document),
        last=on(batch.last),
        of_sequence={name: on(values, dtype) for name, values in batch.of_sequence.items()},
        of_target={name: on(values, dtype) for name, values in batch.of_target.items()},
        padding=batch.padding,
        tokens=batch.tokens,
        sequences=batch.sequences,
        documents=batch.documents,
        target_tokens=batch.target_tokens,
        layout=Layout(batch.segments, device),
        rows=_PaddedRows(batch, device),
    )


class Policy(torch.nn.Module):
    """A causal LM (or a reward model), and a critic for PPO, over batches without padding."""

    def __init__(self, model: PreTrainedModel, value: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.model = model
        self.value = value
        for module in self.modules():
            if isinstance(module, torch.nn.Embedding):
                # What a model names its padding is often the end of text; here it learns, too.
                module.padding_idx = None
        self._reader = _reader(model)
        self._value_reader = None if value is None else _reader(value)
        if self._value_reader is not None and not self._value_reader.scalar:
            raise UserError(
                f"the critic is a {type(value).__name__}; give a sequence-classification model"
            )

    @property
    def why_padded(self) -> str | None:
        """Why batches go through the model as padded rows; None where they need not."""
        readers = [self._reader, self._value_reader]
        return next((r.why_padded for r in readers if r is not None and r.why_padded), None)

    def forward(
        self,
        batch: Tensors,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        values: bool = False,
    ) -> Outputs:
        """Read the batch once; `values` asks the critic, too.

        Logits are divided by `temperature`. A batch without targets has empty results that
        still reach the weights, with gradient zero.
        """
        logprobs = spread = scores = critic = None
        if self._reader.scalar:
            scores = _scalars(self.model, self._reader, batch, at_targets=False)
        else:
            logprobs, spread = _logprobs(self.model, self._reader, batch, temperature, entropy)
        if values:
            if self.value is None or self._value_reader is None:
                raise ValueError("values were asked of a policy without critic")
            critic = _scalars(self.value, self._value_reader, batch, at_targets=True)
        return Outputs(logprobs=logprobs, entropy=spread, values=critic, scores=scores)


# --- how a model is read -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """How to get numbers out of one model; decided once, before it is wrapped or sharded."""

    scalar: bool
    """Whether it has a scalar head instead of a vocabulary."""
    why_padded: str | None
    head_scale: float
    softcap: float | None
    own_head: bool
    """Its logits are no linear map that we know: it makes them itself, all at once."""
    takes_positions: bool
    reads: int | None
    """Longest document before positions are rescaled for all documents of a row."""


def unsupported(model: PreTrainedModel) -> str | None:
    """Why documents cannot lie end to end for this model; None if they can.

    What the configuration does not tell is tried: a prompt with branches and a plain document
    against plain forward passes, in evaluation mode.
    """
    return _reader(model).why_padded


def _reader(model: PreTrainedModel) -> _Reader:
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__} is an encoder-decoder; train a decoder (causal LM)"
        )
    make_flat(model)
    config = model.config.get_text_config()
    scalar = _score_head(model) is not None
    linear = None if scalar else model.get_output_embeddings()
    trial: dict[str, Any] = {
        "scalar": scalar,
        "why_padded": _told(model),
        "head_scale": 1.0,
        "softcap": getattr(config, "final_logit_softcapping", None),
        "own_head": not scalar and not isinstance(linear, torch.nn.Linear),
        "takes_positions": "position_ids" in inspect.signature(model.forward).parameters,
        "reads": _reads(config),
    }
    if any(parameter.is_meta for parameter in model.parameters()):
        return _Reader(**trial)  # no numbers to try
    with modes_put_back(model), torch.no_grad():
        if not scalar and not trial["own_head"]:
            trial["head_scale"], trial["own_head"] = _head_scale(model, linear, trial["softcap"])
        if trial["why_padded"] is None:
            trial["why_padded"] = _tried(model, _Reader(**trial))
    return _Reader(**trial)


def _score_head(model: Any) -> torch.nn.Module | None:
    """The scalar head of a sequence-classification model."""
    head = getattr(model, "score", None)
    return head if isinstance(head, torch.nn.Module) else None


def _told(model: PreTrainedModel) -> str | None:
    """What the configuration tells against documents end to end."""
    config = model.config.get_text_config()
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no position ids"
    kinds: set[str] = set(getattr(config, "layer_types", None) or ())
    strange = kinds - {"full_attention", "sliding_attention"}
    return f"it has layers of type {min(strange)}" if strange else None


def _reads(config: Any) -> int | None:
    """Positions beyond this are rescaled for whole rows (dynamic and long rotary positions)."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in given.values() if isinstance(one, dict)]
    lengths = [
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for rope in nested or [given]
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=None)


def _probe_ids(model: PreTrainedModel) -> list[int]:
    config = model.config.get_text_config()
    usable = [n for n in range(min(config.vocab_size, 997)) if n != config.pad_token_id]
    return [usable[(11 + 7 * place) % len(usable)] for place in range(24)]


def _head_scale(
    model: PreTrainedModel, linear: torch.nn.Linear, softcap: float | None
) -> tuple[float, bool]:
    """(factor on the logits, whether the model's own head does something else)."""
    config = model.config.get_text_config()
    ids = torch.tensor([_probe_ids(model)], device=model.device)
    own = model(input_ids=ids, use_cache=False, return_dict=True).logits[0].float()
    inner = model.base_model(input_ids=ids, use_cache=False, return_dict=True)
    hidden = getattr(inner, "last_hidden_state", None)
    if hidden is None:
        return 1.0, True
    scales = [1.0, getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)]
    for scale in scales:
        for factor in (scale, 1 / scale) if isinstance(scale, int | float) and scale else ():
            head = Head(linear=linear, scale=factor, softcap=softcap)
            if torch.allclose(head.finish(linear(hidden[0])).float(), own, rtol=1e-3, atol=1e-4):
                return factor, False
    return 1.0, True


def _tried(model: PreTrainedModel, reader: _Reader) -> str | None:
    """Read a small batch flat, and padded by ordinary forward passes; compare."""
    ids = _probe_ids(model)
    asked = Tree(ids[:5], (ids[5:9], ids[9:16]), ([True] * 4, [True] * 7))
    plain = Tree((), (ids[12:],), ([True] * 12,))
    batch = tensors(batch_of([asked, plain]), model.device)
    try:
        found, wanted = (
            _scalars(model, reader, batch, at_targets=True, padded=padded)
            if reader.scalar
            else _logprobs(model, reader, batch, 1.0, False, padded=padded)[0]
            for padded in (False, True)
        )
    except Exception as error:  # whatever a model does with what it does not know
        return f"it fails on documents end to end ({type(error).__name__}: {_line(error)})"
    layers = model.config.get_text_config().num_hidden_layers
    if len(batch.layout.windows) != layers:
        return f"{len(batch.layout.windows)} of its {layers} layers let attention be replaced"
    for number, (given, told) in enumerate(zip(batch.layout.windows, _windows(model), strict=True)):
        if given != told:
            return f"layer {number} attends to {given or 'all'} tokens, its config says {told}"
    low = model.dtype in (torch.float16, torch.bfloat16)
    allowed = PROBE_TOLERANCE_HALF if low else PROBE_TOLERANCE
    differs = float((found - wanted).abs().max())
    if math.isnan(differs) or differs > allowed:
        return f"its numbers for documents end to end differ by {differs:.2g} from padded rows"
    return None


def _windows(model: PreTrainedModel) -> Iterable[int | None]:
    """The sliding window of each layer as the configuration tells it."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


# --- forward passes ----------------------------------------------------------------------------


class _PaddedRows:
    """One right-padded row per sequence, prompt first; made when first asked for."""

    def __init__(self, batch: Batch, device: torch.device | str) -> None:
        self._batch, self._device = batch, device
        self._made: dict[str, torch.Tensor] | None = None

    def made(self) -> dict[str, torch.Tensor]:
        """input_ids, position_ids and attention_mask [S, L]; target_row, target_place [N]; ..."""
        if self._made is None:
            arrays = _padded(self._batch)
            self._made = {k: torch.from_numpy(a).to(self._device) for k, a in arrays.items()}
        return self._made


def _padded(batch: Batch) -> dict[str, Any]:
    segment_of = {int(end) - 1: row for row, end in enumerate(batch.segments[:, 1])}
    segments = batch.segments[[segment_of[int(last)] for last in batch.last]].reshape(-1, 4)
    start, end, prefix_start, prefix_end = segments.T
    prefix = prefix_end - prefix_start
    lengths = prefix + end - start
    shape = len(lengths), int(lengths.max(initial=1))
    found = {
        "input_ids": np.zeros(shape, np.int64),
        "position_ids": np.zeros(shape, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
    }
    for number, (s, e, ps, pe) in enumerate(segments.tolist()):
        tokens = np.concatenate([np.arange(ps, pe), np.arange(s, e)])
        found["input_ids"][number, : len(tokens)] = batch.input_ids[tokens]
        found["position_ids"][number, : len(tokens)] = batch.position_ids[tokens]
        found["attention_mask"][number, : len(tokens)] = 1
    row, at = batch.sequence, batch.predict_from
    in_branch = at >= start[row]
    place = np.where(in_branch, at - start[row] + prefix[row], at - prefix_start[row])
    return found | {
        "target_row": row,
        "target_place": place,
        "last_row": np.arange(len(lengths)),
        "last_place": lengths - 1,
    }


def _read(
    module: torch.nn.Module, reader: _Reader, batch: Tensors, *, padded: bool, **more: Any
) -> Any:
    """What transformers returns for the batch: one row, or a padded row for each sequence."""
    if reader.reads is not None and batch.layout.longest > reader.reads:
        raise UserError(
            f"a document has {batch.layout.longest:,} tokens, and this model rescales positions "
            f"beyond {reader.reads:,}: for each length otherwise; lower sequence_length to that"
        )
    if padded:
        made = batch.rows.made()
        names = ["input_ids", "attention_mask"] + ["position_ids"] * reader.takes_positions
        more |= {name: made[name] for name in names}
    else:
        more |= {
            "input_ids": batch.input_ids[None],
            "position_ids": batch.position_ids[None],
            "flat_layout": batch.layout,
        }
    return module(**more, use_cache=False, return_dict=True)


def _picked(states: torch.Tensor, batch: Tensors, *, padded: bool, targets: bool) -> torch.Tensor:
    """States [rows, tokens, width] where targets are predicted [N], or at sequences' ends [S]."""
    if not padded:
        return states[0].index_select(0, batch.predict_from if targets else batch.last)
    made, which = batch.rows.made(), "target" if targets else "last"
    return states[made[f"{which}_row"], made[f"{which}_place"]]


def _logprobs(
    model: PreTrainedModel,
    reader: _Reader,
    batch: Tensors,
    temperature: float,
    entropy: bool,
    *,
    padded: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of each target, and the entropy where it is predicted."""
    padded = reader.why_padded is not None if padded is None else padded
    if reader.own_head:
        narrow = not padded and "logits_to_keep" in inspect.signature(model.forward).parameters
        more = {"logits_to_keep": batch.predict_from} if narrow else {}
        logits = _read(model, reader, batch, padded=padded, **more).logits
        logits = logits[0] if narrow else _picked(logits, batch, padded=padded, targets=True)
        return from_logits(logits, batch.labels, temperature=temperature, entropy=entropy)
    states = _read(model.base_model, reader, batch, padded=padded).last_hidden_state
    hidden = _picked(states, batch, padded=padded, targets=True)
    linear = model.get_output_embeddings()
    assert isinstance(linear, torch.nn.Linear)
    head = Head(linear=linear, scale=reader.head_scale, softcap=reader.softcap)
    return target_logprobs(head, hidden, batch.labels, temperature=temperature, entropy=entropy)


def _scalars(
    model: PreTrainedModel,
    reader: _Reader,
    batch: Tensors,
    *,
    at_targets: bool,
    padded: bool | None = None,
) -> torch.Tensor:
    """What the scalar head says before each target [N], or at the end of each sequence [S]."""
    padded = reader.why_padded is not None if padded is None else padded
    states = _read(model.base_model, reader, batch, padded=padded).last_hidden_state
    picked = _picked(states, batch, padded=padded, targets=at_targets)
    head = _score_head(model)
    assert head is not None
    assert isinstance(head, torch.nn.Linear)
    wide = torch.promote_types(torch.float32, head.weight.dtype)
    bias = None if head.bias is None else head.bias.to(wide)
    # One number per token costs nothing, and in half precision it would have three digits.
    with torch.autocast(picked.device.type, enabled=False):
        found = torch.nn.functional.linear(picked.to(wide), head.weight.to(wide), bias)
        return found.sum(dim=1)  # of one; FSDP2 wants no views
