"""Whole proofs: real scripts, really killed."""

import sys

import pytest

from learnit_r8.testing import assert_resumes
from learnit_r8.testing.prove import DIFFERS, EXACT, UNKNOWN, prove
from learnit_r8.testing.prove.launches import CannotSay, Workshop
from learnit_r8.testing.prove.proof import Trial

pytestmark = pytest.mark.program

SCRIPT = """
import os, sys, time, torch
from torch import nn

def has(word):
    return word in sys.argv

if not has("unseeded"):
    torch.manual_seed(0)
x = torch.randn(96, 8)
y = (x.sum(1) > 0).long()
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
model.register_buffer("count", torch.zeros(1))
step = resumes = own = 0
path = "ck.pt"
if os.path.exists(path) and not has("forgetful"):
    saved = torch.load(path)
    model.load_state_dict(saved["model"])
    resumes = saved["resumes"] + 1
    if not has("moments") and not (has("second") and resumes > 1):
        optimizer.load_state_dict(saved["optimizer"])
    step = saved["step"] - has("repeat")
    x, y = saved["data"]
    torch.set_rng_state(saved["rng"])
if has("die") and step:
    raise SystemExit("no way back")
if has("daemon"):
    # It has left the session and is alive when its parent is found to have ended, however busy the machine is.
    ready = os.pipe()
    if os.fork():
        os.read(ready[0], 1)
        os._exit(0)
    os.setsid()
    os.write(ready[1], b"1")
    time.sleep(60)
steps = 2 if has("short") else 30
while step < steps:
    at = step * 8 % 96
    loss = nn.functional.cross_entropy(model(x[at : at + 8]), y[at : at + 8])
    if has("noisy"):
        loss = loss * (1 + 1e-6 * int.from_bytes(os.urandom(1), "big"))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    own += 1
    if has("late") and own % 5 == 0:
        model.count += 1
    if step % 4 == 0 and not has("unsaved"):
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "data": (x, y)}
        if has("full"):
            open("/dev/full", "wb", 0).write(b"checkpoint")
        torch.save(state | {"rng": torch.get_rng_state(), "resumes": resumes}, path)
"""


@pytest.fixture
def train(tmp_path):
    """The command of a small training, and its folder."""
    (tmp_path / "train.py").write_text(SCRIPT)
    return lambda *words: {"command": [sys.executable, "train.py", *words], "folder": tmp_path}


def test_a_training_that_resumes_is_exact(train, tmp_path):
    """Three kills, each later than the one before; nothing appears in the folder."""
    proof = assert_resumes(**train())

    assert (proof.code, proof.steps, len(proof.restarts)) == (EXACT, 30, 3)
    assert all(each.went_on % 4 == 0 and each.went_on < each.killed for each in proof.restarts)
    assert [each.name for each in tmp_path.iterdir()] == ["train.py"]


def test_what_is_lost_is_named_with_its_evidence(train):
    """Moments that are not put back differ at the first step after the restart; an assertion shows them."""
    with pytest.raises(AssertionError, match=r"the moments of the optimizer are not saved \(none in place of exp_avg"):
        assert_resumes(**train("moments"), kills=1)


def test_what_only_sums_show_is_narrowed_down(train):
    """What is summed up at few steps only, and begins between two of them, is found in a second run, at its step."""
    proof = prove(**train("late"), kills=1)

    # The counter of an own process is ahead after step 5; both trainings have sums before steps 5 and 9.
    assert (proof.code, proof.difference.kind, proof.difference.step) == (DIFFERS, "buffers", 6)
    assert [row[:2] for row in proof.rows] == [("6", "buffers"), ("7", "buffers")]


def test_a_fault_of_the_second_resume_is_told_apart(train):
    """A third training, killed at the same place alone, shows that it needs two."""
    proof = prove(**train("second"))

    assert (proof.code, proof.is_second_only, proof.difference.kind) == (DIFFERS, True, "moments")


def test_a_training_without_seeds_is_compared_with_itself(train):
    """Without a seed no two trainings are alike; the steps that the kill undid are."""
    proof = prove(**train("unseeded"), kills=1)

    assert proof.code == EXACT
    assert "two trainings that nobody kills differ from step 1 on" in proof.notes[0]


def test_a_fault_is_found_without_seeds(train):
    """What was trained before the kill must be trained again just so, though no two trainings are alike."""
    proof = prove(**train("unseeded", "repeat"), kills=1)

    assert (proof.code, proof.difference.kind, proof.rows != ()) == (DIFFERS, "repeated", True)


def test_losses_with_noise_are_said_not_to_repeat(train):
    """Where only the losses are noisy nothing can be said, but batches that are repeated are."""
    proof = prove(**train("noisy"), kills=1)

    assert proof.code == UNKNOWN
    assert "Try --deterministic" in proof.why


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["forgetful"], 'begins at step 0: give the command that goes on as --resume "CMD"'),
        (["unsaved"], "writes no file before its last step"),
        (["die"], "the command ended with 1 after 0 steps. It said: no way back"),
    ],
)
def test_what_cannot_go_on_is_said(train, words, why):
    """A training that starts over, saves nothing or fails when it is started again is neither exact nor different."""
    proof = prove(**train(*words), kills=1)

    assert proof.code == UNKNOWN
    assert why in proof.why


@pytest.mark.parametrize(
    ("words", "steps", "why"),
    [
        (["short"], 2, "the training must have at least 4 steps, got 2"),
        (["full"], 4, "ended with 1 after 4 steps. It said: OSError: [Errno 28] No space left on device"),
        (["daemon"], 0, "the command ended while its training went on: start it in the foreground"),
    ],
)
def test_a_training_that_cannot_be_proven_is_said(train, words, steps, why):
    """One of two steps, on a full disk, or in the background: the reason, and how many steps it made."""
    proof = prove(**train(*words), kills=1)

    assert (proof.code, proof.steps) == (UNKNOWN, steps)
    assert why in proof.why


def test_a_training_that_ends_before_its_kill_is_said(train, tmp_path):
    """A training that is shorter the second time is not killed, and says nothing."""
    with Workshop(tmp_path) as shop:
        trial = Trial(shop, train()["command"], None, None, print)
        with pytest.raises(CannotSay, match="the training ended after 30 steps, before the kill at 40"):
            trial.start_and_kill(40)


def test_a_command_that_goes_on_may_be_another(train):
    """--resume is the command after a kill, of a shell if need be; --steps ends every launch."""
    proof = prove(**train("forgetful"), resume=f"cd . && {sys.executable} $(ls | grep train.py)", kills=1, steps=12)

    assert (proof.code, proof.steps) == (EXACT, 12)


def test_torch_save_outside_of_the_copy_is_refused(train, tmp_path):
    """torch opens its files in native code; what the user has there stays as it is, and the path is named."""
    precious = tmp_path.parent / f"{tmp_path.name}.pt"
    precious.write_text("precious")
    (tmp_path / "train.py").write_text(SCRIPT.replace('path = "ck.pt"', f"path = {str(precious)!r}").replace(
        "os.path.exists(path)", "False"
    ))  # fmt: skip
    proof = prove(**train(), kills=1)

    assert precious.read_text() == "precious"
    assert proof.code == UNKNOWN
    assert str(precious) in str(proof)
