from __future__ import annotations

import time

import pytest
from cli.conftest import Open
from cli.standin import WORDS, StandIn

from inferloom.cli.session import Message, Session, connect
from inferloom.cli.transport import NoServer
from inferloom.errors import ConfigError, InferloomError, InvalidRequest, ModelNotFound

QUESTION = [Message("user", "What is the capital of France?")]


def test_an_answer_arrives_piece_by_piece_with_its_token_counts(transport: Open) -> None:
    pieces = list(Session(transport(StandIn())).chat(QUESTION))
    assert "".join(piece.text for piece in pieces) == "".join(WORDS)
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]
    assert (pieces[-1].prompt_tokens, pieces[-1].completion_tokens) == (7, 5)


def test_only_what_was_given_is_sent(transport: Open) -> None:
    standin = StandIn()
    session = Session(transport(standin))
    list(session.chat(QUESTION))
    list(session.chat(QUESTION, model="org/small", temperature=0.0, max_tokens=3))
    assert standin.requests[0].keys() == {"messages", "stream", "stream_options"}
    assert standin.requests[1]["model"] == "org/small"
    assert standin.requests[1]["temperature"] == 0.0
    assert standin.requests[1]["max_tokens"] == 3


def test_leaving_an_answer_early_tells_the_other_side(transport: Open) -> None:
    standin = StandIn(endless=True)
    session = Session(transport(standin))
    answer = session.chat(QUESTION)
    assert next(piece.text for piece in answer if piece.text) == WORDS[0]
    answer.close()
    deadline = time.monotonic() + 10
    while not standin.left and time.monotonic() < deadline:
        session.models()  # in process, the application runs while something is asked of it
    assert standin.left


def test_an_error_event_in_the_stream_is_raised_after_the_text_before_it(transport: Open) -> None:
    pieces = Session(transport(StandIn(fails=True))).chat(QUESTION)
    assert [next(pieces).text for _ in WORDS] == list(WORDS)
    with pytest.raises(InferloomError, match="the worker died"):
        next(pieces)


def test_a_refused_request_raises_the_servers_sentence(transport: Open) -> None:
    with pytest.raises(InvalidRequest, match="the prompt is too long") as caught:
        list(Session(transport(StandIn())).chat([Message("user", "too long")]))
    assert caught.value.code == "context_length_exceeded"


def test_the_listing_has_every_model_once_and_default_is_not_one(transport: Open) -> None:
    rows = Session(transport(StandIn())).models()
    assert [row.id for row in rows] == ["org/small", "vectors"]
    assert rows[0].parameters == 135_000_000


def test_an_unknown_model_is_named(transport: Open) -> None:
    with pytest.raises(ModelNotFound, match="nope"):
        Session(transport(StandIn())).find("nope")


def test_the_api_key_is_sent(transport: Open) -> None:
    standin = StandIn()
    Session(transport(standin)).models()
    assert standin.authorizations == ["Bearer sk-test"]


def test_a_lifecycle_verb_returns_the_servers_answer(transport: Open) -> None:
    answer = Session(transport(StandIn())).lifecycle("unload", "org/small")
    assert (answer["model_id"], answer["status"]) == ("org/small", "unloaded")


def test_a_named_address_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoServer, match=r"no Inferloom server answers at http://127\.0\.0\.1:1:"):
        connect("http://127.0.0.1:1")
    monkeypatch.setenv("INFERLOOM_URL", "http://127.0.0.1:1")
    with pytest.raises(NoServer):
        connect()


def test_an_address_that_is_none_is_refused_with_an_example() -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:8080"):
        connect("ftp://127.0.0.1")
