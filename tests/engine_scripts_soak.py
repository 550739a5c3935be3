"""Random scripts of an engine: many more than tests/test_engine_scripts.py runs, and others each time.

    python tests/engine_scripts_soak.py [SCRIPTS] [SEED]

A script adds, cancels, steps, and lets launches and reads fail, with pages, rows, priorities, windows, masks and
log-probabilities of prompts at random. The script that fails is shortened and printed. Ten thousand scripts take a
quarter of an hour on one core.
"""

from __future__ import annotations

import secrets
import sys

from hypothesis import HealthCheck, seed, settings
from test_engine_scripts import (
    SCRIPT,
)
from test_engine_scripts import (
    test_whatever_happens_each_sequence_gets_its_own_tokens_and_no_page_is_lost as script,
)

from infernum.sampling_params import LARGEST_SEED


def main() -> int:
    scripts = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    number = int(sys.argv[2]) if len(sys.argv) > 2 else secrets.randbelow(LARGEST_SEED)
    sys.stdout.write(f"{scripts} scripts from seed {number}\n")
    sys.stdout.flush()
    limits = settings(
        max_examples=scripts, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    seed(number)(limits(SCRIPT(script.hypothesis.inner_test)))()
    sys.stdout.write("all of them passed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
