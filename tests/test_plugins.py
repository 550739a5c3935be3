"""Plugins: what a file from outside may register, what becomes of it, and what is said when it does not load."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest
from conftest import Outcome

from infernum import fusion, ops, plugins, renamed
from infernum.codegen import templates
from infernum.codegen.emit import emit_block
from infernum.codegen.manifest import CompiledBlock
from infernum.codegen.plan import plan_block
from infernum.codegen.steps import KernelStep
from infernum.codegen.templates import include_text, render
from infernum.codegen.weights import fold_weights
from infernum.compiler import Options, cached_bundle, emit_sources
from infernum.dtypes import BF16
from infernum.errors import CompileError
from infernum.ir import op
from infernum.ir.apply import apply_rules
from infernum.ir.graph import Graph, Input, TensorType
from infernum.ir.kernel import Target
from infernum.ir.trace import Trace
from infernum.models import config
from infernum.models.config import families, find_family
from infernum.models.presets import resolve
from infernum.plugins import load_installed, load_plugin

EXAMPLES = Path(__file__).parents[1] / "examples"

OP = """\
from infernum.ir.op import pointwise

@pointwise("2.0f * {x}")
def twice(x):
    "2 · x."
    return 2 * x
"""

RULE = """\
from infernum.fusion import add_rule
from infernum.ir.rewrite import fusion
from infernum.ops import mul, silu

@add_rule
@fusion(why="SwiGLU is one kernel.")
def swiglu(gate, up):
    return mul(silu(gate), up)
"""

FAMILY = """\
from dataclasses import replace
from infernum.models import llama

class Config(llama.LlamaConfig):
    model_type = "llama_again"

FAMILY = replace(llama.FAMILY, configs=(Config,))
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every registry as it was, once the test is over."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(fusion, "RULES", [*fusion.RULES])
    monkeypatch.setattr(op, "OPS", {**op.OPS})
    monkeypatch.setattr(config, "ADDED", {})
    monkeypatch.setattr(templates, "FOLDERS", [])
    load_installed.cache_clear()
    yield
    load_installed.cache_clear()
    for name in [name for name in sys.modules if name.startswith("infernum_plugins.")]:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """`write("name.py", "text")`: a file in an empty folder."""

    def put(name: str, text: str) -> Path:
        path = tmp_path / "plugin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return put


Write = Callable[[str, str], Path]


def refusal(path: Path) -> str:
    """What is said of a plugin that does not load, without its folder."""
    with pytest.raises(CompileError) as error:
        load_plugin(path)
    assert f"infernum_plugins.{path.stem}" not in sys.modules and not plugins.loaded()
    return str(error.value).replace(f"{path.parent}/", "")


def test_a_plugin_registers_an_op_a_rule_and_a_family(write: Write) -> None:
    plugin = load_plugin(write("mine.py", f"{OP}\n{RULE}\n{FAMILY}"))
    assert plugin.name == "mine" and plugins.loaded() == (plugin,)
    assert op.OPS["twice"].doc == "2 · x."
    assert [rule.name for rule in fusion.RULES][-2:] == ["swiglu", "merge_pointwise"]
    assert "llama_again" in families() and find_family("llama_again").model_types == ("llama_again",)


def test_a_plugin_is_loaded_once_however_it_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("mine.py", RULE)
    monkeypatch.chdir(path.parent)
    assert load_plugin(path) is load_plugin("mine.py")
    assert len(plugins.loaded()) == 1


def test_two_plugins_of_one_name_are_refused(write: Write) -> None:
    first = load_plugin(write("mine.py", OP))
    with pytest.raises(CompileError, match=rf"a plugin named mine is loaded already, from {first.path}"):
        load_plugin(write("other/mine.py", RULE))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.py") == "plugin none.py: no such file; give a Python file"


@pytest.mark.parametrize("name", ["my-ops.py", "ops.txt", "1st.py"])
def test_a_file_that_is_no_module_is_refused(write: Write, name: str) -> None:
    assert refusal(write(name, OP)) == f"plugin {name}: is no Python module; name it such as my_ops.py"


