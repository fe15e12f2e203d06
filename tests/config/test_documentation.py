import json
import re
from pathlib import Path

import msgspec
import pytest

from inferloom.config.decoding import fields_of
from inferloom.config.drivers import LATER as DRIVERS_LATER
from inferloom.config.drivers import DummyOptions, NativeOptions
from inferloom.config.later import LATER
from inferloom.config.legacy import MOVED
from inferloom.config.schema import (
    AuthConfig,
    DriverConfig,
    ModelConfig,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
    TelemetryConfig,
)
from inferloom.config.template import default

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "`[server]`": ServerConfig,
    "`[auth]`": AuthConfig,
    "`[telemetry]`": TelemetryConfig,
    "`[runtime]`": RuntimeConfig,
    "`[[model]]`": ModelConfig,
    "`[model.scheduler]`": SchedulerConfig,
    "`[model.driver]`": DriverConfig,
    "`[model.driver.options]` of `native`": NativeOptions,
    "`[model.driver.options]` of `dummy`": DummyOptions,
}
IN_WORDS = {"worker_threads", "fs_scratch_dir", "text"}  # defaults that differ between machines, or are long


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """Key -> default and meaning, of the table under a heading."""
    start = re.search(rf"^#+ {re.escape(heading)}$", PAGE, re.MULTILINE)
    assert start, heading
    section = re.split(r"^#", PAGE[start.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", section, re.MULTILINE)
    return {key: (shown, meaning) for key, shown, meaning in found}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_on_the_page_with_its_default(heading: str) -> None:
    table = rows(heading)
    fields = fields_of(SECTIONS[heading])
    assert list(table) and set(table) == set(fields) - {"driver", "scheduler", "options"}
    for key, (shown, _) in table.items():
        if key in IN_WORDS:
            continue
        if fields[key].required:
            assert shown == "required", key
        elif default(fields[key]) is None:
            assert shown == "unset", key
        else:
            assert shown == f"`{json.dumps(default(fields[key]))}`", key


@pytest.mark.parametrize("section", LATER)
def test_exactly_the_keys_of_later_versions_are_marked(section: str) -> None:
    heading = "`[[model]]`" if section == "model" else f"`[{section}]`"
    marked = {key for key, (_, meaning) in rows(heading).items() if meaning.startswith("*Later*")}
    assert marked == set(LATER[section])


def test_every_driver_that_is_refused_is_named() -> None:
    for driver in DRIVERS_LATER:
        assert f"`{driver}`" in PAGE


def test_every_old_key_is_in_the_table_of_migration() -> None:
    table = PAGE[PAGE.index("## The older schema") :]
    for old, (section, new) in MOVED.items():
        if old != new or old == "default_endowment_pages":
            assert f"`[model.<name>].{old}` | `[model.{section}].{new}`" in table


def test_every_command_of_config_is_named() -> None:
    from inferloom.cli.config import app

    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"`config {name.strip('_')}" in PAGE
