"""Many architectures through a worker that is killed and started again where one takes too long."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.breadth.probe import Found, class_name

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0


class Patience:
    """Asks a worker, and waits so long for each answer.

    Args:
        seconds: for one architecture.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._worker: subprocess.Popen[str] | None = None
        self._fresh = True

    def each(self, asked: Iterable[tuple[str, str]]) -> Iterator[Found]:
        """What became of every (kind, model type), in order."""
        with tempfile.TemporaryDirectory(prefix="tunesmith-breadth-cache-") as cache:
            try:
                for kind, model_type in asked:
                    yield self._ask(kind, model_type, cache)
            finally:
                self._end()

    def _ask(self, kind: str, model_type: str, cache: str) -> Found:
        worker = self._worker or self._start(cache)
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(f"{kind} {model_type}\n")
        worker.stdin.flush()
        patience = self.seconds + (START_SECONDS if self._fresh else 0)
        self._fresh = False
        ready, _, _ = select.select([worker.stdout], [], [], patience)
        line = worker.stdout.readline() if ready else ""
        if line:
            return Found(**json.loads(line))
        ended = "the process ended" if ready else f"no answer within {self.seconds:g} seconds"
        self._end()
        return Found(kind, model_type, class_name(kind, model_type), stage="time", reason=ended)

    def _start(self, cache: str) -> subprocess.Popen[str]:
        paths = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
        environment: dict[str, Any] = {
            **os.environ, "PYTHONPATH": paths, "TUNESMITH_CACHE": cache, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "tests.breadth.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment, cwd=REPOSITORY,
        )  # fmt: skip
        self._fresh = True
        return self._worker

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            with self._worker:  # waits, and closes its pipes
                pass
        self._worker = None
