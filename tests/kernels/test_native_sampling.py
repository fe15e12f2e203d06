"""The native sampling against the torch sampler: the same tokens for the same random numbers."""

from __future__ import annotations

import numpy as np
import torch

from inferloom.engine import sampler
from inferloom.engine.messages import SamplingSpec
from inferloom.engine.randomness import uniform
from inferloom.kernels.native import library

VOCAB = 49_152
SAMPLINGS = [
    SamplingSpec(temperature=0.0),
    SamplingSpec(),
    SamplingSpec(temperature=0.7, min_p=0.05),
    SamplingSpec(top_k=40),
    SamplingSpec(temperature=1.3, top_k=1000, top_p=0.9),
    SamplingSpec(top_p=0.9),
    SamplingSpec(temperature=2.0, top_p=0.95, min_p=0.001),
    SamplingSpec(top_p=0.0),
]


def draw(logits: torch.Tensor, draws: list[sampler.Draw]) -> list[int]:
    specs = [d.sampling for d in draws]
    columns = [
        np.array([d.row for d in draws], dtype=np.int64),
        np.array([s.temperature for s in specs], dtype=np.float32),
        np.array([s.top_k for s in specs], dtype=np.int32),
        np.array([s.top_p for s in specs], dtype=np.float64),
        np.array([s.min_p for s in specs], dtype=np.float32),
        np.array(
            [uniform(d.sampling.seed, choice=d.choice, position=d.position) for d in draws], dtype=np.float64
        ),
    ]
    tokens = np.empty(len(draws), dtype=np.int32)
    library.load().sample(
        logits.data_ptr(),
        logits.stride(0),
        logits.shape[1],
        *(column.ctypes.data for column in columns),
        len(draws),
        tokens.ctypes.data,
    )
    return list(tokens.tolist())


def test_draws_are_those_of_the_torch_sampler(isa: str) -> None:
    generator = torch.Generator().manual_seed(3)
    same = total = 0
    for spread in (0.5, 3.0, 8.0):  # from wide nuclei to narrow ones
        logits = torch.randn(len(SAMPLINGS) * 8, VOCAB, generator=generator) * spread
        draws = [
            sampler.Draw(row, SAMPLINGS[row % len(SAMPLINGS)], choice=0, position=row)
            for row in range(len(logits))
        ]
        native = draw(logits, draws)
        wanted = [sampled.token for sampled in sampler.sample(logits.clone(), draws)]
        same += sum(a == b for a, b in zip(native, wanted, strict=True))
        total += len(draws)
    assert same >= total - 2, isa  # a die on the border of two tokens may fall to the other side by rounding


def test_log_probabilities_are_those_of_log_softmax(isa: str) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(4)) * 4
    rows, tokens = np.array([2, 0], dtype=np.int64), np.array([17, VOCAB - 1], dtype=np.int32)
    chosen, ids, values = np.empty(2, np.float32), np.empty((2, 20), np.int32), np.empty((2, 20), np.float32)
    library.load().log_probabilities(
        logits.data_ptr(),
        VOCAB,
        VOCAB,
        rows.ctypes.data,
        tokens.ctypes.data,
        2,
        20,
        chosen.ctypes.data,
        ids.ctypes.data,
        values.ctypes.data,
    )
    scores = torch.log_softmax(logits.double(), dim=-1)[rows]
    best = scores.topk(20, dim=-1)
    torch.testing.assert_close(torch.from_numpy(chosen).double(), scores[[0, 1], tokens], rtol=0, atol=1e-5)
    assert torch.from_numpy(ids).long().equal(best.indices), isa
    torch.testing.assert_close(torch.from_numpy(values).double(), best.values, rtol=0, atol=1e-5)
