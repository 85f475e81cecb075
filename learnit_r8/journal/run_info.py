"""run.json: name, configuration, processes and versions of a run."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.durable_io import replace
from ..events.codec import strict_json

FORMAT = 1
MOST_SESSIONS = 100
GIT_SECONDS = 2.0
"""Longest wait for an answer of git."""
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
    return _is_gone_by_signal(pid)


def _is_gone_by_signal(pid: int) -> bool | None:
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


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The processes in a run.json; none if it cannot be read."""
    from .reader import read_json

    try:
        sessions = read_json(folder / "run.json").get("sessions")
    except (OSError, ValueError):
        return []
    return [one for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []


def git_state() -> str:
    """The git commit of the program, "1a2b3c4d5e6f and changes" where its files differ; "" without one."""
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    folder = program.resolve().parent if program.is_file() else Path.cwd()

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "--short=12", "HEAD")
        # Files that git does not know are no part of the commit.
        return commit + " and changes" * bool(ask("status", "--porcelain", "--untracked-files=no"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def utc(wall: float) -> str:
    """A wall time as text, "2026-11-20T14:02:31Z"; "?" beyond the range of calendars."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))
    except (OverflowError, OSError, ValueError):
        return "?"
