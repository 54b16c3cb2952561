"""Estimates against a full count: unbiased whatever the file, with intervals that hold, and quick on large files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.data.bad_row import BadRow
from tunesmith.errors import DataError
from tunesmith.planning import row_sample, source_sample
from tunesmith.planning.row_sample import row_starts, sample_file, text_starts
from tunesmith.planning.sampling import estimate_counts
from tunesmith.recipe.codec import parse
from tunesmith.recipe.root import Recipe
from tunesmith.records import Record, Text


class Words:
    """A renderer whose tokens are words; the answer's words are trained. Rows with ``bad`` are faults."""

    tokenizer = SimpleNamespace(encode=str.split)

    def render(self, record: Record) -> SimpleNamespace:
        if isinstance(record, Text):
            words = record.text.split()
            return SimpleNamespace(ids=words, trained=[False] + [True] * (len(words) - 1), text=record.text)
        prompt, answer = record.messages[0].content.split(), record.messages[-1].content.split()
        if "bad" in prompt:
            raise BadRow("template_failed", "bad")
        words = [*prompt, *answer]
        return SimpleNamespace(ids=words, trained=[False] * len(prompt) + [True] * len(answer), text=" ".join(words))


def rows(count: int, seed: int = 0) -> list[dict]:
    """Sorted by length, as files sorted by class are: a sample that favours neighbours or lengths would show."""
    lengths = np.sort(np.random.default_rng(seed).geometric(0.05, count))
    return [{"prompt": "word " * int(n), "completion": f"answer {i % 7}"} for i, n in enumerate(lengths)]


def words_of(values: list[dict]) -> int:
    return sum(len(value["prompt"].split()) + 2 for value in values)


