"""Write the golden losses anew: ``python tools/write_golden.py``, from the checkout, when numbers are meant to change."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.numerics.golden_runs import FILE, cases, golden_losses, name_of


def main() -> None:
    """Compute every run and replace the file."""
    golden = {name_of(*case): golden_losses(*case) for case in cases()}
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"{len(golden)} runs written to {FILE}")


if __name__ == "__main__":
    main()
