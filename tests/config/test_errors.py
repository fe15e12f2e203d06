"""Every error of the configuration chapter, with its whole text."""

import re

import pytest

from inferloom.config.loading import loads
from inferloom.errors import ConfigError

MODEL = '[[model]]\nname = "a"\nsource = "x/y"\n[model.driver]\ntype = "native"\n'
LATER = "come with a later version"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        loads(text, origin="f")
    return refused.value.message


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[server]\nhost = ''", "server.host must not be empty."),
        ("[server]\nhost = 'a b'", 'server.host = "a b" is not a host name or address.'),
        ("[server]\nhost = 8080", "server.host must be a string, not 8080."),
        ("[server]\nport = 65536", "server.port must be between 0 and 65535, not 65536."),
        ("[server]\nport = -1", "server.port must be between 0 and 65535, not -1."),
        ("[server]\nport = true", "server.port must be an integer, not true."),
        ("[server]\nport = 80.5", "server.port must be an integer, not 80.5."),
        ("[server]\nverbose = 'yes'", 'server.verbose must be true or false, not the string "yes".'),
        ("[server]\nmax_concurrent_processes = 0", "server.max_concurrent_processes must be > 0, not 0."),
        ("[server]\nmax_concurrent_requests = 0", "server.max_concurrent_requests must be > 0, not 0."),
        (
            "[server]\nlog_level = 'inf'",
            'server.log_level must be one of "debug", "error", "info", "warning", not the string "inf"; '
            'did you mean "info"?',
        ),
        ("[server]\napi_keys = 'sk-secret'", "server.api_keys must be a list of strings, not a string."),
        ("[server]\napi_keys = ['']", "server.api_keys.0 must not be empty."),
        (
            "[server]\napi_keys = ['sk secret ']",
            "server.api_keys.0 must be printable ASCII without spaces around it; it travels in a header.",
        ),
        (
            "[server]\ncors_origins = ['https://a.example/chat']",
            'server.cors_origins.0 = "https://a.example/chat" must be "*" or scheme://host[:port], without a path.',
        ),
        ("[server]\ndrain_timeout_secs = -1", "server.drain_timeout_secs must be >= 0, not -1."),
        ("[server]\nqueue_timeout_secs = 0", "server.queue_timeout_secs must be > 0, not 0."),
        (
            "[server]\nload_timeout_secs = inf",
            "server.load_timeout_secs must be a finite number > 0, not inf.",
        ),
        (
            "[server]\nfirst_token_timeout_secs = nan",
            "server.first_token_timeout_secs must be a finite number > 0, not nan.",
        ),
        (
            "[server]\ndefault_model = 'b'",
            'server.default_model = "b" is not the name or an alias of a model; there are: a.',
        ),
        ("[auth]\nenabled = 1", "auth.enabled must be true or false, not 1."),
        ("[auth]\nenable = true", '"enable" is not a key of [auth]; did you mean "enabled"?'),
        ("[runtime]\nworker_threads = 0", "runtime.worker_threads must be > 0, not 0."),
        ("[runtime]\nwasm_max_instances = 0", "runtime.wasm_max_instances must be > 0, not 0."),
        ("[runtime]\nwasm_max_memory_mb = 0", "runtime.wasm_max_memory_mb must be > 0, not 0."),
        ("[runtime]\nwasm_warm_memory_mb = -1", "runtime.wasm_warm_memory_mb must be >= 0, not -1."),
        ("[runtime]\nwasm_warm_slots = -1", "runtime.wasm_warm_slots must be >= 0, not -1."),
        ("[runtime]\nmax_upload_mb = 0", "runtime.max_upload_mb must be > 0, not 0."),
        (
            "[runtime]\nnetwork_allowed_hosts = [1]",
            "runtime.network_allowed_hosts.0 must be a string, not 1.",
        ),
        ("[runtime]\nport = 1", '"port" is not a key of [runtime], but of [server].'),
        ("[runtme]", '[runtme] is not a section; did you mean "runtime"?'),
        ("[zzz]", "[zzz] is not a section; there are server, auth, telemetry, runtime, model."),
        ("port = 1", '"port" is a key of [server]; it stands outside of every section.'),
        ("server = 1", "server must be a table, not 1."),
    ],
)
def test_a_section_is_refused_with_its_line(section: str, message: str) -> None:
    line = section.count("\n") + 1
    assert refusal(f"{section}\n{MODEL}") == f"f:{line}: {message}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("batch_policy = 'lazy'", 'must be one of "adaptive", "eager", "greedy", not the string "lazy".'),
        ("request_timeout_secs = 0", "must be > 0, not 0."),
        ("default_token_limit = 0", "must be > 0, not 0."),
        ("default_endowment_pages = 0", "must be > 0, not 0."),
        ("admission_oversubscription_factor = 0", "must be > 0, not 0."),
        ("admission_oversubscription_factor = inf", "must be a finite number > 0, not inf."),
        ("restore_pause_at_utilization = 0.0", "must be in (0.0, 1.0], not 0.0."),
        ("restore_pause_at_utilization = 1.1", "must be in (0.0, 1.0], not 1.1."),
        ("restore_pause_at_utilization = nan", "must be a finite number in (0.0, 1.0], not nan."),
    ],
)
def test_a_scheduler_key_is_refused(key: str, message: str) -> None:
    name = key.partition(" ")[0]
    assert refusal(f"{MODEL}[model.scheduler]\n{key}") == f"f:7: model.0.scheduler.{name} {message}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("device = []", "model.0.driver.device must not be empty."),
        (
            "device = 'gpu'",
            'model.0.driver.device: "gpu" is not a device; write "cpu", or an accelerator such as "cuda:0".',
        ),
        ("device = ['cuda', 'cuda:0']", 'model.0.driver.device: "cuda:0" is listed twice.'),
        ("tensor_parallel_size = 0", "model.0.driver.tensor_parallel_size must be > 0, not 0."),
        (
            "activation_dtype = 'bfloat15'",
            'model.0.driver.activation_dtype = "bfloat15" is not a type of numbers; did you mean "bfloat16"?',
        ),
        ("random_seed = -1", "model.0.driver.random_seed must be >= 0, not -1."),
        ("random_seed = 'x'", 'model.0.driver.random_seed must be an integer, not the string "x".'),
        ("options = 1", "model.0.driver.options must be a table, not 1."),
        (
            "options.gpu_mem_utilization = 1.5",
            "model.0.driver.options.gpu_mem_utilization must be in (0.0, 1.0], not 1.5.",
        ),
        ("options.max_batch_tokens = 0", "model.0.driver.options.max_batch_tokens must be > 0, not 0."),
        ("options.max_batch_size = 0", "model.0.driver.options.max_batch_size must be > 0, not 0."),
        ("options.threads = -1", "model.0.driver.options.threads must be >= 0, not -1."),
        (
            "options.gpu_memory_utilization = 0.5",
            '"gpu_memory_utilization" is not a key of [model.driver.options]; did you mean "gpu_mem_utilization"?',
        ),
        ("dtype = 'auto'", '"dtype" is not a key of [model.driver], but of [[model]].'),
    ],
)
def test_a_driver_key_is_refused(key: str, message: str) -> None:
    assert refusal(f"{MODEL}{key}") == f"f:6: {message}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("source = 'x'", '[[model]] needs the key "name".'),
        ("name = ''\nsource = 'x'", "model.0.name must not be empty."),
        ("name = 'a'", 'model.0: the model "a" needs source (or hf_repo): where its weights are.'),
        (
            "name = 'a'\nsource = 'x'\nhf_repo = 'x'",
            "model.0: source and hf_repo say the same thing; give exactly one of them.",
        ),
        (
            "name = 'reload'\nsource = 'x'",
            'model.0.name: "reload" is a reserved word (load, unload, reload, status, plan, pin, re_isq); choose another.',
        ),
        (
            "name = 'a'\nsource = 'x'\naliases = ['pin']",
            'model.0.aliases.0: "pin" is a reserved word (load, unload, reload, status, plan, pin, re_isq); choose another.',
        ),
        (
            "name = 'a b'\nsource = 'x'",
            'model.0.name: "a b" cannot be an id: up to 200 characters, without spaces, commas, "?", "#" and "%", '
            "and no slash at either end.",
        ),
        (
            "name = 'a'\nsource = 'x'\naliases = ['a']",
            'model.0.aliases.0: "a" is already the name of the model "a"; names and aliases must be unique.',
        ),
        ("name = 'a'\nsource = 'x'\nmax_model_len = 0", "model.0.max_model_len must be > 0, not 0."),
        (
            "name = 'a'\nsource = 'x'\ndtype = 'int4'",
            'model.0.dtype = "int4" cannot be served: quantised weights are asked for with quantization (int8, '
            'int4). Choose one of "auto", "float32", "bfloat16", "float16".',
        ),
        (
            "name = 'a'\nsource = 'x'\ndraft = 'b'",
            'model.0.draft: there is no model "b"; declare it as a [[model]] too.',
        ),
        (
            "name = 'a'\nsource = 'x'\ndraft = 'a'",
            "model.0.draft: a model cannot draft for itself; name a smaller one.",
        ),
        ("name = 'a'\nsource = 'x'\nnmae = 'b'", '"nmae" is not a key of [[model]]; did you mean "name"?'),
        (
            "name = 'a'\nsource = 'x'\nkeep_alive = true",
            "model.0.keep_alive must be a number or a string, not true.",
        ),
    ],
)
def test_a_model_is_refused(keys: str, message: str) -> None:
    text = refusal(f"[[model]]\n{keys}\n[model.driver]\ntype = 'native'\n")
    assert re.sub(r"^f:\d+: ", "", text) == message


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        ("nativ", 'there is no driver "nativ"; did you mean "native"?'),
        ("zzz", 'there is no driver "zzz"; there are "native", "dummy", "portable", "cuda_native".'),
    ],
)
def test_an_unknown_driver_is_refused(driver: str, message: str) -> None:
    text = MODEL.replace("native", driver)
    assert refusal(text) == f"f:5: model.0.driver.type: {message}"


