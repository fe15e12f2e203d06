from pathlib import Path

import pytest

from inferloom.config.home import cache_dir, config_path, home


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("INFERLOOM_HOME", "PIE_HOME", "INFERLOOM_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_home_is_a_folder_in_the_users(tmp_path: Path) -> None:
    assert home() == tmp_path / ".inferloom"
    assert config_path() == tmp_path / ".inferloom" / "config.toml"
    assert cache_dir() == tmp_path / ".inferloom" / "cache"


def test_pie_home_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIE_HOME", "/srv/pie")
    assert home() == Path("/srv/pie")


def test_inferloom_home_goes_before_pie_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIE_HOME", "/srv/pie")
    monkeypatch.setenv("INFERLOOM_HOME", "/srv/loom")
    assert home() == Path("/srv/loom")
    assert cache_dir() == Path("/srv/loom/cache")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFERLOOM_HOME", "")
    assert home() == tmp_path / ".inferloom"


def test_a_tilde_and_a_relative_home_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFERLOOM_HOME", "~/loom")
    assert home() == tmp_path / "loom"
    monkeypatch.setenv("INFERLOOM_HOME", "loom")
    assert home() == Path.cwd() / "loom"


def test_the_cache_can_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERLOOM_CACHE", "/mnt/big")
    assert cache_dir() == Path("/mnt/big")
