"""Whether a training, with R8 in it or not, goes on exactly where it was when it is killed and started again.

``learnit-r8 prove -- python train.py`` is the command; `prove` and `assert_resumes` are for programs and tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .proof import prove
from .report import DIFFERS, EXACT, UNKNOWN, Proof, Restart, lines_of

__all__ = ["DIFFERS", "EXACT", "UNKNOWN", "Proof", "Restart", "assert_resumes", "prove"]


def assert_resumes(command: Sequence[str], **settings: Any) -> Proof:
    """Fail a test if a training does not resume exactly.

    Args:
        command: The words of the command, as in ``[sys.executable, "train.py"]``.
        settings: Those of `prove`: ``folder``, ``resume``, ``kills``, ``steps`` and so on.

    Returns:
        What was found.

    Raises:
        AssertionError: It does not; the text has the evidence and the line that mends it.
        RuntimeError: Nothing can be said, for a reason that the text gives.
    """
    proof = prove(command, **settings)
    if proof.code == EXACT:
        return proof
    text = "\n".join(lines_of(proof, command))
    raise (AssertionError if proof.code == DIFFERS else RuntimeError)(text)
