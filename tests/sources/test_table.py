"""The table of short names."""

from __future__ import annotations

from pathlib import Path

from inferloom.sources.reference import HubRef, PackageRef, parse
from inferloom.sources.table import SHORT_NAMES


def test_every_row_is_under_its_own_name_and_has_a_source_that_parses() -> None:
    for name, row in SHORT_NAMES.items():
        found = parse(name)
        assert row.name == name == found.name
        assert found.short is row
        assert isinstance(found.ref, HubRef | PackageRef)
        assert row.size_bytes > 0
        assert row.licence


def test_the_starters_are_packages_with_checksums() -> None:
    for name in ("smollm2", "minilm"):
        row = SHORT_NAMES[name]
        assert row.source.startswith("pypi:")
        assert row.licence == "Apache-2.0"
        assert row.sha256 is not None
        assert len(row.sha256) == 64
    assert (
        SHORT_NAMES["smollm2"].system_prompt == "You are a concise assistant. Answer in one short sentence."
    )
    assert SHORT_NAMES["minilm"].dtype == "float32"
    assert SHORT_NAMES["minilm"].kind == "embed"


def test_the_documentation_has_every_row_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    table = page.partition("## Short names")[2].partition("## Packages")[0]
    shown = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    assert [cells[0].strip("`") for cells in shown] == list(SHORT_NAMES)
    for cells, row in zip(shown, SHORT_NAMES.values(), strict=True):
        assert cells[1].strip("`") == row.source.partition("#")[0]
        assert cells[2] == row.licence
        assert ("gated" in cells[3]) is row.gated
