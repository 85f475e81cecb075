"""What `SampleTable.suspects` finds with other kinds of labels, beside cleanlab's functions for them.

    pip install ".[benchmarks]"
    python benchmarks/label_kinds.py [--quick] [--kind tokens] [--seeds 1 2 3] [--keep FILE]

Several labels a sample (pairs of digits on one canvas, one label in ten flipped), tokens (rows of digits, one in ten
renamed), masks (digits on a canvas, one in ten missing or called another), regression (housing, one target in twenty
exchanged; needs LEARNIT_R8_DATA), words that repeat and have one tag (4 % wrong), topics of texts, clear and faint ones
(1.1 % of the labels flipped), and, without cleanlab, masks of one class (outlines that are missing or another's). Asked
at the end of one training. cleanlab gets probabilities out of sample, from 5-fold cross-validation of the same network,
5 / 4 of the epochs each: five times the visits. Its functions: `find_multilabel_issues_per_class`, `find_label_issues`
of tokens and of segmentation; for numbers `CleanLearning.find_label_issues`, which trains itself. Bounds are those of
90 % on one side, with samples as the units, as errors in one mask are not independent. The rules were chosen with seeds
100 to 105, those for words and topics with 1 to 5 too; those are never run here, nor is 400, whose masks were looked at
when the rules for pixels that are wrong together and for the background were made.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_kinds_tasks import DATA, KINDS, Kind, visits
from numpy.typing import NDArray

from learnit_r8 import R8Scheduler
from learnit_r8.torch.predictions import predictions_of

PRECISIONS = (0.5, 0.7, 0.9)
SEEDS = (501, 502, 503)

FOLDS, ONE_SIDED = 5, 1.2816
Bools = NDArray[np.bool_]


def trained(kind: Kind, x: Any, given: NDArray[Any], seed: int) -> R8Scheduler:
    """One training, whose predictions are reported."""
    r8 = R8Scheduler(
        len(given), batch_size=kind.batch_size, num_epochs=kind.epochs, initial_lr=kind.lr, policy="shuffle", seed=seed
    )
    tickets: list[Any] = []

    def order() -> Any:
        while not r8.is_over:
            tickets.append(r8.draw())
            yield tickets[-1].indices.copy()

    labels = torch.from_numpy(given)
    for chosen, outputs, losses in visits(kind, x, given, seed, epochs=kind.epochs, order=order()):
        said = predictions_of(outputs, labels[torch.from_numpy(chosen)], kind.kind)
        r8.report(tickets.pop(), losses.numpy(), predictions=said)
    return r8


def cross_validated(kind: Kind, x: Any, given: NDArray[Any], seed: int) -> list[NDArray[Any]]:
    """What networks say of the samples that they were not trained on."""
    fold, found = np.random.default_rng([3, seed]).permutation(len(given)) % FOLDS, [np.empty(0)] * len(given)
    for held_out in range(FOLDS):
        kept, rest = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        run = visits(kind, x[torch.from_numpy(kept)], given[kept], seed, epochs=kind.epochs * FOLDS // (FOLDS - 1))
        network = None
        while network is None:
            try:
                next(run)
            except StopIteration as ended:
                network = ended.value
        for part in np.array_split(rest, 20):
            with torch.no_grad():
                outputs = network(x[torch.from_numpy(part)])
            for index, output in zip(part.tolist(), outputs.numpy(), strict=True):
                found[index] = output
    return found


def softmax(scores: NDArray[Any], axis: int) -> NDArray[Any]:
    raised = np.exp(scores.astype(np.float64) - scores.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)


def rival(name: str, given: NDArray[Any], outputs: list[NDArray[Any]]) -> tuple[Bools, NDArray[Any]]:
    """cleanlab's verdict on every label, and its order, higher for more suspect ones."""
    if name in ("several labels", "clear topics", "faint topics"):
        from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

        chance = 1 / (1 + np.exp(-np.stack(outputs).astype(np.float64)))
        found = find_multilabel_issues_per_class([np.flatnonzero(row).tolist() for row in given], chance, n_jobs=1)
        return np.asarray(found).reshape(-1), -np.where(given > 0, chance, 1 - chance).reshape(-1)
    if name in ("tokens", "words"):
        from cleanlab.token_classification.filter import find_label_issues

        lengths = (given >= 0).sum(1).tolist()
        chances = [softmax(each, 1)[:length] for each, length in zip(outputs, lengths, strict=True)]
        labels = [row[:length].tolist() for row, length in zip(given, lengths, strict=True)]
        flagged, score = np.zeros(given.shape, bool), np.full(given.shape, -1.0)
        for row, place in find_label_issues(labels, chances, n_jobs=1):
            flagged[row, place] = True
        for row, (own, chance) in enumerate(zip(labels, chances, strict=True)):
            score[row, : len(own)] = -chance[np.arange(len(own)), own]
        return flagged.reshape(-1), score.reshape(-1)
    if name == "masks":
        from cleanlab.segmentation.filter import find_label_issues as find_pixels

        chance = np.stack([softmax(each, 0) for each in outputs]).astype(np.float32)
        flagged = find_pixels(given, chance, downsample=1, n_jobs=1, verbose=False)
        return flagged.reshape(-1), -np.take_along_axis(chance, given[:, None], 1).reshape(-1)
    raise ValueError(f"name must be a kind that cleanlab knows, got {name!r}.")


