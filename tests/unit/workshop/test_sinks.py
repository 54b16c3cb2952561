"""Sinks get the numbers; a missing package names its extra."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import UserError
from tunesmith.recipe.machine import LoggingSection
from tunesmith.workshop import sinks as owner
from tunesmith.workshop.careful import careful
from tunesmith.workshop.sinks import open_sinks


class FakeModule(types.ModuleType):
    """Stands for trackio, wandb, mlflow or torch's tensorboard."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []

    def _note(self, what: str, *values: Any, **more: Any) -> FakeModule:
        self.calls.append((what, (values, more)))
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *values, **more: self._note(name, *values, **more)


@pytest.mark.parametrize(
    ("sink", "module", "logs"),
    [
        ("trackio", "trackio", "log"),
        ("wandb", "wandb", "log"),
        ("mlflow", "mlflow", "log_metrics"),
        ("tensorboard", "torch.utils.tensorboard", "add_scalar"),
    ],
)
def test_a_sink_gets_each_step_and_is_closed(
    sink: Any, module: str, logs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeModule(module)
    monkeypatch.setitem(sys.modules, module, fake)
    (opened,) = open_sinks(LoggingSection(sinks=[sink]), "run", tmp_path, {"seed": 0})
    opened.log(3, {"loss": 1.5})
    opened.close()
    said = [values for what, values in fake.calls if what == logs]
    assert len(said) == 1
    assert "1.5" in repr(said[0])
    assert "3" in repr(said[0])
    assert fake.calls[-1][0] in ("finish", "close", "end_run")


def test_weights_and_biases_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeModule("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    open_sinks(LoggingSection(sinks=["wandb"]), "run", tmp_path, {})
    assert fake.calls[0][1][1]["mode"] == "offline"


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError) as raised:
        open_sinks(LoggingSection(sinks=["trackio"]), "run", tmp_path, {})
    assert 'pip install "tunesmith[trackio]"' in raised.value.hint
    assert raised.value.where == "logging.sinks"


def test_a_sink_that_fails_is_said_once_and_costs_nothing_else() -> None:
    class Broken:
        logged = 0

        def log(self, step: int, values: Any) -> None:
            self.logged += 1
            if step >= 2:
                raise ConnectionError("quota")

        def close(self) -> None:
            raise OSError("gone")

    said: list[str] = []
    broken, closing = Broken(), Broken()
    sinks = careful([broken, closing], ["trackio", "mlflow"], lambda kind, text: said.append(f"{kind}: {text}"))
    for step in (1, 2, 3):
        sinks[0].log(step, {"loss": 1.0})
    for sink in sinks:
        sink.close()
    assert broken.logged == 2
    assert said == [
        "sink_failed: the sink `trackio` takes no numbers from step 2 on (ConnectionError: quota); metrics.jsonl has them all",
        "sink_failed: the sink `mlflow` could not be closed (OSError: gone); metrics.jsonl has them all",
    ]


def test_a_missing_package_is_found_without_loading_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = {"wandb": object(), "trackio": None}
    monkeypatch.setattr(owner, "find_spec", lambda name: specs[name])
    monkeypatch.setattr(owner, "import_module", lambda name: pytest.fail(f"{name} was loaded"))
    owner.check_sinks(LoggingSection(sinks=["wandb"]))
    with pytest.raises(UserError, match="`trackio` is not installed"):
        owner.check_sinks(LoggingSection(sinks=["wandb", "trackio"]))
