"""Attention for documents that lie end to end: each attends within itself, nothing is padded.

    layout = Layout(segments, device)          # [G, 4]: start, end, prefix_start, prefix_end
    make_flat(model)                           # once; without a layout the model stays as it was
    model(input_ids=[1, T], position_ids=[1, T], flat_layout=layout)

Tokens [start, end) of a segment attend causally to each other and wholly to the tokens
[prefix_start, prefix_end), so the branches of a tree share their prompt's keys and values. Queries
and keys are sorted into few groups of nearly equal shape, one call of scaled dot-product attention
each. A layer with a sliding window of w tokens gets blocks of queries with the w keys before them.

The layout travels as a keyword argument down to the attention function, so a layer that is
computed again in the backward pass (gradient checkpointing) sees the same one. It cannot serve
layers that mix tokens in other ways (recurrent, chunked, with attention sinks or a bias by
position) or models that do not hand keyword arguments down: `trainloop.policy.unsupported` asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

Integers = npt.NDArray[np.int64]

NAME = "flat_documents"
"""The attention's name among transformers' attention implementations."""
SLACK, GPU_SLACK = 2**10, 2**18
"""Score entries (queries times keys) that a piece may be padded by to share a call."""
MASK_ENTRIES = 2**22
"""Entries of one group's mask, about."""
WINDOW_BLOCK = 128
"""Least queries of a block in a layer with a sliding window."""


class Layout:
    """How the tokens of one batch attend; the plan for each window is made when first asked."""

    def __init__(self, segments: Integers, device: torch.device | str) -> None:
        self.segments = np.asarray(segments, np.int64).reshape(-1, 4)
        self.device = torch.device(device)
        start, end, prefix_start, prefix_end = self.segments.T
        self.longest = int((end - start + prefix_end - prefix_start).max(initial=0))
        """Tokens of the longest document, its prompt included."""
        self.windows: list[int | None] = []
        """The window of each attention call; the probe looks at it."""
        self._plans: dict[int | None, _Plan] = {}

    def plan(self, window: int | None) -> _Plan:
        """The groups of a layer with this sliding window (None: it sees all)."""
        if window is not None and window >= self.longest:
            window = None
        if window not in self._plans:
            self._plans[window] = _planned(self.segments, window, self.device)
        return self._plans[window]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Queries of a segment, and the keys that any of them sees."""

    queries: Integers
    keys: Integers
    ahead: int
    """Place of the first query among the keys."""
    window: int | None

    @property
    def plain(self) -> bool:
        """Whether it is causal attention of tokens to themselves."""
        return self.ahead == 0 and self.window is None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.queries), len(self.keys)


@dataclass(frozen=True, slots=True)
class _Group:
    """Pieces of one call: `rows` times queries against keys."""

    rows: int
    queries: int
    keys: int
    visible: torch.Tensor | None
    """[rows or 1, 1, queries, keys]; None: plain causal."""
    masks: dict[torch.dtype, torch.Tensor] = field(default_factory=dict)

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """0 where a query sees a key, else minus infinity; made once for all layers."""
        if self.visible is not None and dtype not in self.masks:
            zeros = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
            self.masks[dtype] = zeros.masked_fill_(~self.visible, -torch.inf)
        return self.masks.get(dtype)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which token each row of all groups is, and the way back."""

    token: torch.Tensor
    """[rows]"""
    row: torch.Tensor
    """[T] a row of each token that is no padding."""
    more: tuple[torch.Tensor, torch.Tensor] | None
    """Tokens that have further rows, and these: the keys of a shared prompt."""
    padding: torch.Tensor | None
    """Rows that only fill up."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """All calls of a layer; rows are None where they are the tokens as they lie."""

    groups: list[_Group]
    queries: _Rows | None
    keys: _Rows | None


# --- segments -> groups ------------------------------------------------------------------------


def _planned(segments: Integers, window: int | None, device: torch.device) -> _Plan:
    pieces = [piece for segment in segments.tolist() for piece in _pieces(segment, window)]
    chosen = _chosen(pieces, SLACK if device.type == "cpu" else GPU_SLACK)
    groups = [_group(members, device) for members in chosen]
    queries = [(p.queries, g.queries) for m, g in zip(chosen, groups, strict=True) for p in m]
    keys = [(p.keys, g.keys) for m, g in zip(chosen, groups, strict=True) for p in m]
    return _Plan(groups, _rows(queries, device), _rows(keys, device))


def _pieces(segment: list[int], window: int | None) -> Iterator[_Piece]:
    """One piece for a segment; blocks of it where a window hides some of its tokens."""
    start, end, prefix_start, prefix_end = segment
    if start == end:
        return
    prefix = prefix_end - prefix_start
    seen = np.concatenate([np.arange(prefix_start, prefix_end), np.arange(start, end)])
    if window is None or len(seen) <= window:
        yield _Piece(seen[prefix:], seen, prefix, None)
        return
    size = max(window, WINDOW_BLOCK)
    for first in range(prefix, len(seen), size):
        last, since = min(first + size, len(seen)), max(0, first - window + 1)
        hides = window if last - since > window else None
        yield _Piece(seen[first:last], seen[since:last], first - since, hides)


def _chosen(pieces: list[_Piece], slack: int) -> list[list[_Piece]]:
    """Pieces that go into one call each: sorted by shape, unless that saves few calls."""
    order = sorted(pieces, key=lambda piece: (not piece.plain, piece.shape), reverse=True)
    sorted_groups, as_they_lie = _runs(order, slack), _runs(pieces, 0)
    return sorted_groups if len(sorted_groups) <= len(as_they_lie) * 3 // 4 else as_they_lie


def _runs(pieces: list[_Piece], slack: int) -> list[list[_Piece]]:
    """Neighbours in one group as long as none is padded by more than `slack` score entries."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if groups and _fits(groups[-1], piece, slack):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _fits(members: list[_Piece], piece: _Piece, slack: int) -> bool:
    if members[0].plain != piece.plain:
        return False
    if slack == 0:
        return members[0].shape == piece.shape
    queries = max(members[0].shape[0], piece.shape[0])
    keys = max(max(len(member.keys) for member in members), piece.shape[1])
    smallest = min(len(m.queries) * len(m.keys) for m in [*members, piece])
    few = piece.plain or (len(members) + 1) * queries * keys <= MASK_ENTRIES
    return few and queries * keys - smallest <= slack


