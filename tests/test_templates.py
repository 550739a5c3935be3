"""The Jinja environment of the CUDA templates: where they are found, how they are rendered, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernum.codegen import templates
from infernum.codegen.templates import include_text, render
from infernum.errors import CompileError
from infernum.resources import templates_folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that stands for the package's templates."""
    folder = tmp_path / "templates"
    (folder / "include").mkdir(parents=True)
    monkeypatch.setattr(templates, "templates_folder", lambda: folder)
    monkeypatch.setattr(templates, "FOLDERS", [])
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_template_is_rendered_without_the_lines_and_indentation_of_its_blocks(own: Path) -> None:
    write(own / "scale.cu.j2", "int a = {{ N }};\n    {% if N > 1 %}\n    int b;\n    {% endif %}\n")
    assert render("scale", {"N": 2}, arch=90) == "int a = 2;\n    int b;\n"
    assert render("scale.cu.j2", {"N": 1}, arch=90) == "int a = 1;\n"


def test_an_override_is_used_for_its_architecture_only(own: Path) -> None:
    write(own / "scale.cu.j2", "any")
    write(own / "sm_90" / "scale.cu.j2", "hopper")
    assert [render("scale", {}, arch=arch) for arch in (80, 90, 100)] == ["any", "hopper", "any"]


def test_included_templates_are_overridden_too(own: Path) -> None:
    write(own / "scale.cu.j2", "{% include 'part.cu.j2' %}")
    write(own / "part.cu.j2", "any")
    write(own / "sm_90" / "part.cu.j2", "hopper")
    assert [render("scale", {}, arch=arch) for arch in (80, 90)] == ["any", "hopper"]


def test_a_plugins_templates_come_before_the_packages_overrides(own: Path, tmp_path: Path) -> None:
    write(own / "sm_90" / "scale.cu.j2", "package")
    write(own / "norm.cu.j2", "package norm")
    write(tmp_path / "plugin" / "scale.cu.j2", "plugin")
    assert render("scale", {}, arch=90) == "package"
    templates.add_folder(tmp_path / "plugin")
    assert render("scale", {}, arch=90) == "plugin"
    assert render("norm", {}, arch=90) == "package norm"


def test_an_edited_template_is_read_again(own: Path) -> None:
    write(own / "scale.cu.j2", "old")
    assert render("scale", {}, arch=90) == "old"
    write(own / "sm_90" / "scale.cu.j2", "newly overridden")
    write(own / "scale.cu.j2", "edited text")
    assert render("scale", {}, arch=80) == "edited text"


def test_a_missing_template_is_named_with_the_folders_searched(own: Path, tmp_path: Path) -> None:
    templates.add_folder(tmp_path / "plugin")
    with pytest.raises(CompileError, match=r"gone\.cu\.j2 does not exist") as error:
        render("gone", {}, arch=90)
    for folder in (tmp_path / "plugin" / "sm_90", tmp_path / "plugin", own / "sm_90", own):
        assert str(folder) in str(error.value)


def test_a_missing_included_template_is_named_itself(own: Path) -> None:
    write(own / "scale.cu.j2", "{% include 'lost.cu.j2' %}")
    with pytest.raises(
        CompileError, match=r"template lost\.cu\.j2 does not exist; save it beside the plugin"
    ):
        render("scale", {}, arch=90)


def test_an_undefined_variable_is_named_with_template_and_line(own: Path) -> None:
    write(own / "scale.cu.j2", "line one\n\nint a = {{ WIDTH }};\n")
    with pytest.raises(CompileError, match=r"scale\.cu\.j2:3: 'WIDTH' is undefined"):
        render("scale", {}, arch=90)


def test_an_undefined_variable_of_an_included_template_is_found_there(own: Path) -> None:
    write(own / "scale.cu.j2", "\n\n\n{% include 'part.cu.j2' %}\n")
    write(own / "part.cu.j2", "\n{% if node.width > 1 %}x{% endif %}")
    with pytest.raises(CompileError, match=r"part\.cu\.j2:2: .*'width'"):
        render("scale", {"node": {}}, arch=90)


def test_a_syntax_error_is_named_with_template_and_line(own: Path) -> None:
    write(own / "scale.cu.j2", "fine\n{% if %}\n")
    with pytest.raises(CompileError, match=r"scale\.cu\.j2:2: "):
        render("scale", {}, arch=90)


def test_include_files_are_read_as_they_are(own: Path, tmp_path: Path) -> None:
    write(own / "include" / "tile.cuh", "{{ not jinja }} // ≤\n")
    assert include_text("tile.cuh") == "{{ not jinja }} // ≤\n"
    write(tmp_path / "plugin" / "include" / "tile.cuh", "plugin")
    templates.add_folder(tmp_path / "plugin")
    assert include_text("tile.cuh") == "plugin"


def test_a_missing_include_file_is_named_with_the_folders_searched(own: Path) -> None:
    with pytest.raises(CompileError, match=r"gone\.cuh does not exist") as error:
        include_text("gone.cuh")
    assert str(own / "include") in str(error.value)


def test_the_packages_own_includes_are_found() -> None:
    assert "__device__" in include_text("numeric.cuh")


KERNELS = sorted(path.name.removesuffix(".cu.j2") for path in templates_folder().glob("*.cu.j2"))


def own_text(name: str) -> str:
    return (templates_folder() / f"{name}.cu.j2").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in KERNELS if "let_next_kernel_start()" in own_text(name)])
def test_a_kernel_that_lets_the_next_one_start_waits_for_the_one_before(name: str) -> None:
    assert "wait_for_previous_kernel();" in own_text(name)


@pytest.mark.parametrize("name", ["attend", "attend_cluster"])
def test_the_kernel_that_ends_a_step_lets_none_start_since_attention_reads_positions_before_it_waits(
    name: str,
) -> None:
    attend = own_text(name)
    assert attend.index("positions.name }}[token]") < attend.index("wait_for_previous_kernel();")
    advance = own_text("advance")
    assert "wait_for_previous_kernel();" in advance and "let_next_kernel_start" not in advance
