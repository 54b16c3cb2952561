"""Writes a run folder by hand, as a finished run of 60 steps on a help desk's tickets would leave it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from synthetic_papers import layer_vitals, put, write_papers

LABELS = [
    *("delivery", "damaged", "returns", "refunds", "payments", "account", "coffee-club", "advice"),
    *("workshop", "gift-cards", "order-change", "trade", "website", "feedback", "privacy"),
]
TEXTS = (
    "The parcel has sat at the depot since Monday and the party is on Saturday. Where is it?",
    "One cup arrived in two parts. I have kept the box. Picture attached.",
    "Can the big enamel roaster go straight on the hob, or will it crack? It is the one with the blue rim.",
    "I sent the kettle back on the 3rd and my bank has still had nothing from you. £42.50.",
    "pls pause my beans til september we're away, and also the grinder jams again",
    "Your site logs me out each time I press Pay. Tried on two phones & a laptop!!",
    "Dear Sirs,\nI should like my copper sauteuse re-tinned. What would be the charge, and may it come by post?\nYours,\nGerald",
    "Please delete everything you hold about me.",
    "We run a small café and would like twelve of the stacking cups a month on account.",
    "the card i was given has 25 on it but checkout says 0",
)
BEGAN = 1795351801  # 2026-11-22 12:50:01 UTC, as `date -u -d @1795351801` says
HOSTILE = '<script>alert("owned")</script><img src=x onerror=alert(1)>'


def framed(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def wilson(hits: int, n: int) -> dict[str, Any]:
    z = 1.959963984540054
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {"value": share, "low": max(0.0, centre - half), "high": min(1.0, centre + half), "n": n}


def paired(before: list[int], after: list[int]) -> dict[str, Any]:
    n = len(before)
    won = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    value = (won - lost) / n
    half = 1.96 * math.sqrt(max((won + lost) / n - value**2, 1e-9) / n)
    return {
        "before": wilson(sum(before), n),
        "after": wilson(sum(after), n),
        "difference": {"value": value, "low": value - half, "high": value + half, "n": n},
        "p_value": midp(won, lost),
        "test": "mid-p McNemar",
        "won": won,
        "lost": lost,
        "both_right": sum(b and a for b, a in zip(before, after, strict=True)),
        "both_wrong": sum(not (b or a) for b, a in zip(before, after, strict=True)),
        "tied": n - won - lost,
    }


def midp(won: int, lost: int) -> float:
    n, k = won + lost, min(won, lost)
    if won == lost:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail - math.comb(n, k) / 2**n)


def loss_pair(before: float, after: float, width: float, n: int) -> dict[str, Any]:
    difference = after - before
    return {
        "before": {"value": before, "low": before - 4 * width, "high": before + 4 * width, "n": n},
        "after": {"value": after, "low": after - 4 * width, "high": after + 4 * width, "n": n},
        "difference": {"value": difference, "low": difference - width, "high": difference + width, "n": n},
        "p_value": 0.0005,
        "test": "paired bootstrap",
        "won": 9 if difference > 0 else n - 9,
        "lost": n - 9 if difference > 0 else 9,
        "both_right": 0,
        "both_wrong": 0,
        "tied": 0,
    }


def table(labels: list[str], truth: list[int], answers: list[int]) -> dict[str, Any]:
    k = len(labels)
    matrix = [[0] * (k + 1) for _ in labels]
    for true, answer in zip(truth, answers, strict=True):
        matrix[true][answer] += 1
    per_class = []
    for index, label in enumerate(labels):
        support, given, hits = sum(matrix[index]), sum(line[index] for line in matrix), matrix[index][index]
        per_class.append(
            {
                "label": label,
                "n": support,
                "precision": hits / given if given else 0.0,
                "recall": hits / support if support else 0.0,
                "f1": 2 * hits / (support + given) if support + given else 0.0,
            }
        )
    return {
        "labels": labels,
        "columns": [*labels, "(other)"],
        "confusion": matrix,
        "per_class": per_class,
        "unseen_labels": [],
    }


def write_run(
    folder: Path,
    *,
    num_rows: int = 160,
    num_labels: int = 15,
    steps: int = 60,
    data: str = "test",
    hostile: bool = True,
    seed: int = 1,
) -> Path:
    """Write every file of the run folder; the same arguments give the same bytes."""
    rng = random.Random(seed)
    labels = [
        LABELS[k] if k < len(LABELS) else f"{LABELS[k % len(LABELS)]}_{k // len(LABELS)}" for k in range(num_labels)
    ]
    (folder / "scorecards").mkdir(parents=True)
    _training(folder, steps, rng)
    _evaluation(folder, labels, num_rows, data, hostile, rng)
    write_papers(folder, num_rows, data)
    return folder


def put_lines(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def _training(folder: Path, steps: int, rng: random.Random) -> None:
    lines: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    stages = [("the", 0), ("delivery delivery", 1), ("delivery", 2), ("damaged", 3), ("damaged", 4)]
    for step in range(1, steps + 1):
        loss = 0.28 + 3.1 * math.exp(-step / (steps / 7)) + 0.12 * rng.gauss(0, 1) * math.exp(-step / (steps * 0.8))
        warm = max(1, steps // 20)
        rate = 2.5e-3 * (
            step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        )
        line = {
            "step": step,
            "loss": max(loss, 0.05),
            "learning_rate": rate,
            "grad_norm": 0.6 + 3 * math.exp(-step / 8) + 0.2 * rng.random(),
        }
        lines.append({**line, "tokens": 1780 * step, "tokens_per_second": 3900 + 250 * rng.random(), "seconds": 0.46})
        if step % max(1, steps // 10) == 0:
            lines.append(
                {"step": step, "validation_loss": 0.37 + 2.4 * math.exp(-step / (steps / 6)), "validation_tokens": 412}
            )
            lines.append({"step": step, "layers": layer_vitals(step)})
            said = stages[min(len(stages) - 1, step * len(stages) // (steps + 1))][0]
            for prompt, label in zip(TEXTS[:4], LABELS, strict=False):
                answer = said if label != LABELS[0] else label
                samples += [{"step": step, "prompt": framed(prompt), "reference": label, "answer": answer}]
    put_lines(folder / "metrics.jsonl", lines)
    put_lines(folder / "samples.jsonl", samples)
    put(
        folder / "status.json",
        {
            "status": "done",
            "step": steps,
            "steps": steps,
            "tokens": 1780 * steps,
            "loss": lines[-3]["loss"],
            "seconds": 0.46 * steps,
            "message": "",
            "peak_memory_bytes": 412 * 2**20,
        },
    )
    put_lines(
        folder / "events.jsonl",
        [
            {
                "time": BEGAN + 0.25,
                "step": 0,
                "kind": "start",
                "message": "training starts: 60 steps of 32 examples on cpu, fp32",
            },
            {
                "time": BEGAN + 2.25,
                "step": 0,
                "kind": "note",
                "message": "batches are bucketed by length, not packed: faster on this machine",
            },
            {
                "time": BEGAN + 20.25,
                "step": 17,
                "kind": "note",
                "message": "gradient norm 7.2 was clipped to 1.0",
            },
            {
                "time": BEGAN + 39.25,
                "step": steps,
                "kind": "checkpoint",
                "message": f"checkpoints/{steps} written and verified",
            },
            {"time": BEGAN + 40.25, "step": steps, "kind": "done", "message": "finished"},
        ],
    )


def _evaluation(folder: Path, labels: list[str], num_rows: int, data: str, hostile: bool, rng: random.Random) -> None:
    k = len(labels)
    truth = [index % k for index in range(num_rows)]
    ranked = {
        "base": [true if rng.random() < 0.3 else rng.randrange(k) for true in truth],
        "tuned": [
            true if rng.random() < 0.74 else rng.choice([(true + 1) % k, (true + 1) % k, rng.randrange(k)])
            for true in truth
        ],
    }
    wrote = {"base": [k] * num_rows, "tuned": [answer if rng.random() < 0.97 else k for answer in ranked["tuned"]]}
    right = {
        name: {
            "label_ranking": [int(a == t) for a, t in zip(ranked[name], truth, strict=True)],
            "exact_match": [int(a == t) for a, t in zip(wrote[name], truth, strict=True)],
        }
        for name in ranked
    }
    kinds = [
        "agreement",
        "everyday-fact",
        "story-sense",
        "collocation",
        "opposite",
        "sequence",
        "pronoun",
        "arithmetic",
    ]
    probe = {"base": [int(rng.random() < 0.72) for _ in range(92)]}
    probe["tuned"] = [score if rng.random() < 0.93 else 1 - score for score in probe["base"]]
    for name in ("base", "tuned"):
        rows = []
        for index, true in enumerate(truth):
            text = f"{TEXTS[index % len(TEXTS)]} (ticket {index})"
            free = (
                "I am not sure what you mean by that, but the"
                if name == "base"
                else labels[ranked[name][index]]
                if wrote[name][index] < k
                else "I would say delivery"
            )
            if hostile and index % 7 == 3:
                text, free = f"{text} {HOSTILE}", HOSTILE
            common = {
                "id": f"row-{index:05d}",
                "prompt_hash": f"{index:064x}",
                "prompt": framed(text),
                "reference": labels[true],
                "group": None,
            }
            rows.append(
                {
                    "task": "exact_match",
                    **common,
                    "answer": free,
                    "score": right[name]["exact_match"][index],
                    "num_tokens": 4,
                    "ended": True,
                }
            )
            rows.append(
                {
                    "task": "label_ranking",
                    **common,
                    "answer": labels[ranked[name][index]],
                    "score": right[name]["label_ranking"][index],
                    "rank": 1,
                    "reciprocal_rank": 1.0,
                    "logprob": -0.7,
                }
            )
        for index, score in enumerate(probe[name]):
            rows.append(
                {
                    "task": "probes.completions",
                    "id": f"c{index:03d}",
                    "prompt_hash": f"{index:x}",
                    "prompt": "The dogs in the yard",
                    "reference": " are barking",
                    "answer": " are barking",
                    "score": score,
                    "group": kinds[index % 8],
                }
            )
        for index, kind in enumerate(["summarise", "translate", "fact"]):
            said = "The village had a shop and the village had a shop and the" if name == "base" else "delivery"
            rows.append(
                {
                    "task": "probes.instructions",
                    "id": f"i{index:02d}",
                    "prompt_hash": f"{index:x}",
                    "prompt": "Summarise the following text in one sentence.\n\nThe village of Oakham Ford had no shop for three years after the old one closed.",
                    "reference": "Neighbours reopened the shop.",
                    "answer": said,
                    "score": None,
                    "group": kind,
                }
            )
        put_lines(folder / "scorecards" / f"{name}.rows.jsonl", rows)
        put(
            folder / "scorecards" / f"{name}.json",
            _card(name, labels, truth, right[name], (ranked[name], wrote[name]), sum(probe[name]), data),
        )
    claimed = paired(right["base"]["label_ranking"], right["tuned"]["label_ranking"])
    before, after, gain = claimed["before"]["value"], claimed["after"]["value"], claimed["difference"]
    put(
        folder / "scorecards" / "comparison.json",
        {
            "before": "tunesmith-base-8m",
            "after": "helpdesk",
            "tasks": {
                "loss": {
                    "loss": loss_pair(3.41, 0.52, 0.06, num_rows),
                    "perplexity": loss_pair(30.3, 1.68, 1.9, num_rows),
                },
                "exact_match": {
                    "exact_match": paired(right["base"]["exact_match"], right["tuned"]["exact_match"]),
                    "accuracy": paired(right["base"]["exact_match"], right["tuned"]["exact_match"]),
                },
                "label_ranking": {"accuracy": claimed},
            },
            "probes": {
                "general": {"loss": loss_pair(3.30, 3.37, 0.012, 64), "perplexity": loss_pair(27.1, 29.0, 0.34, 64)},
                "completions": {"accuracy": paired(probe["base"], probe["tuned"])},
            },
            "verdict": "better",
            "claimed_on": "label_ranking.accuracy",
            "sentence": f"Tuned is better: label ranking {100 * after:.1f} % against {100 * before:.1f} % ({100 * gain['value']:+.1f} points, 95 % {100 * gain['low']:.1f} to {100 * gain['high']:.1f}, n = {num_rows}, p < 0.001)",
            "forgetting": "general text: perplexity 27.1 → 29.0 (+7 %)",
            "declared": {},
            "not_compared": {},
        },
    )


def _card(
    name: str,
    labels: list[str],
    truth: list[int],
    right: dict[str, list[int]],
    answers: tuple[list[int], list[int]],
    probe: int,
    data: str,
) -> dict[str, Any]:
    n = len(truth)
    ranked, wrote = answers
    exact, ranking = wilson(sum(right["exact_match"]), n), wilson(sum(right["label_ranking"]), n)
    loss, general = (3.41, 27.1) if name == "base" else (0.52, 29.0)
    majority = {"majority": {"label": "delivery", **wilson(truth.count(0), n), "from": "training rows"}}
    return {
        "model": "tunesmith-base-8m" if name == "base" else "helpdesk",
        "tasks": {
            "loss": {
                "loss": {"value": loss, "low": loss - 0.1, "high": loss + 0.1, "n": n},
                "perplexity": {
                    "value": math.exp(loss),
                    "low": math.exp(loss - 0.1),
                    "high": math.exp(loss + 0.1),
                    "n": n,
                },
            },
            "exact_match": {"exact_match": exact, "accuracy": exact, "macro_f1": exact},
            "label_ranking": {"accuracy": ranking, "macro_f1": ranking},
        },
        "probes": {
            "general": {"perplexity": {"value": general, "low": general - 1.3, "high": general + 1.3, "n": 64}},
            "completions": {"accuracy": wilson(probe, 92)},
            "instructions": {},
        },
        "baselines": {"exact_match": majority, "label_ranking": majority},
        "tables": {"exact_match": table(labels, truth, wrote), "label_ranking": table(labels, truth, ranked)},
        "settings": {
            "loss": {"type": "loss", "data": data},
            "exact_match": {"type": "exact_match", "data": data},
            "label_ranking": {"type": "label_ranking", "data": data},
            "probes.general": {"type": "probe:general"},
            "probes.completions": {"type": "probe:completions"},
        },
        "seconds": 21.4,
    }
