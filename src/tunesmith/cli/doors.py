"""The heavy use cases, opened when a verb has read and checked its input: the second half of the verb table.

A wrong recipe or a ``--help`` therefore never waits for torch. ``doors.train(...)`` is ``workshop.train.train(...)``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.workshop.ask import open_answerer
    from tunesmith.workshop.blend import blend
    from tunesmith.workshop.compare_strategies import conclude
    from tunesmith.workshop.demo import demo
    from tunesmith.workshop.evaluate import measure
    from tunesmith.workshop.export import export
    from tunesmith.workshop.inspecting import inspect_adapters
    from tunesmith.workshop.planning import plan_recipe
    from tunesmith.workshop.prepare import open_data
    from tunesmith.workshop.report import report
    from tunesmith.workshop.reproducing import reproduce
    from tunesmith.workshop.start import check_start, finished_run
    from tunesmith.workshop.strategies import Asked, Contest
    from tunesmith.workshop.together import follow
    from tunesmith.workshop.train import train

__all__ = [
    "Asked",
    "Contest",
    "blend",
    "check_start",
    "conclude",
    "demo",
    "export",
    "finished_run",
    "follow",
    "inspect_adapters",
    "measure",
    "open_answerer",
    "open_data",
    "plan_recipe",
    "report",
    "reproduce",
    "train",
]

USE_CASES: dict[str, str] = {
    "blend": "tunesmith.workshop.blend:blend",
    "Asked": "tunesmith.workshop.strategies:Asked",
    "Contest": "tunesmith.workshop.strategies:Contest",
    "check_start": "tunesmith.workshop.start:check_start",
    "conclude": "tunesmith.workshop.compare_strategies:conclude",
    "demo": "tunesmith.workshop.demo:demo",
    "export": "tunesmith.workshop.export:export",
    "finished_run": "tunesmith.workshop.start:finished_run",
    "measure": "tunesmith.workshop.evaluate:measure",
    "follow": "tunesmith.workshop.together:follow",
    "inspect_adapters": "tunesmith.workshop.inspecting:inspect_adapters",
    "open_answerer": "tunesmith.workshop.ask:open_answerer",
    "open_data": "tunesmith.workshop.prepare:open_data",
    "plan_recipe": "tunesmith.workshop.planning:plan_recipe",
    "report": "tunesmith.workshop.report:report",
    "reproduce": "tunesmith.workshop.reproducing:reproduce",
    "train": "tunesmith.workshop.train:train",
}


def __getattr__(name: str) -> Any:
    """Load a use case on first use."""
    if name not in USE_CASES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = USE_CASES[name].partition(":")
    return getattr(import_module(module), attribute)
