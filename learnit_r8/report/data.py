"""The data of a report: the events of the run, folded, and a comparison of its samples files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dashboard.state.run_state import State
from ..dashboard.state.view import View
from ..dashboard.watch import look
from ..journal.run import Run
from ..journal.samples import Samples, more_before, readable_samples, sample_epochs
from ..table.labels.overview import Overview
from ..table.labels.suspects import Suspects

LISTED = 30
MOST_SUSPECTS = 1000
IN_GALLERY = 48


class Row(NamedTuple):
    """A sample in a table.

    Attributes:
        number: Position of the sample.
        name: Name of the sample, else its position.
        loss, last, mean: Estimate, last and mean observation.
        uses: Number of times the sample was learned from.
        history: Last observation in each of the kept epochs.
        why: Reason for suspicion; "" if the sample is no suspect.
        score: Score of a suspect; else NaN.
        given, suggested: The label that it was trained on, and that which it should have; "" where unknown.
        votes: Visits at which the suggested label was predicted, at least; 0 if unknown.
    """

    number: int
    name: str
    loss: float
    last: float
    mean: float
    uses: int
    history: list[float]
    why: str
    score: float = math.nan
    given: str = ""
    suggested: str = ""
    votes: int = 0


class SamplesData(NamedTuple):
    """What the samples files of a run say, or a table while it learns.

    Attributes:
        newest: The newest samples.
        verdict: The verdict on wrong labels by them.
        history: float32[F, N], the last observation of every sample in each samples file.
        more_before: An epoch with more suspects, and how many; "" without one.
        hardest: The samples with the highest loss.
        suspects: The samples that look mislabelled; empty unless losses are exact.
        ranked: The suspects, or where there are none the samples with the highest mean loss; empty unless losses are
            exact.
        confusion: The suspects by label given and suggested; None where no label is suggested.
        overview: How every sample was learnt; None without predictions.
    """

    newest: Samples
    verdict: Suspects
    history: NDArray[np.float32]
    more_before: str = ""
    hardest: Sequence[Row] = ()
    suspects: Sequence[Row] = ()
    ranked: Sequence[Row] = ()
    confusion: Confusion | None = None
    overview: Overview | None = None

    @classmethod
    def of(cls, files: Sequence[Samples], precision: float) -> SamplesData:
        """What samples files say, oldest first, at least one."""
        samples = files[-1]
        verdict = samples.suspects(precision)
        data = cls(samples, verdict, np.stack([samples.last for samples in files]))
        ranked = verdict.indices if len(verdict.indices) else samples.ranking(IN_GALLERY).indices
        # The labels that look wrong, and what they should be; none of numbers, of which hardly any come again.
        given, suggested = samples.labels(verdict.indices, verdict) if verdict.given.dtype.kind != "f" else ([], [])
        if verdict.places is not None:
            given, suggested = verdict.places.given.tolist(), verdict.places.suggested.tolist()
        overview = samples.overview()
        return data._replace(
            more_before=more_before(files, verdict, precision),
            hardest=data.rows(samples.hardest(LISTED)),
            suspects=data.rows(verdict.indices[:MOST_SUSPECTS]),
            confusion=confusion_of(map(label_text, given), map(label_text, suggested)),
            ranked=data.rows(ranked[:IN_GALLERY]) if samples.is_exact else (),
            overview=overview if overview.is_known else None,
        )

    def rows(self, chosen: NDArray[np.int64]) -> list[Row]:
        """What is known of some samples, for a table or a gallery."""
        samples, verdict = self.newest, self.verdict
        suspects = verdict.indices.tolist()
        reasons, scores = dict(zip(suspects, verdict.why, strict=True)), dict(zip(suspects, verdict.score, strict=True))
        votes = dict(zip(suspects, verdict.votes.tolist(), strict=False))
        columns = (samples.loss, samples.last, samples.mean)
        rows = []
        for index, given, predicted in zip(chosen.tolist(), *samples.labels(chosen, verdict), strict=True):
            loss, last, mean = (float(column[index]) for column in columns)
            history, suggested = self.history[:, index].astype(float).tolist(), "" if predicted == given else predicted
            uses, why, score = int(samples.usage_count[index]), reasons.get(index, ""), scores.get(index, math.nan)
            labels = label_text(given), label_text(suggested), votes.get(index, 0)
            rows.append(Row(index, samples.name_of(index), loss, last, mean, uses, history, why, float(score), *labels))
        return rows


class ReportData(NamedTuple):
    """The content of a report.

    Attributes:
        run: The run folder, read to its end.
        view: The events, folded.
        state: The state of the run.
        notes: Reasons why something is not shown.
        samples: What the samples files say; None without any.
    """

    run: Run
    view: View
    state: State
    notes: list[str]
    samples: SamplesData | None


def report_data(run_dir: str | os.PathLike[str], precision: float = 0.5) -> ReportData:
    """Read a run folder for a report.

    Args:
        run_dir: The folder.
        precision: As for `SampleTable.suspects`.

    Raises:
        UnreadableRun: the folder holds no run.
    """
    run, view, state = look(run_dir)
    notes: list[str] = []
    files = _readable(run.folder, notes)
    return ReportData(run, view, state, notes, SamplesData.of(files, precision) if files else None)


def _readable(folder: Path, notes: list[str]) -> list[Samples]:
    """The readable samples files of the newest data set, oldest first."""
    files: list[Samples] = []
    for samples in readable_samples(folder, reversed(sample_epochs(folder)), notes):
        if files and len(samples.loss) != len(files[0].loss):
            notes.append(f"epoch {samples.epoch + 1} has {len(samples.loss)} samples, the newest {len(files[0].loss)}")
            continue
        # A journal never writes infinities.
        values = {name: getattr(samples, name) for name in ("loss", "last", "mean")}
        values = {name: np.where(np.isfinite(array), array, np.float32("nan")) for name, array in values.items()}
        files.append(samples._replace(**values))
    return files[::-1]


def label_text(label: object) -> str:
    """A label as text; "" for None."""
    return "" if label is None else str(label)


MOST_CONFUSED = 12


class Confusion(NamedTuple):
    """How many suspects with each label should have each other one.

    Attributes:
        labels: K labels; the last stands for "others" where there are more than 12.
        counts: int64[K, K], suspects by the label given, and the one suggested.
    """

    labels: list[str]
    counts: NDArray[np.int64]


def confusion_of(given: Iterable[str], suggested: Iterable[str], numbers: Sequence[int] = ()) -> Confusion | None:
    """Count pairs of different labels; None if no such pair is known.

    Args:
        given, suggested: K texts each, "" where unknown.
        numbers: How often each pair counts, K of them; by default once.
    """
    pairs, counts = Counter[tuple[str, str]](), Counter[str]()
    for one, other, number in zip(given, suggested, numbers or repeat(1), strict=False):
        if one and other and one != other:
            pairs[one, other] += number
            counts.update({one: number, other: number})
    if not pairs:
        return None
    names = sorted(counts, key=lambda name: (-counts[name], name))
    # Numbers first, in their order.
    kept = sorted(names[:MOST_CONFUSED], key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))
    labels = kept + (["others"] if len(names) > len(kept) else [])
    places = {name: place for place, name in enumerate(kept)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for (one, other), number in pairs.items():
        matrix[places.get(one, len(kept)), places.get(other, len(kept))] += number
    return Confusion(labels, matrix)
