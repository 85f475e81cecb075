import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

import learnit_r8
from learnit_r8 import CheckpointStore, NoValidCheckpoint
from learnit_r8.state.codec import decode, encode
from learnit_r8.state.durable_io import is_locked
from tests.drive import FakeClock, Weights, advance_to, known, make, train

STATE = {
    "step": 3,
    "table": {"loss": np.float32([1, 2.5]), "uses": np.uint16([[1], [2]])},
    "chunks": [[0, None], ["a", True]],
}

KEYS = st.text(max_size=5).filter(lambda text: text != "__array__")
PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20)
ARRAYS = st_np.arrays(
    st.sampled_from(["<f4", "<f8", "<i8", "<u2", "|b1", "<c16", "<U3"]),
    st_np.array_shapes(min_dims=0, min_side=0, max_side=3),
)
TREES = st.recursive(
    PLAIN | ARRAYS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def store_in(folder, keep=3, run_id="me"):
    return CheckpointStore(folder, keep=keep, run_id=run_id)


def names(folder):
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def write_text(text):
    return lambda path: Path(path).write_text(text)


@given(st.dictionaries(KEYS, TREES, max_size=3))
def test_state_survives(state):
    """Nested dicts and lists of arrays and plain values come back equal, with types, shapes and dtypes."""
    back = decode(encode(state))

    np.testing.assert_equal(back, state)
    assert json.dumps(back, default=describe) == json.dumps(state, default=describe)


def describe(array):
    return [str(array.dtype), array.shape]


def test_nan_and_numpy_numbers_survive():
    """NaN, infinities and numpy scalars come back as floats and ints; tuples as lists."""
    back = decode(
        encode({"x": [float("nan"), float("inf"), np.float32(0.5), np.int64(7), np.bool_(True)], "pair": (1, 2)})
    )

    assert repr(back) == "{'x': [nan, inf, 0.5, 7, True], 'pair': [1, 2]}"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            {"a": {"b": [1, object]}},
            r"state\.a\.b\.1 must be a number, str, bool, None, array, or a dict or list of them, got",
        ),
        ({"a": {1: 2}}, r"state\.a must have str keys other than '__array__' and '__npy__', got 1"),
        ({"a": {"__array__": 2}}, r"state\.a must have str keys other than '__array__' and '__npy__', got '__array__'"),
        ({"a": np.array([None, "x"])}, r"state\.a must be an array of numbers or strings, got dtype object"),
        ({"a": [b"bytes"]}, r"state\.a\.0 must be a number"),
        ({"a": {1, 2}}, r"state\.a must be a number"),
        ({"a": 1j}, r"state\.a must be a number"),
        ({"a": np.complex128(1j)}, r"state\.a must be a number"),
        ({"a": np.bytes_(b"x")}, r"state\.a must be a number"),
    ],
)
def test_other_types_are_refused_by_their_place(state, text):
    """A value that cannot be saved is a TypeError with its dotted key."""
    with pytest.raises(TypeError, match=text):
        encode(state)


