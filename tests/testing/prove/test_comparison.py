"""Where two trainings first differ, and what that is called."""

import copy

import pytest

from learnit_r8.testing.prove.comparison import align, first_difference, spread
from learnit_r8.testing.prove.launches import Launch, Workshop
from learnit_r8.testing.prove.proof import Trial
from learnit_r8.testing.prove.report import KINDS

TOTAL, PER_EPOCH = 24, 8


def batch(number, *, seed=0):
    """A batch as the probe notes it: epoch, place in it, key and indices of the samples, digests of its tensors."""
    return [number // PER_EPOCH, number % PER_EPOCH + 1, f"key{number}.{seed}", [number], [f"x{number}.{seed}"]]


def step(n, **changes):
    """A step as the probe notes it."""
    return {
        "n": n, "o": 0, "r": [1.0 / n], "h": 1, "g": {"torch": n}, "x": [batch(n - 1)], "i": [f"i{n}"], "b": 1,
        "l": [2.0 / n], "w": f"w{n}", "m": f"m{n}", "u": f"u{n}", "c": float(n - 1), "names": ["exp_avg"],
        "s": [[float(n), 0]], "e": {"0": f"e{n}"}, **changes,
    }  # fmt: skip


WHOLE = [step(n) for n in range(1, TOTAL + 1)]
AFTER = 10


def restarted(**changes):
    """A training that goes on after `AFTER` steps, its steps changed by functions of the number of each."""
    steps = copy.deepcopy(WHOLE[AFTER:])
    for local, each in enumerate(steps):
        each.update({name: value(AFTER + local + 1) for name, value in changes.items()}, n=local + 1)
    return steps


def test_the_same_steps_do_not_differ():
    """A training that goes on exactly has no difference."""
    assert first_difference(restarted(), WHOLE, AFTER) is None


PLANTED = {
    "restarted": {"x": lambda n: [batch(n - 1 - AFTER)]},
    "repeated": {"x": lambda n: [batch(n - 4)]},
    "skipped": {"x": lambda n: [batch(min(n + 1, TOTAL))]},
    "shuffle": {"x": lambda n: [batch(n - 1, seed=1)], "l": lambda n: [0.1]},
    "schedule": {"r": lambda n: [1.0], "l": lambda n: [2.0 / n + (n > AFTER + 1)]},
    "twice": {"r": lambda n: [1.0 / (n + 1)]},
    "scaler": {"s": lambda n: [[64.0, 0]], "l": lambda n: [3.0]},
    "moments": {"m": lambda n: "none", "r": lambda n: [0.5]},
    "settings": {"h": lambda n: 2},
    "weights": {"w": lambda n: f"v{n}", "l": lambda n: [3.0]},
    "buffers": {"u": lambda n: f"v{n}", "l": lambda n: [3.0]},
    "ema": {"e": lambda n: {"0": f"f{n}"}},
    "augmentation": {"x": lambda n: [[*batch(n - 1)[:4], [f"y{n}"]]], "i": lambda n: ["j"], "l": lambda n: [3.0]},
    "dropout": {"g": lambda n: {"torch": -n}, "l": lambda n: [3.0]},
    "accumulation": {"b": lambda n: 1 + (n == AFTER + 1)},
    "unknown": {"l": lambda n: [3.0]},
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_difference_has_its_name(kind):
    """What is lost is named, at the first step after the restart, though the loss differs as well."""
    found = first_difference(restarted(**PLANTED[kind]), WHOLE, AFTER)

    assert (found.kind, found.step, found.local) == (kind, AFTER + 1, 1)
    assert all(KINDS[kind][:2])


def test_batches_that_a_generator_draws_have_no_order():
    """Without a loader, other batches come of the generator that draws them."""
    whole, drawn = [{**each, "x": []} for each in WHOLE], {"g": lambda n: {"torch": -n}, "i": lambda n: [f"j{n}"]}
    found = first_difference(restarted(x=lambda n: [], **drawn), whole, AFTER)

    assert (found.kind, found.detail) == ("drawn", "generators that differ: torch")
    assert all(KINDS["drawn"][:2])


@pytest.mark.parametrize(("kind", "detail"), [("repeated", "3 batches, from"), ("skipped", "2 batches, from")])
def test_batches_are_counted(kind, detail):
    """It is said how many batches are repeated or skipped, and which is the first."""
    assert first_difference(restarted(**PLANTED[kind]), WHOLE, AFTER).detail.startswith(detail)


def test_an_epoch_that_ends_early_is_named():
    """Batches of the next epoch, as a loader has begun again too early, are another length of the epoch."""
    steps = restarted(x=lambda n: [batch(n - 1 if n <= 13 else min(n + 2, TOTAL))])

    found = first_difference(steps, WHOLE, AFTER)
    assert (found.kind, found.step) == ("epoch", 14)


def test_an_epoch_that_begins_late_is_named():
    """Batches left out at the beginning of a later epoch are another length of it, and no skip of the restart."""
    steps = restarted(x=lambda n: [batch(n - 1 if n <= 16 else min(n + 2, TOTAL))])

    found = first_difference(steps, WHOLE, AFTER)
    assert (found.kind, found.step, found.detail[:9]) == ("epoch", 17, "3 batches")


def test_the_rest_of_an_accumulation_is_compared():
    """A restart in the middle of an accumulation, with the gradients, is exact; without them the sum was cut."""
    whole = copy.deepcopy(WHOLE)
    whole[AFTER] |= {"b": 2, "x": [batch(98), batch(99)], "l": [1.0, 2.0], "i": ["a", "b"]}
    steps = restarted()
    steps[0] |= {"b": 1, "x": [batch(99)], "l": [2.0], "i": ["b"], "a": True}

    assert first_difference(steps, whole, AFTER) is None
    steps[0]["a"] = False
    assert first_difference(steps, whole, AFTER).kind == "accumulation"


def test_another_view_of_the_data_is_no_difference():
    """Batches of the same content are the same, though a loader counts their samples from another place."""
    steps = restarted(x=lambda n: [[9, 1, f"other{n}", [0], [f"x{n - 1}.0"]]])

    assert first_difference(steps, WHOLE, AFTER) is None


def test_a_checkpoint_that_was_read_is_no_average():
    """A copy of the weights that never moves, as of the file that was read, is not compared."""
    whole = [{**each, "e": {}} for each in WHOLE]

    assert first_difference(restarted(e=lambda n: {"0": "as read"}), whole, AFTER) is None


def test_a_restart_finds_its_place():
    """It is that of its weights, else of the optimizer's count, else of its batches."""
    steps = restarted()
    without_weights = [{**each, "w": "others"} for each in steps]
    without_count = [{**each, "c": None} for each in without_weights]

    assert align(steps, WHOLE, 12) == AFTER
    assert align(without_weights, WHOLE, 12) == AFTER
    assert align(without_count, WHOLE, 12) == AFTER
    nothing = [{**each, "x": [batch(each["n"], seed=1)]} for each in without_count]
    assert align(nothing, WHOLE, 12) == 12
    anew, whole = ([*each, {**each[-1], "end": "end"}] for each in (without_count + WHOLE[:AFTER], WHOLE))
    assert align(anew, whole, 12) == 0
    # Where no two trainings are alike, the reference is one that was killed.
    assert align(anew, whole[:14], 12, whole) == 0


def test_parts_that_differ_anyway_are_left_out():
    """What differs without a kill is not held against a restart."""
    steps = restarted(l=lambda n: [3.0], r=lambda n: [5.0])

    assert first_difference(steps, WHOLE, AFTER, only={"batches", "scaler"}) is None


def test_the_spread_is_relative():
    """The largest difference of two losses of the same step, by the larger."""
    assert spread(WHOLE, [{**each, "l": [each["l"][0] * 2]} for each in WHOLE]) == 0.5


@pytest.mark.parametrize(("end", "kind"), [("end", "steps"), ("stop", "steps"), ("kill", None)])
def test_a_training_that_ends_early_differs(end, kind, tmp_path):
    """One that ends at another step than the whole one, or before it was stopped; a killed one has no end."""
    steps, whole = restarted()[:-5], copy.deepcopy(WHOLE)
    steps[-1]["end"], whole[-1]["end"] = "end", end
    with Workshop(tmp_path) as shop:
        trial = Trial(shop, ["train"], None, None, print)
        trial.whole = [whole]
        *restart, found = trial.compare(Launch([steps], 0, "", len(steps), "end"), [whole], AFTER)

    assert (found and found.kind) == kind
    assert restart == [AFTER, AFTER, TOTAL - AFTER - 5]
