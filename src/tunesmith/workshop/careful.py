"""Sinks that may fail without ending a run: the numbers are in metrics.jsonl all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.engine.checkpoint import Say
from tunesmith.workshop.sinks import Sink


class CarefulSink:
    """Passes numbers on until the sink fails; that is said once, and it is left alone from then on."""

    def __init__(self, sink: Sink, name: str, say: Say) -> None:
        self.sink = sink
        self.name = name
        self.say = say
        self._works = True

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the numbers of one step."""
        if not self._works:
            return
        try:
            self.sink.log(step, values)
        except Exception as error:
            self._fail(error, f"takes no numbers from step {step} on")

    def close(self) -> None:
        """Flush, if it still works."""
        if not self._works:
            return
        try:
            self.sink.close()
        except Exception as error:
            self._fail(error, "could not be closed")

    def _fail(self, error: Exception, what: str) -> None:
        self._works = False
        self.say(
            "sink_failed",
            f"the sink `{self.name}` {what} ({type(error).__name__}: {error}); metrics.jsonl has them all",
        )


def careful(sinks: Sequence[Sink], names: Sequence[str], say: Say) -> tuple[CarefulSink, ...]:
    """Wrap each sink. ``names`` are those of the recipe, in the same order."""
    return tuple(CarefulSink(sink, name, say) for sink, name in zip(sinks, names, strict=True))
