"""Weights as they are planned, checked and loaded: on a fake GPU and in NumPy alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
import toy_bundle as toy
from conftest import Tiny
from fake_gpu import FakeGpu, FakeMemory, at
from safetensors.numpy import save_file

from infernum.bundle import Bundle
from infernum.checkpoint import Checkpoint
from infernum.cpu.executor import CpuExecutor
from infernum.cpu.weights import HostWeights
from infernum.dtypes import BF16, F16, F32, I32, dtype, round_to
from infernum.errors import BundleError, CheckpointError
from infernum.graph_bundle import describe_graphs
from infernum.manifest import Manifest, Stage, Weight
from infernum.model_folder.weights import SINGLE
from infernum.models.presets import resolve
from infernum.opening import check_checkpoint
from infernum.recipes import (
    ALONE,
    Each,
    Either,
    Packed,
    Rank,
    Read,
    Recipe,
    Rows,
    Share,
    Stack,
    filled,
    read,
    shape_of,
)
from infernum.runtime import weights as gpu_weights
from infernum.runtime.weights import fill_weights
from infernum.weights import dummy, values
from infernum.weights.dummy import POOL, DummyTensors, Normal, distribution_of, pool_of, pool_runs, settle
from infernum.weights.plan import WeightPlan, plan_weights
from infernum.weights.source import TensorSource

Q, KV, WIDTH, EXPERTS = 8, 4, 16, 3
FUSED = read("l.{layer}.qkv.weight", Q + 2 * KV, WIDTH)
Q_ROWS, K_ROWS, V_ROWS = Rows(FUSED, 0, Q), Rows(FUSED, Q, Q + KV), Rows(FUSED, Q + KV, Q + 2 * KV)
UP = read("l.{layer}.experts.{expert}.up", WIDTH, 4)

WEIGHTS: dict[str, tuple[Recipe, str]] = {
    "q": (Q_ROWS, "bf16"),
    "k": (K_ROWS, "bf16"),
    "v": (V_ROWS, "bf16"),
    "q_k_v": (Stack((Q_ROWS, K_ROWS, V_ROWS)), "bf16"),
    "o": (Read(("l.{layer}.wo", "l.{layer}.o.weight"), (WIDTH, Q)), "bf16"),
    "norm": (read("l.{layer}.norm", WIDTH), "bf16"),
    "router": (read("l.{layer}.router", EXPERTS, WIDTH), "f32"),
    "half": (read("l.{layer}.router", EXPERTS, WIDTH), "f16"),
    "up": (Each(UP, EXPERTS), "bf16"),
    "turned": (Packed(Each(UP, EXPERTS), "transpose"), "bf16"),
    "gates": (
        Either((read("l.{layer}.gate_up", 8, WIDTH), Stack((read("l.{layer}.gate", 4, WIDTH),) * 2))),
        "bf16",
    ),
    "words": (Read(("l.{layer}.words",), (6,), "i32"), "i32"),
}
"""What a layer needs, in the order of neither its names nor its sizes."""


def manifest_of(weights: Mapping[str, tuple[Recipe, str]], ranks: int = 1) -> Manifest:
    """The toy model, whose decoder has these weights and does nothing with them."""
    made = toy.toy_manifest()
    held = {
        name: Weight(spec=toy.spec(name, *shape_of(recipe, ranks), dtype=kind), recipe=recipe)
        for name, (recipe, kind) in weights.items()
    }
    decoder = {
        name: msgspec.structs.replace(variant, weights=held)
        for name, variant in made.blocks["decoder"].items()
    }
    return msgspec.structs.replace(made, ranks=ranks, blocks={**made.blocks, "decoder": decoder})


def write(folder: Path, dropped: tuple[str, ...] = (), **changed: np.ndarray) -> Checkpoint:
    """A checkpoint with the tensors of `WEIGHTS`, float32 and bf16 mixed, less some and with others changed."""
    rng = np.random.default_rng(5)

    def random(*shape: int, kind: Any = np.float32) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32).astype(kind)

    tensors = {"embed.weight": random(toy.VOCAB, toy.WIDTH)}
    for layer in range(toy.LAYERS):
        here = {
            "qkv.weight": random(Q + 2 * KV, WIDTH),
            "o.weight": random(WIDTH, Q, kind=ml_dtypes.bfloat16),
            "norm": random(WIDTH, kind=np.float16),
            "router": random(EXPERTS, WIDTH),
            "gate": random(4, WIDTH),
            "words": rng.integers(-(2**31), 2**31, 6).astype(np.int32),
        }
        here |= {f"experts.{expert}.up": random(WIDTH, 4) for expert in range(EXPERTS)}
        tensors |= {f"l.{layer}.{name}": array for name, array in here.items()}
    tensors |= {name.replace("__", "."): array for name, array in changed.items()}
    save_file({n: a for n, a in tensors.items() if n not in dropped}, folder / SINGLE)
    return Checkpoint.open(folder)


def on_gpu(plan: WeightPlan, source: TensorSource | None, seed: int = 0) -> tuple[FakeGpu, int]:
    """A fake GPU that the weights have been loaded onto, and where they begin. Memory is NaN where nothing is."""
    gpu: Any = FakeGpu({})
    memory: FakeMemory = gpu.alloc(plan.total_bytes, "the weights")
    at(memory.address, np.uint8, plan.total_bytes)[:] = 0xFF
    fill_weights(plan, source, memory.address, gpu, gpu.stream(), seed=seed)
    assert gpu.live == [memory], "staging and pools are given back"
    return gpu, memory.address


def gpu_values(
    manifest: Manifest, source: TensorSource | None, seed: int = 0
) -> dict[tuple[int, str], np.ndarray]:
    """Every weight of the decoder, by layer and name, as it lies on the GPU."""
    plan = plan_weights(manifest)
    gpu, base = on_gpu(plan, source, seed)
    found: dict[tuple[int, str], np.ndarray] = {}
    for stage in manifest.program[1:-1]:
        assert stage.layer is not None
        for name, weight in manifest.blocks["decoder"]["t1"].weights.items():
            shape = [int(dim) for dim in weight.spec.shape]
            address = base + plan.offset(weight, stage)
            found[stage.layer, name] = at(address, dtype(weight.spec.dtype).numpy, *shape).copy()
    assert gpu.live
    return found


def host_values(
    manifest: Manifest, source: TensorSource | None, seed: int = 0
) -> dict[tuple[int, str], np.ndarray]:
    """Every weight of the decoder, by layer and name, as NumPy holds it."""
    loaded = HostWeights.load(manifest, source, seed=seed)
    weights = manifest.blocks["decoder"]["t1"].weights.items()
    stages = [(stage.layer, stage) for stage in manifest.program[1:-1] if stage.layer is not None]
    return {(layer, name): loaded.array(weight, stage) for layer, stage in stages for name, weight in weights}


@pytest.mark.parametrize("piece", [5, 2**21])
def test_gpu_and_numpy_hold_what_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(values, "PIECE", piece)
    monkeypatch.setattr(gpu_weights, "CHUNK_BYTES", 64)
    checkpoint, manifest = write(tmp_path), manifest_of(WEIGHTS)
    device, host = gpu_values(manifest, checkpoint), host_values(manifest, checkpoint)
    for layer in range(toy.LAYERS):
        qkv = checkpoint.read(f"l.{layer}.qkv.weight")
        ups = [checkpoint.read(f"l.{layer}.experts.{expert}.up") for expert in range(EXPERTS)]
        gate, router = checkpoint.read(f"l.{layer}.gate"), checkpoint.read(f"l.{layer}.router")
        wanted: dict[str, np.ndarray] = {
            "q": qkv[:Q],
            "k": qkv[Q : Q + KV],
            "v": qkv[Q + KV :],
            "q_k_v": qkv,
            "o": checkpoint.read(f"l.{layer}.o.weight"),
            "norm": checkpoint.read(f"l.{layer}.norm"),
            "router": router,
            "half": router,
            "up": np.stack(ups),
            "turned": np.stack([up.T for up in ups]),
            "gates": np.concatenate([gate, gate]),
            "words": checkpoint.read(f"l.{layer}.words"),
        }
        assert set(wanted) == set(WEIGHTS)
        for name, array in wanted.items():
            kind = dtype(WEIGHTS[name][1])
            rounded = round_to(array, kind)
            assert host[layer, name].dtype == (np.float32 if kind.is_float else kind.numpy)
            assert np.array_equal(host[layer, name], rounded), name
            assert device[layer, name].tobytes() == rounded.astype(kind.numpy).tobytes(), name


def test_dummy_weights_are_the_same_in_numpy_and_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_weights, "CHUNK_BYTES", 2**20 + 64)
    manifest = manifest_of(WEIGHTS)
    device, host = gpu_values(manifest, None, seed=3), host_values(manifest, None, seed=3)
    for (layer, name), array in host.items():
        kind = dtype(WEIGHTS[name][1])
        assert device[layer, name].tobytes() == array.astype(kind.numpy).tobytes(), name
    assert np.array_equal(host[0, "q_k_v"], np.concatenate([host[0, name] for name in "qkv"]))
    assert np.array_equal(host[1, "turned"], np.swapaxes(host[1, "up"], 1, 2))
    other = host_values(manifest, None, seed=4)
    assert not any(np.array_equal(array, other[place]) for place, array in host.items())


def test_a_dummy_element_depends_on_its_tensor_and_not_on_its_buffer_or_dtype() -> None:
    whole = manifest_of({"w": (FUSED, "f32")})
    parts = manifest_of({"v": (V_ROWS, "f32"), "low": (Rows(FUSED, 2, 5), "bf16")})
    full, cut = host_values(whole, None), host_values(parts, None)
    for layer in range(toy.LAYERS):
        assert np.array_equal(cut[layer, "v"], full[layer, "w"][Q + KV :])
        assert np.array_equal(cut[layer, "low"], round_to(full[layer, "w"][2:5], BF16))


@pytest.mark.parametrize("axis", [0, 1])
def test_ranks_get_their_shares_of_the_same_dummy_weights(axis: int) -> None:
    recipe = filled(FUSED, "layer", 0)
    tensors: dict[str, Read] = {recipe.names[0]: recipe} if isinstance(recipe, Read) else {}
    source = DummyTensors(tensors, 1)
    shares = [values.values(Share(recipe, axis), source, Rank(index, 4)) for index in range(4)]
    assert np.array_equal(np.concatenate(shares, axis=axis), values.values(recipe, source, ALONE))


@pytest.mark.parametrize("rank", [Rank(0, 2), Rank(1, 2)])
def test_a_rank_plans_and_loads_its_share(tmp_path: Path, rank: Rank) -> None:
    weights: dict[str, tuple[Recipe, str]] = {
        "qkv": (Stack((Share(Q_ROWS, 0), Share(K_ROWS, 0), Share(V_ROWS, 0))), "bf16"),
        "o": (Share(read("l.{layer}.o.weight", WIDTH, Q), 1), "bf16"),
    }
    checkpoint, manifest = write(tmp_path), manifest_of(weights, ranks=2)
    plan = plan_weights(manifest, rank.index)
    wanted: dict[str, np.ndarray] = {}
    cut = slice(rank.index, None, 2)
    qkv = checkpoint.read("l.1.qkv.weight").astype(ml_dtypes.bfloat16)
    parts = np.split(qkv, [Q // 2, Q, Q + KV // 2, Q + KV, Q + KV + KV // 2])
    wanted["qkv"] = np.concatenate(parts[cut])
    wanted["o"] = np.split(checkpoint.read("l.1.o.weight"), 2, axis=1)[rank.index]
    gpu, base = on_gpu(plan, checkpoint)
    _, dummies = on_gpu(plan, None)
    stage = Stage(block="decoder", layer=1)
    for name, weight in manifest.blocks["decoder"]["t1"].weights.items():
        shape, offset = wanted[name].shape, plan.offset(weight, stage)
        assert at(base + offset, ml_dtypes.bfloat16, *shape).tobytes() == wanted[name].tobytes()
        found = at(dummies + offset, ml_dtypes.bfloat16, *shape).astype(np.float32)
        assert np.isfinite(found).all() and len(np.unique(found)) > found.size // 2
    assert gpu.live


def test_a_shared_plan_that_does_not_divide_is_refused() -> None:
    manifest = msgspec.structs.replace(manifest_of({"k": (Share(K_ROWS, 0), "bf16")}), ranks=3)
    with pytest.raises(BundleError, match=r"decoder\.k: .*qkv.*does not divide among 3 GPUs"):
        plan_weights(manifest)


def test_a_recipe_that_does_not_give_its_weight_is_refused() -> None:
    manifest = manifest_of({"k": (K_ROWS, "bf16")})
    weight = Weight(spec=toy.spec("k", KV, WIDTH), recipe=Q_ROWS)
    for variant in manifest.blocks["decoder"].values():
        variant.weights["k"] = weight
    with pytest.raises(BundleError, match=r"decoder\.k: has shape \[4, 16\], and its recipe gives \[8, 16\]"):
        plan_weights(manifest)


WRONG: dict[str, tuple[tuple[str, ...], dict[str, np.ndarray], str]] = {
    "a tensor is missing": (("l.1.norm",), {}, r"l\.1\.norm"),
    "an expert is missing": (("l.0.experts.2.up",), {}, r"l\.0\.experts\.2\.up"),
    "all alternatives are missing": (
        ("l.2.o.weight",),
        {},
        r"l\.2\.wo: the checkpoint has no such tensor, nor l\.2\.o\.weight in its place",
    ),
    "no recipe can be followed": (
        ("l.0.gate",),
        {},
        r"l\.0\.gate_up: the checkpoint has no such tensor, nor l\.0\.gate in its place",
    ),
    "a fused tensor has another shape": (
        (),
        {"l__1__qkv__weight": np.zeros((Q + KV, WIDTH), np.float32)},
        r"l\.1\.qkv\.weight.*shape \[12, 16\],.*\[16, 16\]",
    ),
    "integers are stored for floats": (
        (),
        {"l__0__norm": np.zeros(WIDTH, np.int32)},
        r"l\.0\.norm: .* i32.*float",
    ),
    "floats are stored for integers": (
        (),
        {"l__2__words": np.zeros(6, np.float32)},
        r"l\.2\.words: .* f32.* i32",
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("device", ["gpu", "numpy"])
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, device: str
) -> None:
    dropped, changed, message = WRONG[what]
    checkpoint, manifest = write(tmp_path, dropped, **changed), manifest_of(WEIGHTS)
    monkeypatch.setattr(Checkpoint, "rows", lambda *given: pytest.fail(f"{given} were read"))
    with pytest.raises(CheckpointError, match=message):
        (gpu_values if device == "gpu" else host_values)(manifest, checkpoint)


def bundle_of(manifest: Manifest) -> Bundle:
    return Bundle(Path("toy"), manifest, {})


def test_alternatives_that_are_not_read_are_no_strangers_in_a_checkpoint(tmp_path: Path) -> None:
    bundle = bundle_of(manifest_of(WEIGHTS))
    both = write(
        tmp_path, l__0__wo=np.ones((WIDTH, Q), np.float32), l__0__gate_up=np.ones((8, WIDTH), np.float32)
    )
    check_checkpoint(bundle, both)
    assert np.array_equal(host_values(bundle.manifest, both)[0, "o"], np.ones((WIDTH, Q)))
    assert np.array_equal(host_values(bundle.manifest, both)[0, "gates"], np.ones((8, WIDTH)))


def test_a_tensor_that_no_recipe_reads_is_a_stranger(tmp_path: Path) -> None:
    bundle = bundle_of(manifest_of(WEIGHTS))
    with pytest.raises(CheckpointError, match=r"l\.0\.bias is not expected"):
        check_checkpoint(bundle, write(tmp_path, l__0__bias=np.zeros(4, np.float32)))


def test_rows_of_a_fused_tensor_are_found_within_their_stack() -> None:
    manifest = manifest_of(
        {"q": (Q_ROWS, "bf16"), "all": WEIGHTS["q_k_v"], "kv": (Stack((K_ROWS, V_ROWS)), "bf16")}
    )
    plan = plan_weights(manifest)
    assert len(plan.stored) == 1 + toy.LAYERS, "the table, and for each layer the stack alone"
    found = manifest.blocks["decoder"]["t1"].weights
    stage = Stage(block="decoder", layer=2)
    start = plan.offset(found["all"], stage)
    assert plan.offset(found["q"], stage) == start
    assert plan.offset(found["kv"], stage) == start + 2 * Q * WIDTH


def test_memory_besides_the_weights_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_at_once: list[int] = []
    rows = Checkpoint.rows

    def noted(self: Checkpoint, name: str, start: int, stop: int) -> np.ndarray:
        found = rows(self, name, start, stop)
        read_at_once.append(found.size)
        return found

    monkeypatch.setattr(Checkpoint, "rows", noted)
    monkeypatch.setattr(values, "PIECE", 32)
    checkpoint = write(tmp_path)
    manifest = manifest_of({name: WEIGHTS[name] for name in ("q_k_v", "o", "up", "norm")})
    gpu_values(manifest, checkpoint)
    host_values(manifest, checkpoint)
    assert max(read_at_once) == 32


def fused(recipe: Recipe) -> Recipe:
    """The recipe, with q, k and v as alternatives of rows of one tensor."""
    match recipe:
        case Stack(of=parts):
            return Stack(tuple(map(fused, parts)))
        case Read(names=(name,), shape=(rows, width)) if "_proj" in name and ".self_attn." in name:
            base, which, kind = name.rsplit(".", 2)
            if which == "o_proj":
                return recipe
            starts = {"q_proj": 0, "k_proj": HEADS[0], "v_proj": HEADS[0] + HEADS[1]}
            whole = read(f"{base}.qkv_proj.{kind}", sum(HEADS), width)
            return Either((recipe, Rows(whole, starts[which], starts[which] + rows)))
        case _:
            return recipe


HEADS = (0, 0, 0)


def test_a_model_runs_from_a_fused_checkpoint_as_from_its_own(
    tiny: Callable[[str], Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tiny("seven_to_one")
    bundle, checkpoint = case.bundle(), Checkpoint.open(case.folder)
    first = "model.layers.0.self_attn."
    monkeypatch.setattr(
        f"{__name__}.HEADS", tuple(checkpoint.shape(f"{first}{part}_proj.weight")[0] for part in "qkv")
    )
    tensors = {name: checkpoint.read(name) for name in checkpoint.names}
    for layer in range(bundle.manifest.model.num_layers):
        names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
        fused_name = f"model.layers.{layer}.self_attn.qkv_proj.weight"
        tensors[fused_name] = np.concatenate([tensors.pop(name) for name in names])
    save_file(tensors, tmp_path / SINGLE)

    manifest = msgspec.json.decode(msgspec.json.encode(bundle.manifest), type=Manifest)
    for variants in manifest.blocks.values():
        for variant in variants.values():
            for name, weight in variant.weights.items():
                variant.weights[name] = msgspec.structs.replace(weight, recipe=fused(weight.recipe))
    either = Bundle(bundle.folder, manifest, bundle.checksums)
    batch = toy.step([[3, 1, 4, 1, 5]], [5], [[0]])
    found: list[np.ndarray] = []
    for opened, source in ((bundle, checkpoint), (either, checkpoint), (either, Checkpoint.open(tmp_path))):
        check_checkpoint(opened, source)
        with CpuExecutor.open(opened, source) as executor:
            found.append(executor.logits(batch))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_the_pool_is_what_it_is_said_to_be() -> None:
    """The first outputs of SplitMix64 for the seed 1234567, as its authors' code gives them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert dummy._hash(1234567, 0, 3).tolist() == published  # pyright: ignore[reportPrivateUsage]
    words = published[0].to_bytes(8, "little")
    total = sum(int.from_bytes(words[i : i + 2], "little") for i in range(0, 8, 2))
    assert pool_of(1234567, F32, Normal(0.0, 0.02))[0] == pytest.approx(
        0.02 * (total - 131_070) / 37_837.2, rel=1e-6
    )


