"""What went wrong on the way: grouped, gravest first, and absent where nothing did."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from synthetic_run import write_run
from synthetic_trouble import EVENTS, add_trouble

import tunesmith
from tunesmith.reports.facts import read_facts
from tunesmith.reports.history import events, troubles
from tunesmith.reports.render import render_report

TROUBLE_KINDS = {
    "step_skipped", "rolled_back", "diverging", "layer_fault", "checkpoint_failed", "checkpoint_set_aside", "best_lost",
    "restarted", "begun_again", "recompute_on", "passes_cut", "slow_step", "slow_disk", "stopped", "sink_failed", "lost", "stalled",
    "differs", "lines_damaged", "lines_lost",
}  # fmt: skip
QUIET_KINDS = {
    "features", "started", "note", "resumed", "interrupted", "done", "continued", "swept", "best_taken", "stopped_early",
    "not_compared", "untrained_token", "evaluation_changed", "scored_again", "base_scores", "forked", "matrices_frozen",
}  # fmt: skip
AFTERWARDS = {"checkpoint_saved_again"}
"""Told with the trouble that it ends."""


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "quiet", num_rows=12, num_labels=3)


@pytest.fixture(scope="module")
def troubled(quiet, tmp_path_factory):
    return add_trouble(shutil.copytree(quiet, tmp_path_factory.mktemp("runs") / "troubled"))


def test_a_quiet_run_has_no_such_section(quiet):
    assert not troubles(read_facts(quiet))
    page = render_report(quiet)
    assert "troubles" not in page.partition("</style>")[2]
    assert "went wrong" not in page


def test_troubles_stand_between_the_verdict_and_the_curves(troubled):
    page = render_report(troubled)
    assert page.index('id="verdict"') < page.index('id="troubles"') < page.index('id="training"')
    assert 'href="#troubles"' in page
    assert "What went wrong on the way" in page
    assert "is dead: no gradient reaches it &lt;b&gt;" in page


def test_troubles_are_grouped_gravest_first_and_the_rest_is_counted(troubled):
    found = troubles(read_facts(troubled))
    assert [(one.title, one.when, len(one.messages), one.more) for one in found.found] == [
        ("Rolled back", "at step 36", 1, 0),
        ("Step not applied", "4 times, steps 9 to 13", 3, 1),
        ("Checkpoint not written", "2 times, steps 20 to 30", 2, 0),
        ("Layer that does not learn like the others", "at step 36", 1, 0),
    ]
    assert (found.refused, found.steps) == (7, 60)
    assert "7 of 60 steps were not applied" in unescape(render_report(troubled))


@pytest.mark.parametrize("kind", sorted(TROUBLE_KINDS))
def test_every_kind_that_a_guard_says_is_a_trouble(quiet, tmp_path, kind):
    copy = shutil.copytree(quiet, tmp_path / "run")
    (copy / "events.jsonl").write_text(json.dumps({"time": 0.0, "step": 3, "kind": kind, "message": "so it was"}))
    (trouble,) = troubles(read_facts(copy)).found
    assert (trouble.when, trouble.messages) == ("at step 3", ("so it was",))


@pytest.mark.parametrize(
    "kind", ["started", "note", "resumed", "interrupted", "done", "continued", "swept", "best_taken"]
)
def test_what_is_no_trouble_is_none(quiet, tmp_path, kind):
    copy = shutil.copytree(quiet, tmp_path / "run")
    (copy / "events.jsonl").write_text(json.dumps({"time": 0.0, "step": 3, "kind": kind, "message": "so it was"}))
    assert not troubles(read_facts(copy))


def test_events_keep_the_order_of_time_and_mark_troubles(troubled):
    shown, more = events(read_facts(troubled))
    assert more == 0
    assert len(shown) == 5 + len(EVENTS)
    assert [event.time for event in shown] == sorted(event.time for event in shown)
    assert {event.kind for event in shown if event.warning} == {
        "step skipped", "checkpoint failed", "checkpoint saved again", "rolled back", "layer fault",
    }  # fmt: skip


def test_each_kind_that_the_program_says_is_sorted_here():
    """A new kind of event belongs into one of the lists above, and where it is a trouble it needs its title."""
    source = "".join(path.read_text(encoding="utf-8") for path in Path(tunesmith.__path__[0]).rglob("*.py"))
    said = set(re.findall(r'(?:\bsay|_say|append_event)\(\s*"([a-z_]+)"', source))
    assert {"step_skipped", "started"} <= said <= TROUBLE_KINDS | QUIET_KINDS | AFTERWARDS
