"""Models that are declared, changed and removed at run time, as they travel."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from inferloom.gateway.wire.keeping import KeepAlive
from inferloom.gateway.wire.models import ModelDetails

Text = str | None | UnsetType
Flag = bool | None | UnsetType
Number = int | None | UnsetType
Texts = list[str] | None | UnsetType
Table = dict[str, Any] | None | UnsetType


class ModelOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of `[[model]]`; tables are merged into what there is, null takes a key back to its default. Those that
    say which files are read, which code runs or which devices are taken need `[server] allow_model_changes`."""

    source: Text = UNSET
    hf_repo: Text = UNSET
    aliases: Texts = UNSET
    system_prompt: Text = UNSET
    lazy: Flag = UNSET
    max_model_len: Number = UNSET
    chat_template: Text = UNSET
    jinja_explicit: Text = UNSET
    tok_model_id: Text = UNSET
    draft: Text = UNSET
    num_device_layers: Texts = UNSET
    dtype: Text = UNSET
    quantization: Text = UNSET
    keep_alive: KeepAlive | UnsetType | None = UNSET
    pin: Flag = UNSET
    priority: Number = UNSET
    group: Text = UNSET
    trust_remote_code: Flag = UNSET
    scheduler: Table = UNSET
    driver: Table = UNSET

    def given(self) -> dict[str, Any]:
        """The keys that are there, as a configuration has them."""
        found = {name: getattr(self, name) for name in ModelOptions.__struct_fields__}
        return {name: value for name, value in found.items() if value is not UNSET}


class AddRequest(ModelOptions, forbid_unknown_fields=True, kw_only=True):
    """`alias_of`: a declared model, whose options hold where none are given. Nothing is loaded, unless `lazy` is false."""

    id: str
    alias_of: str | None = None


class ChangeRequest(ModelOptions, forbid_unknown_fields=True, kw_only=True):
    pass


class ChangedModel(ModelDetails, kw_only=True):
    """The model as it is now. It is that until the server ends: the configuration's file is not written."""

    persisted: Literal[False] = False


class RemovedModel(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
    freed_bytes: int
    persisted: Literal[False] = False
