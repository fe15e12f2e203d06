"""From a checkpoint on disk to something that answers: `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from inferloom.errors import LoadFailed, Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.json_files import read_json
from inferloom.formats.weights import open_weights
from inferloom.kernels.native import library
from inferloom.kernels.native.operators import NativeKernels
from inferloom.kernels.reference import ReferenceKernels
from inferloom.models.batch import PAGE_SIZE, Embedder, Executor, KvDtype
from inferloom.models.config_json import architecture_of
from inferloom.models.decoder import Decoder
from inferloom.models.decoder_weights import read_decoder
from inferloom.models.encoder import Encoder, EncoderSpec
from inferloom.models.fallback import load_fallback
from inferloom.models.families import DECODER_FAMILIES, ENCODER_FAMILIES
from inferloom.models.native import NativeDecoder, supports
from inferloom.models.pooling import Pooling
from inferloom.models.spec import DecoderSpec
from inferloom.models.tensors import TensorReader, stored_dtype
from inferloom.models.token_bytes import token_bytes
from inferloom.types import ModelCard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WORDS = "embeddings.word_embeddings.weight"


def load(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    activation_dtype: str = "bfloat16",
    device: str = "cpu",
    max_model_len: int | None = None,
    executor: Literal["auto", "reference"] = "auto",
    kv_dtype: KvDtype = "auto",
) -> Executor | Embedder:
    """Map the weights and build the model. Nothing is copied where `dtype` is the checkpoint's and `activation_dtype`
    equals it.

    `dtype`: of the weights: auto (as in the checkpoint), float32, bfloat16, float16. `activation_dtype`: of the
    arithmetic, and of the KV pages, unless `kv_dtype` is int8 (native executor only); an encoder computes in the dtype of its weights, because embeddings are compared
    with those that others made. `max_model_len`: at most the checkpoint's own, which is the default. `executor`: auto is
    the native one where it knows the model; the card says which it is, and why.
    Raises `InvalidFormat`, `Unsupported`, `LoadFailed`, `OutOfMemory`.
    """
    place = _device(device)
    config = read_json(Path(checkpoint.folder) / "config.json")
    if (
        checkpoint.quantization != "none"
    ):  # what it says of AWQ or GPTQ no longer holds for the packed weights
        config.pop("quantization_config", None)
    architecture = architecture_of(config)
    if architecture in ENCODER_FAMILIES:
        _refuse_int8_pages(checkpoint, kv_dtype, "it makes embeddings and keeps no keys and values")
        return _load_encoder(checkpoint, config, dtype, place, max_model_len)
    why = f"this engine has no decoder of its own for {architecture}"
    if architecture in DECODER_FAMILIES:
        try:
            spec = DecoderSpec.from_config(config)
        except Unsupported as error:  # an option of a known family: transformers may know it
            why = error.message
        else:
            return _load_decoder(
                spec, checkpoint, dtype, activation_dtype, place, max_model_len, executor, kv_dtype
            )
    if config.get("quantization_config") or checkpoint.quantization != "none":
        raise Unsupported("quantised weights for this model", why)
    _refuse_int8_pages(checkpoint, kv_dtype, f"only the native step reads int8 pages, and {why}")
    return _load_fallback(architecture, checkpoint, dtype, activation_dtype, place, max_model_len, why=why)


def _load_fallback(
    architecture: str,
    checkpoint: Checkpoint,
    dtype: str,
    activation_dtype: str,
    device: torch.device,
    max_model_len: int | None,
    *,
    why: str,
) -> Executor:
    card = ModelCard(
        kind="generate",
        architecture=architecture,
        parameters=0,
        format=checkpoint.format,
        dtype=activation_dtype,
        max_model_len=max_model_len or 0,
        vocab_size=0,
        has_chat_template=_has_chat_template(checkpoint),
        page_size=PAGE_SIZE,
        kv_dtype=activation_dtype,
    )
    return load_fallback(
        checkpoint,
        architecture,
        stored=None if dtype == "auto" else _dtype(dtype, "dtype"),
        dtype=_dtype(activation_dtype, "activation_dtype"),
        device=device,
        card=card,
        why=why,
    )


def _load_decoder(
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    dtype: str,
    activation_dtype: str,
    device: torch.device,
    max_model_len: int | None,
    executor: Literal["auto", "reference"],
    kv_dtype: KvDtype,
) -> Executor:
    length = _length(max_model_len, spec.max_positions)
    spec = spec.for_context(length)
    compute = _dtype(activation_dtype, "activation_dtype")
    if executor == "reference":
        why_not: str | None = "asked for"
    else:
        why_not = supports(spec, dtype=compute, device=device)
    if why_not is not None:
        _refuse_int8_pages(checkpoint, kv_dtype, f"only the native step reads int8 pages: {why_not}")
    # What the step does not know runs operator by operator, with the same matrix products where there are any for it.
    by_operator = (
        why_not is not None
        and executor == "auto"
        and (compute, device.type) == (torch.bfloat16, "cpu")
        and library.available()
    )
    kernels = NativeKernels() if by_operator else ReferenceKernels()
    reader = TensorReader(
        open_weights(checkpoint),
        # The native step takes matrices as the file has them, and all else in float32.
        dtype=torch.float32 if why_not is None else compute,
        stored=None if dtype == "auto" else _dtype(dtype, "dtype"),
        device=device,
        packed=why_not is None or by_operator,
        screened=why_not is None,
    )
    weights = read_decoder(spec, reader, kernels)
    card = ModelCard(
        kind="generate",
        architecture=spec.architecture,
        parameters=reader.parameters,
        format=checkpoint.format,
        dtype=activation_dtype,
        max_model_len=length,
        vocab_size=spec.vocab_size,
        has_chat_template=_has_chat_template(checkpoint),
        weight_bytes=reader.weight_bytes,
        # bounds say nothing about logits with a soft cap (`Decoder::may_screen` in csrc/decoder.cpp)
        token_bytes=token_bytes(weights, screened=why_not is None and spec.logit_soft_cap is None),
        page_size=PAGE_SIZE,
        kv_dtype=activation_dtype if kv_dtype == "auto" else kv_dtype,
        executor=_executor(why_not, by_operator=by_operator),
    )
    if why_not is None:
        return NativeDecoder(spec, weights, card=card, kv_dtype=kv_dtype)
    return Decoder(spec, weights, kernels=kernels, card=card, dtype=compute, device=device)


def _refuse_int8_pages(checkpoint: Checkpoint, kv_dtype: KvDtype, why: str) -> None:
    if kv_dtype != "auto":
        raise Unsupported(f"kv_dtype {kv_dtype!r} for {checkpoint.name}", why)


def _executor(why_not: str | None, *, by_operator: bool) -> str:
    """What computes a model, as its card says it; `why_not` the native step."""
    if why_not is None:
        return f"native ({library.isa()})"
    if by_operator:
        return f"operator by operator ({library.isa()}): {why_not}"
    return f"reference (torch): {why_not}"


def _load_encoder(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    dtype: str,
    device: torch.device,
    max_model_len: int | None,
) -> Embedder:
    spec = EncoderSpec.from_config(config)
    folder = Path(checkpoint.folder)
    pooling = Pooling.of(folder)
    weights = open_weights(checkpoint)
    compute = stored_dtype(weights) if dtype == "auto" else _dtype(dtype, "dtype")
    prefix = next((name for name in ("", "bert.", "roberta.") if f"{name}{_WORDS}" in weights), "")
    kernels = ReferenceKernels()
    reader = TensorReader(weights, dtype=compute, stored=None, device=device, prefix=prefix)
    encoder = Encoder(spec, reader, pooling=pooling, kernels=kernels, dtype=compute)
    length = _length(max_model_len, spec.longest)
    if max_model_len is None:
        path = folder / "sentence_bert_config.json"
        asked = read_json(path).get("max_seq_length") if path.is_file() else None
        length = min(length, int(asked)) if asked else length
    encoder.describe(
        ModelCard(
            kind="embed",
            architecture=spec.architecture,
            parameters=reader.parameters,
            format=checkpoint.format,
            dtype=str(compute).removeprefix("torch."),
            max_model_len=length,
            vocab_size=spec.vocab_size,
            dimensions=encoder.dimensions,
            weight_bytes=reader.weight_bytes,
        )
    )
    return encoder


def _has_chat_template(checkpoint: Checkpoint) -> bool:
    folder = Path(checkpoint.tokenizer_folder or checkpoint.folder)
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json(path).get("chat_template"))


def _length(asked: int | None, own: int) -> int:
    if asked is None:
        return own
    if asked > own:
        raise LoadFailed(
            f"max_model_len is {asked}, but the checkpoint's positions end at {own}; lower it or leave it out"
        )
    return asked


def _dtype(name: str, key: str) -> torch.dtype:
    try:
        return DTYPES[name]
    except KeyError:
        raise Unsupported(
            f"{key} {name!r}", f"weights and arithmetic are one of {', '.join(DTYPES)}"
        ) from None


def _device(name: str) -> torch.device:
    """The torch device of that name; raises `LoadFailed` where it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LoadFailed(
            f"device {name} is not available: no device type of that name; use cpu or cuda:N"
        ) from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise LoadFailed(f"device {name} is not available: this engine runs on cpu and cuda:N")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        seen = (
            f"{count} CUDA devices are visible"
            if count
            else "no CUDA device is visible to this installation of torch"
        )
        raise LoadFailed(
            f"device {name} is not available: {seen}; set [model.driver] device to cpu or to one that is there"
        )
    return device
