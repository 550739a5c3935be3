"""A process that answers lines, and can be ended whatever it does."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, cast

PATIENCE = 30.0
"""Seconds after which the process is ended in any case: it may be starved, since it counts processor time only."""

LONGEST_ANSWER = 1 << 27
"""Bytes. No answer of a process is longer."""


class WorkerProcess:
    """A process that answers one line with one line. It starts at the first one, and again after it was ended.

    start      the Python that the process runs, which reads stdin and writes to stdout
    arguments  its `sys.argv`

    Safe for use by several threads: lines are answered one at a time.
    """

    def __init__(self, start: str, *arguments: str) -> None:
        self._command = [sys.executable, "-P", "-c", start, *arguments]
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., WorkerProcess] | None = None

    def ask(self, line: bytes) -> bytes | int:
        """The answer to a line; the return code of a process that has ended without one, or was ended."""
        with self._lock:
            return self._ask(line)

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _ask(self, line: bytes) -> bytes | int:
        process = self._started()
        stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        answer = b""
        try:
            with suppress(BrokenPipeError):
                stdin.write(line + b"\n")
                stdin.flush()
                answer = _read_line(stdout.fileno())
        finally:
            if not answer:
                self.close()
        return answer or process.returncode

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C is for this process only
            )
            self._end = weakref.finalize(self, _end, self._process)
        return self._process


def limit_memory(mebibytes: int) -> None:
    """Limit the addresses of this process to those that it has, and so many MiB more."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its pipes. The return code of one that has ended by itself stays."""
    process.kill()
    with suppress(BrokenPipeError), process:
        pass


def _read_line(file: int) -> bytes:
    """A line of a pipe; empty where the pipe ends or nothing comes for too long."""
    deadline = time.monotonic() + PATIENCE
    poll = select.poll()
    poll.register(file, select.POLLIN)
    line = bytearray()
    while len(line) <= LONGEST_ANSWER and poll.poll(max(0.0, 1e3 * (deadline - time.monotonic()))):
        piece = os.read(file, 1 << 20)
        line += piece
        if piece.endswith(b"\n"):
            return bytes(line)
        if not piece:
            break
    return b""
