"""The bundles that GPU tests are about: which model, in which type, fused or not; each compiled once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import composed
import pytest
from oracle.configs import CASES

from infernum.bundle import Bundle, write_bundle
from infernum.bundle_cache import cached
from infernum.cache import cache_folder
from infernum.codegen.nvrtc import compile_all, nvrtc_version
from infernum.compiler import Options, cached_bundle, describe, emit_blocks, prepare, texts
from infernum.manifest import spec_of
from infernum.models.presets import ModelSource, resolve

PAGES = 80
"""Pages of the KV cache that a test's model may have: enough, quick to poison, and room for tests beside this one."""

_AT_ONCE = 4


TURNED_HEADS = {
    composed.NeighboursConfig: (80, 96, 256),
    composed.PositionConfig: (64, 80, 256),
    composed.LongConfig: (96,),
}
"""Families that turn heads unlike Llama, and their head sizes."""


@dataclass(frozen=True)
class Recipe:
    """A model (a preset, an oracle case or one of `MODELS`), its dtype, and whether the rules are applied.

    `variant`: the only class of steps that it is compiled for; all where it is empty.
    """

    model: str
    dtype: str
    fuse: bool
    variant: str = ""

    def __str__(self) -> str:
        fused = "fused" if self.fuse else "unfused"
        return "-".join(filter(None, (self.model, self.dtype, fused, self.variant)))


def compile_recipe(recipe: Recipe, source: ModelSource, arch: str) -> Bundle:
    """The bundle of a recipe: from the cache, or compiled into it."""
    options = Options(arch=arch, dtype=recipe.dtype, fuse=recipe.fuse)
    if not recipe.variant:
        return cached_bundle(source, options)

    def make(folder: Path) -> Bundle:
        sources = prepare(source, options)
        sources = replace(sources, variants=[spec_of(sources.variants, recipe.variant)])
        files = ((f"{block.stem}.cu", block.source) for block in emit_blocks(sources))
        cubins = compile_all(files, arch, cache=cache_folder())
        by_stem = {name.removesuffix(".cu"): cubin for name, cubin in cubins.items()}
        contents = texts(sources) | {f"{stem}.cubin": cubin.data for stem, cubin in by_stem.items()}
        return write_bundle(folder, describe(sources, by_stem), contents)

    return cached(source, [arch, str(recipe)], make)


MODELS: dict[str, dict[str, Any]] = (
    {
        "odd": {
            "model_type": "llama",
            "hidden_size": 90,
            "intermediate_size": 77,
            "num_hidden_layers": 1,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 30,
            "vocab_size": 133,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
        },
        "llama_layer": {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 1,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 4099,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": True,
        },
    }
    | {
        f"heads_{heads}_{kv_heads}_{dim}": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": dim,
            "vocab_size": 133,
            "max_position_embeddings": 4160,
        }
        for heads, kv_heads, dim in (
            *((2, 2, 64), (8, 2, 64), (16, 2, 64), (2, 2, 128), (8, 2, 128), (16, 2, 128)),
            (64, 64, 16),
        )
    }
    | {
        f"window_{window}_{dim}": {
            "model_type": "mistral",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": dim,
            "vocab_size": 133,
            "max_position_embeddings": 8320,
            "sliding_window": window,
        }
        for window in (5, 100, 5000)
        for dim in (64, 80, 128, 256)
    }
    | {
        f"{model_type}_{dim}": {
            "model_type": model_type,
            "hidden_size": 192,
            "intermediate_size": 320,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 100,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": dim,
            "query_pre_attn_scalar": 100,
            "attn_logit_softcapping": 3.0 if model_type == "gemma2" else None,
            "final_logit_softcapping": 5.0 if model_type == "gemma2" else None,
            "vocab_size": 133,
            "max_position_embeddings": 4160,
        }
        for model_type in ("gemma2", "gemma3_text")
        for dim in (64, 128, 256)
    }
    | {
        config.model_type: {
            "model_type": config.model_type,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": 133,
            "max_position_embeddings": 512,
        }
        for config in composed.LAYERS
    }
    | {
        f"{config.model_type}_{dim}": {
            "model_type": config.model_type,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": dim,
            "vocab_size": 133,
            "max_position_embeddings": 512,
        }
        for config, sizes in TURNED_HEADS.items()
        for dim in sizes
    }
)
"""Sizes that are multiples of nothing, one layer of Llama 3.2 1B with a vocabulary cut short, and layers that are
little but attention: heads, key heads and head size of those that wgmma serves, in groups of 1, 4 and 8; and so many
key heads that a cluster has two blocks; windows shorter than a step of a few tokens, and longer than what a kernel
calls a long context; layers of Gemma, with caps that bite; and a layer of each family of `composed`, at
several head sizes where it turns heads unlike Llama."""


def grouped(recipes: Iterable[Recipe]) -> list[Any]:
    """Recipes as parameters of tests. `pytest --dist loadgroup` gives all tests of a recipe to one process."""
    return [
        pytest.param(recipe, id=str(recipe), marks=pytest.mark.xdist_group(str(recipe))) for recipe in recipes
    ]


class Bundles:
    """Compiles recipes into bundles in the cache, several at a time, each once, also by several processes.

    `folder` gets the configs of models. All models but presets have one name, which is in the title of a source: so
    models that give a block the same sizes share what NVRTC makes of it. Samplers depend on the vocabulary only.
    """

    def __init__(self, folder: Path, arch: str) -> None:
        self._folder = folder
        self._arch = arch
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._made: dict[Recipe, Future[Bundle]] = {}
        self._sources: dict[str, ModelSource] = {}
        composed.register()
        nvrtc_version()  # loads NVRTC before the threads that share it start

    def prepare(self, recipes: Iterable[Recipe]) -> None:
        """Begin to compile what will be asked for."""
        for recipe in recipes:
            if recipe not in self._made:
                source = self.source(recipe.model)
                self._made[recipe] = self._pool.submit(self._compile, recipe, source)

    def get(self, recipe: Recipe) -> Bundle:
        """The bundle of a recipe, once it is compiled."""
        self.prepare([recipe])
        return self._made[recipe].result()

    def source(self, model: str) -> ModelSource:
        """The settings of a model by name."""
        if model in self._sources:
            return self._sources[model]
        configs = {case.name: case.config for case in CASES} | MODELS
        if model not in configs:
            return self._sources.setdefault(model, resolve(model))
        folder = self._folder / "configs" / model
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(configs[model]), encoding="utf-8")
        return self._sources.setdefault(model, replace(resolve(str(folder)), name="tiny"))

    def close(self) -> None:
        """Leave out what has not been begun."""
        self._pool.shutdown(cancel_futures=True)

    def _compile(self, recipe: Recipe, source: ModelSource) -> Bundle:
        return compile_recipe(recipe, source, self._arch)
