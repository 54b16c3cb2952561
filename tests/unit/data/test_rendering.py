"""From a record to ids and mask: what is trained, what is refused, and that what is trained is what is served."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.data.bad_row import BadRow
from tunesmith.data.chat_template import ChatTemplate, default_template
from tunesmith.data.rendering import Renderer, make_renderer
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.embedded import DEFAULT_MODEL, model_folder
from tunesmith.errors import DataError
from tunesmith.recipe.model import ModelSection
from tunesmith.recipe.objectives import ClmSection, SftSection
from tunesmith.records import Chat, Labelled, Message, Record, Stretch, Text

FOLDER = model_folder(DEFAULT_MODEL)
assert FOLDER is not None
TOKENIZER = Tokenizer.from_folder(FOLDER)
MARKED = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
UNMARKED = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
)
SPACELESS = (
    "{% for m in messages %}{{ m.role + ':' + m.content + (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}"
    + ("{% if add_generation_prompt %}assistant:{% endif %}")
)
SOURCES = {"marked": MARKED, "unmarked": UNMARKED, "spaceless": SPACELESS, "default": default_template(False)}
TURNS = (
    Message("system", "Be kind."), Message("user", "One?"), Message("assistant", "Uno."), Message("user", "Two?"),
    Message("assistant", "Dos."),
)  # fmt: skip


def renderer(source: str = MARKED, objective: SftSection | ClmSection | None = None) -> Renderer:
    return Renderer(TOKENIZER, ChatTemplate(source, TOKENIZER.special_tokens), objective or SftSection())


RENDERERS = {name: renderer(source) for name, source in SOURCES.items()}


def trained_text(rendering: Renderer, record: Record) -> list[str]:
    """Runs of trained tokens, as text."""
    rendered = rendering.render(record)
    runs: list[list[int]] = [[]]
    for token, trained in zip(rendered.ids, rendered.trained, strict=True):
        if trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [rendering.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("source", ["marked", "unmarked"])
@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        ("responses", ["Uno.<|im_end|>", "Dos.<|im_end|>"]),
        ("last_response", ["Dos.<|im_end|>"]),
        ("all_turns", ["Be kind.", "One?", "Uno.<|im_end|>", "Two?", "Dos.<|im_end|>"]),
    ],
)
def test_loss_on_chooses_turns(source: str, loss_on: str, expected: list[str]):
    assert trained_text(renderer(SOURCES[source], SftSection(loss_on=loss_on)), Chat(TURNS)) == expected


def test_loss_on_everything_is_all_but_the_first():
    rendered = renderer(objective=SftSection(loss_on="everything")).render(Chat(TURNS))
    assert rendered.trained == [False] + [True] * (len(rendered.ids) - 1)


@pytest.mark.parametrize("source", ["marked", "unmarked"])
def test_flags_of_messages_override_the_objective(source: str):
    flagged = tuple(Message(m.role, m.content, train={0: True, 2: False}.get(i)) for i, m in enumerate(TURNS))
    for loss_on, expected in {
        "responses": ["Be kind.", "Dos.<|im_end|>"],
        "last_response": ["Be kind.", "Dos.<|im_end|>"],
        "all_turns": ["Be kind.", "One?", "Two?", "Dos.<|im_end|>"],
    }.items():
        assert trained_text(renderer(SOURCES[source], SftSection(loss_on=loss_on)), Chat(flagged)) == expected
    everything = renderer(SOURCES[source], SftSection(loss_on="everything")).render(Chat(flagged))
    assert all(everything.trained[1:])


def _answered(content: str, *stretches: tuple[int, int, bool], train: bool | None = None, last: str = "Dos.") -> Chat:
    flagged = Message("assistant", content, train, stretches=tuple(Stretch(*item) for item in stretches))
    if last:
        return Chat((TURNS[1], flagged, TURNS[3], Message("assistant", last)))
    return Chat((TURNS[1], flagged))


@pytest.mark.parametrize("last", ["Dos.", ""], ids=["earlier", "last"])
@pytest.mark.parametrize("source", SOURCES)
def test_flags_of_stretches_override_message_and_objective(source: str, last: str) -> None:
    rendering = RENDERERS[source]
    end = "<|im_end|>" if "marked" in source else "<|endoftext|>"
    behind = [f"{last}{end}"] if last else []
    text = "I think it is forty and two"
    cases = [
        # The space before a word is in the word's token: it goes with the word, whichever part it was written in.
        (_answered(text, (0, 8, False), last=last), [f" it is forty and two{end}"]),
        (_answered(text, (0, 7, False), last=last), [f" it is forty and two{end}"]),
        (_answered(text, (8, 14, True), train=False, last=last), [" it is"]),
        (_answered(text, (14, 20, False), last=last), ["I think it is", f" and two{end}"]),
        (_answered(text, (0, 8, True), (8, len(text), False), last=last), ["I think"]),
        (_answered(text, (23, len(text), True), train=False, last=last), [f" two{end}"]),
        (_answered(f"  {text}", (0, 10, False), last=last), [f" it is forty and two{end}"]),
    ]
    for record, expected in cases:
        assert trained_text(rendering, record) == [*expected, *behind], record
    everything = renderer(SOURCES[source], SftSection(loss_on="everything")).render(cases[0][0])
    assert all(everything.trained[1:])


def test_a_stretch_of_another_role_is_trained_alone() -> None:
    asked = Message("user", "Say one: uno", stretches=(Stretch(9, 12, True),))
    assert trained_text(RENDERERS["unmarked"], Chat((asked, TURNS[2]))) == [" uno", "Uno.<|im_end|>"]
    assert trained_text(renderer(UNMARKED, SftSection(loss_on="last_response")), Chat((asked, TURNS[2])))[0] == " uno"


def test_a_stretch_that_the_template_rewrites_is_refused() -> None:
    shouting = renderer(UNMARKED.replace("message.content", "message.content | replace('two', 'TWO')"))
    record = _answered("it is two", (0, 6, False), last="")
    with pytest.raises(BadRow, match="turn 2") as caught:
        shouting.render(record)
    assert caught.value.reason == "template_failed"


def test_calls_written_as_text_have_the_flag_of_the_text_before_them() -> None:
    call = {"tool_calls": [{"function": {"name": "tide", "arguments": {}}}]}
    flagged = Message("assistant", "Look: now", extra=call, stretches=(Stretch(0, 6, False), Stretch(6, 9, True)))
    record = Chat((TURNS[1], flagged, Message("tool", "7"), TURNS[4]))
    runs = trained_text(RENDERERS["unmarked"], record)
    assert runs[0].startswith(" now\n<tool_call>")
    assert runs[0].endswith("</tool_call><|im_end|>")


NAMED = UNMARKED.replace(
    "message.role +", "message.role + (' ' + message.name if message.name and message.role == 'user' else '') +", 1
)


def test_keys_of_messages_that_the_template_does_not_read_are_told() -> None:
    extra = {"name": "Ann", "trian": False, "content.cache_control": {}, "tool_calls": None}
    record = Chat(
        (Message("user", "One?", extra=extra), Message("assistant", "Uno.", extra={"name": "Bot", "audio": {"id": 1}}))
    )
    unread = "is not used: the chat template does not read it"
    common = [
        f"`audio` of a turn of role assistant {unread}", f"`name` of a turn of role assistant {unread}",
        f"`content.cache_control` of a turn of role user {unread}",
        "`trian` of a turn of role user is not used (did you mean `train`?): the chat template does not read it",
    ]  # fmt: skip
    named = [line for line in RENDERERS["unmarked"].examine(record).warnings if "not used" in line]
    assert sorted(named) == sorted([*common, f"`name` of a turn of role user {unread}"])
    rendering = renderer(NAMED)
    for _ in range(2):
        assert sorted(rendering.examine(record).warnings) == sorted(common)


@pytest.mark.parametrize("source", ["marked", "unmarked"])
def test_a_row_of_which_nothing_is_trained_is_refused(source: str):
    record = Chat((Message("user", "One?"), Message("assistant", "Uno.", train=False)))
    with pytest.raises(BadRow) as caught:
        RENDERERS[source].render(record)
    assert caught.value.reason == "nothing_trained"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Chat((Message("user", "One?"), Message("assistant", " \n"))), "empty_answer"),
        (Labelled("One?", ""), "empty_answer"),
        (Chat((Message("user", "One?"),)), "no_answer"),
        (Chat(()), "no_answer"),
        (Text("a document"), "no_answer"),
    ],
)
def test_rows_without_an_answer_are_refused(record: Record, reason: str):
    with pytest.raises(BadRow) as caught:
        RENDERERS["marked"].render(record)
    assert caught.value.reason == reason


def test_a_tool_call_is_an_answer():
    call = {"tool_calls": [{"function": {"name": "tide", "arguments": '{"port": "Hull"}'}}]}
    record = Chat((Message("user", "Tide?"), Message("assistant", "", extra=call)))
    text = '<tool_call>\n{"name": "tide", "arguments": {"port": "Hull"}}\n</tool_call>'
    assert trained_text(RENDERERS["marked"], record) == [text + "<|im_end|>"]
    assert trained_text(RENDERERS["default"], record) == [text + "<|endoftext|>"]
    for rendering in (RENDERERS["marked"], RENDERERS["default"]):
        answer = rendering.answer_ids(record, rendering.reference(record))
        assert rendering.prompt_ids(record) + answer == rendering.render(record).ids


def test_template_failures_are_row_faults_in_the_templates_words():
    source = UNMARKED.replace(
        "{%- for", "{%- if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}{%- for", 1
    )
    rendering = renderer(source.replace("> 3", "> 4"))
    with pytest.raises(BadRow, match="too long") as caught:
        rendering.render(Chat(TURNS))
    assert caught.value.reason == "template_failed"


def test_a_template_that_fails_on_everything_is_an_error_at_once():
    with pytest.raises(DataError, match="no way"):
        renderer("{{ raise_exception('no way') }}")


def test_labelled_is_a_question_and_an_answer():
    labelled, chat = (
        Labelled("Where is it?", "card_arrival"),
        Chat((Message("user", "Where is it?"), Message("assistant", "card_arrival"))),
    )
    assert RENDERERS["marked"].render(labelled) == RENDERERS["marked"].render(chat)
    assert RENDERERS["marked"].reference(labelled) == RENDERERS["marked"].reference(chat) == "card_arrival"


def test_documents_are_closed_and_trained_but_for_the_first_token():
    rendered = renderer(objective=ClmSection()).render(Text("High water at six."))
    assert rendered.ids == [*TOKENIZER.encode("High water at six."), 0]
    assert rendered.trained == [False] + [True] * (len(rendered.ids) - 1)
    bare = renderer(objective=ClmSection(add_end_token=False)).render(Text("High water at six."))
    assert bare.ids == TOKENIZER.encode("High water at six.")


@pytest.mark.parametrize(("text", "reason"), [("", "empty_text"), (" \n ", "empty_text")])
def test_empty_documents_are_refused(text: str, reason: str):
    with pytest.raises(BadRow) as caught:
        renderer(objective=ClmSection()).render(Text(text))
    assert caught.value.reason == reason


def test_a_document_of_one_token_trains_nothing():
    with pytest.raises(BadRow, match="single token"):
        renderer(objective=ClmSection(add_end_token=False)).render(Text("a"))


def test_conversations_under_clm_are_trained_whole():
    rendered = renderer(objective=ClmSection()).render(Chat(TURNS))
    assert all(rendered.trained[1:])
    assert not rendered.trained[0]


WORDS = st.text(alphabet=st.characters(codec="utf-8"), max_size=30) | st.text(alphabet=" \n\tab.:é😀#", max_size=12)


@settings(max_examples=150, deadline=None)
@given(question=WORDS, answer=WORDS, earlier=st.lists(st.tuples(WORDS, WORDS), max_size=2))
@example(question="a", answer=" b", earlier=[])
@example(question="a ", answer="\n\nb", earlier=[("x\n", "\ny ")])
@example(question="", answer="b", earlier=[("", "")])
@pytest.mark.parametrize("name", SOURCES)
def test_what_is_trained_is_what_is_served(name: str, question: str, answer: str, earlier: list[tuple[str, str]]):
    """A row's ids are the prompt's ids and then the answer's; what the model reads back is the very text."""
    turns = [message for asked, said in earlier for message in (Message("user", asked), Message("assistant", said))]
    record = Chat((*turns, Message("user", question), Message("assistant", answer)))
    rendering = RENDERERS[name]
    if not answer.strip():
        with pytest.raises(BadRow):
            rendering.render(record)
        return
    rendered = rendering.render(record)
    prompt = rendering.prompt_ids(record)
    assert prompt == TOKENIZER.encode(rendering.prompt_text(record))
    assert prompt + rendering.answer_ids(record, answer) == rendered.ids
    assert TOKENIZER.decode(rendered.ids) == rendered.text
    assert all(rendered.trained[len(prompt) :]), "all of the answer is trained, its end included"
    assert rendered.ids[-1] in rendering.stop_ids
    assert TOKENIZER.decode(rendered.ids[len(prompt) : -1]) == answer


