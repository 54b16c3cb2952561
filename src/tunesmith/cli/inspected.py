"""An inspection of adapters as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.cli.terminal import table

Json = Mapping[str, Any]
_LAYERS_SHOWN = 32
_ROWS_SHOWN = 12
_LEAST_SHARE = 0.005


def inspection_lines(result: Json) -> list[str]:
    """Each adapter, then each pair of them."""
    lines = [f"base: {result['base']['name']} ({result['base']['sha256'][:12]})"]
    lines += [f"note: {note}" for note in result["notes"]]
    for adapter in result["adapters"]:
        lines += ["", *_adapter(adapter)]
    for pair in result["overlaps"]:
        lines += ["", *_pair(pair)]
    return lines


def _adapter(adapter: Json) -> Iterator[str]:
    relative = adapter["relative"]
    size = "" if relative is None else f", all updates together {_percent(relative)} of the weights they change"
    yield f"{adapter['name']}: {adapter['method']}, {adapter['numbers']:,} numbers{size}"
    yield from (f"note: {note}" for note in adapter["notes"])
    if adapter["layers"]:
        yield from _layers(adapter["layers"])
    yield from _beside(adapter)
    yield from _virtual(adapter["virtual"])
    for found in adapter["movements"]:
        yield from _movement(found)


def _layers(layers: Sequence[Json]) -> list[str]:
    shown = layers
    if len(layers) > _LAYERS_SHOWN:
        largest = sorted(layers, key=lambda item: -(item["relative"] or item["norm"]))[:_LAYERS_SHOWN]
        shown = [item for item in layers if item in largest]
    rows = [
        (
            item["name"],
            "" if item["rank"] is None else str(item["rank"]),
            f"{item['norm']:.3g}" if item["relative"] is None else _percent(item["relative"]),
            " ".join(f"{value:.3g}" for value in item["values"][:3]),
            f"{item['effective_rank']:.1f}",
            " ".join(f"{100 * item['energy'][k]:.0f}" for k in ("1", "4", "8")),
        )
        for item in shown
    ]
    size = "size" if any(item["relative"] is None for item in layers) else "of weight"
    head = ("layer", "rank", size, "largest singular values", "eff. rank", "% in first 1, 4, 8")
    lines = table(rows, head=head, right=(1, 2, 4))
    if len(shown) < len(layers):
        lines.append(f"  the {len(shown)} largest of {len(layers)} layers; --json has all")
    return lines


def _beside(adapter: Json) -> Iterator[str]:
    rows = [(item["name"], _percent(item["relative"])) for item in adapter["beside"]]
    rows += [(f"{item['matrix']}, token {item['text']!r}", _percent(item["relative"])) for item in adapter["rows"]]
    if rows:
        yield from table(rows[:_ROWS_SHOWN], head=("trained beside", "change, of its size"), right=(1,))
    if len(rows) > _ROWS_SHOWN:
        yield f"  the first {_ROWS_SHOWN} of {len(rows)}; --json has all"


def _virtual(found: Sequence[Json]) -> Iterator[str]:
    rows = []
    for item in found[:_ROWS_SHOWN]:
        if "nearest" in item:
            near = ", ".join(f"{other['token']!r} {other['cosine']:.2f}" for other in item["nearest"])
            rows.append((f"token {item['place'] + 1}", f"{item['relative']:.2f} of a usual one", f"most like {near}"))
        else:
            rows.append((f"layer {item['layer']}", f"keys {item['keys']:.3g}", f"values {item['values']:.3g}"))
    if rows:
        yield from table(rows, head=("in front", "size", ""))
    if len(found) > _ROWS_SHOWN:
        yield f"  the first {_ROWS_SHOWN} of {len(found)}; --json has all"


def _movement(found: Json) -> Iterator[str]:
    yield (
        f"predictions on {found['on']} ({found['positions']:,} positions of {found['texts']} texts): KL from the base "
        f"{found['mean_kl_nats']:.3g} nats on average, {found['median_kl_nats']:.3g} in the median, "
        f"{found['kl_nats_90']:.3g} above in a tenth; the same first choice at {_percent(found['same_first'])}"
    )
    rows = [
        (
            f"{item['kl_nats']:.2f}",
            f"…{item['context']!r}",
            repr(item["follows"]),
            _likeliest(item["before"]),
            _likeliest(item["after"]),
        )
        for item in found["moved"]
    ]
    yield from table(rows, head=("KL", "behind", "follows", "base expects", "adapter expects"), right=(0,))
    for key, word in (("up", "more"), ("down", "less")):
        tokens = ", ".join(f"{item['token']!r} {100 * item['change']:+.2f}" for item in found[key])
        yield f"  {word} likely, in points of probability: {tokens}"


def _likeliest(tokens: Sequence[Json]) -> str:
    shown = [item for item in tokens[:2] if item["probability"] >= _LEAST_SHARE] or tokens[:1]
    return ", ".join(f"{item['token']!r} {100 * item['probability']:.0f} %" for item in shown)


def _pair(pair: Json) -> Iterator[str]:
    cosine = "none of their layers meet" if pair["cosine"] is None else f"cosine of all updates {pair['cosine']:+.3f}"
    yield f"{pair['first']} and {pair['second']}: {cosine}"
    alone = (pair["layers_of_first_alone"], pair["layers_of_second_alone"])
    if any(alone):
        yield f"  layers that one alone changes: {alone[0]} and {alone[1]}"
    layers = pair["layers"]
    if not layers:
        return
    yield (
        f"  directions in common, 0 to 1: {pair['reads']:.3f} of what they read (chance {pair['chance_reads']:.3f}), "
        f"{pair['writes']:.3f} of what they write (chance {pair['chance_writes']:.3f})"
    )
    shown = sorted(layers, key=lambda item: -abs(item["cosine"]))[:_ROWS_SHOWN]
    rows = [
        (
            item["name"],
            f"{item['cosine']:+.3f}",
            f"{item['reads']:.3f}",
            f"{item['writes']:.3f}",
            f"{item['smallest_angle_degrees']:.0f}°",
        )
        for item in shown
    ]
    yield from table(rows, head=("layer", "cosine", "reads", "writes", "smallest angle"), right=(1, 2, 3))
    if len(shown) < len(layers):
        yield f"  the {len(shown)} nearest of {len(layers)} layers; --json has all"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
