"""What `learnit-r8 prove` finds: planted faults in six scripts, and whether it finds any in scripts that have none.

python benchmarks/prove.py            # 36 faults, and 27 scripts without: about an hour on two cores
python benchmarks/prove.py --quick    # a fault and a script without: half a minute
python benchmarks/prove.py plain      # one script; examples: ours
python benchmarks/prove.py --cost     # what a step costs with the probe
"""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from learnit_r8.testing.prove import Proof, prove
from learnit_r8.testing.prove.launches import Workshop
from learnit_r8.testing.prove.report import headline

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")

FAULTS = {
    "plain": "restarted skipped moments buffers ema augmentation twice older second",
    "language": "scaler accumulation ema dropout schedule repeated older second",
    "stream": "restarted repeated skipped augmentation moments",
    "ranks": "restarted buffers dropout twice epoch scaler",
    "with_lightning": "schedule ema moments dropout",
    "with_accelerate": "epoch schedule skipped accumulation",
}
"""By script, what is planted: kinds of the module `words`, an older checkpoint, or a fault of the second resume."""

CORRECT = {"with_r8": ("", "own", "workers", "stream", "ranks"), "with_trainer": ("", "r8")}
"""Scripts without a plant, each with its arguments; those above without their plants are correct, too."""

EXAMPLES = {
    "accelerate_digits": "saved", "ddp": "--epochs 2", "ddp_plain": "--epochs 2", "find_wrong_labels": "",
    "housing_stream": "--epochs 20", "lightning_digits": "", "own_loader": "", "own_policy": "", "plain_loop": "",
    "pytorch_loop": "", "pytorch_plain": "", "quick_start": "", "recover": "", "transformers_digits": "",
}  # fmt: skip
"""Our examples that train with torch; one of them goes on after a kill, of the others nothing can be said."""

QUICK = {"plain": "moments"}


def words(path: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """The command of a script."""
    return [sys.executable, *launcher, path.name, *arguments]


def name_of(proof: Proof) -> str:
    """What a proof calls what it found."""
    if proof.difference is None:
        return "older" if any("older checkpoint" in each for each in proof.notes) else ""
    return "second" if proof.is_second_only else proof.difference.kind


def run(script: str, fault: str, folder: Path, kills: int = 3, arguments: str = "") -> Proof:
    """Prove a script with a fault."""
    os.environ["FAULT"] = fault
    path = folder / f"{script}.py"
    place = folder / script
    place.mkdir(exist_ok=True)
    shutil.copy(HERE / "prove_scripts" / path.name, place / path.name)
    command = words(path, *arguments.split(), launcher=TORCHRUN if "ranks" in (script, arguments) else ())
    return prove(command, folder=place, kills=kills)


def run_example(name: str) -> Proof:
    """Prove an example; that of accelerate goes on with a word more."""
    command = words(Path(f"{name}.py"), *EXAMPLES[name].split(), launcher=TORCHRUN if name.startswith("ddp") else ())
    resume = f"{shlex.join(command)} load" if name == "accelerate_digits" else None
    return prove(command, folder=HERE.parent / "examples", resume=resume, kills=1, steps=100)


def cost(rounds: int = 7) -> None:
    """Print what a step costs with the probe and without, in turns: processor time, the quietest round of each."""
    times: dict[bool, list[float]] = {False: [], True: []}
    script = HERE / "prove_scripts" / "cost.py"
    with tempfile.TemporaryDirectory() as folder, Workshop(Path(folder)) as shop:
        for _ in range(rounds):
            alone = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
            probed = shop.launch(Path(folder), [sys.executable, str(script)])
            times[False].append(float(alone))
            times[True].append(float(probed.said))
    # Whatever else runs on the machine makes a round slower, never faster.
    plain, with_probe = min(times[False]), min(times[True])
    more = statistics.quantiles([b / a - 1 for a, b in zip(times[False], times[True], strict=True)], n=4)
    shown = ", ".join(f"{each:+.1%}" for each in more)
    print(f"a step without {plain:.2f} ms, with the probe {with_probe:.2f} ms: {with_probe / plain - 1:+.1%}")
    print(f"quartiles of the {rounds} rounds, each with and without in turn: {shown}")


def main(chosen: list[str]) -> int:
    """Print a line for each fault and each script without, and the counts."""
    if "--cost" in chosen:
        cost()
        return 0
    is_quick = "--quick" in chosen
    chosen = [each for each in chosen if not each.startswith("--")]
    faults = QUICK if is_quick else {name: FAULTS[name] for name in FAULTS if not chosen or name in chosen}
    found = named = planted = alarms = clean = silent = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for script, kinds in faults.items():
            for fault in ("", *kinds.split()):
                proof = run(script, fault, Path(folder), kills=1 if is_quick else 3)
                name = name_of(proof)
                if fault:
                    planted, found, named = planted + 1, found + bool(name), named + (name == fault)
                    verdict = "right" if name == fault else "found" if name else "MISSED"
                else:
                    clean, alarms = clean + (proof.code == 0), alarms + (proof.code == 1)
                    silent += proof.code == 2
                    verdict = {0: "exact", 1: "FALSE ALARM", 2: "CANNOT SAY"}[proof.code]
                print(
                    f"{script:<16} {fault or '-':<13} {verdict:<8} {proof.seconds:4.0f} s  {headline(proof)}",
                    flush=True,
                )
        runs = [(script, each) for script, several in CORRECT.items() for each in several]
        runs += [(name, "-") for name in EXAMPLES]
        for script, arguments in () if is_quick else runs:
            if not chosen or script in chosen or (arguments == "-" and "examples" in chosen):
                is_example = arguments == "-"
                proof = run_example(script) if is_example else run(script, "", Path(folder), arguments=arguments)
                silent, clean = silent + (proof.code == 2), clean + (proof.code == 0)
                alarms += proof.code == 1
                print(f"{script:<19} {arguments or '-':<10} {proof.seconds:4.0f} s  {headline(proof)}", flush=True)
    without = f"{clean} exact, {silent} of which nothing can be said, {alarms} false alarms"
    print(f"{planted} planted: {found} found, {named} rightly named; without: {without}")
    print(f"{time.monotonic() - began:.0f} s")
    return int(alarms > 0 or (is_quick and named < planted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
