"""What `infernum doctor MODEL` looks at: configuration, headers of the weights, tokenizer, and memory; no weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from infernum.cli.folder_check import FolderCheck, Look

if TYPE_CHECKING:
    from infernum.manifest import Manifest
    from infernum.model_folder.folder import ModelFolder
    from infernum.models.presets import ModelSource

GPU_SHARE = 0.9
"""Share of a GPU's memory that a model may take, as `--gpu-memory-utilization` has it by default."""


def check_model(name: str, *, gpu_works: bool, numpy_works: bool) -> FolderCheck:
    """Look at a model folder, or at a preset; `runs` is false where `infernum run` could not run it here."""
    from infernum.model_folder.folder import look_at
    from infernum.models.presets import PRESETS, resolve

    folder = resolve(name).folder if name in PRESETS and not Path(name).is_dir() else Path(name)
    inside = None if folder is None else look_at(folder)
    if inside is not None and inside.problem is not None:
        problem = inside.problem
        seen = f"{problem.where}: {problem.what}"
        return FolderCheck(inside.folder, [Look("folder", False, seen, problem.mend)])
    source, config = _config(name if inside is None else str(inside.folder))
    looks = [config]
    if inside is None:
        looks.append(Look("weights", True, "none, a preset of shapes: --load-format dummy makes random ones"))
    else:
        looks += [_weights(inside), _tokenizer(inside, source)]
    if source is not None:
        looks += [_generation(source), *_of_config(source, inside)]
    works = all(look.fine for look in looks)
    on_gpu, in_numpy = works and gpu_works, works and numpy_works
    uses = {"run the model in NumPy": in_numpy, "run the model on the GPU": on_gpu}
    return FolderCheck(Path(name) if folder is None else folder, looks, uses, on_gpu or in_numpy)


def _config(name: str) -> tuple[ModelSource | None, Look]:
    """The settings, and what config.json says in a line; None where a model of that kind cannot be compiled."""
    from infernum.errors import InfernumError
    from infernum.models.presets import resolve

    try:
        source = resolve(name)
    except InfernumError as error:
        what, _, mend = str(error).partition("; ")
        return None, Look("configuration", False, what, mend)
    cfg = source.config
    facts = f"{source.family}, {cfg.num_hidden_layers} layers, vocabulary {cfg.vocab_size}"
    ignored = "".join(f"; {warning}" for warning in source.warnings)
    return source, Look(
        "configuration", True, f"{facts}, context {cfg.max_position_embeddings}, {cfg.dtype}{ignored}"
    )


def _weights(inside: ModelFolder) -> Look:
    """How much is stored in which types, from the headers."""
    from infernum.model_folder.problems import Problem

    weights = inside.weights
    if isinstance(weights, Problem):
        return Look("weights", False, f"{weights.where}: {weights.what}", weights.mend)
    kinds = ", ".join(f"{kind} {_size(count)}" for kind, count in weights.bytes_by_kind.items())
    files, tensors = len(weights.files), len(weights.tensors) - len(weights.aliases)
    return Look("weights", True, f"{tensors} tensors in {files} file{'s' * (files > 1)}: {kinds}")


def _tokenizer(inside: ModelFolder, source: ModelSource | None) -> Look:
    """A model runs without a tokenizer, on token ids; a tokenizer that cannot be read is a fault."""
    from infernum.engine.tokenizer import load_tokenizer
    from infernum.errors import InfernumError
    from infernum.model_folder.problems import Problem

    path = inside.tokenizer
    if path is None or isinstance(path, Problem):
        lacking = "no tokenizer.json" if path is None else f"{path.what}"
        mend = "download tokenizer.json" if path is None else path.mend
        return Look("tokenizer", path is None, f"{lacking}; prompts are token ids (--prompt-ids)", mend)
    try:
        tokenizer = load_tokenizer(inside.folder, source.generation.bos_token_id if source else None)
    except InfernumError as error:
        what, _, mend = str(error).partition("; ")
        return Look("tokenizer", False, what, mend)
    assert tokenizer is not None, "tokenizer.json is there"
    size = f"{tokenizer.vocab_size} tokens"
    if source is not None and tokenizer.vocab_size > source.config.vocab_size:
        return Look(
            "tokenizer",
            False,
            f"{size}, and the model knows {source.config.vocab_size}",
            "take tokenizer.json and config.json of the same model",
        )
    begin = [tokenizer.special.get(token, str(token)) for token in tokenizer.encode("")]
    return Look("tokenizer", True, f"{size}; puts {' '.join(begin)} around a prompt" if begin else size)


def _generation(source: ModelSource) -> Look:
    """What ends a text, and how tokens are drawn unless a request says otherwise."""
    generation = source.generation
    ends = ", ".join(map(str, generation.eos_token_ids)) or "nothing but the length"
    drawn = ", ".join(f"{name} {value:g}" for name, value in generation.sampling.items())
    if generation.do_sample is False:
        drawn = "always the most likely token"
    return Look("generation", True, f"ends at {ends}" + (f"; {drawn}" if drawn else ""))


def _of_config(source: ModelSource, inside: ModelFolder | None) -> Iterator[Look]:
    """Whether the weights are those of the configuration, and the memory that they take."""
    from infernum.checkpoint import Checkpoint
    from infernum.errors import InfernumError
    from infernum.graph_bundle import describe_graphs
    from infernum.llm import check_claims, check_tensors
    from infernum.model_folder.weights import FolderWeights

    try:
        weights = None if inside is None else inside.weights
        checkpoint = (
            Checkpoint(inside.folder, weights) if inside and isinstance(weights, FolderWeights) else None
        )
        if checkpoint is not None:
            check_claims(source, checkpoint)
        manifest = describe_graphs(source)
        if checkpoint is not None:
            check_tensors(manifest, checkpoint)
            yield Look("weights and configuration", True, "belong together")
        yield _memory(manifest)
    except InfernumError as error:
        what, _, mend = str(error).partition("; ")
        yield Look("weights and configuration", False, what, mend)


def _memory(manifest: Manifest) -> Look:
    """Bytes of weights and KV cache in the dtype of the manifest; what fits on the GPU at hand."""
    from infernum import dtypes
    from infernum.runtime.driver import gpu_available, gpu_facts
    from infernum.runtime.kv_cache import plan_cache
    from infernum.weights.plan import plan_weights

    weights = plan_weights(manifest).total_bytes
    token = plan_cache(manifest).total_page_bytes / manifest.page_size
    context = manifest.model.context
    facts = (
        f"{_size(weights)} of weights as {manifest.dtype}, and {_size(token)} of KV cache a token:"
        f" {_size(token * context)} for the whole context of {context}"
    )
    if gpu_available():
        gpu = gpu_facts(0)
        room = GPU_SHARE * gpu.total_bytes - weights
        fits = f"{gpu.name} has {_size(gpu.total_bytes)}"
        if room < token * manifest.page_size:
            return Look("memory", False, f"{facts}; {fits}", "use a smaller dtype, or a GPU with more memory")
        return Look("memory", True, f"{facts}; {fits}, room for {int(room / token):,} tokens in all")
    in_numpy = weights * 4 / dtypes.dtype(manifest.dtype).bytes
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts += f"; NumPy holds the weights in float32, {_size(in_numpy)}, and this machine has {_size(here)}"
    if in_numpy > here:
        return Look("memory", False, facts, "run it on a GPU, or on a machine with more memory")
    return Look("memory", True, facts)


def _size(count: float) -> str:
    """Bytes in the unit that reads best: 2.47 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
