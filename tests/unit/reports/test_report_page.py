"""The page: what it holds, in which order, and that nothing in a run folder can break it or break out of it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from synthetic_run import HOSTILE, write_run

from tunesmith.errors import RunError
from tunesmith.registry.lease import lease
from tunesmith.reports import accounts, costs, sections
from tunesmith.reports.answers import side_by_side
from tunesmith.reports.card import render_card
from tunesmith.reports.facts import read_facts
from tunesmith.reports.render import render_report, write_report

JSON_FILES = [
    "status.json",
    "plan.json",
    "environment.json",
    "ledger.json",
    "scorecards/base.json",
    "scorecards/tuned.json",
    "scorecards/comparison.json",
]
LINE_FILES = [
    "metrics.jsonl",
    "events.jsonl",
    "samples.jsonl",
    "scorecards/base.rows.jsonl",
    "scorecards/tuned.rows.jsonl",
]
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "helpdesk")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "short", num_rows=12, num_labels=3, steps=8)


@pytest.fixture
def fragile(short, tmp_path):
    return shutil.copytree(short, tmp_path / "run")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_the_answer_comes_first_and_the_sections_in_order(run):
    page = Page(render_report(run))
    assert page.ids == [
        "verdict",
        "training",
        "classes",
        "answers",
        "forgotten",
        "data",
        "planned",
        "samples",
        "events",
        "reproduce",
    ]
    assert page.text.index("Better") < page.text.index("Like for like") < page.text.index("Learning rate")
    links = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert set(links) <= set(page.ids)


def test_trained_parameters_are_drawn_where_they_changed_as_stairs(run):
    """Two levels: the ends, and the points on both sides of the jump; a level alone is no picture."""
    facts = read_facts(run)
    sizes = [10] * 4 + [30] * 3
    lines = [{"step": step, "trained_parameters": size} for step, size in enumerate(sizes, 1)]
    (chart,) = sections.curves(replace(facts, metrics=lines))
    assert chart.title == "Trained parameters"
    (line,) = chart.lines
    assert line.path.count("L") + 1 == 4
    assert line.last == "30.0"
    assert sections.curves(replace(facts, metrics=lines[:4])) == ()


def test_the_average_of_what_trained_is_told_where_it_changed(run, copy):
    """(4 · 10 + 3 · 30) / 7 = 18.57."""
    lines = [
        {"step": step, "loss": 1.0, "trained_parameters": size} for step, size in enumerate([10] * 4 + [30] * 3, 1)
    ]
    facts = replace(read_facts(run), metrics=lines)
    assert costs.trained_sizes(facts) == (10, pytest.approx(130 / 7), 30)
    (line,) = [one for one in costs.planned_against_measured(facts) if one.name.startswith("Trained parameters")]
    assert (line.planned, line.measured, line.note) == ("not known", "19", "10 at the first step, 30 at the last")
    assert costs.trained_sizes(replace(facts, metrics=lines[:4])) is None
    assert "Trained parameters, average" not in render_report(run)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "Trained parameters, average over the steps" in render_report(copy)
    assert "19 trained parameters on average, 10 at first and 30 at the end" in render_card(copy)


def test_the_numbers_of_the_scorecards_are_on_the_page(run):
    facts = read_facts(run)
    text = Page(render_report(run)).text
    for task in ("label_ranking", "exact_match"):
        for card in (facts.base, facts.tuned):
            score = card["tasks"][task]["accuracy"]
            assert f"{100 * score['value']:.1f} %" in text
            assert f"{100 * score['low']:.1f} to {100 * score['high']:.1f} %" in text
    for words in (
        "Majority class “delivery”",
        "mid-p McNemar",
        "7.0 %",
        "805 rows in",
        "560 trained",
        "duplicate of test",
        "× 1.08",
        "tunesmith train helpdesk.yaml",
        "786,432 beside",
        "Completions by kind",
    ):
        assert words in text, words


def test_won_lost_and_both_wrong_are_those_of_the_comparison(run):
    facts = read_facts(run)
    found = side_by_side(facts)
    assert found is not None
    claimed = facts.comparison["tasks"]["label_ranking"]["accuracy"]
    assert [group.total for group in found.groups] == [claimed["won"], claimed["lost"], claimed["both_wrong"]]
    assert found.both_right == claimed["both_right"]
    won = found.groups[0]
    assert len(won.first) == 12
    assert len(won.first) + len(won.folded) == won.total
    assert all(case.tuned.right and not case.base.right for case in won.first + won.folded)
    assert "<|im_start|>" not in won.first[0].prompt.text


def test_rows_with_another_prompt_are_not_paired(copy):
    path = copy / "scorecards" / "tuned.rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["prompt_hash"] += "0" if row["id"] == "row-00000" else ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = side_by_side(read_facts(copy))
    assert found is not None
    assert found.unpaired == 1
    assert "1 row could not be paired" in Page(render_report(copy)).text


def test_text_of_models_and_data_is_escaped(copy):
    for name in ("ledger.json", "environment.json", "recipe.json"):
        values = json.loads((copy / name).read_text())
        values["notes"] = [HOSTILE]
        values[HOSTILE] = HOSTILE
        (copy / name).write_text(json.dumps(values))
    html = render_report(copy)
    page = Page(html)
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") > 10
    assert {"script", "img", "iframe", "object", "link"} & set(page.tags) == set()
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []


def test_the_page_loads_nothing(run):
    html = render_report(run)
    page = Page(html)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert not re.search(r"(https?:)?//[a-z]", html)
    assert not re.search(r"@import|url\(", html)
    assert [value for _, name, value in page.attributes if name in ("src", "href") and not value.startswith("#")] == []


def test_three_thousand_rows_make_a_page_of_bounded_size(tmp_path):
    folder = write_run(tmp_path / "run", num_rows=3080, num_labels=77, steps=900)
    html = render_report(folder)
    page = Page(html)
    assert len(html.encode()) < 1_500_000
    assert ("table", "class", "heat") not in page.attributes
    assert "47 more classes" in page.text
    assert "further rows are not on this page" in page.text
    facts = read_facts(folder)
    won = facts.comparison["tasks"]["label_ranking"]["accuracy"]["won"]
    assert f"{won - 200:,} further rows" in page.text


def test_few_classes_have_a_matrix_with_every_label(run):
    page = Page(render_report(run))
    assert ("table", "class", "heat") in page.attributes
    titles = [value for tag, name, value in page.attributes if (tag, name) == ("td", "title")]
    confusion = read_facts(run).tuned["tables"]["label_ranking"]["confusion"]
    assert len(titles) == sum(value > 0 for line in confusion for value in line)


def test_validation_rows_alone_are_called_optimistic(tmp_path, run):
    assert (
        "Optimistic: only validation rows" in Page(render_report(write_run(tmp_path / "run", data="validation"))).text
    )
    assert "Optimistic: only" not in Page(render_report(run)).text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("interrupted", "interrupted at step 30 of 60"),
        ("stopped", "stopped by a guard at step 30"),
        (
            "running",
            "lost at step 60 of 60: the process that worked on it is gone; start the same command again to go on",
        ),
    ],
)
def test_an_unfinished_run_says_so_first(copy, status, words):
    (copy / "status.json").write_text(
        json.dumps({"status": status, "step": 30, "steps": 60, "message": "loss <b>nan</b>"})
    )
    text = Page(render_report(copy)).text
    assert words in text
    assert text.index(words) < text.index("Like for like")
    assert ("loss <b>nan</b>" in text) is (status != "running")


def test_a_run_that_a_process_works_on_is_still_running(copy):
    (copy / "status.json").write_text('{"status": "running", "step": 30, "steps": 60}')
    with lease(copy):
        assert "This run is still running at step 60 of 60" in Page(render_report(copy)).text


def test_a_bare_recipe_makes_a_page_that_says_what_is_missing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text('{"name": "bare"}')
    text = Page(render_report(folder)).text
    for words in (
        "Not compared",
        "No training metrics",
        "No table of classes",
        "No answers to compare",
        "No probes were compared",
        "No ledger",
        "Neither a plan nor measurements",
        "No samples",
        "No events",
        "environment.json is missing",
        "metrics.jsonl is not there",
    ):
        assert words in text, words


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '"x"',
        "{}",
        '{"tasks": 3, "probes": [1], "rejected": "x", "lengths": 4, "settings": [], "tables": {"a": {"labels": ["a"], "confusion": 3}}}',
    ],
)
def test_no_file_can_break_the_page(fragile, name, content):
    (fragile / name).write_text(content)
    page = Page(render_report(fragile))
    if content in ("", "{", "[]", "3", "null", '"x"'):
        assert f"{name} " in page.text[page.text.index("Not in this run folder") :]


@pytest.mark.parametrize("name", LINE_FILES)
@pytest.mark.parametrize("content", ["", "3\n[]\n", '{"a"\n{}\n', "{}\n{}\n", '{"task": "label_ranking", "id": 1}\n'])
def test_no_lines_can_break_the_page(fragile, name, content):
    (fragile / name).write_text(content)
    Page(render_report(fragile))


def test_null_scores_are_dashes_and_lost_losses_are_counted(copy):
    comparison = json.loads((copy / "scorecards" / "comparison.json").read_text())
    comparison["tasks"]["label_ranking"]["accuracy"] = {"before": None, "after": {"value": None}, "difference": None}
    (copy / "scorecards" / "comparison.json").write_text(json.dumps(comparison))
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 61, "loss": null}\n')
    text = Page(render_report(copy)).text
    assert "1 step had a loss that was not a finite number" in text


def test_books_that_do_not_balance_are_denounced(copy):
    values = json.loads((copy / "ledger.json").read_text())
    values["rows_in"] += 7
    (copy / "ledger.json").write_text(json.dumps(values))
    view = accounts.ledger(read_facts(copy))
    assert view is not None
    assert view.gap == 7
    assert "7 rows are not accounted for" in Page(render_report(copy)).text


def test_tokens_are_shown_by_role(run):
    view = accounts.ledger(read_facts(run))
    assert view is not None
    assert [(one.role, one.tokens, one.trained, one.share) for one in view.roles] == [
        ("user", "26,168", "0", "0.0 %"),
        ("assistant", "2,912", "2,912", "100.0 %"),
        ("template", "6,520", "0", "0.0 %"),
    ]
    assert "Tokens by role" in Page(render_report(run)).text


def test_without_a_status_the_steps_tell_the_time(copy):
    (copy / "status.json").unlink()
    assert read_facts(copy).seconds == pytest.approx(60 * 0.46)


def test_events_tell_the_time_as_the_run_folder_wrote_it(run):
    assert isinstance(read_facts(run).events[0]["time"], float)
    text = Page(render_report(run)).text
    assert "Time (UTC)" in text
    assert "2026-11-22 12:50:21" in text
    assert text.startswith("helpdesk: better – Tunesmith report Tunesmith report · 2026-11-22 ")


def test_layers_are_drawn_with_the_usual_ratio_and_their_last_norms(run, copy):
    view = sections.layers(read_facts(run))
    assert view is not None
    assert [len(line.dots) for line in view.chart.lines] == [10] * 8
    # Layer 7 at step 60: 4e-3 * (1 + 7/8) / (1 + 5) = 1.25e-3 of weights of norm 18.5.
    assert view.rows[-1] == ("model.layers.7", "0.0231", "18.5", "0.0375", "0.00125")
    text = Page(render_report(run)).text
    assert "Layers at step 60" in text
    assert "usual, about 0.001" in text
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(line for line in lines if "layers" not in line))
    assert sections.layers(read_facts(copy)) is None
    assert "Update to weights" not in Page(render_report(copy)).text


@pytest.mark.parametrize("layers", [3, {"a": 3}, {"a": {"ratio": None}}, {"a": {"ratio": "x"}, "b": {}}])
def test_torn_layers_do_not_break_the_page(copy, layers):
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 60, "layers": layers}) + "\n")
    Page(render_report(copy))


def test_samples_with_equal_neighbours_are_one_stretch(run):
    text = Page(render_report(run)).text
    assert "steps 6 to 60 delivery" in text
    assert "steps 6 to 12 the" in text


def test_a_run_without_right_or_wrong_is_judged_on_loss(copy):
    for name in ("base", "tuned"):
        card = json.loads((copy / "scorecards" / f"{name}.json").read_text())
        card |= {"tasks": {"loss": card["tasks"]["loss"]}, "tables": {}, "baselines": {}}
        (copy / "scorecards" / f"{name}.json").write_text(json.dumps(card))
        (copy / "scorecards" / f"{name}.rows.jsonl").write_text("")
    path = copy / "scorecards" / "comparison.json"
    comparison = json.loads(path.read_text())
    comparison |= {"tasks": {"loss": comparison["tasks"]["loss"]}, "claimed_on": "loss.loss", "sentence": ""}
    path.write_text(json.dumps(comparison))
    text = Page(render_report(copy)).text
    assert "Loss went from 3.41 to 0.520" in text
    assert "nats per token of 160 rows, lower is better" in text
    assert "No answers to compare" in text


def test_the_page_is_written_whole_and_again(copy, tmp_path):
    path = write_report(copy)
    first = path.read_bytes()
    assert path == copy / "report.html"
    assert write_report(copy).read_bytes() == first
    assert write_report(copy, tmp_path / "elsewhere" / "page.html").read_bytes() == first
    assert list(copy.glob(".*.tmp")) == []


def test_without_a_run_there_is_an_error_that_helps(tmp_path):
    with pytest.raises(RunError, match="no such run folder") as error:
        render_report(tmp_path / "nowhere")
    assert "runs list" in error.value.hint
    with pytest.raises(RunError, match="not a run folder"):
        render_report(tmp_path)
    (tmp_path / "recipe.json").write_text("[]")
    with pytest.raises(RunError, match="not a mapping"):
        render_report(tmp_path)
