"""What the server and the engine's process say to each other: messages in MessagePack, each behind its length.

Both ends are one program in one version, on an inherited pair of sockets that nobody else can reach.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import msgspec

from infernum.sampling_params import SamplingParams

_LENGTH = struct.Struct("<I")

LENGTH_BYTES = _LENGTH.size


class EngineOptions(msgspec.Struct, kw_only=True, frozen=True):
    """How the engine's process opens the model: arguments of `LLM`, and files of plugins.

    With `null_token_us` no model is opened: tokens are random, and a step takes so many µs for each.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    fuse: bool = True
    bundle: str | None = None
    rules: tuple[str, ...] = ()
    load_format: str = "auto"
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    max_pages_total: int | None = None
    seed: int = 0
    max_itl_ms: float | None = None
    deterministic: bool = False
    tensor_parallel_size: int = 1
    max_num_seqs: int | None = None
    plugins: tuple[str, ...] = ()
    null_token_us: float | None = None


class Add(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Generate for a prompt. `tokens` are int32; results carry `number`; the answer follows `grammar`."""

    number: int
    tokens: bytes
    params: SamplingParams
    priority: int
    salt: str
    grammar: str | None = None


class Cancel(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Stop these sequences, of which no more is to be heard."""

    numbers: list[int]


class Ready(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The model is loaded.

    longest  most tokens of a sequence, prompt and output
    pages    pages of the KV cache
    origin   what the answers depend on besides the request: the program's version, the model, and how it was compiled
    """

    longest: int
    vocab_size: int
    pages: int
    page_size: int
    device: str
    dtype: str
    origin: str


class Loading(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """How far some work of the start is: the amounts done and in all."""

    what: str
    done: int
    total: int


class Refused(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The engine does not take a sequence, or has ended it with an error."""

    number: int
    message: str
    ours: bool
    """True where the fault is not the request's."""


class Failed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The engine ends: it could not start, or a step failed for good."""

    message: str


class Logprobs(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The log-probability of a token, and the most likely tokens in its place with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class PromptScores(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The log-probabilities of the tokens of a prompt but the first: int32 and float32 [prompt − 1, columns].

    The first column is of the token itself, the others are of the most likely ones.
    """

    number: int
    columns: int
    tokens: bytes
    values: bytes


class Begun(msgspec.Struct, array_like=True, frozen=True):
    """A sequence is computed for the first time; the cache had so many tokens of its prompt."""

    number: int
    cached_tokens: int


class Load(msgspec.Struct, array_like=True, frozen=True):
    """What the engine is doing: sequences and pages now, and sums since its start.

    prompt_tokens  tokens of prompts that were computed
    cached_tokens  tokens of prompts that the cache had
    seconds        of steps
    idle_seconds   between steps, while the device waited though there was a sequence to compute
    """

    running: int = 0
    waiting: int = 0
    free_pages: int = 0
    steps: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    idle_seconds: float = 0.0


class Stepped(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The results of a step, what was launched since, and the state of the engine.

    numbers  of the sequences that have a new token
    tokens   the token of each; `NO_TOKEN` for one that ends with its prompt
    ends     places in `FINISH_REASONS`: why the sequence has ended with this token, 0 where it goes on
    logprobs of each token, None where its sequence asks for none; empty where no sequence does
    prompts  log-probabilities of prompts, with the first token behind each
    """

    numbers: list[int]
    tokens: list[int]
    ends: list[int]
    logprobs: list[Logprobs | None]
    prompts: list[PromptScores]
    begun: list[Begun]
    load: Load


ToEngine = Add | Cancel
FromEngine = Ready | Loading | Refused | Failed | Stepped


def frame(message: Any) -> bytes:
    """A message as it is sent."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """The bytes of the message behind a header of `LENGTH_BYTES` bytes."""
    return int(_LENGTH.unpack(header)[0])


def receive(reader: BinaryIO) -> bytes | None:
    """The next message, or None where the other side has closed."""
    header = reader.read(LENGTH_BYTES)
    if len(header) < LENGTH_BYTES:
        return None
    length = length_of(header)
    body = reader.read(length)
    return body if len(body) == length else None
