"""Make a virtual environment that has torch: the machine's own where it is new enough, else the pinned build.

Usage: python tools/make_environment.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

PINNED = "torch==2.13.0"
OLDEST = (2, 11)


def main() -> None:
    """Make the environment, then put torch into it."""
    if sys.version_info < (3, 11):  # noqa: UP036 - it runs before anything has checked
        sys.exit(
            f"Tunesmith needs Python 3.11 or newer; this is {sys.version.split()[0]}. Set PYTHON=… to another one."
        )
    folder = Path(sys.argv[1])
    lent = _lent_version()
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, with_pip=True, system_site_packages=lent is not None)
    python = folder / "bin" / "python"
    if lent is not None:
        print(f"using the torch {lent} that this Python has")
        return
    print(f"installing {PINNED}", flush=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", PINNED], check=True)


def _lent_version() -> str | None:
    """Version of this Python's own torch, if it is new enough."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    major, minor = (int(part) for part in version.split(".")[:2])
    return version if (major, minor) >= OLDEST else None


if __name__ == "__main__":
    main()
