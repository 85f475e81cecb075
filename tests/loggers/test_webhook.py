"""The web hook that the guide has as a logger of your own, against a real server."""

import http.server
import json
import re
import threading
from pathlib import Path

import pytest

from learnit_r8 import events
from tests.dashboard.state.told import start, steps

GUIDE = Path(__file__).parents[2] / "docs" / "loggers.md"


@pytest.fixture
def server():
    """A server that keeps what is posted, and fails as often as it is told to."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if hook.failures:
                hook.failures -= 1
                self.send_error(503)
                return
            hook.posted.append(json.loads(content))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.posted, hook.failures, hook.url = [], 0, f"http://127.0.0.1:{hook.server_port}/hook"
    thread = threading.Thread(target=hook.serve_forever)
    thread.start()
    yield hook
    hook.shutdown()
    thread.join()
    hook.server_close()


@pytest.fixture
def webhook():
    """The class of the guide."""
    (block,) = re.findall(r"```python\n([^`]*class Webhook.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(block, names)
    return names["Webhook"]


def refused(step):
    return events.BatchRefused(step, float(step), 0, float("nan"), 0.1, 0.05, 1, (), "not finite")


HAPPENED = [
    start(), steps(1, 1.0), refused(2),
    events.CauseFound(2, 2.0, "step 2: NaN first in `head`", "forward", "head", (), True),
    events.IncidentEnded(9, 9.0), events.RunEnded(30, 30.0, True),
]  # fmt: skip


def told(logger):
    for event in HAPPENED:
        logger(event)


def test_the_guides_web_hook_posts_what_somebody_should_see(webhook, server):
    """The cause of an incident and the end of the run, as text; what is told of every refusal is left out."""
    logger = webhook(server.url)
    told(logger)

    assert [(each["kind"], each["step"]) for each in server.posted] == [("cause", 2), ("finished", 30)]
    assert server.posted[0]["text"] == "step 2: NaN first in `head`"
    assert logger.num_lost == 0


def test_a_server_that_fails_costs_the_post_alone(webhook, server):
    """The event is counted as lost, and later ones are posted."""
    server.failures = 1
    logger = webhook(server.url)
    with pytest.warns(RuntimeWarning, match=r"(?s)logger Webhook could not write, and goes on.*503|has lost 1 of"):
        told(logger)

    logger.error.close()
    assert [each["kind"] for each in server.posted] == ["finished"]
    assert logger.num_lost == 1
