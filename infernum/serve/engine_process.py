"""The process that holds the model: takes requests from the server, runs steps, and sends one message for each."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import BinaryIO

import msgspec
import numpy as np

from infernum import dims, logs, plugins
from infernum.engine.engine import Engine
from infernum.engine.events import StepEvents, StepRecord
from infernum.engine.grammars import GrammarMask, Grammars
from infernum.engine.null_executor import NullExecutor
from infernum.engine.slots import integers
from infernum.errors import InfernumError, LogitsError, RequestError
from infernum.llm import LLM
from infernum.manifest import Manifest, ModelInfo
from infernum.model_folder.folder import TOKENIZER
from infernum.models.presets import resolve
from infernum.serve.wire import (
    Add,
    Begun,
    Cancel,
    EngineOptions,
    Failed,
    Load,
    Loading,
    Logprobs,
    PromptScores,
    Ready,
    Refused,
    Stepped,
    ToEngine,
    frame,
    receive,
)

ATTEMPTS = 3
"""Launches in a row that may fail before the engine gives up."""

NULL_ROWS = 1024
"""Sequences that run at once without a model."""


@dataclass(frozen=True)
class Compiled:
    """A request whose grammar is compiled, or cannot be."""

    request: Add
    mask: Future[GrammarMask]


class EngineWorker:
    """One engine and its side of the connection.

    A thread reads requests while a step runs, another compiles their grammars. The process ends when the server closes
    the connection, or has ended.
    """

    def __init__(
        self, engine: Engine, connection: socket.socket, reader: BinaryIO, grammars: Grammars | None = None
    ) -> None:
        self._engine = engine
        self._connection = connection
        self._reader = reader
        self._theirs: dict[int, int] = {}
        self._ours: dict[int, int] = {}
        self._masks: dict[int, GrammarMask] = {}
        self._requests = SimpleQueue[Add | Compiled | Cancel | None]()
        self._grammars = grammars
        self._compiler = ThreadPoolExecutor(1)
        self._compiling: set[int] = set()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._record: StepRecord | None = None
        self._waiting: set[int] = set()
        self._begun: list[Begun] = []
        engine.on_step = self._note
        if grammars is not None:
            engine.prepare_masks = grammars.prepare
        threading.Thread(target=self._read, daemon=True).start()

    def serve(self) -> None:
        """Run steps until the server has gone."""
        failures = 0
        while self._take():
            try:
                events = self._engine.step_events()
                failures = 0
            except LogitsError as error:
                for number in error.sequences:
                    mask = self._masks.get(number)
                    reason = None if mask is None else mask.error
                    theirs = self._forget(number)
                    if reason is None:
                        self._refuse(theirs, str(error), ours=True)
                    else:
                        self._refuse(theirs, f"the answer cannot go on by its grammar: {reason}", ours=False)
                continue
            except Exception as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                sys.stderr.write(f"error: a step failed ({error}); it is run again\n")
                continue
            self._send(self._stepped(events))

    def _stepped(self, events: StepEvents) -> Stepped:
        if any(number not in self._theirs for number in integers(events.sequences)):  # cancelled
            events = events.where(np.isin(events.sequences, list(self._theirs)))
        numbers = [self._theirs[number] for number in integers(events.sequences)]
        prompts = [
            PromptScores(
                self._theirs[number], scores.tokens.shape[1], scores.tokens.tobytes(), scores.values.tobytes()
            )
            for number, scores in events.prompt_logprobs.items()
        ]
        for number in integers(events.sequences[events.ends > 0]):
            self._forget(number)
        record, sums = self._record, self._engine.statistics
        load = (
            Load()
            if record is None
            else Load(
                record.running,
                record.waiting,
                record.free_pages,
                record.number + 1,
                record.preemptions,
                sums.prompt_tokens,
                record.cached_tokens,
                sums.prompt_seconds + sums.decode_seconds,
                sums.idle_seconds,
            )
        )
        begun, self._begun = self._begun, []
        logprobs = [each and Logprobs(each.logprob, each.top) for each in events.logprobs]
        tokens, ends = integers(events.tokens), integers(events.ends)
        return Stepped(numbers, tokens, ends, logprobs, prompts, begun, load)

    def _note(self, record: StepRecord) -> None:
        self._record = record
        if not self._waiting:
            return
        for number, start in zip(record.sequences.tolist(), record.starts.tolist(), strict=True):
            if number in self._waiting:
                self._waiting.remove(number)
                self._begun.append(Begun(self._theirs[number], start))

    def _take(self) -> bool:
        """Pass what has come to the engine, and wait where it has nothing to do. False: the server has gone."""
        while not self._engine.busy or not self._requests.empty():
            self._rest_if_idle()
            request = self._requests.get()
            if request is None:
                return False
            match request:
                case Add():
                    self._add(request, None)
                case Compiled():
                    self._add_compiled(request)
                case Cancel():
                    self._cancel(request.numbers)
        return True

    def _rest_if_idle(self) -> None:
        """Say once that no sequence is left."""
        if self._record is not None and not self._engine.busy and self._requests.empty():
            self._record = replace(
                self._record, running=0, waiting=0, free_pages=self._engine.executor.num_pages
            )
            self._send(self._stepped(StepEvents.joined([])))
            self._record = None  # until the next step

    def _add_compiled(self, compiled: Compiled) -> None:
        request = compiled.request
        if request.number not in self._compiling:  # cancelled
            return
        self._compiling.remove(request.number)
        try:
            self._add(request, compiled.mask.result())
        except RequestError as error:
            self._refuse(request.number, str(error), ours=False)

    def _add(self, request: Add, mask: GrammarMask | None) -> None:
        tokens = np.frombuffer(request.tokens, np.int32)
        try:
            number = self._engine.add(
                tokens, request.params, priority=request.priority, salt=request.salt, allowed=mask
            )
        except RequestError as error:
            self._refuse(request.number, str(error), ours=False)
            return
        self._theirs[number], self._ours[request.number] = request.number, number
        self._waiting.add(number)
        if mask is not None:
            self._masks[number] = mask

    def _cancel(self, numbers: list[int]) -> None:
        self._compiling.difference_update(numbers)
        for number in numbers:
            if number in self._ours:
                self._engine.cancel(self._ours[number])
                self._forget(self._ours[number])

    def _forget(self, number: int) -> int:
        self._masks.pop(number, None)
        theirs = self._theirs.pop(number)
        self._waiting.discard(number)
        del self._ours[theirs]
        return theirs

    def _refuse(self, number: int, message: str, *, ours: bool) -> None:
        self._send(Refused(number, message, ours))

    def _read(self) -> None:
        while (body := receive(self._reader)) is not None:
            request = self._decoder.decode(body)
            if isinstance(request, Add) and request.grammar is not None:
                self._compile(request, request.grammar)
            else:
                self._requests.put(request)
        self._requests.put(None)
        threading.Timer(5, os._exit, (0,)).start()  # a step that never ends keeps no GPU

    def _compile(self, request: Add, grammar: str) -> None:
        """Compile the grammar of a request, which is taken then; requests behind it do not wait."""

        def compiled() -> GrammarMask:
            if self._grammars is None:
                raise RequestError("this model has no tokenizer.json, which grammars need")
            return self._grammars.mask(grammar, request.params.stop_token_ids)

        self._compiling.add(request.number)
        self._compiler.submit(compiled).add_done_callback(
            lambda mask: self._requests.put(Compiled(request, mask))
        )

    def _send(self, message: object) -> None:
        self._connection.sendall(frame(message))


def main() -> None:
    """Open the model as the first message says, and serve until the connection closes."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection = socket.socket(fileno=int(sys.argv[1]))
    reader = connection.makefile("rb")  # buffered: after each read, the thread waits until a step lets it run
    first = receive(reader)
    if first is None:
        return
    options = msgspec.msgpack.decode(first, type=EngineOptions)
    try:
        with logs.on_stderr(), _opened(options, connection) as (engine, ready, grammars):
            connection.sendall(frame(ready))
            EngineWorker(engine, connection, reader, grammars).serve()
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        message = str(error) if isinstance(error, InfernumError) else f"{type(error).__name__}: {error}"
        connection.sendall(frame(Failed(message)))
        if not isinstance(error, InfernumError):
            raise
        sys.exit(2)


