"""Whether the lists of `SampleTable.suspects` hold what was asked for, after which training, loss and noise.

    python benchmarks/verdicts.py [--quick] [--data canvas] [--network wide] [--seeds 701 702] [--keep FILE]

Data: digits at other places of a noisy canvas, clusters that overlap, the plain digits, and what a random network says
of random inputs. Networks: a wide perceptron that learns its labels by heart (25 epochs), and a narrow one that is far
from fitting (12). Noise: random, confusable (by class), and a second annotator: drawn from the votes of a few samples
that are near, so that errors go with the sample. Ways: a plain shuffle, `Focus(noise_guard="weigh")` with cross
entropy, and a shuffle with early learning regularisation (ELR: Liu et al., arXiv:2007.00151), generalised cross entropy
(GCE: Zhang & Sabuncu, arXiv:1805.07836) and label smoothing. Every training is asked for all three precisions. "of the
order" is the recall as a share of what the longest beginning of `ranking()` of that true precision has. The rules were
chosen on canvas and clusters with seeds 601 to 606, and on the teacher and the digits with 601 to 605; none with seeds
701 to 705, nor with 721 to 725 and 731 to 735.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from learnit_r8 import Focus, R8Scheduler
from learnit_r8.torch.ensemble_targets import EnsembleTargets
from learnit_r8.torch.predictions import predictions_of

PRECISIONS = (0.5, 0.7, 0.9)
SEEDS = (701, 702, 703, 704, 705)
SIZE, SHARE, BATCH = 2000, 0.2, 50
NOISES = ("clean", "random", "confusable", "annotator")
SHUFFLE, WEIGH, HELD, ELR = "shuffle", "weigh", "held", "ELR"
GCE, SMOOTH, ORACLE = "GCE", "smoothing", "oracle"
WAYS = (SHUFFLE, WEIGH, HELD, ELR, GCE, SMOOTH)
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Data(NamedTuple):
    """Inputs and right labels; as many again are held out."""

    x: Floats
    true: Ints


def canvas(rng: np.random.Generator) -> Data:
    """Digits at random places of 10 x 10 pixels with noise."""
    plain, chosen = digits(rng), rng.integers(0, 1797, 2 * SIZE)
    pixels = 0.2 * rng.standard_normal((2 * SIZE, 10, 10)).astype(np.float32)
    for image, digit, (top, left) in zip(pixels, plain.x[chosen], rng.integers(0, 3, (2 * SIZE, 2)), strict=True):
        image[top : top + 8, left : left + 8] += digit.reshape(8, 8)
    return Data(pixels.reshape(2 * SIZE, -1), plain.true[chosen])


def clusters(rng: np.random.Generator) -> Data:
    """Eight classes of three normal clusters each, that overlap, in 20 dimensions."""
    centres = 0.8 * rng.standard_normal((24, 20))
    chosen = rng.integers(0, 24, 2 * SIZE)
    return Data((centres[chosen] + rng.standard_normal((2 * SIZE, 20))).astype(np.float32), chosen % 8)


def digits(rng: np.random.Generator) -> Data:
    """The 1,797 digits of scikit-learn, in random order."""
    from sklearn.datasets import load_digits

    found, order = load_digits(), rng.permutation(1797)
    return Data((found.data[order] / 16).astype(np.float32), found.target[order].astype(np.int64))


def teacher(rng: np.random.Generator) -> Data:
    """What a random network with a hidden layer says of normal inputs: six classes, hard at the borders alone."""
    said = x = rng.standard_normal((2 * SIZE, 16)).astype(np.float32)
    for width in (24, 6):
        said = np.tanh(said @ rng.standard_normal((said.shape[1], width)) * 1.2)
    return Data(x, said.argmax(1).astype(np.int64))


DATA = {"canvas": canvas, "clusters": clusters, "digits": digits, "teacher": teacher}


class Training(NamedTuple):
    """A perceptron with one hidden layer, and how it is trained."""

    hidden: int
    epochs: int
    lr: float
    decay: float


NETWORKS = {"wide": Training(256, 25, 0.1, 0.0), "narrow": Training(24, 12, 0.05, 5e-4)}


def spoilt(noise: str, data: Data, size: int, rng: np.random.Generator) -> Ints:
    """int64[size], the labels to train on, of which one in five is wrong."""
    true, classes = data.true[:size], int(data.true.max()) + 1
    if noise == "clean":
        return true
    if noise == "random":
        other = (true + rng.integers(1, classes, size)) % classes
    else:
        from sklearn.neighbors import KNeighborsClassifier

        few = slice(size, size + 40 * classes)
        near = KNeighborsClassifier(9).fit(data.x[few], data.true[few])
        chance = near.predict_proba(data.x[:size])
        if noise == "confusable":
            chance = np.stack([chance[true == each].mean(0) for each in range(classes)])[true]
            chance[np.arange(size), true] = 0
            chance /= chance.sum(1, keepdims=True)
        other = (chance.cumsum(1) < rng.random((size, 1))).sum(1).clip(0, classes - 1)
    differs = np.flatnonzero(other != true)
    wrong = rng.permutation(differs)[: int(SHARE * size)]
    given = true.copy()
    given[wrong] = other[wrong]
    return given


class Losses:
    """The losses of samples, by the way; those of ELR remember what was predicted for each."""

    def __init__(self, way: str, size: int, classes: int) -> None:
        self.way, self.memory = way, torch.zeros(size, classes)

    def of(self, logits: Tensor, given: Tensor, rows: Tensor) -> Tensor:
        """float32[B]."""
        if self.way == GCE:
            chance = logits.softmax(1).gather(1, given[:, None])[:, 0]
            return (1 - chance.clamp_min(1e-7) ** 0.7) / 0.7
        smoothing = 0.1 if self.way == SMOOTH else 0.0
        own = functional.cross_entropy(logits, given, reduction="none", label_smoothing=smoothing)
        if self.way != ELR:
            return own
        chance = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        now = 0.7 * self.memory[rows] + 0.3 * (chance / chance.sum(1, keepdim=True)).detach()
        self.memory[rows] = now
        return own + 3 * (1 - (now * chance).sum(1)).log()


def trained(data: Data, given: Ints, way: str, how: Training, seed: int) -> tuple[R8Scheduler, float]:
    """The run, and the accuracy on the samples that were held out."""
    torch.manual_seed(seed)
    size, classes = len(given), int(data.true.max()) + 1
    network = nn.Sequential(nn.Linear(data.x.shape[1], how.hidden), nn.ReLU(), nn.Linear(how.hidden, classes))
    optimizer = torch.optim.SGD(network.parameters(), lr=how.lr, momentum=0.9, weight_decay=how.decay)
    kept = np.flatnonzero(given == data.true[:size]) if way == ORACLE else np.arange(size)
    x, labels = torch.from_numpy(data.x[kept]), torch.from_numpy(given[kept])
    r8 = R8Scheduler(
        len(kept), batch_size=BATCH, num_epochs=round(how.epochs * size / len(kept)), initial_lr=how.lr, seed=seed,
        policy=Focus(noise_guard="weigh") if way in (WEIGH, HELD) else "shuffle", groups=given[kept],
    )  # fmt: skip
    losses_of, held = Losses(way, len(kept), classes), EnsembleTargets(len(kept))
    while not r8.is_over:
        ticket = r8.draw()
        rows = torch.from_numpy(ticket.indices)
        logits, targets = network(x[rows]), labels[rows]
        losses = losses_of.of(logits, targets, rows)
        weights = 1 if ticket.weights is None else torch.from_numpy(ticket.weights)
        optimizer.param_groups[0]["lr"] = ticket.lr
        optimizer.zero_grad()
        penalty = held.penalty(r8, ticket.indices, logits) if way == HELD else None
        (losses * weights + (0 if penalty is None else penalty)).mean().backward()
        optimizer.step()
        r8.report(ticket, losses.detach().numpy(), predictions=predictions_of(logits.detach(), targets))
    with torch.no_grad():
        right = network(torch.from_numpy(data.x[size:])).argmax(1).numpy() == data.true[size:]
    return r8, float(right.mean())


def measured(name: str, network: str, noise: str, way: str, seed: int) -> dict[str, Any]:
    """All figures of one training."""
    data = DATA[name](np.random.default_rng([1, seed]))
    size = len(data.x) * 2 // 3 if name == "digits" else SIZE
    given = spoilt(noise, data, size, np.random.default_rng([2, seed]))
    wrong = given != data.true[:size]
    r8, accuracy = trained(data, given, way, NETWORKS[network], seed)
    run: dict[str, Any] = {
        "data": name, "network": network, "noise": noise, "way": way, "seed": seed, "wrong": int(wrong.sum()),
        "accuracy": accuracy, "lists": {},
    }  # fmt: skip
    if way != ORACLE:
        found = wrong[r8.table.ranking(size).indices].cumsum()
        for asked in PRECISIONS:
            suspects = r8.table.suspects(asked)
            enough = np.flatnonzero(found >= asked * np.arange(1, len(found) + 1))
            order = int(found[enough[-1]]) if len(enough) else 0
            run["lists"][str(asked)] = [
                len(suspects), int(wrong[suspects.indices].sum()), order, suspects.caution or suspects.reason
            ]  # fmt: skip
    return run


def cell(runs: list[dict[str, Any]], asked: float) -> str:
    """Mean precision of the lists with a promise, its recall as a share of the order's; "none" or "no promise"."""
    lists = [run["lists"][str(asked)] for run in runs]
    held = [(found / listed, found / max(1, order)) for listed, found, order, words in lists if listed and not words]
    if 2 * len(held) <= len(lists):
        warned = sum(bool(listed and words) for listed, _, _, words in lists)
        return "no promise " if 2 * warned >= len(lists) else "none       "
    precision, recall = np.mean(held, axis=0)
    missing = "" if len(held) == len(lists) else f" ({len(held)})"
    return f"{precision:.2f}{'!' if precision < asked - 0.05 else ' '} {recall:.2f}{missing:4}"


