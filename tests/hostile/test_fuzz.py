"""The fuzzer's targets on its seeds, and a few seconds of it where atheris is installed. ``make fuzz`` takes longer."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.architecture.source_tree import REPOSITORY
from tests.hostile.bounds import within
from tests.hostile.fuzz.seeds import SEEDS
from tests.hostile.fuzz.targets import TARGETS


def test_every_target_has_seeds() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    assert all(len(seeds) > 1 for seeds in SEEDS.values())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_lies_around_them(name: str) -> None:
    """Each seed, and 60 neighbours: a byte changed, cut, doubled or joined with another seed."""
    chance = random.Random(name)
    for seed in SEEDS[name]:
        for number in range(60):
            payload = bytearray(seed)
            for _ in range(chance.randint(1, 3) if number else 0):
                at = chance.randrange(len(payload) + 1)
                kind = chance.randrange(4)
                if kind == 0 and at < len(payload):
                    payload[at] = chance.randrange(256)
                elif kind == 1:
                    del payload[at : at + chance.randint(1, 8)]
                elif kind == 2:
                    payload[at:at] = payload[at : at + 8]
                else:
                    payload[at:] = chance.choice(SEEDS[name])[at:]
            with within(20):
                TARGETS[name](bytes(payload))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install 'tunesmith[fuzz]'")
@pytest.mark.parametrize("name", TARGETS)
def test_some_seconds_of_coverage_guided_fuzzing(name: str) -> None:
    command = [sys.executable, "-m", "tests.hostile.fuzz", name, "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-3000:]
