"""What the kill loop attempts: a run of ours, and one of Hugging Face's Trainer on the same model. Loads all libraries at once."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import tunesmith
import tunesmith.reports.render
import tunesmith.workshop.train
from tests.reliability.crashes import leftovers
from tests.reliability.runs_alike import differences, events
from tests.reliability.stories import make_desk
from tunesmith.cli.main import run

LORA = {"type": "lora", "rank": 2, "dropout": 0.1}
FULL = {"type": "full"}


class OurRun:
    """``tunesmith train`` on a tiny model: a checkpoint every second step, saved in the background."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        self.run = folder / "runs" / "desk"
        self.values = values
        self.steps = int(values["training"]["max_steps"])

    def attempt(self) -> int:
        os.chdir(self.folder)
        os.environ["TUNESMITH_CACHE"] = str(self.folder / "cache")
        self._write_recipe()
        return run(["train", "recipe.json", "--run", "runs/desk"])

    def command(self) -> list[str]:
        self._write_recipe()
        return [
            "env", f"TUNESMITH_CACHE={self.folder / 'cache'}", f"PYTHONPATH={Path(tunesmith.__file__).parents[1]}",
            sys.executable, "-m", "tunesmith", "train", "recipe.json", "--run", "runs/desk",
        ]  # fmt: skip

    def done_share(self) -> float:
        return max(self._checkpoints(), default=0) / self.steps

    def phase(self, started: float) -> str:
        if not (self.run / "environment.json").exists():
            return "making the run"
        if (self.resumed_at() or 0.0) < started:
            return "start of an attempt"
        if not (self.run / "scorecards" / "base.json").exists():
            return "scoring the base"
        return "training" if max(self._checkpoints(), default=0) < self.steps else "the result"

    def safe_since(self) -> float | None:
        newest = max(self._checkpoints(), default=0)
        with suppress(OSError):
            return (self.run / "checkpoints" / f"{newest:08d}" / "manifest.json").stat().st_mtime
        return None

    def resumed_at(self) -> float | None:
        path = self.run / "events.jsonl"
        times = []
        for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
            with suppress(ValueError):
                event = json.loads(line)
                if event["kind"] in ("resumed", "started"):
                    times.append(event["time"])
        return max(times, default=None)

    def mend(self) -> None:
        """Nothing: no attempt may fail."""

    def _write_recipe(self) -> None:
        """What a person has written before anything starts; a child may have been killed at it."""
        (self.folder / "recipe.json").write_text(json.dumps(self.values), encoding="utf-8")

    def _checkpoints(self) -> list[int]:
        with suppress(OSError):
            return [int(item.name) for item in (self.run / "checkpoints").iterdir() if item.name.isdigit()]
        return []


class _AtWork(TrainerCallback):
    """Leaves a file when the first step of an attempt begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_told = False

    def on_step_begin(self, *_: object, **__: object) -> None:
        if not self.is_told:
            self.path.write_bytes(b"")
            self.is_told = True


class HuggingFaceRun:
    """``Trainer`` on the same tiny model, saving at every step, resumed as its manual says."""

    def __init__(self, folder: Path, model: Path, steps: int) -> None:
        self.folder = folder
        self.model = model
        self.steps = steps
        self.output = folder / "output"

    def attempt(self) -> int:
        torch.manual_seed(0)
        rows = torch.randint(3, 1000, (24, 16), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": row, "labels": row} for row in rows]
        arguments = TrainingArguments(
            output_dir=str(self.output), max_steps=self.steps, per_device_train_batch_size=4, save_steps=1,
            save_total_limit=2, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1000, seed=0,
            learning_rate=1e-3, dataloader_pin_memory=False,
        )  # fmt: skip
        model = LlamaForCausalLM.from_pretrained(self.model)
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[_AtWork(self.folder / "at_work")])
        last = get_last_checkpoint(str(self.output)) if self.output.is_dir() else None
        trainer.train(resume_from_checkpoint=True if last else None)
        trainer.save_model(str(self.folder / "result"))
        return 0

    def command(self) -> list[str]:
        code = "import sys; from pathlib import Path; from tests.reliability.kill_targets import HuggingFaceRun as R; "
        code += "sys.exit(R(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).attempt())"
        root = Path(__file__).resolve().parents[2]
        paths = os.pathsep.join([str(root), *sys.path])
        arguments = [str(self.folder), str(self.model), str(self.steps)]
        return ["env", f"PYTHONPATH={paths}", sys.executable, "-c", code, *arguments]

    def done_share(self) -> float:
        return max(self._checkpoints(), default=0) / self.steps

    def phase(self, started: float) -> str:
        return "start of an attempt" if (self.resumed_at() or 0.0) < started else "training"

    def safe_since(self) -> float | None:
        with suppress(OSError):
            return (self.output / f"checkpoint-{max(self._checkpoints(), default=0)}").stat().st_mtime
        return None

    def resumed_at(self) -> float | None:
        with suppress(OSError):
            return (self.folder / "at_work").stat().st_mtime
        return None

    def mend(self) -> None:
        """Remove the newest checkpoint by hand, as its user would have to."""
        shutil.rmtree(self.output / f"checkpoint-{max(self._checkpoints(), default=0)}", ignore_errors=True)

    def _checkpoints(self) -> list[int]:
        with suppress(OSError):
            names = [item.name for item in self.output.iterdir() if item.name.startswith("checkpoint-")]
            return [int(name.removeprefix("checkpoint-")) for name in names]
        return []


class OurCourse:
    """Runs of ours; see ``kill_loop.Course``."""

    def __init__(self, folder: Path, adapter: dict[str, Any], steps: int) -> None:
        self.folder = folder
        self.values = make_desk(
            folder, adapter=adapter, max_steps=steps, checkpoint_every=2, evaluate_every=max(2, steps // 20)
        )
        self.values["evaluation"]["tasks"] = [
            {"type": "loss", "data": "validation"},
            {"type": "exact_match", "data": "validation"},
        ]
        self.whole: OurRun = OurRun(folder / "whole", self.values)

    def next(self, number: int) -> OurRun:
        return OurRun(self.folder / f"broken-{number}", self.values)

    def unlike(self, target: OurRun) -> list[str]:
        found = differences(self.whole.run, target.run) + [f"left: {name}" for name in leftovers(target.folder)]
        return found + [f"set aside: {text}" for text in events(target.run, "checkpoint_set_aside")]


class HuggingFaceCourse:
    """Runs of Hugging Face's Trainer; see ``kill_loop.Course``."""

    def __init__(self, folder: Path, steps: int) -> None:
        make_desk(folder)
        self.folder = folder
        self.steps = steps
        self.whole: HuggingFaceRun = self._run("whole")

    def next(self, number: int) -> HuggingFaceRun:
        return self._run(f"broken-{number}")

    def unlike(self, target: HuggingFaceRun) -> list[str]:
        name = Path("result") / "model.safetensors"
        one, other = load_file(self.whole.folder / name), load_file(target.folder / name)
        return [key for key in one if not torch.equal(one[key], other[key])]

    def _run(self, name: str) -> HuggingFaceRun:
        return HuggingFaceRun(self.folder / name, self.folder / "tiny", self.steps)


def course(trainer: str, folder: Path, steps: int) -> Any:
    """The course of a trainer: ``lora``, ``full`` or ``hf``."""
    folder.mkdir(parents=True, exist_ok=True)
    return (
        HuggingFaceCourse(folder, steps)
        if trainer == "hf"
        else OurCourse(folder, FULL if trainer == "full" else LORA, steps)
    )
