from __future__ import annotations

import json

import pytest

from tunesmith.errors import DataError, RunError
from tunesmith.evaluation import tasks
from tunesmith.evaluation.scorecard import Scorecard
from tunesmith.evaluation.statistics import proportion
from tunesmith.types import Sampling


@pytest.fixture
def card(questions, table_sampler):
    # line separators within a text must not cut its row in two
    asked = questions("a", "a", "b\u2028b", "b\u2028b", "a", "b\u2028b")
    sampler = table_sampler({0: "a", 1: "b\u2028b", 2: "b\u2028b", 3: "é\u0085\r\nx", 4: "a", 5: "a"})
    card = Scorecard("some/model", seconds=1.5, suite={"tasks": None})
    card.add_task("intent", tasks.exact_match(asked, sampler, Sampling(4)), template="abc", data="test")
    card.add_probe("general", tasks.loss([(3.0, 2), (5.0, 4)]))
    return card


def test_card_has_the_contracts_shape(card):
    value = json.loads(json.dumps(card.to_json()))
    assert list(value) == ["model", "tasks", "probes", "baselines", "tables", "settings", "seconds", "suite"]
    assert value["tasks"]["intent"]["exact_match"] == proportion(3, 6).to_json()
    assert set(value["probes"]["general"]) == {"loss", "perplexity"}
    assert value["baselines"]["intent"]["majority"]["label"] == "a"
    assert value["tables"]["intent"]["labels"] == ["a", "b\u2028b"]
    assert value["settings"]["intent"]["template"] == "abc"
    assert value["settings"]["probes.general"]["type"] == "loss"


def test_rows_name_their_task(card):
    assert [row["task"] for row in card.rows] == ["intent"] * 6 + ["probes.general"] * 2
    assert len(card.rows_of("probes.general")) == 2


def test_saved_card_loads_equal(card, tmp_path):
    path = card.save(tmp_path / "scorecards", "base")
    assert path == tmp_path / "scorecards" / "base.json"
    assert Scorecard.load(tmp_path / "scorecards", "base") == card
    assert len((tmp_path / "scorecards" / "base.rows.jsonl").read_bytes().split(b"\n")) == 9
    assert sorted(item.name for item in path.parent.iterdir()) == ["base.json", "base.rows.jsonl"]


def test_saving_twice_gives_the_same_bytes(card, tmp_path):
    first = card.save(tmp_path, "one").read_bytes()
    assert card.save(tmp_path, "two").read_bytes() == first


def test_rows_of_another_card_are_refused(card, tmp_path):
    card.save(tmp_path, "base")
    rows = tmp_path / "base.rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-10])
    with pytest.raises(RunError, match="not those of the scorecard"):
        Scorecard.load(tmp_path, "base")
    rows.unlink()
    with pytest.raises(RunError, match="rows of a scorecard"):
        Scorecard.load(tmp_path, "base")


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows_sha256": "x"}', "{", '"x"', "null"])
def test_files_that_are_no_scorecards_are_refused(text, card, tmp_path):
    card.save(tmp_path, "base")
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(RunError):
        Scorecard.load(tmp_path, "base")


@pytest.mark.parametrize(
    "change", [{"tasks": {"intent": {"loss": 3}}}, {"model": None, "tasks": None}, {"seconds": "x"}]
)
def test_cards_of_another_shape_are_refused(change, card, tmp_path):
    path = card.save(tmp_path, "base")
    unsealed = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    path.write_text(json.dumps(unsealed | change))
    with pytest.raises(RunError, match="no scorecard"):
        Scorecard.load(tmp_path, "base")


def test_missing_card_is_refused(tmp_path):
    with pytest.raises(RunError, match="missing"):
        Scorecard.load(tmp_path, "base")


def test_names_are_taken_once(card):
    with pytest.raises(DataError, match="same name"):
        card.add_task("intent", tasks.loss([(1.0, 1)]))
    with pytest.raises(DataError, match="may not begin"):
        card.add_task("probes.general", tasks.loss([(1.0, 1)]))