def test_an_answer_that_would_merge_with_its_prompt_is_split_from_it():
    """Encoded whole, the border of this template vanishes inside a token."""
    source = "{% for m in messages %}{{ m.content + (eos_token if m.role == 'assistant' else '') }}{% endfor %}"
    rendering = renderer(source)
    record = Chat((Message("user", "to"), Message("assistant", "gether")))
    prompt = rendering.prompt_ids(record)
    assert TOKENIZER.encode("together")[: len(prompt)] != prompt
    assert rendering.render(record).ids[: len(prompt)] == prompt
    assert trained_text(rendering, record) == ["gether<|endoftext|>"]


def test_prompts_of_unanswered_conversations():
    record = Chat((Message("user", "One?"),))
    assert RENDERERS["marked"].prompt_text(record) == "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(RENDERERS["marked"].answer_ids(record, "Uno.")) == "Uno.<|im_end|>"


@pytest.fixture(scope="module")
def spaced_tokenizer() -> Tokenizer:
    """A tokenizer of the SentencePiece kind, which puts a space before the first word of whatever it is given."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    corpus = ["the tide is high at six", "a boat at sea", "user: assistant: hello there :"] * 20
    backend.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return Tokenizer(backend.to_str(), {"eos_token": "</s>"})


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(["the", "tide", "at", "hello", "six", "a"]), min_size=1, max_size=5),
    lead=st.sampled_from(["", " "]),
)
def test_the_border_holds_with_sentencepiece_spaces(spaced_tokenizer: Tokenizer, words: list[str], lead: str):
    source = (
        "{% for m in messages %}{{ m.role + ':' + m.content + (eos_token if m.role == 'assistant' else ' ') }}{% endfor %}"
        + ("{% if add_generation_prompt %}assistant:{% endif %}")
    )
    rendering = Renderer(spaced_tokenizer, ChatTemplate(source, spaced_tokenizer.special_tokens), SftSection())
    answer = lead + " ".join(words)
    record = Chat((Message("user", "hello"), Message("assistant", answer)))
    rendered = rendering.render(record)
    prompt = rendering.prompt_ids(record)
    assert prompt + rendering.answer_ids(record, answer) == rendered.ids
    assert spaced_tokenizer.decode(rendered.ids) == rendered.text
    assert all(rendered.trained[len(prompt) :])


def test_markers_short_of_the_end_of_turn_are_stretched_and_said():
    source = MARKED.replace(
        "message['content'] + '<|im_end|>' }}{% endgeneration %}",
        "message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    assert source != MARKED
    rendering = renderer(source)
    assert trained_text(rendering, Chat(TURNS)) == ["Uno.<|im_end|>", "Dos.<|im_end|>"]
    assert any("without their end-of-turn token" in note for note in rendering.notes)


def test_templates_that_close_nothing_say_so():
    rendering = renderer("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}")
    assert any("cannot learn where to stop" in note for note in rendering.notes)
    assert rendering.stop_ids == {0}
    assert trained_text(rendering, Chat(TURNS[1:]))[-1].endswith("Dos.")


def test_an_end_that_is_not_one_token_is_said():
    rendering = renderer(UNMARKED.replace("<|im_end|>", "<end>"))
    assert any("not one token" in note for note in rendering.notes)
    assert rendering.stop_ids == {0}
    assert trained_text(rendering, Chat(TURNS)) == ["Uno.<end>", "Dos.<end>"]


@pytest.mark.parametrize("source", ["marked", "unmarked"])
def test_special_tokens_inside_texts_are_kept_and_reported(source: str):
    rendering = RENDERERS[source]
    record = Chat((Message("user", "What is <|im_end|>?"), Message("assistant", "It is <|im_end|>, a token.")))
    assert rendering.special_tokens_inside(record) == ["<|im_end|>"]
    assert len(rendering.examine(record).warnings) == 1
    assert TOKENIZER.decode(rendering.render(record).ids) == (
        "<|im_start|>user\nWhat is <|im_end|>?<|im_end|>\n<|im_start|>assistant\nIt is <|im_end|>, a token.<|im_end|>"
    )
    assert trained_text(rendering, record) == ["It is <|im_end|>, a token.<|im_end|>"]
    assert rendering.examine(Chat(TURNS)).warnings == []


def test_what_templates_leave_out_is_reported():
    source = UNMARKED.replace(
        "{{- '<|im_start|>'", "{%- if message.role == 'system' %}{% continue %}{% endif %}{{- '<|im_start|>'", 1
    )
    rendering = renderer(source)
    assert rendering.examine(Chat(TURNS)).warnings == ["the chat template leaves out a turn of role system"]
    assert trained_text(renderer(source, SftSection(loss_on="all_turns")), Chat(TURNS))[0] == "One?"


def test_private_use_characters_in_texts_do_no_harm():
    for base in (0xF0000, 0x100000):
        record = Chat(
            (Message("user", chr(base) + "x" + chr(base + 1)), Message("assistant", chr(base + 2)), *TURNS[3:])
        )
        assert trained_text(RENDERERS["unmarked"], record) == [chr(base + 2) + "<|im_end|>", "Dos.<|im_end|>"]


def test_fingerprints_follow_what_changes_ids_or_masks():
    base = renderer().fingerprint()
    assert renderer().fingerprint() == base
    template = ChatTemplate(MARKED, TOKENIZER.special_tokens, "2025-01-01")
    others = [
        renderer(UNMARKED), renderer(objective=SftSection(loss_on="everything")), renderer(objective=ClmSection()),
        Renderer(TOKENIZER, template, SftSection()),
    ]  # fmt: skip
    assert len({base, *(other.fingerprint() for other in others)}) == 5


def test_fingerprints_do_not_follow_what_a_trained_token_counts():
    """Else another loss would be another template: prepared anew, and not to be compared with."""
    for kind in (SftSection, ClmSection):
        plain = renderer(objective=kind()).fingerprint()
        for loss in ({"label_smoothing": 0.1}, {"focal_gamma": 2.0}, {"rdrop_alpha": 1.0}):
            assert renderer(objective=kind(**loss)).fingerprint() == plain
    assert renderer().decides["objective"] == {"type": "sft", "loss_on": "responses"}
    assert renderer(objective=ClmSection()).decides["objective"] == {"type": "clm", "add_end_token": True}


def test_renderers_survive_pickling():
    copy = pickle.loads(pickle.dumps(RENDERERS["marked"]))
    assert copy.render(Chat(TURNS)) == RENDERERS["marked"].render(Chat(TURNS))
    assert copy.fingerprint() == RENDERERS["marked"].fingerprint()


class TestMakeRenderer:
    @staticmethod
    def bare(folder: Path) -> Path:
        """The embedded model's folder without its template."""
        (folder / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
        config = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    def test_the_embedded_model_needs_no_notes(self):
        rendering, notes = make_renderer(FOLDER, ModelSection(name=DEFAULT_MODEL), SftSection(), Path())
        assert notes == []
        assert rendering.stop_ids == {0, 3}

    def test_a_model_without_template_gets_ours_aloud(self, tmp_path: Path):
        rendering, notes = make_renderer(self.bare(tmp_path), ModelSection(name="x"), SftSection(), tmp_path)
        assert len(notes) == 1
        assert "no chat template" in notes[0]
        assert rendering.render(Chat(TURNS)).text == (
            "### System:\nBe kind.\n\n### User:\nOne?\n\n### Assistant:\nUno.<|endoftext|>\n\n"
            "### User:\nTwo?\n\n### Assistant:\nDos.<|endoftext|>"
        )
        assert trained_text(rendering, Chat(TURNS)) == ["Uno.<|endoftext|>", "Dos.<|endoftext|>"]

    def test_documents_need_no_template_and_no_note(self, tmp_path: Path):
        assert make_renderer(self.bare(tmp_path), ModelSection(name="x"), ClmSection(), tmp_path)[1] == []

    def test_the_recipes_template_wins_and_is_said(self, tmp_path: Path):
        (tmp_path / "mine.jinja").write_text(UNMARKED.replace("<|im_start|>", "<|reserved_0|>"), encoding="utf-8")
        rendering, notes = make_renderer(
            FOLDER, ModelSection(name="x", chat_template="mine.jinja"), SftSection(), tmp_path
        )
        assert "mine.jinja" in notes[0]
        assert rendering.prompt_text(Chat(TURNS)).endswith("<|reserved_0|>assistant\n")

    def test_missing_and_broken_templates_name_the_place(self, tmp_path: Path):
        with pytest.raises(DataError, match="no such chat template") as caught:
            make_renderer(FOLDER, ModelSection(name="x", chat_template="mine.jinja"), SftSection(), tmp_path)
        assert "mine.jinja" in caught.value.where
        (tmp_path / "mine.jinja").write_text("\n\n{% if %}", encoding="utf-8")
        with pytest.raises(DataError, match="does not compile") as caught:
            make_renderer(FOLDER, ModelSection(name="x", chat_template="mine.jinja"), SftSection(), tmp_path)
        assert caught.value.where.endswith("mine.jinja:3")

    def test_stop_ids_of_the_generation_config_count(self, tmp_path: Path):
        folder = self.bare(tmp_path)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}), encoding="utf-8")
        assert 7 in make_renderer(folder, ModelSection(name="x"), SftSection(), tmp_path)[0].stop_ids
