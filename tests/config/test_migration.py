from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from inferloom.config.loading import load, loads
from inferloom.config.migration import migrate
from inferloom.errors import ConfigError

EXAMPLES = Path(__file__).parent / "examples"
OLDER = (EXAMPLES / "older.toml").read_text()


def test_the_older_schema_is_refused_with_the_new_place_of_each_key() -> None:
    with pytest.raises(ConfigError) as refused:
        load(EXAMPLES / "older.toml")
    head, *moves = refused.value.message.splitlines()
    assert head.endswith(
        "older.toml: this is the older configuration schema, which is no longer read. "
        "`inferloom config migrate` rewrites the file; the new places are:"
    )
    assert moves == [
        "  line 4: [server].primary_model -> removed: the first [[model]] is the default, or the one "
        "[server].default_model names",
        "  line 5: [server].allow_filesystem -> [runtime].allow_fs",
        '  line 8: [model.small] -> [[model]] with name = "small"',
        "  line 10: [model.small].default_endowment_pages -> [model.scheduler].default_endowment_pages",
        "  line 11: [model.small].oversubscription_factor -> [model.scheduler].admission_oversubscription_factor",
        "  line 14: [model.small.scheduler].policy -> [model.scheduler].batch_policy",
        "  line 17: [model.small.driver.cuda_native] -> [model.driver.options]",
        '  line 21: [model.large] -> [[model]] with name = "large"',
        "  line 28: [model.large.driver.portable] -> [model.driver.options]",
    ]


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("[server]\nprimary_model = 'a'\n", ["line 2: [server].primary_model -> removed"]),
        (
            "[[model]]\nname = 'a'\ndefault_token_budget = 5\n",
            ["line 3: [[model]].default_token_budget -> [model.scheduler].default_token_limit"],
        ),
        (
            "[[model]]\nname = 'a'\n[model.driver]\ntype = 'native'\n[model.driver.portable]\nmax_batch_size = 1\n",
            ["line 5: [model.driver.portable] -> [model.driver.options]"],
        ),
        (
            "[model]\nname = 'a'\nhf_repo = 'x'\n[model.driver]\ntype = 'native'\n",
            ["line 1: [model] -> [[model]], with two brackets"],
        ),
        (
            "[model.'a/b']\ndefault_token_budget = 1\n",
            [
                'line 1: [model.a/b] -> [[model]] with name = "a/b"',
                "line 2: [model.a/b].default_token_budget -> ",
            ],
        ),
    ],
)
def test_each_old_key_is_recognised_on_its_own(text: str, moves: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        loads(text, origin="f")
    listed = refused.value.message.splitlines()[1:]
    assert len(listed) == len(moves)
    for line, move in zip(listed, moves, strict=True):
        assert line.strip().startswith(move)


def test_a_migrated_file_loads_and_means_the_same() -> None:
    config = loads(migrate(OLDER, origin="f"), origin="f")
    assert config.server.port == 9000
    assert [model.name for model in config.model] == ["small", "large"]
    assert config.default_model is config.model[1]
    small, large = config.model
    assert (small.hf_repo, small.driver.type, small.driver.device) == (
        "Qwen/Qwen3-0.6B",
        "native",
        ["cuda:0"],
    )
    assert small.driver.options == {"gpu_mem_utilization": 0.5}
    assert (small.scheduler.batch_policy, small.scheduler.request_timeout_secs) == ("eager", 60)
    assert (large.driver.device, large.driver.options) == (["cpu"], {"max_batch_size": 8})


def test_comments_move_with_their_keys() -> None:
    new = migrate(OLDER, origin="f")
    for comment in ("# Our server.", "port = 9000  # behind the proxy", '"Qwen/Qwen3-0.6B"  # from the hub'):
        assert comment in new
    assert 'batch_policy = "eager"  # latency first' in new
    assert "gpu_mem_utilization = 0.5  # half of the card" in new


def test_a_primary_model_that_is_the_first_needs_no_key() -> None:
    new = migrate(OLDER.replace('primary_model = "large"', 'primary_model = "small"'), origin="f")
    assert "default_model" not in new
    assert loads(new, origin="f").default_model is not None


def test_a_single_table_becomes_an_array_of_one() -> None:
    text = "[model]\nname = 'a'\nhf_repo = 'x/y'\ndefault_endowment_pages = 64\n[model.driver]\ntype = 'portable'\n"
    (model,) = loads(migrate(text, origin="f"), origin="f").model
    assert (model.name, model.hf_repo, model.driver.type) == ("a", "x/y", "native")


def test_old_keys_in_an_array_of_tables_move_too() -> None:
    text = "[[model]]\nname = 'a'\nhf_repo = 'x'\noversubscription_factor = 4.0\n[model.driver.dummy]\ntext = 'hi'\n"
    (model,) = loads(migrate(text, origin="f"), origin="f").model
    assert (model.driver.type, model.driver.options) == ("dummy", {"text": "hi"})


def test_what_comes_with_a_later_version_is_kept_for_the_loader_to_refuse() -> None:
    new = migrate(OLDER.replace("allow_filesystem = false", "allow_filesystem = true"), origin="f")
    with pytest.raises(ConfigError, match=r"runtime\.allow_fs = true cannot be served"):
        loads(new, origin="f")


def test_nothing_to_migrate_is_said() -> None:
    with pytest.raises(ConfigError) as refused:
        migrate((EXAMPLES / "pie.toml").read_text(), origin="f")
    assert refused.value.message == "f: nothing to migrate; the file does not use the older schema."


def test_a_value_where_a_table_was_meant_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError) as refused:
        migrate("[model.a]\ndefault_token_budget = 1\nscheduler = 3\n", origin="f")
    assert refused.value.message == "f:3: model.a.scheduler must be a table before the file can be migrated."


