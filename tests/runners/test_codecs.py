from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from factories.checkpoints import make_checkpoint

from inferloom.runners.codecs import codec_of

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_reload_takes_the_codec_that_was_read_before(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    assert codec_of(checkpoint) is codec_of(checkpoint)


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    before = codec_of(checkpoint)
    file = Path(checkpoint.folder) / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.25, "do_sample": True}))
    after = codec_of(checkpoint)
    assert after is not before
    assert after.generation_defaults.temperature == 0.25


def test_a_use_of_the_cache_entry_is_no_change(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    manifest = Path(checkpoint.folder) / "inferloom.json"
    manifest.write_text("{}")
    before = codec_of(checkpoint)
    os.utime(manifest, (1, 1))  # as each load does, to say when the entry was last used
    assert codec_of(checkpoint) is before


def test_another_template_is_another_codec(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    page = tmp_path / "mine.jinja"
    page.write_text(TEMPLATE)
    own = codec_of(checkpoint, chat_template=str(page))
    assert own is not codec_of(checkpoint, chat_template=TEMPLATE)
    assert own is codec_of(checkpoint, chat_template=str(page))
    page.write_text(TEMPLATE + "!")
    assert own is not codec_of(checkpoint, chat_template=str(page))


def test_models_that_load_at_the_same_time_share_one_codec(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: codec_of(checkpoint), range(4))
    assert all(other is first for other in others)