def test_the_pool_has_the_mean_and_the_deviation_of_weights() -> None:
    for mean, deviation in ((0.0, 0.02), (1.0, 0.1), (0.0, 0.1)):
        pool = pool_of(0, F32, Normal(mean, deviation))
        assert pool.mean() == pytest.approx(mean, abs=deviation / 500)
        assert pool.std() == pytest.approx(deviation, rel=2e-3)
    bias = Normal(0.0, 0.02)
    assert np.array_equal(pool_of(0, F16, bias), pool_of(0, F32, bias).astype(np.float16))
    bits = pool_of(0, I32, bias)
    assert (bits < 0).mean() == pytest.approx(0.5, abs=2e-3)


def test_pool_runs_go_round_the_pool() -> None:
    start = pool_runs("some.name", 0, 1).__next__()[0]
    assert list(pool_runs("some.name", 5, 7)) == [(start + 5, 7)]
    assert list(pool_runs("some.name", POOL - start - 2, 5)) == [(POOL - 2, 2), (0, 3)]
    assert list(pool_runs("some.name", 0, 2 * POOL)) == [(start, POOL - start), (0, POOL), (0, start)]


def test_no_two_rows_of_a_dummy_matrix_are_alike() -> None:
    assert all(POOL % divisor for divisor in range(2, int(POOL**0.5) + 1)), "a prime"
    table = read("table", 3 * POOL // 64, 64)
    source = DummyTensors({"table": table}, 0)
    places = (np.arange(table.shape[0]) * 64 + pool_runs("table", 0, 1).__next__()[0]) % POOL
    assert len(np.unique(places)) == len(places)
    assert np.array_equal(source.rows("table", 100, 101), source.rows("table", 0, 200)[100:101])


def test_random_norms_are_near_one_and_a_product_keeps_the_size_of_its_input() -> None:
    assert distribution_of("model.norm.weight", (64,)) == Normal(1.0, 0.1)
    assert distribution_of("model.norm.weight", (64,), added=1.0) == Normal(0.0, 0.1)
    assert distribution_of("q_proj.bias", (64,)) == Normal(0.0, 0.02)
    source = DummyTensors({"q_proj.weight": read("q_proj.weight", 500, 3600)}, 0)
    x = np.random.default_rng(0).standard_normal((20, 3600), np.float32)
    assert (x @ source.rows("q_proj.weight", 0, 500).T).std() == pytest.approx(0.6, rel=0.02)


def test_the_random_norms_of_gemma_are_near_one_with_what_the_norm_adds() -> None:
    plan = plan_weights(describe_graphs(resolve("gemma-3-1b")))
    chosen, source = settle(plan, None, 0)
    means = {
        stored.recipe.names[0]: source.rows(stored.recipe.names[0], 0, stored.recipe.shape[0]).mean()
        for stored in chosen.stored
        if isinstance(stored.recipe, Read) and len(stored.recipe.shape) == 1
    }
    assert {name.split(".")[-2] for name in means} >= {
        "q_norm",
        "k_norm",
        "post_feedforward_layernorm",
        "norm",
    }
    assert all(abs(mean) < 0.03 for mean in means.values())
