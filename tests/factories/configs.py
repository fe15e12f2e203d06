"""Random configurations that are right."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from inferloom.config.ids import RESERVED
from inferloom.config.loading import from_values
from inferloom.config.schema import Config

text = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), min_size=1, max_size=20)
ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,8}(/[A-Za-z0-9]{1,5})?", fullmatch=True).filter(
    lambda word: word not in RESERVED and word != "default"
)
seconds = st.floats(1e-3, 1e6)
count = st.integers(1, 2**31)


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


server = some(
    host=st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "localhost"]),
    port=st.integers(0, 65535),
    verbose=st.booleans(),
    api_keys=st.lists(st.from_regex(r"sk-[A-Za-z0-9_-]{1,20}", fullmatch=True), max_size=3),
    max_concurrent_requests=count,
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
    access_log=st.booleans(),
    cors_origins=st.lists(st.sampled_from(["*", "https://a.example", "http://localhost:3000"]), max_size=2),
    insecure=st.booleans(),
    drain_timeout_secs=seconds,
    queue_timeout_secs=seconds,
    load_timeout_secs=seconds,
    first_token_timeout_secs=seconds,
)
scheduler = some(batch_policy=st.sampled_from(["adaptive", "eager", "greedy"]), request_timeout_secs=seconds)
native = st.fixed_dictionaries(
    {"type": st.just("native")},
    optional={
        "device": st.just(["cpu"]),
        "activation_dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
        "random_seed": st.integers(0, 2**62),
        "options": some(
            gpu_mem_utilization=st.floats(0.01, 1.0),
            max_batch_tokens=count,
            max_batch_size=count,
            prefix_cache=st.booleans(),
            threads=st.integers(0, 64),
        ),
    },
)
dummy = st.fixed_dictionaries(
    {"type": st.just("dummy")},
    optional={"options": some(text=text, tokens_per_second=st.floats(0, 1e6), fail_load=text)},
)
model = st.fixed_dictionaries(
    {"source": text, "driver": native | dummy},
    optional={
        "system_prompt": text,
        "lazy": st.booleans(),
        "max_model_len": count,
        "chat_template": text,
        "tok_model_id": text,
        "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
        "scheduler": scheduler,
    },
)


@st.composite
def values(draw: st.DrawFn) -> dict[str, Any]:
    """Plain values of a right configuration with one to three models."""
    words = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    models = []
    for _ in range(draw(st.integers(1, min(3, len(words))))):
        models.append({"name": words.pop(), **draw(model)})
    models[0]["aliases"] = words
    chosen = {**draw(server)}
    if draw(st.booleans()):
        chosen["default_model"] = draw(st.sampled_from(models))["name"]
    return {"server": chosen, "auth": draw(some(enabled=st.booleans())), "model": models}


configs: st.SearchStrategy[Config] = values().map(lambda found: from_values(found, origin="drawn"))
