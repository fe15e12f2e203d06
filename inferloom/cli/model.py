"""`inferloom model list|download|remove`: what lies in the hub's cache, in the words of Pie's command line.

The cache is the hub's own: what other programs downloaded is listed and served, and what is downloaded here is theirs, too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from inferloom.cli.cache import ago
from inferloom.cli.options import Json
from inferloom.cli.printing import print_json, rows_of
from inferloom.cli.pull import Quantization, Tokenizer, make_ready, size_text
from inferloom.config.home import config_path
from inferloom.config.quantization import scheme
from inferloom.errors import Conflict, InferloomError, InvalidRequest, NotFound, SourceError
from inferloom.formats import entries
from inferloom.sources import hub_cache, hub_listing, packages
from inferloom.sources.hub_listing import CachedRepository
from inferloom.sources.reference import HubRef, PackageRef, parse
from inferloom.sources.table import SHORT_NAMES

app = typer.Typer(
    name="model",
    help="List, download and remove models of the hub's cache.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("list")
def list_models(
    as_json: Json = False,
) -> None:
    """List the models that are on this machine: the hub's cache, and short names that came as packages."""
    found = [*_packages(), *(_row(one) for one in hub_listing.repositories())]
    users = _users()
    for row in found:
        row["used_by"] = users.get(row["id"], [])
    if as_json:
        print_json(found)
        return
    place = hub_cache.hub_folder()
    if not found:
        print(f"(no models in cache)\n\n{place}")
        return
    now = time.time()
    cells = [
        (
            row["id"],
            size_text(row["bytes"]) + ("" if row["complete"] else ", incomplete"),
            ", ".join(row["revisions"]),
            ago(now - row["last_use"]),
            ", ".join(row["used_by"]),
        )
        for row in found
    ]
    print(rows_of(("NAME", "SIZE", "REVISION", "LAST USED", "USED BY"), cells))
    print(f"\n{size_text(sum(row['bytes'] for row in found))}; the hub's cache is {place}")


@app.command()
def download(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME, or a short name.")],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit.  [default: main]")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Every file of the repository, not only those that are needed to serve."),
    ] = False,
    tokenizer: Tokenizer = None,
    quantization: Quantization = "none",
    as_json: Json = False,
) -> None:
    """Download a model, check it and make it ready: `inferloom pull` for one model.

    A broken connection is taken up where it broke, also by the next call; sizes and hashes are those of the hub's metadata.
    """
    if revision is not None:
        head, separator, file = repo_id.partition("#")
        if "@" in head:
            raise InvalidRequest(f"{repo_id} names a revision already: leave out --revision or the @.")
        short = SHORT_NAMES.get(head)
        head = short.source if short is not None and not short.source.startswith("pypi:") else head
        repo_id = f"{head}@{revision}{separator}{file}"
    if everything:
        _download_all(repo_id)
    ready = make_ready(repo_id, tokenizer, scheme(quantization, where="--quantization"))
    if as_json:
        print_json({"id": ready.name, "folder": ready.folder, "bytes": ready.bytes, "weights": ready.weights})
    else:
        print(f"{ready.name} is ready: {size_text(ready.bytes)} of weights in {ready.folder}")


