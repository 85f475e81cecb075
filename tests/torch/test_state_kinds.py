"""What a state may hold: every kind is copied, searched for NaN, saved and loaded to the bit, or left out by name.

``python -m tests.torch.test_state_kinds`` prints the table in docs/files.md.
"""

import collections
import dataclasses
import functools
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.testing._internal.two_tensor import TwoTensor

from learnit_r8.state import kinds as tensors
from learnit_r8.state.codec import decode, encode
from learnit_r8.state.tree import LeftOut, clone, copy_into, copy_to_host, leave_out, not_finite, pack, unpack
from learnit_r8.torch import state as torch_state
from learnit_r8.torch.state import ModelState
from tests.state_common import first_difference
from tests.torch_common import adapted, classifier, sgd, train

NAN = float("nan")
DOCUMENT = Path(__file__).parents[2] / "docs" / "files.md"


class Pair(NamedTuple):
    first: object
    second: object


@dataclasses.dataclass(frozen=True)
class Record:
    rate: object
    steps: int = 3


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        row: What the table calls it.
        value: One.
        bad: One with NaN, or None where there is no such thing.
        back: What comes back from a file; None for the very same.
    """

    row: str
    value: Any
    bad: Any = None
    back: Any = None


class Row(NamedTuple):
    """A row of the table; kinds without one are held by no file."""

    kinds: str
    nan: str
    back: str


ROWS = {
    "dense": Row("dense tensors of all kinds of numbers from a byte on: integers, float, complex, bits", "yes", "same"),
    "views": Row("tensors of 0 elements, strided, expanded and conjugated views", "yes", "same, without gaps"),
    "shared": Row("tensors and arrays that share memory", "yes", "tied, where it is the very same part"),
    "parameter": Row("parameters", "yes", "a tensor"),
    "sparse": Row("sparse tensors: COO, CSR, CSC, BSR, BSC", "yes", "same"),
    "arrays": Row("numpy arrays and scalars of numbers, texts, times, bytes", "yes", "same"),
    "structured": Row("structured arrays", "-", "same"),
    "ml_dtypes": Row("arrays of `bfloat16`, `float8` and other kinds that numpy has not", "yes", "same"),
    "jax": Row("JAX arrays", "yes", "a numpy array"),
    "containers": Row("dicts, lists, tuples", "inside", "same"),
    "mappings": Row("`defaultdict` and other mappings", "inside", "a dict"),
    "named": Row("named tuples", "inside", "a tuple, or as in the program's state"),
    "records": Row("dataclasses", "inside", "a namespace, or as in the program's state"),
    "namespaces": Row("`SimpleNamespace`", "inside", "same"),
    "numbers": Row("Python numbers, texts, `None`, bytes, sets of them", "NaN only", "same"),
    "torch": Row("dtypes, devices, sizes of torch", "-", "same; sizes as tuples"),
}


def of_bytes(dtype, *shape):
    """A tensor of any kind of number."""
    count = int(np.prod(shape)) * dtype.itemsize
    values = torch.arange(count, dtype=torch.uint8)
    return (values % 2 if dtype == torch.bool else values).view(dtype).reshape(shape)


def has_nan(dtype):
    is_float = dtype.is_floating_point or dtype.is_complex
    return is_float and "float4" not in str(dtype)


def bad(dtype):
    return torch.tensor([1.0, NAN]).to(dtype) if has_nan(dtype) else None


def good(dtype, *shape):
    return torch.ones(shape).to(dtype) if has_nan(dtype) else of_bytes(dtype, *shape)


DTYPES = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
QUANTIZED = {name for name in DTYPES if name.startswith("torch.q")}
PACKED = {name for name in DTYPES if re.fullmatch(r"torch\.u?int[1-7]", name)}
PLAIN = {name: kind for name, kind in DTYPES.items() if name not in QUANTIZED | PACKED}
SPARSE = [torch.float32, torch.bfloat16, torch.int8, torch.complex32, torch.float8_e4m3fn, torch.bits8]


def coo(values):
    return torch.sparse_coo_tensor(torch.arange(len(values))[None], values, (9,), check_invariants=True)


def csr(values):
    return torch.sparse_csr_tensor(
        torch.tensor([0, len(values)]), torch.arange(len(values)), values, (1, 9), check_invariants=True
    )


def structured(last):
    kind = np.dtype([("a", "i4"), ("b", [("c", "f4", (2,)), ("d", "U3")])], align=True)
    return np.array([(1, ([1, 2], "x")), (2, ([3, last], "yz"))], kind)


def kinds():
    for name, dtype in PLAIN.items():
        yield Kind("dense", good(dtype, 2, 3), bad(dtype)), name
    for number, value in enumerate(
        [
            of_bytes(torch.complex32, 3, 2).t(),
            torch.zeros(0, 3),
            torch.zeros(0, dtype=torch.float8_e5m2),
            torch.tensor(2.0),
            torch.ones(1, 3).expand(2, 3),
            torch.arange(12.0)[::5],
            torch.tensor([1 + 2j]).conj(),
            torch.tensor([1 + 2j]).conj().imag,
        ]
    ):
        yield Kind("views", value), number
    tied = torch.ones(3)
    yield Kind("shared", {"a": tied, "b": tied, "c": tied[1:]}, {"a": torch.tensor([NAN])}), "tied"
    yield (
        Kind("parameter", torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.tensor([NAN])), torch.ones(2)),
        "",
    )
    for make in (coo, csr):
        for dtype in SPARSE:
            worse = bad(dtype)
            yield (
                Kind("sparse", make(good(dtype, 2)), None if worse is None else make(worse)),
                f"{make.__name__}-{dtype}",
            )
    yield Kind("sparse", torch.eye(4).to_sparse(), (NAN * torch.eye(4)).to_sparse()), "coalesced"
    yield Kind("sparse", coo(torch.ones(0))), "empty"
    yield Kind("sparse", torch.eye(4).to_sparse_csc(), (NAN * torch.eye(4)).to_sparse_csc()), "csc"
    for name in ("bsr", "bsc"):
        make = functools.partial(torch.Tensor.to_sparse, layout=getattr(torch, f"sparse_{name}"), blocksize=(2, 2))
        yield Kind("sparse", make(torch.eye(4)), make(NAN * torch.eye(4))), name
    for name in ("?", "i1", "<u2", ">i4", "u8", "f2", "f8", "g", "F", "D", "G", "U3", "S2", "M8[s]", "m8[us]", "V3"):
        value = np.zeros((2, 3), name)
        yield Kind("arrays", value, np.full(3, NAN, name) if value.dtype.kind in "fc" else None), name
    yield Kind("arrays", np.float32(2.5)), "scalar"
    yield Kind("arrays", np.asfortranarray(np.arange(6.0).reshape(2, 3)).T[:, ::2]), "strided"
    yield Kind("structured", structured(4)), ""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "int4", "float4_e2m1fn"):
        worse = None if name in ("int4", "float4_e2m1fn") else np.array([NAN]).astype(name)
        yield Kind("ml_dtypes", np.ones(3, getattr(ml_dtypes, name)), worse), name
    array = pytest.importorskip("jax").numpy.array
    for name in ("float32", "bfloat16", "int8"):
        worse = array([NAN], name) if name != "int8" else None
        yield Kind("jax", array([1, 2], name), worse, np.asarray(array([1, 2], name))), name
    yield Kind("containers", {"a": [1, (2, None)], 3: collections.OrderedDict(x=1.5)}, {"a": [(NAN,)]}), ""
    yield Kind("mappings", collections.defaultdict(list, a=[np.ones(1)]), {"a": NAN}, {"a": [np.ones(1)]}), ""
    yield Kind("named", Pair(1.5, np.ones(2)), Pair(1.5, np.array([NAN])), (1.5, np.ones(2))), ""
    yield Kind("records", Record(0.5), Record(NAN), SimpleNamespace(rate=0.5, steps=3)), ""
    yield Kind("namespaces", SimpleNamespace(w=np.ones(2), n=1), SimpleNamespace(w=np.array([NAN]))), ""
    for number, value in enumerate(
        [0.1, -0.0, float("inf"), 10**30, True, "text", None, b"\0\1", {1, "a"}, frozenset({2})]
    ):
        yield Kind("numbers", value, NAN), number
    yield Kind("numbers", 1 + 2j, complex(0, NAN)), "complex"
    yield Kind("torch", torch.float8_e5m2), "dtype"
    yield Kind("torch", torch.device("cpu")), "device"
    yield Kind("torch", torch.Size([2, 3]), back=(2, 3)), "size"


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    KINDS = {f"{kind.row}-{name}": kind for kind, name in kinds()}
    LEFT_OUT = {
        "tensors on the meta device": torch.ones(2, device="meta"),
        "tensors of wrapping classes": TwoTensor(torch.ones(2), torch.ones(2)),
        "masked arrays": np.ma.masked_array([1.0, 2.0], [False, True]),
        "arrays of objects": np.array([print]),
        "dicts with other keys than texts and numbers": {(1, 2): 3},
        "functions": print,
        "other objects": DOCUMENT,
    }
    QUANTIZED_ROWS = torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.quint8)
    REFUSED = {
        "quantized tensors": [torch.quantize_per_tensor(torch.ones(2), 0.1, 3, torch.qint8), QUANTIZED_ROWS],
        "nested tensors": [
            torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=layout)
            for layout in (torch.strided, torch.jagged)
        ],
        "MKL-DNN tensors": [torch.ones(2).to_mkldnn()],
        "tensors of integers of less than 8 bits": [
            of_bytes(torch.int4, 2),
            torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), of_bytes(torch.int4, 0), (3,)),
        ],
    }


def document():
    """The table as docs/files.md has it."""
    lines = ["| a state may hold | searched for NaN and infinity | comes back from a file as |", "|---|---|---|"]
    lines += [f"| {row.kinds} | {row.nan} | {row.back} |" for row in ROWS.values()]
    refused = f"Refused by name at the start: {', '.join(REFUSED)}."
    return "\n".join(lines) + f"\n\nLeft out by name: {', '.join(LEFT_OUT)}. {refused}\n"


def test_document_has_the_table():
    """docs/files.md has the table that these tests go through."""
    assert document() in DOCUMENT.read_text(encoding="utf-8")
    assert {kind.row for kind in KINDS.values()} == set(ROWS)


def test_every_kind_of_number_is_here():
    """What the installed torch has is in the table, or refused."""
    assert {name for name in DTYPES if f"dense-{name}" not in KINDS} == QUANTIZED | PACKED


def test_copied():
    """A copy is equal to the bit, also one in the memory of an earlier copy and one on the host."""
    for name, (_, value, _, _) in KINDS.items():
        first = clone(value)
        assert first_difference(value, first) == "", name
        assert first_difference(value, copy_into(first, value)) == "", name
        if not isinstance(value, torch.nn.Parameter):
            assert first_difference(value, copy_to_host(value)) == "", name


def test_searched_for_nan():
    """NaN is found and named; a whole value is whole."""
    for name, (_, value, worse, _) in KINDS.items():
        found = not_finite({"it": worse})
        assert not_finite(value) == {} or value == float("inf"), name
        assert all(key.startswith("it") for key in found), name
        assert bool(found) == (worse is not None), name


def through_container(state, folder):
    return unpack(decode(encode({"it": pack(state)}))["it"])


def through_file(state, folder):
    torch_state.save(state, folder / "file")
    return torch_state.load(folder / "file.safetensors")


@pytest.mark.parametrize("through", [through_container, through_file])
def test_saved_and_loaded(through, tmp_path):
    """Every kind of file gives it back to the bit."""
    for name, (_, value, _, expected) in KINDS.items():
        back = through({"a.b": 1, "a": {"b": value}, "a.b'": np.ones(1)}, tmp_path)
        different = first_difference({"it": value if expected is None else expected}, {"it": back["a"]["b"]})
        assert different == "", name


class Holder:
    """Something with a state, as averaged weights are."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training whose model and averaged weights hold every kind, with checkpoints; no warning comes of it."""
    folder = tmp_path_factory.mktemp("kinds")
    model, ema = classifier(), Holder({name: kind.value for name, kind in KINDS.items()})
    for name, kind in KINDS.items():
        if tensors.is_tensor(kind.value):
            model.register_buffer(re.sub(r"\W", "_", name), clone(kind.value.detach()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = adapted(model=model, ema=ema, num_epochs=1, checkpoint_dir=folder, checkpoint_every=5, backup_every=2)
        train(adapter)
    return adapter, folder


@pytest.mark.parametrize("from_ram", [True, False])
def test_trained_with(run, from_ram):
    """Nothing fails in a training, and everything comes back from its backups and its checkpoints."""
    adapter, folder = run
    own, state = adapter.model.state_dict(), adapter.state
    before = clone(own), dict(state._parts["ema"].state)
    if from_ram:
        saved = adapter.scheduler.host.persistence.backup.newest.state
    else:
        saved = str(sorted(folder.glob("model_*"))[-1])
    for value in own.values():
        if tensors.kind_of(value) == "dense" and value.ndim == 2 and value.is_contiguous():
            value.view(torch.uint8).zero_()
    state.load(clone(saved) if from_ram else saved, from_ram=from_ram)

    after = adapter.model.state_dict()
    names = [name for name in own if not name[0].isdigit()]
    assert len(names) > 50
    assert first_difference({name: before[0][name] for name in names}, {name: after[name] for name in names}) == ""
    for name, value in state._parts["ema"].state.items():
        back = before[1][name] if from_ram or KINDS[name].row in ("named", "records") else KINDS[name].back
        assert first_difference({"it": before[1][name] if back is None else back}, {"it": value}) == "", name


@pytest.mark.parametrize("name", LEFT_OUT)
def test_left_out(name, tmp_path):
    """What no file can hold is named when a training is attached, stays as it is, and no checkpoint fails."""
    odd = LEFT_OUT[name]
    ema = Holder({"it": odd, "w": torch.ones(2)})
    with pytest.warns(RuntimeWarning, match=r"(?s)^backups and checkpoints cannot hold ema\.it \(.+\): it is left out"):
        adapter = adapted(ema=ema, num_epochs=1, checkpoint_dir=tmp_path, checkpoint_every=5, backup_every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(adapter)
        ema.state = {"it": odd, "w": torch.zeros(2)}
        adapter.scheduler.load_checkpoint()

    assert ema.state["it"] is odd
    assert ema.state["w"].tolist() == [1, 1]
    with pytest.raises(TypeError, match=r"^state must be|^state\.it must be"):
        pack({"it": odd})


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    """Tensors of a kind that no training changes are refused when it is attached, and by a file; nothing is written."""
    for odd in REFUSED[name]:
        model = classifier()
        model.register_buffer("it", odd)
        message = (
            r"must be a dense or sparse tensor of numbers of a byte or more, got a .*tensor .*; keep it out of the"
        )
        with pytest.raises(TypeError, match=rf"^model\.it {message}"):
            adapted(model=model, num_epochs=1, checkpoint_dir=tmp_path)
        with pytest.raises(TypeError, match=rf"^ema\.0\.it {message}"):
            adapted(ema=Holder([{"it": odd}]), num_epochs=1, checkpoint_dir=tmp_path)
        with pytest.raises(TypeError, match=r"^state\.it must be"):
            pack({"it": odd})
        # A buffer that is no part of the state is the user's own affair.
        model.register_buffer("it", odd, persistent=False)
        train(adapted(model=model, num_epochs=1))

    assert not list(tmp_path.iterdir())


def test_state_with_nothing_odd_is_left_alone():
    """A state that can be held is not copied to find that out."""
    state, found = {"a": [torch.ones(1), {"b": 1}]}, {}

    assert leave_out(state, found) is state
    assert found == {}


def test_what_was_left_out_may_be_gone():
    """A value that was left out, and is in no state of now, is nothing."""
    model = classifier()
    state = ModelState(model, sgd(model), ema=Holder({"w": 1}))
    saved = {**state.read(), "ema": {"w": 2, "it": LeftOut("a function")}}
    state.load(saved, from_ram=True)

    assert state._parts["ema"].state == {"w": 2, "it": None}


@pytest.mark.parametrize(
    "tree",
    [
        {"tensor_bits": ["qint8", [4], np.zeros(4, np.uint8)]},
        {"tensor_bits": ["float32", [4], np.zeros(4, np.uint8)]},
        {"tensor_bits": ["nn", [4], np.zeros(4, np.uint8)]},
        {"composite": ["coo", [[3], True], [{"tensor": np.array([[7]])}, {"tensor": np.ones(1)}]]},
        {"composite": ["compressed", ["sparse_csr", [1, 2]], [{"tensor": np.array([0, 9])}] * 3]},
        {"composite": ["quantized", ["qint8", [2], 0.1, 0], [{"tensor": np.zeros(2, np.uint8)}]]},
        {"composite": ["mkldnn", [], [{"tensor": np.zeros(2)}]]},
        {"composite": ["nested", ["strided", 1], [{"tensor": np.ones((1, 2))}]]},
        {"composite": ["spell", [], []]},
        {"bits": ["finfo", {"array": np.zeros(2, np.uint8)}]},
        {"array": [1]},
        {"scalar": 3},
        {"dtype": "nn"},
        {"device": "spell"},
        {"dict": [[{"list": []}, 1]]},
        {"dict": 3},
        {"list": [{"spell": 1}]},
        {"list": [], "dict": []},
    ],
)
def test_forged_states_are_refused(tree):
    """A file that was made to look like a state ends in a refusal, whatever it claims."""
    with pytest.raises(ValueError, match="a model state must be one that was packed"):
        unpack(decode(encode({"it": {"version": 2, "tree": tree}}))["it"])


def test_coalesced_claim_is_checked():
    """A sparse tensor whose indices are in no order is not taken for a coalesced one."""
    indices, values = {"tensor": np.array([[2, 1]])}, {"tensor": np.ones(2)}
    back = unpack({"version": 2, "tree": {"composite": ["coo", [[3], True], [indices, values]]}})

    assert not back.is_coalesced()


if __name__ == "__main__":
    print(document())
