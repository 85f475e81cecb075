"""Files have the layout of safetensors; forged ones with a right digest are refused, with what is wrong with them."""

import hashlib
import io
import json
import re
import tracemalloc

import numpy as np
import pytest

from learnit_r8.state import codec
from learnit_r8.state.codec import OlderFile, decode, encode, read, read_tree
from learnit_r8.state.tree import pack, unpack

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def sealed(entries, data=b"", *, tree=None, version="2", metadata=None):
    """A file with this header and data whose digest is right."""
    about = {"sha256": "0" * 64, "version": version, "tree": json.dumps({}) if tree is None else tree}
    header = json.dumps({"__metadata__": about if metadata is None else metadata, **entries}).encode()
    content = len(header).to_bytes(8, "little") + header + data
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b"0" * 64, digest, 1)


def npy(value, **more):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(value), **more)
    return buffer.getvalue()


def in_npy(content):
    """A file with one array in numpy's own format."""
    entry = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    return sealed({"a": entry}, content, tree=json.dumps({"w": {"__npy__": "a"}}))


def header_of(shape, dtype):
    """The header of an npy file that claims a shape, without the numbers."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_a_well_formed_file_is_read():
    """The files forged below are readable as long as nothing is wrong with them."""
    tree = json.dumps({"w": {"__array__": "a"}})

    assert decode(sealed({"a": F32}, np.ones(2, "<f4").tobytes(), tree=tree))["w"].tolist() == [1.0, 1.0]
    assert decode(in_npy(npy(["x", "yz"])))["w"].tolist() == ["x", "yz"]


@pytest.mark.parametrize(
    ("entries", "data", "tree", "text"),
    [
        ({"a": F32}, bytes(7), {}, r"must hold \d+ bytes with the SHA-256 in its header, got \d+; it is damaged"),
        ({"a": F32}, bytes(9), {}, r"must hold \d+ bytes with the SHA-256 in its header, got \d+; it is damaged"),
        ({}, b"code", {}, "it is damaged"),
        (
            {"a": {**F32, "data_offsets": [1, 9]}},
            bytes(9),
            {},
            r"without a gap, got F32\[2\] from 1 to 9 for 'a', after 0",
        ),
        ({"a": F32, "b": F32}, bytes(8), {}, "without a gap, got F32.* for 'b', after 8"),
        ({"a": {**F32, "shape": [3]}}, bytes(8), {}, "without a gap"),
        ({"a": {**F32, "shape": [2**62, 2**62]}}, bytes(8), {}, "without a gap"),
        ({"a": {**F32, "shape": [-2]}}, bytes(8), {}, "without a gap"),
        ({"a": {**F32, "shape": [True, 2]}}, bytes(8), {}, "without a gap"),
        ({"a": {**F32, "shape": 2}}, bytes(8), {}, "a known kind, shape and place"),
        ({"a": {**F32, "dtype": "O"}}, bytes(8), {}, "a known kind, shape and place"),
        ({"a": {**F32, "data_offsets": [0]}}, bytes(8), {}, "a known kind, shape and place"),
        ({"a": []}, b"", {}, "a known kind, shape and place"),
        ({"a": F32}, bytes(8), {"w": {"__array__": "b"}}, "must name each array once, got something else .*'b'"),
        ({"a": F32}, bytes(8), {"w": [{"__array__": "a"}] * 2}, "must name each array once, got something else .*'a'"),
        ({"a": F32}, bytes(8), {"w": {"__array__": ["a"]}}, "must name each array once"),
        ({}, b"", [1], "tree must be a dict, got list"),
    ],
)
def test_the_error_names_the_fault(entries, data, tree, text):
    """Each byte belongs to one array, and each array to one place; the error says what is wrong."""
    with pytest.raises(ValueError, match=text):
        decode(sealed(entries, data, tree=json.dumps(tree)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (npy([1, 2])[:-3], r"must hold 2 x int64 \(no objects\), got 13 bytes"),
        (npy([None], allow_pickle=True), r"x object \(no objects\)"),
        (header_of((2**40,), "<f8"), r"must hold \d+ x float64 \(no objects\), got 0 bytes"),
        (header_of((-1,), "<f8"), "no objects"),
        (header_of((2**40,), "V0"), "no objects"),
        (b"\x93NUMPY\x01\x00\x30\x00" + b"__import__('os').system('touch owned')".ljust(48), "something else"),
        (b"\x93NUMPY\x01\x00\xff\xff", "something else"),
        (b"", "something else"),
    ],
)
def test_arrays_in_the_format_of_numpy_are_as_long_as_they_claim(content, text, tmp_path, monkeypatch):
    """Kinds that the layout lacks are arrays in numpy's format: of no objects, and of no more than is there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=text):
        decode(in_npy(content))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [2**63, 2**24 + 1, 10**6])
