"""Words of strangers on a terminal, in a page, in a card: shown, never obeyed."""

from __future__ import annotations

import html.parser
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.hostile.bounds import GENTLE
from tests.hostile.conftest import call
from tunesmith.cli.data import print_view
from tunesmith.cli.progress import BarProgress, LineProgress
from tunesmith.cli.row_view import RowView, Token
from tunesmith.cli.terminal import Terminal
from tunesmith.visible import visible

CLEAR = "\x1b[2J\x1b[H"
EVIL = f"a{CLEAR}\x1b]0;title\x07\x9b31m\r\x08\x7f\u202eb\u2066c"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@GENTLE
@given(text=st.text())
def test_any_text_is_shown_without_a_sign_that_a_terminal_obeys(text: str) -> None:
    shown = visible(text)
    assert OBEYED.search(shown) is None
    if OBEYED.search(text) is None and not set(text) & set("\u2028\u2029"):
        assert shown == text


def test_what_people_write_stays() -> None:
    text = "tab\tline\nÜber naïve 日本語 עברית العربية 👩‍👩‍👧 \u200d \u200f"
    assert visible(text) == text


class _Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_every_way_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = _Screen(), _Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    terminal.show(EVIL)
    terminal.write(EVIL + "\n")
    terminal.tell(EVIL)
    terminal.fail(EVIL, EVIL, EVIL)
    LineProgress().note(EVIL)
    LineProgress().phase(EVIL, 0, 1)
    terminal.as_json = True
    terminal.emit({EVIL: EVIL})
    for stream in (out, err):
        assert OBEYED.search(stream.getvalue()) is None
    assert json.loads(out.getvalue().splitlines()[-1]) == {EVIL: EVIL}


def test_an_answer_that_goes_into_a_file_is_as_the_model_said_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    Terminal().write(EVIL)
    assert out.getvalue() == EVIL


def test_bars_and_rows_show_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    bars = BarProgress(Console(file=out, force_terminal=False, width=100))
    bars.phase(f"[/red]{EVIL}", 0, 2)
    bars.note(f"[/blue]{EVIL}")
    bars.phase(f"[/red]{EVIL}", 1, 2)
    bars.close()
    monkeypatch.setattr(sys, "stdout", out)
    view = RowView("0", f"[/]{EVIL}.jsonl:1", {EVIL: EVIL}, EVIL, [Token(1, EVIL, True), Token(2, "[/x]", False)])
    print_view(view, "row 0 of train")
    assert "[/x]" in out.getvalue()
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out.getvalue()) is None


def test_the_parts_of_an_error_have_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().fail("x" * 100_000, "y" * 100_000, "z" * 100_000)
    assert len(capsys.readouterr().err) < 20_000


class _Page(html.parser.HTMLParser):
    """What a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "form", "base", "link", "img", "audio", "video"):
            self.found.append(tag)
        self.found += [f"{tag} {name}" for name, value in attrs if name.startswith("on")]
        self.found += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if name in ("src", "href", "action") and not (value or "#").startswith("#")
        ]


INJECTED = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "</style><script>x</script>",
    "]]>--><svg onload=alert(1)>",
    EVIL,
]


def _poisoned(value: Any, text: str) -> Any:
    """The same shape with the text in the place of every text, key names kept; unsealed, as whoever forges a file can seal it."""
    if isinstance(value, dict):
        return {key: _poisoned(item, text) for key, item in value.items() if key != "seal"}
    if isinstance(value, list):
        return [_poisoned(item, text) for item in value]
    return f"{value}{text}" if isinstance(value, str) else value


@pytest.mark.parametrize("text", INJECTED)
def test_a_page_and_a_card_of_poisoned_files_run_and_fetch_nothing(desk: Path, text: str) -> None:
    run = Path("runs/desk")
    for path in run.rglob("*.json*"):
        if "checkpoints" in path.parts or path.name in ("recipe.json", "status.json", "environment.json"):
            continue
        lines = (
            path.read_text(encoding="utf-8").splitlines()
            if path.suffix == ".jsonl"
            else [path.read_text(encoding="utf-8")]
        )
        path.write_text(
            "\n".join(json.dumps(_poisoned(json.loads(line), text)) for line in lines) + "\n", encoding="utf-8"
        )
    said = call("report", run)
    assert said.code == 0, said.err
    page = _Page()
    source = (run / "report.html").read_text(encoding="utf-8")
    page.feed(source)
    assert page.found == []
    assert "default-src 'none'" in source
    for verb in (("runs", "show", run), ("runs", "list"), ("runs", "compare", run, "runs/other")):
        shown = call(*verb)
        assert shown.code == 0, shown.err
        assert OBEYED.search(shown.out + shown.err) is None


def test_a_card_holds_no_markup_of_others(desk: Path) -> None:
    from tunesmith.reports.card import render_card

    run = Path("runs/desk")
    ledger = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    ledger["notes"] = [f"note {text}" for text in INJECTED]
    (run / "ledger.json").write_text(json.dumps(ledger), encoding="utf-8")
    card = render_card(run)
    assert OBEYED.search(card) is None
    assert re.search(r"(?<!\\)<(?:script|img|svg)", card) is None


@pytest.mark.parametrize(
    "name", [f"a{CLEAR}b", "[/red]", "a\nb", "-rf", "$(touch owned)", ";touch owned;", "\u202egnp"]
)
def test_files_and_runs_with_evil_names(desk: Path, name: str) -> None:
    shutil.copytree("runs/desk", Path("runs") / name)
    assert OBEYED.search(call("runs", "list").out) is None
    assert call("runs", "list").code == 0
    Path(f"./{name}.jsonl").parent.mkdir(exist_ok=True)
    Path(f"./{name}.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    values = json.loads(Path("recipe.yaml").read_text(encoding="utf-8"))
    values["data"]["train"][0]["path"] = f"./{name}.jsonl"
    Path("evil.yaml").write_text(json.dumps(values), encoding="utf-8")
    for verb in (("data", "check", "evil.yaml"), ("data", "show", "evil.yaml", "--row", "0"), ("plan", "evil.yaml")):
        said = call(*verb)
        assert said.code == 0, said.err
        assert OBEYED.search(said.out + said.err) is None
    assert not Path("owned").exists()
