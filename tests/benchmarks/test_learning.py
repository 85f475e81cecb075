"""The parts of benchmarks/learning.py: the peers' rules, the statistics, the tables, taking a run up again."""

import doctest
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.common import candidates, generator

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
pytest.importorskip("torch")
pytest.importorskip("scipy")

import learning
import learning_runs
import learning_table
from learning_peers import ImportanceSampling, InfoBatch
from learning_runs import Job, packed, read, run, run_all
from learning_table import Results, first_reached, holm, main_table, paired, worse_cells
from learning_tasks import Labels, spoilt

from learnit_r8 import Context

LOSSES = np.repeat([0.1, 0.2, 3.0], 1000)
JOB = Job("digits", "clean", 25, "shuffle", 300, 0.1)


def selected(policy, progress=0.5, uses=3):
    """What a policy keeps of thousands of samples with three different losses, and their weights."""
    chunk = candidates(LOSSES, usage_count=np.full(len(LOSSES), uses))
    return policy.select(chunk, Context(progress, 3, 32, 2.3), generator())


def test_infobatch_prunes_half_of_what_is_below_the_mean():
    """Below the mean loss about half is kept, at twice the weight; above it everything, at weight 1."""
    keep, weights = selected(InfoBatch())

    shares = keep.reshape(3, 1000).mean(axis=1)
    assert shares[:2] == pytest.approx([0.5, 0.5], abs=0.06)
    assert shares[2] == 1
    assert weights.reshape(3, 1000).mean(axis=1).tolist() == [2, 2, 1]


def test_infobatch_normalised_does_not_raise_the_mean_step():
    """With normalised weights those of what is kept have a mean of 1, and the same ratio as published."""
    keep, weights = selected(InfoBatch(is_normalised=True))

    assert weights[keep].mean() == pytest.approx(1)
    assert weights[0] / weights[-1] == pytest.approx(2)


def test_infobatch_ends_with_everything():
    """In the last eighth everything is visited, at weight 1; so are samples never seen."""
    for keep, weights in (selected(InfoBatch(), progress=0.9), selected(InfoBatch(), uses=0)):
        assert keep.all()
        assert (weights == 1).all()


def test_importance_sampling_is_unbiased():
    """A sample's chance to be kept times its weight is the same for all: the expected gradient is that of a shuffle."""
    keep, weights = selected(ImportanceSampling())

    product = (keep * weights).reshape(3, 1000).mean(axis=1)
    assert product == pytest.approx(np.full(3, product.mean()), rel=0.15)
    assert keep[-1000:].mean() > 1.5 * keep[:1000].mean()


def test_a_paired_t_test():
    """The mean, its error and the one-sided p are those of the t distribution."""
    result = paired([1.0, 2.0, 3.0, 4.0])

    assert result == pytest.approx((2.5, 0.6455, 0.98477), abs=1e-4)


def test_no_difference_is_not_worse():
    """Runs that are equal to the last bit are not significantly worse; nor is a single one."""
    assert paired([0.0, 0.0, 0.0]).worse == 1
    assert paired([-5.0]).worse == 1


def test_holm_stops_at_the_first_that_fails():
    """The k-th smallest p is held against level / (number - k), and none behind the first failure counts."""
    assert holm([0.012, 0.3, 0.02, 0.04]) == [True, False, False, False]
    assert holm([0.012, 0.015, 0.02, 0.04]) == [True, True, True, True]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("curve", "target", "is_loss", "share"),
    [
        ([50, 70, 90], 40, False, 1 / 3),
        ([50, 70, 90], 80, False, 2.5 / 3),
        ([50, 70, 90], 95, False, None),
        ([3.0, 2.0], 2.5, True, 0.75),
    ],
)
def test_visits_to_a_target(curve, target, is_loss, share):
    """Between two points of a curve the visits are interpolated."""
    reached = first_reached(curve, target, is_loss=is_loss)

    assert reached == (None if share is None else pytest.approx(share))


def lines_of(task, method, results, **more):
    return [
        {"task": task, "setting": "clean", "budget": 50, "method": method, "seed": 300 + k, "lr": 0.1, "result": value}
        | {"seconds": 0.1}
        | more
        for k, value in enumerate(results)
    ]


def test_differences_are_paired_and_positive_where_better():
    """Points of accuracy, and per cent of the loss with its sign turned; a seed without a partner is left out."""
    results = Results(
        [
            *lines_of("digits", "shuffle", [90.0, 92.0]),
            *lines_of("digits", "focus", [91.0, 92.5, 99.0]),
            *lines_of("housing", "shuffle", [0.5]),
            *lines_of("housing", "focus", [0.4]),
        ]
    )

    assert results.compared(("digits", "clean", 50), "focus") == [1.0, 0.5]
    assert results.compared(("housing", "clean", 50), "focus") == pytest.approx([20.0])


