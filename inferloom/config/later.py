"""Keys of the schema whose feature comes with a later version.

Such a key keeps its default (or a value that means the same today); anything else is refused with the reason, so
that nothing is accepted and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from inferloom.config.lines import Path
from inferloom.config.problems import dotted
from inferloom.config.schema import Config

_INFERLETS = "inferlets come with a later version"
_MARKET = "the market for KV pages belongs to inferlets, which come with a later version"

# Section -> key -> (reason, values beside the default that are accepted: those of the documentation's example file).
LATER: dict[str, dict[str, tuple[str, tuple[Any, ...]]]] = {
    "server": {
        "registry": (_INFERLETS, ("https://registry.pie-project.org/",)),
        "python_snapshot": (_INFERLETS, ()),
        "max_concurrent_processes": (_INFERLETS, ()),
    },
    "runtime": {
        "worker_threads": (_INFERLETS, (8,)),
        "wasm_max_instances": (_INFERLETS, ()),
        "wasm_max_memory_mb": (_INFERLETS, ()),
        "wasm_warm_memory_mb": (_INFERLETS, ()),
        "wasm_warm_slots": (_INFERLETS, ()),
        "allow_fs": (_INFERLETS, ()),
        "fs_scratch_dir": (_INFERLETS, ("/tmp/pie",)),
        "allow_network": (_INFERLETS, ()),
        "network_allowed_hosts": (_INFERLETS, ()),
        "max_upload_mb": (_INFERLETS, ()),
    },
    "model": {
        "num_device_layers": ("splitting a model over devices comes with a later version", ()),
        "trust_remote_code": ("running code of a checkpoint comes with a later version", ()),
    },
    "model.scheduler": {
        "default_token_limit": (_MARKET, ()),
        "default_endowment_pages": (_MARKET, ()),
        "admission_oversubscription_factor": (_MARKET, ()),
        "restore_pause_at_utilization": (_MARKET, ()),
    },
    "model.driver": {
        "tensor_parallel_size": ("tensor parallelism comes with a later version", ()),
    },
}


def later_problems(config: Config) -> Iterator[tuple[Path, str]]:
    """Every key that is set to something its feature would be needed for."""
    yield from _section(config.server, "server", ("server",))
    yield from _section(config.runtime, "runtime", ("runtime",))
    for number, model in enumerate(config.model):
        yield from _section(model, "model", ("model", number))
        yield from _section(model.scheduler, "model.scheduler", ("model", number, "scheduler"))
        yield from _section(model.driver, "model.driver", ("model", number, "driver"))


def _section(values: msgspec.Struct, section: str, path: Path) -> Iterator[tuple[Path, str]]:
    defaults = {field.name: field for field in msgspec.structs.fields(values)}
    for key, (reason, accepted) in LATER[section].items():
        value = getattr(values, key)
        field = defaults[key]
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        if value != default and value not in accepted:
            must = "must stay unset" if default is None else f"must be {_shown(default)}"
            here = (*path, key)
            yield here, f"{dotted(here)} = {_shown(value)} cannot be served: {reason}. Until then it {must}."


def _shown(value: Any) -> str:
    return json.dumps(value)