@contextmanager
def _opened(
    options: EngineOptions, connection: socket.socket
) -> Generator[tuple[Engine, Ready, Grammars | None]]:
    """The engine, what the server is told of it, and the grammars over its tokens."""
    plugins.load_installed()
    for path in options.plugins:
        plugins.load_plugin(path)
    if options.null_token_us is not None:
        yield *_null_engine(options.model, options.null_token_us), None
        return
    with LLM(
        options.model,
        options.device,
        options.dtype,
        options.fuse,
        options.bundle,
        load_format=options.load_format,
        rules=options.rules,
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_model_len=options.max_model_len,
        max_itl_ms=options.max_itl_ms,
        deterministic=options.deterministic,
        tensor_parallel_size=options.tensor_parallel_size,
        max_num_seqs=options.max_num_seqs,
        max_pages_total=options.max_pages_total,
        seed=options.seed,
        warm_graphs=True,
        progress=lambda what, done, total: connection.sendall(frame(Loading(what, done, total))),
    ) as llm:
        manifest = llm.bundle.manifest
        vocab, ends = manifest.model.vocab_size, llm.engine.end_tokens
        yield (
            llm.engine,
            _ready(llm.engine, vocab, llm.device, manifest.dtype, _origin(manifest)),
            Grammars(llm.source.folder / TOKENIZER, vocab, ends) if llm.source.folder else None,
        )


def _null_engine(model: str, token_us: float) -> tuple[Engine, Ready]:
    """An engine with a model's vocabulary and context, whose tokens are random and cost `token_us` µs each."""
    config = resolve(model).config
    rows = NULL_ROWS
    pages = rows * dims.ceildiv(config.max_position_embeddings, NullExecutor.page_size)
    info = ModelInfo(
        family="null",
        name="null",
        config={},
        config_hash="",
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        num_layers=1,
    )
    engine = Engine(NullExecutor(pages, rows, config.vocab_size, token_us / 1e6), info)
    return engine, _ready(engine, info.vocab_size, "no device", NullExecutor.dtype, "null")


def _ready(engine: Engine, vocab_size: int, device: str, dtype: str, origin: str) -> Ready:
    executor = engine.executor
    return Ready(engine.longest, vocab_size, executor.num_pages, executor.page_size, device, dtype, origin)


def _origin(manifest: Manifest) -> str:
    facts = [manifest.infernum, manifest.model.config_hash, manifest.arch, manifest.dtype, manifest.rules]
    facts += [manifest.ranks]
    return hashlib.sha256(repr(facts).encode()).hexdigest()