def test_a_syntax_error_names_its_line(write: Write) -> None:
    said = refusal(write("mine.py", "a = 1\nb = = 2\n"))
    assert said == "plugin mine.py: line 2: invalid syntax"


def test_an_exception_names_its_kind_and_the_last_line_of_the_plugin(write: Write) -> None:
    text = "def half(x):\n    return x / 0\n\nhalf(3)\n"
    assert refusal(write("mine.py", text)) == "plugin mine.py: line 2: ZeroDivisionError: division by zero"


def test_a_missing_import_names_its_line(write: Write) -> None:
    said = refusal(write("mine.py", "\nimport no_such_package\n"))
    assert said == "plugin mine.py: line 2: ModuleNotFoundError: No module named 'no_such_package'"


def test_an_interrupt_while_loading_stays_one(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_plugin(write("mine.py", "raise KeyboardInterrupt\n"))


def test_an_op_of_a_name_that_is_taken_is_refused(write: Write) -> None:
    said = refusal(write("mine.py", OP.replace("def twice", "def silu")))
    assert "an op named 'silu' exists already, in infernum.ops.pointwise" in said
    assert op.OPS["silu"].meaning.__module__ == "infernum.ops.pointwise"


def test_a_rule_of_a_name_that_is_taken_is_refused(write: Write) -> None:
    said = refusal(write("mine.py", RULE.replace("def swiglu", "def merge_products")))
    assert said == "plugin mine.py: line 5: a rule named 'merge_products' exists already; choose another name"


def test_a_rule_ahead_of_one_that_does_not_exist_is_refused_with_a_similar_name(write: Write) -> None:
    text = RULE.replace("@add_rule\n", "") + '\nadd_rule(swiglu, before="in_prologue")\n'
    said = refusal(write("mine.py", text))
    assert said == "plugin mine.py: line 9: no rule is called 'in_prologue'; did you mean into_prologue?"


OLD_RULE = """\
from infernum.fusion import add_rule

class Swiglu:
    name = "swiglu"
    why = "SwiGLU is one kernel."

    def candidates(self, graph, target):
        return []

add_rule(Swiglu())
"""

OLD_SPELLINGS = {
    "absorb": (
        "from infernum.ir.rewrite import absorb\n",
        "an op needs no rule; a row op declares `prologue=`",
    ),
    "fusion.linear": ("from infernum.fusion.linear import is_product\n", "are in infernum.fusion.products"),
    "fusion.mlp": ("import infernum.fusion.mlp\n", "are in infernum.fusion.products"),
    "fusion.norms": ("from infernum.fusion.norms import add_rms_norm\n", "and infernum.fusion.hosts"),
    **{
        f"Template({name}=)": (
            f"from infernum.ir.kernel import Template\nTemplate('mine', {name}=print)\n",
            "`layouts=` takes the place of when, constants, choices and feasible",
        )
        for name in ("when", "constants", "choices", "feasible")
    },
    "Library(when=)": (
        "from infernum.ir.kernel import Library\nLibrary(when=print)\n",
        "`Library.plan` says what the library can compute",
    ),
    **{
        f"{function}({before}=)": (
            f"from infernum.ir.kernel import Template\nfrom infernum.ir.op import op\n{function}({before}=print)\n",
            f"; it is called `{now}=`",
        )
        for (function, before), now in renamed.KEYWORDS.items()
    },
    "chosen": ("from infernum.ir.kernel import chosen\n", "`alternatives(THREADS=(256, 128))`"),
    "Part": ("from infernum.ir.graph import Part\n", "`infernum.recipes.read(name, *shape)`"),
    "weight_plan": ("import infernum.runtime.weight_plan\n", "import from infernum.weights.plan"),
    "batch": ("from infernum.runtime.batch import Batch\n", "import from infernum.step"),
    "sampling_params": ("import infernum.engine.sampling_params\n", "import from infernum.sampling_params"),
    "candidates": (OLD_RULE, "at(graph, node, target), which takes the place of candidates(graph, target)"),
    "before=": (
        RULE.replace("@add_rule\n", "") + '\nadd_rule(swiglu, before="norm_into_gemv")\n',
        "into_prologue",
    ),
}
"""What a plugin of an earlier version says, and words of the error that name the present spelling."""


@pytest.mark.parametrize("spelling", OLD_SPELLINGS)
def test_an_earlier_spelling_is_refused_with_the_present_one(write: Write, spelling: str) -> None:
    text, words = OLD_SPELLINGS[spelling]
    said = refusal(write("mine.py", text))
    assert said.startswith("plugin mine.py: line ") and words in said and "\n" not in said


@pytest.mark.parametrize(("old", "new"), renamed.RULES.items())
def test_a_rule_by_its_earlier_name_is_refused_with_the_rule_that_does_its_work(old: str, new: str) -> None:
    assert new in [rule.name for rule in fusion.RULES]
    with pytest.raises(CompileError) as error:
        fusion.select_rules(True, [f"-{old}"])
    assert str(error.value) == f"--rules: no rule is called {old!r}; {new} does its work"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ float_literal(eps) }}", "'float_literal' is undefined; it is called `literal`"),
        ("{{ norm.eps }}", "'norm' is undefined; a norm on the operand x is `x_norm`"),
    ],
)
def test_an_earlier_name_in_a_template_is_refused_with_the_present_one(
    write: Write, text: str, said: str
) -> None:
    write("silu.cu.j2", text)
    load_plugin(write("mine.py", OP))
    with pytest.raises(CompileError, match=rf"silu\.cu\.j2:1: {said}"):
        render("silu", {"eps": 1e-5}, arch=90)


