"""What `learnit-r8 prove` finds: planted faults in six scripts, and whether it finds any in scripts that have none.

python benchmarks/prove.py            # 36 faults, and ten scripts without: about half an hour on two cores
python benchmarks/prove.py --quick    # a fault and a script without: half a minute
python benchmarks/prove.py plain      # one script
"""

from __future__ import annotations

import os
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

CORRECT = {"with_r8": ("", "own"), "with_trainer": ("", "r8")}
"""Scripts without a plant, each with its arguments; those above without their plants are correct, too."""

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
    command = words(path, *arguments.split(), launcher=TORCHRUN if script == "ranks" else ())
    return prove(command, folder=place, kills=kills)


def cost(rounds: int = 5) -> None:
    """Print what a step costs with the probe and without, in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    script = HERE / "prove_scripts" / "cost.py"
    with tempfile.TemporaryDirectory() as folder, Workshop(Path(folder)) as shop:
        for _ in range(rounds):
            alone = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
            probed = shop.launch(Path(folder), [sys.executable, str(script)])
            times[False].append(float(alone))
            times[True].append(float(probed.output))
    plain, with_probe = (statistics.median(times[each]) for each in (False, True))
    print(f"a step without {plain:.2f} ms, with the probe {with_probe:.2f} ms: {with_probe / plain - 1:+.1%}; {times}")


def main(chosen: list[str]) -> int:
    """Print a line for each fault and each script without, and the counts."""
    if "--cost" in chosen:
        cost()
        return 0
    is_quick = "--quick" in chosen
    chosen = [each for each in chosen if not each.startswith("--")]
    faults = QUICK if is_quick else {name: FAULTS[name] for name in FAULTS if not chosen or name in chosen}
    found = named = planted = alarms = clean = 0
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
                    verdict = {0: "exact", 1: "FALSE ALARM", 2: "CANNOT SAY"}[proof.code]
                print(
                    f"{script:<16} {fault or '-':<13} {verdict:<8} {proof.seconds:4.0f} s  {headline(proof)}",
                    flush=True,
                )
        for script, several in ({} if is_quick else CORRECT).items():
            for arguments in several if not chosen or script in chosen else ():
                proof = run(script, "", Path(folder), arguments=arguments)
                clean, alarms = clean + (proof.code == 0), alarms + (proof.code == 1)
                print(f"{script:<16} {arguments or '-':<13} {proof.seconds:4.0f} s  {headline(proof)}", flush=True)
    print(f"{planted} planted: {found} found, {named} rightly named; without: {clean} exact, {alarms} false alarms")
    print(f"{time.monotonic() - began:.0f} s")
    return int(alarms > 0 or (is_quick and named < planted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
