"""A server in a process of its own, for tests: `infernum serve` as a user starts it, on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0


@dataclass
class Reply:
    """A response: its status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of the body, which has OpenAI's form and nothing else."""
        assert self.headers["content-type"] == "application/json", self.headers
        body = self.json
        fields = set(body["error"]) - {"n_prompt_tokens", "n_ctx"}  # those of a prompt that is too long
        assert list(body) == ["error"] and fields == {"message", "type", "param", "code"}, body
        assert body["error"]["message"], body
        return body["error"]

    @property
    def events(self) -> list[Any]:
        """The events of a stream, which ends with [DONE]; without the comments of a server that is slow."""
        parts = self.body.decode().split("\n\n")
        assert parts[-2:] == ["data: [DONE]", ""], parts[-3:]
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-2] if part[0] != ":"]


@dataclass
class RunningServer:
    """A started server. `lines` is what it has written to stderr."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> Reply:
        """One request; `body` is sent as JSON, `raw` as it is."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, sent | (headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Reply(response.status, dict(response.headers.items()), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, dict(error.headers.items()), error.read())

    def complete(self, prompt: Any, *, timeout: float = 60, **fields: Any) -> Reply:
        return self.ask("/v1/completions", {"prompt": prompt, "temperature": 0, **fields}, timeout=timeout)

    def chat(self, text: str, **fields: Any) -> Reply:
        messages = [{"role": "user", "content": text}]
        return self.ask("/v1/chat/completions", {"messages": messages, "temperature": 0, **fields})

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, which its sample has under these labels besides the model's name."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.ask("/metrics").body.decode()):
            for sample in family.samples:
                if sample.name == f"infernum:{name}" and labels.items() <= sample.labels.items():
                    return sample.value
        raise AssertionError(f"no metric {name}")

    def wait_until_idle(self, seconds: float = 5) -> None:
        """Wait until the engine runs and holds nothing."""
        end = time.monotonic() + seconds
        while self.metric("num_requests_running") or self.metric("num_requests_waiting"):
            assert time.monotonic() < end, "the engine still has sequences"
            time.sleep(0.05)

    @property
    def engine(self) -> int:
        """The process that holds the model."""
        command = ["pgrep", "-P", str(self.process.pid), "-f", "engine_process"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Signal the server, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout)


def start(*arguments: str, model: str = "dante-chat", cache: Path | None = None) -> RunningServer:
    """Start a server and wait until it answers. Raises AssertionError with its output when it ends instead."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if cache is not None:
        environment["INFERNUM_CACHE"] = str(cache)
    process = subprocess.Popen(
        [sys.executable, "-m", "infernum", "serve", model, "--device", "cpu", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    server = RunningServer(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                server.lines.append(line)
                if " is served at " in line:
                    server.url = line.split(" is served at ")[1].split(",")[0]
                    ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    ready.wait(START_SECONDS)
    assert server.url, "".join(server.lines)
    return server


def running(*arguments: str, model: str = "dante-chat") -> Iterator[RunningServer]:
    """The body of a fixture: a server, ended at the end."""
    server = start(*arguments, model=model)
    try:
        yield server
    finally:
        code = server.stop()
        assert code == 0, (code, server.lines[-20:])