def test_a_family_of_a_name_that_is_taken_is_refused(write: Write) -> None:
    said = refusal(write("mine.py", FAMILY.replace("llama_again", "llama")))
    assert said == (
        'plugin mine.py: a family of model_type "llama" exists already, in infernum.models.llama;'
        " choose another name"
    )


def test_two_plugins_of_one_family_are_told_apart(write: Write) -> None:
    load_plugin(write("mine.py", FAMILY))
    with pytest.raises(
        CompileError, match=r"yours\.py: a family .* exists already, in infernum_plugins\.mine;"
    ):
        load_plugin(write("yours.py", FAMILY))


def everything() -> tuple[object, ...]:
    """What is registered, in order."""
    rules = [rule.name for rule in fusion.RULES]
    return {**op.OPS}, rules, {**config.ADDED}, [*templates.FOLDERS], plugins.loaded()


@pytest.mark.parametrize(
    "mistake",
    [
        "1 / 0\n",
        FAMILY.replace("llama_again", "llama"),
        "raise KeyboardInterrupt\n",
        "from infernum.codegen.templates import add_folder\nfrom pathlib import Path\n"
        "add_folder(Path(__file__).parent)\n1 / 0\n",
    ],
    ids=["exception", "taken family", "interrupt", "own folder"],
)
def test_a_plugin_that_fails_halfway_leaves_nothing_behind_and_loads_once_it_is_mended(
    write: Write, mistake: str
) -> None:
    before = everything()
    path = write("mine.py", f"{OP}\n{RULE}\n{mistake}")
    with pytest.raises((CompileError, KeyboardInterrupt)):
        load_plugin(path)
    assert everything() == before
    write("mine.py", f"{OP}\n{RULE}\n{FAMILY}\n# mended, and longer than it was: {'.' * len(mistake)}")
    load_plugin(path)
    assert "twice" in op.OPS and "swiglu" in [rule.name for rule in fusion.RULES] and config.ADDED


def test_a_family_that_cannot_be_used_leaves_nothing_behind(write: Write) -> None:
    before = everything()
    with pytest.raises(CompileError, match=r"FAMILY is 3; write FAMILY = Family\(configs="):
        load_plugin(write("mine.py", f"{OP}\n{RULE}\nFAMILY = 3\n"))
    assert everything() == before


