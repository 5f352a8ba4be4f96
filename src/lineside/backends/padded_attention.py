"""Attention of a tree as plain batched products: segments of similar shape are padded and computed together.

It uses PyTorch operations only and runs on any device. It is the reference for the faster kernels, and it is used
where they cannot be: without a C++ compiler, and on a GPU without FlexAttention.

Shapes: S segments of a bucket, A ancestor tokens, L own tokens, T = A + L; H query heads, K key heads, E head width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lineside.model.tree import Pack, rounded

Segment = tuple[list[int], list[int]]  # a run of tokens: indices of all its ancestors, and of its own tokens


@dataclass(frozen=True)
class Bucket:
    """Segments of similar shape that are computed together: a slice of the plan's query and key indices."""

    segments: int  # S
    own: int  # L
    keys: int  # A + L
    mask: Tensor  # (S, 1, L, A + L) True where a query may look


class PaddedPlan:
    """Attention of a pack: in each bucket, a segment's own tokens attend to its ancestors and to each other."""

    def __init__(self, pack: Pack) -> None:
        device = pack.tokens.device
        buckets, queries, keys = [], [], []
        for group in _by_shape(segments_of(pack.end[: pack.size].tolist())):
            bucket, query, key = _bucket(group)
            buckets.append(bucket)
            queries.append(query.flatten())
            keys.append(key.flatten())
        place = torch.cat(queries) if queries else torch.zeros(0, dtype=torch.long)
        order = torch.zeros(len(pack.tokens), dtype=torch.long)
        order[place[place >= 0]] = (place >= 0).nonzero().flatten()
        self._buckets = buckets
        # The buckets follow one another. Padding has index 0; it is masked as a key and never read as a query.
        self._query = place.clamp(min=0).to(device)  # (sum of S * L,)
        self._key = (torch.cat(keys) if keys else place).clamp(min=0).to(device)  # (sum of S * (A + L),)
        self._order = order.to(device)  # (N,) where the output of each token is among the padded queries
        self._biases: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention along every root-to-leaf path (see Plan for shapes)."""
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (N, heads, E), contiguous for each token
        if not self._biases:  # the same for every layer
            masks = [b.mask.to(q.device) for b in self._buckets]
            self._biases = [q.new_zeros(mask.shape).masked_fill_(~mask, float("-inf")) for mask in masks]
        # One gather and one split for all buckets. With one gather for each bucket, backward would fill and add a
        # gradient of the whole tensor for each of them.
        q_of = q.index_select(0, self._query).split([b.segments * b.own for b in self._buckets])
        kv_of = torch.cat([k, v], dim=-1).index_select(0, self._key).split([b.segments * b.keys for b in self._buckets])
        parts = []
        for b, bias, q_b, kv_b in zip(self._buckets, self._biases, q_of, kv_of):
            k_b, v_b = kv_b.unflatten(0, (b.segments, b.keys)).chunk(2, dim=-1)
            parts.append(_biased(q_b.unflatten(0, (b.segments, b.own)), k_b, v_b, bias, scale).flatten(0, 1))
        return torch.cat(parts).index_select(0, self._order)


def _biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """(S, L, H, E), (S, T, K, E), (S, T, K, E), (S, 1, L, T) -> (S, L, H, E).

    A CPU does not use the flash kernel: for many short segments, plain batched products are faster, most of all in
    backward.
    """
    segments, own, heads, width = q.shape
    kv_heads = k.shape[2]
    each = heads // kv_heads
    if q.is_cuda:
        k, v = (t.repeat_interleave(each, dim=2) if each > 1 else t for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)
    # The query heads that share a key head become rows of one product with it, so no key has to be copied.
    q = (q * scale).unflatten(2, (kv_heads, each)).permute(0, 2, 3, 1, 4).reshape(segments * kv_heads, -1, width)
    k = k.permute(0, 2, 3, 1).reshape(segments * kv_heads, width, -1)
    v = v.transpose(1, 2).reshape(segments * kv_heads, -1, width)
    shared = bias[:, None].expand(-1, kv_heads, each, -1, -1).reshape(segments * kv_heads, each * own, -1)
    out = torch.bmm(torch.softmax(torch.baddbmm(shared, q, k), dim=-1), v)
    return out.view(segments, kv_heads, each, own, width).permute(0, 3, 1, 2, 4).flatten(2, 3)


def segments_of(end: Sequence[int]) -> list[Segment]:
    """Cut a flat sequence into segments. `end[i]` is the last token of token i's subtree (see Pack). Neighbours with
    the same `end` form a segment: a node, or a chain of nodes with one child each."""
    segments: list[Segment] = []
    above: list[list[int]] = []
    start = 0
    while start < len(end):
        stop = next((i for i in range(start, len(end)) if end[i] != end[start]), len(end))
        while above and end[above[-1][0]] < start:
            above.pop()
        own = list(range(start, stop))
        segments.append(([token for run in above for token in run], own))
        above.append(own)
        start = stop
    return segments


def _by_shape(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Group segments so that little padding is needed: the same rounded number of ancestors, and similar lengths."""
    ordered = sorted(segments, key=lambda s: (_coarse(len(s[0])), len(s[1])))
    held: list[Segment] = []
    for segment in ordered:
        if held and (
            _coarse(len(segment[0])) != _coarse(len(held[0][0]))
            or len(segment[1]) > 1.5 * len(held[0][1]) + 6
            or len(held) >= 256
        ):
            yield held
            held = []
        held.append(segment)
    if held:
        yield held


def _coarse(length: int) -> int:
    """A number of ancestors, rounded up; segments with the same result may share a bucket. 0 stays 0; the step is a
    quarter of the next power of two, but at least 16."""
    if length == 0:
        return 0
    step = max(16, (1 << length.bit_length()) // 4)
    return -(-length // step) * step


def _bucket(segments: Sequence[Segment]) -> tuple[Bucket, Tensor, Tensor]:
    """The bucket of some segments, with its query (S, L) and key (S, A + L) indices, -1 for padding.

    A token may look at all ancestors of its segment, and at its segment's own tokens up to itself.
    """
    wide = rounded(max(len(above) for above, _ in segments), 16)
    long = rounded(max(len(own) for _, own in segments), 8)
    count = rounded(len(segments), 8)
    segments = [*segments, *[([], [])] * (count - len(segments))]
    padded = [above + [-1] * (wide - len(above)) for above, _ in segments]
    ancestors = torch.tensor(padded, dtype=torch.long).view(count, wide)
    own = torch.tensor([mine + [-1] * (long - len(mine)) for _, mine in segments], dtype=torch.long)
    causal = torch.ones(long, long, dtype=torch.bool).tril()
    mask = torch.cat([(ancestors >= 0)[:, None, :].expand(-1, long, -1), causal.expand(count, -1, -1)], dim=-1)
    return Bucket(count, long, wide + long, mask[:, None].contiguous()), own, torch.cat([ancestors, own], dim=1)
