"""Run one target, or all in turn, under atheris (``pip install 'tunesmith[fuzz]'``) for some seconds each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
MOST_BYTES = 4_096
MOST_MIB = 4_096
MOST_SECONDS = 25


def main(arguments: list[str]) -> int:
    """``TARGET SECONDS``, or ``all SECONDS``; the exit code of libFuzzer, 0 where nothing was found."""
    if find_spec("atheris") is None:
        print(
            "SKIPPED: atheris is not installed; `pip install 'tunesmith[fuzz]'` (Linux, CPython 3.11 to 3.13) brings it"
        )
        return 0
    name, seconds = arguments[0], int(arguments[1])
    if name != "all":
        return _fuzz(name, seconds)
    from tests.hostile.fuzz.seeds import SEEDS

    failed = []
    for target in SEEDS:
        print(f"== {target}, {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.hostile.fuzz", target, str(seconds)]
        if subprocess.run(command, cwd=REPOSITORY, check=False).returncode:
            failed.append(target)
    print(f"found faults in: {', '.join(failed)}" if failed else "no faults found")
    return 1 if failed else 0


def _fuzz(name: str, seconds: int) -> int:
    import atheris

    with atheris.instrument_imports(include=["tunesmith", "ruamel", "jinja2"], enable_loader_override=False):
        import ruamel.yaml  # noqa: F401 - the recipe's reader asks for it late

        from tests.hostile.fuzz.targets import TARGETS
    from tests.hostile.fuzz.seeds import SEEDS

    corpus = Path(tempfile.mkdtemp(prefix=f"tunesmith-fuzz-{name}-"))
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)
    # A fault is kept where the next run will not mistake it for a seed.
    faults = REPOSITORY / ".fuzz"
    faults.mkdir(exist_ok=True)
    options = {
        "max_total_time": seconds, "max_len": MOST_BYTES, "rss_limit_mb": MOST_MIB, "timeout": MOST_SECONDS,
        "artifact_prefix": f"{faults}/{name}-", "print_final_stats": 1, "verbosity": 0,
    }  # fmt: skip
    atheris.Setup([sys.argv[0], str(corpus), *(f"-{key}={value}" for key, value in options.items())], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
