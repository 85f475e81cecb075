"""The package's own code, read once: what the tests of its structure go through."""

import ast
import functools
from pathlib import Path

import learnit_r8

PACKAGE = Path(learnit_r8.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """The path of a file below the package, as text."""
    return path.relative_to(PACKAGE).as_posix()


@functools.cache
def tree_of(path):
    """The syntax tree of a file; nobody may change it."""
    return ast.parse(path.read_text(encoding="utf-8"))
