"""Starts the engine's process, which loads the model while the server still imports what it needs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from infernum.serve.wire import EngineOptions, frame

START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # Ctrl-C is for the server, which drains
    "from infernum.serve.engine_process import main; main()"
)
"""What the interpreter runs. The file descriptor of the socket is its argument."""

SOCKET_BYTES = 1 << 22
"""Bytes of results that wait for the server before the engine does."""


@dataclass(frozen=True)
class Spawned:
    """The engine's process, and the server's end of the connection to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


@contextmanager
def spawn(options: EngineOptions) -> Generator[Spawned]:
    """Start the process, and tell it what to load. In the end it is killed, if it has not ended."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        ours.sendall(frame(options))
        ours.setblocking(False)
        try:
            yield Spawned(process, ours)
        finally:
            process.kill()
            process.wait()
