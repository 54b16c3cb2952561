"""Metrics beside metrics.jsonl: trackio, TensorBoard, Weights & Biases, MLflow, each an extra."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tunesmith.errors import UserError
from tunesmith.recipe.machine import LoggingSection

_MODULES = {"trackio": "trackio", "tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_KEY = "logging.sinks"


class Sink(Protocol):
    """Takes numbers of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the numbers of one step."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


class _DictSink:
    """trackio and Weights & Biases share an interface: init, log, finish."""

    def __init__(self, module: Any, project: str, name: str, config: dict[str, Any], **more: Any) -> None:
        self.run = module.init(project=project, name=name, config=config, **more)
        self.module = module

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the numbers of one step."""
        self.module.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and finish."""
        self.module.finish()


class _TensorBoard:
    def __init__(self, module: Any, folder: Path) -> None:
        self.writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the numbers of one step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self.writer.close()


class _Mlflow:
    def __init__(self, module: Any, project: str, name: str, folder: Path) -> None:
        self.module = module
        # The skinny package has no database store; a folder of files is read by every mlflow.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        module.set_tracking_uri((folder / "mlruns").resolve().as_uri())
        module.set_experiment(project)
        module.start_run(run_name=name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the numbers of one step."""
        self.module.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self.module.end_run()


def check_sinks(section: LoggingSection) -> None:
    """Refuse a sink whose package is not there, without loading those that are.

    Raises:
        UserError: the package of a sink is not installed; names the extra.
    """
    for sink in section.sinks:
        try:
            found = find_spec(sink)
        except ValueError:  # a module that was put together by hand has no spec
            continue
        if found is None:
            raise _missing(sink)


def open_sinks(section: LoggingSection, name: str, folder: Path, config: dict[str, Any]) -> tuple[Sink, ...]:
    """Open the sinks a recipe names; all of them write locally unless the tool itself is configured otherwise.

    Raises:
        UserError: the package of a sink is not installed; names the extra.
    """
    return tuple(_open(sink, section.project, name, folder, config) for sink in section.sinks)


def _open(sink: str, project: str, name: str, folder: Path, config: dict[str, Any]) -> Sink:
    try:
        module = import_module(_MODULES[sink])
    except ImportError as error:
        raise _missing(sink) from error
    if sink == "tensorboard":
        return _TensorBoard(module, folder)
    if sink == "mlflow":
        return _Mlflow(module, project, name, folder)
    more = {"mode": "offline", "dir": str(folder)} if sink == "wandb" else {}
    return _DictSink(module, project, name, config, **more)


def _missing(sink: str) -> UserError:
    return UserError(
        f"the sink `{sink}` is not installed",
        where=_KEY,
        hint=f'pip install "tunesmith[{sink}]", or take it out of {_KEY}',
    )
