import json
from pathlib import Path

import pytest

from inferloom.cli.app import main

FILE = {"a": {"alias": "a", "Plain": {"model_id": "o/a"}}, "b": {"Plain": {"model_id": "o/b"}}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "models.json"
    path.write_text(json.dumps(FILE))
    return path


@pytest.mark.parametrize("command", [["from-config", "--file"], ["multi-model", "--config"]])
def test_both_names_check_the_file(
    command: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, str(file), "--default-model-id", "o/b", "--check-config"])
    assert left.value.code in (0, None)
    assert "valid" in capsys.readouterr().out


def test_a_wrong_default_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["from-config", "--file", str(file), "--default-model-id", "c", "--check-config"])
    assert left.value.code == 2
    assert 'server.default_model = "c" is not the name or an alias of a model' in capsys.readouterr().err
