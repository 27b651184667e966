"""Log-probabilities of given tokens, without ever holding [targets x vocabulary] logits.

    head = Head(linear=model.lm_head, scale=1.0, softcap=None)
    logprobs, entropy = target_logprobs(head, hidden, labels, temperature=1.0, entropy=True)

Where targets times vocabulary is large, or the vocabulary is, logits are made in tiles, summed up
and forgotten, and made again in the backward pass: a fourth matrix product, for a memory that does
not grow with the targets. Softmax is in float32
(float64 for float64 models). `from_logits` does the same for logits that are there already.
What it cannot do: second derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

KEEP_VOCABULARY = 2**14
"""Above this vocabulary logits are never kept for the backward pass."""
KEEP_LOGITS = 2**25
"""At most so many logits are (128 MiB in float32)."""
CHUNK_LOGITS, GPU_CHUNK_LOGITS = 2**22, 2**27
"""Logits that are made at a time, about."""
ROWS = 2048
"""At most so many targets at a time; the rest of a tile is vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """logits = softcap tanh(x / softcap) with x = scale * linear(hidden); x itself without cap."""

    linear: torch.nn.Linear
    scale: float = 1.0
    softcap: float | None = None

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and cap what `linear` gave."""
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def target_logprobs(
    head: Head,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of each target [N] its log-probability at `hidden` [N, width], and the entropy there (nats).

    Logits are divided by `temperature`. Both results have gradients.
    """
    weight, bias = head.linear.weight, head.linear.bias
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(low), weight.to(low)
        bias = None if bias is None else bias.to(low)
    hidden = hidden.to(weight.dtype)
    grad = torch.is_grad_enabled()
    found = _TargetLogprobs.apply(hidden, weight, bias, labels, head, temperature, entropy, grad)
    return found[0], found[1] if entropy else None


