"""A process that tries architectures one after the other: a line ``kind model_type`` in, a line of JSON out.

It imports transformers once; whoever waits for it may kill it where one of them hangs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings

import torch
from transformers.utils import logging as transformers_logging

from tests.breadth.probe import probe


def main() -> None:
    """Until the input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")  # what libraries print must not come between the lines
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    for line in sys.stdin:
        kind, model_type = line.split()
        print(json.dumps(probe(kind, model_type).to_json()), file=out, flush=True)


if __name__ == "__main__":
    main()
