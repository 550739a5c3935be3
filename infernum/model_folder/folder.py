"""Finds the files of a model in a folder; a file that is missing or unusable becomes a `Problem`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infernum.model_folder.problems import DOWNLOAD_AGAIN, Problem, file_problem, is_listed
from infernum.model_folder.weights import INDEX, SINGLE, FolderWeights, listed, read_weights

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE,
    "tokenizer.model",
    "tiktoken.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""Files that belong to a tokenizer. Only the first is a whole tokenizer."""

_VOCABULARIES = (
    "tokenizer.model",
    "tiktoken.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)
_CONVERT = "convert {}: transformers' {}.from_pretrained(FOLDER).save_pretrained(FOLDER)"


@dataclass(frozen=True)
class OtherFormat:
    """A format of weights that is not read: the pattern of its file names, its name, and what to do."""

    pattern: str
    format: str
    mend: str


_CONVERT_WEIGHTS = _CONVERT.format("them", "AutoModelForCausalLM")
OTHER_FORMATS = (
    OtherFormat(
        "consolidated*.pth",
        "Meta's own format",
        "get the model's -hf version, or convert it with transformers' convert_llama_weights_to_hf",
    ),
    OtherFormat(
        "consolidated*.safetensors", "Mistral's own format", "get the model's version for transformers"
    ),
    OtherFormat("pytorch_model*.bin", "PyTorch's pickled weights", _CONVERT_WEIGHTS),
    OtherFormat("*.gguf", "GGUF", "get the model's original weights, in safetensors"),
    OtherFormat("*.pth", "PyTorch's pickled weights", _CONVERT_WEIGHTS),
    OtherFormat("*.pt", "PyTorch's pickled weights", _CONVERT_WEIGHTS),
    OtherFormat("*.bin", "PyTorch's pickled weights", _CONVERT_WEIGHTS),
    OtherFormat("tf_model.h5", "TensorFlow's weights", "get the model's version in safetensors"),
    OtherFormat("flax_model*.msgpack", "Flax's weights", "get the model's version in safetensors"),
    OtherFormat("*.onnx", "ONNX", "get the model's version in safetensors"),
)


@dataclass(frozen=True)
class ModelFolder:
    """The parts of a model in a folder. A `Problem` is a part that cannot be used, None a part that is not there.

    config             the path of config.json; its fields are not checked
    weights            the headers of all tensors: files, names, shapes, types and sizes
    weights_format     of the weights, also when it is not read: "safetensors", "GGUF"; "" without weights
    tokenizer          the path of tokenizer.json
    tokenizer_files    the names of all files that belong to a tokenizer
    generation_config  the path of generation_config.json
    problem            a problem of the whole folder, which config and weights then have too
    """

    folder: Path
    config: Path | Problem
    weights: FolderWeights | Problem
    weights_format: str
    tokenizer: Path | Problem | None
    tokenizer_files: tuple[str, ...]
    generation_config: Path | Problem | None
    problem: Problem | None


def look_at(folder: Path) -> ModelFolder:
    """The parts of a model in `folder`, from file names, headers and first bytes. Raises nothing."""
    weights = find_weights(folder)
    other = _other_format(folder)
    stored = any(folder.glob("*.safetensors")) and (other is None or isinstance(weights, FolderWeights))
    return ModelFolder(
        folder=folder,
        config=find_config(folder),
        weights=weights,
        weights_format="safetensors" if stored else other[1].format if other else "",
        tokenizer=find_tokenizer(folder),
        tokenizer_files=tuple(name for name in TOKENIZER_FILES if is_listed(folder / name)),
        generation_config=find_file(folder / GENERATION),
        problem=folder_problem(folder),
    )


def find_file(path: Path) -> Path | Problem | None:
    """The path of a file, or its problem; None when the file does not exist."""
    return (file_problem(path) or path) if is_listed(path) else None


def find_config(folder: Path) -> Path | Problem:
    """The path of config.json, or why the folder has no usable config.json."""
    config = find_file(folder / CONFIG)
    if config is not None:
        return config
    if problem := folder_problem(folder) or _adapter(folder):
        return problem
    if is_listed(folder / "params.json"):
        what = f"has no {CONFIG}; its params.json is Meta's own format"
        return Problem(folder, what, "get the model's -hf version")
    if (other := _other_format(folder)) and not _has_safetensors(folder):
        file, other_format = other
        return Problem(folder, f"has no {CONFIG}; its {file} is {other_format.format}", other_format.mend)
    return Problem(
        folder / CONFIG, "no such file", "give the folder of a Hugging Face model, with its config.json"
    )


def find_weights(folder: Path) -> FolderWeights | Problem:
    """The headers of all tensors, or why the folder has no usable weights."""
    weights = None if _cannot_hold_files(folder) else read_weights(folder)
    if weights is not None:
        return weights
    if problem := folder_problem(folder) or _adapter(folder):
        return problem
    other = _other_format(folder)
    if other is not None:
        file, other_format = other
        what = f"has no {SINGLE}; its {file} is {other_format.format}, which is not read"
        return Problem(folder, what, other_format.mend)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if any("-of-" in name for name in names):
        what = f"has {listed(names)}, but no {INDEX}, which lists the shards"
        return Problem(folder, what, "download it as well")
    if names:
        what = f"has {listed(names)}, but no {SINGLE} and no {INDEX}"
        return Problem(folder, what, f"rename the file that holds all weights to {SINGLE}")
    mend = "download the model's weights into it, or make random ones with --load-format dummy"
    return Problem(folder, f"has no {SINGLE} and no {INDEX}", mend)


def find_tokenizer(folder: Path) -> Path | Problem | None:
    """The path of tokenizer.json, or why it cannot be used; None when the folder has no tokenizer."""
    tokenizer = find_file(folder / TOKENIZER)
    if tokenizer is not None:
        return tokenizer
    vocabulary = next((name for name in _VOCABULARIES if is_listed(folder / name)), None)
    if vocabulary is None:
        return None
    what = f"has {vocabulary}, but no {TOKENIZER}"
    return Problem(folder, what, _CONVERT.format("it", "AutoTokenizer"))


def folder_problem(folder: Path) -> Problem | None:
    """Why the path is no folder of a model, where it is plainly something else; None where it may be one."""
    if problem := _cannot_hold_files(folder):
        return problem
    if is_listed(folder / CONFIG):
        return None
    if problem := _download_cache(folder):
        return problem
    names = [name for name in _names(folder) if not name.startswith(".")]
    if not names:
        return Problem(folder, "is empty", f"download the model into it: {CONFIG}, weights and {TOKENIZER}")
    if {"manifest.json", "checksums.txt"} <= set(names):
        return Problem(
            folder, "is a compiled bundle, not a model", "give the folder of the model it was made of"
        )
    models = [name for name in names if is_listed(folder / name / CONFIG)]
    if models and not (folder / SINGLE).exists():
        what = f"has no {CONFIG}; " + ("a folder in it has" if len(models) == 1 else "folders in it have")
        return Problem(folder, what, "give " + " or ".join(str(folder / name) for name in models[:3]))
    return None


def _cannot_hold_files(folder: Path) -> Problem | None:
    if folder.is_dir():
        try:
            next(folder.iterdir(), None)
        except OSError as error:
            what = f"cannot be listed ({error.strerror})"
            return Problem(folder, what, "allow it, or give another folder")
        return None
    if not is_listed(folder):
        return Problem(folder, "no such folder", "give the folder of a Hugging Face model")
    if not folder.exists():
        return Problem(folder, f"is a link to {folder.readlink()}, which is gone", DOWNLOAD_AGAIN)
    if is_listed(folder.parent / CONFIG):
        return Problem(folder, "is a file, not a folder", f"give its folder, {folder.parent}")
    if other := next((other for other in OTHER_FORMATS if folder.match(other.pattern)), None):
        return Problem(folder, f"is a file in {other.format}, which is not read", other.mend)
    return Problem(folder, "is a file", f"give the folder that holds it and {CONFIG}")


def _download_cache(folder: Path) -> Problem | None:
    """The problem of a folder of the hub's cache, where the model is models--ORG--NAME/snapshots/COMMIT."""
    entries = [folder.parent if folder.name == "snapshots" else folder]
    if not (entries[0] / "snapshots").is_dir():
        entries = [folder / name for name in _names(folder) if name.startswith("models--")]
    if not entries:
        return None
    snapshots = [path for entry in entries for path in _snapshots(entry)]
    complete = [path for path in snapshots if _is_complete(path)]
    what = "is a folder of a download cache, not a model"
    if complete:
        more = f" (or {listed(str(path) for path in complete[1:])})" if complete[1:] else ""
        return Problem(folder, what, f"give its snapshot {complete[0]}{more}")
    if len(entries) > 1:
        return Problem(folder, f"{what}, and no snapshot in it is complete", DOWNLOAD_AGAIN)
    repository = entries[0].name.removeprefix("models--").replace("--", "/")
    lacking = next((str(problem) for path in snapshots for problem in _problems(path)), "it has none")
    return Problem(
        folder,
        f"{what}, and has no complete snapshot ({lacking.partition('; ')[0]})",
        f"download it again: `hf download {repository}`",
    )


def _snapshots(entry: Path) -> list[Path]:
    """The snapshots of one model; the snapshot of its branch `main` comes first."""
    try:
        main = (entry / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    names = sorted(_names(entry / "snapshots"), key=lambda name: (name != main, name))
    return [entry / "snapshots" / name for name in names if (entry / "snapshots" / name).is_dir()]


def _is_complete(snapshot: Path) -> bool:
    return not any(_problems(snapshot))


def _problems(snapshot: Path) -> Iterator[Problem]:
    """The problems of config and weights."""
    if snapshot.is_dir():
        parts = (find_config(snapshot), find_weights(snapshot))
        yield from (part for part in parts if isinstance(part, Problem))


class _AdapterConfig(msgspec.Struct):
    base_model_name_or_path: str | None = None


def _adapter(folder: Path) -> Problem | None:
    """The problem of a folder with an adapter (PEFT), which changes the weights of a base model that it names."""
    path = folder / "adapter_config.json"
    if not is_listed(path) and not any(folder.glob("adapter_model.*")):
        return None
    try:
        base = msgspec.json.decode(path.read_bytes(), type=_AdapterConfig).base_model_name_or_path
    except (OSError, ValueError, RecursionError):
        base = None
    of = f" of {base}" if base and base.isprintable() and len(base) < 200 else ""
    return Problem(
        folder,
        f"holds an adapter{of} only, not a model",
        "merge it into its base model first: PEFT's merge_and_unload(), then save_pretrained(FOLDER)",
    )


def _other_format(folder: Path) -> tuple[str, OtherFormat] | None:
    """The first file of another format, and the format."""
    names = _names(folder)
    for other in OTHER_FORMATS:
        for name in names:
            if Path(name).match(other.pattern):
                return name, other
    return None


def _has_safetensors(folder: Path) -> bool:
    return is_listed(folder / SINGLE) or is_listed(folder / INDEX)


def _names(folder: Path) -> list[str]:
    """The sorted names in the folder; empty when the folder cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
