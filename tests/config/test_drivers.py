import pytest

from inferloom.config.drivers import (
    LATER,
    DummyOptions,
    NativeOptions,
    canonical,
    dummy_options,
    native_options,
)
from inferloom.config.schema import DriverConfig


def test_options_that_are_not_given_have_the_documentations_defaults() -> None:
    assert native_options(DriverConfig(type="native")) == NativeOptions(
        gpu_mem_utilization=0.85,
        max_batch_tokens=10240,
        max_batch_size=512,
        prefix_cache=True,
        speculation="auto",
        speculative_tokens=8,
        threads=0,
    )


def test_options_are_typed() -> None:
    driver = DriverConfig(type="dummy", options={"text": "hello", "tokens_per_second": 50})
    assert dummy_options(driver) == DummyOptions(text="hello", tokens_per_second=50.0)


@pytest.mark.parametrize(
    ("written", "meant"), [("portable", "native"), ("cuda_native", "native"), ("dummy", "dummy")]
)
def test_the_older_names_of_the_embedded_drivers_mean_native(written: str, meant: str) -> None:
    assert canonical(written) == meant


def test_every_refusal_of_a_driver_is_a_reason() -> None:
    assert all("later version" in reason or "is not offered" in reason for reason in LATER.values())