def _group(members: list[_Piece], device: torch.device) -> _Group:
    queries, keys = (max(sizes) for sizes in zip(*(p.shape for p in members), strict=True))
    if members[0].plain:
        return _Group(len(members), queries, keys, None)
    if all(p.shape == (queries, keys) and p.ahead == members[0].ahead for p in members):
        different = members[:1]
    else:
        different = members
    visible = np.zeros((len(different), 1, queries, keys), np.bool_)
    for number, piece in enumerate(different):
        # A query that only fills up sees what the piece's last one sees: never nothing.
        query = np.minimum(np.arange(queries), len(piece.queries) - 1)[:, None] + piece.ahead
        key = np.arange(keys)
        visible[number, 0] = (key <= query) & (key < len(piece.keys))
        if piece.window is not None:
            visible[number, 0] &= key > query - piece.window
    return _Group(len(members), queries, keys, torch.from_numpy(visible).to(device))


def _rows(pieces: list[tuple[Integers, int]], device: torch.device) -> _Rows | None:
    """The rows of all groups for pieces of tokens, each filled up to a width."""
    if not pieces:
        return None
    sizes, widths = np.array([(len(tokens), width) for tokens, width in pieces]).T
    starts = np.cumsum(widths) - widths
    token = np.concatenate([np.append(t, np.full(w - len(t), t[0])) for t, w in pieces])
    place = np.arange(len(token)) - np.repeat(starts, widths)
    real = place < np.repeat(sizes, widths)
    tokens, first = np.unique(np.where(real, token, -1), return_index=True)
    tokens, first = tokens[tokens >= 0], first[tokens >= 0]
    assert np.array_equal(tokens, np.arange(len(tokens))), "the segments hold every token"
    if np.array_equal(token, tokens):
        return None
    again = real.copy()
    again[first] = False

    def on(numbers: Integers) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)

    further = np.flatnonzero(again)
    return _Rows(
        token=on(token),
        row=on(first),
        more=(on(token[further]), on(further)) if len(further) else None,
        padding=None if real.all() else on(np.flatnonzero(~real)),
    )


# --- the attention -----------------------------------------------------------------------------


class _Take(torch.autograd.Function):
    """Tokens -> rows. The gradient of a row that only fills up is zero and is left out."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: _Rows) -> torch.Tensor:
        ctx.rows = rows
        return x.index_select(0, rows.token)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        [grad], rows = grads, ctx.rows
        found = grad.index_select(0, rows.row)
        if rows.more is not None:
            tokens, further = rows.more
            found.index_add_(0, tokens, grad.index_select(0, further))
        return found, None


class _Put(torch.autograd.Function):
    """Rows -> tokens; the rows that only fill up are dropped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: _Rows) -> torch.Tensor:
        ctx.rows = rows
        return x.index_select(0, rows.row)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        [grad], rows = grads, ctx.rows
        found = grad.index_select(0, rows.token)
        if rows.padding is not None:
            found.index_fill_(0, rows.padding, 0)
        return found, None


def flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    flat_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend; (1, heads, T, width) -> (1, T, heads, width), as transformers wants.

    Raises ValueError for a layer that wants anything but causal attention.
    """
    if flat_layout is None:
        raise ValueError(f"{type(module).__name__} does not hand its keyword arguments down")
    _refuse(module, query, key, attention_mask, kwargs)
    window = kwargs.get("sliding_window")
    flat_layout.windows.append(window)
    plan = flat_layout.plan(window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries = _split(query, plan.queries, [(g.rows, g.queries) for g in plan.groups])
    keys = _split(key, plan.keys, [(g.rows, g.keys) for g in plan.groups])
    values = _split(value, plan.keys, [(g.rows, g.keys) for g in plan.groups])
    found = [
        _attend(q, k, v, group, scale, dropout, softcap).transpose(1, 2).flatten(0, 1)
        for group, q, k, v in zip(plan.groups, queries, keys, values, strict=True)
    ]
    out = found[0] if len(found) == 1 else torch.cat(found)
    if plan.queries is not None:
        out = _Put.apply(out, plan.queries)
    return out[None], None


def _split(
    x: torch.Tensor, rows: _Rows | None, shapes: list[tuple[int, int]]
) -> list[torch.Tensor]:
    """(1, heads, T, width) -> (rows, heads, tokens of each, width) for each group."""
    tokens = x[0].transpose(0, 1)
    if rows is not None:
        tokens = _Take.apply(tokens, rows)
    parts = tokens.split([count * size for count, size in shapes]) if len(shapes) > 1 else [tokens]
    return [
        part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)
    ]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: _Group,
    scale: float,
    dropout: float,
    softcap: float | None,
) -> torch.Tensor:
    """softmax(cap(query key^T scale)) value over visible keys; cap(x) = softcap tanh(x / softcap).

    (rows, heads, tokens, width) each; keys and values may have fewer heads, shared by groups.
    """
    shared = query.shape[1] // key.shape[1]
    if softcap is None:
        mask = group.mask(query.dtype)
        if shared > 1 and mask is not None and query.device.type == "cuda":
            # The kernels that take a mask know no shared heads there.
            key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
            shared = 1
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=shared > 1,
        )
    visible = group.visible
    if visible is None:
        causal = torch.ones(group.queries, group.keys, dtype=torch.bool, device=query.device)
        visible = causal.tril()[None, None]
    queries = query.unflatten(1, (-1, shared))
    scores = queries @ key.transpose(-1, -2).unsqueeze(2) * (scale / softcap)
    scores = (torch.tanh(scores) * softcap).masked_fill(~visible.unsqueeze(1), -torch.inf)
    wide = torch.promote_types(torch.float32, query.dtype)
    weights = scores.softmax(dim=-1, dtype=wide).to(value.dtype)
    weights = torch.nn.functional.dropout(weights, dropout) if dropout else weights
    return (weights @ value.unsqueeze(2)).flatten(1, 2)


def _refuse(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    """ValueError for a layer that wants anything but causal attention of all to all."""
    reasons = {
        "it adds a mask of its own": mask is not None,
        "it attends to other tokens than it asks for": query.shape[2] != key.shape[2],
        "it attends in both directions": not getattr(module, "is_causal", True),
        "it has attention sinks": kwargs.get("s_aux") is not None,
        "it adds a bias by position": kwargs.get("position_bias") is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{type(module).__name__}: {reason}")


# --- the model ---------------------------------------------------------------------------------


def make_flat(model: torch.nn.Module) -> None:
    """Let the model take a `flat_layout`; called without one it does what it did before.

    Whatever module gets a layout has this attention while it runs, and its own again afterwards:
    so the recomputation of a single layer finds it too.
    """
    AttentionInterface.register(NAME, flat_attention)
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal") and not hasattr(module, "_own_attn"):
            module._own_attn = []
            module.register_forward_pre_hook(_borrow, with_kwargs=True)
            module.register_forward_hook(_give_back, with_kwargs=True, always_call=True)


def _borrow(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if kwargs.get("flat_layout") is not None:
        module._own_attn.append(module.config._attn_implementation_internal)
        module.config._attn_implementation_internal = NAME


def _give_back(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    if kwargs.get("flat_layout") is not None and module._own_attn:
        module.config._attn_implementation_internal = module._own_attn.pop()
