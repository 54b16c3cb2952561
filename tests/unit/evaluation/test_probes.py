from __future__ import annotations

from collections import Counter

import pytest
from tokenizers import Tokenizer

from tunesmith.embedded import DEFAULT_MODEL, model_folder
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation import probes
from tunesmith.evaluation.questions import Question
from tunesmith.evaluation.statistics import proportion
from tunesmith.types import LogProb, Sampling


def encode(text):
    """Words with their leading spaces, as numbers that say nothing else."""
    ids, word = [], ""
    for letter in text:
        if letter == " " and word:
            ids.append(_id(word))
            word = ""
        word += letter
    return [*ids, _id(word)]


_WORDS: dict[str, int] = {}


def _id(word):
    return _WORDS.setdefault(word, len(_WORDS))


def test_the_packages_probes_are_whole():
    general, completions, instructions = probes.general_texts(), probes.completion_items(), probes.instruction_items()
    for items in (general, completions, instructions):
        assert len({item.id for item in items}) == len(items)
    assert sum(len(item.text.split()) for item in general) > 5_000
    assert all(item.answer == 0 and len(set(item.choices)) == 4 for item in completions)
    assert all(choice.startswith(" ") for item in completions for choice in item.choices)
    assert set(Counter(item.kind for item in instructions).values()) == {2}
    assert len({item.kind for item in instructions}) == 10


def test_general_probe_is_a_loss_over_its_texts():
    losses = [(3.0 * (20 + i), 20 + i) for i in range(len(probes.general_texts()))]
    result = probes.general_probe(losses)
    assert result.metrics["loss"].value == pytest.approx(3.0)
    assert set(result.metrics) == {"loss", "perplexity"}
    assert result.rows[0]["group"] == probes.general_texts()[0].kind
    assert result.settings == {"type": "probe:general", "file_sha256": probes.probe_sha256("general")}
    with pytest.raises(DataError):
        probes.general_probe(losses[:-1])


def test_completions_probe_chooses_the_likeliest(table_scorer):
    items = probes.completion_items()
    # the scorer likes the last word of the right choice of the first forty rows, and nothing else
    liked = {encode(item.context + item.choices[0])[-1]: 5.0 for item in items[:40]}
    seen = []
    result = probes.completions_probe(
        encode, table_scorer(values=liked), lambda done, total: seen.append((done, total))
    )

    def right(item):
        first, *others = (sum(liked.get(token, 0.0) for token in encode(choice)) for choice in item.choices)
        return int(first > max(others))

    expected = [right(item) for item in items]
    assert 20 < sum(expected) < len(items)
    assert [(row["id"], row["score"]) for row in result.rows] == [
        (item.id, score) for item, score in zip(items, expected, strict=True)
    ]
    assert result.metrics["accuracy"] == proportion(sum(expected), len(items))
    assert seen[-1] == (len(items), len(items))


def test_ties_go_against_the_model(table_scorer):
    result = probes.completions_probe(encode, table_scorer())
    assert result.metrics["accuracy"].value == 0
    assert result.metrics["accuracy_per_token"].value == 0


def test_length_matters_to_sums_and_not_to_means():
    class PerToken:
        """Every token costs one nat, and a choice's first token tells how much less it costs."""

        def score(self, contexts, continuations):
            return [LogProb(-float(len(ids)), len(ids), False) for ids in continuations]

    rows = {row["id"]: row for row in probes.completions_probe(encode, PerToken()).rows}
    for item in probes.completion_items():
        lengths = [len(choice.split()) for choice in item.choices]
        shortest = lengths[0] < min(lengths[1:])
        assert rows[item.id]["score"] == int(shortest)  # sums like short choices
        assert rows[item.id]["per_token_score"] == 0  # means tie


def test_contexts_are_cut_where_choices_part():
    calls = []

    class Recorder:
        def score(self, contexts, continuations):
            calls.extend(zip(contexts, continuations, strict=True))
            return [LogProb(-1.0, len(ids), False) for ids in continuations]

    probes.completions_probe(encode, Recorder())
    items = probes.completion_items()
    assert len(calls) == 4 * len(items)
    for position, (context, continuation) in enumerate(calls):
        item = items[position // 4]
        assert context == encode(item.context)
        assert context + continuation == encode(item.context + item.choices[position % 4])


def test_tokenizers_that_merge_over_the_border_are_scored_on_what_they_read():
    calls = []

    def pairs(text):  # two letters a token: the border falls inside a token for every other context
        return [hash_pair(text[i : i + 2]) for i in range(0, len(text), 2)]

    def hash_pair(pair):
        return sum(ord(letter) * 65_536**k for k, letter in enumerate(pair))

    class Recorder:
        def score(self, contexts, continuations):
            calls.extend(zip(contexts, continuations, strict=True))
            return [LogProb(-1.0, len(ids), False) for ids in continuations]

    probes.completions_probe(pairs, Recorder())
    for position, (context, continuation) in enumerate(calls):
        item = probes.completion_items()[position // 4]
        assert context + continuation == pairs(item.context + item.choices[position % 4])
        assert len(context) == len(item.context) // 2
        assert continuation


def test_the_embedded_tokenizer_keeps_the_border():
    tokenizer = Tokenizer.from_file(str(model_folder(DEFAULT_MODEL) / "tokenizer.json"))
    contexts = []

    class Recorder:
        def score(self, given, continuations):
            contexts.extend(given)
            return [LogProb(-1.0, len(ids), False) for ids in continuations]

    probes.completions_probe(lambda text: tokenizer.encode(text).ids, Recorder())
    assert contexts[::4] == [tokenizer.encode(item.context).ids for item in probes.completion_items()]


def test_tokenizer_without_a_border_is_refused(table_scorer):
    with pytest.raises(ModelError, match="no border"):
        probes.completions_probe(lambda text: [len(text)], table_scorer())


def test_broken_scores_are_refused(table_scorer):
    nan = table_scorer(values={encode(" are barking")[-1]: float("nan")})
    with pytest.raises(ModelError, match="not finite"):
        probes.completions_probe(encode, nan)


def test_kinds_are_counted_apart():
    rows = [{"group": "x", "score": 1}, {"group": "y", "score": 0}, {"group": "x", "score": 0}]
    assert probes.by_kind(rows) == {"x": proportion(1, 2), "y": proportion(0, 1)}


def test_instructions_have_answers_and_no_score(table_sampler):
    items = probes.instruction_items()
    questions = [Question.of(item.id, (i,), item.text, item.reference, item.kind) for i, item in enumerate(items)]
    result = probes.instructions_probe(questions, table_sampler({i: f"answer {i}" for i in range(20)}), Sampling(32))
    assert result.metrics == {}
    assert [row["answer"] for row in result.rows] == [f"answer {i}" for i in range(20)]
    assert {row["score"] for row in result.rows} == {None}
    assert result.settings["decoding"]["max_new_tokens"] == 32
    assert items[0].text == f"{items[0].instruction}\n\n{items[0].input}"
