"""The sampler: from the logits of a batch to one token for each draw.

Order, as in transformers: penalties, bias, grammar mask, temperature, top-k, top-p (of what top-k left), min-p.
A draw's result depends on its own row and its own random number alone: whatever works on several rows at once is
element-wise or one of torch's row-wise kernels (softmax, cumsum, topk), never a reduction that the batch's shape could
split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isfinite

import numpy as np
import torch

from inferloom.engine.draws import Draw, Mask, Sampled
from inferloom.engine.messages import Logprob, SamplingSpec
from inferloom.engine.native_sampler import NativeSampler
from inferloom.engine.randomness import uniform
from inferloom.engine.row_sampler import RowSampler
from inferloom.kernels.native import library

# How many of the best tokens are looked at. A row's size depends on the row's own sampling alone, so that ties fall
# the same way in any batch.
_SIZES = (64, 256, 1024, 8192)
_BLOCK = 256  # of the vocabulary, in the search for a token
_PIECE = 3 << 17  # logits worked on at once: 1.5 MB stay in the caches, and double that is three times slower
_BINS, _BINS_PER_NAT = 4096, 64.0


row_sampler = lru_cache(maxsize=4)(
    RowSampler
)  # one for each size of vocabulary in this process, on its only thread


@cache
def native_sampler() -> NativeSampler | None:
    """The process's own, where there is an extension."""
    return NativeSampler() if library.available() else None


def sample(logits: torch.Tensor, draws: list[Draw], mask: Mask | None = None) -> list[Sampled]:
    """One token for each draw. `logits`: float32 [rows, vocab]; they may be changed."""
    rows = [draw.row for draw in draws]
    plain = mask is None
    for draw in draws:
        plain = plain and draw.logprobs < 0 and draw.penalties is None and not draw.sampling.logit_bias
    if plain and logits.device.type == "cpu" and (native := native_sampler()) is not None:
        return [Sampled(token) for token in native.draw(logits, rows, draws)]
    return _sample(logits, rows, draws, mask)


@torch.inference_mode()
def _sample(logits: torch.Tensor, rows: list[int], draws: list[Draw], mask: Mask | None) -> list[Sampled]:
    if rows != list(range(logits.shape[0])):
        logits = logits[torch.tensor(rows, device=logits.device)]

    scored = [i for i, draw in enumerate(draws) if draw.logprobs >= 0]
    unmodified = torch.log_softmax(logits[scored], dim=-1) if scored else None

    for i, draw in enumerate(draws):
        if draw.penalties is not None:
            draw.penalties.apply_after(draw.ahead, logits[i])
        if draw.sampling.logit_bias:
            _bias(logits[i], draw.sampling.logit_bias)
    if mask is not None:
        _restrict(logits, mask)

    tokens = _choose(logits, draws)
    sampled = [Sampled(token) for token in tokens]
    if unmodified is not None:
        scores = logprobs(
            unmodified, [max(tokens[i], 0) for i in scored], [draws[i].logprobs for i in scored]
        )
        for i, score in zip(scored, scores, strict=True):
            sampled[i].logprob = score
    return sampled


def logprobs(scores: torch.Tensor, tokens: list[int], counts: list[int]) -> list[Logprob]:
    """Of row i of log probabilities [n, vocab]: that of tokens[i] and the counts[i] best (−1 and 0: none)."""
    index = torch.tensor(tokens, device=scores.device)
    chosen = scores.gather(1, index[:, None])[:, 0].tolist()
    most = min(max(counts), scores.shape[1])
    if most < 1:
        return [(value, []) for value in chosen]
    best = scores.topk(most, dim=-1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        (value, list(zip(ids[: max(count, 0)], values[: max(count, 0)], strict=True)))
        for value, count, (ids, values) in zip(chosen, counts, pairs, strict=True)
    ]


def _bias(row: torch.Tensor, bias: dict[int, float]) -> None:
    ids = torch.tensor(list(bias), device=row.device)
    row[ids] += torch.tensor(list(bias.values()), dtype=row.dtype, device=row.device)


def _restrict(logits: torch.Tensor, mask: Mask) -> None:
    forbidden = ~mask.allowed.to(logits.device)
    if mask.draws == list(range(logits.shape[0])):
        logits.masked_fill_(forbidden, -torch.inf)
    else:
        index = torch.tensor(mask.draws, device=logits.device)
        logits[index] = logits[index].masked_fill_(forbidden, -torch.inf)


