"""What `infernum doctor MODEL` checks: configuration, weights (headers only), tokenizer and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from infernum.cli.console import size_text
from infernum.cli.folder_check import CheckResult, FolderCheck

if TYPE_CHECKING:
    from infernum.manifest import Manifest
    from infernum.model_folder.folder import ModelFolder
    from infernum.model_folder.problems import Problem
    from infernum.models.presets import ModelSource

GPU_SHARE = 0.9
"""Share of a GPU's memory that a model may take: the default of `--gpu-memory-utilization`."""


def check_model(name: str, *, gpu_works: bool, numpy_works: bool) -> FolderCheck:
    """Check a model folder or a preset."""
    from infernum.model_folder.folder import look_at
    from infernum.models.presets import PRESETS, resolve

    folder = resolve(name).folder if name in PRESETS and not Path(name).is_dir() else Path(name)
    inside = None if folder is None else look_at(folder)
    if inside is not None and inside.problem is not None:
        return FolderCheck(inside.folder, [_problem("folder", inside.problem)])
    source, config = _config(name if inside is None else str(inside.folder))
    results = [config]
    if inside is None:
        results.append(
            CheckResult("weights", True, "none, a preset of shapes: --load-format dummy makes random ones")
        )
    else:
        results += [_weights(inside), _tokenizer(inside, source), _chat_template(inside)]
    if source is not None:
        results += [_generation(source), *_of_config(source, inside)]
    works = all(result.ok for result in results)
    on_gpu, in_numpy = works and gpu_works, works and numpy_works
    uses = {"run the model in NumPy": in_numpy, "run the model on the GPU": on_gpu}
    return FolderCheck(Path(name) if folder is None else folder, results, uses, on_gpu or in_numpy)


def _config(name: str) -> tuple[ModelSource | None, CheckResult]:
    """The settings, None where the model cannot be compiled, and a line about config.json."""
    from infernum.errors import InfernumError
    from infernum.models.presets import resolve

    try:
        source = resolve(name)
    except InfernumError as error:
        return None, _error("configuration", error)
    cfg = source.config
    facts = f"{source.family}, {cfg.num_hidden_layers} layers, vocabulary {cfg.vocab_size}"
    ignored = "".join(f"; {warning}" for warning in source.warnings)
    facts += f", context {cfg.max_position_embeddings}, {cfg.dtype}{ignored}"
    return source, CheckResult("configuration", True, facts)


def _weights(inside: ModelFolder) -> CheckResult:
    """Tensors, files, and bytes by stored type, from the headers."""
    from infernum.model_folder.problems import Problem

    weights = inside.weights
    if isinstance(weights, Problem):
        return _problem("weights", weights)
    kinds = ", ".join(f"{kind} {size_text(count)}" for kind, count in weights.bytes_by_kind.items())
    files, tensors = len(weights.files), len(weights.tensors) - len(weights.aliases)
    return CheckResult("weights", True, f"{tensors} tensors in {files} file{'s' * (files > 1)}: {kinds}")


def _tokenizer(inside: ModelFolder, source: ModelSource | None) -> CheckResult:
    """A missing tokenizer is in order, since a model then runs on token ids; an unreadable tokenizer is not."""
    from infernum.engine.tokenizer import load_tokenizer
    from infernum.errors import InfernumError
    from infernum.model_folder.problems import Problem

    path = inside.tokenizer
    if path is None or isinstance(path, Problem):
        what, mend = (
            ("no tokenizer.json", "download tokenizer.json") if path is None else (path.what, path.mend)
        )
        return CheckResult("tokenizer", path is None, f"{what}; prompts are token ids (--prompt-ids)", mend)
    try:
        tokenizer = load_tokenizer(inside.folder, source.generation.bos_token_id if source else None)
    except InfernumError as error:
        return _error("tokenizer", error)
    assert tokenizer is not None, "tokenizer.json is there"
    size = f"{tokenizer.vocab_size} tokens"
    if source is not None and tokenizer.vocab_size > source.config.vocab_size:
        details = f"{size}, and the model knows {source.config.vocab_size}"
        return CheckResult(
            "tokenizer", False, details, "take tokenizer.json and config.json of the same model"
        )
    begin = [tokenizer.special.get(token, str(token)) for token in tokenizer.encode("")]
    return CheckResult(
        "tokenizer", True, f"{size}; special tokens of a prompt: {' '.join(begin)}" if begin else size
    )