def from_logits(
    logits: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same of whole logits [N, vocabulary]."""
    wide = torch.promote_types(torch.float32, logits.dtype)
    logprobs = (logits.to(wide) / temperature).log_softmax(dim=-1)
    picked = logprobs.gather(1, labels[:, None])[:, 0]
    return picked, -(logprobs.exp() * logprobs).sum(dim=-1) if entropy else None


class _TargetLogprobs(torch.autograd.Function):
    """hidden, weight, bias -> log-probability and entropy of each target.

    Logits are made in tiles, some targets times a part of the vocabulary; maximum and sum of a
    row are carried from tile to tile, so each part of the weight and of its gradient is used once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        head: Head,
        temperature: float,
        entropy: bool,
        grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tiles = _Tiles(hidden, weight, bias, head, temperature)
        count, vocabulary = len(hidden), len(weight)
        few = vocabulary <= KEEP_VOCABULARY and count * vocabulary <= KEEP_LOGITS
        keep = grad and few and head.softcap is None
        picked, total, spread = (hidden.new_zeros(count, dtype=tiles.wide) for _ in range(3))
        kept, tops = [], []
        for rows in tiles.rows:
            highest = total.new_full((len(labels[rows]),), -torch.inf)
            mass, weighted = torch.zeros_like(highest), torch.zeros_like(highest)
            for part in tiles.parts:
                logits = tiles.made(rows, part, fresh=keep and not entropy)
                place, inside = _places(labels[rows], part)
                picked[rows] += logits.gather(1, place)[:, 0].where(inside, 0)
                top = torch.maximum(highest, logits.amax(dim=1))
                shrink, highest = (highest - top).exp_(), top
                shares = (logits - top[:, None] if entropy else logits.sub_(top[:, None])).exp_()
                mass = mass * shrink + shares.sum(dim=1)
                if entropy:
                    weighted = weighted * shrink + torch.linalg.vecdot(shares, logits)
                if keep:
                    kept.append(shares)
                    tops.append(top)
            total[rows] = highest + mass.log()
            spread[rows] = total[rows] - weighted / mass
        picked -= total
        ctx.save_for_backward(hidden, weight, bias, labels, total, spread, *kept, *tops)
        ctx.settings = head, temperature, entropy
        ctx.set_materialize_grads(False)
        return picked, spread

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, total, spread, *kept = ctx.saved_tensors
        head, temperature, entropy = ctx.settings
        of_picked, of_spread = grads[0], grads[1] if entropy else None
        tiles = _Tiles(hidden, weight, bias, head, temperature)
        if of_spread is not None:
            kept = []  # shares alone do not give the entropy's gradient
        sums = [
            torch.zeros_like(x, dtype=tiles.wide) if x is not None and wanted else None
            for x, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        to_hidden, to_weight, to_bias = sums
        for number, part in enumerate(tiles.parts):
            for block, rows in enumerate(tiles.rows):
                bent = None
                if kept and of_picked is not None:
                    place = block * len(tiles.parts) + number
                    shares, top = kept[place], kept[len(kept) // 2 + place]
                    factor = (top - total[rows]).exp_().mul_(-of_picked[rows])
                    slope = torch.mul(shares, factor[:, None], out=tiles.room(*shares.shape))
                else:
                    logits = tiles.made(rows, part)
                    cap = head.softcap
                    bent = None if cap is None else logits * (temperature / cap)
                    logprobs = logits.sub_(total[rows, None])
                    slope = _slope(logprobs, rows, of_picked, of_spread, spread)
                if of_picked is not None:
                    place, inside = _places(labels[rows], part)
                    slope.scatter_add_(1, place, of_picked[rows].where(inside, 0)[:, None])
                if bent is not None:
                    slope *= bent.square_().neg_().add_(1)
                if head.scale != temperature:
                    slope *= head.scale / temperature
                if to_bias is not None:
                    to_bias[part] += slope.sum(dim=0)
                slope = slope.to(weight.dtype)
                if to_hidden is not None:
                    _add_product(to_hidden[rows], slope, weight[part])
                if to_weight is not None:
                    _add_product(to_weight[part], slope.T, hidden[rows])
        narrow = (None if x is None else x.to(weight.dtype) for x in sums)
        return (*narrow, None, None, None, None, None)


class _Tiles:
    """How [targets x vocabulary] is cut, and the logits of one tile."""

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        temperature: float,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.head, self.temperature = head, temperature
        self.wide = torch.promote_types(torch.float32, weight.dtype)
        limit = CHUNK_LOGITS if hidden.device.type == "cpu" else GPU_CHUNK_LOGITS
        count, vocabulary = len(hidden), len(weight)
        size = max(1, min(count, ROWS))
        width = max(1, min(vocabulary, limit // size))
        self.rows = [slice(n, min(n + size, count)) for n in range(0, count, size)]
        self.parts = [slice(n, min(n + width, vocabulary)) for n in range(0, vocabulary, width)]
        self._room = hidden.new_empty(size * width, dtype=self.wide)

    def room(self, rows: int, columns: int) -> torch.Tensor:
        """Memory for a tile, the same each time."""
        return self._room[: rows * columns].view(rows, columns)

    def made(self, rows: slice, part: slice, *, fresh: bool = False) -> torch.Tensor:
        """Logits / temperature of a tile; not `fresh`: valid until the next call."""
        hidden, weight = self.hidden[rows], self.weight[part]
        if weight.dtype == self.wide:
            shape = len(hidden), len(weight)
            out = self._room.new_empty(shape) if fresh else self.room(*shape)
            logits = torch.mm(hidden, weight.T, out=out)
        else:
            logits = (hidden @ weight.T).to(self.wide)
        if self.bias is not None:
            logits += self.bias[part]
        logits = self.head.finish(logits)
        return logits if self.temperature == 1 else logits.div_(self.temperature)


def _places(labels: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Column [N, 1] of each label in a part of the vocabulary, any if outside; whether inside."""
    inside = (labels >= part.start) & (labels < part.stop)
    return (labels - part.start).clamp(0, part.stop - part.start - 1)[:, None], inside


def _slope(
    logprobs: torch.Tensor,
    rows: slice,
    of_picked: torch.Tensor | None,
    of_spread: torch.Tensor | None,
    spread: torch.Tensor,
) -> torch.Tensor:
    """The gradient by the logits, but for what the labels themselves add. Overwrites `logprobs`.

    Of log p(label): -p; of the entropy H: -p (log p + H).
    """
    if of_spread is None:
        if of_picked is None:
            return logprobs.zero_()
        return logprobs.exp_().mul_(-of_picked[rows, None])
    slope = logprobs.exp()
    factor = logprobs.add_(spread[rows, None]).mul_(-of_spread[rows, None])
    return slope.mul_(factor if of_picked is None else factor.sub_(of_picked[rows, None]))


def _add_product(to: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to a sum that may be wider than they are."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to += left @ right
