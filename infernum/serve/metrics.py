"""What the server counts, under the names that dashboards of vLLM know, in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily

from infernum.serve.wire import Load, Ready

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
GAPS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Ended:
    """A sequence that has ended, and when it came how far, in seconds of one clock."""

    reason: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    asked: float
    begun: float
    first: float
    last: float


class Histogram:
    """Counts values by upper bounds. Cheaper than prometheus_client's, which locks and looks at every bound."""

    def __init__(self, name: str, help: str, model: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._help = help
        self._model = model
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or several equal ones."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram, for prometheus_client."""
        family = HistogramMetricFamily(self._name, self._help, labels=("model_name",))
        bounds = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        family.add_metric((self._model,), list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
        yield family


class Metrics:
    """All metrics of one server, each with the label `model_name`, and those of its process, such as its CPU time."""

    def __init__(self, prefix: str, model: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._prefix = prefix
        self._model = model
        self.running = self._gauge("num_requests_running", "Sequences that are computed.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences that wait to be admitted.")
        self.cache_usage = self._gauge("kv_cache_usage_perc", "Share of the KV cache that is in use, 0 to 1.")
        self.preemptions = self._counter("num_preemptions", "Times that a sequence gave back its pages.")
        self.cache_queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts that were sought in the cache."
        )
        self.cache_hits = self._counter("prefix_cache_hits", "Tokens of prompts that the cache had.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.prompt_tokens_cached = self._counter(
            "prompt_tokens_cached", "Tokens of prompts that the cache had."
        )
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self._step_tokens = Counter(
            f"{prefix}:step_tokens",
            "Tokens of steps: those of prompts that were computed, and those that were sampled.",
            ("model_name", "kind"),
            registry=self._registry,
        )
        self.step_seconds = self._histogram("step_seconds", "From the end of one step to the next's.", GAPS)
        self.idle_seconds = self._counter(
            "gpu_idle_seconds",
            "Between steps, while the device waited though there was a sequence to compute.",
        )
        self.iteration_tokens = self._histogram("iteration_tokens_total", "Tokens of a step.", TOKENS)
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From request to first token.", SECONDS
        )
        self.gap = self._histogram("inter_token_latency_seconds", "From one token to the next.", GAPS)
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean gap of a request.", GAPS
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "From request to last token.", SECONDS)
        self.queued = self._histogram("request_queue_time_seconds", "From request to admission.", SECONDS)
        self.prefill = self._histogram(
            "request_prefill_time_seconds", "From admission to first token.", SECONDS
        )
        self.decode = self._histogram("request_decode_time_seconds", "From first to last token.", SECONDS)
        self.request_prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.request_output = self._histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.request_n = self._histogram("request_params_n", "n of a request.", (1, 2, 5, 10, 20, 50, 128))
        self.request_most = self._histogram("request_params_max_tokens", "max_tokens of a request.", TOKENS)
        self._success = Counter(
            f"{prefix}:request_success",
            "Sequences that have ended, by reason.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._last = Load()

    def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def ended(self, sequence: Ended) -> None:
        """Count a sequence that has ended."""
        self._success.labels(self._model, sequence.reason).inc()
        self.request_prompt.observe(sequence.prompt_tokens)
        self.request_output.observe(sequence.output_tokens)
        self.request_most.observe(sequence.max_tokens)
        self.whole.observe(sequence.last - sequence.asked)
        self.queued.observe(sequence.begun - sequence.asked)
        self.prefill.observe(sequence.first - sequence.begun)
        self.decode.observe(sequence.last - sequence.first)
        if sequence.output_tokens > 1:
            self.per_token.observe((sequence.last - sequence.first) / (sequence.output_tokens - 1))

    def stepped(
        self, load: Load, ready: Ready, output: int, first: Iterable[float], gaps: Mapping[float, int]
    ) -> None:
        """Take over the engine's own sums after a step, in which it sampled `output` tokens.

        `first` are the seconds since their request of the tokens that are a sequence's first, `gaps` the numbers of
        others by the seconds since their sequence's last.
        """
        last, self._last = self._last, load
        self.running.set(load.running)
        self.waiting.set(load.waiting)
        self.cache_usage.set(1 - load.free_pages / ready.pages)
        self.preemptions.inc(load.preempted - last.preempted)
        computed, cached = load.prompt_tokens - last.prompt_tokens, load.cached_tokens - last.cached_tokens
        self.prompt_tokens.inc(computed + cached)
        self.cache_queries.inc(computed + cached)
        self.cache_hits.inc(cached)
        self.prompt_tokens_cached.inc(cached)
        self.generation_tokens.inc(output)
        self._step_tokens.labels(self._model, "prompt").inc(computed)
        self._step_tokens.labels(self._model, "decode").inc(output)
        self.idle_seconds.inc(load.idle_seconds - last.idle_seconds)
        if load.seconds > last.seconds:
            self.step_seconds.observe(load.seconds - last.seconds)
        self.iteration_tokens.observe(computed + output)
        for seconds in first:
            self.first_token.observe(seconds)
        for gap, count in gaps.items():
            self.gap.observe(gap, count)

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(f"{self._prefix}:{name}", help, ("model_name",), registry=self._registry).labels(
            self._model
        )

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"{self._prefix}:{name}", help, ("model_name",), registry=self._registry).labels(
            self._model
        )

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"{self._prefix}:{name}", help, self._model, buckets)
        self._registry.register(histogram)  # pyright: ignore[reportArgumentType]  # all that it needs is `collect`
        return histogram
