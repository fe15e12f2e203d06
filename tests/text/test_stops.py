from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from inferloom.text.stops import StopMatcher


def visible(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher, text = StopMatcher(stops), ""
    for piece in pieces:
        said, stopped = matcher.push(piece)
        text += said
        if stopped:
            return text, True
    return text + matcher.flush(), False


def first_complete(stops: list[str], text: str) -> tuple[str, bool]:
    """The plain statement: the stop that is complete first; of two that end together, the longer one."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.text("abc", max_size=4), max_size=12),
)
def test_text_before_the_first_complete_stop_is_visible_however_it_is_cut(
    stops: list[str], pieces: list[str]
) -> None:
    assert visible(stops, pieces) == first_complete(stops, "".join(pieces))


def test_what_may_begin_a_stop_is_held_back_and_no_more() -> None:
    matcher = StopMatcher(["\n\nUser:", "END"])
    assert matcher.push("one\n") == ("one", False)
    assert matcher.push("two\n\nUse") == ("\ntwo", False)
    assert matcher.push("ful E") == ("\n\nUseful ", False)
    assert matcher.push("N") == ("", False)
    assert matcher.flush() == "EN"


def test_after_a_match_everything_is_swallowed() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("go stop go") == ("go ", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""
    assert matcher.matched == "stop"


def test_without_stops_text_passes_through() -> None:
    matcher = StopMatcher([])
    assert matcher.push("anything") == ("anything", False)
    assert StopMatcher([""]).push("an empty stop is none") == ("an empty stop is none", False)


def test_a_long_stop_that_almost_matches_again_and_again_costs_linear_work() -> None:
    matcher = StopMatcher(["a" * 20_000 + "b"])
    total = sum(len(matcher.push("a" * 1000)[0]) for _ in range(200))
    assert total == 180_000
    assert len(matcher.flush()) == 20_000
