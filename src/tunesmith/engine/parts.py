"""What trains beside the model: the parts of an objective, as parameter groups."""

from __future__ import annotations

from tunesmith.types import Objective, ParamGroup


def parts_groups(objective: Objective) -> list[ParamGroup]:
    """The parts' matrices, which decay, and their vectors, which do not; none where there are no parts.

    Parts are named ``parts.NAME``, and train at the objective's ``rate_factor`` times the rate, where it has one.
    """
    named = [(f"parts.{name}", item) for name, item in objective.parts.named_parameters() if item.requires_grad]
    factor = float(getattr(objective, "rate_factor", 1.0))
    matrices = tuple((name, item) for name, item in named if item.ndim >= 2)
    vectors = tuple((name, item) for name, item in named if item.ndim < 2)
    groups = [
        ParamGroup("parts, matrices", matrices, factor, decay=True),
        ParamGroup("parts, vectors", vectors, factor, decay=False),
    ]
    return [group for group in groups if group.parameters]
