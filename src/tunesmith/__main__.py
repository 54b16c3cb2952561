"""``python -m tunesmith`` is ``tunesmith``."""

from __future__ import annotations

from tunesmith.cli.main import main

main()
