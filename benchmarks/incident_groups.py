"""The groups of `incidents.py`: their cases, how these are trained, and what is measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from incident_faults import Faults, draw_cluster
from incident_figures import (
    Figure,
    average,
    count,
    measure_beyond,
    measure_equal,
    measure_found,
    measure_healed,
    measure_probes,
    measure_reached,
    measure_share,
    measure_told,
    measure_worse,
    paired_loss,
    points_below,
    ruined,
    within,
    worse_than,
)
from incident_networks import CHANGES
from incident_poison import draw_poison
from incident_runs import Case
from incident_tasks import TASKS

Setting = Callable[[int], Case]
"""From a seed to a case."""


class Group(NamedTuple):
    """A row of the table of figures.

    Attributes:
        title: What goes wrong.
        runs: How many, by default.
        cases: From a number to so many cases.
        arms: The ways to train, in `incident_runs.ARMS`; the package comes last.
        figures: What is measured.
        note: What a reader must know.
    """

    title: str
    runs: int
    cases: Callable[[int], Sequence[Any]]
    arms: tuple[str, ...]
    figures: tuple[Figure, ...]
    note: str = ""


def spread_over(settings: Sequence[Setting]) -> Callable[[int], list[Case]]:
    """All settings in a random order, again and again in the same one; the number of a run is its seed."""
    order = np.random.default_rng(0).permutation(len(settings))

    def cases(number: int) -> list[Case]:
        return [settings[order[n % len(settings)]](n) for n in range(number)]

    return cases


def fixed(**values: Any) -> Setting:
    """A setting whose faults are the same for every seed but for what the seed draws."""
    return lambda seed: Case(seed=seed, **values)


def draw_reports(seed: int) -> str:
    """Exact losses or means."""
    return str(np.random.default_rng([seed, 31]).choice(["means", "exact"]))


DIGITS = ("digits sgd", "digits mlp")
"""Numpy: momentum SGD, and Adam."""


def nan_batches() -> list[Setting]:
    models = (*DIGITS, "curve adam", "norm sgd", "dropout adam", "augmented adam")
    chosen = itertools.product((0.01, 0.03, 0.1, 0.3), models, ("means", "exact"))
    return [
        fixed(model=m, setting=f"{p:.0%} {m}", faults=Faults(nan_share=p), reports=r, policy="balanced")
        for p, m, r in chosen
    ]


def bad_samples() -> list[Setting]:
    chosen = [
        *itertools.product((1, 5, 14, 28, 56), (*DIGITS, "norm sgd"), ("means",), (1.0,)),
        *itertools.product((1, 5, 14, 56, 140, 280), DIGITS, ("exact",), (1.0,)),
        *itertools.product((1, 5, 14), ("norm sgd",), ("exact",), (1.0,)),
        *itertools.product((10,), DIGITS, ("means", "exact"), (0.3, 0.5)),
    ]
    return [
        fixed(model=m, setting=f"{k} {r} {'norm' if m == 'norm sgd' else 'digits'}{'' if p == 1 else ', sometimes'}",
              faults=Faults(bad_samples=k, bad_share=p), reports=r, policy="balanced")
        for k, m, r, p in chosen
    ]  # fmt: skip


def early_nan() -> list[Setting]:
    def at_random(model: str, reports: str, number: int) -> Setting:
        def case(seed: int) -> Case:
            places = np.random.default_rng([seed, number]).choice(20, number, replace=False)
            faults = Faults(nan_at=tuple(map(int, np.sort(places))))
            return Case(model, seed, f"{number} of the first 20", faults, reports)

        return case

    models = list(itertools.product((*DIGITS, "norm sgd"), ("means", "exact")))
    places = ((0,), (0, 1, 2), (1, 3, 5), (10, 12, 14))
    return [
        *(fixed(model=m, setting=f"at {', '.join(map(str, at))}", faults=Faults(nan_at=at), reports=r)
          for at, (m, r) in itertools.product(places, models)),
        *(at_random(*each, number) for number, each in itertools.product((1, 2, 3, 4), models)),
    ]  # fmt: skip


def early_damage() -> list[Setting]:
    chosen = itertools.product((1, 2, 3, 5, 9, 20, 40, 79), DIGITS, ("means", "exact"))
    return [fixed(model=m, setting=f"at {at} {m}", faults=Faults(blow=(at, 1000.0)), reports=r) for at, m, r in chosen]


def clusters(number: int) -> list[Case]:
    cases = []
    for n in range(number):
        place, disk = n // 2, bool(n % 2)
        where = "disk" if disk else "RAM alone"
        model, reports = DIGITS[place % 2], ("means", "exact")[place // 2 % 2]
        faults = Faults(cluster=draw_cluster(place))
        cases.append(Case(model, place, f"{where} {model}", faults, reports, epochs=30, disk=disk))
    return cases


def late_reports(number: int) -> list[Case]:
    """Clusters again, other ones, in loops that report after the update."""
    cases = clusters(2 * number)[1::2]
    return [
        case._replace(seed=case.seed + 1000, setting=case.model, faults=Faults(cluster=draw_cluster(n + 1000)),
                      order="after", disk=False)
        for n, case in enumerate(cases)
    ]  # fmt: skip


def rates() -> list[Setting]:
    chosen = itertools.product((20.0, 100.0, 1000.0), (*DIGITS, "norm sgd", "curve adam", "curve sgd"))
    return [fixed(model=m, setting=f"x {by:g} {m}", faults=Faults(rate=by)) for by, m in chosen]


def clipping() -> list[Setting]:
    nets = ("mlp", "norm", "dropout", "rows", "patches", "curve")
    chosen = itertools.product(nets, ("sgd", "adam", "adamw"), ((1e9, True), (10.0, True), (1.0, True), (1e9, False)))
    return [
        fixed(model=f"{net} {optimizer}", setting=f"{limit:g} {'attach' if adapter else 'own loop'} {optimizer}",
              clip=limit, adapter=adapter, epochs=10,
              # Adam's usual rate, 1e-3, at which norms rise for long.
              faults=Faults(rate=1.0 if optimizer == "sgd" else 0.1))
        for net, optimizer, (limit, adapter) in chosen
    ]  # fmt: skip


def new_levels() -> list[Setting]:
    def setting(name: str, **values: Any) -> Setting:
        return lambda seed: Case(seed=seed, setting=name, reports=draw_reports(seed), epochs=27, **values)

    return [
        *(setting(change, model="mlp adam", change=change) for change in CHANGES),
        setting("own restarts", model="mlp adam", schedule="own restarts"),
        setting("restarts, momentum", model="digits sgd", schedule="own restarts"),
        setting("gan", model="gan"),
    ]


def rewards() -> list[Setting]:
    games = [
        fixed(model=model, setting=model, epochs=400, batch_size=1, schedule="own constant")
        for model in ("reinforce", "actor critic")
    ]
    return [*games, fixed(model="values", setting="values", epochs=18, schedule="own constant")]


def healthy() -> list[Setting]:
    def setting(model: str, name: str = "", **values: Any) -> Setting:
        return lambda seed: Case(model, seed, name or model, reports=draw_reports(seed), **values)

    return [
        *map(setting, TASKS), setting("norm sgd"), setting("dropout adam"), setting("augmented adam"),
        setting("outliers adam"), setting("rows adam", epochs=6), setting("patches adam", epochs=6),
        setting("digits mlp", "clipped to 1e9", clip=1e9), setting("digits sgd", "clipped to 1", clip=1.0),
        setting("mlp adam", "clipped, attach", clip=1.0),
        setting("digits sgd", "own restarts", schedule="own restarts"),
        setting("digits mlp", "own stairs", schedule="own stairs"),
        setting("mlp adam", "own restarts, attach", schedule="own restarts"),
    ]  # fmt: skip


def starts() -> list[Setting]:
    def setting(model: str, size: int, schedule: str) -> Setting:
        return lambda seed: Case(
            model, seed, f"B = {size}", reports=draw_reports(seed), steps=120, batch_size=size, schedule=schedule
        )

    return [setting(*each) for each in itertools.product(TASKS, (1, 2, 8, 32, 64, 256), ("cosine", "constant"))]


def one_nan() -> list[Setting]:
    def setting(model: str) -> Setting:
        def case(seed: int) -> Case:
            at = int(np.random.default_rng([seed, 37]).integers(100, 450))
            return Case(model, seed, model, Faults(nan_at=(at,)), draw_reports(seed))

        return case

    return [setting(model) for model in TASKS]


def false_reports() -> list[Setting]:
    def early(model: str, reports: str) -> Setting:
        def case(seed: int) -> Case:
            rng = np.random.default_rng([seed, 41])
            reported = int(3 * (80 / 3) ** rng.uniform()), float(10 ** rng.uniform(1, 9))
            return Case(model, seed, "x 10 to 1e9 at 3 to 79", Faults(reported=reported), reports)

        return case

    places = ((0, 1e3), (2, 1e3), (25, 1e3), (60, 1e9), (300, 30.0), (300, 1e9))
    ways = list(itertools.product(DIGITS, ("means", "exact")))
    return [
        *(fixed(model=m, setting=f"x {by:g} at {at}", faults=Faults(reported=(at, by)), reports=r)
          for (at, by), (m, r) in itertools.product(places, ways)),
        *(early(*way) for way in ways),
    ]  # fmt: skip


def wrecked_moments() -> list[Setting]:
    chosen = itertools.product(DIGITS, ("means", "exact"))
    return [fixed(model=m, setting=m, faults=Faults(moments_at=300), reports=r) for m, r in chosen]


def poisonings(number: int) -> list[Any]:
    cases = [case for seed in range(-(-number // 80)) for case in draw_poison(seed)]
    order = np.random.default_rng(1).permutation(80)
    return [cases[80 * (n // 80) + order[n % 80]] for n in range(number)]


RESTORES, LOST = average("restores", form=".2f"), average("lost", text="steps undone")
SHARE = Figure(
    "rate in the last third as share of its plan, of runs that got there",
    ">= .97",
    measure_share,
    ("finite", "package"),
)
BEYOND = Figure("backup distances undone beyond the damage, an incident", "<= 2", measure_beyond, ("package",))
OWN = ("package",)


def own(*figures: Figure) -> tuple[Figure, ...]:
    """Figures of the package alone."""
    return tuple(figure._replace(arms=OWN) for figure in figures)


GROUPS = {
    "nan-batches": Group(
        "batches with NaN losses, 1 to 30 %; model and data not touched", 200, spread_over(nan_batches()),
        ("oracle", "plain", "package"),
        (*own(count("gave up", "0")), points_below("oracle", "<= .5"), SHARE, *own(RESTORES, LOST)),
    ),
    "bad-samples": Group(
        "samples with NaN inputs of 1,400, by number", 200, spread_over(bad_samples()),
        ("oracle", "samples", "plain", "package"),
        (*own(count("gave up", "0")), points_below("oracle", "<= 0"), points_below("samples", "aim 0"), SHARE,
         *own(Figure("bad samples quarantined", "", measure_found), RESTORES, LOST)),
        "The oracle leaves out whole batches; 'samples' trains on the good ones only, with as many steps.",
    ),
    "early-nan": Group(
        "NaN at some of the first 20 steps", 200, spread_over(early_nan()), ("oracle", "plain", "package"),
        (*own(count("gave up", "0")), points_below("oracle", "<= .5"), SHARE, *own(RESTORES, LOST)),
    ),
    "early-damage": Group(
        "last weights x 1,000 before one of the steps 1 to 79", 64, spread_over(early_damage()),
        ("oracle", "plain", "package"),
        (*own(count("gave up", "0")), points_below("oracle", "<= .5"), *own(RESTORES, LOST)),
    ),
    "clusters": Group(
        "2 to 8 faults within 250 steps of 1,320", 200, clusters, ("oracle", "plain", "package"),
        (*own(count("gave up", "0")), worse_than(0.95, "oracle", "0"), points_below("oracle"), BEYOND,
         *own(RESTORES, LOST)),
        "The oracle leaves NaN batches out and meets no damage.",
    ),
    "late-reports": Group(
        "the same in loops that report after the update, other clusters", 48, late_reports,
        ("oracle", "plain", "package"),
        (*own(count("gave up", "0")), worse_than(0.95, "oracle", "0"), points_below("oracle"), BEYOND,
         *own(RESTORES, LOST)),
    ),
    "poison": Group(
        "a state poisoned 1 to 8 backups before it shows, once or twice, resumed or not", 240, poisonings, OWN,
        (Figure("healed", "all", measure_healed), Figure("at the newest healthy state", ">= 95 %", measure_reached),
         count("gave up", "0"), RESTORES, LOST),
        "Healed: finite, not poisoned, loss within 10 % of a run without faults at the same rates. A run that goes on\n"
        "poisoned cannot be trained by hand. No probe sees a fuse: it burns down again after each restore to one.",
    ),
    "rates": Group(
        "the rate too high from the start", 80, spread_over(rates()), ("oracle", "plain", "package"),
        (within(3.0, "oracle", "62 of 80, aim 74"), points_below("oracle"), *own(count("gave up"), RESTORES, LOST)),
        "The oracle trains at the rate that was tuned.",
    ),
    "clipping": Group(
        "healthy runs with gradient clipping, the norm reported", 216, spread_over(clipping()), ("plain", "package"),
        own(count("refused", "0", "runs with a refusal"), count("restores", "0", "runs with a restore"),
            paired_loss("plain", "not significant"), ruined("plain", "0")),
        "Plain training clips in the same way.",
    ),
    "new-level": Group(
        "the loss means something else from half-way on", 80, spread_over(new_levels()), ("plain", "finite", "package"),
        (*own(Figure("worse than with FiniteGuard by more than noise", "0", measure_worse)),
         *own(average("lost", "<= 100, aim 20", "steps undone"), RESTORES, count("gave up", "0")),
         points_below("finite")._replace(arms=("plain", "package"))),
        "Noise: twice the standard deviation of FiniteGuard's scores between seeds, at least half a point.",
    ),
    "rewards": Group(
        "losses that need not fall: REINFORCE, actor-critic, Q-learning", 30, spread_over(rewards()),
        ("plain", "finite", "package"),
        (Figure("score equal to plain training to the bit", "finite: all", measure_equal, ("finite", "package")),
         points_below("plain")._replace(arms=("finite", "package")),
         *own(RESTORES, Figure("runs with a restore whose warning names guard=", "all", measure_told))),
        "Scores: mean length of the last 50 episodes, of 200; for Q-learning the mean value.",
    ),
    "healthy": Group(
        "30 tasks in which nothing goes wrong", 300, spread_over(healthy()), ("plain", "package"),
        own(Figure("share of steps that are probes", "<= .5 %", measure_probes),
            count("refused", text="runs with a refusal"), count("restores", "0", "runs with a restore"),
            paired_loss("plain", "not significant"), points_below("plain", "no loss")),
    ),
    "starts": Group(
        "the first 120 steps of 18 tasks in which nothing goes wrong, with and without warm-up", 432,
        spread_over(starts()), ("plain", "package"),
        own(count("refused", text="runs with a refusal"), count("restores", "0", "runs with a restore"),
            Figure("share of steps that are probes", "", measure_probes)),
    ),
    "one-nan": Group(
        "18 tasks in which one loss is NaN", 90, spread_over(one_nan()), ("oracle", "package"),
        own(average("refused", "1", "batches refused"), count("restores", "0", "runs with a restore"),
            count("gave up", "0"), points_below("oracle", "no loss"), SHARE),
    ),
    "false-reports": Group(
        "one loss reported x 10 to x 1e9; the model is not touched", 56, spread_over(false_reports()),
        ("oracle", "package"),
        own(points_below("oracle", "<= .5"), count("gave up", "0"), count("restores", "0", "runs with a restore"),
            LOST),
    ),
    "moments": Group(
        "the optimizer's moments wrecked at step 300", 24, spread_over(wrecked_moments()),
        ("oracle", "plain", "package"),
        (points_below("oracle", "<= .5"), *own(count("gave up", "0"), RESTORES, LOST), BEYOND),
    ),
}  # fmt: skip
