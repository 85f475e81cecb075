"""Batches as commit 45a009d drew them: the results of policies for hand-made chunks, and the draws of whole runs.

    python -m tests.policies.golden_batches write     writes the files, with the package on the path
    python -m tests.policies.golden_batches           exits with 1 if it draws others

The files in ``golden`` were written by commit 45a009d with numpy 2.4, AVX-512 switched off, and are never
written again: the batches of a seed are the same on every processor and with every version of numpy.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from examples.own_policy import MatchMean
from learnit_r8 import Candidates, Context, Focus, R8Scheduler
from learnit_r8.policies import Balanced, EvenGroups, Quartile, Shuffle, Steady

HERE = Path(__file__).parent / "golden"

ARRANGING = {
    "balanced": Balanced(),
    "quartile": Quartile(),
    "shuffle": Shuffle(),
    "steady": Steady(),
    "match_mean": MatchMean(),
    "match_mean-balanced": MatchMean(Balanced(), tolerance=1e-4, max_rounds=9),
}
SELECTING = {"steady": Steady(), "focus": Focus(), "even_groups": EvenGroups()}

LOSSES = ["distinct", "ties", "equal", "negative", "around zero", "infinite", "unseen", "never seen", "wide"]
USES = ["equal", "unequal", "many"]
SHAPES = [(1, 1), (7, 32), (300, 7), (515, 32), (1000, 256)]
"""Samples in a chunk, and in a batch."""

RUNS = {
    "balanced": {"policy": "balanced"},
    "balanced, groups": {"policy": "balanced", "groups": True, "exact": True},
    "balanced, fill": {"policy": "balanced", "last_batch": "fill", "estimator": "additive"},
    "balanced, negative": {"policy": "balanced", "exact": True, "lowest": 3.0},
    "quartile": {"policy": "quartile", "last_batch": "drop"},
    "shuffle": {"policy": "shuffle"},
    "match_mean": {"policy": MatchMean(), "exact": True},
    "focus": {"policy": Focus(noise_guard=True, begin=0, end=1, most_hard=1), "groups": True, "exact": True},
}
SIZES = [(601, 32, 4), (50_021, 900, 3)]
"""Samples, batch size and epochs of the runs: in one chunk, and in several of an order that is never stored whole."""


def generator(*key):
    """Raw words are the same in every version of numpy; no other method is used."""
    return np.random.SFC64(np.random.SeedSequence(list(key)))


def losses_of(kind, count, key):
    """float32[C], losses of a kind."""
    words = generator(key).random_raw(2 * count)
    values = ((words[:count] >> np.uint64(40)).astype(np.float32) + np.float32(1)) / np.float32(2**24)
    luck = words[count:] >> np.uint64(60)
    if kind == "ties":
        return np.floor(values * 6).astype(np.float32)
    if kind == "equal":
        return np.full(count, 0.7, np.float32)
    if kind == "negative":
        return values - np.float32(0.5)
    if kind == "around zero":
        return np.where(luck < 4, np.float32(-0.0), np.where(luck < 8, np.float32(0.0), values - np.float32(0.5)))
    if kind == "infinite":
        return np.where(luck < 3, np.float32(np.inf), np.where(luck < 5, np.float32(-np.inf), values))
    if kind == "unseen":
        return np.where(luck < 5, np.float32(np.nan), values)
    if kind == "never seen":
        return np.full(count, np.nan, np.float32)
    return np.exp2(values * 200 - 100).astype(np.float32) if kind == "wide" else values


def uses_of(kind, count, key):
    """int64[C], use counts of a kind."""
    words = generator(key, 1).random_raw(count) >> np.uint64(50)
    return {"equal": np.full(count, 3), "unequal": words % 4, "many": words * 5}[kind].astype(np.int64)


def chunks():
    """The kind of losses and the candidates of every hand-made chunk, and the size of a batch."""
    for place, (count, batch_size) in enumerate(SHAPES):
        for losses in LOSSES:
            for uses in USES:
                for has_groups in (False, True):
                    if has_groups and (losses not in ("distinct", "ties", "unseen") or uses == "many"):
                        continue
                    loss = losses_of(losses, count, place)
                    group = (generator(place, 2).random_raw(count) % np.uint64(5)).astype(np.int64)
                    indices = np.arange(count)[::-1] * 37 + place
                    chunk = Candidates(
                        indices,
                        loss,
                        loss[::-1].copy(),
                        loss,
                        uses_of(uses, count, place),
                        group if has_groups else None,
                    )
                    yield losses, chunk, batch_size


def answers():
    """By policy and kind of losses, a digest of every arrangement and of the samples of every selection."""
    digests = {}
    for losses, chunk, batch_size in chunks():
        for name, policy in ARRANGING.items():
            # The mean of infinite batches is no number, and which of them came first was up to the processor.
            if losses != "infinite" or "match_mean" not in name:
                order = policy.arrange(chunk, batch_size, np.random.Generator(generator(5)))
                digests.setdefault(f"{name}, {losses}", hashlib.sha256()).update(order.astype("<i4").tobytes())
        for name, policy in SELECTING.items():
            if np.count_nonzero(chunk.usage_count) >= batch_size and (name != "even_groups" or chunk.group is not None):
                context = Context(0.5, 2, batch_size, 2.0, group_sizes=(9, 1, 2, 3, 30))
                keep, _ = policy.select(chunk, context, np.random.Generator(generator(6)))
                digests.setdefault(f"{name} selects, {losses}", hashlib.sha256()).update(np.packbits(keep).tobytes())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def run_of(size, batch_size, epochs, *, groups=False, exact=False, lowest=0.0, **arguments):
    """int64[steps * B], all that a run draws; one batch in nine is refused and gets fewer uses."""
    labels = np.arange(size) % 7 % 3 if groups else None
    r8 = R8Scheduler(size, batch_size=batch_size, num_epochs=epochs, groups=labels, seed=11, **arguments)
    drawn = []
    while (ticket := r8.draw_if_any()) is not None:
        drawn.append(ticket.indices.copy())
        losses = (ticket.indices * 7919 % 1013 / 1024 + 0.5) * (1 + 8 / (8 + r8.global_step)) - lowest
        if r8.global_step % 9 == 8:
            r8.host.discard(ticket)
        else:
            # Sums of few binary digits are the same in any order.
            r8.report(ticket, losses if exact else float(np.round(losses * 2**20).sum() / 2**20 / len(losses)))
    return np.concatenate(drawn)


def runs():
    """By name, int16[steps * B] of the small runs, and the digests of the large ones."""
    small, large = {}, {}
    for name, arguments in RUNS.items():
        for size, batch_size, epochs in SIZES:
            drawn = run_of(size, batch_size, epochs, **arguments)
            if size < 2**15:
                small[name] = drawn.astype(np.int16)
            else:
                large[f"{name}, {size} samples"] = hashlib.sha256(drawn.astype("<i4").tobytes()).hexdigest()
    return small, large


def differing():
    """The names of the results that differ from the files."""
    small, large = runs()
    found = {**answers(), **large}
    digests = json.loads((HERE / "digests.json").read_text())
    wrong = [name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name)]
    with np.load(HERE / "batches.npz") as batches:
        return sorted(wrong) + [name for name in batches.files if not np.array_equal(batches[name], small[name])]


def write():
    """Write the files."""
    HERE.mkdir(exist_ok=True)
    small, large = runs()
    np.savez_compressed(HERE / "batches.npz", **small)
    (HERE / "digests.json").write_text(json.dumps({**answers(), **large}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    elif wrong := differing():
        sys.exit(f"other batches than before: {len(wrong)}, of them {wrong[:9]}")
