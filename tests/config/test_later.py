import pytest

from inferloom.config.decoding import fields_of
from inferloom.config.later import LATER
from inferloom.config.loading import loads
from inferloom.config.schema import Config
from inferloom.config.template import default
from inferloom.errors import ConfigError

MODEL = '[[model]]\nname = "a"\nsource = "x/y"\n[model.driver]\ntype = "native"\n'
MARKET = "the market for KV pages belongs to inferlets, which come with a later version"
INFERLETS = "inferlets come with a later version"


@pytest.mark.parametrize(
    ("key", "value", "reason", "until_then"),
    [
        ("server.registry", '"https://elsewhere.example"', INFERLETS, 'must be "~/.inferloom/registry"'),
        ("server.python_snapshot", "false", INFERLETS, "must be true"),
        ("server.max_concurrent_processes", "64", INFERLETS, "must stay unset"),
        ("runtime.wasm_max_instances", "10", INFERLETS, "must be 1000"),
        ("runtime.wasm_max_memory_mb", "64", INFERLETS, "must be 4096"),
        ("runtime.wasm_warm_memory_mb", "1", INFERLETS, "must be 0"),
        ("runtime.wasm_warm_slots", "1", INFERLETS, "must be 100"),
        ("runtime.allow_fs", "true", INFERLETS, "must be false"),
        ("runtime.allow_network", "false", INFERLETS, "must be true"),
        ("runtime.network_allowed_hosts", '["10.0.0.0/8"]', INFERLETS, 'must be ["*"]'),
        ("runtime.max_upload_mb", "1", INFERLETS, "must be 256"),
    ],
)
def test_a_key_of_a_later_version_keeps_its_default(
    key: str, value: str, reason: str, until_then: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        loads(f"{key} = {value}\n{MODEL}", origin="f")
    assert (
        refused.value.message
        == f"f:1: {key} = {value} cannot be served: {reason}. Until then it {until_then}."
    )


@pytest.mark.parametrize(
    ("table", "key", "value", "reason", "until_then"),
    [
        ("scheduler", "default_token_limit", "100000", MARKET, "must stay unset"),
        ("scheduler", "default_endowment_pages", "32", MARKET, "must be 64"),
        ("scheduler", "admission_oversubscription_factor", "2.0", MARKET, "must be 4.0"),
        ("scheduler", "restore_pause_at_utilization", "0.5", MARKET, "must be 0.85"),
        ("driver", "tensor_parallel_size", "2", "tensor parallelism comes with a later version", "must be 1"),
        (
            "",
            "num_device_layers",
            '["0:10"]',
            "splitting a model over devices comes with a later version",
            "must stay unset",
        ),
    ],
)
def test_so_does_a_key_of_a_model(table: str, key: str, value: str, reason: str, until_then: str) -> None:
    dotted = f"{table}.{key}" if table else key
    text = f'[[model]]\nname = "a"\nsource = "x/y"\ndriver.type = "native"\n{dotted} = {value}\n'
    with pytest.raises(ConfigError) as refused:
        loads(text, origin="f")
    assert refused.value.message == (
        f"f:5: model.0.{dotted} = {value} cannot be served: {reason}. Until then it {until_then}."
    )


def test_every_key_of_a_later_version_is_a_key_of_the_schema_and_its_default_loads() -> None:
    for section, keys in LATER.items():
        struct: type = Config
        for name in section.split("."):
            annotation = fields_of(struct)[name].type
            struct = annotation.item_type.cls if name == "model" else annotation.cls  # type: ignore[attr-defined]
        for key, (reason, accepted) in keys.items():
            assert "later version" in reason
            assert default(fields_of(struct)[key]) not in accepted