@pytest.mark.parametrize(
    ("driver", "feature"),
    [
        ("dev", "PyTorch development driver"),
        ("vllm", "vLLM"),
        ("sglang", "SGLang"),
        ("tensorrt_llm", "TensorRT-LLM"),
        ("llamacpp", "llama.cpp"),
        ("onnx", "ONNX"),
        ("torchscript", "TorchScript"),
        ("tensorrt", "TensorRT"),
        ("openai", "remote providers"),
        ("router", "routing"),
        ("inferlet", "inferlet"),
        ("custom", "model classes"),
    ],
)
def test_a_driver_of_a_later_version_is_refused_naming_the_feature(driver: str, feature: str) -> None:
    text = refusal(MODEL.replace('"native"', f'"{driver}"') + "[model.driver.options]\nvenv = '/opt/venv'\n")
    assert text.startswith(f'f:5: model.0.driver.type = "{driver}" cannot be served: ')
    assert feature in text


def test_a_model_without_a_driver_is_refused() -> None:
    assert refusal('[[model]]\nname = "a"\nsource = "x"\n') == 'f:1: [[model]] needs the key "driver".'
    text = refusal('[[model]]\nname = "a"\nsource = "x"\n[model.driver]\ndevice = "cpu"\n')
    assert text == 'f:4: [model.driver] needs the key "type".'