def as_csv(values: list[dict]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(values)
    return stream.getvalue().encode()


def as_jsonl(values: list[dict]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def recipe_of(folder: Path, *sources, seed: int = 0, **data) -> Recipe:
    splits = {"validation": 0.0, "test": 0.0}
    made = {"name": "r", "model": "m", "data": {**splits, "train": list(sources), **data}, "seed": seed}
    return parse(made).placed(folder)


FILES = {
    "small.jsonl": lambda values: as_jsonl(values[:500]),
    "large.jsonl": as_jsonl,
    "large.csv": as_csv,
    "array.json": lambda values: json.dumps(values).encode(),
    "packed.jsonl.gz": lambda values: gzip.compress(as_jsonl(values), 1),
}


@pytest.mark.parametrize("name", FILES)
def test_interval_holds_the_truth(tmp_path: Path, name: str) -> None:
    values = rows(30_000)
    if name.endswith(".gz"):
        np.random.default_rng(0).shuffle(values)  # only the first rows of a packed file are seen
    used = values[:500] if name.startswith("small") else values
    (tmp_path / name).write_bytes(FILES[name](values))
    truth = words_of(used)
    errors = []
    for seed in range(6):
        counts = estimate_counts(recipe_of(tmp_path, name, seed=seed), Words(), 10_000)
        assert not counts.exact
        assert counts.low <= counts.tokens <= counts.high
        assert counts.low - 0.01 * truth <= truth <= counts.high + 0.01 * truth
        is_packed = name.endswith(".gz")
        assert counts.rows == pytest.approx(len(used), rel=0.1 if is_packed else 1e-9)
        assert counts.trained_tokens == pytest.approx(2 * counts.rows, rel=0.05)
        errors.append(counts.tokens / truth - 1)
    # A packed file gives the same rows for every seed, so its errors do not average out.
    assert abs(np.mean(errors)) < (0.1 if is_packed else 0.02)


def test_large_file_is_sought_and_evenly_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sample, "COUNTED_BYTES", 1 << 18)
    values = rows(30_000)
    (tmp_path / "x.jsonl").write_bytes(as_jsonl(values))
    found = [estimate_counts(recipe_of(tmp_path, "x.jsonl", seed=seed), Words(), 10_000) for seed in range(6)]
    assert np.mean([item.tokens for item in found]) == pytest.approx(words_of(values), rel=0.03)
    assert np.mean([item.rows for item in found]) == pytest.approx(len(values), rel=0.03)


def test_same_seed_same_estimate(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(as_jsonl(rows(30_000)))
    made = recipe_of(tmp_path, "x.jsonl")
    assert estimate_counts(made, Words(), 1000) == estimate_counts(made, Words(), 1000)


def test_large_file_takes_well_under_a_second(tmp_path: Path) -> None:
    block = as_jsonl(rows(40_000))
    with (tmp_path / "x.jsonl").open("wb") as stream:
        for _ in range(120 * (1 << 20) // len(block)):
            stream.write(block)
    started = time.process_time()
    estimate_counts(recipe_of(tmp_path, "x.jsonl"), Words(), 1000)
    assert time.process_time() - started < 0.7


def test_parquet_says_that_it_took_the_first_rows(tmp_path: Path) -> None:
    values = rows(5000)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "x.parquet")
    counts = estimate_counts(recipe_of(tmp_path, "x.parquet"), Words(), 1000)
    assert counts.rows == 5000
    assert any("first 2,001 of 5,000 rows" in note for note in counts.notes)


def test_long_text_becomes_windows(tmp_path: Path) -> None:
    text = "some words of a long document\n\n" * 60_000
    (tmp_path / "x.txt").write_text(text)
    made = recipe_of(tmp_path, "x.txt").model_copy(update={"objective": parse_clm()}).placed(tmp_path)
    counts = estimate_counts(made, Words(), 512)
    assert counts.tokens == pytest.approx(6 * 60_000, rel=0.03)
    assert counts.rows == pytest.approx(6 * 60_000 / 512, rel=0.06)
    assert counts.longest <= 512


@pytest.mark.parametrize("row", ["paragraph", "line"])
@pytest.mark.parametrize("how", ["small", "counted", "sought", "packed", "from start"])
def test_rows_of_a_text_are_counted_or_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, how: str
) -> None:
    """Lines grow longer to the end of the file, every second is short, blank lines hold spaces."""
    lengths = np.sort(np.random.default_rng(0).geometric(0.1, 200 if how == "small" else 20_000))
    is_packed = how in ("packed", "from start")
    if how == "from start":
        np.random.default_rng(1).shuffle(lengths)
        monkeypatch.setattr(row_sample, "WHOLE_BYTES", 1 << 12)
    text = "".join("word " * int(n) + "\nlast line\n \n\n" for n in lengths)
    name = "x.txt.gz" if is_packed else "x.txt"
    (tmp_path / name).write_bytes(gzip.compress(text.encode(), 1) if is_packed else text.encode())
    if how == "sought":
        monkeypatch.setattr(row_sample, "COUNTED_BYTES", 1 << 18)
    found = []
    for seed in range(4):
        made = recipe_of(tmp_path, {"path": name, "row": row}, seed=seed)
        found.append(estimate_counts(made.model_copy(update={"objective": parse_clm()}), Words(), 10_000))
    truth = len(lengths) * (1 if row == "paragraph" else 2)
    near = {"sought": 0.05, "from start": 0.1}.get(how, 1e-9)
    assert np.mean([item.rows for item in found]) == pytest.approx(truth, rel=near)
    assert np.mean([item.tokens for item in found]) == pytest.approx(len(text.split()), rel=max(near, 0.05))


@pytest.mark.parametrize("how", ["small", "counted", "sought"])
def test_a_table_without_header_is_estimated_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    values = rows(100 if how == "small" else 20_000)
    (tmp_path / "x.csv").write_bytes(as_csv(values).partition(b"\n")[2])
    if how == "sought":
        monkeypatch.setattr(row_sample, "COUNTED_BYTES", 1 << 18)
    source = {"path": "x.csv", "header": False, "columns": {"prompt": "column_1", "completion": "column_2"}}
    found = [estimate_counts(recipe_of(tmp_path, source, seed=seed), Words(), 10_000) for seed in range(4)]
    assert np.mean([item.rows for item in found]) == pytest.approx(len(values), rel=0.03 if how == "sought" else 1e-9)
    assert np.mean([item.tokens for item in found]) == pytest.approx(words_of(values), rel=0.05)


def test_a_table_whose_first_row_is_faulty_is_estimated(tmp_path: Path) -> None:
    head, _, rest = as_csv(rows(20_000)).partition(b"\n")
    (tmp_path / "x.csv").write_bytes(head + b"\nonly one field\n" + rest)
    counts = estimate_counts(recipe_of(tmp_path, "x.csv"), Words(), 10_000)
    assert counts.rows == pytest.approx(20_000, rel=0.001)
    assert not any("rejected" in note for note in counts.notes)


def test_starts_of_rows_in_text() -> None:
    content = b" \none\nmore\n\t \n\n  two\r\n\r\nthree"
    assert [content[i : i + 5].split()[0] for i in text_starts(content, "paragraph")] == [b"one", b"two", b"three"]
    assert [content[i : i + 5].split()[0] for i in text_starts(content, "line")] == [b"one", b"more", b"two", b"three"]
    assert len(text_starts(b"", "line")) == len(text_starts(b"\n \n", "paragraph")) == 0


def test_a_fraction_of_one_document_is_said_to_hold_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("some words\n\nof a document")
    made = recipe_of(tmp_path, "x.txt", test=0.1).model_copy(update={"objective": parse_clm()})
    counts = estimate_counts(made, Words(), 512)
    assert (counts.rows, counts.tokens) == (1, 5)
    assert any("nothing is held out for test" in note and "data.train.0.row" in note for note in counts.notes)
    cut = recipe_of(tmp_path, {"path": "x.txt", "row": "paragraph"}, test=0.1)
    notes = estimate_counts(cut.model_copy(update={"objective": parse_clm()}), Words(), 512).notes
    assert not any("held out" in note for note in notes)


def parse_clm():
    return parse({"name": "r", "model": "m", "data": {"train": "x"}, "objective": {"type": "clm"}}).objective


def test_splits_weights_and_limits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows(1000)))
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(rows(1000, seed=1)))
    count = lambda *sources, **data: estimate_counts(recipe_of(tmp_path, *sources, **data), Words(), 10_000)  # noqa: E731
    whole = count("a.jsonl")
    assert whole.rows == 1000
    assert count("a.jsonl", test=0.2, validation=0.1).rows == 700
    assert count({"path": "a.jsonl", "weight": 2.0}).tokens == pytest.approx(2 * whole.tokens, rel=0.001)
    assert count({"path": "a.jsonl", "limit": 100}).rows == 100
    assert count("a.jsonl", "b.jsonl").rows == 2000
    assert count("a.jsonl", test=["b.jsonl"]).rows == 1000


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.jsonl.gz"])
@pytest.mark.parametrize("limit", [1, 11, 300, 999, 5000])
def test_a_limit_is_estimated_from_the_rows_that_it_reads(tmp_path: Path, name: str, limit: int) -> None:
    values = rows(3000)  # short ones first: rows of the whole file would say far too much
    contents = {"a.jsonl": as_jsonl(values), "a.csv": as_csv(values), "a.json": json.dumps(values).encode()}
    contents["a.jsonl.gz"] = gzip.compress(contents["a.jsonl"])
    (tmp_path / name).write_bytes(contents[name])
    counts = estimate_counts(recipe_of(tmp_path, {"path": name, "limit": limit}), Words(), 10_000)
    assert counts.rows == min(limit, 3000)
    assert counts.sampled == min(limit, 2000)
    assert counts.tokens == pytest.approx(words_of(values[:limit]), rel=0.02)


