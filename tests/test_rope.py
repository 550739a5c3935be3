"""Rotary embeddings against transformers: `tests/oracle/ropes.py` says for which config.json, and holds its answers."""

import numpy as np
import pytest
from oracle.ropes import ROPE_CASES, RopeCase, load_rope

from infernum import ops
from infernum.models.fields import Fields
from infernum.models.rope_fields import read_rope
from infernum.rope import Rope


def read(case: RopeCase) -> Rope:
    fields = Fields(case.fields, "config.json")
    of_type = {"layer_type": case.layer_type} if case.layer_type else {}
    rope = read_rope(fields, case.head_dim, case.fields["max_position_embeddings"], **of_type, **case.reading)
    assert fields.warnings == ()
    return rope


@pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)
def test_frequencies_and_factor_are_those_of_transformers(case: RopeCase) -> None:
    rope, answer = read(case), load_rope(case.name)
    is_long = rope.kind == "longrope" and max(case.positions) >= rope.original_max_position
    np.testing.assert_allclose(rope.inv_freq(case.head_dim, long=is_long), answer["inv_freq"], rtol=1e-6)
    assert rope.attention_factor == pytest.approx(float(answer["attention_factor"]), rel=1e-12)


@pytest.mark.parametrize("case", ROPE_CASES, ids=lambda case: case.name)
def test_heads_turn_as_in_transformers(case: RopeCase) -> None:
    rope, answer = read(case), load_rope(case.name)
    heads, positions = case.heads(), np.array(case.positions, np.int32)
    for turn, expected in ((rope, answer["q"]), (rope.of_keys, answer["k"])):
        turned = turn_by(heads, positions, turn)
        np.testing.assert_allclose(turned, expected, rtol=2e-5, atol=2e-5)


def turn_by(heads: np.ndarray, positions: np.ndarray, rope: Rope) -> np.ndarray:
    if rope.kind != "longrope":
        return ops.rope.meaning(heads, positions, rope=rope)
    lengths = np.full(positions.shape, positions.max() + 1, np.int32)
    return ops.rope_by_length.meaning(heads, positions, lengths, rope=rope)