def test_options_of_several_drivers_without_a_type_are_ambiguous() -> None:
    text = "[model.a]\nhf_repo = 'x'\n[model.a.driver.portable]\n[model.a.driver.vllm]\n"
    with pytest.raises(ConfigError, match="options for portable and vllm but no type that says which"):
        migrate(text, origin="f")
    chosen = text.replace(
        "[model.a.driver.portable]", "[model.a.driver]\ntype = 'portable'\n[model.a.driver.portable]"
    )
    assert loads(migrate(chosen, origin="f"), origin="f").model[0].driver.type == "native"


names = st.text(st.sampled_from("abcXYZ0123_-"), min_size=1, max_size=6).filter(
    lambda word: word not in ("driver", "scheduler", "load", "pin", "default")
)


@given(
    st.dictionaries(
        names,
        st.fixed_dictionaries(
            {"hf_repo": st.just("x/y")},
            optional={
                "default_endowment_pages": st.just(64),
                "oversubscription_factor": st.just(4.0),
                "scheduler": st.fixed_dictionaries({"policy": st.sampled_from(["eager", "greedy"])}),
            },
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["native", "portable", "dummy"]),
)
@settings(max_examples=40)
def test_any_older_file_can_be_migrated(models: dict[str, dict[str, object]], driver: str) -> None:
    for model in models.values():
        model["driver"] = {driver: {}}
    config = loads(migrate(tomlkit.dumps({"model": models}), origin="f"), origin="f")
    assert [model.name for model in config.model] == list(models)
    for model in config.model:
        scheduler = models[model.name].get("scheduler")
        expected = scheduler["policy"] if isinstance(scheduler, dict) else "adaptive"
        assert model.scheduler.batch_policy == expected


@pytest.mark.parametrize("value", ["false", "3", '"tiny"', "2026-01-01"])
def test_models_that_are_neither_a_list_nor_tables_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"model\]? must be a table before the file can be migrated"):
        migrate(f'model = {value}\n[server]\nprimary_model = "a"\n', origin="f")