def test_a_limit_ends_in_the_middle_of_a_source(tmp_path: Path) -> None:
    values = rows(400)
    for number in range(30):
        (tmp_path / f"{number:02}.jsonl").write_bytes(as_jsonl(values[10 * number : 10 * number + 10]))
    counted = estimate_counts(recipe_of(tmp_path, {"path": "*.jsonl", "limit": 25}), Words(), 10_000)
    assert (counted.rows, counted.sampled, counted.tokens) == (25, 25, words_of(values[:25]))
    assert not any("files were sampled" in note for note in counted.notes)
    beyond = estimate_counts(recipe_of(tmp_path, {"path": "*.jsonl", "limit": 290}), Words(), 10_000)
    assert beyond.rows == 290
    assert any("24 of 30 files were sampled" in note for note in beyond.notes)


def test_a_limit_too_high_to_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_sample, "_MOST_FIRST_ROWS", 2500)
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows(3000)))
    counts = estimate_counts(recipe_of(tmp_path, {"path": "a.jsonl", "limit": 2600}), Words(), 10_000)
    assert counts.rows == 2600
    assert any("rests on rows from all of it, and its first 2,600 are read" in note for note in counts.notes)


def test_faults_and_overlong_rows_are_said(tmp_path: Path) -> None:
    values = rows(300)
    for index in range(0, 300, 10):
        values[index]["prompt"] = "bad " + values[index]["prompt"]
    (tmp_path / "x.jsonl").write_bytes(as_jsonl(values) + b"{broken\n")
    counts = estimate_counts(recipe_of(tmp_path, "x.jsonl"), Words(), 30)
    assert any("template_failed 30" in note and "broken_json 1" in note for note in counts.notes)
    assert any("longer than 30 tokens and are refused" in note for note in counts.notes)
    assert counts.longest <= 30
    dropped = estimate_counts(recipe_of(tmp_path, "x.jsonl", overlong="drop"), Words(), 30)
    assert dropped.rows == counts.rows
    cut = estimate_counts(recipe_of(tmp_path, "x.jsonl", overlong="truncate"), Words(), 30)
    assert cut.rows == 270
    assert cut.longest == 30


