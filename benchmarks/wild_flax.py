"""Well-known examples of Flax in small, with R8 and without: are they left alone, healed, and resumed exactly?

    python benchmarks/wild_flax.py                   all of wild_flax_scripts.py, three places of the fault
    python benchmarks/wild_flax.py --only mnist_linen --quick    one script, one place

The measures are those of `wild.py`. Left alone: weights, optimizer, generators and losses of the script with R8 and
without, compared to the bit. Healed: a NaN is written into the weights before one step; the mean of the last eight
finite losses must be within 10 % of that of the undisturbed run, or within the spread of three undisturbed seeds.
Resumed: cut off after 60 % of the steps, and gone on by a fresh scheduler and a fresh state from the checkpoint on
disk, the run must end with the same bits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import warnings
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
from flax import nnx
from wild_flax_scripts import SCRIPTS, Script

from learnit_r8 import R8Scheduler
from learnit_r8.flax import ManagedState, train_loop

PLACES = (0.1, 0.5, 0.85)
"""Shares of the run at which the fault strikes."""

CUT = 0.6
"""Share of the run after which it is cut off."""


class CutError(Exception):
    """The run ends here."""


def numbers_of(state: Any) -> list[Any]:
    """All numbers of a state."""
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        state = [nnx.state(part) if isinstance(part, nnx.Object) else part for part in state]
    keys = jax.dtypes.prng_key
    return [
        np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, keys) else leaf)
        for leaf in jax.tree.leaves(state)
        if hasattr(leaf, "dtype")
    ]


class Run:
    """One training of a script.

    Args:
        script: What is trained.
        seed: Of its weights and its data.
        r8: A scheduler of the script's own batches; None to train without.
        nan_at: The step before which a NaN is written into the weights, once.
        cut_at: The step after which the run is cut off.

    Attributes:
        losses: Of all steps.
        state: After the last one.
    """

    def __init__(
        self,
        script: type[Script],
        seed: int = 0,
        *,
        r8: R8Scheduler | None = None,
        nan_at: int | None = None,
        cut_at: int | None = None,
    ) -> None:
        self.script, self.r8, self.nan_at, self.cut_at = script(seed), r8, nan_at, cut_at
        self.losses: list[float] = []
        self.state = self.script.fresh()
        try:
            (self.by_train_loop if script.by_train_loop else self.by_hand)()
        except CutError:
            return
        if r8 is not None:
            r8.close()

    def step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """A step, with what happens to it."""
        number = len(self.losses)
        if number == self.nan_at:
            state = self.script.spoil(state)
        state, loss = self.script.step(state, batch)
        self.losses.append(float(np.mean(loss)))
        return state, loss

    def end_step(self) -> None:
        """Cut the run off, where it is time."""
        if len(self.losses) == self.cut_at:
            raise CutError

    def by_hand(self) -> None:
        """The loop that most examples of Flax have; what R8 adds are four lines."""
        script, r8 = self.script, self.r8
        managed = None if r8 is None else ManagedState(r8, self.state)
        for epoch in range(0 if r8 is None else r8.current_epoch, script.epochs):
            data = script.data(epoch, self.now if managed is None else lambda: managed.state)
            for batch in data if r8 is None else r8.batches(data):
                if managed is None:
                    self.state, _ = self.step(self.state, batch)
                else:
                    managed.report(*self.step(managed.for_step(), batch))
                self.end_step()
        self.state = self.state if managed is None else managed.state

    def now(self) -> Any:
        """The state as it is."""
        return self.state

    def by_train_loop(self) -> None:
        """The same by `train_loop`, which gets one more argument."""

        def step(state: Any, batch: Any, key: Any) -> Any:
            state, loss = self.step(state, batch)
            return state, {"loss": loss}

        def after_step(loop_state: Any) -> None:
            self.end_step()

        watched = {} if self.r8 is None else {"scheduler": self.r8}
        self.state, _ = train_loop(
            self.state, step, self.script.data, num_epochs=self.script.epochs, rng_key=jax.random.key(0),
            show_progress=False, callbacks=[after_step], **watched,
        )  # fmt: skip

    @property
    def level(self) -> float:
        """The mean of the last finite losses."""
        last = [loss for loss in self.losses[-8:] if np.isfinite(loss)]
        return statistics.mean(last) if last else float("nan")

    def equals(self, other: Run) -> bool:
        """Whether both have ended with the same bits."""
        pairs = zip(numbers_of(self.state), numbers_of(other.state), strict=True)
        return all(np.array_equal(one, two) for one, two in pairs)


def watch(script: type[Script], **more: Any) -> R8Scheduler:
    """A scheduler of the script's own batches and rates."""
    guard = {} if script.falls else {"guard": "finite"}
    return R8Scheduler(scheduler_mode="keep", handle_signals=False, **guard, **more)


def check(script: type[Script], places: tuple[float, ...]) -> tuple[bool, int, bool | None]:
    """Whether a script is left alone, how many faults were healed, and whether it was resumed exactly; printed."""
    plain, r8 = Run(script), watch(script)
    watched, steps = Run(script, r8=r8), len(plain.losses)
    equal = plain.equals(watched) and plain.losses == watched.losses
    levels = [plain.level, *(Run(script, seed).level for seed in (10, 20))]
    room = max(0.1 * abs(levels[0]), max(levels) - min(levels))
    ends, healed = [], 0
    for place in places:
        run = Run(script, r8=watch(script), nan_at=int(place * steps))
        fine = all(np.isfinite(each).all() for each in numbers_of(run.state) if each.dtype.kind == "f")
        ends.append(run.level)
        healed += fine and run.level <= levels[0] + room
    again = None
    if script.rewinds:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"checkpoint_dir": folder, "checkpoint_every": 7, "resume": "auto"}
            Run(script, r8=watch(script, **settings), cut_at=int(CUT * steps))
            resumed = watch(script, **settings)
            left = steps - resumed.global_step
            run = Run(script, r8=resumed)
            again = len(run.losses) == left < steps and run.equals(watched)
    shown = " ".join(f"{end:.4g}" for end in ends)
    kept = {None: "cannot rewind", True: "yes", False: "NO"}[again]
    refused = r8.sentry.num_refused
    print(
        f"{script.__name__:<16} {steps:>5} {'yes' if equal else 'NO':>5} {refused:>7} {levels[0]:>8.4g} {shown:>26} "
        f"{healed:>3} of {len(places)}  {kept}",
        flush=True,
    )
    return equal, healed, again


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one place of the fault")
    parser.add_argument("--only", nargs="*", default=(), help="names of scripts")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    places = PLACES[1:2] if given.quick else PLACES
    print(f"jax {jax.__version__}, {len(jax.devices())} virtual devices, seeds 0, 10, 20; faults at {places}")
    print(f"{'script':<16} {'steps':>5} {'equal':>5} {'refused':>7} {'loss':>8} {'with a NaN':>26}   healed  resumed")
    found = [check(each, places) for each in SCRIPTS if not given.only or each.__name__ in given.only]
    again = [each for _, _, each in found if each is not None]
    equal, healed = (sum(each[place] for each in found) for place in (0, 1))
    print(
        f"equal to the bit: {equal} of {len(found)}; healed: {healed} of {len(found) * len(places)}; resumed exactly: "
        f"{sum(again)} of {len(again)}"
    )


if __name__ == "__main__":
    main()
