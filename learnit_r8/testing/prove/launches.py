"""Copies of a script's folder, and launches of its command in them, with the probe and the fence inside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
START = '''"""Loads the probe of learnit-r8 prove, and then what this name would have loaded without it."""
import importlib.machinery, importlib.util, os, sys

here = os.path.dirname(os.path.abspath(__file__))
for path, arguments in {parts!r}:
    spec = importlib.util.spec_from_file_location("_r8_" + os.path.basename(path)[:-3], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.begin(*arguments)
spec = importlib.machinery.PathFinder.find_spec("sitecustomize", [each for each in sys.path if each != here])
if spec is not None:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
'''

QUIET = {
    "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "COMET_MODE": "OFFLINE", "NEPTUNE_MODE": "offline",
    "CLEARML_OFFLINE_MODE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip
CACHES = ("TMPDIR", "MPLCONFIGDIR", "WANDB_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR")
"""Variables that name a folder in which libraries write beside the script: one of ours."""

LARGE = 2 << 30
"""Bytes of a folder that are copied where the disk cannot share blocks."""

FICLONE = 0x40049409
LIMIT = 60.0
"""Seconds that any launch may take, beside ten times what the whole run took."""


class CannotSay(Exception):
    """Why nothing can be said of a script."""


class Trace(NamedTuple):
    """What one process noted: its steps, each with the losses; how it ended, and the state then, if it was reached."""

    steps: list[dict[str, Any]]
    end: dict[str, Any]
    every: int | None

    def saves(self) -> list[int]:
        """The steps after which it wrote a checkpoint, or, if it is not torch's, other files."""
        wrote = {each["n"] - 1: each["f"] for each in self.steps if each["n"] > 1 and "f" in each}
        for kind in ("torch", "rename", "open"):
            if found := sorted(step for step, kinds in wrote.items() if kind in kinds):
                return found
        return []


