"""Times and sizes as people write them."""

from __future__ import annotations

import pytest

from inferloom.config.loading import loads
from inferloom.config.quantities import FOREVER, budgets, keep_alive_secs, size_bytes
from inferloom.errors import ConfigError

MODEL = '[[model]]\nname = "a"\nsource = "x/y"\ndriver.type = "native"\n'


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0),
        (600, 600),
        (0.5, 0.5),
        ("0", 0),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("250ms", 0.25),
        ("2d", 172800),
        (-1, FOREVER),
        ("-1", FOREVER),
        ("-1m", FOREVER),
    ],
)
def test_a_time_to_live(written: float | str, seconds: float) -> None:
    assert keep_alive_secs(written) == seconds


@pytest.mark.parametrize("written", ["", "soon", "5 minutes", "m5", "5m!", "nan", True])
def test_what_is_no_time_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="is not a time"):
        keep_alive_secs(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("80%", 800),
        ("12GiB", 12 << 30),
        ("12 gib", 12 << 30),
        ("1.5G", 3 << 29),
        ("500MB", 500_000_000),
        ("4096", 4096),
        ("100%", 1000),
    ],
)
def test_a_size(written: str, size: int) -> None:
    assert size_bytes(written, whole=1000) == size


@pytest.mark.parametrize("written", ["", "much", "0%", "101%", "-1GiB", "12XiB", "%"])
def test_what_is_no_size_is_refused(written: str) -> None:
    with pytest.raises(ConfigError):
        size_bytes(written, whole=1000)


def test_budgets_by_device() -> None:
    assert budgets("50%", ram=1000) == {"cpu": 500}
    assert budgets({"cuda:0": "70GiB"}, ram=1000) == {"cpu": 800, "cuda:0": 70 << 30}
    with pytest.raises(ConfigError, match="not known here"):
        budgets({"cuda:0": "80%"}, ram=1000)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('server.keep_alive = "soon"', "server.keep_alive: 'soon' is not a time"),
        ('runtime.memory_budget = "lots"', 'runtime.memory_budget: "lots" is not a size of memory'),
        ('runtime.memory_budget = {"cuda:0" = "80%"}', "not known here"),
        ('runtime.memory_budget = {tpu = "8GiB"}', '"tpu" is not a device'),
        ('runtime.kv_store_memory = "some"', 'runtime.kv_store_memory: "some" is not a size of memory'),
        ('runtime.kv_store_disk = "10%"', "not known here"),
    ],
)
def test_a_configuration_with_a_wrong_one_is_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loads(f"{line}\n{MODEL}", origin="f")
    assert said in refused.value.message


def test_right_ones_are_taken() -> None:
    text = f'server.keep_alive = "5m"\nruntime.memory_budget = {{cpu = "8GiB"}}\n{MODEL}keep_alive = 0\npin = true\n'
    config = loads(text, origin="f")
    assert (config.server.keep_alive, config.model[0].keep_alive, config.model[0].pin) == ("5m", 0, True)
