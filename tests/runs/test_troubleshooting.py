"""docs/troubleshooting.md has every warning and error of a run, docs/prove.md those of a proof, with what to do."""

import ast
import re
from pathlib import Path

from tests.source import MODULES, name_of, tree_of

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("troubleshooting.md", "prove.md")]
PAGE = re.sub(r"\s+", " ", " ".join(PAGES))

SAYING = {"warn": 0, "warn_once": 1, "say_once": 1, "note_once": 1, "warn_unseen": 1}
"""Functions that warn, with the place of the text among their arguments."""

OF_ARGUMENTS = {"ValueError", "TypeError", "AttributeError", "KeyError", "argparse.ArgumentTypeError"}
"""They name an argument, its value and what would be right, and need no page."""

INSIDE = {"events/bus.py", "testing/faults.py", "table/records.py", "sources/planned.py"}
"""They pass on what others say, fail on purpose, or tell of misuse within the package."""


def text_of(node, constants):
    """The text that an expression stands for, with {} where a value comes in; None if it is not written there."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(each.value if isinstance(each, ast.Constant) else "{}" for each in values)
        case ast.Name(id=name):
            return constants.get(name)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return text_of(value, constants)
    return None


def arguments_with_messages(tree):
    """The expressions of texts that a module warns with, or raises."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in SAYING and len(node.args) > SAYING[name]:
                yield node.args[SAYING[name]]
        is_raised = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if is_raised and ast.unparse(node.exc.func) not in OF_ARGUMENTS:
            yield node.exc.args[0]


def messages(path):
    """The texts of a module, with {} where values come in."""
    tree = tree_of(path)
    named = [each for each in tree.body if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)]
    constants = {each.targets[0].id: text_of(each.value, {}) for each in named}
    texts = {text_of(argument, constants) for argument in arguments_with_messages(tree)}
    return sorted(text for text in texts if text is not None)


def fixed_part(text):
    """The first 40 characters of the longest part of a text that is always the same."""
    longest = max(re.split(r"\{[^}]*\}", text), key=len).strip(" :;,.")
    return longest[:40].strip()


def test_messages_are_explained():
    """Who searches the page for what was printed finds it; texts in all their forms are looked for."""
    found = {fixed_part(text) for path in MODULES if name_of(path) not in INSIDE for text in messages(path)}

    assert len(found) > 80
    assert "losses of samples are estimated from bat" in found
    assert [text for text in sorted(found) if text not in PAGE] == []
