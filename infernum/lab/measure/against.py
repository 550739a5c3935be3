"""The time of the same generation in transformers: our weights, our prompts, a static cache and torch.compile.

The peer is LlamaForCausalLM with sdpa attention. Its prompt runs eagerly, as transformers itself runs it; its decode
step is compiled with `mode="max-autotune"`, which ends in a CUDA graph, and fed back by a loop of our own, without what
`generate` adds. Tokens stay on the device and are read at the end. Neither torch nor transformers is a dependency.
"""

from __future__ import annotations

import gc
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from infernum.dtypes import relative_error
from infernum.errors import DeviceError, RequestError
from infernum.lab.measure.generation import Generation, TimedGeneration, times
from infernum.models.config import FamilyConfig
from infernum.models.llama import LlamaConfig
from infernum.step import Float32, Int32

HOW = 'LlamaForCausalLM, sdpa, StaticCache; prompt eager, decode torch.compile(mode="max-autotune", fullgraph=True)'

WARM_UPS = 2
"""Generations ahead of the timed ones: they compile, choose kernels by timing them, and record the CUDA graph."""

ERROR_FACTOR = 3
"""Factor on the error allowed against our unfused path: transformers rounds elsewhere, and the logits to bf16."""

Compile = Callable[[Any], Any]


def check_comparable(config: FamilyConfig) -> None:
    """Raises RequestError unless torch for CUDA and transformers are installed, and the model is a Llama."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise RequestError(
            f"--against transformers needs {' and '.join(missing)}, which Infernum does not bring;"
            " pip install torch transformers"
        )
    if importlib.metadata.version("torch").endswith("+cpu"):
        raise RequestError("--against transformers: this torch is built for CPUs; install one for CUDA")
    if not isinstance(config, LlamaConfig) or config.model_type != LlamaConfig.model_type:
        raise RequestError(f"--against transformers compares llama, not {config.model_type}; leave it out")


def against_transformers(
    config: FamilyConfig,
    tensors: Mapping[str, Any],
    generation: Generation,
    ours: Sequence[TimedGeneration],
    checked: tuple[Int32, Float32],
    places: Sequence[int],
    allowed: float,
    compiled: Compile | None = None,
) -> dict[str, Any]:
    """Time transformers with our weights as often as `ours`, our greedy generations, and relate the two times.

    tensors  by name in the checkpoint; they are neither copied nor referenced afterwards
    checked  tokens [batch, tokens] of one of our generations, and its logits [places, batch, vocab] at `places`
    allowed  relative error between our own two paths; ERROR_FACTOR times as much is allowed for transformers

    Raises DeviceError, and gives no number, when their logits for our tokens differ by more.
    """
    assert isinstance(config, LlamaConfig), "check_comparable lets only this family through"
    peer = Peer(config, tensors, generation, compiled or max_autotune)
    try:
        begin = time.perf_counter()
        for _ in range(WARM_UPS):
            peer.generate()
        warm = time.perf_counter() - begin
        timings = [peer.generate() for _ in ours]
        logits = peer.forced_logits(checked[0], places)
        skips = peer.graph_skips()
    finally:
        peer.close()
    error = relative_error(logits, checked[1])
    if not error <= ERROR_FACTOR * allowed:
        raise DeviceError(
            f"the logits of transformers differ from ours by {error:.2e}, more than {ERROR_FACTOR * allowed:.2e};"
            " no result is given"
        )
    theirs, our_times = times(timings), times(ours)
    return {
        "name": "transformers",
        "how": HOW,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "warm_up_seconds": warm,
        "cuda_graph_skips": skips,
        **theirs,
        "speedup": theirs["ms_per_token"] / our_times["ms_per_token"],
        "prompt_speedup": theirs["prompt_ms"] / our_times["prompt_ms"],
        "error_against_ours": error,
        "allowed_error": ERROR_FACTOR * allowed,
        "tokens_that_agree": tokens_that_agree(timings[-1].output, ours[-1].output),
    }


def max_autotune(forward: Any) -> Any:
    """The decode step as transformers' users compile it for speed: kernels chosen by timing, run as a CUDA graph."""
    return import_module("torch").compile(forward, mode="max-autotune", fullgraph=True, dynamic=False)


def tokens_that_agree(output: Int32, ours: Int32) -> int:
    """Tokens [batch, tokens] ahead of the first in which any sequence differs."""
    differs = (output != ours).any(axis=0)
    return int(differs.argmax()) if differs.any() else output.shape[1]


