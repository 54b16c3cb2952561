"""A comparison of strategies as table, sentences, pictures and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.reports.strategies import (
    head_of,
    markdown,
    pictures_of,
    sentences,
    table_rows,
    verdict_lines,
    write_comparison,
)


def _item(name: str, score: float, **changes: Any) -> dict[str, Any]:
    base = {
        "name": name, "does": f"what {name} does", "values": {"adapter": {"type": name}}, "task": "label_ranking",
        "parameters": 1_000, "share": 0.1, "rates": [{"rate": 1e-3, "selection": 0.5}, {"rate": 2e-3, "selection": None}],
        "rate": 1e-3, "usual_rate": 1e-3, "at_edge": False,
        "score": {"value": score, "low": score - 0.1, "high": score + 0.1, "n": 50}, "by_seed": [score, score], "spread": 0.01,
        "seconds": 61.0, "peak_memory_bytes": 1 << 20, "stored_bytes": 2048, "merges": True, "runs": [],
        "latency": {"base": 0.001, "tuned": 0.0015, "added": 0.0005},
        "forgetting": {"perplexity": {"before": 40.0, "after": 80.0}, "completions": {"before": 0.76, "after": 0.5}},
    }  # fmt: skip
    return {**base, **changes}


def _found(**changes: Any) -> dict[str, Any]:
    difference = {"value": -0.2, "low": -0.3, "high": -0.1, "n": 50}
    against = {"difference": difference, "p_value": 0.001, "p_holm": 0.002, "verdict": "worse"}
    return {
        "recipe": "desk", "model": "tiny", "reference": "lora", "seeds": [0, 1], "rows": 50, "left_out": {"qlora": "no <bits>"},
        "measure": {"task": "label_ranking", "metric": "accuracy", "kind": "share", "better": 1}, "notes": [],
        "strategies": [_item("head", 0.5, against=against, latency=None, forgetting=None, at_edge=True), _item("lora", 0.7)],
        **changes,
    }  # fmt: skip


def test_the_best_stands_first_and_dashes_where_nothing_was_measured() -> None:
    rows = table_rows(_found())
    assert [row[0] for row in rows] == ["lora", "head"]
    head = dict(zip(head_of(_found()), rows[1], strict=True))
    assert head["score (95 %)"] == "50.0 % (40.0 to 60.0 %)"
    assert head["against lora"] == "−20.0 (−30.0 to −10.0): worse"
    assert head["rate"].endswith("(edge)")
    assert head["a token"] == head["general perplexity"] == "–"
    lora = dict(zip(head_of(_found()), rows[0], strict=True))
    assert lora["against lora"] == "reference"
    assert lora["a token"] == "+0.50 ms"
    assert lora["general perplexity"] == "40.0 → 80.0"


def test_what_is_frozen_on_the_way_counts_on_average() -> None:
    found = _found(strategies=[_item("lora", 0.7), _item("aflora", 0.6, parameters_on_average=123.4)])
    column = head_of(found).index("trained")
    assert [row[column] for row in table_rows(found)] == ["1,000", "123"]


def test_of_losses_the_lowest_stands_first() -> None:
    measure = {"task": "loss", "metric": "loss", "kind": "loss", "better": -1}
    rows = table_rows(_found(measure=measure))
    assert rows[0][0] == "head"
    assert "%" not in rows[0][1].removesuffix(")").split("(")[0]


def test_what_was_left_out_and_what_lies_at_an_edge_is_said() -> None:
    said = " ".join(sentences(_found()))
    assert "qlora is left out: no <bits>" in said
    assert "best rate of head is at the edge" in said
    assert verdict_lines(_found()) == ["Worse than lora: head"]


def test_pictures_hold_what_was_measured() -> None:
    pictures = pictures_of(_found())
    assert all(picture is not None for picture in pictures.values())
    by_size, kept = (str(picture) for picture in pictures.values())
    assert "head</text>" in by_size
    assert "head</text>" not in kept  # its forgetting was not measured
    nothing = [_item("head", 0.5, forgetting=None)]
    assert list(pictures_of(_found(strategies=nothing, reference="head")).values())[1] is None


def test_everything_is_written_and_escaped(tmp_path: Path) -> None:
    files = write_comparison(tmp_path, _found())
    assert [path.name for path in files] == [
        "strategies.html", "strategies.md", "strategies.json", "score-by-parameters.svg", "score-by-forgetting.svg",
    ]  # fmt: skip
    page = files[0].read_text(encoding="utf-8")
    assert "no &lt;bits&gt;" in page
    assert "<svg" in page
    assert json.loads(files[2].read_text(encoding="utf-8")) == _found()
    lines = markdown(_found()).splitlines()
    assert {line.count("|") for line in lines[:4]} == {len(head_of(_found())) + 1}
