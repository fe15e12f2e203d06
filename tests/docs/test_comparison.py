from __future__ import annotations

from pathlib import Path

from docs.snippets import Command, commands, differs, snippets


def test_blocks_are_found_with_their_line_and_the_reason_why_they_are_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```toml\na = 1\n```\n\n<!-- not run: it never ends -->\n```console\n$ make serve\n```\n"
    )
    first, second = snippets(page)
    assert (first.line, first.language, first.text, first.why_not) == (3, "toml", "a = 1\n", None)
    assert (second.line, second.why_not) == (8, "it never ends")


def test_a_command_goes_on_over_backslashes_and_open_quotes() -> None:
    block = '$ curl x \\\n    -d \'{\n  "a": 1}\'\n{"b": 2}\n$ ls\n'
    assert commands(block) == [Command("curl x \\\n    -d '{\n  \"a\": 1}'", '{"b": 2}'), Command("ls", "")]


def test_json_is_compared_by_shape() -> None:
    assert differs('{"id": "a", "n": 1}', '{"id": "b", "n": 2.5}') is None
    assert differs('{"id": "a"}', '{"id": "b", "n": 2}') is not None
    assert differs('{"id": "a"}', '{"id": 3}') is not None
    assert differs('{"data": [{"x": 1}, "..."]}', '{"data": [{"x": 2}, {"x": 3}, {"x": 4}]}') is None
    assert differs('{"data": []}', '{"data": [1]}') is not None


def test_text_is_compared_with_its_numbers_left_out() -> None:
    assert differs("ready in 0.21 s", "ready in 3 s") is None
    assert differs("ready in 0.21 s", "failed in 3 s") is not None
    assert differs("one\n...\nlast", "one\ntwo\nthree\nlast") is None
    assert differs("one", "one\ntwo") is not None
    assert differs("The capital … Paris.", "The capital of France is Paris.") is None


def test_events_of_a_stream_are_compared_line_by_line() -> None:
    shown = 'data: {"choices": [{"delta": {"content": "Paris"}}]}\n...\ndata: [DONE]'
    actual = 'data: {"choices": [{"delta": {"content": "The"}}]}\n\ndata: {"usage": {}}\n\ndata: [DONE]\n'
    assert differs(shown, actual) is None