class Launch(NamedTuple):
    """One launch of the command: a trace for each rank, the exit code, and the end of what it printed."""

    ranks: list[Trace]
    code: int
    output: str
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether it was killed where it was to be."""
        return bool(self.ranks) and self.ranks[0].end.get("why") == "kill"


class Workshop:
    """A temporary folder with copies of the script's folder; what is started in it is ended with it.

    Args:
        folder: The script's folder, copied for each training.
        allow: Paths outside that may be written.
        link: Paths in the folder that are linked instead of copied.
        deterministic: Ask torch for deterministic algorithms, and seed everything.
        work: Where the temporary folder is made; by default where the system has those.
    """

    def __init__(
        self,
        folder: Path,
        *,
        allow: Sequence[str] = (),
        link: Sequence[str] = (),
        deterministic: bool = False,
        work: str | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.place = Path(tempfile.mkdtemp(prefix="r8-prove-", dir=work)).resolve()
        self.allow = [os.path.abspath(os.path.expanduser(each)) for each in allow]
        self.links = {self.folder / each for each in link}
        self.listed = {each: listing(each) for each in self.links}
        self.deterministic = deterministic
        self.longest: float | None = None
        self.count = 0

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self.sweep()
        shutil.rmtree(self.place, ignore_errors=True)

    def changed(self) -> list[str]:
        """The linked paths that have changed meanwhile."""
        return [f"{each}: {name}" for each, before in self.listed.items() for name in differing(before, listing(each))]

    def refused(self) -> list[str]:
        """The paths that something wanted to write, and could not."""
        path = self.place / "refused.txt"
        return sorted(set(path.read_text(encoding="utf-8").split("\n")) - {""}) if path.exists() else []

    def copy(self) -> Path:
        """A copy of the folder to run in; environments and links are linked."""
        self.count += 1
        target = self.place / f"copy{self.count}" / self.folder.name
        shares = _clone(__file__, str(self.place / "probe"))
        ours = [each for each in self.folder.iterdir() if each not in self.links and not (each / "pyvenv.cfg").exists()]
        sizes = {each.name: 0 if shares else _size(each) for each in ours}
        if sum(sizes.values()) > LARGE:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
            told = ", ".join(f"{name} ({sizes[name] >> 20} MiB)" for name in largest)
            raise CannotSay(f"{self.folder} is too large to copy: {told}. Give --link PATH for data that is only read.")

        def copy_file(source: str, to: str) -> None:
            (shutil.copystat if shares and _clone(source, to) else shutil.copy2)(source, to)

        def left_out(at: str, names: list[str]) -> set[str]:
            here = Path(at)
            linked = {each for each in names if here / each in self.links or (here / each / "pyvenv.cfg").exists()}
            for each in linked:
                to = target / here.relative_to(self.folder) / each
                to.parent.mkdir(parents=True, exist_ok=True)
                to.symlink_to(here / each)
            special = {each for each in names if not (here / each).is_symlink() and (here / each).is_fifo()}
            return linked | special | ({"__pycache__"} & set(names))

        shutil.copytree(
            self.folder, target, symlinks=True, ignore=left_out, copy_function=copy_file, dirs_exist_ok=True
        )
        return target

    def launch(self, place: Path, command: Sequence[str], **request: Any) -> Launch:
        """Run a command in a copy, and read what was noted of it."""
        home = Path(tempfile.mkdtemp(prefix="launch", dir=self.place))
        inside, notes, scratch = home / "inside", home / "notes", home / "scratch"
        for each in (inside, notes, scratch):
            each.mkdir()
        path = home / "request.json"
        request |= {"folder": str(notes), "deterministic": self.deterministic}
        path.write_text(json.dumps(request), encoding="utf-8")
        allowed = [str(self.place), *self.allow]
        parts = [
            (str(HERE / "fence.py"), (allowed, str(self.place / "refused.txt"))),
            (str(HERE / "probe.py"), (str(path),)),
        ]
        (inside / "sitecustomize.py").write_text(START.format(parts=parts), encoding="utf-8")
        words = [each.replace(str(self.folder), str(place)) for each in command]
        environment = {**os.environ, **QUIET, **dict.fromkeys(CACHES, str(scratch)), "PYTHONUNBUFFERED": "1"}
        inherited = environment.get("PYTHONPATH", "").replace(str(self.folder), str(place))
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(inside), inherited])), "PWD": str(place)}
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
            limit = None if self.longest is None else 10 * self.longest + LIMIT
            try:
                code = child.wait(limit)
            except subprocess.TimeoutExpired:
                raise CannotSay(f"a launch took longer than {limit:.0f} s, ten times the whole run.") from None
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
                left = self.sweep(child.pid)
                child.wait()
        if (notes / "error.txt").exists():
            raise CannotSay(f"the probe failed: {(notes / 'error.txt').read_text(encoding='utf-8')}")
        text = (home / "output.txt").read_text(encoding="utf-8", errors="replace")
        done = Launch(_traces(notes), code, text[-4000:], time.monotonic() - began)
        shutil.rmtree(scratch, ignore_errors=True)
        if left and code == 0 and not (done.ranks and done.ranks[0].end):
            raise CannotSay("the command ended while its training went on: start it in the foreground.")
        return done

    def sweep(self, session: int = 0) -> int:
        """Kill every process that was started from here, and say how many had left this session, as daemons do."""
        mark, found = os.fsencode(str(self.place)) + b"/launch", 0
        for each in Path("/proc").glob("[0-9]*/environ") if sys.platform == "linux" else ():
            with contextlib.suppress(OSError):
                if mark in each.read_bytes() and (process := int(each.parent.name)) != os.getpid():
                    found += os.getsid(process) != session
                    os.kill(process, signal.SIGKILL)
        return found


def words_of(command: str) -> list[str]:
    """The words of a command given as one text; one that needs a shell gets one."""
    return ["sh", "-c", command] if any(each in command for each in "$|;&<>*`") else shlex.split(command)


def listing(path: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time and digest of the files in a folder; of a large one the digest is of its ends."""
    found = {}
    for each in [path] if path.is_file() else sorted(path.rglob("*")):
        if each.is_file():
            about = each.stat()
            with open(each, "rb") as file:
                digest = hashlib.blake2b(file.read(1 << 20))
                file.seek(max(0, about.st_size - (1 << 20)))
                digest.update(file.read())
            found[str(each)] = about.st_size, about.st_mtime_ns, digest.hexdigest()
    return found


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names whose values differ, or that are in one only."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(each) for each in path.iterdir())


def _clone(source: str, target: str) -> bool:
    """Copy a file by sharing its blocks, if the disk can."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with open(source, "rb") as one, open(target, "wb") as two:
            fcntl.ioctl(two.fileno(), FICLONE, one.fileno())
    except OSError:
        return False
    return True


def _traces(notes: Path) -> list[Trace]:
    """The traces of the ranks, each of the process that trained the longest."""
    found: dict[str, Trace] = {}
    for path in sorted(notes.glob("*.jsonl")):
        lines = [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines() if each.endswith("}")]
        end: dict[str, Any] = next((each for each in lines if "why" in each), {})
        every = next((each["every"] for each in lines if "every" in each), None)
        trace = Trace([each for each in lines if "n" in each], end, every)
        rank = path.name.split("-")[0]
        if rank not in found or len(trace.steps) > len(found[rank].steps):
            found[rank] = trace
    return [found[rank] for rank in sorted(found)]