def language_model(config: LlamaConfig, tensors: Mapping[str, Any]) -> Any:
    """LlamaForCausalLM whose parameters are `tensors`, by their names in the checkpoint.

    The model allocates no weights. Only the frequencies of its rotary embedding, which no checkpoint has, are computed.
    Raises RequestError when transformers refuses the config, or its parameters are not those of `tensors`.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    try:
        theirs = transformers.LlamaConfig(**_fields(config), attn_implementation="sdpa")
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(theirs)
    except (TypeError, ValueError) as error:
        raise RequestError(f"transformers refuses this config: {str(error).splitlines()[0]}") from error
    assert model.config._attn_implementation == "sdpa", "transformers uses the attention of the config"
    names = {name for name, _ in model.named_parameters()}  # a tied parameter comes once
    if names != set(tensors):
        raise RequestError(f"transformers and the bundle disagree about {sorted(names ^ set(tensors))[:3]}")
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, torch.nn.Parameter(tensors[name], requires_grad=False))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    device = next(iter(tensors.values())).device
    model.model.rotary_emb = type(model.model.rotary_emb)(theirs).to(device)
    return model.eval()


def _fields(config: LlamaConfig) -> dict[str, Any]:
    """A config as transformers names its fields."""
    rope: dict[str, Any] = {"rope_type": config.rope.kind, "rope_theta": config.rope.theta}
    if config.rope.kind != "default":
        rope["factor"] = config.rope.factor
    if config.rope.kind == "llama3":
        rope |= {
            "low_freq_factor": config.rope.low_freq_factor,
            "high_freq_factor": config.rope.high_freq_factor,
            "original_max_position_embeddings": config.rope.original_max_position,
        }
    if config.rope.kind in ("yarn", "longrope"):
        names = {
            "yarn": ("attention_factor", "beta_fast", "beta_slow", "truncate"),
            "longrope": ("attention_factor", "short_factor", "long_factor"),
        }
        rope |= {name: getattr(config.rope, name) for name in names[config.rope.kind]}
        rope["original_max_position_embeddings"] = config.rope.original_max_position
    fields = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "attention_bias", "mlp_bias"),
        *("tie_word_embeddings", "max_position_embeddings"),
    )
    return {name: getattr(config, name) for name in fields} | {"rope_parameters": rope, "hidden_act": "silu"}


class Peer:
    """The model in transformers, its cache and its compiled step, for one generation at a time."""

    def __init__(
        self, config: LlamaConfig, tensors: Mapping[str, Any], generation: Generation, compiled: Compile
    ) -> None:
        self._torch: Any = import_module("torch")
        self._tokens = generation.tokens
        self._model: Any = language_model(config, tensors)
        self._device = next(self._model.parameters()).device
        self._prompts: Any = self._ids(generation.prompts)
        length = generation.prompts.shape[1] + generation.tokens
        self._cache: Any = import_module("transformers").StaticCache(
            config=self._model.config, max_cache_len=length
        )
        self._step: Any = compiled(self._model.forward)

    def generate(self) -> TimedGeneration:
        """Prompt and greedy tokens, by the wall clock between synchronisations; copying tokens to the host counts."""
        torch = self._torch
        with torch.no_grad():
            self._cache.reset()
            self._synchronize()
            begin = time.perf_counter()
            tokens = [self._prompt().argmax(-1, keepdim=True)]
            self._synchronize()
            decode_begin = time.perf_counter()
            for _ in range(self._tokens - 1):
                tokens.append(self._decode(tokens[-1]).argmax(-1, keepdim=True))
            output = torch.cat(tokens, dim=1).cpu()
            end = time.perf_counter()
        return TimedGeneration(decode_begin - begin, end - decode_begin, output.numpy().astype(np.int32))

    def forced_logits(self, output: Int32, places: Sequence[int]) -> Float32:
        """Their logits for each of `places` when fed the tokens `output` [batch, tokens]: [places, batch, vocab]."""
        rows: list[Float32] = []
        with self._torch.no_grad():
            self._cache.reset()
            self._prompt()
            for place in range(1, max(places) + 1):
                logits = self._decode(self._ids(output[:, place - 1 : place]))  # strides as in `generate`
                if place in places:
                    rows.append(logits.float().cpu().numpy())
        return np.stack(rows)

    def graph_skips(self) -> int:
        """How often torch has compiled a step but captured no CUDA graph of it; 0 in a fair comparison."""
        counters: Any = import_module("torch._dynamo.utils").counters
        return int(counters["inductor"]["cudagraph_skips"])

    def close(self) -> None:
        """Free the model, the cache and the graphs; the weights stay."""
        del self._model, self._cache, self._step, self._prompts
        self._torch.compiler.reset()
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()
            self._torch.cuda.empty_cache()

    def _prompt(self) -> Any:
        """The logits after the prompts, [batch, vocab]."""
        return self._model(
            input_ids=self._prompts, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]

    def _decode(self, tokens: Any) -> Any:
        """The logits after one more token of each sequence, [batch, 1] -> [batch, vocab]; valid until the next call."""
        self._torch.compiler.cudagraph_mark_step_begin()
        return self._step(input_ids=tokens, past_key_values=self._cache, use_cache=True).logits[:, -1]

    def _ids(self, tokens: Int32) -> Any:
        return self._torch.tensor(tokens.tolist(), device=self._device)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()
