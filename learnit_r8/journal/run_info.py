"""run.json: name, configuration, processes and versions of a run."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.durable_io import open_regular, replace
from ..events.codec import strict_json

FORMAT = 1
MOST_SESSIONS = 100
MOST_JSON_BYTES = 2**22
MOST_GIT_LINKS, MOST_GIT_BYTES = 5, 4096
"""Refs of git that refer to each other, and bytes of a line in its files, that are read."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def this_process() -> dict[str, Any]:
    """The identity of this process: pid and host, and where the system has them boot, namespace and start."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot_id": _text_of(_BOOT_ID),
        "pid_namespace": _or_empty(lambda: os.readlink("/proc/self/ns/pid")),
        "process_started": _started("self"),
    }


def is_gone(process: Mapping[str, Any]) -> bool | None:
    """Whether a process that `this_process` described has ended; None where this process cannot tell.

    Args:
        process: Its description from a file, not trusted.
    """
    here = this_process()
    if not process.get("host") or process["host"] != here["host"]:
        return None
    if process.get("boot_id") != here["boot_id"]:
        return True
    pid = process.get("pid")
    if process.get("pid_namespace") != here["pid_namespace"] or type(pid) is not int or not 0 < pid < 2**31:
        return None
    if here["process_started"] is not None:
        return _started(str(pid)) != process.get("process_started")
    # On Windows os.kill would end the process.
    if os.name != "posix":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return None
    return False


def _started(pid: str) -> int | None:
    """Clock ticks after boot at which a process started; None without the process or without /proc."""
    text = _text_of(f"/proc/{pid}/stat")
    # The name in parentheses may hold anything; a zombie counts as ended.
    fields = text.rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else None


def _text_of(path: str) -> str:
    return _or_empty(lambda: Path(path).read_text("ascii", "replace").strip())


def _or_empty(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:
        return ""


def write_about(folder: Path, *, name: str, configuration: Mapping[str, str], wall: float) -> None:
    """Write run.json, or add this process to the one that is there.

    Raises:
        OSError: it cannot be written.
    """
    from ..events.versions import versions

    sessions = read_sessions(folder)[-(MOST_SESSIONS - 1) :]
    about = {
        "format": FORMAT,
        "name": name,
        "sessions": [*sessions, {**this_process(), "started": wall, "started_at": utc(wall)}],
        "program": Path(sys.argv[0]).name if sys.argv else "",
        "versions": versions(),
        "platform": platform.platform(),
        "configuration": dict(configuration),
    }
    replace(folder / "run.json", strict_json(about, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, holds no JSON object, or is too large.
    """
    with open_regular(path) as file:
        content = file.read(MOST_JSON_BYTES + 1)
    if len(content) > MOST_JSON_BYTES:
        raise ValueError(f"{path.name} must have at most {MOST_JSON_BYTES} bytes, got more.")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path.name} must be nested less deeply, got JSON beyond the limit.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold a JSON object, got {str(value)[:40]!r}.")
    return value


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The processes in a run.json; none if it cannot be read."""
    try:
        sessions = read_json(folder / "run.json").get("sessions")
    except (OSError, ValueError):
        return []
    return [one for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []


def git_commit() -> str:
    """The first 12 digits of the git commit of the program's folder; "" without one.

    It is read from git's files: git itself runs what the configuration of a repository names (``core.fsmonitor``, the
    filters of files), and whoever gave it to the user has written that.
    """
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    try:
        folder = program.resolve().parent if program.is_file() else Path.cwd()
        found = next(each / ".git" for each in (folder, *folder.parents) if (each / ".git").exists())
        # In a worktree or a submodule it is a file.
        own = found if found.is_dir() else found.parent / _line_of(found).removeprefix("gitdir: ")
        shared = own / _line_of(own / "commondir") if (own / "commondir").exists() else own
        text = _line_of(own / "HEAD")
        for _ in range(MOST_GIT_LINKS):
            if not text.startswith("ref: "):
                break
            text = _commit_of(text.removeprefix("ref: "), own, shared)
    except (OSError, ValueError, StopIteration):
        return ""
    return text[:12] if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", text) else ""


def _commit_of(name: str, own: Path, shared: Path) -> str:
    """What a ref of git holds; "" if there is none."""
    if not re.fullmatch(r"refs(/[^/.][^/]*)+", name):
        return ""
    for home in (own, shared):
        if (home / name).exists():
            return _line_of(home / name)
    with open_regular(shared / "packed-refs") as file:
        lines = (line.decode("utf-8", "replace").split() for line in file)
        return next((words[0] for words in lines if words[1:] == [name]), "")


def _line_of(path: Path) -> str:
    with open_regular(path) as file:
        return file.readline(MOST_GIT_BYTES).decode("utf-8", "replace").strip()


def utc(wall: float) -> str:
    """A wall time as text, "2026-11-20T14:02:31Z"; "?" beyond the range of calendars."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))
    except (OverflowError, OSError, ValueError):
        return "?"
