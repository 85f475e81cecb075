"""The size of the package: its lines of code, of docstrings and of tests, in all and by folder.

A line counts as code if anything but a comment or a docstring stands on it. Texts under variables count as code, and
blank lines inside docstrings as docstrings.

    python benchmarks/size.py            the package by folder, and the tests
    python benchmarks/size.py FOLDER     another checkout
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines on which docstrings of modules, classes and functions stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            text = first.value if isinstance(first, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def count(path: Path) -> Counter[str]:
    """Lines of code, of docstrings, and of every kind, of one file."""
    text = path.read_text(encoding="utf-8")
    documented = docstring_lines(ast.parse(text))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {
        number for token in tokens if token.type not in LAYOUT for number in range(token.start[0], token.end[0] + 1)
    } - documented
    blank = {number for number, line in enumerate(text.splitlines(), start=1) if not line.strip()}
    return Counter(code=len(code - blank), docstrings=len(documented), lines=text.count("\n"), files=1)


def total(paths: list[Path]) -> Counter[str]:
    """The sum over some files."""
    whole: Counter[str] = Counter()
    for path in paths:
        whole += count(path)
    return whole


def show(name: str, size: Counter[str]) -> None:
    print(f"{name:<22} {size['files']:>6} {size['code']:>8,} {size['docstrings']:>11,} {size['lines']:>8,}")


def main(root: Path) -> None:
    """Print the sizes."""
    package, tests = sorted(root.glob("learnit_r8/**/*.py")), sorted(root.glob("tests/**/*.py"))
    print(f"{'':<22} {'files':>6} {'code':>8} {'docstrings':>11} {'lines':>8}")
    folders = {path.relative_to(root / "learnit_r8").parts[0] for path in package}
    for folder in sorted(name for name in folders if not name.endswith(".py")):
        show(folder, total([path for path in package if path.is_relative_to(root / "learnit_r8" / folder)]))
    show("the package", total(package))
    show("its tests", total(tests))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1], metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="the same, as it takes seconds")
    main(parser.parse_args().root)
