"""What the package carries: a small base model, a help desk's tickets, and texts to probe forgetting with. Torch-free."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
DEFAULT_MODEL = "tunesmith-base-8m"
MODELS = (DEFAULT_MODEL,)
HELPDESK = ROOT / "helpdesk"
PROBES = ROOT / "probes"


def model_folder(name: str) -> Path | None:
    """Folder of an embedded model, or None where the name is not embedded."""
    return ROOT / name if name in MODELS else None
