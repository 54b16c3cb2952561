"""Small files of our own in the layouts of the public data that golden recipes name."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.embedded import HELPDESK, PROBES

ROWS = 40


def tickets() -> list[dict[str, str]]:
    lines = (HELPDESK / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _banking(path: Path, first: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category"])
        writer.writerows([row["ticket"], row["queue"]] for row in tickets()[first : first + ROWS])


def _alpaca(path: Path) -> None:
    rows = [
        {"instruction": "Answer the customer.", "input": row["ticket"] if number % 2 else "", "output": row["reply"]}
        | ({} if number % 2 else {"instruction": row["ticket"]})
        for number, row in enumerate(tickets()[:ROWS])
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")


def _sharegpt(path: Path) -> None:
    rows = [
        {"id": row["id"], "conversations": [_said("human", row["ticket"]), _said("gpt", row["reply"]), _said("human", "Thanks!"),
                                            _said("gpt", "A pleasure.")]}
        for row in tickets()[:ROWS]
    ]  # fmt: skip
    path.write_text(json.dumps(rows), encoding="utf-8")


def _said(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


def _tools(path: Path) -> None:
    tool = {
        "name": "find_order",
        "description": "Look an order up.",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    }
    rows: list[dict[str, Any]] = [
        {
            "conversations": [
                _said("human", row["ticket"]),
                _said("function_call", json.dumps({"name": "find_order", "arguments": {"id": row["id"]}})),
                _said("observation", json.dumps({"state": "sent"})),
                _said("gpt", row["reply"]),
            ],
            "tools": json.dumps([tool]),
        }
        for row in tickets()[:ROWS]
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")


def _texts(path: Path) -> None:
    lines = (PROBES / "general.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"text": json.loads(line)["text"]} for line in lines]
    rows[0]["text"] = " ".join(row["text"] for row in rows)[:9000]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _sentiment(path: Path) -> None:
    lines = (f"{' '.join(row['ticket'].split())}\t{number % 2}" for number, row in enumerate(tickets()[:ROWS]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


STAND_INS: dict[str, Callable[[Path], None]] = {
    "data/banking77/train.csv": lambda path: _banking(path, 0),
    "data/banking77/test.csv": lambda path: _banking(path, ROWS),
    "data/sst2/train.tsv": _sentiment,
    "data/llama_factory/alpaca_en_demo.json": _alpaca,
    "data/fastchat/dummy_conversation.json": _sharegpt,
    "data/llama_factory/glaive_toolcall_en_demo.json": _tools,
    "data/llama_factory/c4_demo.jsonl": _texts,
}


def write_stand_in(folder: Path, name: str) -> Path:
    """Write the small file that stands for a public one below ``folder``."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    STAND_INS[name](path)
    return path
