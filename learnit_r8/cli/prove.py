"""``learnit-r8 prove``: whether a training goes on exactly where it was when it is killed and started again."""

from __future__ import annotations

import argparse
import sys

from ..events.codec import strict_json
from ..state.durable_io import open_output
from ..testing.prove.proof import prove as find_out
from ..testing.prove.report import as_data, lines_of, page

SETTINGS = ("resume", "kills", "steps", "allow", "link", "deterministic", "seed", "work")


def prove(options: argparse.Namespace) -> int:
    """Run the command whole and killed, and print where the two differ."""
    command = options.words[1:] if options.words[:1] == ["--"] else options.words
    settings = {name: getattr(options, name) for name in SETTINGS}
    try:
        proof = find_out(command, say=lambda text: print(f"... {text}", file=sys.stderr, flush=True), **settings)
        if options.report:
            with open(open_output(options.report), "w", encoding="utf-8") as file:
                file.write(page(proof, command))
    except (OSError, ValueError) as error:
        # 1 would say that it differs.
        print(f"learnit-r8 prove: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("learnit-r8 prove: interrupted; what was started has ended, and its copies are gone.", file=sys.stderr)
        return 130
    print(strict_json(as_data(proof, command)) if options.json else "\n".join(lines_of(proof, command)))
    return proof.code
