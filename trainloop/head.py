"""Log-probabilities of given tokens, without ever holding [targets x vocabulary] logits.

    head = Head(linear=model.lm_head, scale=1.0, softcap=None)
    logprobs, entropy = target_logprobs(head, hidden, labels, temperature=1.0, entropy=True)

Where targets times vocabulary is large, or the vocabulary is, logits are made for some targets at
a time and made again in the backward pass, whose chunks add to one gradient of the output matrix:
a fourth matrix product for a memory that does not grow with the targets. Softmax is in float32
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
    """hidden, weight, bias -> log-probability and entropy of each target."""

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
        wide = torch.promote_types(torch.float32, weight.dtype)
        count, vocabulary = len(hidden), len(weight)
        few = vocabulary <= KEEP_VOCABULARY and count * vocabulary <= KEEP_LOGITS
        keep = grad and few and head.softcap is None
        limit = CHUNK_LOGITS if hidden.device.type == "cpu" else GPU_CHUNK_LOGITS
        size = max(1, count if keep else limit // vocabulary)
        picked, total, spread = hidden.new_empty(3, count, dtype=wide)
        kept = None
        for first in range(0, count, size):
            here = slice(first, first + size)
            raw = _raw(hidden[here], weight, bias)
            logits = head.finish(raw.to(wide)).div_(temperature)
            logprobs = logits.log_softmax(dim=-1)
            label = labels[here, None]
            picked[here] = logprobs.gather(1, label)[:, 0]
            total[here] = logits.gather(1, label)[:, 0] - picked[here]
            if entropy:
                spread[here] = -(logprobs.exp().mul_(logprobs)).sum(dim=-1)
            kept = logprobs if keep else None
        ctx.save_for_backward(hidden, weight, bias, labels, total, spread, kept)
        ctx.settings = head, temperature, entropy, size
        ctx.set_materialize_grads(False)
        return picked, spread

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, total, spread, kept = ctx.saved_tensors
        head, temperature, entropy, size = ctx.settings
        of_picked, of_spread = grads
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = total.dtype
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        to_bias = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        for first in range(0, len(hidden), size):
            here = slice(first, first + size)
            bent = None
            if kept is None:
                capped = head.finish(_raw(hidden[here], weight, bias).to(wide))
                bent = None if head.softcap is None else capped / head.softcap
                logprobs = capped.div_(temperature).sub_(total[here, None])
            else:
                logprobs = kept
            if entropy and of_spread is not None:
                slope = logprobs.exp()
                factor = (logprobs + spread[here, None]).mul_(-of_spread[here, None])
                slope *= factor if of_picked is None else factor.sub_(of_picked[here, None])
            elif of_picked is not None:
                slope = logprobs.exp_() if kept is None else logprobs.exp()
                slope *= -of_picked[here, None]
            else:
                slope = torch.zeros_like(logprobs)
            if of_picked is not None:
                slope.scatter_add_(1, labels[here, None], of_picked[here, None])
            if bent is not None:
                slope *= bent.square_().neg_().add_(1)
            if head.scale != temperature:
                slope *= head.scale / temperature
            if to_bias is not None:
                to_bias += slope.sum(dim=0)
            slope = slope.to(weight.dtype)
            if to_hidden is not None:
                torch.mm(slope, weight, out=to_hidden[here])
            if to_weight is not None:
                _add_product(to_weight, slope, hidden[here])
        narrow = (x if x is None else x.to(weight.dtype) for x in (to_weight, to_bias))
        return (to_hidden, *narrow, None, None, None, None, None)


def _raw(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(hidden, weight, bias)


def _add_product(to: torch.Tensor, slope: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add slope^T hidden to a sum that may be wider than they are."""
    if to.dtype == hidden.dtype:
        to.addmm_(slope.T, hidden)
    else:
        to += slope.T @ hidden
