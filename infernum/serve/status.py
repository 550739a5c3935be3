"""/status: what is served and what is being computed, which metrics do not say of single sequences."""

from __future__ import annotations

import time
from itertools import islice

from infernum import __version__
from infernum.serve.engine_client import Inbox
from infernum.serve.responses import SequenceStatus, Status
from infernum.serve.served import Served

MOST_SEQUENCES = 256
"""Sequences that are described. Metrics count all of them."""


def status(served: Served, trouble: str | None) -> Status:
    """The state of a server; `trouble` is why it is not healthy."""
    engine, ready, now = served.engine, served.ready, time.monotonic()
    return Status(
        model=served.names[0],
        device=ready.device,
        dtype=ready.dtype,
        max_model_len=ready.longest,
        vocab_size=ready.vocab_size,
        pages=ready.pages,
        page_size=ready.page_size,
        chat=served.has_chat,
        version=__version__,
        seconds=time.time() - served.created,
        unfinished=engine.unfinished,
        sequences=[_sequence(inbox, now) for inbox in islice(engine.inboxes, MOST_SEQUENCES)],
        trouble=trouble,
    )


def _sequence(inbox: Inbox, now: float) -> SequenceStatus:
    return SequenceStatus(
        request=inbox.request,
        state="waiting" if inbox.begun is None else "prompt" if inbox.first is None else "answer",
        seconds=now - inbox.asked,
        prompt_tokens=inbox.prompt_tokens,
        cached_tokens=inbox.cached_tokens,
        output_tokens=inbox.output_tokens,
        max_tokens=inbox.max_tokens,
    )
