"""The web hook, against a real server."""

import http.server
import json
import socket
import threading

import pytest

from learnit_r8 import events
from learnit_r8.loggers import Webhook, background, webhook
from tests.dashboard.state.told import start, steps


@pytest.fixture
def server():
    """A server that keeps what is posted, and fails as often as it is told to."""
    yield from serve()


@pytest.fixture
def other():
    """A second one, on another port: somebody else."""
    yield from serve()


def serve():

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if hook.failures:
                hook.failures -= 1
                self.send_error(503)
                return
            if hook.moved_to:
                self.send_response(hook.status)
                self.send_header("Location", hook.moved_to)
                self.end_headers()
                return
            hook.posted.append((json.loads(content), dict(self.headers)))
            self.send_response(204)
            self.end_headers()

        def do_GET(self):
            hook.posted.append(("GET", dict(self.headers)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.posted, hook.failures, hook.moved_to, hook.status = [], 0, "", 302
    hook.url = f"http://127.0.0.1:{hook.server_port}/hook"
    thread = threading.Thread(target=hook.serve_forever)
    thread.start()
    yield hook
    hook.shutdown()
    thread.join()
    hook.server_close()


def refused(step, tries=1):
    return events.BatchRefused(step, float(step), 0, float("nan"), 0.1, 0.05, tries, (), "not finite")


TROUBLE = [start(), steps(1, 1.0), refused(2), refused(3, 2), events.IncidentEnded(9, 9.0), refused(20)]


def told(logger, happened):
    for event in happened:
        logger(event)
    logger.close()


def test_incident_is_told_once_and_the_second_again(server):
    """An incident of several refusals is one post, the next incident another, and the end a third."""
    told(Webhook(server.url, headers={"X-Key": "k"}), [*TROUBLE, events.RunEnded(30, 30.0, True)])
    posted = [content for content, _ in server.posted]

    assert [(content["kind"], content["step"]) for content in posted] == [
        ("incident", 2), ("incident", 20), ("finished", 30),
    ]  # fmt: skip
    assert posted[0]["text"] == "it: step 2: loss nan refused: not finite"
    assert server.posted[0][1]["X-Key"] == "k"


def test_divergence_and_chosen_kinds(server):
    """Only the kinds that were asked for are told."""
    gone = [events.GaveUp(30, 30.0, "everything was tried", None), events.RunEnded(30, 30.0, False)]
    told(Webhook(server.url, kinds=["diverged", "recovered"]), [*TROUBLE, *gone])

    assert [content["kind"] for content, _ in server.posted] == ["recovered", "diverged"]


def test_server_that_fails_is_asked_again(server, monkeypatch):
    """A server that fails twice has the post at the third time."""
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.01)
    server.failures = 2
    logger = Webhook(server.url)
    told(logger, TROUBLE[:3])

    assert len(server.posted) == 1
    assert logger.num_lost == 0


def test_server_that_is_gone_is_said(monkeypatch):
    """A hook that cannot be reached costs the post, with one warning; the address is not in it."""
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.01)
    with pytest.warns(RuntimeWarning) as said:
        told(Webhook("http://127.0.0.1:9/secret"), TROUBLE[:3])

    assert len(said) == 2
    assert not any("secret" in str(one.message) for one in said)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_carries_nothing_to_another_server(server, other, status):
    """A hook that has moved is not followed, as headers hold credentials; the post counts as lost, and that is said."""
    server.moved_to, server.status = other.url, status
    logger = Webhook(server.url, headers={"Authorization": "Bearer t0ken"})
    with pytest.warns(RuntimeWarning) as said:
        told(logger, TROUBLE[:3])

    assert f"a redirect ({status}), which is not followed" in str(said[0].message)
    assert (server.posted, other.posted) == ([], [])
    assert logger.num_lost == 1
    assert not any(secret in str(one.message) for one in said for secret in ("t0ken", other.url))


def test_post_that_hangs_counts_as_lost(monkeypatch):
    """A server that takes the connection and never answers: the end of the run says that a post was lost."""
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        logger = Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.warns(RuntimeWarning, match="has lost 1 of 1 events, and was not done after"):
            told(logger, [refused(2)])

    assert logger.num_lost == 1


def test_answer_that_is_no_http_counts_as_lost(monkeypatch):
    """A server of another protocol costs the post, which is tried again and counted."""
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.01)
    calls = []

    def answer(listening):
        for _ in range(webhook.TRIES):
            connection, _ = listening.accept()
            calls.append(connection.recv(9))
            connection.sendall(b"220 mail ready\r\n")
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        logger = Webhook(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        with pytest.warns(RuntimeWarning):
            told(logger, TROUBLE[:3])
        thread.join()

    assert len(calls) == webhook.TRIES
    assert logger.num_lost == 1


@pytest.mark.parametrize("arguments", [
    {"url": "http://host/s3cret\n"}, {"url": "https:///s3cret"}, {"url": "http://h\u00e4st/s3cret"},
    {"url": "http://host:99999/s3cret"}, {"url": "http://host", "headers": {"Authorization": "Bearer s3cret\n"}},
    {"url": "http://host", "headers": {"Au th": "s3cret"}}, {"url": "http://host", "headers": {"Key": b"s3cret"}},
])  # fmt: skip
def test_mistakes_in_secrets_are_said_without_them(arguments):
    """An address or a header that cannot be sent, such as one read with the end of its line, is refused at once."""
    with pytest.raises(ValueError, match=r"url must begin with|headers must be") as said:
        Webhook(**arguments)

    assert "s3cret" not in str(said.value)


@pytest.mark.parametrize(("arguments", "text"), [
    ({"url": "ftp://x"}, "url must begin with http"), ({"url": "http://x", "kinds": ["fire"]}, "kinds must be some of"),
    ({"url": "http://x", "kinds": "incident"}, "kinds must be some of"),
])  # fmt: skip
def test_wrong_arguments_are_refused(arguments, text):
    """What cannot work is refused when the logger is made."""
    with pytest.raises(ValueError, match=text):
        Webhook(**arguments)
