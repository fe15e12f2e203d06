"""The structs every room shares: what a request is, what an answer is made of, what a model says of itself.

Nothing here knows HTTP, processes or tensors.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error", "cancelled"]
ModelKind = Literal["generate", "embed"]


# --- requests -------------------------------------------------------------------------------------------------------


class FunctionCall(msgspec.Struct, frozen=True):
    """A call of a tool: `arguments` is JSON text, as in OpenAI's API."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One message of a chat. `content` is text: parts are joined, and other media refused, at the edge."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call. `parameters` is a JSON Schema (an object)."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`auto` | `none` | `required`, or `function` with the `name` of the one that must be called."""

    mode: Literal["auto", "none", "required", "function"] = "auto"
    name: str | None = None


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer must match. `value` is JSON text for `json_schema`, a pattern or grammar otherwise."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    value: str = ""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling as the request gave it; None means: the checkpoint's generation_config, else OpenAI's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    seed: int | None = None


class ExecuteBatch(msgspec.Struct, kw_only=True):
    """One generation request. Exactly one of `messages`, `text` and `token_ids` is set."""

    request_id: str
    model: str
    messages: tuple[ChatMessage, ...] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    sampling: Sampling = Sampling()
    n: int = 1
    max_tokens: int | None = (
        None  # None: the context that is left (chat) or 16 (completions), decided at the edge
    )
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    echo: bool = False  # completions: the prompt's own tokens come first
    logprobs: int | None = None  # None: none; 0: the chosen token's; k: also the k best
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice(mode="auto")
    parallel_tool_calls: bool = True  # an answer may hold several calls
    constraint: Constraint | None = None
    chat_template_kwargs: dict[str, Any] = {}
    deadline: float | None = None  # time.monotonic() seconds
    priority: int = 0
    user: str | None = None
    stream: bool = False

    def __post_init__(self) -> None:
        given = (self.messages is not None) + (self.text is not None) + (self.token_ids is not None)
        assert given == 1, "exactly one of messages, text and token_ids"


class EmbedBatch(msgspec.Struct, kw_only=True):
    """One embedding request: every input is a text or a list of token ids."""

    request_id: str
    model: str
    inputs: list[str | list[int]]
    dimensions: int | None = None
    deadline: float | None = None
    user: str | None = None


# --- answers --------------------------------------------------------------------------------------------------------


class TopLogprob(msgspec.Struct, frozen=True, gc=False):
    token_id: int
    token: str
    logprob: float
    bytes: bytes


class TokenLogprob(msgspec.Struct, frozen=True):
    """Log probability of a token under the unmodified distribution (before penalties, bias, masks), in nats.
    `logprob` is None for the first token of an echoed prompt."""

    token_id: int
    token: str
    logprob: float | None
    bytes: bytes
    top: tuple[TopLogprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a tool call: index, id and name come first, arguments after."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens that came from the prefix cache


class TokenChunk(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one choice gained in one engine step.

    `text` is the visible text that became certain (it may be empty while a character or a stop string is
    incomplete). The chunk with a `finish_reason` is the choice's last. `usage` is on the request's last chunk.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class EmbedResult(msgspec.Struct, frozen=True, kw_only=True):
    """`data` is float32 little-endian, row-major: one row of `dimensions` values for every input."""

    data: bytes
    dimensions: int
    prompt_tokens: int


# --- models ---------------------------------------------------------------------------------------------------------


class RuntimeKind(StrEnum):
    NATIVE = "native"
    LLAMACPP = "llamacpp"
    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    TENSORRT = "tensorrt"
    VLLM = "vllm"
    SGLANG = "sglang"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"
    ROUTER = "router"
    INFERLET = "inferlet"
    CUSTOM = "custom"
    DUMMY = "dummy"


class TransportKind(StrEnum):
    IN_PROCESS = "in_process"
    LOCAL_CPU = "local_cpu"
    LOCAL_GPU = "local_gpu"
    REMOTE_NETWORK = "remote_network"


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a loaded model says of itself."""

    kind: ModelKind
    architecture: str
    parameters: int  # number of weights
    format: str  # "safetensors", "gguf", "dummy"
    dtype: str  # of the weights as they are used
    max_model_len: int  # tokens, prompt and answer together
    vocab_size: int
    dimensions: int = 0  # of an embedding
    has_chat_template: bool = False
    weight_bytes: int = 0
    token_bytes: int = 0  # of them, that one greedy token reads; 0: not known
    kv_bytes: int = 0
    kv_pages: int = 0
    page_size: int = 0
    kv_dtype: str = ""  # of keys and values in their pages
    executor: str = ""  # "native (avx512_vnni_bf16)", or "reference (torch): " and why


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a model takes in memory, known before it is loaded (`formats.footprint`)."""

    weights: int  # as they will be laid out: mapped files, and copies where the arithmetic wants another form
    kv_page: int  # one page of KV; 0 for a model without. A draft model's page is part of it
    kv_pages: int  # that the longest batch can use
    kv_least: int  # below which it cannot serve
    workspace: int  # at most: activations, logits, tables and what a process has of its own
    idle: int  # of the workspace, what is there before the first request

    @property
    def least(self) -> int:
        """With which it can be loaded at all."""
        return self.total(self.kv_least)

    def total(self, pages: int) -> int:
        """With that many KV pages."""
        return self.weights + self.workspace + pages * self.kv_page


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a load went: what the model is, and how long each stage took, in seconds."""

    card: ModelCard
    seconds: float
    stages: dict[str, float] = {}
    pid: int = 0


class LoadProgress(msgspec.Struct, frozen=True):
    """`fraction` is 0 … 1 within the stage, or None where it cannot be told."""

    stage: str
    fraction: float | None = None
    detail: str = ""