def show(runs: list[dict[str, Any]]) -> None:
    """A row for each kind of training: figures at .5, .7 and .9, and the accuracy."""
    print("precision got (! if more than .05 below what was asked), recall as a share of what the order could give")
    asks = "".join(f"asked {precision:<10}" for precision in PRECISIONS)
    print(f"{'data':9}{'network':8}{'labels':11}{'way':10} {asks}accuracy")
    keys = sorted({(run["data"], run["network"]) for run in runs})
    totals = {"held": 0, "short": 0, "no promise": 0, "none": 0}
    for (name, network), noise, way in itertools.product(keys, NOISES, (*WAYS, ORACLE)):
        key = {"data": name, "network": network, "noise": noise, "way": way}
        some = [run for run in runs if key.items() <= run.items()]
        if not some:
            continue
        accuracy, texts = np.mean([run["accuracy"] for run in some]), []
        for asked in PRECISIONS:
            if way == ORACLE or noise == "clean":
                listed = 0 if way == ORACLE else sum(run["lists"][str(asked)][0] for run in some)
                texts.append("" if way == ORACLE else f"{listed} listed")
                continue
            texts.append(cell(some, asked))
            verdict = texts[-1].strip()
            totals[verdict if verdict in totals else "short" if "!" in verdict else "held"] += 1
        print(f"{name:9}{network:8}{noise:11}{way:10} " + "".join(f"{text:16}" for text in texts) + f"{accuracy:.3f}")
    print("cells: " + ", ".join(f"{count} {name}" for name, count in totals.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="clusters with the narrow network, one seed")
    parser.add_argument("--data", choices=DATA, action="append")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--noise", choices=NOISES, action="append")
    parser.add_argument("--way", choices=(*WAYS, ORACLE), action="append")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--keep", type=Path, help="file of runs, to take up and to add to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.keep
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []
    done = {tuple(run[part] for part in ("data", "network", "noise", "way", "seed")) for run in runs}
    every = itertools.product(
        given.data or (["clusters"] if given.quick else DATA),
        given.network or (["narrow"] if given.quick else NETWORKS),
        given.noise or NOISES, given.way or (*WAYS, ORACLE), given.seeds or (SEEDS[:1] if given.quick else SEEDS),
    )  # fmt: skip
    for one in every:
        if one not in done and one[2:4] != ("clean", ORACLE):
            runs.append(measured(*one))
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    show(runs)


if __name__ == "__main__":
    main()
