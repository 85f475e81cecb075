"""A fence around the scripts that are proven: what they write, rename or delete stays in their copy of the folder.

Loaded by its path, like the probe. It hears what Python audits, and the words of the programs that Python starts; what
native code does is not heard.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

PLACES = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "sqlite3.connect": ((0, None),),
}
"""By event of Python's audit: which arguments are paths, and which the folder that each is relative to."""

COPIERS = {"cp", "ln", "rsync", "install"}
WRITERS = COPIERS | {"rm", "mv", "rmdir", "mkdir", "touch", "tee", "truncate", "dd", "chmod", "unlink"}
"""Programs whose paths are looked at; those behind a ``>`` always are."""

DEVICES = ("/dev/", "/proc/")


class Fence:
    """Refuses to write outside some folders.

    Args:
        allowed: Folders, and files, that may be written.
        refusals: A file that gets a line for each path refused.
    """

    def __init__(self, allowed: list[str], refusals: str) -> None:
        self.allowed = [os.path.realpath(each) for each in allowed]
        self.refusals = refusals
        self.is_busy = False

    def is_outside(self, path: Any, folder: Any = None) -> bool:
        """Whether a path is one that must not be written."""
        if not isinstance(path, (str, bytes, os.PathLike)) or path in (":memory:", ""):
            return False
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            name = os.path.join(f"/proc/self/fd/{folder}", name)
        # The last part itself may be a link, which is deleted or renamed in place; writing through it is looked at.
        real = os.path.realpath(name)
        return not real.startswith(DEVICES) and not any(
            real == each or real.startswith(each.rstrip(os.sep) + os.sep) for each in self.allowed
        )

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Look at what Python is about to do."""
        if self.is_busy or (event not in PLACES and event not in ("open", "subprocess.Popen", "os.system")):
            return
        self.is_busy = True
        try:
            paths = []
            if event == "open":
                flags = args[2] if isinstance(args[2], int) else 0
                paths = [args[0]] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else []
            elif event == "subprocess.Popen":
                paths = self.written_by(args[1])
            elif event == "os.system":
                paths = self.written_by(args[0])
            else:
                for place, folder in PLACES[event]:
                    at = args[folder] if folder is not None and len(args) > folder else None
                    # What is there already, or is not, fails as it would without us.
                    is_idle = os.path.isdir(args[place]) if event == "os.mkdir" else False
                    paths += [] if is_idle or not self.is_outside(args[place], at) else [args[place]]
            for path in paths:
                if self.is_outside(path) or event in PLACES:
                    self.refuse(os.path.abspath(os.fsdecode(path)))
        finally:
            self.is_busy = False

    def written_by(self, command: Any) -> list[str]:
        """The paths that a program may write, as far as its words tell."""
        words = (
            [os.fsdecode(each) for each in command] if isinstance(command, (list, tuple)) else [os.fsdecode(command)]
        )
        if len(words) == 1 or (words[1:2] == ["-c"] and os.path.basename(words[0]) in ("sh", "bash")):
            try:
                words = [*shlex.shlex(words[-1], posix=True, punctuation_chars=True)]
            except ValueError:
                return []
        found: list[str] = []
        program, before = "", ";"
        for word in words:
            if before in (";", "&&", "||", "|", "&"):
                program, begun = os.path.basename(word), len(found)
            elif before in (">", ">>", "&>") or (program in WRITERS and not word.startswith("-")):
                # Of what is copied, only the last path is written.
                found[begun if program in COPIERS else len(found) :] = [os.path.expanduser(word)]
            before = word
        return found

    def refuse(self, path: str) -> None:
        """Note a path, and end what wanted to write it with an error."""
        with open(self.refusals, "a", encoding="utf-8") as file:
            file.write(path + "\n")
        raise PermissionError(f"learnit-r8 prove lets nothing outside its copy be written, got {path}; --allow it.")


def begin(allowed: list[str], refusals: str) -> None:
    """Put up the fence, for as long as the process lives."""
    sys.addaudithook(Fence(allowed, refusals).hear)
