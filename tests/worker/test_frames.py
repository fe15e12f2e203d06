from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferloom.worker.frames import FrameSplitter, frame


@given(st.lists(st.binary(max_size=300)), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    bodies: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(frame(body) for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    splitter = FrameSplitter()
    found: list[bytes] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [bytes(body) for body in splitter.split(stream[start:stop])]
    assert found == bodies