def test_the_table_marks_what_is_worse_and_what_is_better():
    """A dagger after a significant loss, bold for a gain of more than two errors, nothing for noise."""
    results = Results(
        [
            *lines_of("digits", "shuffle", [90.0, 90.0, 90.0, 90.0]),
            *lines_of("digits", "balanced", [90.1, 89.8, 90.2, 89.9]),
            *lines_of("digits", "focus", [91.0, 91.1, 91.2, 90.9]),
            *lines_of("digits", "InfoBatch", [88.0, 88.1, 88.2, 87.9]),
        ]
    )

    assert worse_cells(results) == {(("digits", "clean", 50), "InfoBatch")}
    assert main_table(results, ["balanced", "focus", "InfoBatch"]).splitlines()[-1] == (
        "| digits, clean | points | 50 % | 4 | 90.00 | +0.00 ± 0.09 | **+1.05 ± 0.06** | -1.95 ± 0.06 † |"
    )


def test_packed_lines_say_the_same():
    """The tables of packed lines are those of the lines themselves."""
    lines = [
        line | {"curve": [line["result"] / 2] * 19 + [line["result"]], "budget": 100}
        for method, results in (("shuffle", [90.0, 91.0]), ("focus", [91.0, 91.5]))
        for line in lines_of("digits", method, results, suspects={"flagged": 0.125})
    ]

    assert len(packed(lines)) == 2
    assert learning.tables(packed(lines)) == learning.tables(lines)


def test_a_run_is_taken_up_where_it_ended(tmp_path, monkeypatch):
    """What the file has is not run again, a cut last line is, and the answers come in the order of the jobs."""
    path = tmp_path / "lines.jsonl"
    jobs = [JOB, JOB._replace(method="focus")]
    first = run_all(jobs[:1], path, 1)
    with path.open("a") as file:
        file.write('{"task": "dig')
    ran = []
    monkeypatch.setattr(learning_runs, "run", lambda job: ran.append(job) or run(job))
    answers = run_all(jobs, path, 1)

    assert ran == jobs[1:]
    assert answers[0] == first[0]
    assert [line["method"] for line in read(path)] == ["shuffle", "focus"]


def test_runs_repeat():
    """The same job gives the same result."""
    one, other = run(JOB), run(JOB)

    assert one["result"] == other["result"]


def test_labels_are_spoilt_as_asked():
    """The share of wrong labels is exact and each differs from the right one; rare classes keep one in ten."""
    labels = np.arange(10_000) % 10
    kept, wrong, is_wrong = spoilt(labels, Labels(wrong=0.2), seed=1)

    assert len(kept) == 10_000
    assert ((wrong != labels) == is_wrong).all()
    assert is_wrong.mean() == 0.2

    _, rare, _ = spoilt(labels, Labels(is_rare=True), seed=1)
    assert np.bincount(rare, minlength=10)[:5] == pytest.approx(np.full(5, 100), abs=40)
    assert (np.bincount(rare)[5:] == 1000).all()


def test_every_method_has_a_rate():
    """No method of a task is run at a guessed rate, and none at a rate outside the grid."""
    rates = learning.read_rates()
    assert learning.TASKS.keys() <= rates.keys()
    for task in learning.TASKS:
        for job in learning.jobs_for(task, [300], rates):
            assert job.lr in learning.TASKS[task].grid


def test_the_best_rate_is_chosen(capsys):
    """Of the rates of a grid the one with the highest mean accuracy, or the lowest mean loss, and all are printed."""
    chosen = {}
    for task in ("digits", "housing"):
        grid = learning.TASKS[task].grid
        lines = [line | {"lr": lr} for k, lr in enumerate(grid) for line in lines_of(task, "focus", [k, k + 1])]
        chosen[task] = learning.tuned(task, lines)["focus"]

    assert chosen == {"digits": learning.TASKS["digits"].grid[-1], "housing": learning.TASKS["housing"].grid[0]}
    assert "| housing | focus | 0.5 | 1.5 |" in capsys.readouterr().out


def test_the_examples_hold():
    """The examples in the docstrings of the statistics are right."""
    tested = doctest.testmod(learning_table)

    assert tested.attempted >= 4
    assert tested.failed == 0


def test_the_page_says_what_the_file_says():
    """What docs/learning.md claims first is in the tables made from what is kept, rounded."""
    lines = read(learning.KEPT)
    page = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")

    assert all(math.isfinite(value) for line in lines for value in line["result"])
    assert json.dumps(lines[0]) == learning.KEPT.read_text(encoding="utf-8").splitlines()[0]
    made = learning.tables(lines)
    wanted = [row for row in made.splitlines() if "| digits, 20 % wrong | points" in row]
    rows = [re.findall(r"[+-]\d+\.\d\d(?= ±)", row) for row in wanted]
    with_groups = " / ".join(f"{float(row[3]):+.1f}" for row in rows[:3])
    assert with_groups in page
