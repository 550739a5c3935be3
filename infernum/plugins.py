"""Ops, rules, templates and model families from outside the package: from a file, or from an installed package.

A plugin is a Python module. Importing it registers what it declares:

    ops         by their decorators (`infernum.ir.op`)
    rules       by `infernum.fusion.add_rule`
    families    a module-level `FAMILY` (`infernum.models.family`), known by the `model_type` of each of its configs
    templates   `*.cu.j2` in the module's folder, and `include/*.cuh` beside them, found before the package's own

A file `my_ops.py` becomes the module `infernum_plugins.my_ops`, which files loaded after it may import. A plugin that
does not load leaves nothing behind, so that it can be mended and loaded again.

Installed packages name theirs in the entry point group `infernum.plugins`, as in `relu2 = "my_package.relu2"`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from infernum.errors import CompileError, InfernumError
from infernum.renamed import advice

GROUP = "infernum.plugins"
PACKAGE = "infernum_plugins"
_TEMPLATES = ("*.j2", "sm_*/*.j2", "include/*.cuh")


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: its module's name, its file, the SHA-256 of its code and templates, and the rules it added."""

    name: str
    path: Path
    sha256: str
    rules: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{self.name}:{self.sha256}"


_loaded: dict[Path, Plugin] = {}


def loaded() -> tuple[Plugin, ...]:
    """The plugins loaded so far, in order."""
    return tuple(_loaded.values())


def load_plugin(path: Path | str) -> Plugin:
    """Load a plugin from a `.py` file, once. Raises CompileError naming the file and line of what is wrong in it."""
    file = Path(path)
    if not file.is_file():
        raise CompileError(f"plugin {file}: no such file; give a Python file")
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise CompileError(f"plugin {file}: is no Python module; name it such as my_ops.py")
    resolved = file.resolve()
    if resolved in _loaded:
        return _loaded[resolved]
    taken = next((p for p in _loaded.values() if p.name == file.stem), None)
    if taken is not None:
        raise CompileError(f"plugin {file}: a plugin named {taken.name} is loaded already, from {taken.path}")
    name = f"{PACKAGE}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        with _all_or_nothing(PACKAGE) as rules:
            sys.modules.setdefault(PACKAGE, _package())
            sys.modules[name] = module
            spec.loader.exec_module(module)
            return _register(module, file.stem, resolved, rules)
    except BaseException as error:
        raise _at_fault(error, str(file), resolved) from error


def _package() -> ModuleType:
    """The package that plugins from files are in: it has no folder, so that only what is loaded can be imported."""
    package = ModuleType(PACKAGE)
    package.__path__ = []
    return package


@lru_cache
def load_installed() -> None:
    """Load the plugins of installed packages. Raises CompileError naming the package whose plugin does not load."""
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        _load_entry(entry)


def _load_entry(entry: EntryPoint) -> None:
    package = entry.dist.name if entry.dist else entry.value
    name = entry.value.partition(":")[0].strip()
    top = name.partition(".")[0]
    file = None
    try:
        with _all_or_nothing(top) as rules:
            for part in (top, name):  # finding a part of a package imports the package
                file = _file_of(part) or file
            module = importlib.import_module(name)
            resolved = Path(str(module.__file__)).resolve()
            if resolved not in _loaded:
                _register(module, entry.name, resolved, rules)
    except BaseException as error:
        raise _at_fault(error, f"{entry.name} of the package {package}", file) from error


def _file_of(module: str) -> Path | None:
    """The file that a module would be imported from, if any. Raises what a package around it raises."""
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


@contextmanager
def _all_or_nothing(package: str) -> Generator[set[str]]:
    """Around the import of a plugin: the names of the rules there were. What an import that fails registered is undone.

    Its modules, which are those in `package`, are forgotten too: importing them again registers everything again.
    """
    import infernum.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # its ops are no plugin's
    from infernum import fusion
    from infernum.codegen import templates
    from infernum.ir import op
    from infernum.models import config

    tables: list[dict[Any, Any]] = [op.OPS, config.ADDED, _loaded]
    lists: list[list[Any]] = [fusion.RULES, templates.FOLDERS]
    tables_before, lists_before = [{**table} for table in tables], [[*entries] for entries in lists]
    modules = {*sys.modules}
    try:
        yield {rule.name for rule in fusion.RULES}
    except BaseException:
        for table, before in zip(tables, tables_before, strict=True):
            table.clear()
            table.update(before)
        for entries, before in zip(lists, lists_before, strict=True):
            entries[:] = before
        for name in {*sys.modules} - modules:
            if name.partition(".")[0] == package:
                del sys.modules[name]
        raise


def _register(module: ModuleType, name: str, file: Path, rules_before: set[str]) -> Plugin:
    """Make known what an imported module declares beside ops and rules."""
    from infernum.fusion import RULES

    family: object = getattr(module, "FAMILY", None)
    if family is not None:
        from infernum.models.config import add_family
        from infernum.models.family import Family

        if not isinstance(family, Family):
            raise CompileError(
                f"FAMILY is {family!r}; write FAMILY = Family(configs=…, first=…, layer=…, last=…)"
            )
        add_family(family)
    if any(True for pattern in _TEMPLATES for _ in file.parent.glob(pattern)):
        from infernum.codegen.templates import add_folder

        add_folder(file.parent)
    added = tuple(rule.name for rule in RULES if rule.name not in rules_before)
    _loaded[file] = Plugin(name, file, _fingerprint(file), added)
    return _loaded[file]


def _fingerprint(file: Path) -> str:
    """SHA-256 of a plugin's file and of the templates beside it."""
    digest = hashlib.sha256(file.read_bytes())
    for path in sorted(path for pattern in _TEMPLATES for path in file.parent.glob(pattern)):
        digest.update(path.relative_to(file.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _at_fault(error: BaseException, plugin: str, file: Path | None) -> BaseException:
    """The error of a plugin that does not load as one line: its last line of the plugin's own file."""
    if not isinstance(error, Exception):
        return error
    if isinstance(error, SyntaxError):
        elsewhere = "" if error.filename == str(file) else f"{error.filename}, "
        return CompileError(f"plugin {plugin}: {elsewhere}line {error.lineno}: {error.msg}")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if file and f.filename == str(file)]
    line = f" line {frames[-1].lineno}:" if frames else ""
    kind = "" if isinstance(error, InfernumError) else f"{type(error).__name__}: "
    return CompileError(f"plugin {plugin}:{line} {kind}{error}{advice(str(error))}")
