import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest
from cli.conftest import served
from cli.standin import StandIn

from inferloom.cli.app import main
from inferloom.config.template import template

Run = Callable[..., tuple[int, str, str]]
OLDER = Path(__file__).parents[1] / "config" / "examples" / "older.toml"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERLOOM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def config(*arguments: object) -> tuple[int, str, str]:
        """The exit code, stdout and stderr of `inferloom config …`."""
        with pytest.raises(SystemExit) as left:
            main(["config", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return config


def test_init_writes_a_file_and_check_says_what_it_serves(run: Run, home: Path) -> None:
    assert run("init") == (0, f"wrote {home}/config.toml; `inferloom serve` serves it\n", "")
    assert run("check") == (
        0,
        f"{home}/config.toml: valid\n"
        "would serve on http://127.0.0.1:8080\n"
        "  smollm2  smollm2  native on cpu  (default)\n"
        "  minilm   minilm  native on cpu\n",
        "",
    )
    code, _, err = run("init")
    assert (code, "--force" in err) == (2, True)
    assert run("init", "--force")[0] == 0


def test_the_commands_of_the_documentation_work_one_after_the_other(run: Run, home: Path) -> None:
    run("init")
    for key, value in [
        ("server.port", "9090"),
        ("auth.enabled", "true"),
        ("model.0.hf_repo", "meta-llama/Llama-3.2-1B"),
        ("model.0.driver.device", "cuda:0,cuda:1"),
    ]:
        assert run("set", key, value)[0] == 0
    found = tomllib.loads((home / "config.toml").read_text())
    assert (found["server"]["port"], found["auth"]["enabled"]) == (9090, True)
    assert found["model"][0]["hf_repo"] == "meta-llama/Llama-3.2-1B"
    assert found["model"][0]["driver"]["device"] == ["cuda:0", "cuda:1"]


def test_a_wrong_value_is_one_sentence_and_exit_2(run: Run) -> None:
    run("init")
    code, out, err = run("set", "server.port", "eighty")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


def test_get_prints_values_for_programs(run: Run) -> None:
    run("init")
    assert run("get", "server.host") == (0, "127.0.0.1\n", "")
    assert run("get", "server.port") == (0, "8080\n", "")
    assert run("get", "model.0.driver.device") == (0, '["cpu"]\n', "")
    assert run("get", "server.default_model") == (1, "", "")


def test_keys_are_shown_nowhere(run: Run, home: Path) -> None:
    run("init")
    assert "sk-1" not in run("set", "server.api_keys", "sk-1,sk-2")[1]
    for arguments in (["show"], ["show", "--full"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert out.count("<redacted>") == 2
        assert "sk-1" not in out
    assert "sk-1" in (home / "config.toml").read_text()


def test_show_full_has_the_defaults_too(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text('[[model]]\nname = "a"\ndriver.type = "dummy"\n')
    assert run("show")[1] == '[[model]]\nname = "a"\ndriver.type = "dummy"\n'
    assert "port = 8080" in run("show", "--full")[1]


def test_unset_gives_the_default_back(run: Run) -> None:
    run("init")
    run("set", "server.max_concurrent_requests", "5")
    assert run("set", "server.max_concurrent_requests", "--unset")[0] == 0
    assert run("get", "server.max_concurrent_requests")[0] == 1
    assert run("set", "server.port")[0] == 2
    assert run("set", "server.port", "1", "--unset")[0] == 2


def test_another_file_can_be_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    assert run("init", "--config", path)[0] == 0
    assert run("set", "server.port", "7", "--config", path)[0] == 0
    assert run("get", "server.port", "--path", path)[1] == "7\n"
    assert run("check", path)[0] == 0


def test_check_reports_every_problem_and_leaves_with_2(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[server]\nprot = 1\nverbose = 1\n")
    code, out, err = run("check", path)
    assert (code, out) == (2, "")
    assert f'{path}:2: "prot" is not a key of [server]; did you mean "port"?' in err
    assert f"{path}:3: server.verbose must be true or false, not 1." in err


def test_migrate_rewrites_the_file_and_keeps_the_old_one(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(OLDER.read_text())
    code, _, err = run("check", path)
    assert (code, "config migrate" in err) == (2, True)
    new = run("migrate", "--config", path, "--stdout")[1]
    assert path.read_text() == OLDER.read_text()
    assert run("migrate", path, "--stdout")[1] == new
    assert run("migrate", "--config", path)[0] == 0
    assert path.read_text() == new
    assert (tmp_path / "c.toml.old").read_text() == OLDER.read_text()
    assert run("check", path)[0] == 0
    assert run("migrate", "--config", path)[0] == 2


def test_a_migrated_file_that_does_not_load_says_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(OLDER.read_text().replace("allow_filesystem = false", "allow_filesystem = true"))
    code, out, err = run("migrate", "--config", path)
    assert code == 2
    assert out.startswith(f"rewrote {path}")
    assert "runtime.allow_fs = true cannot be served" in err


def test_path_is_where_the_file_would_be(run: Run, home: Path) -> None:
    assert run("path") == (0, f"{home}/config.toml\n", "")


def test_the_schema_accepts_the_template_and_refuses_what_checking_refuses(run: Run) -> None:
    schema = json.loads(run("schema")[1])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = tomllib.loads(template())
    validator.validate(good)
    good["model"][0]["driver"]["device"] = "cpu"
    validator.validate(good)
    for wrong in (
        {"server": {"port": 70000}},
        {"server": {"prot": 1}},
        {"model": [{"name": "a"}]},
        {"model": [{"name": "a", "driver": {"type": "native", "options": {"thread": 1}}}]},
    ):
        assert not validator.is_valid(wrong)


@pytest.mark.parametrize(
    "command", [["set", "server.port", "1"], ["get", "server.port"], ["show"], ["check"]]
)
def test_without_a_file_every_command_says_how_to_get_one(run: Run, command: list[str]) -> None:
    code, _, err = run(*command)
    assert code == 2
    assert "`inferloom config init` writes one" in err


# --- of a running server --------------------------------------------------------------------------------------------

CHANGES: list[dict[str, object]] = [
    {"key": "server.port", "model": None, "before": 8080, "after": 9090, "effect": "restart"},
    {"key": "model.a.driver.options.threads", "model": "a", "before": None, "after": 2, "effect": "reload"},
    {"key": "model.b", "model": "b", "before": None, "after": "x/b", "effect": "added"},
]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A running server whose file has changed."""
    standin = StandIn(configuration={"file": "config.toml", "changes": CHANGES})
    with ExitStack() as stack:
        monkeypatch.setenv("INFERLOOM_URL", served(standin, stack).url)
        yield standin


def test_plan_says_what_each_key_takes(run: Run, standin: StandIn) -> None:
    assert run("plan") == (
        0,
        "KEY                             BEFORE  AFTER  TAKES\n"
        "server.port                     8080    9090   restart of the server\n"
        "model.a.driver.options.threads          2      reload of a\n"
        'model.b                                 "x/b"  the model is added\n',
        "",
    )
    assert standin.requests == [{"verb": "plan"}]
    code, out, _ = run("plan", "--json")
    assert (code, json.loads(out)) == (0, standin.configuration)


def test_apply_says_what_is_left_to_do(run: Run, standin: StandIn) -> None:
    done = [{**CHANGES[0], "applied": False, "error": None}, {**CHANGES[2], "applied": True, "error": None}]
    standin.configuration = {"file": "f", "changes": done, "failed": [], "restart": ["server.port"]}
    code, out, _ = run("apply")
    assert (code, standin.requests) == (0, [{"verb": "apply"}])
    rows = out.splitlines()
    assert [row.split()[-1] for row in rows[:3]] == ["DONE", "no", "yes"]
    assert rows[3] == "start the server again for server.port"


def test_a_model_that_could_not_be_changed_fails_the_command(run: Run, standin: StandIn) -> None:
    failed = {**CHANGES[1], "applied": False, "error": "it broke"}
    standin.configuration = {"file": "f", "changes": [failed], "failed": ["a"], "restart": []}
    code, out, _ = run("apply")
    assert (code, "failed: it broke" in out) == (1, True)


def test_nothing_to_do_is_said(run: Run, standin: StandIn) -> None:
    standin.configuration = {"file": "f", "changes": [], "failed": [], "restart": []}
    for verb in ("plan", "apply"):
        assert run(verb) == (0, "f: all of it holds\n", "")


def test_a_wrong_file_is_told_with_its_lines(run: Run, standin: StandIn) -> None:
    standin.configuration = None
    for verb in ("plan", "apply"):
        assert run(verb) == (2, "", "error: config.toml:3: server.port must be an integer\n")
