"""Virtual environments of the peers that a benchmark is run beside, made once under `.peers/`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"


def environment(name: str, requirements: Sequence[str], *, without: Sequence[str] = ()) -> Path:
    """The `bin` folder of a virtual environment that holds `requirements`; made where it is missing or another.

    `without`: packages that come along and are taken out again."""
    folder = PEERS / name
    stamp = folder / "requirements.txt"
    wanted = "\n".join([*requirements, *(f"-{package}" for package in without)]) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making {folder.relative_to(ROOT)} with {', '.join(requirements)} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin" / "python", "-m", "pip"]
        subprocess.run([*pip, "install", "-q", *requirements], check=True)
        if without:
            subprocess.run([*pip, "uninstall", "-q", "-y", *without], check=True)
        stamp.write_text(wanted)
    return folder / "bin"


def version(bin_folder: Path, package: str) -> str:
    """The installed version of `package` in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([bin_folder / "python", "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()
