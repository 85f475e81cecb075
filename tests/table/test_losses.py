"""Reading a reported loss."""

import math
from decimal import Decimal

import numpy as np
import pytest

from learnit_r8.table.losses import EXACT, WHOLE_BATCH, check_kind, read_loss, source_of


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


NUMBERS = [2.5, np.float64(2.5), np.float32(2.5), np.float16(2.5), np.longdouble(2.5), np.array(2.5)]
NUMBERS += [np.array(2.5, np.float16), 3, -3, np.int32(3), np.uint8(3), np.array(-3)]
NUMBERS += [math.nan, math.inf, np.float32("nan"), np.array(-np.inf)]


@pytest.mark.parametrize("loss", NUMBERS, ids=repr)
def test_numbers_are_batch_means(loss):
    """A float, a whole number or anything 0-dim is the mean of the batch, also NaN and infinities; plain floats."""
    reading, value = read_loss(loss, 32), float(loss)

    np.testing.assert_equal(tuple(reading), (value, value, WHOLE_BATCH, value, None))
    assert type(reading.mean) is type(reading.means) is float


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.float16, np.int64])
def test_vectors_are_exact(kind):
    """A vector of B is one loss for each sample, and so are means of parts of one."""
    for reading in (read_loss(kind([1, 2, 6]), 3), read_loss(kind([1, 2, 6]), 3, part_size=1)):
        assert (reading.part_size, reading.mean, reading.lowest) == (EXACT, 3.0, 1.0)
        assert reading.means.dtype == np.float64
        assert reading.means.tolist() == [1.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("losses", "count", "size", "expected"),
    [
        ([1.0, 2.0, 8.0], 5, np.int64(2), (14 / 5, 2, [1.0, 2.0, 8.0], 1.0)),
        ([3.0, -1.0, 2.0], 6, np.uint8(2), (4 / 3, 2, [3.0, -1.0, 2.0], -1.0)),
        *[(loss, 3, 8, (4.0, 8, [4.0], 4.0)) for loss in (4.0, [4.0], np.array(4.0))],
    ],
)
def test_parts(losses, count, size, expected):
    """The mean over parts counts samples, as the last may have fewer; a single part may be a number; sizes are ints."""
    reading = read_loss(losses, count, part_size=size)

    assert (reading.mean, reading.part_size, reading.means.tolist(), reading.lowest) == expected
    assert type(reading.part_size) is int


def test_caller_keeps_the_array():
    """Later changes of the caller's array do not change the reading."""
    losses = np.array([1.0, 2.0])
    reading = read_loss(losses, 2)
    losses[:] = 9

    assert reading.means.tolist() == [1.0, 2.0]


# fmt: off
NO_LOSSES = [
    "1.0", b"1.0", None, 1j, np.complex64(1), True, np.bool_(False), ..., {}, {"loss": 1.0}, Decimal(1), ["1", "2"],
    [1.0, None], [True, False], np.array([1j, 2]), np.array(["a"]), np.datetime64("2020-01-01"),
]
REFUSED = [
    *[(loss, 2, None, TypeError, "loss must be a real number, or an array or tensor of them, got")
      for loss in NO_LOSSES],
    *[(loss, 3, None, ValueError, r"loss must be a number or have shape \(3,\), one loss for each of the 3")
      for loss in ([], [1.0], [1.0, 2.0], [[1.0, 2.0, 3.0]], np.zeros((3, 1)), np.zeros(4), np.zeros((1, 1)))],
    *[(loss, 5, 2, ValueError, r"loss must be .* shape \(3,\), one mean for each part of 2 samples, got")
      for loss in (1.0, [1.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0])],
    ([[1.0], [1.0, 2.0]], 2, None, (TypeError, ValueError), "loss must be"),
    *[([1.0, 2.0], 2, size, ValueError, "part_size must be a whole number >= 1, got")
      for size in (0, -1, 1.5, 2.0, "2", True, [2], math.nan)],
]
# fmt: on


@pytest.mark.parametrize(("loss", "count", "part_size", "kind", "text"), REFUSED, ids=repr)
def test_what_is_no_loss_is_refused(loss, count, part_size, kind, text):
    """Texts, None, complex numbers, booleans and objects; vectors and parts of another length; ragged lists; sizes."""
    with pytest.raises(kind, match=text):
        read_loss(loss, count, part_size=part_size)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "int64"])
def test_tensors(torch, name):
    """Tensors of any real type are read, bfloat16 too, 0-dim ones as batch means."""
    tensor = torch.tensor([1, 3], dtype=getattr(torch, name))

    assert read_loss(tensor, 2).means.tolist() == [1.0, 3.0]
    assert read_loss(tensor[1], 2) == (3.0, 3.0, WHOLE_BATCH, 3.0, None)


@pytest.mark.parametrize("name", ["bool", "complex64"])
def test_refuses_tensors(torch, name):
    """Tensors of booleans and complex numbers are not losses."""
    with pytest.raises(TypeError, match=r"loss must be a real number"):
        read_loss(torch.ones(2, dtype=getattr(torch, name)), 2)


def test_reading_leaves_the_tensor_alone(torch):
    """backward() still works on a loss that was read."""
    weight = torch.tensor(3.0, requires_grad=True)
    loss = weight * weight
    read_loss(loss, 4)
    loss.backward()

    assert weight.grad.item() == 6.0


def test_numpy_bfloat16():
    """The bfloat16 of ml_dtypes, which JAX uses, is read."""
    ml_dtypes = pytest.importorskip("ml_dtypes")

    assert read_loss(np.array([1, 3], ml_dtypes.bfloat16), 2).means.tolist() == [1.0, 3.0]


def test_kind_of_reports_is_fixed():
    """Reports stay of the kind of the first."""
    check_kind(4, None)
    check_kind(EXACT, EXACT)

    with pytest.raises(ValueError, match=r"loss must be of .* first \(one loss per sample\), got one mean per batch"):
        check_kind(WHOLE_BATCH, EXACT)
    with pytest.raises(ValueError, match=r"\(one loss per sample\), got means of parts of 4"):
        check_kind(4, EXACT)


def test_source_is_a_phrase():
    """The source of estimates is a readable phrase."""
    assert [source_of(size, 32) for size in (None, EXACT, 4, WHOLE_BATCH)] == [
        "nothing yet",
        "exact",
        "parts of 4",
        "batch means of 32",
    ]
