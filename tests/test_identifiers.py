"""What the values of a kernel are called in its CUDA: as in the graph, unless that means something else there."""

from __future__ import annotations

from infernum.codegen.identifiers import identifiers


def test_a_value_that_is_called_as_a_parameter_of_an_expression_keeps_its_name() -> None:
    assert identifiers("gemv_mma", 90, ["x"], ["{x} / (1.0f + expf(-{x}))"]) == {"x": "x"}


def test_a_value_that_is_called_as_a_word_of_an_expression_or_of_the_template_gets_another_name() -> None:
    found = identifiers("gemv_mma", 90, ["expf", "slot"], ["{x} / (1.0f + expf(-{x}))"])
    assert found == {"expf": "expf_", "slot": "slot_"}
