"""The extension module (csrc/bindings*.cpp). Arrays are addresses, 0 where there is none; sizes are in elements."""

# csrc/bindings.cpp
def isa() -> str: ...
def isas() -> list[str]: ...
def cpu_features() -> list[str]: ...
def max_threads() -> int: ...

# csrc/probes.h
def memory_bandwidth(bytes: int, threads: int, repeats: int) -> list[float]: ...
def peak(kind: int, threads: int, seconds: float) -> float: ...
def barrier_latency(threads: int, rounds: int) -> float: ...
def region_latency(threads: int, rounds: int) -> float: ...

# csrc/operators.h
def sample(
    logits: int,
    stride: int,
    vocab: int,
    rows: int,
    temperatures: int,
    top_ks: int,
    top_ps: int,
    min_ps: int,
    dice: int,
    count: int,
    tokens: int,
) -> None: ...
def log_probabilities(
    logits: int,
    stride: int,
    vocab: int,
    rows: int,
    tokens: int,
    count: int,
    best: int,
    chosen: int,
    ids: int,
    values: int,
) -> None: ...

class Linear:
    def __init__(self, layout: int, rows: int, cols: int, data: int, bias: int = 0) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

class Rows:
    def __init__(self, count: int, cols: int, forms: int, group: int = 32) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def f32(self) -> int: ...
    @property
    def bf16(self) -> int: ...
    @property
    def q8(self) -> int: ...
    @property
    def scale(self) -> int: ...
    @property
    def scaled_sum(self) -> int: ...
    @property
    def sum(self) -> int: ...

class KvPool:
    def __init__(self, base: int, page_stride: int, type: int, kv_heads: int, head_dim: int) -> None: ...

class AttentionSpec:
    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        soft_cap: float = 0,
        window: int = 0,
        sinks: int = 0,
        mask_runs: int = 0,
        mask_starts: int = 0,
    ) -> None: ...

def convert(input: int, stride: int, output: Rows, rows: int = -1) -> None: ...
def linear(
    weight: Linear,
    input: Rows,
    output: int,
    stride: int,
    factor: float = 1.0,
    add: bool = False,
    rows: int = -1,
) -> None: ...
def gated(gate: Linear, up: Linear | None, input: Rows, output: Rows, activation: int) -> None: ...
def norm(input: int, stride: int, weight: int, bias: int, eps: float, kind: int, output: Rows) -> None: ...
def norm_rows(
    input: int,
    stride: int,
    rows: int,
    cols: int,
    weight: int,
    bias: int,
    eps: float,
    kind: int,
    output: int,
    output_stride: int,
) -> None: ...
def embed(table: Linear, ids: int, rows: int, factor: float, output: int, stride: int) -> None: ...
def soft_cap(logits: int, stride: int, rows: int, cols: int, cap: float) -> None: ...
def kv_page_bytes(type: int, kv_heads: int, head_dim: int) -> int: ...
def heads(
    qkv: int,
    stride: int,
    rows: int,
    q_norm: int,
    k_norm: int,
    eps: float,
    cos_sin: int,
    rotary: int,
    heads: int,
    pool: KvPool,
    positions: int,
    pages: int,
) -> None: ...
def attend(
    spec: AttentionSpec,
    pool: KvPool,
    starts: list[int],
    contexts: list[int],
    page_starts: list[int],
    page_tables: int,
    q: int,
    q_stride: int,
    output: int,
    output_stride: int,
) -> None: ...

# csrc/decoder.h
class DecoderSpec:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    attention_scale: float
    attention_soft_cap: float
    embedding_factor: float
    residual_factor: float
    logit_factor: float
    logit_soft_cap: float
    norm_whole_rows: bool
    parallel_residual: bool
    int8_group: int
    int8_kv: bool
    layer_norm: bool
    activation: int

class Norm:
    def __init__(self, weight: int, bias: int = 0) -> None: ...

class DecoderLayer:
    input_norm: Norm
    attention_out_norm: Norm
    mlp_norm: Norm
    mlp_out_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    window: int
    rope: int
    def set_q_norm(self, address: int, /) -> None: ...
    def set_k_norm(self, address: int, /) -> None: ...
    def set_sinks(self, address: int, /) -> None: ...

class DecoderWeights:
    embedding: Linear
    positions: Linear
    norm: Norm
    head: Linear
    def add_layer(self, layer: DecoderLayer, /) -> None: ...

class Decoder:
    profiled: bool
    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, threads: int) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def kv_bytes_per_page(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def profiled_steps(self) -> int: ...
    def set_kv(self, pool: int, pages: int) -> None: ...
    def set_rope(self, table: int, cos_sin: int, positions: int, rotary: int) -> None: ...
    def step(
        self,
        token_ids: list[int],
        starts: list[int],
        context_lens: list[int],
        page_tables: list[list[int]],
        logit_rows: list[int],
        logits: int,
    ) -> None: ...
    def profile(self) -> dict[str, list[float]]: ...
