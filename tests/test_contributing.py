"""The recipes of CONTRIBUTING.md and docs/recipes.md, each followed in a copy of the tree.

Its changes are made, its code is added, and its commands must print what it shows.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from documents import ROOT, SavedFile, Step, actions_of, check_step

from infernum.runtime.driver import gpu_available

DOCUMENTS = (ROOT / "CONTRIBUTING.md", ROOT / "docs/recipes.md")
RECIPES = {
    section.partition("\n")[0]: (document, section)
    for document in DOCUMENTS
    for section in re.split(r"^## ", document.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    if section.startswith("Add ")
}
HUNK = re.compile(r"^@@ (\S+)\n((?:[-+ ].*\n|\n)+)", re.MULTILINE)


def changed(text: str, hunk: str) -> str:
    """The text with the change of a hunk made, whose place must be the only one that looks like it."""
    lines = hunk.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    assert text.count(before) == 1, f"there are {text.count(before)} places that look like\n{before}"
    return text.replace(before, after)


def add_code(tree: Path, code: SavedFile) -> None:
    """Add code at the end of a file, or as a new one."""
    file = tree / code.name
    beginning = f"{file.read_text(encoding='utf-8')}\n\n" if file.exists() else ""
    file.write_text(beginning + code.text, encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the recipes change."""
    for folder in ("infernum", "templates", "tests", "examples/dante", "examples/dante_chat"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.skipif(gpu_available(), reason="the commands are followed as on a machine without a GPU")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_can_be_followed(recipe: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tree))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-q -p no:cacheprovider")
    document, section = RECIPES[recipe]
    for file, hunk in HUNK.findall(section):
        path = tree / file
        path.write_text(changed(path.read_text(encoding="utf-8"), hunk), encoding="utf-8")
    for action in actions_of(section):
        match action:
            case SavedFile():
                add_code(tree, action)
            case Step():
                check_step(document, action, tree)


def test_the_recipes_are_those_of_everything_that_is_added() -> None:
    assert list(RECIPES) == [
        "Add an op",
        "Add a rule",
        "Add a sampling parameter",
        "Add a model family",
        "Add a weight recipe",
    ]


def test_a_change_needs_a_place_of_its_own() -> None:
    assert changed("a\nb\nc\n", " a\n-b\n+d\n") == "a\nd\nc\n"
    with pytest.raises(AssertionError, match="there are 2 places"):
        changed("a\na\n", "-a\n+b\n")