def _chat_template(inside: ModelFolder) -> CheckResult:
    """Where the template of conversations stands, and what ends an answer. A model without one continues texts."""
    from infernum.chat.chat import Chat
    from infernum.chat.files import templates_in
    from infernum.engine.tokenizer import load_tokenizer
    from infernum.errors import InfernumError

    try:
        templates = templates_in(inside.folder)
        if not templates:
            return CheckResult("chat template", True, "none; `infernum run` continues a text")
        tokenizer = load_tokenizer(inside.folder)
        if tokenizer is None:
            return CheckResult("chat template", True, "of no use without a tokenizer")
        chat = Chat(templates, tokenizer)
        end = chat.end_of_turn
        chat.close()
    except InfernumError as error:
        return _error("chat template", error)
    names = ", ".join(Path(file.where).name for file in templates.values())
    return CheckResult("chat template", True, f"{names}; an answer ends at {end or 'an end token'}")


def _generation(source: ModelSource) -> CheckResult:
    """The end tokens, and the sampling parameters that a request has by default."""
    generation = source.generation
    ends = ", ".join(map(str, generation.eos_token_ids)) or "nothing but the length"
    sampling = ", ".join(f"{name} {value:g}" for name, value in generation.sampling.items())
    if generation.do_sample is False:
        sampling = "always the most likely token"
    return CheckResult("generation", True, f"ends at {ends}" + (f"; {sampling}" if sampling else ""))


def _of_config(source: ModelSource, inside: ModelFolder | None) -> Iterator[CheckResult]:
    """Whether weights and configuration belong together, and the memory that the model takes."""
    from infernum.checkpoint import Checkpoint
    from infernum.errors import InfernumError
    from infernum.graph_bundle import describe_graphs
    from infernum.model_folder.weights import FolderWeights
    from infernum.opening import check_claims, check_tensors

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
            yield CheckResult("weights and configuration", True, "belong together")
        yield _memory(manifest)
    except InfernumError as error:
        yield _error("weights and configuration", error)


def _problem(what: str, problem: Problem) -> CheckResult:
    return CheckResult(what, False, f"{problem.where}: {problem.what}", problem.mend)


def _error(what: str, error: Exception) -> CheckResult:
    """A failed check, from the sentence of an error: what is wrong, and after a semicolon what mends it."""
    wrong, _, mend = str(error).partition("; ")
    return CheckResult(what, False, wrong, mend)


def _memory(manifest: Manifest) -> CheckResult:
    """Bytes of weights and KV cache in the manifest's dtype, and how much of them fits on this machine."""
    from infernum import dtypes
    from infernum.runtime.driver import gpu_available, gpu_facts
    from infernum.runtime.kv_cache import plan_cache, sequence_bytes
    from infernum.weights.plan import plan_weights

    weights = plan_weights(manifest).total_bytes
    token = plan_cache(manifest).total_page_bytes / manifest.page_size
    context = manifest.model.context
    longest = sequence_bytes(manifest, context)
    facts = (
        f"{size_text(weights)} of weights as {manifest.dtype}, and {size_text(token)} of KV cache a token:"
        f" {size_text(longest)} for the whole context of {context}"
    )
    if gpu_available():
        gpu = gpu_facts(0)
        room = GPU_SHARE * gpu.total_bytes - weights
        fits = f"{gpu.name} has {size_text(gpu.total_bytes)}"
        if room < token * manifest.page_size:
            return CheckResult(
                "memory", False, f"{facts}; {fits}", "use a smaller dtype, or a GPU with more memory"
            )
        tokens = int(room / longest * context)
        return CheckResult(
            "memory", True, f"{facts}; {fits}, room for {tokens:,} tokens where sequences are that long"
        )
    in_numpy = weights * 4 / dtypes.dtype(manifest.dtype).bytes
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts += (
        f"; NumPy holds the weights in float32, {size_text(in_numpy)}, and this machine has {size_text(here)}"
    )
    if in_numpy > here:
        return CheckResult("memory", False, facts, "run it on a GPU, or on a machine with more memory")
    return CheckResult("memory", True, facts)
