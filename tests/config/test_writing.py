import stat
from pathlib import Path

import pytest
import tomlkit
from factories.configs import configs, values
from hypothesis import given

from inferloom.config.loading import from_values, loads
from inferloom.config.schema import Config
from inferloom.config.writing import changing, dumps, replace
from inferloom.errors import ConfigError


@given(configs)
def test_a_configuration_written_and_read_again_is_the_same(config: Config) -> None:
    assert loads(dumps(config), origin="t") == config


@given(values())
def test_values_mean_the_same_as_toml_and_as_they_are(found: dict[str, object]) -> None:
    assert loads(tomlkit.dumps(found), origin="t") == from_values(found, origin="t")


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    replace(path, "a = 1\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    replace(path, "a = 2\n")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("a = 2\n", 0o640)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.toml"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    replace(path, "a = 1\n")
    with pytest.raises(UnicodeEncodeError):
        replace(path, "a = '\ud800'\n")
    assert path.read_text() == "a = 1\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.toml"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "c.toml", tmp_path / "config.toml"
    target.write_text("a = 1\n")
    link.symlink_to(target)
    replace(link, "a = 2\n")
    assert link.is_symlink()
    assert target.read_text() == "a = 2\n"


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), changing(tmp_path / "file" / "config.toml"):
        pass
    with pytest.raises(ConfigError, match="cannot be written"):
        replace(tmp_path / "none" / "config.toml", "")