def test_what_is_no_whole_file_is_refused():
    """A file that is cut anywhere, too long, or another one, and one with any bit of its header flipped."""
    content, small = encode(STATE), encode({"a": 1})
    shares = (0.0, 0.01, 0.05, 0.3, 0.5, 0.9, 0.999)
    cut = [content[:length] for length in (*range(49), *(int(share * len(content)) for share in shares))]
    flipped = [
        small[: bit // 8] + bytes([small[bit // 8] ^ 1 << bit % 8]) + small[bit // 8 + 1 :] for bit in range(800)
    ]
    for bad in (*cut, *flipped):
        with pytest.raises(ValueError, match="the file"):
            decode(bad)
    with pytest.raises(ValueError, match=r"must hold \d+ bytes with the SHA-256 in its header, got \d+; it is damaged"):
        decode(content + b"\0")
    with pytest.raises(ValueError, match=r"the file must begin with a length of 8 bytes, .*, got b'PK"):
        decode(b"PK\3\4" + bytes(100))


@pytest.mark.parametrize("place", [40, 60, 99, -20, -1])
def test_flipped_payload_is_refused(place):
    """A file with a flipped bit in its payload is refused."""
    content = bytearray(encode(STATE))
    content[place] ^= 4
    with pytest.raises(ValueError, match="it is damaged"):
        decode(bytes(content))


def test_package_does_not_pickle():
    """No file of the package imports pickle or lets numpy use it."""
    for path in Path(learnit_r8.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"import (pickle|shelve|marshal|dill|joblib)|allow_pickle=True|\bpickle\.", text), path


def test_damaged_checkpoints_are_skipped(tmp_path):
    """Damaged files are skipped for the newest valid one, with one warning that gives each reason."""
    store = store_in(tmp_path)
    for step in range(3):
        store.save({"step": step})
    third, second = sorted(tmp_path.glob("ck_*"))[2:0:-1]
    third.write_bytes(third.read_bytes()[:-1])
    second.write_bytes(b"")
    with pytest.warns(
        RuntimeWarning, match=rf"checkpoints skipped: {third.name}: .*damaged.* \| {second.name}: .*begin with"
    ):
        checkpoint = store.load()

    assert checkpoint.state == {"step": 0}


def test_no_valid_checkpoint_is_an_error(tmp_path):
    """If no file can be read, the error gives the folder and every file's reason."""
    (tmp_path / "ck_000000000001.r8").write_bytes(b"junk")
    with pytest.raises(
        NoValidCheckpoint,
        match=r"checkpoint_dir must hold a valid checkpoint, got none in .*ck_000000000001\.r8: the file",
    ):
        store_in(tmp_path).load()


@pytest.mark.parametrize("folder", ["", "not/there"])
def test_empty_folder_is_an_error(tmp_path, folder):
    """An empty or missing folder holds no valid checkpoint."""
    with pytest.raises(NoValidCheckpoint, match="no files"):
        store_in(tmp_path / folder).load()


def test_damaged_file_by_name_is_an_error(tmp_path):
    """A file asked for by name is not replaced by another one."""
    store = store_in(tmp_path)
    first, second = store.save({"step": 0}), store.save({"step": 1})
    second.path.write_bytes(b"junk")
    assert store.load(first.path).state == {"step": 0}
    with pytest.raises(ValueError, match="the file must begin with"):
        store.load(second.path)
    second.path.write_bytes(encode({"step": 1}))
    with pytest.raises(ValueError, match="must be a checkpoint of R8Scheduler, got the entries"):
        store.load(second.path)


def test_only_own_checkpoints_are_deleted(tmp_path):
    """Retention keeps this run's newest and touches no other file."""
    other, own = store_in(tmp_path, run_id="other"), store_in(tmp_path, keep=2)
    other.save({"step": 0}, write_text("other model"))
    # Left by a run that was killed between its two files.
    (tmp_path / "model_000000000009_me").write_text("cut off")
    (tmp_path / "ck_notes.r8").write_text("mine")
    (tmp_path / "model_best.pt").write_text("mine")
    for step in range(4):
        own.save({"step": step}, write_text(f"model {step}"))

    assert names(tmp_path) == [
        "ck_000000000001.r8", "ck_000000000004.r8", "ck_000000000005.r8", "ck_notes.r8",
        "model_000000000001_other", "model_000000000004_me", "model_000000000005_me", "model_best.pt",
    ]  # fmt: skip


def test_checkpoints_of_weights_that_were_given_up_go_first(tmp_path):
    """A good one that is older stays in their place."""
    store = store_in(tmp_path, keep=2)
    saved = [store.save({"pace": {"step": step}}) for step in (4, 8)]
    store.mark_abandoned(4, 8)
    saved.append(store.save({"pace": {"step": 9}}))

    assert names(tmp_path) == [saved[0].path.name, saved[2].path.name]


def test_numbers_go_on_across_runs(tmp_path):
    """A new run numbers its files after the existing ones."""
    store_in(tmp_path, run_id="first").save({})
    (tmp_path / "ck_000000000041.r8").write_bytes(b"")

    assert store_in(tmp_path).save({}).path.name == "ck_000000000042.r8"


def test_file_deleted_by_hand_is_no_error(tmp_path):
    """Retention ignores files that somebody has already deleted."""
    store = store_in(tmp_path, keep=1)
    store.save({"step": 0}).path.unlink()
    store.save({"step": 1})

    assert store.load().state == {"step": 1}


def test_moved_folder_can_be_read(tmp_path):
    """A folder of checkpoints can be moved: the model's file is looked for beside the checkpoint."""
    store_in(tmp_path / "a").save({}, write_text("weights"))
    (tmp_path / "a").rename(tmp_path / "b")
    checkpoint = store_in(tmp_path / "b").load()

    assert (checkpoint.model_path, checkpoint.run_id) == (tmp_path / "b" / "model_000000000001_me", "me")


def test_model_suffix_is_kept(tmp_path):
    """A callback whose library appends a suffix, as np.savez does, is understood."""
    checkpoint = store_in(tmp_path).save({}, lambda path: np.savez(path, w=np.ones(2)))

    assert checkpoint.model_path.name == "model_000000000001_me.npz"
    assert np.load(checkpoint.model_path)["w"].tolist() == [1, 1]
    assert names(tmp_path) == ["ck_000000000001.r8", "model_000000000001_me.npz"]


def test_callback_may_leave_no_file(tmp_path):
    """A callback that writes nothing leaves a checkpoint without a model."""
    store = store_in(tmp_path)

    assert store.save({}, lambda path: None).model_path is None
    assert store.load().model_path is None


@pytest.mark.parametrize(
    "damage", [b"weighty", b"weight", b"weightsweights", None], ids=["content", "short", "long", "missing"]
)
def test_checkpoint_with_another_model_is_skipped(tmp_path, damage):
    """A checkpoint whose model's file has changed since it was saved is not valid."""
    store = store_in(tmp_path)
    store.save({"step": 0}, write_text("weights"))
    model = store.save({"step": 1}, write_text("weights")).model_path
    model.unlink() if damage is None else model.write_bytes(damage)
    with pytest.warns(RuntimeWarning, match=r"checkpoints skipped: ck_000000000002\.r8"):
        assert store.load().state == {"step": 0}


def test_tampered_model_is_an_error_by_name(tmp_path):
    """A checkpoint asked for by name is refused if its model's file was changed."""
    checkpoint = store_in(tmp_path).save({}, write_text("weights"))
    checkpoint.model_path.write_text("Weights")
    with pytest.raises(ValueError, match="the model's file must be unchanged since the checkpoint, got another in"):
        store_in(tmp_path).load(checkpoint.path)


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    """After a TypeError, or a save callback that raises in the middle of its file, there is no part of a new one."""
    store = store_in(tmp_path)
    store.save({"step": 0}, write_text("weights"))
    before = names(tmp_path)

    def broken(path):
        Path(path).write_text("half of the wei")
        raise KeyError("no such layer")

    with pytest.raises(TypeError, match=r"state\.scheduler\.step"):
        store.save({"step": object()}, write_text("weights"))
    with pytest.raises(KeyError, match="no such layer"):
        store.save({"step": 1}, broken)

    assert names(tmp_path) == before


def test_resumed_run_leaves_the_files_of_others(tmp_path):
    """A run that goes on in a folder with another one deletes its own old checkpoints only."""
    other = store_in(tmp_path, run_id="other").save({"step": 0})
    first = store_in(tmp_path, run_id="mine").save({"step": 1})
    again = store_in(tmp_path, keep=1, run_id="new")
    again.go_on_from(again.load())
    again.save({"step": 2})

    assert other.path.exists()
    assert not first.path.exists()


def test_model_of_an_interrupted_checkpoint_goes_with_the_next_one(tmp_path):
    """Ctrl-C between the model's file and the scheduler's leaves the first, which the next checkpoint deletes."""

    class Interrupted(dict):
        def items(self):
            raise KeyboardInterrupt

    store = store_in(tmp_path)
    store.save({"step": 0}, write_text("weights"))
    with pytest.raises(KeyboardInterrupt):
        store.save(Interrupted(step=1), write_text("weights"))
    assert len([name for name in names(tmp_path) if name.startswith("model_")]) == 2
    store.save({"step": 2})

    assert len([name for name in names(tmp_path) if name.startswith("model_")]) == 1


def test_checkpoint_restores_run_and_model(tmp_path):
    """A fresh process that loads the newest checkpoint has the state and the model of that step."""
    model = Weights()
    callbacks = {"save_callback": model.save, "load_callback": model.load, "state_callback": model.get}
    first = make(checkpoint_dir=tmp_path, checkpoint_every=2, **callbacks)
    advance_to(first, 4)
    model.values[:] = 4
    first.save_checkpoint()
    model.values[:] = 99
    unbroken = make()
    unbroken.load_state_dict(first.state_dict())
    second = make(checkpoint_dir=tmp_path, **callbacks)
    second.load_checkpoint()

    assert model.values.tolist() == [4, 4]
    assert model.loaded[-1] == (str(tmp_path / f"model_000000000002_{second.host.persistence.store.run_id[:8]}"), False)
    np.testing.assert_equal(known(second), known(first))
    assert train(second) == train(unbroken)


def test_checkpoint_of_another_data_set_is_refused(tmp_path):
    """A checkpoint of another number of samples changes neither scheduler nor model."""
    model = Weights()
    make(8, checkpoint_dir=tmp_path, save_callback=model.save, state_callback=model.get).save_checkpoint()
    r8 = make(12, checkpoint_dir=tmp_path, load_callback=model.load, clock=FakeClock())
    advance_to(r8, 2)
    before = r8.state_dict()
    with pytest.raises(ValueError, match=r"num_samples must be that of the saved run \(8\), got 12"):
        r8.load_checkpoint()

    assert model.loaded == []
    np.testing.assert_equal(r8.state_dict(), before)


KILLED = """
import sys
import numpy as np
from learnit_r8 import R8Scheduler, NoValidCheckpoint

weights = np.zeros(1)

def save(state_dict, path):
    with open(path, "wb") as file:
        np.save(file, weights)

def load(path):
    weights[:] = np.load(path)

r8 = R8Scheduler(64, batch_size=4, num_steps=1_000_000, checkpoint_dir="saved", checkpoint_every=1, save_callback=save,
                 load_callback=load)
try:
    r8.load_checkpoint()
except NoValidCheckpoint:
    pass
assert weights[0] == r8.global_step, (weights, r8.global_step)
print("resumed", r8.global_step, flush=True)
say = lambda event: type(event).__name__ == "CheckpointSaved" and print("saved", event.step, flush=True)
r8.host.announcer.add(say)
for epoch in r8.epoch_iterator():
    for indices, lr in r8.batch_iterator():
        r8.update_with_loss(1.0)
        weights[:] = r8.global_step
"""


@pytest.mark.parametrize("times", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_run_killed_at_any_moment_resumes(times, tmp_path):
    """A process killed again and again at random moments resumes at or after its last acknowledged checkpoint."""
    rng = np.random.default_rng(7)
    acknowledged = 0
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", KILLED],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        resumed = process.stdout.readline().split()
        assert resumed[:1] == ["resumed"], process.communicate()[1]
        assert int(resumed[1]) >= acknowledged
        heard = 0
        for _ in range(int(rng.integers(1, 6))):
            heard = int(process.stdout.readline().split()[1])
        # A moment that no line of output marks: somewhere within a step.
        for _ in range(int(rng.integers(0, 200_000))):
            pass
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        acknowledged = max([heard, *(int(word) for word in rest if word.isdigit())])

    assert acknowledged >= times
    assert len(list(tmp_path.glob("saved/ck_*.r8"))) <= 3 * 20


def test_saving_needs_about_the_memory_of_the_file():
    """Encoding makes at most a few copies of the state."""
    state = {"table": np.zeros(1_000_000, np.float32)}
    tracemalloc.start()
    content = encode(state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 5 * len(content)


def test_number_taken_meanwhile_is_not_overwritten(tmp_path):
    """A checkpoint that another run writes under the same number at the same time is not changed."""
    one, other = (CheckpointStore(tmp_path, keep=3, run_id=letter * 32) for letter in "ab")
    saved = other.save({"of": "b"}, lambda path: one.save({"of": "a"}))

    assert saved.path.name == "ck_000000000002.r8"
    assert decode((tmp_path / "ck_000000000001.r8").read_bytes())["scheduler"] == {"of": "a"}


def test_checkpoint_without_a_model_causes_a_warning(tmp_path):
    """Loading a checkpoint without a model although there is a load callback warns that it was not called."""
    model = Weights()
    more = {"checkpoint_dir": tmp_path, "load_callback": model.load}
    first = make(**more)
    first.report(first.draw(), 1.0)
    first.save_checkpoint()

    with pytest.warns(RuntimeWarning, match="holds no model, so load_callback was not called"):
        make(**more).load_checkpoint()
    assert model.loaded == []


def test_lock_of_a_store_that_another_thread_collects(tmp_path, monkeypatch):
    """The next store of the run waits until it is released, and has it then: no "another process" is in the way."""
    begun, unlink = threading.Event(), os.unlink

    def unlink_slowly(path):
        begun.set()
        time.sleep(0.2)
        unlink(path)

    def store():
        return CheckpointStore(tmp_path, keep=1, run_id="a" * 8)

    left, following = store(), store()
    left.claim("a" * 8)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink_slowly)
        collecting = threading.Thread(target=left.release)
        collecting.start()
        begun.wait(30)
        following.claim("a" * 8)
    collecting.join(30)
    assert is_locked(tmp_path / "run_aaaaaaaa.lock")
    following.release()
    assert not is_locked(tmp_path / "run_aaaaaaaa.lock")
