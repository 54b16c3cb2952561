"""Tunesmith turns a base language model and a pile of examples into a better model, and proves that it is better.

    load(path) -> Recipe    make_plan(recipe) -> Plan    train(plan, folder) -> Run
    evaluate(model, suite) -> Scorecard    compare(before, after) -> Comparison
    report(run) -> Report    export(run, out)    compare_strategies(path) -> StrategyComparison
    open_switchboard(base) -> Switchboard    blend(adapters, out)    inspect_adapters(adapters)
    media_features(encoder, inputs)    train_head(features, targets, out)    apply_head(out, features)

Names load their module when they are first used: ``import tunesmith`` is free, and a plan never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.evaluation.comparison import Comparison, compare
    from tunesmith.evaluation.scorecard import Scorecard
    from tunesmith.planning.plan import Plan, make_plan
    from tunesmith.recipe.codec import load
    from tunesmith.recipe.root import Recipe
    from tunesmith.workshop.array_heads import apply_head, media_features, train_head
    from tunesmith.workshop.blend import blend
    from tunesmith.workshop.compare_strategies import StrategyComparison, compare_strategies
    from tunesmith.workshop.evaluate import evaluate
    from tunesmith.workshop.export import export
    from tunesmith.workshop.inspecting import inspect_adapters
    from tunesmith.workshop.report import Report, report
    from tunesmith.workshop.start import Run
    from tunesmith.workshop.strategies import Asked
    from tunesmith.workshop.switchboard import Switchboard, open_switchboard
    from tunesmith.workshop.train import train

__version__ = "0.1.0"

_FACE = {
    "Asked": "tunesmith.workshop.strategies:Asked",
    "Comparison": "tunesmith.evaluation.comparison:Comparison",
    "Plan": "tunesmith.planning.plan:Plan",
    "Recipe": "tunesmith.recipe.root:Recipe",
    "Report": "tunesmith.workshop.report:Report",
    "Run": "tunesmith.workshop.start:Run",
    "Scorecard": "tunesmith.evaluation.scorecard:Scorecard",
    "StrategyComparison": "tunesmith.workshop.compare_strategies:StrategyComparison",
    "Switchboard": "tunesmith.workshop.switchboard:Switchboard",
    "apply_head": "tunesmith.workshop.array_heads:apply_head",
    "blend": "tunesmith.workshop.blend:blend",
    "compare": "tunesmith.evaluation.comparison:compare",
    "compare_strategies": "tunesmith.workshop.compare_strategies:compare_strategies",
    "evaluate": "tunesmith.workshop.evaluate:evaluate",
    "export": "tunesmith.workshop.export:export",
    "inspect_adapters": "tunesmith.workshop.inspecting:inspect_adapters",
    "load": "tunesmith.recipe.codec:load",
    "make_plan": "tunesmith.planning.plan:make_plan",
    "media_features": "tunesmith.workshop.array_heads:media_features",
    "open_switchboard": "tunesmith.workshop.switchboard:open_switchboard",
    "report": "tunesmith.workshop.report:report",
    "train": "tunesmith.workshop.train:train",
    "train_head": "tunesmith.workshop.array_heads:train_head",
}

__all__ = [
    "Asked",
    "Comparison",
    "Plan",
    "Recipe",
    "Report",
    "Run",
    "Scorecard",
    "StrategyComparison",
    "Switchboard",
    "__version__",
    "apply_head",
    "blend",
    "compare",
    "compare_strategies",
    "evaluate",
    "export",
    "inspect_adapters",
    "load",
    "make_plan",
    "media_features",
    "open_switchboard",
    "report",
    "train",
    "train_head",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _FACE[name].partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
