"""Reading safetensors: every stored type as it is, and what is wrong with a folder told in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from infernum.checkpoint import Checkpoint
from infernum.dtypes import BF16, F16, F32
from infernum.errors import CheckpointError
from infernum.model_folder.weights import INDEX, SINGLE

RNG = np.random.default_rng(7)
F32_ARRAY = RNG.standard_normal((3, 5)).astype(np.float32)
F16_ARRAY = RNG.standard_normal((4,)).astype(np.float16)
BF16_ARRAY = RNG.standard_normal((2, 3, 2)).astype(ml_dtypes.bfloat16)
ARRAYS: dict[str, np.ndarray] = {"a": F32_ARRAY, "b": F16_ARRAY, "c": BF16_ARRAY}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}
KINDS = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}


def packed(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": KINDS[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    return header, data


def file_bytes(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, name: str = "t", **changes: object) -> dict[str, Any]:
    """The header's entry of a float32 tensor of two elements, changed."""
    return {name: {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]} | changes}


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.write_bytes(file_bytes(*packed(arrays)))


def single(folder: Path, **arrays: np.ndarray) -> Checkpoint:
    write(folder / SINGLE, arrays or ARRAYS)
    return Checkpoint.open(folder)


def sharded(folder: Path, weight_map: object, **shards: Mapping[str, np.ndarray]) -> Path:
    for name, arrays in shards.items():
        write(folder / f"{name}.safetensors", arrays)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def test_every_stored_type_is_read_as_it_is(tmp_path: Path) -> None:
    checkpoint = single(tmp_path)
    assert checkpoint.names == {"a", "b", "c"}
    assert [checkpoint.dtype(name) for name in "abc"] == [F32, F16, BF16]
    for name, array in ARRAYS.items():
        assert checkpoint.shape(name) == array.shape
        read = checkpoint.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read.astype(np.float32), array.astype(np.float32))


