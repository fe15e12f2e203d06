"""From one vector per token to one per text, as the checkpoint's sentence-transformers files say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inferloom.errors import InvalidFormat, Unsupported
from inferloom.formats.json_files import read_json, read_json_list

# In the order in which sentence-transformers joins the vectors of several modes.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = ("cls", "max", "mean", "mean_sqrt_len", "lasttoken")


@dataclass(frozen=True, slots=True)
class Pooling:
    """`modes` are applied side by side and their vectors joined; `normalize` makes the result's length 1."""

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = True

    @classmethod
    def of(cls, folder: Path) -> Pooling:
        """What modules.json and the pooling's config.json say; mean and normalised where there are none.

        Raises `Unsupported` for a mode or module this engine does not know.
        """
        if not (folder / "modules.json").is_file():
            path = folder / "1_Pooling" / "config.json"
            return cls(_modes(read_json(path))) if path.is_file() else cls()
        modes: tuple[str, ...] = ("mean",)
        normalize = False
        for module in read_json_list(folder / "modules.json"):
            if not isinstance(module, dict) or not isinstance(module.get("type"), str):
                raise InvalidFormat(f"{folder / 'modules.json'}: every module needs a type")
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                modes = _modes(read_json(_inside(folder, module.get("path", "1_Pooling")) / "config.json"))
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise Unsupported(
                    f"the sentence-transformers module {kind}", "this engine pools and normalises only"
                )
        return cls(modes, normalize)

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """[n, length, hidden] of texts of one length, without padding → float32 [n, hidden · len(modes)]."""
        states = states.float()
        vectors = torch.cat([self._one(mode, states) for mode in self.modes], dim=1)
        if self.normalize:
            vectors /= vectors.norm(dim=1, keepdim=True).clamp_min_(1e-12)
        return vectors

    @staticmethod
    def _one(mode: str, states: torch.Tensor) -> torch.Tensor:
        if mode == "cls":
            return states[:, 0]
        if mode == "lasttoken":
            return states[:, -1]
        if mode == "max":
            return states.amax(dim=1)
        length = states.shape[1]
        return states.sum(dim=1) / (math.sqrt(length) if mode == "mean_sqrt_len" else length)


def _modes(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is not None:
        modes = (named,) if isinstance(named, str) else tuple(named)
    else:
        modes = tuple(mode for flag, mode in _FLAGS.items() if config.get(flag))
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise Unsupported(f"the pooling mode {unknown[0]!r}", f"this engine knows {', '.join(MODES)}")
    if not modes:
        raise InvalidFormat("the pooling's config.json names no pooling mode")
    return modes


def _inside(folder: Path, name: object) -> Path:
    path = folder / str(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidFormat(f"modules.json: the path {name!r} leads out of the checkpoint")
    return path
