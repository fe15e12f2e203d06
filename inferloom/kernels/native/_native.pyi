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
