"""Scaled dot-product attention, and rotary position embedding."""

from __future__ import annotations

from math import sqrt
from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.torch_import import torch

__all__: list[str] = []

functional = torch.nn.functional


@operator("Attention")
def attention(
    run: Run,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    lengths: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """Attend; the keys and values there are now, and the scores, are returned too.

    Queries are `(batch, heads, time, size)` or `(batch, time, heads · size)`. A query that may see
    no key gives zeros.
    """
    joined = query.dim() == 3
    query = _by_heads(query, run.number("q_num_heads"))
    key, value = (_by_heads(x, run.number("kv_num_heads")) for x in (key, value))
    if past_key is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    present = key, value
    each = query.shape[1] // key.shape[1]
    if each > 1:
        key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
    factor = sqrt(run.number("scale") or 1 / sqrt(query.shape[-1]))
    seen = [(query * factor) @ (key * factor).mT]
    cap = run.number("softcap", 0.0)
    seen.append(cap * torch.tanh(seen[0] / cap) if cap else seen[0])
    bias = _bias(run, query, key, mask, past_key, lengths)
    seen.append(seen[1] + bias)
    blind = (bias == float("-inf")).all(-1, keepdim=True)
    shares = torch.softmax(seen[2].masked_fill(blind, 0), -1)  # all −∞ has no softmax, nor a slope
    seen.append(shares.masked_fill(blind, 0))
    result = seen[3] @ value
    if joined:
        result = result.transpose(1, 2).flatten(2)
    return result, *present, seen[run.number("qk_matmul_output_mode", 0)]


def _by_heads(x: Any, heads: int | None) -> Any:
    return x if x.dim() == 4 else x.unflatten(2, (heads, -1)).transpose(1, 2)


def _bias(run: Run, query: Any, key: Any, mask: Any, past: Any, lengths: Any) -> Any:
    """Return what is added to scores: a mask's numbers, −∞ where a query may not see a key."""
    times, keys = query.shape[2], key.shape[2]
    first = query.new_zeros(1, dtype=torch.int64)  # keys that come before the first query
    if past is not None:
        first = first + past.shape[2]
    elif lengths is not None:
        first = lengths.reshape(-1, 1, 1, 1) - times
    places = torch.arange(keys, device=query.device)
    apart = first + torch.arange(times, device=query.device)[:, None] - places
    allowed = torch.ones_like(apart, dtype=torch.bool)
    if run.number("is_causal", 0):
        allowed = apart >= 0
    left, right = run.number("left_window_size", -1), run.number("right_window_size", -1)
    allowed = allowed & (apart <= left) if left >= 0 else allowed
    allowed = allowed & (-apart <= right) if right >= 0 else allowed
    if lengths is not None:
        allowed = allowed & (places < lengths.reshape(-1, 1, 1, 1))
    bias = query.new_zeros(())
    if mask is not None:
        missing = (0, keys - mask.shape[-1])
        if mask.dtype == torch.bool:
            allowed = allowed & functional.pad(mask, missing, value=False)
        else:
            bias = bias + functional.pad(mask, missing, value=float("-inf"))
    return torch.where(allowed, bias, float("-inf"))


@operator("RotaryEmbedding")
def rotary_embedding(run: Run, x: Any, cosines: Any, sines: Any, places: Any = None) -> Any:
    """Turn pairs of features by angles that grow with the place (Su et al. 2021)."""
    joined = x.dim() == 3
    heads = x.unflatten(2, (run.number("num_heads"), -1)) if joined else x.transpose(1, 2)
    size = run.number("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, rest = heads[..., :size], heads[..., size:]
    if places is not None:
        cosines, sines = cosines[places], sines[places]
    cosines, sines = cosines.unsqueeze(2), sines.unsqueeze(2)
    if run.number("interleaved", 0):
        one, other = turned[..., ::2], turned[..., 1::2]
    else:
        one, other = turned.chunk(2, -1)
    pair = cosines * one - sines * other, sines * one + cosines * other
    found = (
        torch.stack(pair, -1).flatten(-2) if run.number("interleaved", 0) else torch.cat(pair, -1)
    )
    found = torch.cat([found, rest], -1)
    return found.flatten(2) if joined else found.transpose(1, 2)
