"""Ops, rules, templates and model families from outside the package: from a file, or from an installed package.

A plugin is a Python module. Importing it registers what it declares:

    ops         by their decorators (`infernum.ir.op`)
    rules       by `infernum.fusion.add_rule`
    families    a module-level `FAMILY` (`infernum.models.family`), known by the `model_type` of each of its configs
    templates   `*.cu.j2` in the module's folder, and `include/*.cuh` beside them, found before the package's own

The SHA-256 of a plugin covers its file, these templates and headers, and the Python that it imports: modules and
whole packages, at any depth, that are neither of Python nor of Infernum nor of another installed package. What else it
reads, such as a file of numbers, does not count: after a change of that, delete the bundles in the cache.

A file `my_ops.py` becomes the module `infernum_plugins.my_ops`, which files loaded after it may import. A plugin that
does not load leaves nothing behind, so that it can be mended and loaded again.

Installed packages name theirs in the entry point group `infernum.plugins`, as in `relu2 = "my_package.relu2"`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator, Set
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
_TEMPLATES = ("*.j2", "*/*.j2", "*/*/*.j2", "include/**/*")
_IMPORT = re.compile(r"(?:^|[;:])[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([\w., \t]+))", re.MULTILINE)


@dataclass(frozen=True)
class LoadedPlugin:
    """A loaded plugin: its module's name, its file, the SHA-256 of its code and templates, and the rules it added."""

    name: str
    path: Path
    sha256: str
    rules: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{self.name}:{self.sha256}"


_loaded: dict[Path, LoadedPlugin] = {}


def loaded() -> tuple[LoadedPlugin, ...]:
    """The plugins loaded so far, in order."""
    return tuple(_loaded.values())


def load_plugin(path: Path | str) -> LoadedPlugin:
    """Load a plugin from a `.py` file, once. Raises CompileError naming the file and line of what is wrong in it."""
    file = Path(path)
    if not file.is_file():
        raise CompileError(f"plugin {file}: no such file; give a Python file")
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise CompileError(f"plugin {file}: is no Python module; name it such as my_ops.py")
    resolved = file.resolve()
    if resolved in _loaded:
        return _loaded[resolved]
    namesake = next((p for p in _loaded.values() if p.name == file.stem), None)
    if namesake is not None:
        raise CompileError(
            f"plugin {file}: a plugin named {namesake.name} is loaded already, from {namesake.path}"
        )
    name = f"{PACKAGE}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        with _all_or_nothing(PACKAGE) as before:
            sys.modules.setdefault(PACKAGE, _package())
            sys.modules[name] = module
            spec.loader.exec_module(module)
            return _register(module, file.stem, resolved, before)
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
        with _all_or_nothing(top) as before:
            for part in (top, name):  # finding a part of a package imports the package
                file = _file_of(part) or file
            module = importlib.import_module(name)
            resolved = Path(str(module.__file__)).resolve()
            if resolved not in _loaded:
                _register(module, entry.name, resolved, before, {top, *_modules_of(entry)})
    except BaseException as error:
        raise _at_fault(error, f"{entry.name} of the package {package}", file) from error


def _file_of(module: str) -> Path | None:
    """The file that a module would be imported from, if any. Raises what a package around it raises."""
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


@dataclass(frozen=True)
class _Before:
    """The names of rules and modules there were before a plugin was imported."""

    rules: Set[str]
    modules: Set[str]


@contextmanager
def _all_or_nothing(package: str) -> Generator[_Before]:
    """Around the import of a plugin: what there was before it. What an import that fails registered is undone.

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
        yield _Before({rule.name for rule in fusion.RULES}, modules)
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


def _register(
    module: ModuleType, name: str, file: Path, before: _Before, own: Set[str] = frozenset()
) -> LoadedPlugin:
    """Make known what an imported module declares beside ops and rules; `own`: the modules of its distribution."""
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
    if _templates(file.parent):
        from infernum.codegen.templates import add_folder

        add_folder(file.parent)
    added = tuple(rule.name for rule in RULES if rule.name not in before.rules)
    imported = {name.partition(".")[0] for name in {*sys.modules} - before.modules}
    _loaded[file] = LoadedPlugin(name, file, _fingerprint(file, imported, own), added)
    return _loaded[file]


def _fingerprint(file: Path, imported: Iterable[str], own: Set[str]) -> str:
    """SHA-256 of a plugin's file, the templates beside it, and the modules that it imports."""
    digest = hashlib.sha256(file.read_bytes())
    counted = {path.relative_to(file.parent).as_posix(): path for path in _templates(file.parent)}
    for name, path in sorted((counted | _code(file, imported, own)).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _templates(folder: Path) -> list[Path]:
    return [path for pattern in _TEMPLATES for path in folder.glob(pattern) if path.is_file()]


def _code(file: Path, imported: Iterable[str], own: Set[str]) -> dict[str, Path]:
    """The files of the modules that code names in an import, also inside of a function, and of `imported` ones.

    Modules of installed packages count only where they are among `own`.
    """
    files: dict[str, Path] = {}
    todo, seen = [*imported, *own, *_named(file)], {"infernum", PACKAGE, *sys.stdlib_module_names}
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for name, path in _files_of(module):
            if module in own or not {"site-packages", "dist-packages"} & set(path.parts):
                files[name] = path
                todo += _named(path)
    return files


def _named(file: Path) -> Iterator[str]:
    """The modules that a file of Python may import, by the first part of their names."""
    if file.suffix == ".py":
        for of, listed in _IMPORT.findall(file.read_text(encoding="utf-8", errors="replace")):
            for module in (of, *listed.split(",")):
                yield module.strip().partition(" ")[0].partition(".")[0]


def _files_of(module: str) -> Iterator[tuple[str, Path]]:
    """The files of a module, or of a whole package, by their path below the folder in which it lies."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # what has no name, or is no module of a file
        return
    if spec is not None and spec.submodule_search_locations is not None:
        for folder in map(Path, spec.submodule_search_locations):
            for path in folder.rglob("*.py"):
                yield path.relative_to(folder.parent).as_posix(), path
    elif spec is not None and spec.has_location and spec.origin:
        yield Path(spec.origin).name, Path(spec.origin)


def _modules_of(entry: EntryPoint) -> Iterator[str]:
    """The modules and packages that the distribution of an installed plugin brings."""
    for file in (entry.dist and entry.dist.files) or ():
        module = file.parts[0].removesuffix(".py")
        if module.isidentifier() and file.suffix == ".py":
            yield module


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
