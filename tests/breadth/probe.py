"""One architecture through the product: plan, masks, two steps of training, export, and the export in transformers.

The numbers are differences of logits over the largest logit, in fp32: what the exported folder gives in transformers for each document
alone, against what the trained run gives for it alone (``reload``) and beside others in one pack (``packed``).
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.breadth.tiny_configs import KINDS, NoTinyModel, first
from tests.breadth.tiny_folder import takes_cache, write_rows, write_tiny
from tunesmith.data.loader import make_batch
from tunesmith.errors import TunesmithError
from tunesmith.recipe.codec import parse
from tunesmith.registry.run_folder import RunFolder
from tunesmith.types import Sampling
from tunesmith.workshop.export import export
from tunesmith.workshop.opening import open_machine
from tunesmith.workshop.planning import plan_recipe
from tunesmith.workshop.train import train

TOLERANCE = 1e-4
LENGTHS = (7, 19, 4, 11)
PROMPT = 3
OBJECTIVES: dict[str, dict[str, Any]] = {
    "causal": {"type": "sft"}, "encoder": {"type": "mlm"}, "encoder-decoder": {"type": "sft", "loss_on": "last_response"},
}  # fmt: skip
STAGES = ("build", "plan", "train", "export", "reload", "packed", "answers")


@dataclass
class Found:
    """What became of one architecture. ``stage`` is the one that failed, empty where all passed."""

    kind: str
    model_type: str
    name: str
    stage: str = ""
    reason: str = ""
    adapter: str = "lora"
    packing: str = ""
    reload: float | None = None
    packed: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every stage passed."""
        return not self.stage

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def class_name(kind: str, model_type: str) -> str:
    """The class of transformers that a model type has for a kind."""
    return KINDS[kind][0][model_type]


def probe(kind: str, model_type: str) -> Found:
    """Run every stage in a folder of its own, up to the first that fails."""
    found = Found(kind, model_type, class_name(kind, model_type))
    with tempfile.TemporaryDirectory(prefix="tunesmith-breadth-") as name:
        try:
            _probe(Path(name), found)
        except NoTinyModel as error:
            found.reason = str(error)
        except TunesmithError as error:
            found.reason = error.what
        except AssertionError as error:
            found.reason = str(error)
        except Exception as error:
            found.reason = f"unexpected {first(error)}"
    return found


def _probe(folder: Path, found: Found) -> None:
    found.stage = "build"
    write_tiny(folder / "base", found.kind, found.model_type)
    write_rows(folder / "rows.jsonl", found.kind)
    found.stage = "plan"
    plan = plan_recipe(parse(_recipe(found.kind, found.adapter)).placed(folder))
    found.notes = list(plan.notes)
    found.stage = "train"
    run = train(plan, folder / "run")
    assert run.steps == 2, f"it ended after {run.steps} steps"
    trained = [line for line in RunFolder.open(run.folder).metrics() if "grad_norm" in line]
    assert all(0 < line["grad_norm"] < float("inf") for line in trained), "nothing reached the trained parameters"
    found.stage = "plan"
    checkpoint = sorted(RunFolder.open(run.folder).checkpoints_path.iterdir())[-1] / "trained.safetensors"
    count = sum(tensor.numel() for tensor in load_file(checkpoint).values())
    assert count == plan.parameters.trainable, f"the plan counts {plan.parameters.trainable:,} to train, {count:,} did"
    found.stage = "export"
    export(run.folder, folder / "out", merge=True, dtype="float32")
    found.stage = "reload"
    machine = open_machine(str(run.folder), device="cpu").machine
    model = machine.model
    found.packing = model.packing
    theirs = KINDS[found.kind][1].from_pretrained(folder / "out", dtype=torch.float32).eval()
    documents = _documents(found.kind)
    alone = [_theirs(theirs, document, found.kind) for document in documents]
    found.reload = _gap([_ours(model, [document], found.kind)[0] for document in documents], alone)
    assert found.reload <= TOLERANCE, f"the export's logits differ by {found.reload:.2g}"
    found.stage = "packed"
    found.packed = _gap(_ours(model, documents, found.kind), alone)
    assert found.packed <= TOLERANCE, f"logits beside other documents differ by {found.packed:.2g}"
    if found.kind != "encoder":
        found.stage = "answers"
        _answers(machine, theirs, documents, found.kind)
    found.stage = ""


def _answers(machine: Any, theirs: Any, documents: list[np.ndarray], kind: str) -> None:
    """Greedy answers to prompts of unlike lengths, and candidates ranked together, are those of the model itself."""
    prompts = [document.tolist() for document in documents]
    answers = machine.generator.sample(prompts, Sampling(max_new_tokens=4))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for token in answer.ids:
            logits_V = _theirs(theirs, np.asarray(ids), kind, len(prompt))[-1]
            best = logits_V.max()
            assert float(best - logits_V[token]) <= TOLERANCE * float(logits_V.abs().max()), (
                "an answer is not the likeliest"
            )
            ids.append(token)
    candidates = [[5, 6], [5, 7, 8], [9]]
    ranked = machine.scorer.rank(prompts, candidates)
    for prompt, scores in zip(prompts, ranked, strict=True):
        alone = [item.total for item in machine.scorer.score([prompt] * len(candidates), candidates)]
        gap = max(abs(one - other) for one, other in zip(scores, alone, strict=True))
        assert gap <= 1e-3, f"a candidate beside others scores {gap:.2g} nats otherwise than alone"


def _recipe(kind: str, adapter: str) -> dict[str, Any]:
    return {
        "name": "breadth", "model": "base", "data": {"train": "rows.jsonl", "validation": 0.1, "test": 0.1},
        "objective": OBJECTIVES[kind],
        "adapter": {"type": "lora", "rank": 2} if adapter == "lora" else {"type": adapter},
        "training": {"max_steps": 2, "batch_size": 6, "learning_rate": 1e-2, "precision": "fp32", "samples": 0},
        "evaluation": {"tasks": [{"type": "loss"}], "preserve": []},
        "machine": {"device": "cpu", "threads": 1},
    }  # fmt: skip


def _documents(kind: str) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(4, 260, length).astype(np.uint32) for length in LENGTHS]


@torch.inference_mode()
def _ours(model: Any, documents: list[np.ndarray], kind: str) -> list[Tensor]:
    """Logits of each document in one batch; behind a prompt of three tokens where an encoder reads that."""
    prompt = PROMPT if kind == "encoder-decoder" else 1
    batch = make_batch([(ids, np.arange(len(ids)) >= prompt) for ids in documents], range(len(documents)))
    return [part[prompt - 1 :] for part in model.logits(batch).split([len(item) for item in documents])]


@torch.inference_mode()
def _theirs(model: Any, document: np.ndarray, kind: str, prompt: int = PROMPT) -> Tensor:
    """The same of one document in transformers alone."""
    ids = torch.from_numpy(document.astype(np.int64))[None]
    given: dict[str, Any] = {"use_cache": False} if takes_cache(model) else {}
    if kind == "encoder-decoder":
        start = model.config.decoder_start_token_id
        given["decoder_input_ids"] = torch.cat([torch.tensor([[start]]), ids[:, prompt:]], dim=1)
        ids = ids[:, :prompt]
    return model(input_ids=ids, **given).logits[0].float()  # type: ignore[no-any-return]


@torch.inference_mode()
def _gap(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(ours, theirs, strict=True))
