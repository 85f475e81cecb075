"""Batches of similar lengths against a plain shuffle: how many tokens are computed, and what is learned with them?

    python benchmarks/buckets.py FOLDER      speeches of FOLDER/tinyshakespeare.txt, three seeds (some ten minutes)
    python benchmarks/buckets.py --quick     speeches made up from an alphabet, one seed

A character model (GRU) predicts the next letter of speeches, which are cut to 512 letters and padded to the longest of
their batch. Both have as many batches an epoch, so as many letters in a batch on average: R8 draws them with
`TokenBatches`, the plain one takes a random order. Tokens computed: those of the padded batches of an
epoch. Loss: of a letter of the speeches kept aside, after as many tokens computed; and after as many letters seen.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from learnit_r8 import R8Scheduler, TokenBatches

LONGEST = 512
MAX_TOKENS = 4096
KEPT_ASIDE = 0.1

Speeches = list[torch.Tensor]


def read_speeches(folder: Path) -> tuple[Speeches, int]:
    """The speeches of a play as numbers of letters, and how many letters there are."""
    text = (folder / "tinyshakespeare.txt").read_text(encoding="utf-8")
    letters = {letter: number for number, letter in enumerate(sorted(set(text)), start=1)}
    parts = [part[:LONGEST] for part in text.split("\n\n") if len(part) > 1]
    return [torch.tensor([letters[letter] for letter in part]) for part in parts], len(letters) + 1


def make_speeches(count: int = 600) -> tuple[Speeches, int]:
    """Speeches of words from a small dictionary, as long as those of a play."""
    rng = np.random.default_rng(0)
    words = [rng.integers(2, 20, rng.integers(2, 7)).tolist() for _ in range(30)]
    speeches = []
    for length in np.clip(rng.lognormal(4.2, 1.0, count), 8, 256).astype(int):
        letters: list[int] = []
        while len(letters) < length:
            letters += [*words[rng.integers(len(words))], 1]
        speeches.append(torch.tensor(letters[:length]))
    return speeches, 20


class Model(torch.nn.Module):
    """A character model."""

    def __init__(self, letters: int, width: int = 64) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(letters, width, padding_idx=0)
        self.rnn = torch.nn.GRU(width, width, batch_first=True)
        self.head = torch.nn.Linear(width, letters)

    def loss(self, batch: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Loss of a letter; padding counts nothing."""
        scores = self.head(self.rnn(self.embed(batch[:, :-1]))[0])
        return cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=0, reduction=reduction)


def padded(speeches: Speeches, indices: Any) -> torch.Tensor:
    """A batch, padded to its longest speech."""
    return torch.nn.utils.rnn.pad_sequence([speeches[index] for index in indices], batch_first=True)


@torch.no_grad()
def loss_on(model: Model, speeches: Speeches) -> float:
    """Mean loss of a letter."""
    order = sorted(range(len(speeches)), key=lambda index: len(speeches[index]))
    total = letters = 0.0
    for start in range(0, len(order), 32):
        batch = padded(speeches, order[start : start + 32])
        total += float(model.loss(batch, "sum"))
        letters += int((batch[:, 1:] > 0).sum())
    return total / letters


def train(
    speeches: Speeches, aside: Speeches, letters: int, seed: int, *, is_bucketed: bool, epochs: int, most: int
) -> tuple[float, int, float, int]:
    """Tokens computed an epoch, and the batches in it; loss after ``most`` tokens computed, and after all epochs.

    The loss after as many tokens is that at the first batch beyond them.
    """
    lengths = np.array([len(each) for each in speeches])
    torch.manual_seed(seed)
    model = Model(letters)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    r8 = R8Scheduler(
        len(speeches), batch_size=TokenBatches(lengths, max_tokens=MAX_TOKENS), num_epochs=10**4, policy="balanced",
        seed=seed,
        scheduler_mode="constant", handle_signals=False,
    )  # fmt: skip
    rng, steps = np.random.default_rng(seed), r8.steps_per_epoch
    computed, first_epoch, at_tokens, at_letters = 0, 0, float("nan"), float("nan")
    epoch = 0
    while computed < most or epoch < epochs:
        order = np.array_split(rng.permutation(len(speeches)), steps)
        for number in range(steps):
            indices = r8.draw() if is_bucketed else order[number]
            rows = indices.indices if is_bucketed else indices
            batch = padded(speeches, rows)
            loss = model.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if is_bucketed:
                r8.report(indices, float(loss.detach()))
            computed += batch.numel()
            if computed >= most and at_tokens != at_tokens:
                at_tokens = loss_on(model, aside)
        epoch += 1
        first_epoch = first_epoch or computed
        if epoch == epochs:
            at_letters = loss_on(model, aside)
    return first_epoch, steps, at_tokens, at_letters


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.folder is None and not given.quick:
        parser.error("give the folder of tinyshakespeare.txt, or --quick")
    torch.set_num_threads(1)
    speeches, letters = make_speeches() if given.quick else read_speeches(given.folder)
    order = np.random.default_rng(1).permutation(len(speeches)).tolist()
    count = int(KEPT_ASIDE * len(order))
    aside, own = [speeches[index] for index in order[:count]], [speeches[index] for index in order[count:]]
    total = sum(len(each) for each in own)
    seeds, epochs, most = ((0,), 2, 4 * total) if given.quick else ((0, 1, 2), 1, 3 * total)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, seeds {seeds}")
    print(f"{len(own)} speeches of {total} letters; loss after {most} tokens computed, and after {epochs} epochs")
    tokens, losses = {}, {}
    for is_bucketed, name in ((False, "plain"), (True, "buckets")):
        runs = [train(own, aside, letters, seed, is_bucketed=is_bucketed, epochs=epochs, most=most) for seed in seeds]
        tokens[name] = statistics.mean(run[0] for run in runs)
        losses[name] = [run[2] for run in runs]
        shown = "  ".join(f"{run[2]:.3f} {run[3]:.3f}" for run in runs)
        print(
            f"{name:<8} {runs[0][1]} batches an epoch, {tokens[name] / total:.2f} tokens computed a letter; "
            f"losses {shown}",
            flush=True,
        )
    less = [two - one for one, two in zip(losses["plain"], losses["buckets"], strict=True)]
    print(
        f"tokens computed, buckets / plain: {tokens['buckets'] / tokens['plain']:.3f}; loss after as many tokens "
        f"computed, buckets - plain: {statistics.mean(less):+.3f} ({min(less):+.3f} to {max(less):+.3f})"
    )


if __name__ == "__main__":
    main()
