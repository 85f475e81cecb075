from collections import OrderedDict

import numpy as np
import pytest
import torch

from learnit_r8.state.codec import decode, encode
from learnit_r8.state.tree import fit, pack, size_of, unpack


def through(state):
    """What comes back from the bytes of a file."""
    return unpack(decode(encode({"it": pack(state)}))["it"])


def same(one, other):
    assert type(one) is type(other) or isinstance(one, torch.nn.Parameter)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            same(each, its)
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.detach(), other)
    elif isinstance(one, (np.ndarray, np.generic)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


STATES = [
    {"w": np.arange(6.0).reshape(2, 3), "step": 3, "name": "it", "none": None, "on": True, "rate": 0.1},
    {0: {"exp_avg": torch.ones(3), "step": torch.tensor(5.0)}, 1: [1, (2, 3)], None: "key"},
    OrderedDict(a=torch.nn.Parameter(torch.randn(2, 2)), b=torch.arange(4, dtype=torch.uint8)),
    [np.float32(2.5), np.int64(7), np.bool_(True), np.array(3.0), np.zeros((0, 4)), np.zeros(3, bool)],
    torch.randn(5, 3).bfloat16(),
    (torch.zeros(0, 2), torch.randn(4, 3).t(), np.asfortranarray(np.arange(12.0).reshape(3, 4))),
    {"large": np.arange(2**20 + 7, dtype=np.float32), "text": np.array(["a", "bc"])},
]


@pytest.mark.parametrize("number", range(len(STATES)))
def test_state_comes_back_as_it_was(number):
    """Kinds, shapes, values and the order of keys survive the file; weights stay bit for bit."""
    same(STATES[number], through(STATES[number]))


def test_arrays_that_come_back_may_be_changed():
    """A load callback may train on with what it gets."""
    back = through({"w": np.zeros(3), "t": torch.zeros(3)})
    back["w"] += 1
    back["t"] += 1

    assert back["w"].sum() == back["t"].sum() == 3


@pytest.mark.parametrize(
    ("state", "key"),
    [
        ({"net": [object()]}, r"state\.net\.0"),
        ({"net": {(1, 2): 3}}, r"state\.net"),
        ({"net": np.array([object()])}, r"state\.net"),
        ({"net": torch.zeros(3, device="meta")}, r"state\.net"),
        ({"net": {(1, 2)}}, r"state\.net"),
    ],
)
def test_what_cannot_be_held_is_named(state, key):
    """A value of another kind is named by its dotted key."""
    with pytest.raises(TypeError, match=f"^{key} must "):
        pack(state)


def test_size_is_that_of_the_arrays():
    """Bytes of all arrays together."""
    assert size_of(pack({"a": np.zeros(10), "b": [torch.zeros(5), 3]})) == 100


def test_statistics_of_equinox_load_by_name_and_by_number():
    """Files of former versions have numbers in the place of names."""
    eqx = pytest.importorskip("equinox")
    _, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="batch")

    saved = through(state)
    assert list(saved) == ["BatchNorm.batch_counter", "BatchNorm.batch_state_index"]
    saved["BatchNorm.batch_counter"] = np.int32(7)
    for each in (saved, {str(number): part for number, part in enumerate(saved.values())}):
        assert next(iter(fit(each, state)._state.values())) == 7
    assert fit({"0": 3, "1": 4}, {"1": 0, "0": 0}) == {"1": 4, "0": 3}
