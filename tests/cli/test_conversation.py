from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import Open
from cli.standin import WORDS, StandIn

from inferloom.cli.conversation import AnswerStats, Conversation
from inferloom.cli.session import Session
from inferloom.errors import ConfigError, InvalidRequest

ANSWER = "".join(WORDS)


def test_every_turn_is_sent_again_with_the_next_question(transport: Open) -> None:
    standin = StandIn()
    chat = Conversation(Session(transport(standin)), system="Be brief.")
    assert "".join(chat.ask("one?")) == ANSWER
    assert "".join(chat.ask("two?")) == ANSWER
    assert [(turn["role"], turn["content"]) for turn in standin.requests[1]["messages"]] == [
        ("system", "Be brief."),
        ("user", "one?"),
        ("assistant", ANSWER),
        ("user", "two?"),
    ]


def test_an_answer_ended_early_stays_as_far_as_it_came(transport: Open) -> None:
    chat = Conversation(Session(transport(StandIn(endless=True))))
    answer = chat.ask("one?")
    said = next(answer) + next(answer)
    answer.close()
    assert [turn.content for turn in chat.turns] == ["one?", said]


def test_a_refused_question_is_taken_back(transport: Open) -> None:
    chat = Conversation(Session(transport(StandIn())))
    with pytest.raises(InvalidRequest):
        list(chat.ask("too long"))
    assert chat.turns == []


def test_saving_writes_json_that_the_api_takes_and_markdown_for_people(
    transport: Open, tmp_path: Path
) -> None:
    chat = Conversation(Session(transport(StandIn())), model="org/small")
    list(chat.ask("one?"))
    chat.save(tmp_path / "chat.json")
    chat.save(tmp_path / "chat.md")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert saved == {
        "model": "org/small",
        "messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": ANSWER}],
    }
    assert (tmp_path / "chat.md").read_text() == f"**user:** one?\n\n**assistant:** {ANSWER}\n"


def test_saving_where_nothing_can_be_written_says_so(transport: Open, tmp_path: Path) -> None:
    chat = Conversation(Session(transport(StandIn())))
    with pytest.raises(ConfigError, match="the chat was not saved"):
        chat.save(tmp_path / "missing" / "chat.json")


def test_the_rate_counts_the_tokens_after_the_first() -> None:
    stats = AnswerStats(completion_tokens=11, first_seconds=0.5, seconds=1.0)
    assert stats.tokens_per_second == pytest.approx(20.0)
    assert AnswerStats(completion_tokens=1, seconds=1.0).tokens_per_second == 0.0


def test_statistics_tell_tokens_and_speed_of_the_chat(transport: Open) -> None:
    chat = Conversation(Session(transport(StandIn())))
    assert chat.summary() == "no answer yet"
    list(chat.ask("one?"))
    list(chat.ask("two?"))
    assert "last answer: 5 tokens" in chat.summary()
    assert "2 answers, 10 tokens" in chat.summary()
