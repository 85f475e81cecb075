import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.recovery.model import repair
from learnit_r8.state.tree import clone, copy_into, growth, map_leaves, not_finite
from tests.state_common import first_difference

NAN, INF = float("nan"), float("inf")


class Pair(NamedTuple):
    first: object
    second: object


def jax_array(values):
    return pytest.importorskip("jax").numpy.asarray(values, "float32")


def tf_variable(values):
    return pytest.importorskip("tensorflow").Variable(values, dtype="float32")


LEAVES = {
    "numpy": lambda values: np.array(values, np.float32),
    "torch": lambda values: torch.tensor(values, dtype=torch.float32),
    "parameter": lambda values: torch.nn.Parameter(torch.tensor(values, dtype=torch.float32)),
    "bfloat16": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "jax": jax_array,
    "tensorflow": tf_variable,
}


def nest(leaf):
    """The leaf in every kind of nest."""
    return OrderedDict(a={"b": [leaf, 1], "c": (2, "text")}, d=Pair(leaf, None))


def values(leaf):
    return np.asarray(leaf.detach().float() if hasattr(leaf, "detach") else leaf, np.float32).tolist()


@pytest.mark.parametrize("kind", LEAVES)
def test_copy_is_equal_and_of_the_same_kinds(kind):
    """A copy has the values, the types and the keys of the state."""
    state = nest(LEAVES[kind]([1.0, 2.0]))
    copy = clone(state)

    assert type(copy) is OrderedDict
    assert (type(copy["d"]), list(copy), copy["a"]["c"]) == (Pair, ["a", "d"], (2, "text"))
    assert type(copy["a"]["b"][0]) is type(state["a"]["b"][0])
    assert values(copy["a"]["b"][0]) == values(copy["d"].first) == [1, 2]


@pytest.mark.parametrize("kind", ["numpy", "torch", "parameter", "bfloat16"])
def test_copy_shares_no_memory(kind):
    """What is done to the state afterwards does not reach the copy, nor the other way round; nor is memory wasted where
    an earlier copy has it.
    """
    leaf = LEAVES[kind]([1.0, 2.0])
    copy = clone({"w": leaf})
    with torch.no_grad():
        leaf[:] = 9
        copy["w"][0] = 5

    assert (values(leaf), values(copy["w"])) == ([9, 9], [5, 2])
    before = copy["w"]
    assert copy_into(copy, {"w": LEAVES[kind]([3.0, 4.0])})["w"] is before
    assert values(before) == [3, 4]


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros(3)},
        {"w": np.zeros(2, np.float32)},
        {"w": torch.zeros(2)},
        {"v": np.zeros(2)},
        {"w": [np.zeros(2)]},
        [np.zeros(2)],
        None,
    ],
)
def test_another_structure_is_copied_anew(other):
    """A state of another shape, type or structure than the buffer is copied as if there were no buffer."""
    state = {"w": np.array([1.0, 2.0])}
    copy = copy_into(clone(other), state)
    state["w"][:] = 0

    assert copy["w"].tolist() == [1, 2]


