"""What models may be called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from pathlib import PurePath

from inferloom.config.decoding import quoted
from inferloom.config.lines import Path
from inferloom.config.problems import did_you_mean, dotted
from inferloom.config.schema import Config

# The last segment of the lifecycle endpoints, /v1/models/<verb>.
RESERVED = ("load", "unload", "reload", "status", "plan", "pin", "re_isq")

_ID = re.compile(r"[^\s\x00-\x1f\x7f?#%,]+")


def default_name(source: str) -> str:
    """What a model is called without a name: the short name, the repository, or the name of the folder or file."""
    inside = source.partition("#")[2].rstrip("/")
    if source.startswith("pypi:"):
        return PurePath(inside).name.removesuffix(".gguf")
    try:
        path = FilePath(source).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such home directory, a null byte
        path, exists = FilePath(source), False
    if exists or source.startswith((".", "/", "~")):
        return path.absolute().name.removesuffix(".gguf")
    if inside:
        return PurePath(inside).name.removesuffix(".gguf")
    return source.partition("@")[0]


def id_problems(config: Config) -> Iterator[tuple[Path, str]]:
    """Ids that cannot be used, are used twice, or contradict `default_model`."""
    owner: dict[str, tuple[Path, str]] = {}
    default = config.default_model
    for number, model in enumerate(config.model):
        places: list[tuple[Path, str]] = [(("model", number, "name"), model.name)]
        places += [(("model", number, "aliases", n), alias) for n, alias in enumerate(model.aliases)]
        for path, word in places:
            if word in RESERVED:
                verbs = ", ".join(RESERVED)
                yield path, f"{dotted(path)}: {quoted(word)} is a reserved word ({verbs}); choose another."
            elif not _ID.fullmatch(word) or word.strip("/") != word or len(word) > 200:
                yield (
                    path,
                    f"{dotted(path)}: {quoted(word)} cannot be an id: up to 200 characters, without spaces, "
                    'commas, "?", "#" and "%", and no slash at either end.',
                )
            elif word in owner:
                before, whose = owner[word]
                yield (
                    path,
                    f"{dotted(path)}: {quoted(word)} is already {_role(before)} of the model {quoted(whose)}; "
                    "names and aliases must be unique.",
                )
            else:
                owner[word] = (path, model.name)
                if word == "default" and model is not default:
                    yield (
                        path,
                        f'{dotted(path)}: the id "default" means the default model, which is '
                        f"{quoted(default.name if default else 'unknown')}; rename this one or make it the default.",
                    )
    wanted = config.server.default_model
    if wanted is not None and default is None:
        known = list(owner)
        yield (
            ("server", "default_model"),
            f"server.default_model = {quoted(wanted)} is not the name or an alias of a model"
            + (did_you_mean(wanted, known) or f"; there are: {', '.join(known) or 'none'}."),
        )


def _role(path: Path) -> str:
    return "the name" if path[-1] == "name" else "an alias"
