"""The server's end of the engine's process: starts it, sends it requests, and hands on its results."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
import numpy as np

from infernum.engine.events import FINISH_REASONS, FinishReason, PromptLogprobs
from infernum.errors import InfernumError
from infernum.sampling_params import SamplingParams
from infernum.serve.spawn import Spawned
from infernum.serve.wire import (
    LENGTH_BYTES,
    Add,
    Cancel,
    Failed,
    FromEngine,
    Load,
    Loading,
    Logprobs,
    Ready,
    Refused,
    Stepped,
    frame,
    length_of,
)
from infernum.step import NO_TOKEN

OnStep: TypeAlias = Callable[[Stepped, Iterable[float], Mapping[float, int]], None]
"""Called with a step, the seconds since their requests of the tokens that are first, and the numbers of other tokens by
the seconds since their sequence's last."""

OnLoading: TypeAlias = Callable[[str, int, int], None]

READ_BYTES = 1 << 17
"""Most bytes of results that are read at once."""


class EngineGone(Exception):
    """The engine's process has ended, or ended this sequence by a fault of its own."""


class Signal:
    """Wakes the one task that waits for it. `asyncio.Event` does it for many, at three times the cost.

    `call` is called instead, at once, where it is set.
    """

    def __init__(self) -> None:
        self.call: Callable[[], None] | None = None
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the task, now or when it waits."""
        if self.call is not None:
            self.call()
            return
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until the signal is set, and unset it."""
        if not self._set:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        self._set = False


@dataclass(slots=True)
class Inbox:
    """What the engine has sent for one sequence and nobody has taken yet. Tokens that pile up lie together here.

    request        the id of the request that the sequence belongs to
    prompt_tokens, output_tokens, max_tokens  numbers of its tokens: of its prompt, so far, and at most
    wake           set when something has come; several sequences of one request share it
    logprobs       of each of these tokens, where the sequence asks for them
    prompt         log-probabilities of the prompt, where the sequence asks for them; they come with its first token
    finish_reason  "stop" or "length" once the sequence has ended
    error          why the engine did not take the sequence, or ended it; `ours` where the request is not to blame
    cached_tokens  tokens of the prompt that the cache had
    asked          when the engine was given it; `begun`: when it was first computed
    first, last    when its first and its last tokens came
    """

    wake: Signal
    request: str
    prompt_tokens: int
    max_tokens: int
    output_tokens: int = 0
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[Logprobs] = field(default_factory=list[Logprobs])
    prompt: PromptLogprobs | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    ours: bool = False
    cached_tokens: int = 0
    asked: float = field(default_factory=time.monotonic)
    begun: float | None = None
    first: float | None = None
    last: float | None = None