@pytest.mark.parametrize(
    ("old", "said"),
    [
        (
            FAMILY.replace("configs=(Config,)", "config=Config"),
            "plugin mine.py: line 7: Family(config=Config) is now Family(configs=(Config,)): a tuple of classes",
        ),
        (
            "from infernum.models.llama_config import LlamaConfig\n",
            "plugin mine.py: line 1: ModuleNotFoundError: No module named 'infernum.models.llama_config';"
            " import from infernum.models.llama",
        ),
    ],
    ids=["config", "llama_config"],
)
def test_a_plugin_of_an_older_version_is_refused_with_the_new_spelling(
    write: Write, old: str, said: str
) -> None:
    assert refusal(write("mine.py", old)) == said


def test_a_plugin_knows_the_rules_that_it_added(write: Write) -> None:
    assert load_plugin(write("mine.py", f"{OP}\n{RULE}")).rules == ("swiglu",)
    assert load_plugin(write("yours.py", OP.replace("twice", "thrice"))).rules == ()


def test_a_plugin_may_import_one_that_is_loaded_already_and_no_other(write: Write) -> None:
    load_plugin(write("mine.py", OP))
    write("other.py", OP)
    text = "from infernum_plugins.{0} import twice\nassert twice.name == 'twice'\n"
    load_plugin(write("yours.py", text.format("mine")))
    with pytest.raises(CompileError, match=r"line 1: ModuleNotFoundError: No module named 'infernum_plugins"):
        load_plugin(write("theirs.py", text.format("other")))


def test_a_syntax_error_in_what_a_plugin_imports_names_its_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = write("beside_it.py", "a = = 1\n")
    monkeypatch.syspath_prepend(beside.parent)
    assert refusal(write("mine.py", "import beside_it\n")) == (
        "plugin mine.py: beside_it.py, line 1: invalid syntax"
    )


def test_templates_and_headers_beside_a_plugin_are_found_before_the_packages_own(write: Write) -> None:
    own = include_text("reduce.cuh")
    write("silu.cu.j2", "// {{ width }} wide")
    write("include/reduce.cuh", "// mine")
    assert include_text("reduce.cuh") == own
    load_plugin(write("mine.py", OP))
    assert render("silu", {"width": 64}, arch=90) == "// 64 wide"
    assert include_text("reduce.cuh") == "// mine"


def test_a_plugin_without_templates_adds_no_folder(write: Write) -> None:
    load_plugin(write("mine.py", OP))
    assert templates.FOLDERS == []