@app.command()
def remove(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="A name of `inferloom model list`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a model from this machine, with every revision of it. What a model is served from stays."""
    found = _find(repo_id)
    name = repo_id if isinstance(found, entries.Entry) else found.repo
    _check_unserved(name)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequest(
                f"remove requires confirmation: run it again as `inferloom model remove {repo_id} --yes`."
            )
        users = _users().get(name, [])
        used = f", which {', '.join(users)} of your configuration uses" if users else ""
        print(f"Remove {name} ({size_text(found.bytes)}){used}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("(aborted)")
            return
    if isinstance(found, CachedRepository):
        hub_listing.remove(found)
    elif not entries.remove(found):
        raise Conflict(f"{name} is in use by a model that is loaded; unload it first.")
    if as_json:
        print_json({"id": name, "freed_bytes": found.bytes})
    else:
        print(f"removed {name}, {size_text(found.bytes)}")


# --- what there is ----------------------------------------------------------------------------------------------------


def _row(cached: CachedRepository) -> dict[str, Any]:
    return {
        "id": cached.repo,
        "bytes": cached.bytes,
        "unfinished_bytes": cached.unfinished_bytes,
        "complete": cached.whole,
        "revisions": [snapshot.revision for snapshot in cached.snapshots],
        "last_use": cached.last_use,
        "architecture": cached.architecture,
        "folder": str(cached.folder),
    }


def _packages() -> Iterable[dict[str, Any]]:
    """The models that came in packages, by their short names."""
    for name, entry in _downloads().items():
        yield {
            "id": name,
            "bytes": entry.bytes,
            "unfinished_bytes": 0,
            "complete": True,
            "revisions": [_version(name)],
            "last_use": entry.last_use,
            "architecture": "",
            "folder": str(entry.folder),
        }


def _downloads() -> dict[str, entries.Entry]:
    names = {}
    for short in SHORT_NAMES.values():
        ref = parse(short.name).ref
        path = packages.unpacked(ref) if isinstance(ref, PackageRef) else None
        if path is not None:
            names[path.parent] = short.name
    return {names.get(entry.folder, entry.key): entry for entry in entries.downloads()}


def _version(name: str) -> str:
    ref = parse(name).ref if name in SHORT_NAMES else None
    return ref.version if isinstance(ref, PackageRef) else ""


def _find(name: str) -> CachedRepository | entries.Entry:
    download = _downloads().get(name)
    if download is not None:
        return download
    repo = _repository(name)
    for cached in hub_listing.repositories():
        if cached.repo == repo:
            return cached
    raise NotFound(
        f"there is no {name!r} in the cache {hub_cache.hub_folder()}; `inferloom model list` says what there is."
    )


def _repository(source: str) -> str | None:
    """What `source` is called in the listing: its repository, or its short name if that comes as a package."""
    try:
        reference = parse(source)
    except SourceError:
        return None
    if isinstance(reference.ref, HubRef):
        return reference.ref.repo
    return reference.short.name if reference.short is not None else None


def _users() -> dict[str, list[str]]:
    """The names of your configuration's models by what they are made from."""
    path = config_path()
    if not path.exists():
        return {}
    from inferloom.config.loading import load

    try:
        models = load(path).model
    except InferloomError as error:
        print(f"{path} cannot be read, so that who uses what is not known: {error.message}", file=sys.stderr)
        return {}
    users: dict[str, list[str]] = {}
    for model in models:
        for source in (model.weights, model.tok_model_id):
            repo = _repository(source) if source else None
            if repo is not None and model.name not in users.setdefault(repo, []):
                users[repo].append(model.name)
    return users


def _check_unserved(name: str) -> None:
    """Raises `Conflict` if the server of this machine has it loaded; that of others shows in the files' leases."""
    from inferloom.cli.session import connect
    from inferloom.cli.transport import NoServer
    from inferloom.errors import Unauthorized

    try:
        session = connect()
        cards = session.cards() if session is not None else []
    except (NoServer, Unauthorized):
        return
    for card in cards:
        if card.get("status") in ("loaded", "reloading") and _repository(str(card.get("root"))) == name:
            raise Conflict(
                f"{name} is served as {card['id']} by the running server: `inferloom unload {card['id']}` first."
            )


def _download_all(source: str) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from inferloom.sources import hub
    from inferloom.types import LoadProgress

    try:
        ref = parse(source).ref
    except SourceError as error:
        raise InvalidRequest(error.message) from error
    if not isinstance(ref, HubRef) or ref.file is not None:
        raise InvalidRequest(f"--all is for a repository of the hub as a whole; {source} is something else.")
    console = Console(file=sys.stderr)
    columns = (TextColumn("download"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(ref.repo, total=1.0)

        def show(progress: LoadProgress) -> None:
            bar.update(task, description=progress.detail, completed=progress.fraction or 0.0)

        hub.fetch(ref, show, need="everything")