def test_tied_weights_stay_one_array():
    """One array at two places of a state is one array in the copy, also for views that torch makes anew each time."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[1].weight = net[0].weight
    copy = clone(net.state_dict())

    assert copy["0.weight"] is copy["1.weight"]


def test_untied_weights_come_apart():
    """A buffer of weights that were one array does not mix up two that no longer are."""
    shared = np.zeros(2)
    buffer = clone({"a": shared, "b": shared})
    copy = copy_into(buffer, {"a": np.array([1.0, 1.0]), "b": np.array([2.0, 2.0])})

    assert (copy["a"].tolist(), copy["b"].tolist()) == ([1, 1], [2, 2])


def test_views_are_copied_as_they_look():
    """Transposed, strided and broadcast arrays have their values in the copy."""
    base = np.arange(6.0).reshape(2, 3)
    for state in (base.T, base[:, ::2], np.broadcast_to(np.arange(3.0), (2, 3))):
        copy = copy_into(clone(state), state)

        np.testing.assert_array_equal(copy, state)


def test_state_dict_keeps_its_version_numbers():
    """The metadata that torch hangs onto a state_dict is copied with it."""
    state = torch.nn.BatchNorm1d(2).state_dict()

    assert clone(state)._metadata == state._metadata


def test_gradient_is_no_part_of_a_copy():
    """Copies of tensors hold on to no graph and no gradient, and a leaf that wants one still does."""
    weight = torch.ones(2, requires_grad=True)
    product = weight * 2
    copy = clone({"leaf": weight, "product": product})

    assert (copy["leaf"].requires_grad, copy["product"].requires_grad, copy["product"].grad_fn) == (True, False, None)


def test_what_cannot_be_copied_is_named():
    """A state with something that cannot be copied is refused by its dotted key."""
    with pytest.raises(TypeError, match=r"state\.net\.1 must be something that can be copied, got generator"):
        clone({"net": [1, (n for n in range(3))]})


def test_other_objects_are_copied_deeply():
    """What is no array and no plain nest is copied by copy.deepcopy."""
    net = torch.nn.Linear(1, 1)
    copy = clone({"net": net, "set": {1}})
    with torch.no_grad():
        net.weight.fill_(7)

    assert copy["net"].weight.item() != 7
    assert copy["set"] == {1}


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize(("bad", "fault"), [(NAN, "NaN"), (INF, "infinity"), (-INF, "infinity")])
def test_array_that_is_not_finite_is_named(kind, bad, fault):
    """Every array with NaN or an infinity is found, in every nest and framework, under its dotted key, and no other."""
    assert not_finite(nest(LEAVES[kind]([1.0, -2.0]))) == {}
    found = not_finite({"good": LEAVES[kind]([1.0]), "nest": nest(LEAVES[kind]([0.0, bad]))})

    assert found == {"nest.a.b.0": fault, "nest.d.first": fault}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex128])
def test_overflow_of_the_sum_is_no_damage(dtype):
    """Large finite numbers whose sum overflows are finite, and nobody is warned."""
    largest = np.finfo(dtype).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = not_finite({"w": np.full(9, largest, dtype), "v": np.array([largest, -largest] * 5, dtype)})

    assert found == {}


@pytest.mark.parametrize("kind", ["numpy", "torch", "jax", "tensorflow"])
def test_half_precision_is_summed_in_single(kind, monkeypatch):
    """Weights around one, whose sum is beyond what float16 holds: their numbers need not be looked at one by one."""
    weights = LEAVES[kind](np.linspace(0.5, 1.5, 2**17).tolist())
    if kind == "tensorflow":
        weights = pytest.importorskip("tensorflow").cast(weights, "float16")
    else:
        weights = weights.half() if kind == "torch" else weights.astype("float16")
    looks = []
    monkeypatch.setattr(np, "isnan", looks.append)

    assert not_finite({"w": weights}) == {}
    assert not looks
    monkeypatch.undo()
    weights = np.asarray(weights).copy()
    weights[5] = NAN
    assert not_finite({"w": weights}) == {"w": "NaN"}


@dataclasses.dataclass
class TrainState:
    """A dataclass, as of Flax."""

    params: dict


SEEN = [
    ({"n": np.arange(3), "t": np.array(["nan"]), "i": torch.arange(3)}, {}),
    # Such as the best value so far.
    ({"best": INF, "s": np.float64(-INF)}, {}),
    *(({"a": [1.0, number]}, {"a.1": "number"}) for number in (NAN, np.float64(NAN), np.float32(NAN), complex(0, NAN))),
    (np.array(NAN), {"state": "NaN"}),
    ([TrainState({"w": np.array([NAN])})], {"0.params.w": "NaN"}),
    ({"e": torch.sparse_coo_tensor([[0]], [NAN], (3,), check_invariants=True)}, {"e": "NaN"}),
]


@pytest.mark.parametrize(("state", "found"), SEEN)
def test_what_counts_as_not_finite(state, found):
    """Floats in arrays, also of records and sparse tensors, and numbers that are NaN; a bare array is "state"."""
    assert not_finite(state) == found


def test_mended_state_has_the_arrays_of_the_backup_where_its_own_were_not_finite():
    """Other arrays and masks stay the live ones, the backup is not changed later, and the paths are named."""
    live = OrderedDict(a=[np.array([NAN, 1.0]), np.ones(2)], b=Pair(torch.tensor([INF]), 3), c="it")
    backup = OrderedDict(a=[np.array([7.0, 8.0]), np.zeros(2)], b=Pair(torch.tensor([9.0]), 4), c="was")
    mended, names = repair(live, backup)

    assert names == ["a.0", "b.first"]
    assert (mended["a"][0].tolist(), mended["b"].first.tolist()) == ([7, 8], [9])
    assert mended["a"][1] is live["a"][1]
    assert (type(mended["b"]), mended["b"].second, mended["c"]) == (Pair, 3, "it")
    assert mended["a"][0] is not backup["a"][0]
    assert np.isnan(live["a"][0][0])
    whole = {"w": np.ones(1)}
    assert repair(whole, None) == (whole, [])
    mask = {"mask": np.array([-INF]), "n": NAN}
    mended, names = repair(mask, {"mask": np.array([0.0]), "n": 1.5}, meant={"mask"})
    assert (names, mended["mask"].tolist(), mended["n"]) == (["n"], [-INF], 1.5)


@pytest.mark.parametrize("backup", [{}, {"w": np.zeros(3)}, {"w": np.full(2, NAN)}, {"w": None}, {"w": 1.0}, None])
def test_backup_that_cannot_mend_is_refused(backup):
    """A place that is missing, of another shape, or not finite either is named."""
    with pytest.raises(ValueError, match="backup must have a finite array like that of the state in 'w'"):
        repair({"w": np.array([NAN, NAN])}, backup)


@given(st.floats(0.01, 1e4), st.sampled_from([np.float16, np.float32, np.float64]))
def test_growth_is_that_of_the_numbers(factor, dtype):
    """How much larger arrays have become is told for arrays that were not zero, in half precision too."""
    before = {"w": np.full(70_000, 2.0, dtype), "new": np.zeros(3), "step": np.float64(1), "names": ["a"]}
    after = {
        "w": before["w"] * dtype(factor),
        "new": np.ones(3),
        "step": np.float64(9),
        "names": ["a"],
        "b": np.ones(2),
    }

    assert growth(after, before) == {"w": pytest.approx(float(dtype(factor)), rel=2e-3)}


@pytest.mark.parametrize("kind", LEAVES)
def test_growth_of_every_kind_of_array(kind):
    """Arrays of all frameworks are compared."""
    before, after = LEAVES[kind]([1.0, -1.0]), LEAVES[kind]([-3.0, 3.0])

    assert growth({"net": [after]}, {"net": [before]}) == {"net.0": 3.0}


@pytest.mark.parametrize(
    ("other", "where"),
    [
        ({"a": [np.zeros(2), 1.0]}, ""),
        ({"a": [np.zeros(2), -1.0]}, "a.1"),
        ({"a": [np.zeros(2), 1]}, "a.1"),
        ({"a": [np.array([0.0, -0.0]), 1.0]}, "a.0"),
        ({"a": [np.zeros(2, np.float32), 1.0]}, "a.0"),
        ({"a": [np.zeros((2, 1)), 1.0]}, "a.0"),
        ({"a": [np.zeros(2)]}, "a.1"),
        ({"a": [np.zeros(2), 1.0], "b": 0}, "b"),
        ({"a": [torch.zeros(2), 1.0]}, "a.0"),
    ],
)
def test_first_difference_is_named(other, where):
    """Two states are compared to the bit, kinds and structure included."""
    assert first_difference({"a": [np.zeros(2), 1.0]}, other) == where


def test_state_that_holds_itself_is_refused_by_name():
    """It has no end, and neither has one that is nested too deeply: said where, not by an error of Python's stack."""
    loop = {"w": np.zeros(2)}
    loop["again"] = loop
    deep = []
    for _ in range(2000):
        deep = [deep]

    for state, where in ((loop, "again.again"), (deep, "0.0.0")):
        for look in (clone, not_finite, lambda state: map_leaves(lambda leaf, *path: leaf, state)):
            with pytest.raises(ValueError, match=rf"at most 200 deep, .* got more at .*{where}"):
                look(state)


class Settings(Mapping):
    """A mapping that is made from something else than a mapping."""

    def __init__(self, values, *, name):
        self.values, self.name = values, name

    def __getitem__(self, key):
        return self.values[key]

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)


def test_mappings_of_other_kinds_are_copied():
    """One that cannot be made again from its parts is copied as a whole; a read-only view of a dict is made again."""
    weights = np.ones(2)
    state = {"proxy": MappingProxyType({"w": weights, "n": 1}), "own": Settings({"w": weights}, name="it")}
    copied = clone(state)
    weights[:] = 5

    assert copied["proxy"]["w"].tolist() == copied["own"]["w"].tolist() == [1, 1]
    assert type(copied["proxy"]) is MappingProxyType
    assert copied["own"].name == "it"
    assert not_finite({"proxy": MappingProxyType({"w": np.array(NAN)})}) == {"proxy.w": "NaN"}


def test_a_tensor_that_finds_no_memory_is_no_wrong_state():
    """torch tells with a RuntimeError that there is no memory; then a backup is left out, and no run ends."""
    with pytest.raises(MemoryError, match="memory"):
        clone({"w": torch.zeros(1).expand(2**45)})
