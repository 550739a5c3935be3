"""schemathesis against our server: OpenAI's own description of its interface, or ours. No answer may be a 5xx.

    python tests/acceptance/schemathesis_run.py [--openai FILE] [--examples 1000] [--st st]

With FILE, the openapi.yaml of github.com/openai/openai-openapi, every field of requests for completions and chats is
made wrong in turn. Without it, /openapi.json of the server is tried with so many examples for each path; answers must
then also be what it describes. `st` is the command of schemathesis.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import start

CONTEXT = "128"
"""Tokens of a sequence: an example that is right may ask for as many as there is room for."""

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> int:
    """Run schemathesis; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--openai", type=Path)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--st", default="st")
    arguments = parser.parse_args()
    server = start("--max-model-len", CONTEXT)
    if arguments.openai:
        options = [str(arguments.openai), "--url", f"{server.url}/v1"]
        options += ["--include-path-regex", "^/(chat/)?completions$|^/models", "--phases", "coverage"]
        options += ["--mode", "negative", "--checks", "not_a_server_error,content_type_conformance"]
    else:
        options = [f"{server.url}/openapi.json", "--phases", "examples,coverage,fuzzing", "--mode", "all"]
        options += ["--max-examples", str(arguments.examples), "--checks", CHECKS]
    try:
        done = subprocess.run([arguments.st, "run", *options, "--request-timeout", "20", "--workers", "2"])
        alive = server.complete("Then", max_tokens=2).status == 200
    finally:
        code = server.stop()
    faults = [line for line in server.lines if "Traceback" in line]
    print(
        f"the server {'answers' if alive else 'does not answer'}, ended with {code}, {len(faults)} tracebacks"
    )
    return done.returncode or int(not alive or code != 0 or bool(faults))


if __name__ == "__main__":
    sys.exit(main())