def test_rows_far_too_long_are_not_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [*rows(20), {"prompt": "word " * 250_000, "completion": "x"}]
    (tmp_path / "x.jsonl").write_bytes(as_jsonl(values))
    rendered: list[int] = []
    render = Words.render
    monkeypatch.setattr(Words, "render", lambda self, record: rendered.append(1) or render(self, record))
    counts = estimate_counts(recipe_of(tmp_path, "x.jsonl", overlong="drop"), Words(), 512)
    assert (counts.rows, len(rendered)) == (20, 20)
    assert any("1 are longer than 512 tokens and would be dropped" in note for note in counts.notes)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(as_jsonl([{"prompt": "bad", "completion": "x"}] * 20))
    with pytest.raises(DataError, match="none of 20 sampled rows can be trained on: template_failed 20"):
        estimate_counts(recipe_of(tmp_path, "x.jsonl"), Words(), 100)


@pytest.mark.parametrize(
    ("content", "starts"),
    [
        (b"a,b\n1,2\n3,4\n", [0, 4, 8]),
        (b"a,b\n1,2\n3,4", [0, 4, 8]),
        (b'a\n"x\ny"\nz\n', [0, 2, 8]),
        (b'a\n"x""\ny"\n', [0, 2]),
        (b'{"a": "x\\""}\n\n{"a": 1}\n', [0, 14]),
        (b"\r\na\r\n", [2]),
    ],
)
def test_row_starts(content: bytes, starts: list[int]) -> None:
    assert row_starts(content).tolist() == starts


def test_csv_with_line_ends_in_fields(tmp_path: Path) -> None:
    values = [{"prompt": f"one\ntwo {i}" * 20, "completion": "yes, sir"} for i in range(3000)]
    (tmp_path / "x.csv").write_bytes(as_csv(values))
    assert (tmp_path / "x.csv").stat().st_size > row_sample.WHOLE_BYTES
    sample = sample_file(tmp_path / "x.csv", "x.csv", 100, np.random.default_rng(0))
    assert sample.num_rows == 3000
    assert len(sample.rows) == 100
    known = {value["prompt"] for value in values}
    assert all(row.values["prompt"] in known for row in sample.rows)