def rival_of_numbers(kind: Kind, x: Any, given: NDArray[Any], seed: int) -> tuple[Bools, NDArray[Any]]:
    """cleanlab's verdict on numbers, and its order: it trains the network anew for each fold and each share of errors.

    Without its bootstraps, which would take five more trainings, and with three shares in place of eight.
    """
    from cleanlab.regression.learn import CleanLearning
    from sklearn.base import BaseEstimator

    class Network(BaseEstimator):  # type: ignore[misc]
        def fit(self, x: Any, y: Any) -> Any:
            run = visits(kind, torch.from_numpy(x), y.astype(np.float32), seed, epochs=kind.epochs)
            while True:
                try:
                    next(run)
                except StopIteration as ended:
                    self.network_ = ended.value
                    return self

        def predict(self, x: Any) -> Any:
            with torch.no_grad():
                return self.network_(torch.from_numpy(x))[:, 0].numpy()

    rival = CleanLearning(Network(), n_boot=0, seed=seed)
    found = rival.find_label_issues(x.numpy(), given, coarse_search_range=[0.01, 0.05, 0.1], fine_search_size=0)
    return found["is_label_issue"].to_numpy(), -found["label_quality"].to_numpy()


def recall_at(precision: float, score: NDArray[Any], wrong: Bools) -> float:
    """The recall of the longest beginning of an order in which this share is wrong."""
    found = np.cumsum(wrong[np.argsort(-score, kind="stable")])
    enough = np.flatnonzero(found >= precision * np.arange(1, len(found) + 1))
    return float(found[enough[-1]] / wrong.sum()) if len(enough) else 0.0


