"""Codecs outlive their models' workers: a reload takes the tokenizer that was read before, while its files are the same.

Reading one takes up to a second and tens of megabytes; a model that is unloaded and reloaded all day must cost neither,
and two models that share a tokenizer share its codec, also where they are loaded at the same time.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.entries import MANIFEST
from inferloom.text.codec import TextCodec

KEPT = 16  # the codecs used last
Stamp = tuple[str, int, int]  # path, time of modification in ns, size


def codec_of(
    checkpoint: Checkpoint, *, chat_template: str | None = None, jinja_explicit: str | None = None
) -> TextCodec:
    """The codec of a checkpoint, read anew only where a file of it changed. Errors as `TextCodec.load`'s."""
    folders = [checkpoint.folder, checkpoint.tokenizer_folder]
    files = [
        file
        for folder in folders
        if folder is not None
        for file in sorted(Path(folder).iterdir())
        if file.name
        != MANIFEST  # touched by every load: its time says when an entry of the cache was last used
    ]
    # a template may be a text or a path
    files += [
        Path(template) for template in (chat_template, jinja_explicit) if template and "\n" not in template
    ]
    key = (checkpoint, chat_template, jinja_explicit, tuple(filter(None, map(_stamp, files))))
    with _turn(*key):
        return _load(*key)


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except (OSError, ValueError):  # a template's text that looks like a path, or a file that has just gone
        return None
    return str(file), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=KEPT)
def _turn(*key: object) -> threading.Lock:
    """For those who want the same codec: the first reads it, the others find it read."""
    return threading.Lock()


@lru_cache(maxsize=KEPT)
def _load(
    checkpoint: Checkpoint, chat_template: str | None, jinja_explicit: str | None, files: tuple[Stamp, ...]
) -> TextCodec:
    del files  # part of the key alone
    return TextCodec.load(checkpoint, chat_template=chat_template, jinja_explicit=jinja_explicit)
