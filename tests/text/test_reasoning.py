from __future__ import annotations

import pytest
from factories.chat_templates import CHATML, QWEN
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inferloom.text.reasoning import ReasoningFormat, ReasoningParser

CASES = [
    ("<think>reasoning here</think>final content", False, "reasoning here", "final content"),
    ("<think>\nlet me see\n</think>\n\nParis", False, "let me see", "Paris"),
    ("<think></think>x", False, "", "x"),
    ("<think>one</think>a<think>two</think>b", False, "onetwo", "ab"),
    ("<think>never closed", False, "never closed", ""),
    ("already open</think>done", True, "already open", "done"),
    ("no thought at all <th", False, "", "no thought at all <th"),
    ("  kept white space  ", False, "", "  kept white space  "),
    ("<think>a < b </thin </think> c </think>", False, "a < b </thin", "c </think>"),
]


def parse(pieces: list[str], *, inside: bool) -> tuple[str, str]:
    parser = ReasoningParser(inside=inside)
    parts = [parser.push(piece) for piece in pieces] + [parser.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(("text", "inside", "reasoning", "content"), CASES)
def test_thought_and_answer_are_told_apart_however_the_text_is_cut(
    text: str, inside: bool, reasoning: str, content: str
) -> None:
    assert parse([text], inside=inside) == (reasoning, content)
    assert parse(list(text), inside=inside) == (reasoning, content)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "a", " ", "\n", "</"]), max_size=12),
    st.booleans(),
)
def test_the_cut_never_matters(pieces: list[str], inside: bool) -> None:
    text = "".join(pieces)
    assert parse(pieces, inside=inside) == parse([text], inside=inside) == parse(list(text), inside=inside)


def test_the_format_is_found_in_the_template_or_the_vocabulary(
    byte_bpe: Tokenizer, llama_bpe: Tokenizer
) -> None:
    by_template = ReasoningFormat.detect(QWEN, llama_bpe)
    assert by_template == ReasoningFormat("<think>", "</think>")
    by_vocabulary = ReasoningFormat.detect(CHATML, byte_bpe)
    assert by_vocabulary is not None
    assert len(by_vocabulary.marker_ids) == 2
    assert ReasoningFormat.detect(CHATML, llama_bpe) is None


def test_a_prompt_that_ends_in_an_open_thought_begins_inside() -> None:
    found = ReasoningFormat("<think>", "</think>")
    assert found.parser("<|im_start|>assistant\n<think>\n").push("hm</think>yes") == ("hm", "yes")
    assert found.parser("<|im_start|>assistant\n").push("yes") == ("", "yes")