def test_a_file_without_models_is_refused() -> None:
    message = "there is no [[model]]; add one, or let `inferloom config init` write a file that serves here."
    assert refusal("[server]\nport = 1\n") == f"f: {message}"
    assert refusal("model = []") == f"f:1: {message}"


def test_ids_are_unique_across_names_and_aliases() -> None:
    other = MODEL.replace('"a"', '"b"\naliases = ["c", "a"]')
    assert refusal(MODEL + other) == (
        'f:8: model.1.aliases.1: "a" is already the name of the model "a"; names and aliases must be unique.'
    )
    assert refusal(other + MODEL) == (
        'f:8: model.1.name: "a" is already an alias of the model "b"; names and aliases must be unique.'
    )


def test_an_accelerator_belongs_to_one_model() -> None:
    first, second = (
        MODEL + 'device = "cuda:0"\n',
        MODEL.replace('"a"', '"b"') + 'device = ["cuda:1", "cuda:0"]\n',
    )
    assert refusal(first + second) == (
        'f:12: model.1.driver.device: "cuda:0" belongs to the model "a" already; the devices of models must be '
        'disjoint (only "cpu" is shared).'
    )


def test_cpu_beside_an_accelerator_is_refused() -> None:
    assert refusal(MODEL + 'device = ["cpu", "cuda:0"]\n') == (
        'f:6: model.0.driver.device: "cpu" beside an accelerator cannot be served: splitting a model over devices '
        "comes with a later version."
    )


def test_a_model_called_default_must_be_the_default_model() -> None:
    assert refusal(MODEL + MODEL.replace('"a"', '"default"')) == (
        'f:7: model.1.name: the id "default" means the default model, which is "a"; rename this one or make it the '
        "default."
    )


def test_an_api_key_is_never_in_an_error() -> None:
    for keys in ("'sk-secret'", "['sk-secret ']", "{ k = 'sk-secret' }", "[['sk-secret']]"):
        assert "sk-secret" not in refusal(f"[server]\napi_keys = {keys}\n{MODEL}")


@pytest.mark.parametrize(
    ("keys", "other", "message"),
    [
        (
            "[model.driver]\ntype = 'native'",
            "[model.driver]\ntype = 'dummy'",
            "model.0.draft: drafts are made by and for models of the driver native only.",
        ),
        (
            "[model.driver]\ntype = 'native'\n[model.driver.options]\nspeculation = 'off'",
            "[model.driver]\ntype = 'native'",
            'model.0.draft: speculation = "off" leaves no use for a draft model; drop one of the two.',
        ),
    ],
)
def test_a_draft_model_is_refused(keys: str, other: str, message: str) -> None:
    text = refusal(
        f"[[model]]\nname = 'a'\nsource = 'x'\ndraft = 'c'\n{keys}\n"
        f"[[model]]\nname = 'b'\nsource = 'y'\naliases = ['c']\n{other}\n"
    )
    assert re.sub(r"^f:\d+: ", "", text) == message


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        ("activation_dtype = 'half'", 'is for activation_dtype = "bfloat16" only, not "float16"'),
        ("device = 'cuda:0'", 'is for the CPU only, not "cuda:0"'),
    ],
)
def test_int8_keys_and_values_are_for_bfloat16_on_a_cpu(driver: str, reason: str) -> None:
    text = refusal(f"{MODEL}{driver}\n[model.driver.options]\nkv_dtype = 'int8'\n")
    assert text == f'f:8: model.0.driver.options.kv_dtype = "int8" {reason}; leave one of them out.'