def order_of(r8: R8Scheduler, size: int) -> NDArray[Any]:
    """float64[N P], the margins of all labels, by which the lists are cut."""
    from learnit_r8.table.labels.margins import margins_of

    evidence = r8.table.read_evidence()
    assert evidence is not None
    score = np.where(evidence["visits"] > 0, margins_of(evidence).of(evidence), -np.inf)
    wide: NDArray[Any] = np.full((len(r8.table), size // len(r8.table)), -np.inf)
    wide[:, : len(score) // len(r8.table)] = score.reshape(len(r8.table), -1)
    return wide.reshape(-1)


def measured(name: str, seed: int, *, is_clean: bool, with_rival: bool) -> dict[str, Any]:
    """All figures of one run."""
    kind, rng = KINDS[name], np.random.default_rng([5, seed])
    x, true = kind.load(rng)
    given = true if is_clean else kind.spoil(true, rng)
    began = time.process_time()
    r8 = trained(kind, x, given, seed)
    seconds, wrong = time.process_time() - began, (given != true).reshape(len(true), -1)
    run: dict[str, Any] = {
        "kind": name, "seed": seed, "clean": is_clean, "labels": int((given >= 0).sum() if name == "tokens" else
        given.size), "wrong": int(wrong.sum()), "seconds": seconds, "lists": {},
    }  # fmt: skip
    for asked in PRECISIONS:
        found = r8.table.suspects(asked)
        at = found.places
        is_wrong = wrong[found.indices, 0] if at is None else wrong[at.indices, at.places]
        sample = found.indices if at is None else at.indices
        listed = np.bincount(sample, minlength=len(true)).astype(float)
        right = np.bincount(sample, is_wrong, len(true)).astype(float)
        run["lists"][str(asked)] = [float(listed.sum()), float(right.sum()), *(float(a @ b) for a, b in (
            (listed, listed), (listed, right), (right, right)))]  # fmt: skip
        if not is_clean:
            most = recall_at(asked, order_of(r8, wrong.size), wrong.reshape(-1))
            run.setdefault("shares", {})[str(asked)] = float(right.sum() / wrong.sum() / most) if most else None
        if asked == PRECISIONS[0] and not is_clean:
            better = np.asarray(found.suggested if at is None else at.suggested)
            truth = true.reshape(len(true), -1)[sample, 0 if at is None else at.places]
            near = np.abs(better - truth) < 0.5 if name == "regression" else better == truth
            run["suggested"] = [int(near[is_wrong].sum()), int(is_wrong.sum())]
            run["precision"] = float(is_wrong.mean()) if len(sample) else 1.0
            run["recall"] = float(right.sum() / wrong.sum())
    if with_rival and not is_clean and name != "masks of one class":
        began = time.process_time()
        if name == "regression":
            flagged, order = rival_of_numbers(kind, x, given, seed)
        else:
            flagged, order = rival(name, given, cross_validated(kind, x, given, seed))
        flat = wrong.reshape(-1)
        precision = float(flat[flagged].mean()) if flagged.any() else 1.0
        run["rival"] = {
            "seconds": time.process_time() - began, "order": recall_at(run["precision"], order, flat),
            "precision": precision, "recall": float(flat[flagged].sum() / flat.sum()),
            "ours": recall_at(precision, order_of(r8, flat.size), flat),
        }  # fmt: skip
    return run


def pooled(runs: list[dict[str, Any]], asked: float) -> str:
    """Listed, precision with its lower bound, and recall of the lists of all runs."""
    listed, right, *squares = (sum(run["lists"][str(asked)][part] for run in runs) for part in range(5))
    if not listed:
        return "nobody"
    precision = right / listed
    error = math.sqrt(squares[2] - 2 * precision * squares[1] + precision**2 * squares[0]) / listed
    recall = right / sum(run["wrong"] for run in runs)
    return f"{listed:,.0f} listed, {precision:.3f} (>= {precision - ONE_SIDED * error:.3f}), recall {recall:.3f}"


def show(name: str, runs: list[dict[str, Any]]) -> None:
    noisy, clean = ([run for run in runs if run["clean"] is is_clean] for is_clean in (False, True))
    print(f"\n{name}: {len(noisy)} seeds, {noisy[0]['labels']:,} labels, {noisy[0]['wrong']:,} of them wrong")
    for asked in PRECISIONS:
        shares = [share for run in noisy if (share := run.get("shares", {}).get(str(asked))) is not None]
        of_order = f", {np.mean(shares):.2f} of what the order could give" if shares else ""
        print(f"  asked {asked}: {pooled(noisy, asked)}{of_order}")
    total, most = sum(run["labels"] for run in clean), [run["lists"]["0.5"][0] for run in clean]
    print(f"  clean: {sum(most):,.0f} of {total:,} listed, {sum(most) / total:.3%}; most of a run {max(most):,.0f}")
    right, found = (sum(run["suggested"][part] for run in noisy) for part in (0, 1))
    print(f"  suggestions right: {right / max(1, found):.3f}")
    both = [run for run in noisy if "rival" in run]
    if both:
        ours, theirs = (np.mean([pick(run) for run in both]) for pick in (
            lambda run: run["recall"], lambda run: run["rival"]["order"]))  # fmt: skip
        cost = np.mean([run["rival"]["seconds"] / run["seconds"] for run in both])
        print(f"  recall at .5 {ours:.3f}; cleanlab's order at that precision {theirs:.3f}; its CPU time {cost:.1f} x")
        figures = (np.mean([run["rival"][part] for run in both]) for part in ("precision", "recall", "ours"))
        print("  cleanlab's list: precision {:.3f}, recall {:.3f}; ours at that precision {:.3f}".format(*figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tokens, one seed, without cleanlab")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--alone", action="store_true", help="without cleanlab")
    parser.add_argument("--keep", type=Path, help="file of runs, to take up and to add to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.keep
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []
    done = {(run["kind"], run["seed"], run["clean"]) for run in runs}
    for name in given.kind or (["tokens"] if given.quick else KINDS):
        if name == "regression" and not (DATA / "california_housing.csv").is_file():
            print(f"regression is left out: no california_housing.csv in {DATA}; LEARNIT_R8_DATA says where it is.")
            continue
        for seed in given.seeds or (SEEDS[:1] if given.quick else SEEDS):
            for is_clean in (False, True):
                if (name, seed, is_clean) not in done:
                    runs.append(measured(name, seed, is_clean=is_clean, with_rival=not (given.quick or given.alone)))
                    if path is not None:
                        with path.open("a") as file:
                            file.write(json.dumps(runs[-1]) + "\n")
        show(name, [run for run in runs if run["kind"] == name])


if __name__ == "__main__":
    main()
