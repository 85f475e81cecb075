"""``learnit-r8 prove``: whether a training goes on exactly where it was when it is killed and started again."""

from __future__ import annotations

import argparse
import signal
import sys

from ..checkpoint.durable_io import open_output
from ..events.codec import strict_json
from ..testing.prove.proof import prove as find_out
from ..testing.prove.report import as_data, lines_of, page


def prove(options: argparse.Namespace) -> int:
    """Run the command whole and killed, and print where the two differ."""
    command = options.words[1:] if options.words[:1] == ["--"] else options.words

    def say(text: str) -> None:
        print(f"... {text}", file=sys.stderr, flush=True)

    # What ends this program must end what it has started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        proof = find_out(
            command, resume=options.resume, kills=options.kills, steps=options.steps, allow=options.allow,
            link=options.link, deterministic=options.deterministic, seed=options.seed, work=options.work, say=say,
        )  # fmt: skip
    except ValueError as error:
        print(f"learnit-r8 prove: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("learnit-r8 prove: interrupted; what was started has ended, and its copies are gone.", file=sys.stderr)
        return 130
    if options.report:
        with open(open_output(options.report), "w", encoding="utf-8") as file:
            file.write(page(proof, command))
    print(strict_json(as_data(proof, command)) if options.json else "\n".join(lines_of(proof, command)))
    return proof.code
