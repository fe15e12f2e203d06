"""Quantised weights on the native step: the values of the grid, mixed with each other and with floats as GGUF files mix them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from factories.matrices import pack

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.json_files import read_json
from inferloom.formats.layouts import Layout, PackedTensor, dequantise
from inferloom.formats.weights import open_weights
from inferloom.kernels.reference import ReferenceKernels
from inferloom.models.batch import Executor
from inferloom.models.decoder import Decoder
from inferloom.models.decoder_weights import read_decoder
from inferloom.models.native import NativeDecoder
from inferloom.models.spec import DecoderSpec
from inferloom.models.tensors import TensorReader
from inferloom.types import ModelCard

from .ragged import Bench
from .test_decoder import distance, prompt_of

Make = Callable[..., Checkpoint]
Tensors = Mapping[str, torch.Tensor | PackedTensor]
CARD = ModelCard(
    kind="generate",
    architecture="",
    parameters=0,
    format="",
    dtype="bfloat16",
    max_model_len=512,
    vocab_size=320,
)

# What each kind of matrix is packed as; None: left as it is.
SCHEMES: dict[str, dict[str, Layout | None]] = {
    "int8": {"embed_tokens": Layout.Q8_HALVES, "": Layout.Q8_ROW},
    "int4": {"embed_tokens": Layout.Q8_HALVES, "": Layout.Q4Z_32},
    "int4 of a GGUF": {"embed_tokens": Layout.Q8_32, "": Layout.Q4Z_32},
    "int4-all": {"": Layout.Q4Z_32},
    "q4_0": {"embed_tokens": Layout.Q8_32, "": Layout.Q4S_32},
    "q8_0": {"": Layout.Q8_32},
    "rows and groups": {"embed_tokens": Layout.Q8_HALVES, "mlp": Layout.Q8_ROW, "": Layout.Q8_32},
    "as a mixed GGUF": {
        "embed_tokens": Layout.Q8_32,
        "v_proj": Layout.Q8_32,
        "layers.1.mlp.down_proj": None,
        "up_proj": Layout.Q8_ROW,
        "k_proj": None,
        "o_proj": Layout.Q4S_32,
        "": Layout.Q4_32,
    },
}


def packed(tensors: Tensors, scheme: Mapping[str, Layout | None]) -> dict[str, torch.Tensor | PackedTensor]:
    """Every matrix in the layout of the first key that its name contains."""
    out: dict[str, torch.Tensor | PackedTensor] = {}
    for name, tensor in tensors.items():
        layout = next(layout for key, layout in scheme.items() if key in name)
        if tensor.ndim != 2 or layout is None:
            out[name] = tensor
            continue
        assert isinstance(tensor, torch.Tensor)
        rows = torch.nn.functional.pad(tensor.float(), (0, 0, 0, -len(tensor) % 16))
        data = torch.from_numpy(pack(rows.numpy(), layout)).flatten()
        out[name] = PackedTensor(layout, (tensor.shape[0], tensor.shape[1]), aligned(data))
    return out


def aligned(data: torch.Tensor) -> torch.Tensor:
    """A copy at a multiple of 64 bytes, as in a packed file."""
    room = torch.empty(data.numel() + 64, dtype=torch.uint8)
    begin = -room.data_ptr() % 64
    return room[begin : begin + data.numel()].copy_(data)


def executors(checkpoint: Checkpoint, tensors: Tensors, *, threads: int = 2) -> tuple[NativeDecoder, Decoder]:
    """The native one over the packed tensors, and the reference in float32 over the same values."""
    spec = DecoderSpec.from_config(read_json(Path(checkpoint.folder) / "config.json"))
    kernels, cpu = ReferenceKernels(), torch.device("cpu")

    def reader(source: Tensors, *, whole: bool) -> TensorReader:
        return TensorReader(
            source, dtype=torch.float32, stored=None, device=cpu, packed=whole, screened=whole
        )

    native = NativeDecoder(
        spec, read_decoder(spec, reader(tensors, whole=True), kernels), card=CARD, threads=threads
    )
    values = {
        name: dequantise(tensor) if isinstance(tensor, PackedTensor) else tensor
        for name, tensor in tensors.items()
    }
    weights = read_decoder(spec, reader(values, whole=False), kernels)
    return native, Decoder(spec, weights, kernels=kernels, card=CARD, dtype=torch.float32, device=cpu)


def logits_of(executor: Executor, chunks: tuple[int, ...]) -> torch.Tensor:
    bench = Bench(executor, pages=40)
    sequence = bench.sequence(prompt_of(sum(chunks), 1))
    for chunk in chunks:
        bench.step((sequence, chunk))
    return sequence.all_logits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 96, "intermediate_size": 328, "head_dim": 48}])
def test_packed_weights_compute_the_values_of_their_grid(
    scheme: str, sizes: dict[str, int], checkpoint_of: Make
) -> None:
    checkpoint = checkpoint_of("qwen3", dtype=torch.bfloat16, initializer_range=0.05, **sizes)
    tensors = packed(open_weights(checkpoint), SCHEMES[scheme])
    native, reference = executors(checkpoint, tensors)

    # Activations are rounded to int8 in groups: about 0.5 % of each product of a random model.
    assert distance(logits_of(native, (90, 1, 1, 8)), logits_of(reference, (100,))) <= 4e-2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_weights_give_the_same_bits_however_a_prompt_is_cut(scheme: str, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("llama", dtype=torch.bfloat16, initializer_range=0.05)
    native, _ = executors(checkpoint, packed(open_weights(checkpoint), SCHEMES[scheme]))
    whole = logits_of(native, (150,))
    for chunks in ((1, 149), (75, 75), (130, 3, 8, 8, 1), (1,) * 12 + (138,)):
        assert torch.equal(logits_of(native, chunks), whole), chunks


@pytest.mark.parametrize(
    ("scheme", "group"), [("int8", 128), ("int4", 128), ("q4_0", 32), ("q8_0", 32), ("rows and groups", 32)]
)
def test_models_that_were_quantised_here_have_wider_groups_of_activations(
    scheme: str, group: int, checkpoint_of: Make
) -> None:
    checkpoint = checkpoint_of("llama", dtype=torch.bfloat16, initializer_range=0.05)
    native, _ = executors(checkpoint, packed(open_weights(checkpoint), SCHEMES[scheme]))
    assert native._weights.spec.int8_group == group
