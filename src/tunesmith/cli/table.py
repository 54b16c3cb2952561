"""The verbs: a contract that scripts depend on. Names, targets and one line each; nothing is loaded to show them."""

from __future__ import annotations

from typing import NamedTuple


class VerbEntry(NamedTuple):
    """Where a verb's command is, as ``module:function``, and what it does in one line."""

    target: str
    does: str


VERBS: dict[str, VerbEntry] = {
    "demo": VerbEntry("tunesmith.cli.demo:demo", "The main job on the embedded model and data, offline, in minutes."),
    "init": VerbEntry("tunesmith.cli.init:init", "Write a commented recipe and sample data to start from."),
    "plan": VerbEntry("tunesmith.cli.plan:plan", "Memory, time and every derived value, before anything is loaded."),
    "data": VerbEntry("tunesmith.cli.data:data", "Check what becomes of every row; show one as the model sees it."),
    "train": VerbEntry("tunesmith.cli.train:train", "Train; the same call resumes an interrupted run."),
    "compare-strategies": VerbEntry(
        "tunesmith.cli.strategies:compare_strategies", "Tune one task in many ways; say which is best, at what cost."
    ),
    "eval": VerbEntry("tunesmith.cli.evaluate:evaluate", "Score a model, alone or paired against another."),
    "report": VerbEntry("tunesmith.cli.report:report", "Write a run's report: one self-contained HTML page."),
    "export": VerbEntry(
        "tunesmith.cli.export:export", "Write the adapter, or the merged model, after the parity gates."
    ),
    "blend": VerbEntry("tunesmith.cli.blend:blend", "Blend several adapters of one base: linear, TIES or DARE."),
    "inspect": VerbEntry(
        "tunesmith.cli.inspect:inspect", "What is in adapters: sizes, directions, moved predictions, overlap."
    ),
    "generate": VerbEntry("tunesmith.cli.ask:generate", "Ask a model once."),
    "chat": VerbEntry("tunesmith.cli.ask:chat", "Talk with a model, or with two side by side."),
    "runs": VerbEntry("tunesmith.cli.runs:runs", "List, show, compare and reproduce what was run."),
    "doctor": VerbEntry("tunesmith.cli.doctor:doctor", "What this machine has, what is missing, how to mend it."),
    "schema": VerbEntry("tunesmith.cli.schema:schema", "JSON schema of a recipe, for editors."),
}
