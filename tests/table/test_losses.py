"""Reading a reported loss."""

import gc
import math
import weakref
from decimal import Decimal

import numpy as np
import pytest

from learnit_r8.table.losses import EXACT, WHOLE_BATCH, check_kind, read_loss, source_of


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize(
    "loss",
    [
        2.5,
        np.float64(2.5),
        np.float32(2.5),
        np.float16(2.5),
        np.longdouble(2.5),
        np.array(2.5),
        np.array(2.5, np.float16),
    ],
    ids=repr,
)
def test_numbers_are_batch_means(loss):
    """A float or anything 0-dim is the mean of the batch."""
    assert read_loss(loss, 32) == (2.5, 2.5, WHOLE_BATCH, 2.5, None)


@pytest.mark.parametrize("loss", [3, -3, np.int32(3), np.uint8(3), np.array(-3)], ids=repr)
def test_whole_numbers(loss):
    """Integers are accepted, and come back as plain floats."""
    reading = read_loss(loss, 4)

    assert type(reading.mean) is type(reading.means) is float
    assert reading.mean == int(loss)


@pytest.mark.parametrize("loss", [math.nan, math.inf, np.float32("nan"), np.array(-np.inf)], ids=repr)
def test_non_finite_numbers_are_read(loss):
    """NaN and infinities are read as they are."""
    np.testing.assert_equal(read_loss(loss, 4).mean, float(loss))


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.float16, np.int64])
def test_vectors_are_exact(kind):
    """A vector of B is one loss for each sample."""
    reading = read_loss(kind([1, 2, 6]), 3)

    assert reading.part_size == EXACT
    assert reading.mean == 3.0
    assert reading.means.dtype == np.float64
    assert reading.means.tolist() == [1.0, 2.0, 6.0]


def test_parts_of_one_are_exact():
    """Means of parts of one sample are losses of samples."""
    assert read_loss([1.0, 3.0], 2, part_size=1).part_size == EXACT


def test_parts():
    """The mean over parts counts samples: the last part may have fewer."""
    reading = read_loss([1.0, 2.0, 8.0], 5, part_size=2)

    assert reading.mean == (2 * 1 + 2 * 2 + 1 * 8) / 5
    assert (reading.part_size, reading.means.tolist()) == (2, [1.0, 2.0, 8.0])


@pytest.mark.parametrize("loss", [4.0, [4.0], np.array(4.0)], ids=repr)
def test_one_part(loss):
    """A batch of a single part may be reported as a number, too."""
    reading = read_loss(loss, 3, part_size=8)

    assert (reading.mean, reading.part_size, reading.means.tolist()) == (4.0, 8, [4.0])


@pytest.mark.parametrize("part_size", [np.int64(2), np.uint8(2)], ids=repr)
def test_part_size_may_be_a_numpy_number(part_size):
    """A numpy part size becomes a plain int, as saved states need."""
    assert type(read_loss([1.0, 2.0], 4, part_size).part_size) is int


@pytest.mark.parametrize(("losses", "part_size"), [([3.0, -1.0, 2.0], None), ([3.0, -1.0, 2.0], 2)])
def test_lowest(losses, part_size):
    """The lowest is the smallest of what was reported, for samples and for parts."""
    assert read_loss(losses, 3 if part_size is None else 6, part_size).lowest == -1.0


def test_caller_keeps_the_array():
    """Later changes of the caller's array do not change the reading."""
    losses = np.array([1.0, 2.0])
    reading = read_loss(losses, 2)
    losses[:] = 9

    assert reading.means.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "loss",
    [
        "1.0",
        b"1.0",
        None,
        1j,
        np.complex64(1),
        True,
        np.bool_(False),
        ...,
        {},
        {"loss": 1.0},
        Decimal(1),
        ["1", "2"],
        [1.0, None],
        [True, False],
        np.array([1j, 2]),
        np.array(["a"]),
        np.datetime64("2020-01-01"),
    ],
    ids=repr,
)
def test_refuses_what_is_not_a_real_number(loss):
    """Strings, None, complex numbers, booleans and objects are not losses."""
    with pytest.raises(TypeError, match=r"loss must be a real number, or an array or tensor of them, got"):
        read_loss(loss, 2)


@pytest.mark.parametrize(
    "loss", [[], [1.0], [1.0, 2.0], [[1.0, 2.0, 3.0]], np.zeros((3, 1)), np.zeros(4), np.zeros((1, 1))], ids=repr
)
def test_refuses_vectors_of_another_length(loss):
    """A vector must have one loss for each sample."""
    with pytest.raises(ValueError, match=r"loss must be a number or have shape \(3,\), one loss for each of the 3"):
        read_loss(loss, 3)


@pytest.mark.parametrize("loss", [1.0, [1.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]], ids=repr)
def test_refuses_other_numbers_of_parts(loss):
    """With a part size, there must be one mean for each part."""
    with pytest.raises(ValueError, match=r"loss must be .* shape \(3,\), one mean for each part of 2 samples, got"):
        read_loss(loss, 5, part_size=2)


def test_refuses_ragged_lists():
    """A list of lists of different lengths is refused by the name of the argument."""
    with pytest.raises((TypeError, ValueError), match=r"loss must be"):
        read_loss([[1.0], [1.0, 2.0]], 2)


@pytest.mark.parametrize("part_size", [0, -1, 1.5, 2.0, "2", True, [2], math.nan], ids=repr)
def test_refuses_part_sizes(part_size):
    """A part size is a whole number from 1 on."""
    with pytest.raises(ValueError, match=r"part_size must be a whole number >= 1, got"):
        read_loss([1.0, 2.0], 2, part_size=part_size)


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


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_no_graph_is_kept(torch, reduce, name):
    """The graph of a loss is freed with the user's last reference to it."""

    class Note:
        pass

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.note = Note()
            notes.append(weakref.ref(ctx.note))
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return grad

    notes = []
    loss = Square.apply(torch.ones(4, dtype=getattr(torch, name), requires_grad=True))
    loss = loss.mean() if reduce else loss
    reading = read_loss(loss, 4)
    gc.collect()
    assert notes[0]() is not None
    del loss
    gc.collect()

    assert reading.mean == 1.0
    assert notes[0]() is None


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
