"""llama.cpp's own tests of servers, run against ours: those of `llama_cpp.txt` must pass.

    python tests/acceptance/llama_cpp.py TESTS [--python PYTHON] [--all]

TESTS is tools/server/tests of a checkout of llama.cpp, or of vendor/llama.cpp in the sources of llama-cpp-python.
PYTHON has pytest, requests, openai and wget. The servers are three: one that everybody may use, one with a key, and one
whose model has one name only. --all runs every test of the files, and prints which ones pass.

The texts that the tests expect are those of a model that we do not have: any text will do.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import start

LIST = Path(__file__).with_name("llama_cpp.txt")
FILES = (
    "chat_completion",
    "basic",
    "completion",
    "tokenize",
    "security",
    "compat_oai_responses",
    "compat_anthropic",
)
PORT = 8080
NAMES = ("dante-chat", "gpt-3.5-turbo", "gpt-3.5-turbo-instruct", "davinci-002")
"""Names that the tests use for whatever model there is."""

OPEN = tuple(word for name in NAMES for word in ("--served-model-name", name))

CONTEXT = "256"
"""Of a slot of the server that the tests would start themselves."""

SERVERS = {
    "open": OPEN,
    "agents": (
        "--served-model-name",
        "test",
        "--served-model-name",
        "gpt-4.1",
        "--max-model-len",
        "512",  # which the descriptions of tools need
    ),
    "one name": ("--served-model-name", "tinyllama-2"),
    "keys": (*OPEN, "--api-key", "sk-this-is-the-secret-key", "--allowed-origins", "http://localhost"),
}
"""Options of the server of each section of the list."""

ANY_TEXT = """
import sys
sys.path.insert(0, ".")
import utils
utils.match_regex = lambda regex, text: bool(text)
"""
"""A plugin of pytest."""


def listed() -> dict[str, list[str]]:
    """The tests of each section of the list."""
    sections: dict[str, list[str]] = {}
    name = ""
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            sections[name] = []
        elif line and not line.startswith("#"):
            sections[name].append(line)
    return sections


def outcomes(tests: Path, python: str, section: str, wanted: list[str]) -> dict[str, str]:
    """PASSED, FAILED or ERROR of each test that has run against the server of a section."""
    server = start("--port", str(PORT), "--max-model-len", CONTEXT, *SERVERS[section])
    plugin = tests / "any_text.py"
    plugin.write_text(ANY_TEXT, encoding="utf-8")
    try:
        command = [
            python,
            "-m",
            "pytest",
            "-p",
            "any_text",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
            "-rA",
            "-q",
        ]
        done = subprocess.run(
            [*command, *wanted],
            cwd=tests,
            env={**os.environ, "DEBUG_EXTERNAL": "1", "PORT": str(PORT), "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            timeout=900,
        )
    finally:
        plugin.unlink()
        server.stop()
    lines = re.findall(r"^(PASSED|FAILED|ERROR) (unit/.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return {name: outcome for outcome, name in lines} or {done.stdout[-2000:] + done.stderr[-2000:]: "ERROR"}


def main() -> int:
    """Run the list, or all tests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    if arguments.all:
        for section in SERVERS:
            found = outcomes(
                arguments.tests, arguments.python, section, [f"unit/test_{file}.py" for file in FILES]
            )
            print(f"[{section}]", *(name for name, outcome in found.items() if outcome == "PASSED"), sep="\n")
        return 0
    failed: list[str] = []
    count = 0
    for section, wanted in listed().items():
        found = outcomes(arguments.tests, arguments.python, section, wanted)
        failed += [
            f"{section}: {name} {found.get(name, 'did not run')}"
            for name in wanted
            if found.get(name) != "PASSED"
        ]
        failed += [name for name in found if name not in wanted]
        count += len(wanted)
    print(*failed, f"{count - len(failed)} of {count} tests passed", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
