"""SGLang's kits of server tests, run against ours: those of `sglang_kits.txt` must pass.

    python tests/acceptance/sglang_kits.py KITS [--all]

KITS is sglang/test/kits of SGLang's wheel (`pip download sglang --no-deps`, unpacked). Python has requests, openai and
anthropic besides Infernum. Of SGLang itself nothing is installed: its modules are imported as empty ones, and tests
that use more than their names fail. --all runs every test, and prints which ones pass.

Two things are told to the kits: the token that ends a text or the string that stopped it is `stop_reason` here, which
vLLM calls it too, and `matched_stop` there; and the model of the anthropic kit is ours.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
import types
import unittest
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parents[1]))

import anthropic  # pyright: ignore
import openai  # pyright: ignore
import requests  # pyright: ignore
from serving import RunningServer, start

LIST = Path(__file__).with_name("sglang_kits.txt")
KITS = {
    "matched_stop_kit": ("MatchedStopMixin",),
    "basic_api_contract_kit": ("BasicAPIContractMixin",),
    "json_mode_kit": ("JSONModeMixin",),
    "json_constrained_kit": ("JSONConstrainedMixin",),
    "anthropic_messages_kit": ("AnthropicMessagesMixin",),
}
"""Kits that need a URL, a model's name and a client, and their classes of tests."""

MODEL = "dante-chat"


class _Anything(types.ModuleType):
    """A module that has whatever is imported from it."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return MagicMock(name=name)


def without_sglang() -> None:
    """Let the kits import what they name of SGLang."""
    for name in (
        "sglang",
        "sglang.srt",
        "sglang.srt.entrypoints",
        "sglang.srt.entrypoints.anthropic",
        "sglang.srt.entrypoints.anthropic.protocol",
        "sglang.srt.entrypoints.anthropic.serving",
    ):
        sys.modules[name] = _Anything(name)


def with_matched_stop() -> None:
    """Let the kits read `stop_reason` by the name that they know."""
    read = requests.Response.json

    def json(self: Any, **options: Any) -> Any:
        body = read(self, **options)
        for choice in body.get("choices", ()) if isinstance(body, dict) else ():
            choice.setdefault("matched_stop", choice.get("stop_reason"))
        return body

    requests.Response.json = json


def tests_of(folder: Path, kit: str, server: RunningServer) -> unittest.TestSuite:
    """The tests of a kit, for a server."""
    spec = importlib.util.spec_from_file_location(kit, folder / f"{kit}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite = unittest.TestSuite()
    for name in KITS[kit]:
        attributes = {
            "base_url": server.url,
            "model": MODEL,
            "served_model_name": MODEL,
            "api_key": "none",
            "client": openai.Client(api_key="none", base_url=f"{server.url}/v1"),
            "json_schema": '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, '
            '"population": {"type": "integer", "minimum": 0, "maximum": 99999}}, "required": ["name", "population"]}',
        }
        attributes["anthropic_client"] = anthropic.Anthropic(api_key="none", base_url=server.url)
        case = type(name, (getattr(module, name), unittest.TestCase), attributes)
        suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    return suite


def main() -> int:
    """Run the list, or all tests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kits", type=Path)
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    wanted = [line for line in LIST.read_text(encoding="utf-8").split("\n") if line and line[0] != "#"]
    without_sglang()
    with_matched_stop()
    server = start()
    passed: list[str] = []
    failed: dict[str, str] = {}
    try:
        for kit in KITS:
            for test in tests_of(args.kits, kit, server):
                name = f"{kit}::{test.id().split('.')[-1]}"
                if not args.all and name not in wanted:
                    continue
                with contextlib.redirect_stdout(io.StringIO()):
                    result = unittest.TestResult()
                    test.run(result)
                problems = [text for _, text in (*result.failures, *result.errors)]
                if problems:
                    failed[name] = problems[0].strip().split("\n")[-1]
                else:
                    passed.append(name)
    finally:
        server.stop()
    for name in passed:
        print(f"passed  {name}")
    for name, why in failed.items():
        print(f"FAILED  {name}: {why[:160]}")
    missing = set(wanted) - set(passed)
    print(
        f"{len(passed)} passed, {len(failed)} failed; of the list {len(wanted) - len(missing)} of {len(wanted)}"
    )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
