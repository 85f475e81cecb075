"""Copies of a script's folder, and launches of its command in them, with the probe and its fence inside."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

QUIET = {
    "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "COMET_MODE": "OFFLINE", "NEPTUNE_MODE": "offline",
    "CLEARML_OFFLINE_MODE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
CACHES = "TMPDIR MPLCONFIGDIR WANDB_DIR TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR NUMBA_CACHE_DIR HF_DATASETS_CACHE"
"""Variables that name a folder in which libraries write beside the script: one of ours."""

LARGE = 2 << 30
"""Most bytes of a folder that are copied."""

TOO_LARGE = "{} is too large to copy: {}. Give --link PATH for data that is only read."

LIMIT = 60.0
"""Seconds that any launch may take, beside ten times what the whole run took."""

Step = dict[str, Any]


class CannotSay(Exception):
    """Why nothing can be said of a script."""


class Launch(NamedTuple):
    """One launch of the command: the steps of each rank, exit code, last line printed or of an error.

    ``steps`` are how many the first rank noted; ``end`` is what ended it, ``kill``, ``stop``, ``end`` or nothing heard.
    """

    ranks: list[list[Step]]
    code: int
    said: str
    steps: int
    end: str


class Workshop(contextlib.AbstractContextManager["Workshop"]):
    """A temporary folder with copies of the script's folder; what is started in it is ended with it.

    Args:
        folder: The script's folder, copied for each training.
        allow: Paths outside that may be written.
        link: Paths in the folder that are linked instead of copied.
        deterministic: Ask torch for deterministic algorithms, and seed everything.
        work: Where the temporary folder is made; by default where the system has those.
    """

    def __init__(
        self, folder: Path, *, allow: Sequence[str] = (), link: Sequence[str] = (), deterministic: bool = False,
        work: str | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.deterministic = folder.resolve(), deterministic
        self.place = Path(tempfile.mkdtemp(prefix="r8-prove-", dir=work)).resolve()
        # It hears the end of this process, whatever that is, and has no terminal, so no Ctrl-C ends it.
        words = [sys.executable, "-I", __file__, str(self.place)]
        self.cleaner = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        self.allowed = [str(self.place), *(os.path.abspath(os.path.expanduser(each)) for each in allow)]
        self.links = {self.folder / each for each in link}
        self.listed = listing(self.links)
        self.limit: float | None = None
        self.refusals = self.place / "refused.txt"

    def __exit__(self, *_: object) -> None:
        self.cleaner.communicate(b"end")

    def changed(self) -> list[str]:
        """The linked paths that have changed meanwhile."""
        old, new = self.listed, listing(self.links)
        return sorted(each for each in old.keys() | new if old.get(each) != new.get(each))

    def refused(self) -> list[str]:
        """The paths that something wanted to write, and could not."""
        return sorted({*self.refusals.read_text(encoding="utf-8").split("\n")} - {""}) if self.refusals.exists() else []

    def copy(self) -> Path:
        """A copy of the folder to run in; environments and links are linked."""
        place = Path(tempfile.mkdtemp(prefix="copy", dir=self.place), self.folder.name)
        sizes: collections.Counter[str] = collections.Counter()

        def copy(source: Path, target: Path) -> None:
            is_linked = source in self.links or (source != self.folder and (source / "pyvenv.cfg").exists())
            if is_linked or source.is_symlink():
                target.symlink_to(source if is_linked else os.readlink(source))
            elif source.is_dir() and source != self.place and source.name != "__pycache__":
                target.mkdir()
                for each in source.iterdir():
                    copy(each, target / each.name)
            elif source.is_file():
                sizes[source.relative_to(self.folder).parts[0]] += source.stat().st_size
                if sizes.total() > LARGE:
                    largest = ", ".join(f"{name} ({size >> 20} MiB)" for name, size in sizes.most_common(3))
                    raise CannotSay(TOO_LARGE.format(self.folder, largest))
                shutil.copy2(source, target)

        copy(self.folder, place)
        return place

    def launch(self, place: Path, command: Sequence[str], **request: Any) -> Launch:
        """Run a command in a copy, and read what was noted of it."""
        home = Path(tempfile.mkdtemp(prefix="launch", dir=self.place))
        # No name that could be imported.
        scratch = home / "its-files"
        scratch.mkdir()
        shutil.copy(Path(__file__).with_name("probe.py"), home / "sitecustomize.py")
        request |= {"deterministic": self.deterministic, "allowed": self.allowed, "refusals": str(self.refusals)}
        (home / "request.json").write_text(json.dumps(request), encoding="utf-8")
        words = [each.replace(str(self.folder), str(place)) for each in command]
        inherited = os.environ.get("PYTHONPATH", "").replace(str(self.folder), str(place))
        environment = {**os.environ, **QUIET, **dict.fromkeys(CACHES.split(), str(scratch)), "PWD": str(place)}
        # Data sets that are prepared already are read, file by file; locks, and what is new, are written in ours.
        hub = os.path.join(os.environ.get("HF_HOME", "~/.cache/huggingface"), "datasets")
        prepared, locks = os.path.expanduser(os.environ.get("HF_DATASETS_CACHE", hub)), shutil.ignore_patterns("*.lock")
        with contextlib.suppress(OSError):
            shutil.copytree(prepared, scratch, ignore=locks, copy_function=os.symlink, dirs_exist_ok=True)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), inherited]))
        if self.deterministic:
            environment |= {"PYTHONHASHSEED": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        began = time.monotonic()
        with open(home / "output.txt", "wb") as output:
            try:
                child = subprocess.Popen(
                    words, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise CannotSay(f"the command cannot be started: {error}.") from None
            try:
                code = child.wait(self.limit)
            except subprocess.TimeoutExpired:
                raise CannotSay(f"a launch took longer than {self.limit:.0f} s, ten times the whole run.") from None
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
                left = end_all(self.place, child.pid)
                child.wait()
        if (failed := home / "error.txt").exists():
            raise CannotSay(f"the probe failed: {failed.read_text(encoding='utf-8') or 'is the disk full?'}")
        lines = (home / "output.txt").read_text(encoding="utf-8", errors="replace")[-8000:].splitlines()
        told = [each.strip() for each in lines if each.strip()] or ["nothing"]
        errors = [each for each in told if code and re.match(r"[\w.]*(Error|Exception|Exit)\b", each)]
        ranks = _ranks(home)
        steps, end = (len(ranks[0]), ranks[0][-1].get("end", "")) if ranks else (0, "")
        done = Launch(ranks, code, (errors or told)[-1][:200], steps, end)
        self.limit = self.limit or 10 * (time.monotonic() - began) + LIMIT
        if left and code == 0 and not done.end:
            raise CannotSay("the command ended while its training went on: start it in the foreground.")
        return done


def end_all(place: Path, session: int = 0) -> int:
    """Kill every process that was started from a folder, and say how many had left a session, as daemons do."""
    mark, found = os.fsencode(f"{place}/launch"), 0
    for each in Path("/proc").glob("[0-9]*/environ") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            if mark in each.read_bytes() and (process := int(each.parent.name)) != os.getpid():
                found += os.getsid(process) != session
                os.kill(process, signal.SIGKILL)
    return found


def clean_up(place: Path) -> None:
    """End what was started from a folder and delete it, once the process that began this one says so, or is gone."""
    sys.stdin.read(1)
    for _attempt in range(100):
        end_all(place)
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            break
        # What is being killed may still write.
        time.sleep(0.1)


def listing(paths: Iterable[Path]) -> dict[str, tuple[int, int, str]]:
    """Size, time and digest of files, and of those in folders; of a large one the digest is of its ends."""
    files = [each for path in paths for each in (path, *path.rglob("*")) if each.is_file()]
    return {str(each): (each.stat().st_size, each.stat().st_mtime_ns, _digest(each)) for each in files}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        begin = file.read(1 << 20)
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        return hashlib.blake2b(begin + file.read()).hexdigest()


def saves_of(steps: Sequence[Step]) -> list[int]:
    """The steps after which a training wrote a checkpoint, or, if it is not torch's, other files."""
    wrote = {each["n"] - 1: each["f"] for each in steps if each["n"] > 1 and "f" in each}
    by_kind = [[step for step, kinds in wrote.items() if kind in kinds] for kind in ("torch", "rename", "open")]
    return next(filter(None, by_kind), [])


def _ranks(notes: Path) -> list[list[Step]]:
    """The steps of the ranks, each of the process that trained the longest."""
    files = [(path.name.split("-")[0], path.read_text(encoding="utf-8").splitlines()) for path in notes.glob("*.jsonl")]
    # Of a rank, the last one counts; a line may not be whole.
    found = dict(sorted(files, key=lambda each: len(each[1])))
    return [[json.loads(each) for each in lines if each.endswith("}")] for _, lines in sorted(found.items())]


if __name__ == "__main__":
    clean_up(Path(sys.argv[1]))