def test_header_that_claims_more_than_the_file(length):
    """The length of the header is bounded before it is read."""
    content = bytearray(sealed({}))
    content[:8] = length.to_bytes(8, "little")
    with pytest.raises(ValueError, match=rf"must hold the {length} bytes of its header, got \d+; it is damaged"):
        decode(content)


def test_an_array_named_twice():
    """Of two entries of one name the bytes of the first belong to none."""
    content = sealed({"a": F32, "b": {**F32, "data_offsets": [8, 16]}}, bytes(16)).replace(b'"b": {', b'"a": {')
    with pytest.raises(ValueError, match="without a gap"):
        decode(content)


def test_a_tree_that_is_too_large(monkeypatch):
    """The header is bounded before it is parsed, in bytes and in nodes, when it is written, too."""
    large = encode({"list": [0] * 200})
    monkeypatch.setattr(codec, "MOST_NODES", 150)
    with pytest.raises(ValueError, match="at most 150 nodes, got 2"):
        decode(large)
    with pytest.raises(ValueError, match=r"at most 150 arrays, .* got 0 arrays and 2\d\d in"):
        encode({"list": [0] * 200})
    monkeypatch.setattr(codec, "MOST_HEADER", 500)
    with pytest.raises(ValueError, match=r"must hold the \d+ bytes of its header"):
        decode(large)


def test_a_writer_that_was_killed():
    """The digest is written last: without it the file is not whole, and says so."""
    content = encode({"w": np.ones(3)})
    digest = re.search(rb'"sha256": "(\w{64})"', content)[1]
    with pytest.raises(ValueError, match="must be written to its end, got one without a digest: its writer was killed"):
        decode(content.replace(digest, b"0" * 64))


def test_file_beyond_memory(tmp_path, monkeypatch):
    """A file that does not fit into memory is a bad file, not the end of the process."""
    path = tmp_path / "ck"
    path.write_bytes(encode({"a": 1}))

    def no_memory(size):
        raise MemoryError

    monkeypatch.setattr(codec, "bytearray", no_memory, raising=False)
    with pytest.raises(ValueError, match=r"ck must fit into memory, got \d+ bytes"):
        read(path)


def test_safetensors_reads_the_arrays(tmp_path):
    """Any program that reads safetensors sees the arrays by their dotted keys, with the kinds that the layout has."""
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    model = {"w": torch.ones(2, 3).bfloat16(), "n": torch.arange(3), "8": torch.ones(2).to(torch.float8_e4m3fn)}
    state = {"model": model, "odd": np.array(["text"]), "a": np.ones((2, 2)), "a'": np.ones(1, bool)}
    (tmp_path / "file").write_bytes(encode({"version": 1, "it": pack(state)}))
    found = load_file(tmp_path / "file")

    assert {name: (str(each.dtype)[6:], tuple(each.shape)) for name, each in found.items() if "odd" not in name} == {
        "state.model.w": ("bfloat16", (2, 3)), "state.model.n": ("int64", (3,)), "state.a": ("float64", (2, 2)),
        "state.model.8": ("float8_e4m3fn", (2,)), "state.a'": ("bool", (1,)),
    }  # fmt: skip
    assert torch.equal(found["state.model.w"], model["w"])


