"""Records what the examples print, for their pages: ``python docs/site/record_examples.py [NAME ...]``.

Without names, those that have changed since they were recorded. Each runs in an empty folder, as a reader would run it
in the repository; `examples.json` beside this file holds the commands, what they printed, and a digest of the script.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Path(__file__).with_name("examples.json")
COMMANDS: dict[str, list[list[str]]] = {
    "example.py": [[]],
    "examples/tasks/own_loop.py": [[]],
    "examples/tasks/torch_script.py": [[]],
    "examples/tasks/find_labels.py": [[]],
    "examples/tasks/resume_after_kill.py": [["saved", "--die-at", "65"], ["saved"]],
    "examples/tasks/early_stopping.py": [[]],
    "examples/sweep.py": [[]],
    "examples/resume.py": [[], []],
    "examples/recover.py": [[]],
    "examples/own_loader.py": [[]],
    "examples/own_policy.py": [[]],
    "examples/plain_loop.py": [[]],
    "examples/pytorch_loop.py": [[]],
    "examples/accelerate_digits.py": [[]],
    "examples/lightning_digits.py": [[]],
    "examples/transformers_digits.py": [[]],
    "examples/keras_digits.py": [[]],
    "examples/keras_pipeline.py": [[]],
    "examples/tf_custom_loop.py": [[]],
    "examples/flax_digits.py": [[]],
    "examples/flax_devices.py": [[]],
    "examples/housing_stream.py": [[]],
}
"""The arguments of each run of an example, in the order of the pages."""
OURS = re.compile(r"^(?:examples?[/.].*: \w*Warning: .*\n.*\n?|r8: .*\n?)", re.MULTILINE)
"""What R8 says on standard error; frameworks say much there that differs from machine to machine."""
MOST_LINES = 100
SECONDS = 600


def digest(name: str) -> str:
    """Of the script, so that a page never shows the output of another one."""
    return hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16]


def records() -> dict[str, Any]:
    """What was recorded, by the name of the example."""
    known: dict[str, Any] = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    return known


def record(name: str) -> dict[str, Any]:
    """Run an example, and return its record."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for arguments in COMMANDS[name]:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(
                [sys.executable, str(ROOT / name), *arguments], cwd=folder, env={**environment, "TMPDIR": folder},
                capture_output=True, text=True, timeout=SECONDS,
            )  # fmt: skip
            warnings = "".join(OURS.findall(done.stderr.replace(f"{ROOT}/", "")))
            printed = _plain(done.stdout + ("\n" + warnings if warnings else ""), folder)
            runs.append({"command": " ".join(["python", name, *arguments]), "printed": printed})
    return {"digest": digest(name), "runs": runs}


def _plain(text: str, folder: str) -> str:
    """What a terminal shows in the end, without paths of this machine."""
    lines = [line.rpartition("\r")[2].rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\n")]
    lines = [line.replace(folder, ".").replace(f"{ROOT}/", "") for line in lines]
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        lines = [*lines[:half], f"... ({len(lines) - 2 * half} lines)", *lines[-half:]]
    return "\n".join(lines).strip("\n") + "\n"


def main() -> None:
    """Record the examples that are named, or those that have changed."""
    known = records()
    chosen = sys.argv[1:] or [name for name in COMMANDS if known.get(name, {}).get("digest") != digest(name)]
    for name in chosen:
        print(name, flush=True)
        known[name] = record(name)
        ordered = {each: known[each] for each in COMMANDS if each in known}
        RECORDS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