class EngineClient:
    """One engine in a process of its own. All methods are for the event loop.

    When the connection closes, the process ends. When the process ends, every sequence ends with an error.
    """

    def __init__(self, spawned: Spawned) -> None:
        self._process, self._connection = spawned.process, spawned.connection
        self._inboxes: dict[int, Inbox] = {}
        self._numbers = itertools.count()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._cancelled: list[int] = []
        self.load = Load()
        self.stepped = time.monotonic()
        """When the engine was last heard of."""
        self.asked = self.stepped
        """When it was last given a sequence."""
        self.death: str | None = None
        """Why the engine serves no more."""
        self.on_step: OnStep = lambda stepped, first, gaps: None
        """Called with each step."""

    async def ready(self, on_loading: OnLoading) -> Ready:
        """Wait until the model is loaded. Raises InfernumError with the reason when it cannot be."""
        reader, self._writer = await asyncio.open_connection(sock=self._connection)
        messages = _Messages(reader)
        while batch := await messages.next():
            for message in batch:
                match message:
                    case Loading(what, done, total):
                        on_loading(what, done, total)
                    case Ready():  # the last message until there are sequences
                        self._reading = asyncio.create_task(self._read(messages))
                        self.stepped = time.monotonic()
                        return message
                    case Failed(reason):
                        raise InfernumError(reason)
                    case _:
                        raise AssertionError(f"the engine sends {message} while it loads")
        raise InfernumError(f"the engine's process ended while it loaded the model{self._status()}")

    @property
    def unfinished(self) -> int:
        """Sequences that have not ended."""
        return len(self._inboxes)

    @property
    def inboxes(self) -> Collection[Inbox]:
        """Those of the sequences that have not ended, in the order in which they came."""
        return self._inboxes.values()

    @property
    def process_id(self) -> int:
        """The process that holds the model."""
        return self._process.pid

    def add(
        self,
        tokens: list[int],
        params: SamplingParams,
        wake: Signal,
        *,
        request: str = "",
        priority: int = 0,
        salt: str = "",
        grammar: str | None = None,
    ) -> tuple[int, Inbox]:
        """Queue a sequence. Raises EngineGone."""
        if self.death is not None:
            raise EngineGone(self.death)
        number, self.asked = next(self._numbers), time.monotonic()
        inbox = self._inboxes[number] = Inbox(wake, request, len(tokens), params.max_tokens)
        self._send(Add(number, np.array(tokens, np.int32).tobytes(), params, priority, salt, grammar))
        return number, inbox

    def cancel(self, numbers: list[int]) -> None:
        """Stop the sequences that have not ended, and forget them all."""
        running = [number for number in numbers if self._inboxes.pop(number, None) is not None]
        if running and self.death is None:
            self._send(Cancel(running))

    def stop(self, reason: str) -> None:
        """End every sequence with an error, and take no more."""
        self._die(reason)

    async def close(self) -> None:
        """End the process. Sequences that have not ended, end with an error."""
        self._die("the server is shutting down")
        if self._writer is not None:
            self._writer.close()
        else:
            self._connection.close()
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        try:
            await asyncio.to_thread(self._process.wait, 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _send(self, message: Add | Cancel) -> None:
        assert self._writer is not None, "the engine is not ready"
        self._writer.write(frame(message))

    async def _read(self, messages: _Messages) -> None:
        try:
            while batch := await messages.next():
                signals: dict[
                    Signal, None
                ] = {}  # each once, however many steps have come: their tokens merge
                for message in batch:
                    self._deliver(message, signals)
                for signal in signals:
                    signal.set()
        finally:
            if self.death is None:
                self._die(f"the engine's process has ended{self._status()}")

    def _deliver(self, message: FromEngine, signals: dict[Signal, None]) -> None:
        """Put the results of a message into the inboxes, and add the signals of those to `signals`."""
        now = self.stepped = time.monotonic()
        match message:
            case Stepped(numbers, tokens, ends, logprobs, prompts, begun, load):
                self.load = load
                for sequence in begun:
                    inbox = self._inboxes.get(sequence.number)
                    if inbox is not None:
                        inbox.begun, inbox.cached_tokens = now, sequence.cached_tokens
                for number, place in zip(numbers, logprobs, strict=False):  # often there are none
                    if place is not None and number in self._inboxes:
                        self._inboxes[number].logprobs.append(place)
                for scores in prompts:
                    if (inbox := self._inboxes.get(scores.number)) is not None:
                        inbox.prompt = PromptLogprobs(
                            np.frombuffer(scores.tokens, np.int32).reshape(-1, scores.columns),
                            np.frombuffer(scores.values, np.float32).reshape(-1, scores.columns),
                        )
                inboxes = self._inboxes
                lasts: dict[float, int] = {}
                first: list[float] = []
                for number, token, end in zip(numbers, tokens, ends, strict=True):
                    inbox = inboxes.get(number)
                    if inbox is None:
                        continue
                    if token != NO_TOKEN:
                        inbox.tokens.append(token)
                        inbox.output_tokens += 1
                    if inbox.last is None:
                        inbox.first = now
                        first.append(now - inbox.asked)
                    else:
                        lasts[inbox.last] = lasts.get(inbox.last, 0) + 1
                    inbox.last = now
                    if end:
                        inbox.finish_reason = FINISH_REASONS[end]
                        del inboxes[number]
                    signals[inbox.wake] = None
                self.on_step(message, first, {now - last: count for last, count in lasts.items()})
            case Refused(number, reason, ours):
                inbox = self._inboxes.pop(number, None)
                if inbox is not None:
                    inbox.error, inbox.ours = reason, ours
                    signals[inbox.wake] = None
            case Failed(reason):
                self._die(f"the engine has failed: {reason}")
            case _:
                raise AssertionError(f"the engine sends {message} while it serves")

    def _die(self, reason: str) -> None:
        self.death = self.death or reason
        inboxes, self._inboxes = self._inboxes, {}
        for inbox in inboxes.values():
            inbox.error, inbox.ours = self.death, True
            inbox.wake.set()

    def _status(self) -> str:
        code = self._process.poll()
        return "" if code is None else f" (exit status {code})"


class _Messages:
    """What the engine sends, in as large parts as have come."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._unread = bytearray()

    async def next(self) -> list[FromEngine]:
        """All messages that have come, at least one; none where the other side has closed."""
        messages: list[FromEngine] = []
        while not messages:
            try:
                data = await self._reader.read(READ_BYTES)
            except ConnectionError:
                return []
            if not data:
                return []
            self._unread += data
            unread, start = self._unread, 0
            while (body := start + LENGTH_BYTES) <= len(unread):
                end = body + length_of(bytes(unread[start:body]))
                if end > len(unread):
                    break
                messages.append(self._decoder.decode(unread[body:end]))
                start = end
            del unread[:start]
        return messages
