"""Checkpoints of a stranger: changed, and sealed again, so that only what they hold can give them away."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Forgery = Callable[[Path], None]
STATE, TRAINED, OPTIMISER = "state.json", "trained.safetensors", "optimiser.safetensors"


def seal(folder: Path) -> None:
    """Make the manifest fit the files: its sha256 needs no key."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        payload = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    path.write_text(json.dumps(manifest))


def text(payload: str) -> Forgery:
    """Another text in place of the state."""
    return lambda folder: (folder / STATE).write_text(payload) and None


def state(**parts: Any) -> Forgery:
    """Other values of the state; ``a__b`` is ``b`` within ``a``."""

    def act(folder: Path) -> None:
        values = json.loads((folder / STATE).read_text())
        for path, value in parts.items():
            *above, last = path.split("__")
            place = values
            for key in above:
                place = place[int(key) if isinstance(place, list) else key]
            place[int(last) if isinstance(place, list) else last] = value
        (folder / STATE).write_text(json.dumps(values))

    return act


def tensors(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Forgery:
    """Other tensors of a file."""

    def act(folder: Path) -> None:
        changed = {key: value.contiguous() for key, value in change(load_file(folder / name)).items()}
        save_file(changed, folder / f"{name}.new")
        shutil.move(folder / f"{name}.new", folder / name)

    return act


def first(ending: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Change the first tensor of a name that ends so."""

    def act(found: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name in sorted(found) if name.endswith(ending))
        return found | {name: change(found[name])}

    return act


def without(ending: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Leave out the first tensor of a name that ends so."""

    def act(found: dict[str, Tensor]) -> dict[str, Tensor]:
        gone = next(name for name in sorted(found) if name.endswith(ending))
        return {name: value for name, value in found.items() if name != gone}

    return act


FORGERIES: dict[str, Forgery] = {
    "state deep": text("[" * 200_000),
    "state deep and whole": text('{"a":' * 2000 + "1" + "}" * 2000),
    "state list": text("[]"),
    "state empty": text("{}"),
    "state null": text("null"),
    "state huge": text('{"a": [' + "[]," * 2_000_000 + "[]]}"),
    "state of no numbers": text('{"step": NaN}'),
    "step text": state(step="x"),
    "step beyond": state(step=10**6, stream__next_step=10**6),
    "step of another": state(step=4),
    "step negative": state(step=-5),
    "step true": state(step=True),
    "next step of another": state(stream__next_step=2),
    "next step negative": state(stream__next_step=-1),
    "updates beyond": state(updates=99),
    "tokens text": state(tokens="1"),
    "tokens enormous": state(tokens=1 << 62),
    "seconds list": state(seconds=[]),
    "loss text": state(loss="0"),
    "evaluated beyond": state(evaluated_step=10**9),
    "stopped list": state(stopped=["x"]),
    "faulty layers list": state(faulty_layers=[]),
    "a part more": state(evil={}),
    "no hooks": state(hooks=[]),
    "hooks of another": state(hooks=[{"best_step": 3}]),
    "best step beyond": state(hooks=[{"best_step": 10**9}]),
    "hooks none": state(hooks=None),
    "scale zero": state(precision__scale=0),
    "scale enormous": state(precision__scale=1e200),
    "clipping none": state(judge__clipping=None),
    "clipping of one": state(judge__clipping={"state": [1.0]}),
    "clipping negative": state(judge__clipping={"state": [30.0, 1.0, -1.0]}),
    "clipping off": state(judge__clipping={}),
    "no controls": state(judge__controls=[]),
    "a ragged window": state(judge__controls__0__window=[[1.0], [1.0, 2.0]]),
    "a window of one": state(judge__controls__0__window=[[1.0], [1.0]]),
    "a window of text": state(judge__controls__0__window="x"),
    "taken text": state(judge__controls__0__taken="1"),
    "left out texts": state(recovery__left_out=["1"]),
    "left out number": state(recovery__left_out=1),
    "rollbacks negative": state(recovery__rollbacks=-(10**6)),
    "level none": state(recovery__level=None),
    "level of others": state(recovery__level__recent=[1.0] * 10),
    "level of text": state(recovery__level__first=["a"]),
    "frozen text": state(pace__frozen=["0"]),
    "frozen that is not there": state(pace__frozen=[0, 1, 2, 3]),
    "lowest beyond": state(pace__lowest=10**6),
    "an interval without a rule": state(pace__interval=0),
    "norms of nothing": state(pace__norms=[[0, 1.0]]),
    "norms of one": state(pace__norms=[[0]]),
    "tokens of a pass zero": state(relief__most_tokens=0),
    "recomputes text": state(relief__recomputes="yes"),
    "trained another shape": tensors(TRAINED, first("", lambda value: torch.zeros(3, 3))),
    "trained transposed": tensors(TRAINED, first("", lambda value: value.T)),
    "trained missing": tensors(TRAINED, without("")),
    "trained more": tensors(TRAINED, lambda found: found | {"adapter/evil": torch.zeros(2)}),
    "trained another part": tensors(TRAINED, lambda found: found | {"zzz/evil": torch.zeros(2)}),
    "trained without a part": tensors(TRAINED, lambda found: found | {"evil": torch.zeros(2)}),
    "trained NaN": tensors(TRAINED, first("", lambda value: torch.full_like(value, float("nan")))),
    "trained in half": tensors(TRAINED, lambda found: {name: value.half() for name, value in found.items()}),
    "trained of nothing": tensors(TRAINED, lambda found: {}),
    "moments short": tensors(OPTIMISER, first("exp_avg", lambda value: torch.zeros(7))),
    "moments empty": tensors(OPTIMISER, first("exp_avg", lambda value: torch.zeros(0))),
    "moments long": tensors(OPTIMISER, first("exp_avg_sq", lambda value: torch.zeros(10_000))),
    "moments transposed": tensors(OPTIMISER, first("exp_avg", lambda value: value.T)),
    "moments in half": tensors(OPTIMISER, first("exp_avg", lambda value: value.half())),
    "moments of bytes": tensors(OPTIMISER, first("exp_avg", lambda value: value.to(torch.int8))),
    "moments of nothing": tensors(OPTIMISER, lambda found: {}),
    "moments missing": tensors(OPTIMISER, without("exp_avg_sq")),
    "steps missing": tensors(OPTIMISER, without("/step")),
    "moments NaN": tensors(OPTIMISER, first("exp_avg", lambda value: torch.full_like(value, float("nan")))),
    "moments infinite": tensors(OPTIMISER, first("exp_avg_sq", lambda value: torch.full_like(value, float("inf")))),
    "squares negative": tensors(OPTIMISER, first("exp_avg_sq", lambda value: -value - 1)),
    "steps negative": tensors(OPTIMISER, first("/step", lambda value: value - 100)),
    "steps many": tensors(OPTIMISER, first("/step", lambda value: value.expand(9).clone())),
    "a key of another": tensors(OPTIMISER, lambda found: found | {"evil/exp_avg": torch.zeros(2)}),
    "a key that is none": tensors(
        OPTIMISER, lambda found: found | {f"{sorted(found)[0].rpartition('/')[0]}/evil": torch.zeros(2)}
    ),
    "a key of SGD": tensors(
        OPTIMISER, lambda found: found | {f"{sorted(found)[0].rpartition('/')[0]}/momentum_buffer": torch.zeros(2)}
    ),
    "the parameter's own name": tensors(OPTIMISER, lambda found: found | {"evil": torch.zeros(2)}),
}
"""What a checkpoint of step 8 of 12 is made to hold; none of it may be used."""