def _choose(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    if logits.device.type != "cpu":
        return _choose_batch(logits, draws)
    native = native_sampler()
    return _choose_rows(logits, draws) if native is None else native.draw(logits, range(len(draws)), draws)


def _choose_rows(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    """Row by row, on a CPU without the extension."""
    rows = logits.numpy()
    tokens: list[int] = rows.argmax(axis=-1).tolist()  # of numbers that are none, the first is found
    sampler: RowSampler | None = None
    for i, draw in enumerate(draws):
        row, sampling = rows[i], draw.sampling
        top = float(row[tokens[i]])
        if not isfinite(top):  # NaN or −inf: not a distribution
            tokens[i] = -1
        elif sampling.temperature > 0:
            sampler = sampler or row_sampler(logits.shape[1])
            die = uniform(sampling.seed, choice=draw.choice, position=draw.position)
            token = sampler.draw(row, top, sampling, die)
            tokens[i] = token if token >= 0 else _draw_wide(logits[i : i + 1], draw)
    return tokens


def _draw_wide(logits: torch.Tensor, draw: Draw) -> int:
    """One row, with a nucleus of thousands of tokens."""
    return _draw_nucleus(_Group.of(logits, logits.amax(dim=-1, keepdim=True), [draw], [0]))[0]


def _choose_batch(logits: torch.Tensor, draws: list[Draw]) -> list[int]:
    """All rows at once, on an accelerator; the plain form, too."""
    best = logits.argmax(dim=-1)
    tops = logits.gather(1, best[:, None])  # NaN or −inf: not a distribution
    tokens: list[int] = best.tolist()
    valid = torch.isfinite(tops[:, 0]).tolist()

    free: list[int] = []  # no top-k, no top-p: the whole vocabulary stays in play
    truncated: dict[int, list[int]] = {}  # by how many of the best tokens are looked at
    for i, draw in enumerate(draws):
        if not valid[i]:
            tokens[i] = -1
        elif draw.sampling.temperature > 0:
            size = _size(draw.sampling, logits.shape[1])
            if size is None:
                free.append(i)
            else:
                truncated.setdefault(size, []).append(i)
    rows = max(1, _PIECE // logits.shape[1])
    for start in range(0, len(free), rows):
        piece = free[start : start + rows]
        _store(tokens, piece, _draw_free(_Group.of(logits, tops, draws, piece)))
    for size, members in truncated.items():
        group = _Group.of(logits, tops, draws, members)
        drawn = _draw_truncated(group, size)
        _store(tokens, members, drawn)
        if unsettled := [place for place, token in enumerate(drawn) if token < 0]:
            _store(tokens, [members[place] for place in unsettled], _draw_nucleus(group.take(unsettled)))
    return tokens


def _size(sampling: SamplingSpec, vocab: int) -> int | None:
    if 0 < sampling.top_k < vocab:
        return min(next((s for s in _SIZES if s >= sampling.top_k), vocab), vocab)
    return min(_SIZES[0], vocab) if sampling.top_p < 1.0 else None


def _store(tokens: list[int], places: Iterable[int], drawn: list[int]) -> None:
    for place, token in zip(places, drawn, strict=True):
        tokens[place] = token


@dataclass(slots=True)
class _Group:
    """Rows that are sampled in one go: `scores` are logits with the row's best at 0, divided by temperature."""

    scores: torch.Tensor  # float32 [n, vocab]
    top_k: torch.Tensor  # int64 [n, 1], vocab where off
    top_p: torch.Tensor  # float64 [n, 1], 1 where off
    least: torch.Tensor  # float32 [n, 1], log of min-p: the least score in play, −inf where off
    dice: torch.Tensor  # float64 [n, 1], in [0, 1)

    @staticmethod
    def of(logits: torch.Tensor, tops: torch.Tensor, draws: list[Draw], members: list[int]) -> _Group:
        device, vocab = logits.device, logits.shape[1]
        chosen = [draws[i] for i in members]
        if len(members) != logits.shape[0]:
            index = torch.tensor(members, device=device)
            logits, tops = logits[index], tops[index]

        def column(values: list[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        # A subnormal temperature would make 0 / 0 of the best score.
        temperature = column([max(d.sampling.temperature, 1e-30) for d in chosen], torch.float32)
        return _Group(
            scores=(logits - tops).div_(temperature),
            top_k=column(
                [d.sampling.top_k if 0 < d.sampling.top_k < vocab else vocab for d in chosen], torch.int64
            ),
            top_p=column([d.sampling.top_p for d in chosen], torch.float64),
            least=column([d.sampling.min_p for d in chosen], torch.float32).log_(),
            dice=column(
                [uniform(d.sampling.seed, choice=d.choice, position=d.position) for d in chosen],
                torch.float64,
            ),
        )

    def take(self, places: list[int]) -> _Group:
        index = torch.tensor(places, device=self.scores.device)
        return _Group(
            self.scores[index], self.top_k[index], self.top_p[index], self.least[index], self.dice[index]
        )


def _draw_free(group: _Group) -> list[int]:
    """From the whole vocabulary, less what min-p forbids."""
    probabilities = torch.softmax(group.scores, dim=-1)
    if bool(torch.isfinite(group.least).any()):
        probabilities.masked_fill_(group.scores < group.least, 0.0)
    return _pick(probabilities, group.dice)


def _draw_truncated(group: _Group, size: int) -> list[int]:
    """From the `size` best tokens, best first; −1 for rows whose top-p reaches beyond them."""
    vocab = group.scores.shape[1]
    best = group.scores.topk(size, dim=-1)
    limited = group.top_k < vocab
    within = best.values.masked_fill(torch.arange(size, device=best.values.device) >= group.top_k, -torch.inf)
    probabilities = torch.softmax(within, dim=-1)
    if not bool(limited.all()):  # without top-k the mass is that of the whole vocabulary
        whole = torch.softmax(group.scores, dim=-1).gather(1, best.indices)
        probabilities = torch.where(limited, probabilities, whole)
    mass = probabilities.cumsum(dim=-1, dtype=torch.float64)
    settled = limited[:, 0] | (mass[:, -1] >= group.top_p[:, 0]) | (size == vocab)
    kept = ((mass - probabilities) < group.top_p) & (within >= group.least)
    kept[:, 0] = True  # top_p = 0 leaves the best
    places = _invert(probabilities * kept, group.dice)
    tokens = best.indices.gather(1, places[:, None])[:, 0]
    drawn: list[int] = torch.where(settled, tokens, -1).tolist()
    return drawn


def _draw_nucleus(group: _Group) -> list[int]:
    """Top-p where it reaches far into the vocabulary, without sorting it: row by row, sum the mass in bins of the
    score, and sort the one bin in which it reaches top_p. Tokens that tie with the nucleus' last belong to it."""
    probabilities = torch.softmax(group.scores, dim=-1)
    rows = zip(
        probabilities.cpu().numpy(), group.scores.cpu().numpy(), group.top_p[:, 0].tolist(), strict=True
    )
    least: list[float] = []
    for mass, scores, top_p in rows:
        bins = np.minimum(-scores * _BINS_PER_NAT, _BINS - 1).astype(np.int32)
        reached = np.bincount(bins, weights=mass, minlength=_BINS).cumsum()
        wanted = top_p * reached[-1]
        last = int(reached.searchsorted(wanted))
        edge = np.sort(mass[bins == last])[::-1]
        before = reached[last - 1] if last else 0.0
        count = int((before + edge.cumsum(dtype=np.float64)).searchsorted(wanted)) + 1
        least.append(float(edge[min(count, len(edge)) - 1]))
    threshold = torch.tensor(least, dtype=probabilities.dtype, device=probabilities.device)[:, None]
    probabilities.masked_fill_((probabilities < threshold) | (group.scores < group.least), 0.0)
    return _pick(probabilities, group.dice)


def _pick(weights: torch.Tensor, dice: torch.Tensor) -> list[int]:
    """`_invert` over a vocabulary: first the block of columns, then the column in it."""
    rows, vocab = weights.shape
    if vocab % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, _BLOCK - vocab % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    sums = blocks.sum(dim=-1, dtype=torch.float64)
    reached = sums.cumsum(dim=-1)
    target = dice * reached[:, -1:]
    block = torch.searchsorted(reached, target, right=True)
    within = blocks[torch.arange(rows, device=weights.device), block[:, 0]].cumsum(
        dim=-1, dtype=torch.float64
    )
    # The two sums of a block may differ in the last bit: stay within this one.
    rest = target - (reached - sums).gather(1, block)
    rest = torch.minimum(rest, within[:, -1:] * (1 - 2.0**-48))
    column = torch.searchsorted(within, rest, right=True)
    drawn: list[int] = (block * _BLOCK + column)[:, 0].tolist()
    return drawn


def _invert(weights: torch.Tensor, dice: torch.Tensor) -> torch.Tensor:
    """Of each row, the first column whose cumulated weight exceeds its die times the row's sum: int64 [n]."""
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(cumulated, dice * cumulated[:, -1:], right=True)[:, 0]
