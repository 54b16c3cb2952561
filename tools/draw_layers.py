"""Draw which layers train: ``python tools/draw_layers.py`` writes docs/pictures/*.svg, ``--check`` says whether they are fresh.

The pictures come from the code that trains: choices of layers from the recipe's sections, schedules from their timetables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from tunesmith.adapters.gralora import GraloraWeights
from tunesmith.engine.scores import lowest
from tunesmith.engine.windows import Timetable, Window
from tunesmith.planning.freezing import timetable
from tunesmith.planning.scoring import boundaries
from tunesmith.planning.settings import Settings
from tunesmith.recipe.adapters import PartialSection
from tunesmith.recipe.codec import parse
from tunesmith.recipe.low_rank import AfloraSection

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
LAYERS = 8
STEPS = 100
_BOX, _GAP, _WIDE = 15, 3, 84
_TOP = 44
_STYLE = """
  svg { font: 12px system-ui, sans-serif; background: #fcfcfa }
  text { fill: #1c1d1f } .soft { fill: #5f6267; font-size: 10px }
  .trained { fill: #1f5fbf } .frozen { fill: #d9d7d0 } .flow { stroke: #b9541a; stroke-width: 2; fill: none }
  .pale { fill: #c9d8ef } .in { fill: #fff; font-size: 10px } .out { fill: #5f6267; font-size: 10px }
"""


@dataclass(frozen=True)
class Stack:
    """A model as boxes from the embeddings up: which depths train, and whether only the norms of each layer do."""

    title: str
    trained: frozenset[int]
    only_norms: bool = False


def _chosen(section: PartialSection) -> frozenset[int]:
    return frozenset(layer + 1 for layer in section.chosen_layers(LAYERS))


STACKS = (
    Stack("type: full", frozenset(range(LAYERS + 2))),
    Stack("last_layers: 2", _chosen(PartialSection(last_layers=2))),
    Stack("first_layers: 2", _chosen(PartialSection(first_layers=2))),
    Stack("every_nth: 3", _chosen(PartialSection(every_nth=3))),
    Stack("norms: true", frozenset(range(1, LAYERS + 2)), only_norms=True),
    Stack("embeddings: true", frozenset({0})),
)


def _name(depth: int) -> str:
    return {0: "embeddings", LAYERS + 1: "norm, head"}.get(depth, f"layer {depth - 1}")


def _level(depth: int) -> int:
    """Upper edge of the box of a depth."""
    return _TOP + (LAYERS + 1 - depth) * (_BOX + _GAP)


def draw_stack(stack: Stack, left: int) -> list[str]:
    """Boxes, and a line for the way of the gradient, which ends at the lowest trained depth."""
    parts = [f'<text x="{left}" y="{_TOP - 24}">{stack.title}</text>']
    for depth in range(LAYERS + 2):
        trains, top = depth in stack.trained, _level(depth)
        whole = trains and not stack.only_norms
        parts.append(_rectangle(left, top, _WIDE, _BOX, "trained" if whole else "frozen"))
        if trains and stack.only_norms:
            parts += [
                _rectangle(left + shift, top, 4, _BOX, "trained") for shift in ((4, 74) if depth <= LAYERS else (4,))
            ]
        parts.append(f'<text class="{"in" if whole else "out"}" x="{left + 12}" y="{top + 11}">{_name(depth)}</text>')
    end, x = _level(min(stack.trained)) + _BOX // 2, left + _WIDE + 7
    parts.append(f'<path class="flow" d="M{x} {_TOP - 6}V{end}m-3 -5l3 5l3 -5"/>')
    return parts


def draw_table(title: str, table: Timetable, left: int) -> list[str]:
    """Depths over the steps of a run, coloured by their share of the largest rate; grey where frozen."""
    wide = 190
    parts = [f'<text x="{left}" y="{_TOP - 24}">{title}</text>']
    for depth in range(LAYERS + 2):
        shares = [table.share(depth, step) for step in range(STEPS)]
        top, most = _level(depth), max(*shares, 1e-9)
        parts.append(_rectangle(left, top, wide, _BOX, "frozen"))
        shades = [round(0.25 + 0.75 * share / most, 1) if share > 0 else 0.0 for share in shares]
        start = 0
        for shade, same in groupby(shades):
            end = start + len(list(same))
            if shade:
                x = left + wide * start / STEPS
                parts.append(_rectangle(x, top, wide * (end - start) / STEPS, _BOX, "trained", f' opacity="{shade:g}"'))
            start = end
    bottom = _level(0) + _BOX
    parts.append(f'<text class="soft" x="{left}" y="{bottom + 14}">first step</text>')
    parts.append(f'<text class="soft" x="{left + wide}" y="{bottom + 14}" text-anchor="end">last step</text>')
    return parts


def _rectangle(x: float, y: float, width: float, height: float, kind: str, more: str = "") -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{more}/>'


def _page(parts: Sequence[str], width: int, height: int, words: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    return "\n".join([head, f"<title>{words}</title>", f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def partial() -> str:
    """The scopes of ``adapter: {type: partial}`` beside full."""
    step = _WIDE + 24
    parts = [part for place, stack in enumerate(STACKS) for part in draw_stack(stack, 12 + place * step)]
    parts.append(
        f'<text class="soft" x="12" y="{_level(0) + _BOX + 16}">blue: trained; grey: frozen; the arrow is the way of the gradient</text>'
    )
    return _page(parts, 12 + len(STACKS) * step, _level(0) + _BOX + 28, "Which parameters train, by scope")


SETTINGS = Settings(
    learning_rate=1.0, total_steps=STEPS, steps_per_epoch=STEPS // 10, epochs=10.0, warmup_steps=0, batch_size=1,
    micro_batch_size=None, atom_tokens=1, precision="fp32", weights_dtype="fp32", device="cpu", threads=1,
    deterministic=True, recompute=False, checkpoint_every=1, keep_checkpoints=2, evaluate_every=1, log_every=1,
    context=1, overlong="error", seed=0, clip=None, weight_decay=0.0, schedule="constant", decay_share=0.2,
    optimiser="adamw", betas=(0.9, 0.999), momentum=0.9,
)  # fmt: skip


def _table(freezing: dict[str, object]) -> Timetable:
    values = {"name": "drawn", "model": "m", "data": {"train": ["d"]}, "training": {"freezing": freezing}}
    found = timetable(parse(values), SETTINGS, range(LAYERS + 2), LAYERS)
    assert found is not None
    return found


def freezing() -> str:
    """Schedules over the steps of a run; what autofreeze does depends on the data, so that its stairs are an example."""
    stairs = {depth: Window(end=end) for depth, end in enumerate((20, 20, 20, 40, 40, 70, 90), 0)}
    tables = (
        ("unfreeze_gradually", _table({"type": "unfreeze_gradually", "warmup": 4})),
        ("freezeout", _table({"type": "freezeout"})),
        ("autofreeze (for example)", Timetable(stairs, num_layers=LAYERS)),
    )
    parts = [
        f'<text class="soft" x="68" y="{_level(depth) + 11}" text-anchor="end">{_name(depth)}</text>'
        for depth in range(LAYERS + 2)
    ]
    parts += [
        part for place, (title, table) in enumerate(tables) for part in draw_table(title, table, 76 + place * 206)
    ]
    return _page(parts, 700, _level(0) + _BOX + 24, "Which layers train over the steps of a run, by schedule")


def _adapted(left: int, trained: frozenset[str], title: str) -> list[str]:
    """A stack whose layers carry AFLoRA: A, B, d and b of attention, then of the feed-forward."""
    parts = [f'<text x="{left}" y="{_TOP - 24}">{title}</text>']
    for depth in range(LAYERS + 2):
        top = _level(depth)
        if not 1 <= depth <= LAYERS:
            parts.append(_rectangle(left, top, 142, _BOX, "frozen"))
            continue
        for place, block in enumerate(("attention", "feed-forward")):
            x = left + 72 * place
            parts.append(_rectangle(x, top, 26, _BOX, "frozen"))
            parts += [
                _rectangle(
                    x + 29 + 16 * at, top, 13, _BOX, "trained" if f"{block} {depth} {matrix}" in trained else "frozen"
                )
                for at, matrix in enumerate("AB")
            ]
            parts += [_rectangle(x + 61 + 5 * at, top, 3, _BOX, "trained") for at in range(2)]
    return parts


def aflora() -> str:
    """AFLoRA at its first step and behind some of its boundaries; which matrix goes first depends on the data, so it is an example."""
    section = AfloraSection(window=1)
    matrices = [f"feed-forward {depth} {matrix}" for depth in range(1, LAYERS + 1) for matrix in "AB"]
    scores = {name: ((7 * place) % 16 + place) / 32 for place, name in enumerate(matrices)}
    stacks = [("first step", frozenset(matrices))]
    for step, share in boundaries(section, SETTINGS)[0::2] + boundaries(section, SETTINGS)[-1:]:
        frozen = lowest(scores, round(share * len(matrices)))
        stacks.append((f"from step {step + 1} of {STEPS}", frozenset(matrices) - frozenset(frozen)))
    names = [
        f'<text class="soft" x="68" y="{_level(depth) + 11}" text-anchor="end">{_name(depth)}</text>'
        for depth in range(LAYERS + 2)
    ]
    last = len(stacks) - 1
    chosen = [stacks[0], stacks[1], stacks[2], stacks[last]]
    parts = names + [part for at, (title, on) in enumerate(chosen) for part in _adapted(76 + at * 160, on, title)]
    parts.append(
        f'<text class="soft" x="12" y="{_level(0) + _BOX + 16}">each layer: weights of attention, its A, B, d, b, then the same of the '
        "feed-forward; blue: trained; grey: frozen</text>"
    )
    return _page(parts, 76 + 4 * 160, _level(0) + _BOX + 28, "What AFLoRA trains over the steps of a run")


_SIDE = 144


def _blocks(left: int, blocks: int, rank: int) -> list[str]:
    """The update of one weight, rows down and inputs across: what the gradient of one loud input reaches is full, the rest pale."""
    width = _SIDE // blocks
    title = f"LoRA, rank {rank}" if blocks == 1 else f"{blocks} × {blocks} blocks of rank {rank // blocks}"
    parts = [f'<text x="{left}" y="{_TOP - 24}">{title}</text>']
    weights = GraloraWeights(
        torch.ones(blocks, _SIDE // blocks, rank), torch.ones(blocks, rank, _SIDE // blocks), 1.0, 0.0
    )
    x = torch.zeros(1, _SIDE)
    x[0, _LOUD] = 1.0
    weights(x, torch.zeros(1, _SIDE), torch.zeros(1, _SIDE), None).sum().backward()
    assert weights.A.grad is not None
    reached = [bool(weights.A.grad[column].any()) for column in range(blocks)]
    for row in range(blocks):
        for column in range(blocks):
            box = (left + column * width, _TOP + row * width, width - 2, width - 2)
            parts.append(_rectangle(*box, "trained" if reached[column] else "pale"))
    at = left + _LOUD
    parts.append(f'<path class="flow" d="M{at} {_TOP - 16}v12m-3 -5l3 5l3 -5"/>')
    directions = min(_SIDE, blocks * rank)
    parts.append(f'<text class="soft" x="{left}" y="{_TOP + _SIDE + 14}">{directions} independent directions</text>')
    return parts


_LOUD = 20
"""The input whose values are outliers."""


def gralora() -> str:
    """The same number of parameters cut into one, four and sixteen blocks, and what one loud input reaches of each."""
    parts = [part for at, blocks in enumerate((1, 2, 4)) for part in _blocks(12 + at * 200, blocks, 32)]
    parts.append(
        f'<text class="soft" x="12" y="{_TOP + _SIDE + 34}">one weight: inputs across, outputs down; arrow: an input with outliers; dark: blocks '
        "whose gradient it enters</text>"
    )
    return _page(parts, 12 + 3 * 200, _TOP + _SIDE + 46, "What one loud input reaches in LoRA and in GraLoRA")


PICTURES: dict[str, Callable[[], str]] = {
    "partial.svg": partial,
    "freezing.svg": freezing,
    "aflora.svg": aflora,
    "gralora.svg": gralora,
}


def main() -> int:
    """Write the pictures, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a picture is not what would be drawn"
    )
    check, stale = parser.parse_args().check, []
    for name, draw in PICTURES.items():
        path, text = FOLDER / name, draw()
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(name)
        elif not check:
            path.write_text(text, encoding="utf-8")
            print(f"docs/pictures/{name}: written")
    if stale:
        print(f"{', '.join(stale)}: not what the code draws\nhint: run `python tools/draw_layers.py`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
