"""What the types cannot say: constraints between keys, devices, drivers, dtypes. Pure; probes no hardware."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inferloom.config.decoding import decode, quoted
from inferloom.config.drivers import ALIASES, LATER, OPTIONS
from inferloom.config.ids import id_problems
from inferloom.config.later import later_problems
from inferloom.config.lines import Path
from inferloom.config.problems import Problems, did_you_mean, dotted
from inferloom.config.quantities import keep_alive_secs, size_bytes
from inferloom.config.quantization import scheme
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
DTYPE_ALIASES = {
    "half": "float16",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "f32": "float32",
}
_QUANTISED = re.compile(r"(int|uint|float|fp|nf|q|awq|gptq|iq|mxfp)\d*(_\w+)?$", re.IGNORECASE)
_DEVICE = re.compile(r"(cpu)|(cuda|rocm|xpu|mps|metal|vulkan)(?::(\d+))?")
_COLLECTOR = re.compile(r"https?://[^/\s@?#]+/?")
_ORIGIN = re.compile(r"https?://[^/\s]+")


def check(config: Config, problems: Problems) -> None:
    """Add whatever is wrong with a configuration whose types and bounds are right."""
    found: list[tuple[Path, str]] = [
        *_server(config),
        *_telemetry(config),
        *_models(config),
        *id_problems(config),
        *_devices(config),
        *_drafts(config),
        *_residency(config),
    ]
    for path, sentence in [*found, *later_problems(config)]:
        problems.add(path, sentence)
    for number, model in enumerate(config.model):
        if model.driver.type in OPTIONS:
            at: Path = ("model", number, "driver", "options")
            decode(model.driver.options, OPTIONS[model.driver.type], at=at, problems=problems)


def _server(config: Config) -> Iterator[tuple[Path, str]]:
    server = config.server
    if re.search(r"[\s/]", server.host):
        yield ("server", "host"), f"server.host = {quoted(server.host)} is not a host name or address."
    for number, key in enumerate(server.api_keys):
        if key != key.strip() or not key.isprintable() or not key.isascii():
            yield (
                ("server", "api_keys", number),
                f"server.api_keys.{number} must be printable ASCII without spaces around it; it travels in a header.",
            )
    for number, origin in enumerate(server.cors_origins):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            yield (
                ("server", "cors_origins", number),
                f'server.cors_origins.{number} = {quoted(origin)} must be "*" or scheme://host[:port], without a path.',
            )


def _telemetry(config: Config) -> Iterator[tuple[Path, str]]:
    endpoint = config.telemetry.endpoint
    if not _COLLECTOR.fullmatch(endpoint):
        yield (
            ("telemetry", "endpoint"),
            f"telemetry.endpoint = {quoted(endpoint)} must be http://host:port, or https:// for TLS, without a path; "
            "what a collector wants to know of a sender goes into OTEL_EXPORTER_OTLP_HEADERS.",
        )


def _models(config: Config) -> Iterator[tuple[Path, str]]:
    if not config.model:
        yield (
            ("model",),
            "there is no [[model]]; add one, or let `inferloom config init` write a file that serves here.",
        )
    for number, model in enumerate(config.model):
        at: Path = ("model", number)
        yield from _source(model, at)
        yield from _driver_type(model.driver, (*at, "driver", "type"))
        yield from _dtype(model.dtype, (*at, "dtype"), known=("auto", *DTYPES))
        yield from _quantization(model, at)
        yield from _dtype(model.driver.activation_dtype, (*at, "driver", "activation_dtype"), known=DTYPES)
        yield from _kv_dtype(model.driver, (*at, "driver", "options", "kv_dtype"))


def _source(model: ModelConfig, at: Path) -> Iterator[tuple[Path, str]]:
    both = model.source is not None and model.hf_repo is not None
    if both:
        yield (
            (*at, "hf_repo"),
            f"{dotted(at)}: source and hf_repo say the same thing; give exactly one of them.",
        )
    elif model.weights is None and model.driver.type != "dummy" and model.driver.type not in LATER:
        yield (
            at,
            f"{dotted(at)}: the model {quoted(model.name)} needs source (or hf_repo): where its weights are.",
        )


def _driver_type(driver: DriverConfig, path: Path) -> Iterator[tuple[Path, str]]:
    known = [*OPTIONS, *ALIASES]
    if driver.type in LATER:
        yield path, f"{dotted(path)} = {quoted(driver.type)} cannot be served: {LATER[driver.type]}."
    elif driver.type not in OPTIONS:
        names = ", ".join(quoted(name) for name in known)
        yield (
            path,
            f"{dotted(path)}: there is no driver {quoted(driver.type)}"
            + (did_you_mean(driver.type, [*known, *LATER]) or f"; there are {names}."),
        )


def _quantization(model: ModelConfig, at: Path) -> Iterator[tuple[Path, str]]:
    path = (*at, "quantization")
    try:
        name = scheme(model.quantization, where=dotted(path))
    except ConfigError as error:
        yield path, error.message
        return
    if name != "none" and model.driver.type != "native":
        yield (
            path,
            f"{dotted(path)}: the driver {quoted(model.driver.type)} has no weights to quantise; leave it out.",
        )


def _kv_dtype(driver: DriverConfig, path: Path) -> Iterator[tuple[Path, str]]:
    if driver.options.get("kv_dtype") != "int8":
        return
    if driver.activation_dtype != "bfloat16":
        reason = f'is for activation_dtype = "bfloat16" only, not {quoted(driver.activation_dtype)}'
    elif driver.device != ["cpu"]:
        reason = f"is for the CPU only, not {', '.join(map(quoted, driver.device))}"
    else:
        return
    yield path, f'{dotted(path)} = "int8" {reason}; leave one of them out.'


def _residency(config: Config) -> Iterator[tuple[Path, str]]:
    """Times to live and budgets; a share of a machine's memory is told from no machine."""
    written: list[tuple[Path, float | str | None]] = [(("server", "keep_alive"), config.server.keep_alive)]
    written += [
        (("model", number, "keep_alive"), model.keep_alive) for number, model in enumerate(config.model)
    ]
    for path, value in written:
        try:
            keep_alive_secs(-1 if value is None else value)
        except ConfigError as error:
            yield path, f"{dotted(path)}: {error.message}."
    budget = config.runtime.memory_budget
    for device, text in (budget if isinstance(budget, dict) else {"cpu": budget}).items():
        where: Path = ("runtime", "memory_budget", *((device,) if isinstance(budget, dict) else ()))
        if not _DEVICE.fullmatch(device):
            yield (
                where,
                f'{dotted(where)}: {quoted(device)} is not a device; write "cpu" or such as "cuda:0".',
            )
            continue
        try:
            size_bytes(text, whole=1 << 40 if device == "cpu" else None)
        except ConfigError as error:
            yield where, f"{dotted(where)}: {error.message}."
    for key, whole in (("kv_store_memory", 1 << 40), ("kv_store_disk", None)):
        try:
            size_bytes(getattr(config.runtime, key), whole=whole)
        except ConfigError as error:
            yield ("runtime", key), f"runtime.{key}: {error.message}."


