"""What policies do to the result, on real data, against the only fair baseline: a plain shuffle with as many visits.

    python benchmarks/learning.py [--results PATH] [--jobs 2] [--tasks digits ...]   run what PATH lacks, then print
    python benchmarks/learning.py --tune           choose the peak learning rates below, on other seeds
    python benchmarks/learning.py --table [PATH]   print the tables of a finished run, by default that of learning.jsonl
    python benchmarks/learning.py --pack PATH      one line for all the seeds of a cell, to be kept in the repository
    python benchmarks/learning.py --quick          a minute or less: digits, and a glance at the others

Every method has the same number of sample visits as the baseline, the same schedule compressed to them, and a peak
rate of its own: the best of a grid on clean labels, on the digits over all budgets, else at half the visits (on
CIFAR-10 the baseline's for all four); with "own rates" the best for the very labels and budget. The rates
(learning_rates.json) were chosen on seeds 400 to 403. The gates of the policies were chosen on the digits, seeds 0 to
4, 20 to 31, 100 to 115 and 200 to 207; variants of them were looked at, and changed nothing, on seeds 500 to 515, on
houses and clean images too. What is printed are seeds 300 and up: splits of the data, first weights, orders and wrong
labels. Differences are paired by seed. A run can be stopped and taken up again: each training is a line of the file.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from learning_runs import METHODS, WITH_GROUPS, Job, Line, packed, read, run_all
from learning_table import Results, gap_table, main_table, markdown, rarest_table, suspects_table, visits_table
from learning_tasks import DATA, TASKS

KEPT, RATES = (Path(__file__).with_name(name) for name in ("learning.jsonl", "learning_rates.json"))
Rates = dict[str, dict[str, float]]
"""Peak learning rate by key and method."""

BUDGETS = (25, 50, 100)
FIRST_SEED, TUNING_SEEDS = 300, (400, 401, 402, 403)
SLOW = {"housing": 2, "shakespeare": 1, "CIFAR-10": 2}
"""Tasks whose runs take long: tuned at half the visits, with so many seeds."""

GUARDED = "focus + guard"
FOUR = ("shuffle", "balanced", "focus", GUARDED)
NO_LABELS = tuple(name for name in METHODS if name not in (GUARDED, *WITH_GROUPS))
COMPARED = {
    "digits": tuple(METHODS),
    "housing": NO_LABELS,
    "shakespeare": ("shuffle", "balanced", "focus", "InfoBatch"),
    "CIFAR-10": FOUR,
}
OWN_RATES = ", own rates"
"""Ends the names of settings whose rates are tuned on these labels for each budget; else on clean ones for all."""


def rates_key(task: str, setting: str, budget: int) -> str:
    """Where the rates are, in the file of the rates."""
    return f"{task}, {setting}, {budget} %" if setting.endswith(OWN_RATES) else task


def rate_of(rates: Rates, job: Job) -> float:
    """The peak rate of a job; that of the baseline where its method was not tuned, a guess before any was."""
    task = TASKS[job.task]
    known = rates.get(rates_key(job.task, job.setting, job.budget), {})
    same = "focus" if job.method == GUARDED else "shuffle"
    guess = task.grid[len(task.grid) // 2]
    return next((known[name] for name in (job.method, same, "shuffle") if name in known), guess)


def jobs_for(task: str, seeds: Sequence[int], rates: Rates) -> list[Job]:
    """All the trainings of a task."""
    found = []
    for method in COMPARED[task]:
        for setting in TASKS[task].settings:
            # On these labels only the suspects are looked at, in a plain shuffle at full budget.
            only_suspects = setting == "10 % wrong"
            if only_suspects and method != "shuffle":
                continue
            found += [
                Job(task, setting, budget, method, seed, 0.0)
                for seed in seeds
                for budget in reversed(BUDGETS[-1:] if only_suspects else BUDGETS)
            ]
    return [job._replace(lr=rate_of(rates, job)) for job in found]


def tuning_jobs(task: str) -> dict[str, list[Job]]:
    """Trainings to choose rates from, by the key of the rates."""
    is_slow = task in SLOW
    seeds, budgets = (TUNING_SEEDS[: SLOW[task]], BUDGETS[1:2]) if is_slow else (TUNING_SEEDS, BUDGETS)
    # Of the slow ones those that visit the same samples, or nearly, share their rate; and images take longest.
    methods = [name for name in COMPARED[task] if not (is_slow and name in ("balanced", GUARDED))]
    methods = methods[:1] if task == "CIFAR-10" else methods
    found: dict[str, list[Job]] = {}
    for setting in TASKS[task].settings:
        if setting != "clean" and not setting.endswith(OWN_RATES):
            continue
        for budget in budgets:
            found.setdefault(rates_key(task, setting, budget), []).extend(
                Job(task, setting, budget, name, seed, lr)
                for name in methods
                for lr in TASKS[task].grid
                for seed in seeds
            )
    return found


def tuned(key: str, lines: Sequence[Line]) -> dict[str, float]:
    """The best rate of each method, after printing the mean result at each rate."""
    task = TASKS[lines[0]["task"]]
    best: dict[str, float] = {}
    rows = []
    for method in dict.fromkeys(line["method"] for line in lines):
        means = {
            lr: statistics.mean(line["result"] for line in lines if (line["method"], line["lr"]) == (method, lr))
            for lr in task.grid
        }
        best[method] = (min if task.is_loss else max)(means, key=means.__getitem__)
        rows.append([key, method, *(f"{value:.5g}" for value in means.values()), str(best[method])])
    print(markdown(["rates of", "method", *map(str, task.grid), "best"], rows), flush=True)
    return best


def tables(lines: Sequence[Line]) -> str:
    """All that some lines say, as Markdown."""
    results = Results(lines)
    methods = [name for name in METHODS if name != "shuffle"]
    rates = {(rates_key(line["task"], line["setting"], line["budget"]), line["method"]): line["lr"] for line in lines}
    rows = [
        [key, "", *(str(rates.get((key, method), "")) for method in METHODS)]
        for key in dict.fromkeys(key for key, _ in rates)
    ]
    parts = {
        "Against a plain shuffle with as many visits": main_table(results, methods),
        "The five rare classes alone": rarest_table(results, methods),
        "Wrong labels against right ones": gap_table(results, methods),
        "Visits to reach the full-budget result of the shuffle": visits_table(results, methods),
        "Suspects": suspects_table(results),
        "Peak learning rates": markdown(["rates of", "", *METHODS], rows),
    }
    return "\n\n".join(f"## {title}\n\n{NOTES.get(title, '')}\n\n{table}" for title, table in parts.items())


NOTES = {
    "Against a plain shuffle with as many visits": (
        "Mean paired difference ± its standard error, positive where better; **bold**: more than two standard errors "
        "above zero; †: significantly worse (one-sided paired t test, Holm over the cells of the method, clean ones "
        "apart, p < 0.05)."
    ),
    "The five rare classes alone": "The same for the accuracy on the classes that kept one sample in ten.",
    "Wrong labels against right ones": (
        "Accuracy at full budget less that of a plain shuffle trained on the right labels of the same samples."
    ),
    "Visits to reach the full-budget result of the shuffle": (
        "Within 0.2 points, or 1 % of the loss, on the mean curve at full budget; for the shuffle as a share of all "
        "visits, for the others over the shuffle's own."
    ),
    "Suspects": "Asked after epoch 5 of a plain shuffle at full budget: mean (lowest .. highest) over the seeds.",
    "Peak learning rates": (
        "The best of a grid, on seeds 400 to 403: on clean labels, but for own rates; on CIFAR-10 that of the shuffle."
    ),
}


def quick() -> None:
    """Everything but the images once, as small as it goes."""
    lines = []
    for task in filter(is_here, ("digits", "housing", "shakespeare")):
        seeds = range(FIRST_SEED, FIRST_SEED + (2 if task == "digits" else 1))
        jobs = jobs_for(task, seeds, read_rates())
        if task == "digits":
            jobs = [job for job in jobs if job.setting in ("clean", "10 % wrong", "20 % wrong", "5 rare classes")]
        else:
            jobs = [job for job in jobs if job.budget == BUDGETS[0] and job.method in ("shuffle", "focus")]
        lines += run_all(jobs, None, 1)
    print(tables(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute or less")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates")
    parser.add_argument("--table", nargs="?", const=KEPT, type=Path, help="print the tables of a file")
    parser.add_argument("--pack", type=Path, help="print a file with one line for all the seeds of a cell")
    parser.add_argument("--results", type=Path, help="file of the lines, taken up where it ends")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="all by default")
    parser.add_argument("--seeds", type=int, help="number of seeds; by default 20, 8, 3, 3")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    asked = parser.parse_args()
    if asked.table:
        print(tables(read(asked.table)))
    elif asked.pack:
        for line in packed(read(asked.pack)):
            print(json.dumps(line))
    elif asked.quick:
        quick()
    elif asked.tune:
        tune_tasks(asked)
    else:
        run_tasks(asked)


def run_tasks(asked: argparse.Namespace) -> None:
    """Run what is missing, print the tables."""
    lines = []
    rates = read_rates()
    for task in filter(is_here, asked.tasks):
        count = asked.seeds or TASKS[task].seeds
        answers = run_all(jobs_for(task, range(FIRST_SEED, FIRST_SEED + count), rates), asked.results, asked.jobs)
        print(f"{task}: {len(answers)} runs, {sum(line['seconds'] for line in answers):.0f} s", file=sys.stderr)
        lines += answers
    print(tables(lines))


def tune_tasks(asked: argparse.Namespace) -> None:
    """Choose rates, print what they were chosen from, and keep them."""
    for task in filter(is_here, asked.tasks):
        for key, jobs in tuning_jobs(task).items():
            best = tuned(key, run_all(jobs, asked.results, asked.jobs))
            RATES.write_text(json.dumps(read_rates() | {key: best}, indent=1, ensure_ascii=False) + "\n")


def read_rates() -> Rates:
    rates: Rates = json.loads(RATES.read_text()) if RATES.is_file() else {}
    return rates


def is_here(task: str) -> bool:
    """Whether a task has its data; says so if not."""
    if not TASKS[task].is_here:
        print(f"{task} left out: {DATA / TASKS[task].file} is not there; LEARNIT_R8_DATA tells where the data are")
    return TASKS[task].is_here


if __name__ == "__main__":
    main()
