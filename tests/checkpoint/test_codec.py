"""Forged files with a right digest are refused, with what is wrong with them."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest

from learnit_r8.checkpoint import codec
from learnit_r8.checkpoint.codec import HEADER, MAGIC, MOST_MEMBERS, decode, encode, read, read_tree


def sealed(payload, version=1):
    """A file with a header that fits."""
    return HEADER.pack(MAGIC, version, len(payload), hashlib.sha256(payload).digest()) + payload


def npy(value, **more):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(value), **more)
    return buffer.getvalue()


def zipped(*members, compression=zipfile.ZIP_STORED):
    """An archive of these names and contents, one after the other, names twice if they are given twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def tree(value):
    return "tree.npy", npy(json.dumps(value))


def test_a_well_formed_file_is_read():
    """The files forged below are readable as long as nothing is wrong with them."""
    array = ("a0.npy", npy([1.0, 2.0]))

    assert decode(sealed(zipped(tree({"w": {"__array__": "a0"}}), array)))["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"x" * 30, "must list at most"),
        (
            zipped(("a0.npy", npy(1)), tree({}), ("../a1.npy", npy(1))),
            r"arrays named by its writer, got .{0,2}../a1.npy",
        ),
        (zipped(("a.py", b"print()"), tree({})), r"arrays named by its writer, got .{0,2}a.py"),
        (
            zipped(tree({}), compression=zipfile.ZIP_DEFLATED),
            r"arrays named by its writer, got .{0,2}tree.npy",
        ),
        (zipped(tree({}), ("a0.npy", npy([1, 2])[:-3])), r"a0.npy must hold 2 x int64 \(no objects\), got 13 bytes"),
        (zipped(tree({}), ("a0.npy", npy([None], allow_pickle=True))), r"x object \(no objects\)"),
        (zipped(tree([1])), "tree must be a dict, got list"),
        (zipped(("a0.npy", npy(1))), "tree"),
        (zipped(tree({"w": {"__array__": "a7"}})), "a7"),
        (zipped(tree({"w": [{"__array__": "a0"}] * 2}), ("a0.npy", npy([1]))), "a0"),
        (zipped(("tree.npy", npy("{"))), "JSON"),
    ],
)
def test_the_error_names_the_fault(payload, text):
    """The error names the member, what it must be and what it is."""
    with pytest.raises(ValueError, match=text):
        decode(sealed(payload))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_duplicate_names():
    """Two members with the same name are refused."""
    with pytest.raises(ValueError, match=r"must have different names, got .{0,2}a0.npy.{0,2} twice"):
        decode(sealed(zipped(tree({}), ("a0.npy", npy(1)), ("a0.npy", npy(2)))))


def test_members_that_overlap():
    """Members that share bytes are refused, as they would take more memory than the file."""
    payload = bytearray(zipped(tree({}), ("a0.npy", npy(np.zeros(1000)))))
    at = payload.rindex(b"PK\1\2") + 20
    payload[at : at + 8] = (10**6).to_bytes(4, "little") * 2

    with pytest.raises(ValueError, match=r"must not overlap, got 10\d{5} bytes of them in 8466"):
        decode(sealed(bytes(payload)))


def test_a_tree_that_is_too_large(monkeypatch):
    """The text is bounded before it is parsed, in bytes and in nodes."""
    large = sealed(zipped(tree({"list": [0] * 200})))
    monkeypatch.setattr(codec, "MOST_NODES", 150)
    with pytest.raises(ValueError, match="at most 150 nodes, got 201"):
        decode(large)
    monkeypatch.setattr(codec, "MOST_TREE_BYTES", 500)
    with pytest.raises(ValueError, match=r"at most 500 bytes, got \d{4}"):
        decode(large)


def test_more_members_than_there_may_be():
    """The number of members is bounded before they are listed."""
    payload = bytearray(zipped(tree({})))
    end = payload.rindex(b"PK\5\6")
    payload[end + 8 : end + 12] = (65535).to_bytes(2, "little") * 2

    with pytest.raises(ValueError, match=f"at most {MOST_MEMBERS} members, got 65535"):
        decode(sealed(bytes(payload)))


def test_state_that_could_not_be_read_back(monkeypatch):
    """A state too large to be read back is refused when it is written, with the counts."""
    monkeypatch.setattr(codec, "MOST_MEMBERS", 3)
    with pytest.raises(ValueError, match=r"at most 3 arrays .* got 4 and"):
        encode({f"w{number}": np.zeros(2) for number in range(4)})


def test_file_beyond_memory(tmp_path, monkeypatch):
    """A file that does not fit into memory is a bad file, not the end of the process."""
    path = tmp_path / "ck"
    path.write_bytes(encode({"a": 1}))

    def no_memory(size):
        raise MemoryError

    monkeypatch.setattr(codec, "bytearray", no_memory, raising=False)
    with pytest.raises(ValueError, match=r"ck must fit into memory, got \d+ bytes"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"x" * 99, zipped(tree([1]))])
def test_tree_alone(content):
    """Reading the tree alone, without the digest, refuses a file without a valid one."""
    with pytest.raises(ValueError, match=r"must hold a JSON tree|must be a dict, got list"):
        read_tree(io.BytesIO(content))