def _drafts(config: Config) -> Iterator[tuple[Path, str]]:
    """A draft model is another declared model of ours."""
    models = {name: model for model in config.model for name in (model.name, *model.aliases)}
    for number, model in enumerate(config.model):
        if model.draft is None:
            continue
        path: Path = ("model", number, "draft")
        where, draft = dotted(path), models.get(model.draft)
        if draft is None:
            yield (
                path,
                f"{where}: there is no model {quoted(model.draft)}; declare it as a [[model]] too"
                + (did_you_mean(model.draft, list(models)) or "."),
            )
        elif draft is model:
            yield path, f"{where}: a model cannot draft for itself; name a smaller one."
        elif model.driver.type != "native" or draft.driver.type != "native":
            yield path, f"{where}: drafts are made by and for models of the driver native only."
        elif model.driver.options.get("speculation") == "off":
            yield path, f'{where}: speculation = "off" leaves no use for a draft model; drop one of the two.'


def _dtype(dtype: str, path: Path, *, known: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    if dtype in known:
        return
    names = ", ".join(quoted(name) for name in known)
    if _QUANTISED.match(dtype):
        reason = "quantised weights are asked for with quantization (int8, int4)"
        yield path, f"{dotted(path)} = {quoted(dtype)} cannot be served: {reason}. Choose one of {names}."
    else:
        yield (
            path,
            f"{dotted(path)} = {quoted(dtype)} is not a type of numbers"
            + (did_you_mean(dtype, known) or f"; there are {names}."),
        )


def _devices(config: Config) -> Iterator[tuple[Path, str]]:
    """Accelerators belong to one model each; `cpu` is shared by all."""
    owner: dict[str, str] = {}
    for number, model in enumerate(config.model):
        own: set[str] = set()
        for index, device in enumerate(model.driver.device):
            path: Path = ("model", number, "driver", "device", index)
            where = dotted(path[:-1])
            match = _DEVICE.fullmatch(device)
            if not match:
                yield (
                    path,
                    f'{where}: {quoted(device)} is not a device; write "cpu", or an accelerator such as "cuda:0".',
                )
                continue
            place = "cpu" if match[1] else f"{match[2]}:{int(match[3] or 0)}"
            if place in own:
                yield path, f"{where}: {quoted(device)} is listed twice."
            elif place in owner:
                yield (
                    path,
                    f"{where}: {quoted(device)} belongs to the model {quoted(owner[place])} already; the devices of "
                    'models must be disjoint (only "cpu" is shared).',
                )
            own.add(place)
        if "cpu" in own and len(own) > 1:
            at: Path = ("model", number, "driver", "device")
            reason = "splitting a model over devices comes with a later version"
            yield at, f'{dotted(at)}: "cpu" beside an accelerator cannot be served: {reason}.'
        owner.update({place: model.name for place in own if place != "cpu" and place not in owner})