def test_files_of_the_safetensors_package_are_read(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / SINGLE, metadata={"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check(SHAPES)
    for name, array in ARRAYS.items():
        assert checkpoint.read(name).tobytes() == array.tobytes()


def test_empty_tensors_and_scalars_are_read(tmp_path: Path) -> None:
    checkpoint = single(tmp_path, none=np.zeros((0, 4), np.float32), one=np.array(2.5, np.float32))
    assert checkpoint.read("none").shape == (0, 4)
    assert checkpoint.read("one") == np.float32(2.5)


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    folder = sharded(
        tmp_path,
        {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"},
        one={"a": F32_ARRAY},
        two={"b": F16_ARRAY, "c": BF16_ARRAY},
    )
    checkpoint = Checkpoint.open(folder)
    checkpoint.check(SHAPES)
    assert checkpoint.read("c").tobytes() == BF16_ARRAY.tobytes()


def test_linked_shards_are_read_as_a_download_cache_stores_them(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model").mkdir()
    write(tmp_path / "blobs" / "0123", {"a": F32_ARRAY})
    (tmp_path / "model" / SINGLE).symlink_to("../blobs/0123")
    assert Checkpoint.open(tmp_path / "model").names == {"a"}


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (SHAPES | {"d": (1,)}, r"model\.safetensors: d is missing"),
        (SHAPES | dict.fromkeys("vwxyz", (1,)), r"v, w, x and 2 more are missing"),
        ({"a": (3, 5), "b": (4,)}, r"model\.safetensors: c is not expected"),
        ({}, r"model\.safetensors: a, b, c are not expected"),
        (SHAPES | {"a": (5, 3)}, r"model\.safetensors: a has shape \[3, 5\], expected \[5, 3\]"),
        (SHAPES | {"a": (15,)}, r"a has shape \[3, 5\], expected \[15\]"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_named(
    tmp_path: Path, expected: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        single(tmp_path).check(expected)


@pytest.mark.parametrize("call", ["shape", "dtype", "read"])
def test_a_tensor_that_is_not_there_is_named(tmp_path: Path, call: str) -> None:
    with pytest.raises(CheckpointError, match="nothing is missing"):
        getattr(single(tmp_path), call)("nothing")


def test_rotary_frequencies_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    single(tmp_path, a=F32_ARRAY, **{name: F16_ARRAY}).check({"a": (3, 5)})


def test_tensors_of_the_part_that_sees_images_are_ignored(tmp_path: Path) -> None:
    images = (
        "vision_tower.a",
        "model.vision_tower.a",
        "multi_modal_projector.w",
        "model.multi_modal_projector.w",
    )
    single(tmp_path, a=F32_ARRAY, **dict.fromkeys(images, F16_ARRAY)).check({"a": (3, 5)})
    with pytest.raises(CheckpointError, match=r"^.*model\.safetensors: model\.tower\.a is not expected"):
        single(tmp_path, a=F32_ARRAY, **{"model.tower.a": F16_ARRAY}).check({"a": (3, 5)})


def tied(folder: Path, embedding: np.ndarray, head: np.ndarray) -> Checkpoint:
    return single(folder, **{"model.embed_tokens.weight": embedding, "lm_head.weight": head})


TABLE = RNG.standard_normal((5000, 3)).astype(ml_dtypes.bfloat16)  # more rows than are compared at once
ONLY_TABLE = {"model.embed_tokens.weight": TABLE.shape}


def test_a_tied_head_that_equals_the_embedding_is_ignored(tmp_path: Path) -> None:
    tied(tmp_path, TABLE, TABLE).check(ONLY_TABLE)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(np.concatenate([TABLE[:-1], -TABLE[-1:]]), id="in-its-last-row"),
        pytest.param(TABLE[:-1], id="in-its-shape"),
        pytest.param(TABLE.astype(np.float32), id="in-its-type"),
    ],
)
def test_a_tied_head_that_differs_from_the_embedding_is_refused(tmp_path: Path, head: np.ndarray) -> None:
    checkpoint = tied(tmp_path, TABLE, head)
    checkpoint.check(ONLY_TABLE | {"lm_head.weight": head.shape})
    with pytest.raises(CheckpointError, match=r"lm_head.* differs .* set tie_word_embeddings to false"):
        checkpoint.check(ONLY_TABLE)


def test_a_tied_head_is_compared_under_other_beginnings_of_the_names_too(tmp_path: Path) -> None:
    names = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    single(tmp_path, **dict.fromkeys(names, TABLE)).check({names[0]: TABLE.shape})
    with pytest.raises(
        CheckpointError, match=r"language_model\.lm_head\.weight differs from language_model\.model"
    ):
        single(tmp_path, **{names[0]: TABLE, names[1]: -TABLE}).check({names[0]: TABLE.shape})


def test_names_that_save_model_leaves_out_are_those_of_the_tensor_they_share(tmp_path: Path) -> None:
    save_file({"stored": F32_ARRAY, "other": F16_ARRAY}, tmp_path / SINGLE, metadata={"left.out": "stored"})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.names == {"stored", "other", "left.out"}
    assert checkpoint.read("left.out").tobytes() == F32_ARRAY.tobytes()
    assert checkpoint.rows("left.out", 1, 2).tobytes() == F32_ARRAY[1:2].tobytes()
    checkpoint.check({"left.out": (3, 5), "other": (4,)})
    checkpoint.check({"stored": (3, 5), "left.out": (3, 5), "other": (4,)})
    checkpoint.check({"stored": (3, 5), "other": (4,)})
    with pytest.raises(CheckpointError, match="stored is not expected"):
        checkpoint.check({"other": (4,)})
    assert checkpoint.weights.bytes_by_kind == {"F32": 60, "F16": 8}


def test_names_left_out_of_shards_are_read_from_their_index(tmp_path: Path) -> None:
    folder = sharded(
        tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}, one={"a": F32_ARRAY}, two={"b": F16_ARRAY}
    )
    index = json.loads((folder / INDEX).read_text())
    index["metadata"] |= {"left.out": "b", "format": "pt", "nowhere": "c", "a": "b"}
    (folder / INDEX).write_text(json.dumps(index))
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.names == {"a", "b", "left.out"}
    assert checkpoint.read("left.out").tobytes() == F16_ARRAY.tobytes()
    assert checkpoint.read("a").tobytes() == F32_ARRAY.tobytes()


def test_a_tied_table_may_be_stored_as_the_head(tmp_path: Path) -> None:
    save_file({"lm_head.weight": TABLE}, tmp_path / SINGLE)
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check({"lm_head.weight": TABLE.shape}, ignored=["model.embed_tokens.weight"])


def test_a_tied_head_that_differs_is_refused_where_it_might_have_been_read(tmp_path: Path) -> None:
    checkpoint = tied(tmp_path, TABLE, -TABLE)
    with pytest.raises(CheckpointError, match=r"lm_head.* differs"):
        checkpoint.check(ONLY_TABLE, ignored=["lm_head.weight"])


def test_a_missing_head_beside_an_embedding_may_be_tied(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": TABLE}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing; .*tie_word_embeddings to true"):
        Checkpoint.open(tmp_path).check(ONLY_TABLE | {"lm_head.weight": TABLE.shape})


@pytest.mark.parametrize(("kind", "size"), [("F64", 8), ("I8", 1), ("I16", 2), ("F8_E4M3", 1), ("BOOL", 1)])
def test_a_stored_type_that_cannot_be_used_is_named(tmp_path: Path, kind: str, size: int) -> None:
    header = {"q": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * size]}}
    (tmp_path / SINGLE).write_bytes(file_bytes(header, bytes(2 * size)))
    checkpoint = Checkpoint.open(tmp_path)
    for use in (checkpoint.dtype, checkpoint.read, lambda name: checkpoint.check({name: (2,)})):
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: q is stored as {kind}; only F32"):
            use("q")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "header too small", id="empty"),
        pytest.param(b'{"error": "Entry not found"}', "header too large", id="another-file"),
        pytest.param(file_bytes(b"{", b""), "invalid JSON", id="header-cut"),
        pytest.param(file_bytes({"t": {}}, b""), "missing field `dtype`", id="entry-without-type"),
        pytest.param(
            file_bytes(entry(0, 8), bytes(9)), "not fully covered", id="data-behind-the-last-tensor"
        ),
        pytest.param(
            file_bytes(entry(0, 8, shape=[3]), bytes(8)), "invalid shape", id="shape-and-bytes-differ"
        ),
        pytest.param(file_bytes(entry(4, 12), bytes(12)), "offset for tensor `t`", id="gap"),
        pytest.param(
            file_bytes(entry(0, 8) | entry(4, 12, "u"), bytes(12)), "offset for tensor `u`", id="overlap"
        ),
        pytest.param(
            file_bytes(entry(0, 8, dtype="Q4"), bytes(8)), "unknown variant `Q4`", id="unknown-type"
        ),
    ],
)
def test_a_damaged_file_is_told_from_a_good_one(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as refused:
        Checkpoint.open(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / SINGLE}: is truncated, damaged or no safetensors file")
    assert str(refused.value).endswith("; download it again")
    assert "\n" not in str(refused.value)


def test_a_file_cut_short_says_how_much_is_there(tmp_path: Path) -> None:
    whole = file_bytes(*packed(ARRAYS))
    (tmp_path / SINGLE).write_bytes(whole[:-1])
    said = rf"model\.safetensors: is cut short: it has {len(whole) - 1} of {len(whole)} bytes; download it again$"
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = file_bytes(*packed(ARRAYS))
    for length in range(len(whole)):
        (tmp_path / SINGLE).write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "two.safetensors"}, "names two.safetensors, which is not in the folder"),
        ({"a": "one.safetensors", "z": "one.safetensors"}, "z is not in one.safetensors"),
        ({"a": "../one.safetensors"}, "no file of this folder"),
        ({"a": "x/../../one.safetensors"}, "no file of this folder"),
        ({"a": "/etc/passwd"}, "no file of this folder"),
        ({"a": "..\\one.safetensors"}, "no file of this folder"),
        ({"a": "C:one.safetensors"}, "no file of this folder"),
        ({"a": ""}, "no file of this folder"),
        ({"a": 1}, "Expected `str`, got `int`"),
        ({}, "its weight_map is empty"),
        (["a"], "Expected `object`, got `array`"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, weight_map: object, said: str) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path / "one.safetensors", {"a": F32_ARRAY})
    folder = sharded(tmp_path / "model", weight_map, one={"a": F32_ARRAY})
    with pytest.raises(CheckpointError, match=said) as refused:
        Checkpoint.open(folder)
    assert str(refused.value).startswith(str(folder / INDEX))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"weight_map": {"\xff": "x"}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"index\.json: is damaged .*; download it again"):
        Checkpoint.open(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"a": "one.safetensors"}, one={"a": F32_ARRAY})
    shard = folder / "one.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"one\.safetensors: is cut short"):
        Checkpoint.open(folder)


def test_a_missing_tensor_of_shards_is_reported_at_the_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"a": "one.safetensors"}, one={"a": F32_ARRAY, "unlisted": F16_ARRAY})
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"index\.json: b is missing"):
        checkpoint.check({"a": (3, 5), "b": (4,)})
    with pytest.raises(CheckpointError, match=r"one\.safetensors: unlisted is not expected"):
        checkpoint.check({"a": (3, 5)})


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", "convert them"),
        ("pytorch_model-00001-of-00002.bin", "convert them"),
        ("consolidated.00.pth", "get the model's -hf version, or convert it"),
        ("model.gguf", "its model.gguf is GGUF, which is not read; get the model's original weights"),
        ("adapter_model.safetensors", "merge it into its base model"),
        ("config.json", "download the model's weights"),
    ],
)
def test_a_folder_without_safetensors_says_what_to_do(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        Checkpoint.open(tmp_path / "nowhere")