def test_the_fingerprint_covers_code_templates_and_headers(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("mine.py", "x = 1\n")
    seen: set[str] = set()
    changes = [
        ("mine.py", "x = 2\n"),
        ("k.cu.j2", "a"),
        ("k.cu.j2", "b"),
        ("sm_90/k.cu.j2", "b"),
        ("include/k.cuh", "a"),
        ("include/k.cuh", "b"),
        ("include/deep/k.h", "b"),
        ("parts/k.j2", "b"),
        ("sm_90/parts/k.j2", "b"),
    ]
    for count, (name, text) in enumerate(changes, start=1):
        write(name, text)
        monkeypatch.setattr(plugins, "_loaded", {})
        seen.add(load_plugin(path).sha256)
        assert len(seen) == count, f"{name} does not count"
    write("notes.txt", "nothing of this is compiled")
    monkeypatch.setattr(plugins, "_loaded", {})
    assert load_plugin(path).sha256 in seen


HELPERS = {
    "beside it": ("from sizes import A", {"sizes.py": "A = 1"}),
    "behind a module": ("import os, first as f", {"first.py": "from sizes import A", "sizes.py": "A = 1"}),
    "in a function": ("def later():\n    import sizes", {"sizes.py": "A = 1"}),
    "by a computed name": ("import importlib\nimportlib.import_module('si' + 'zes')", {"sizes.py": "A = 1"}),
    "of a package": (
        "def later():\n    from numbers_of.deep import sizes",
        {
            "numbers_of/__init__.py": "",
            "numbers_of/deep/sizes.py": "A = 1",
            "numbers_of/deep/__init__.py": "",
        },
    ),
    "of a package without an init": ("import loose.sizes", {"loose/sizes.py": "A = 1"}),
}


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Modules that a test imports are forgotten at its end."""
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        del sys.modules[name]


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("helper", HELPERS)
def test_the_fingerprint_covers_what_a_plugin_imports(
    write: Write, monkeypatch: pytest.MonkeyPatch, helper: str
) -> None:
    text, files = HELPERS[helper]
    path = write("mine.py", f"{text}\n")
    monkeypatch.syspath_prepend(path.parent)
    edited = next(name for name in files if name.endswith("sizes.py"))

    def fingerprint() -> str:
        before = {*sys.modules}
        monkeypatch.setattr(plugins, "_loaded", {})
        try:
            return load_plugin(path).sha256
        finally:
            importlib.invalidate_caches()
            for name in {*sys.modules} - before:
                del sys.modules[name]

    for name, content in files.items():
        write(name, content)
    first = fingerprint()
    assert fingerprint() == first
    write("unrelated.py", "A = 3")
    assert fingerprint() == first
    write(edited, "A = 2")
    assert fingerprint() != first
    write(edited, files[edited])
    assert fingerprint() == first


@pytest.mark.usefixtures("forgotten")
def test_of_installed_packages_the_fingerprint_covers_the_plugins_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"

    def put(name: str, text: str) -> None:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)

    put("owned_package/__init__.py", "import another_package, _owned_sizes\n")
    put("owned_package/lazy.py", "A = 1\n")
    put("_owned_sizes.py", "A = 1\n")
    put("another_package.py", "A = 1\n")
    put("owned-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: owned\nVersion: 1.0\n")
    put("owned-1.0.dist-info/entry_points.txt", f"[{plugins.GROUP}]\nowned = owned_package\n")
    record = ("owned_package/__init__.py", "owned_package/lazy.py", "_owned_sizes.py")
    put("owned-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in record))
    (distribution,) = distributions(path=[str(site)])
    entries = [e for e in distribution.entry_points if e.group == plugins.GROUP]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries)
    monkeypatch.syspath_prepend(site)

    def fingerprint() -> str:
        load_installed.cache_clear()
        monkeypatch.setattr(plugins, "_loaded", {})
        load_installed()
        return plugins.loaded()[0].sha256

    first = fingerprint()
    put("another_package.py", "A = 2\n")
    assert fingerprint() == first
    seen = {first}
    for count, name in enumerate(("owned_package/lazy.py", "_owned_sizes.py"), start=2):
        put(name, "A = 2\n")
        seen.add(fingerprint())
        assert len(seen) == count, f"{name} does not count"


def test_a_template_under_another_name_is_refused_since_the_fingerprint_would_miss_it(write: Write) -> None:
    write("odd.cu.j2", '{% include "table.txt" %}')
    write("table.txt", "1, 2")
    load_plugin(write("mine.py", OP))
    with pytest.raises(
        CompileError, match=r"^template table\.txt: its name does not end in \.j2; rename it$"
    ):
        render("odd", {}, arch=90)


class Entries:
    """What `importlib.metadata.entry_points` would give for installed packages."""

    def __init__(self, *entries: tuple[str, str]) -> None:
        self.entries = [EntryPoint(name, value, plugins.GROUP) for name, value in entries]

    def __call__(self, *, group: str) -> list[EntryPoint]:
        return [entry for entry in self.entries if entry.group == group]


def test_plugins_of_installed_packages_are_loaded_from_their_entry_points(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write("doubling_package.py", OP)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(plugins, "entry_points", Entries(("doubling", "doubling_package")))
    load_installed()
    (plugin,) = plugins.loaded()
    assert plugin.name == "doubling" and plugin.path == package.resolve() and "twice" in op.OPS
    load_installed()
    assert plugins.loaded() == (plugin,)
    del sys.modules["doubling_package"]


def test_two_entry_points_of_one_module_are_one_plugin(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write("family_package.py", FAMILY).parent)
    monkeypatch.setattr(plugins, "entry_points", Entries(("a", "family_package"), ("b", "family_package")))
    load_installed()
    assert [plugin.name for plugin in plugins.loaded()] == ["a"] and "llama_again" in families()
    del sys.modules["family_package"]


def test_an_installed_plugin_that_does_not_load_is_named_with_its_package(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(write("broken_package.py", "\nraise OSError('no disk')\n").parent)
    monkeypatch.setattr(plugins, "entry_points", Entries(("broken", "broken_package")))
    said = "plugin broken of the package broken_package: line 2: OSError: no disk"
    with pytest.raises(CompileError, match=f"^{said}$"):
        load_installed()


@pytest.mark.parametrize(
    ("package", "part", "said"),
    [
        ("\n1 / 0\n", OP, "line 2: ZeroDivisionError: division by zero"),
        (
            OP,
            f"\n{RULE}\nimport no_such_package\n",
            "line 11: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        (OP, None, "ModuleNotFoundError: No module named 'halved_package.part'"),
    ],
    ids=["the package", "its part", "no part"],
)
def test_a_part_of_a_package_that_does_not_load_names_its_line_and_leaves_nothing_behind(
    write: Write, monkeypatch: pytest.MonkeyPatch, package: str, part: str | None, said: str
) -> None:
    folder = write("halved_package/__init__.py", package).parent
    if part is not None:
        write("halved_package/part.py", part)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(plugins, "entry_points", Entries(("half", "halved_package.part")))
    before = everything()
    with pytest.raises(CompileError, match=rf"^plugin half of the package halved_package\.part: {said}$"):
        load_installed()
    assert everything() == before
    assert not any(name.startswith("halved_package") for name in sys.modules)


def test_a_bundle_says_which_plugins_it_was_compiled_with(
    write: Write, infernum: Callable[..., Outcome], tmp_path: Path
) -> None:
    from infernum.bundle import open_bundle

    path = write("mine.py", RULE)
    made = infernum("compile", "dante", "--max-batch-tokens", "1", "--plugin", path, "-o", tmp_path / "b")
    assert made.code == 0, made.err
    manifest = open_bundle(tmp_path / "b").manifest
    assert [(p.name, p.sha256) for p in manifest.plugins] == [
        (p.name, p.sha256) for p in plugins.loaded() if p.path == path.resolve()
    ]
    assert "swiglu" in manifest.rules


def test_another_plugin_means_another_bundle_in_the_cache(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFERNUM_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def remember(source: object, options: object, out: Path, **_: object) -> Path:
        made.append(out)
        return out

    monkeypatch.setattr("infernum.compiler.compile_model", remember)

    def cached() -> Path:
        cached_bundle(resolve("dante"), Options())
        return made[-1]

    without = cached()
    path = write("mine.py", RULE)
    load_plugin(path)
    with_plugin = cached()
    assert cached() == with_plugin != without
    path.write_text(f"{RULE}\nmore = 1\n", encoding="utf-8")
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(fusion, "RULES", [rule for rule in fusion.RULES if rule.name != "swiglu"])
    load_plugin(path)
    assert cached() not in (with_plugin, without)


def test_a_family_from_outside_is_compiled_with_its_own_op_and_template() -> None:
    load_plugin(EXAMPLES / "custom_op" / "unit_rows.py")
    source = resolve(str(EXAMPLES / "custom_op" / "unit"))
    sources = emit_sources(source, Options(max_batch_tokens=1))
    (embed,) = [block for block in sources.blocks if block.block == "embed"]
    assert [step.name for step in embed.plan.steps] == ["embedding", "unit_rows"]
    assert "const float length = sqrtf(block_sum<THREADS>(squares) + 1e-12f);" in embed.source


def test_a_pointwise_op_from_outside_takes_five_lines_and_no_template() -> None:
    path = EXAMPLES / "custom_op" / "soft_cap.py"
    load_plugin(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("@pointwise"))
    declared = lines[first : lines.index("", first)]
    used = [line for line in lines[first + len(declared) :] if "soft_cap(" in line]
    assert (len(declared), len(used)) == (4, 1)
    head = head_of("capped", "-into_epilogue")
    (kernel,) = [step for step in head.plan.steps if step.name == "soft_cap"]
    assert isinstance(kernel, KernelStep) and kernel.template.name == "pointwise"
    assert "30.0f * tanhf(linear_1_value / 30.0f)" in head.source


def head_of(model: str, *rules: str) -> CompiledBlock:
    """The head of a model of `examples/custom_op`, for one token."""
    source = resolve(str(EXAMPLES / "custom_op" / model))
    sources = emit_sources(source, Options(max_batch_tokens=1, rules=rules))
    (head,) = [block for block in sources.blocks if block.block == "head"]
    return head


def test_a_pointwise_op_from_outside_is_absorbed_by_the_product_before_it() -> None:
    load_plugin(EXAMPLES / "custom_op" / "soft_cap.py")
    head = head_of("capped")
    assert [step.name for step in head.plan.steps] == ["select_rows", "gemv_mma_lm_head"]
    assert "30.0f * tanhf(part_0 / 30.0f)" in head.source


def test_a_norm_from_outside_needs_a_struct_and_neither_a_template_nor_a_rule() -> None:
    assert load_plugin(EXAMPLES / "custom_op" / "offset_norm.py").rules == ()
    absorbed, apart = head_of("offset"), head_of("offset", "-into_prologue")
    assert [step.name for step in absorbed.plan.steps] == ["select_rows", "gemv_mma_lm_head"]
    assert "rows.normalise(OffsetNorm{1e-06f});" in absorbed.source
    assert [step.name for step in apart.plan.steps][1] == "offset_norm_model_norm"
    assert "constexpr OffsetNorm norm{1e-06f};" in apart.source
    assert all("struct OffsetNorm {" in head.source for head in (absorbed, apart))


def test_a_norm_without_a_vector_cannot_be_a_prologue(write: Write) -> None:
    text = (
        "from infernum.ir.kernel import Prologue\nfrom infernum.ir.op import op\n\n"
        "@op('tokens width -> tokens width', prologue=Prologue('Unit', 'unit.cuh'))\n"
        "def unit(x):\n    return x\n"
    )
    assert refusal(write("mine.py", text)) == (
        "plugin mine.py: line 4: ValueError: unit takes x; a norm that other kernels compute takes the rows and the "
        "vector that scales them"
    )


def test_a_command_says_in_one_line_what_is_wrong_with_a_plugin(
    write: Write, infernum: Callable[..., Outcome]
) -> None:
    path = write("mine.py", "import no_such_package\n")
    made = infernum("compile", "dante", "--plugin", path)
    assert made.code == 2 and made.out == ""
    assert (
        made.err == f"error: plugin {path}: line 1: ModuleNotFoundError: No module named 'no_such_package'\n"
    )


def test_an_op_of_a_plugin_is_one_kernel_with_its_neighbours_and_has_no_template() -> None:
    load_plugin(EXAMPLES / "custom_op" / "soft_cap.py")
    soft_cap = op.OPS["soft_cap"]
    trace = Trace(where=("idea.py:1",))
    kind = TensorType(("tokens", 64), BF16)
    x, y = (trace.input(name, Input("stream"), kind) for name in "xy")
    total = ops.add(ops.silu(x), soft_cap(y, cap=30.0))
    graph = Graph.build("idea", trace.entries.values(), [total.value])
    target = Target(90, "t1", 1, 1, BF16)
    plan = plan_block(apply_rules(graph, fusion.RULES, target, normalise=fold_weights).graph, target)
    (kernel,) = plan.steps
    assert isinstance(kernel, KernelStep) and kernel.template.name == "pointwise"
    assert "30.0f * tanhf(" in emit_block(plan, "an idea")
