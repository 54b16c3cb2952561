"""Every way to tune, measured: ``python bench/strategies.py banking20 --data ../shared/data --jobs 2``.

banking20       the 20 intents of Banking77 that come first by name, every strategy
banking77       all 77 intents, the main strategies
sentiment       SST-2 as a language model's answer, the main strategies
encoder         SST-2 as a class, heads on an encoder (--encoder names one)

Each is one call of ``tunesmith compare-strategies``; what it writes lies in ``--out``/NAME.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.cli.progress import LineProgress
from tunesmith.files import write_json
from tunesmith.planning.strategies import Strategy

MAIN = ("full", "partial", "lora", "gralora", "aflora", "bottleneck", "head", "scratch")
ON_ENCODERS = ("full", "partial", "lora", "gralora", "aflora", "bottleneck", "head", "scratch")
SEQUENTIAL = Strategy(
    "bottleneck", "adapters after each sub-layer", {"adapter": {"type": "bottleneck", "placement": "sequential"}}
)
"""For encoders, whose feed-forward is no module of its own that something could run beside."""
WORDS = {"0": "negative", "1": "positive"}
INTENTS = 20


def banking(data: Path, out: Path, most: int | None, rows_each: int | None) -> dict[str, Any]:
    """Recipe of the ``most`` intents that come first by name, with their rows as files, of each the first ``rows_each``."""
    rows = {split: _read(data / "banking77" / f"{split}.csv") for split in ("train", "test")}
    intents = sorted({row["category"] for row in rows["train"]})[:most]
    for split, found in rows.items():
        kept = []
        for intent in intents:
            own = [(row["text"], intent) for row in found if row["category"] == intent]
            kept += own[:rows_each] if split == "train" else own
        _write(out / f"{split}.csv", kept)
    return _recipe(f"banking{len(intents)}")


def sentiment(data: Path, out: Path) -> dict[str, Any]:
    """Recipe of SST-2 with its labels as words."""
    for split, name in (("train", "train"), ("test", "test")):
        lines = (data / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        _write(out / f"{split}.csv", [(text, WORDS[label]) for text, label in (line.split("\t") for line in lines)])
    return _recipe("sentiment")


def _recipe(name: str) -> dict[str, Any]:
    source = {"format": "labelled", "columns": {"text": "text", "label": "label"}}
    return {
        "name": name,
        "model": "tunesmith-base-8m",
        "data": {
            "train": [{"path": "train.csv", **source}],
            "test": [{"path": "test.csv", **source}],
            "validation": {"fraction": 0.15},
            "overlong": "truncate",
        },
        "training": {"epochs": 3, "samples": 0, "evaluate_every": 10_000},
    }


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _write(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def main() -> None:
    """Run one comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("banking20", "banking77", "sentiment", "encoder"))
    parser.add_argument("--data", type=Path, required=True, help="folder that holds banking77/ and sst2/")
    parser.add_argument("--encoder", help="folder of an encoder")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--strategies", help="names with commas, in place of the task's own")
    parser.add_argument("--epochs", type=float, help="in place of 3, or of 1 on SST-2")
    parser.add_argument("--rows-each", type=int, help="training rows of each intent, validation rows among them")
    given = parser.parse_args()
    out = given.out / given.task
    names: tuple[str, ...]
    if given.task.startswith("banking"):
        recipe = banking(given.data, out, INTENTS if given.task == "banking20" else None, given.rows_each)
        names = () if given.task == "banking20" else MAIN
    else:
        recipe, names = sentiment(given.data, out), MAIN
        recipe["training"]["epochs"] = 1
    if given.task == "encoder":
        if given.encoder is None:
            parser.error("the task `encoder` needs --encoder FOLDER")
        recipe |= {"model": str(Path(given.encoder).resolve()), "objective": {"type": "classify"}}
        names = ON_ENCODERS
    if given.epochs is not None:
        recipe["training"]["epochs"] = given.epochs
    if given.strategies:
        names = tuple(given.strategies.split(","))
    write_json(out / "recipe.json", recipe)
    own = {"bottleneck": SEQUENTIAL} if given.task == "encoder" else {}
    asked = tunesmith.Asked(strategies=names, own=own, jobs=given.jobs)
    result = tunesmith.compare_strategies(out / "recipe.json", folder=out, asked=asked, progress=LineProgress())
    print((out / "strategies.md").read_text(encoding="utf-8"))
    print(f"page: {result.files[0]}")


if __name__ == "__main__":
    main()
