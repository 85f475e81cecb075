"""Golden batches: a seed gives the batches of commit 45a009d, on every processor and version of numpy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import learnit_r8
from learnit_r8.table.radix import keys_of, order_of
from tests.policies.golden_batches import differing

PACKAGE = Path(learnit_r8.__file__).parent
COMPARING = {
    "sort", "argsort", "lexsort", "partition", "argpartition", "unique", "median", "nanmedian", "quantile",
    "nanquantile", "percentile", "nanpercentile", "isin", "in1d", "union1d", "setdiff1d", "intersect1d", "setxor1d",
}  # fmt: skip
"""Functions that sort by comparison."""

try:
    from numpy._core import _multiarray_umath as _numpy
except ImportError:
    from numpy.core import _multiarray_umath as _numpy
VECTOR_UNITS = [name for name in _numpy.__cpu_dispatch__ if _numpy.__cpu_features__.get(name)]
"""Instruction sets that numpy uses if the processor has them."""


def test_batches_have_not_changed():
    """Every policy gives the same results as in commit 45a009d, and every run draws the same batches."""
    assert differing() == []


@pytest.mark.skipif(not VECTOR_UNITS, reason="numpy uses no instructions here that it could do without")
def test_batches_do_not_depend_on_the_processor():
    """A processor without vector instructions draws the same batches."""
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(VECTOR_UNITS)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.policies.golden_batches"],
        cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def comparing_calls(path):
    """The calls in a file that sort by comparison, as texts."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in COMPARING]
    return [f"{path.relative_to(PACKAGE).as_posix()}: {ast.unparse(call)}" for call in named]


def test_planning_does_not_sort_by_comparison():
    """Planning only sorts 16-bit digits, in one place, for which numpy uses a radix sort."""
    files = [path for folder in ("policies", "sources") for path in sorted((PACKAGE / folder).glob("*.py"))]
    calls = [call for path in (*files, PACKAGE / "table" / "radix.py") for call in comparing_calls(path)]

    assert calls == ["table/radix.py: digits.argsort(kind='stable')"]
    assert comparing_calls(PACKAGE / "table" / "names.py"), "the search finds none at all"


@pytest.mark.parametrize("name", ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("span", [1, 2**7, 2**16 - 1, 2**16, 2**31 - 1, 2**63])
def test_order_of_integers(name, span):
    """Positions by key, ties in order, for any width of integers and any range of them."""
    limits = np.iinfo(name)
    words = np.random.SFC64(span).random_raw(700)
    keys = (words % np.uint64(span)).astype(name)
    for ends in ([], [limits.min, limits.max]):
        keys[: len(ends)] = ends

        assert order_of(keys).tolist() == sorted(range(len(keys)), key=keys.tolist().__getitem__)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_keys_of_floats(dtype):
    """Keys of floats sort like the floats, of both signs, with infinities and tiny numbers."""
    tiny = np.finfo(dtype).smallest_subnormal
    values = np.array([0.0, tiny, -tiny, np.inf, -np.inf, 1.5, -1.5, np.finfo(dtype).max, np.finfo(dtype).min], dtype)
    for some in (values, values[values >= 0], values[:0]):
        assert some[order_of(keys_of(some))].tolist() == sorted(some.tolist())
