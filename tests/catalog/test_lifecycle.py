from __future__ import annotations

import pytest

from inferloom.catalog.lifecycle import NEXT, WORD, State, status_word
from inferloom.errors import LoadFailed, SourceNotFound


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (State.DECLARED, "unloaded"),
        (State.LOADING, "reloading"),
        (State.WARMING, "reloading"),
        (State.READY, "loaded"),
        (State.DRAINING, "loaded"),
        (State.UNLOADING, "loaded"),
        (State.UNLOADED, "unloaded"),
        (State.FAILED, "internal_error"),
    ],
)
def test_every_state_has_its_word(state: State, word: str) -> None:
    assert status_word(state, None) == word


def test_a_source_that_is_gone_has_a_word_of_its_own() -> None:
    assert status_word(State.FAILED, SourceNotFound("gone")) == "no_loader_config"
    assert status_word(State.FAILED, LoadFailed("bad")) == "internal_error"


def test_every_state_is_described_and_can_be_left_and_reached() -> None:
    assert set(NEXT) == set(WORD) == set(State)
    assert all(NEXT[state] for state in State)
    assert set().union(*NEXT.values()) == set(State) - {State.DECLARED}


def test_unloaded_is_said_only_after_unloading_or_before_anything_was_loaded() -> None:
    assert State.UNLOADED not in NEXT[State.READY] | NEXT[State.DRAINING]