def test_tied_arrays_are_stored_once_and_come_back_tied():
    """The very same memory is one array in the file and one in the state; a view of a part is another."""
    torch = pytest.importorskip("torch")
    weight, array, half = torch.ones(1000), np.ones(1000), torch.ones(1000).bfloat16()
    bits = np.ones(1000, pytest.importorskip("ml_dtypes").bfloat16)
    pairs = {"tensor": weight, "array": array, "half": half, "bits": bits}
    state = {"scalar": np.float32(1), **pairs, "again": {**pairs, "part": weight[:500]}}
    content = encode(pack(state))
    back = unpack(decode(content))

    assert len(content) < 1000 * (4 + 8 + 2 + 2 + 2) + 3000
    for name in ("array", "bits"):
        assert np.shares_memory(back[name], back["again"][name])
    for name in ("tensor", "half"):
        assert back[name].data_ptr() == back["again"][name].data_ptr()
    back["tensor"] += 1
    assert back["again"]["tensor"].sum() == 2000
    assert back["again"]["part"].sum() == 500


@pytest.mark.parametrize("kind", ["array", "tensor_bits", "tied"])
def test_an_array_referenced_300_times_costs_its_bytes_once(kind):
    """A received file has a budget: its own bytes, whatever refers to them how often."""
    if kind == "tensor_bits":
        pytest.importorskip("torch")
    size = 2**20
    place = {"__array__": "a"}
    again = {"array": {"array": place}, "tensor_bits": {"tensor_bits": ["int8", [size], place]}, "tied": {"tied": 0}}
    tree = {"version": 2, "tree": {"list": [{"array": place}, *[again[kind]] * 300]}}
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    content = sealed({"a": entry}, bytes(size), tree=json.dumps(tree))
    tracemalloc.start()
    try:
        if kind == "tied":
            first, *others = unpack(decode(content))
            assert all(each is first for each in others)
        else:
            with pytest.raises(ValueError, match="must name each array once"):
                unpack(decode(content))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * size


class Gathering:
    """Its state is made anew each time it is asked for, in memory that may be that of the last one."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"w": np.full(1000, self.value)}


def test_states_that_are_made_on_the_way_are_not_tied():
    """Memory that was freed meanwhile and used again is another array."""
    back = unpack(decode(encode(pack([Gathering(value) for value in range(9)], holders=True))))

    assert [each["w"][0] for each in back] == list(range(9))


# fmt: off
MISTAKES = [
    *[(lambda metadata=metadata: decode(sealed({}, metadata=metadata)), ValueError, text)
      for metadata, text in (
          ({"sha256": "0" * 64, "version": "2"}, "a version and a tree in its metadata"),
          ({"sha256": "0" * 64, "version": 2, "tree": "{}"}, "a version and a tree in its metadata"),
          ({"sha256": "0" * 64, "version": "3", "tree": "{}"}, "version must be 2, got '3': a newer one wrote it"),
          ({"sha256": "0" * 64, "version": "2", "tree": "{"}, "must hold a JSON tree"),
          ({"sha256": "0" * 64, "version": "2", "tree": "[" * 10**5}, "must hold a JSON tree"),
          ({"sha256": "0" * 9, "version": "2", "tree": "{}"}, "it is damaged"),
          ({"tree": "{}", "sha256": "0" * 64, "version": "2"}, "must begin with"))],
    (lambda: decode(b"R8CK" + bytes(200)), OlderFile,
     "must be of version 2, got an older one; learnit-r8 convert converts files"),
    *[(lambda content=content: read_tree(io.BytesIO(content)), ValueError, "must begin with|must be a dict, got list")
      for content in (b"", b"x" * 99, sealed({}, tree="[1]"))],
    *[(lambda held=held: unpack({"version": 2, "tree": {"list": [{"tied": held}, {"array": np.ones(1)}]}}), ValueError,
       "a model state must be one that was packed")
      for held in (0, 5, -3, "x", None, [0])],
    *[(lambda packed=packed: unpack(packed), ValueError, "a model state must be one that was packed")
      for packed in (np.zeros(3), [1], {"kind": "spell", "values": []}, {"kind": "list", "values": 3})],
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """By the argument or call, with what was given."""
    with pytest.raises(error, match=text):
        act()
