"""samples-<epoch>.safetensors: losses and uses of every sample; a reader executes nothing from the file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..events.codec import strict_json
from ..events.samples import count_text
from ..state import codec
from ..state.durable_io import replace
from ..table.label_noise import find_suspects, rank, trust_of
from ..table.labels.evidence import LAYOUTS, combine
from ..table.labels.frame import Column, label_columns, labels_in
from ..table.labels.overview import Overview
from ..table.labels.suspects import MIRROR, Ranking, Suspects
from ..table.labels.trust import PLAIN, WEIGHED, least_trust
from ..table.losses import EXACT
from ..table.quantiles import top
from ..table.table import SampleTable

KEEP_NEWEST = 3
KEEP_OLDER = 8
NUM_NAMES = MOST_LABELS = 1000

_NAME = re.compile(r"samples-(\d{6,9})\.(safetensors|npz)")
_KINDS = {"loss": "<f4", "last": "<f4", "mean": "<f4", "usage_count": "<u2"}
_FIELDS: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in _KINDS.items()}
_LAYOUTS: list[dict[str, np.dtype[Any]]] = [{name: each[name] for name in each.names or ()} for each in LAYOUTS]


class Samples(NamedTuple):
    """Losses and uses of every sample at a step.

    Attributes:
        epoch: The epoch, 0-based.
        step: Steps reported.
        source: Source of the losses: "exact", "parts of 4", "batch means of 32".
        is_exact: Whether the loss of every sample was reported.
        untrained_loss: Loss of an untrained model; NaN if unknown.
        loss, last, mean: float32[N]: estimate, last observation, mean observation; NaN where never seen.
        usage_count: uint16[N].
        names: Names of the samples with the highest losses, by index; empty where samples have no names.
        group: uint16[N], code of the group of each sample; None without groups.
        group_labels: The label of each code, a text or a number; empty without groups, and where they are too many.
        evidence: What predictions say of the labels, the fields of `EVIDENCE` by name, N each, or N P with P
            labels a sample; None without them.
        trust: Which margins may be judged by what weights have left of them, see `table.labels.trust`.
        sample_ids: The names of all samples, in the process that trains; a file holds `names` only.
    """

    epoch: int
    step: int
    source: str
    is_exact: bool
    untrained_loss: float
    loss: NDArray[np.float32]
    last: NDArray[np.float32]
    mean: NDArray[np.float32]
    usage_count: NDArray[np.uint16]
    names: dict[int, str]
    group: NDArray[np.uint16] | None = None
    group_labels: tuple[Any, ...] = ()
    evidence: dict[str, NDArray[Any]] | None = None
    trust: str = PLAIN
    sample_ids: Sequence[Any] | None = None

    def name_of(self, index: int) -> str:
        """Name of a sample, else its index."""
        return self.names.get(index, str(index))

    def hardest(self, k: int) -> NDArray[np.int64]:
        """int64[<= k], the seen samples of highest estimated loss, highest first."""
        return top(self.loss, k)

    def suspects(self, precision: float = 0.5, *, runs: Sequence[Samples] = ()) -> Suspects:
        """Samples that look mislabelled, by these files of other runs, too; see `SampleTable.suspects`."""
        return find_suspects(
            self._asdict(), self.untrained_loss, exact=self.is_exact, by_group=self.group is not None,
            evidence=combine(self.evidence, [run.evidence for run in runs]) if runs else self.evidence,
            precision=precision,
            trust=least_trust(trust_of(each._asdict(), each.evidence, each.trust) for each in (self, *runs)),
        )  # fmt: skip

    def ranking(self, top: int) -> Ranking:
        """Samples in the order of suspicion, which is not a verdict; see `SampleTable.ranking`."""
        return rank(self._asdict(), self.evidence, top)

    def labels(self, chosen: NDArray[np.int64], verdict: Suspects) -> tuple[list[Any], list[Any]]:
        """The labels that some samples were trained on, and those that were predicted; None where unknown.

        Args:
            chosen: int64[K], positions of samples.
            verdict: What `suspects` returned; see `labels_in`.
        """
        return labels_in(self.evidence, self.group, self.group_labels, chosen, verdict)

    def overview(self) -> Overview:
        """How every sample was learnt; see `SampleTable.overview`."""
        return Overview.of(self.last, self.evidence)

    def columns(self, verdict: Suspects) -> dict[str, Column]:
        """The columns of `SampleTable.to_frame`, by this file."""
        names = [self.name_of(index) for index in range(len(self.loss))]
        return label_columns(self._asdict(), verdict, self.evidence, names=names, group_labels=self.group_labels)


def more_before(files: Iterable[Samples], verdict: Suspects, precision: float = 0.5) -> str:
    """Names the epoch whose file has more suspects than the newest one; of several with as many the newest.

    Every view shows the verdict of the newest file, as the run itself would give it. That may have fewer, because a
    model memorises wrong labels in the end. A file in which most samples cannot be judged yet counts only if all files
    are like that.

    Args:
        files: At least one, oldest first.
        verdict: That of the newest.
        precision: As for `SampleTable.suspects`.

    Returns:
        A text; "" without such an epoch.
    """
    found = ((samples, samples.suspects(precision)) for samples in files)
    ranked = [(2 * each.num_judged >= len(file.loss), len(each.indices), file.epoch) for file, each in found]
    _, most, epoch = max(ranked)
    if most <= len(verdict.indices):
        return ""
    return f"more at the end of epoch {epoch + 1}: {most:,} (samples --suspects --epoch)"


def verdict_text(verdict: Suspects) -> str:
    """The number of suspects and the noise rate, or the reason why there are none."""
    if not len(verdict.indices):
        return f"no suspects: {verdict.reason}"
    low, high = verdict.noise_range
    wrong = f"of all labels an estimated {verdict.noise_rate:.1%} are wrong (between {low:.1%} and {high:.1%})"
    about = f", an estimated {verdict.precision:.0%} of them rightly" if verdict.method == MIRROR else ""
    about = f" ({verdict.caution})" if verdict.caution else about
    return f"{count_text(len(verdict.indices), verdict.num_judged)}{about}; {wrong}"


def samples_of(table: SampleTable, epoch: int, step: int) -> Samples:
    """Copies of the losses and uses in a table; a million samples take some 10 ms."""
    storage, labels = table.storage, table.storage.group_labels
    # As JSON can hold them.
    known = [] if labels is None or len(labels) > MOST_LABELS else labels.tolist()
    group = [] if labels is None else ["group"]
    return Samples(
        epoch=epoch, step=step, source=storage.source, is_exact=storage.part_size == EXACT,
        untrained_loss=storage.untrained_loss, names={},
        group_labels=tuple(one if isinstance(one, int) else str(one)[:200] for one in known),
        evidence=table.read_evidence(), trust=storage.trust, sample_ids=storage.sample_ids,
        **table.read(*_FIELDS, *group),
    )  # fmt: skip


def write_samples(folder: Path, pending: Sequence[Samples]) -> None:
    """Write the files of some epochs, each whole, and delete those that are no longer kept.

    Files of later epochs are deleted too: an earlier run in this folder wrote them, or a resumed run will again.

    Raises:
        OSError: a file cannot be written.
    """
    newest = {samples.epoch: samples for samples in pending}
    epochs = sorted({*sample_epochs(folder), *newest})
    keep = set(kept([epoch for epoch in epochs if epoch <= max(newest)]))
    for epoch in sorted(keep & newest.keys()):
        _write(folder, newest[epoch])
    for epoch in set(epochs) - keep:
        (folder / _name(epoch)).unlink(missing_ok=True)


def _write(folder: Path, samples: Samples) -> None:
    names = samples.names
    if samples.sample_ids is not None:
        # Of the samples with the highest losses only.
        named = np.union1d(top(samples.loss, NUM_NAMES), top(samples.mean, NUM_NAMES))
        names = {index: str(samples.sample_ids[index])[:200] for index in named.tolist()}
    told = ("epoch", "step", "source", "is_exact", "untrained_loss", "trust", "group_labels")
    about = {"format": 1, "names": names, **{name: getattr(samples, name) for name in told}}
    arrays = {name: getattr(samples, name).astype(dtype, copy=False) for name, dtype in _FIELDS.items()}
    if samples.group is not None:
        arrays["group"] = samples.group
    if samples.evidence is not None:
        arrays |= samples.evidence
    content = {"about": strict_json(about, non_finite=lambda value: None), **arrays}
    # Not flushed: at the end of a run, the program waits for it.
    replace(folder / _name(samples.epoch), lambda file: codec.write(content, file), durable=False)


def _name(epoch: int) -> str:
    return f"samples-{epoch:06d}.safetensors"


def sample_epochs(folder: Path) -> list[int]:
    """Epochs that have a file, one of an older version too, in order."""
    return sorted({int(match[1]) for match in map(_NAME.fullmatch, os.listdir(folder)) if match})


def kept(epochs: list[int]) -> list[int]:
    """The epochs to keep: the last three, the first, and a few spread evenly in between.

    >>> kept(list(range(100)))[-3:], len(kept(list(range(100))))
    ([97, 98, 99], 11)
    """
    older, newest = epochs[:-KEEP_NEWEST], epochs[-KEEP_NEWEST:]
    while len(older) > KEEP_OLDER:
        line = [*older, newest[0]]
        gaps = [line[i + 1] - line[i - 1] for i in range(1, len(older))]
        del older[1 + gaps.index(min(gaps))]
    return older + newest


def read_samples(folder: Path, epoch: int) -> Samples:
    """Read the file of an epoch.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, no samples file, damaged, or of an older version; at most as much as the file
            holds was read.
    """
    path = folder / _name(epoch)
    if not path.exists() and path.with_suffix(".npz").exists():
        where = str(folder.absolute())
        raise ValueError(
            f"{path.name} must be there, got one of an older version; run learnit-r8 convert {where}, which writes "
            f"{where}-converted."
        )
    try:
        arrays = codec.read(path)
        about = json.loads(arrays.pop("about"))
        names = {int(index): str(name)[:200] for index, name in dict(about["names"]).items()}
        untrained = about["untrained_loss"]
        labels = about["group_labels"]
        return Samples(
            epoch=epoch,
            step=int(about["step"]),
            source=str(about["source"])[:40],
            is_exact=about["is_exact"] is True,
            untrained_loss=math.nan if untrained is None else float(untrained),
            names=names,
            group_labels=tuple(one if type(one) is int else str(one)[:200] for one in list(labels)[:MOST_LABELS]),
            # Older files say only whether losses had weights.
            trust=str(about.get("trust", WEIGHED if about.get("is_weighed") is True else PLAIN))[:40],
            **_fields(arrays),
        )
    except OSError:
        raise
    except Exception as error:
        # Whatever a parser raises, it is a bad file.
        raise ValueError(f"{path.name} must be a whole samples file, got {str(error)[:200]!r}.") from None


def readable_samples(folder: Path, epochs: Iterable[int], reasons: list[str]) -> Iterator[Samples]:
    """The files of some epochs that can be read; ``reasons`` gets why the others cannot."""
    for epoch in epochs:
        try:
            yield read_samples(folder, epoch)
        except (OSError, ValueError) as error:
            reasons.append(str(error))


def _fields(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    size = len(arrays["loss"])
    fields = _FIELDS | ({"group": np.dtype("<u2")} if "group" in arrays else {})
    given: dict[str, Any] | None = None
    there = arrays.keys() & {name for each in _LAYOUTS for name in each}
    if there:
        layout = next((each for each in _LAYOUTS if each.keys() == there), _LAYOUTS[0])
        given = {name: _checked(name, arrays[name], dtype, size, several=True) for name, dtype in layout.items()}
        if len({len(values) for values in given.values()}) > 1:
            raise ValueError(f"fields of the evidence must be of one length, got {sorted(map(len, given.values()))}.")
    found = {name: _checked(name, arrays[name], dtype, size) for name, dtype in fields.items()}
    return {**found, "evidence": given}


def _checked(name: str, array: NDArray[Any], dtype: np.dtype[Any], size: int, *, several: bool = False) -> NDArray[Any]:
    """An array of one value a sample, or with ``several`` of as many as there are."""
    length = array.size if several and size and array.size and not array.size % size else size
    if array.dtype != dtype or array.shape != (length,) or not size:
        raise ValueError(f"{name} must be {dtype}[{size}], got {array.dtype}{list(array.shape)}.")
    return array
