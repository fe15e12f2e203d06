"""The drivers: what they are called, which options each takes, and which ones come later."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from inferloom.config.schema import DriverConfig, Positive


class NativeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the engine of our own."""

    gpu_mem_utilization: Annotated[
        float,
        Meta(
            gt=0, le=1, description="Share of the device's memory for weights and KV; on a CPU, of the RAM."
        ),
    ] = 0.85
    max_batch_tokens: Annotated[Positive, Meta(description="Tokens computed in one step.")] = 10240
    max_batch_size: Annotated[Positive, Meta(description="Sequences in one step.")] = 512
    prefix_cache: Annotated[bool, Meta(description="Reuse the KV pages of equal beginnings.")] = True
    kv_dtype: Annotated[
        Literal["auto", "int8"],
        Meta(
            description="Keys and values in their pages: auto is activation_dtype; int8 takes half as much."
        ),
    ] = "auto"
    speculation: Annotated[
        Literal["auto", "off"],
        Meta(
            description="Verify drafts of several tokens in one step where that pays; answers are the same."
        ),
    ] = "auto"
    speculative_tokens: Annotated[int, Meta(ge=1, le=16, description="Tokens of the longest draft.")] = 8
    threads: Annotated[int, Meta(ge=0, description="Compute threads; 0: as many as the process may use.")] = 0


class DummyOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the scripted model that tests and gateway benchmarks use."""

    text: Annotated[str, Meta(description="What it answers, whatever is asked.")] = (
        "This is the dummy driver: every answer is this sentence."
    )
    tokens_per_second: Annotated[float, Meta(ge=0, description="Rate of one sequence; 0: no limit.")] = 0.0
    load_secs: Annotated[float, Meta(ge=0, description="How long loading takes.")] = 0.0
    fail_load: Annotated[str | None, Meta(description="Loading fails with this reason.")] = None
    kind: Annotated[Literal["generate", "embed"], Meta(description="What it can do.")] = "generate"
    dimensions: Annotated[Positive, Meta(description="Length of an embedding.")] = 384
    weights_mb: Annotated[int, Meta(ge=0, description="Weights it counts as having, MiB.")] = 0
    kv_mb: Annotated[int, Meta(ge=0, description="KV pages it counts as wanting, MiB.")] = 0
    kv_least_mb: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="KV pages it needs, MiB; unset: all that it wants."),
    ] = None
    kv_used_mb: Annotated[int, Meta(ge=0, description="KV pages that each answer in progress uses, MiB.")] = 0
    workspace_mb: Annotated[int, Meta(ge=0, description="Memory its worker really takes, MiB.")] = 0


Options = NativeOptions | DummyOptions
_O = TypeVar("_O", NativeOptions, DummyOptions)

OPTIONS: dict[str, type[Options]] = {"native": NativeOptions, "dummy": DummyOptions}

# The seed's two names for an embedded engine, on CPU and on CUDA, are both ours.
ALIASES = {"portable": "native", "cuda_native": "native"}

# Known from the documents this project grew from; each is refused with the reason.
LATER: dict[str, str] = {
    "dev": "the PyTorch development driver is not offered; `native` runs the same checkpoints",
    "vllm": "vLLM as a supervised subprocess comes with a later version",
    "sglang": "SGLang as a supervised subprocess comes with a later version",
    "tensorrt_llm": "TensorRT-LLM as a supervised subprocess comes with a later version",
    "llamacpp": "llama.cpp as a supervised subprocess comes with a later version; `native` reads GGUF files",
    "transformers": "running other architectures through transformers comes with a later version",
    "onnx": "ONNX models come with a later version",
    "torchscript": "TorchScript models come with a later version",
    "tensorrt": "TensorRT engines come with a later version",
    "openai": "remote providers come with a later version",
    "anthropic": "remote providers come with a later version",
    "gemini": "remote providers come with a later version",
    "router": "routing over other models comes with a later version",
    "inferlet": "serving an inferlet as a model comes with a later version",
    "custom": "model classes of your own come with a later version",
}


def canonical(driver_type: str) -> str:
    """The name a driver goes by here: `portable` and `cuda_native` are `native`."""
    return ALIASES.get(driver_type, driver_type)


def native_options(driver: DriverConfig) -> NativeOptions:
    """The options of a checked `native` driver, defaults filled in."""
    return _options(driver.options, NativeOptions)


def dummy_options(driver: DriverConfig) -> DummyOptions:
    """The options of a checked `dummy` driver, defaults filled in."""
    return _options(driver.options, DummyOptions)


def _options(options: dict[str, Any], of: type[_O]) -> _O:
    return msgspec.convert(options, of)
