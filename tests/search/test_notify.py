"""What is posted, when, and to whom; by a real server that may refuse, fail or be away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ram_tune.errors import BadInput
from ram_tune.search.jobs import Outcome
from ram_tune.search.notify import NOBODY, Notifier, checked, counts

SEARCH = {"search": "constraints-scenes", "study": "constraints-scenes-0a1b2c3d"}


class Listener(HTTPServer):
    """Answers with one of `codes` after the other, and remembers what it was told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.told: list[dict] = []
        self.codes = [200]
        self.url = f"http://127.0.0.1:{self.server_port}/services/secret"


class Answering(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json" and self.path == "/services/secret"
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.codes.pop(0) if len(self.server.codes) > 1 else self.server.codes[0])
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_end_is_told_once_with_what_came_of_it(listener):
    said: list[str] = []
    with Notifier(listener.url, SEARCH).at_the_end(said.append) as ending:
        assert not listener.told
        ending.status, ending.text, ending.about = "FINISHED", "ended", {"runs": {"finished": 6}, "seconds": 12}
    text = {"event": "ended", "text": "constraints-scenes ended", "status": "FINISHED"}
    assert listener.told == [{**SEARCH, **text, "runs": {"finished": 6}, "seconds": 12}] and not said


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), "KILLED", "was interrupted"),
        (RuntimeError("the disk is full\nat x"), "FAILED", "failed: RuntimeError: the disk is full"),
    ],
)
def test_an_end_by_an_exception_is_told_too(listener, error, status, text):
    with pytest.raises(type(error)), Notifier(listener.url, SEARCH).at_the_end(print):
        raise error
    (told,) = listener.told
    assert told["status"] == status and told["text"].startswith(f"constraints-scenes {text}".split("\n")[0][:30])


def test_what_stalls_is_told(listener):
    assert Notifier(listener.url, SEARCH).post("stalled", "A+S+P has not moved for 10 min") == ""
    assert listener.told == [{"event": "stalled", "text": "A+S+P has not moved for 10 min", **SEARCH}]


def test_a_server_that_fails_is_asked_again_and_one_that_refuses_is_not(listener):
    listener.codes = [503, 200]
    assert Notifier(listener.url, SEARCH).post("ended", "x") == "" and len(listener.told) == 2
    listener.codes = [404]
    assert Notifier(listener.url, SEARCH).post("ended", "x") == "--notify: 127.0.0.1 could not be told: it answered 404"
    assert len(listener.told) == 3


def test_nobody_there_is_said_and_the_secret_is_not():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/secret"
    said: list[str] = []
    with Notifier(url, SEARCH).at_the_end(said.append):
        pass
    assert "could not be told" in said[0] and "refused" in said[0] and "secret" not in said[0]


def test_without_a_url_nothing_happens():
    assert NOBODY.post("ended", "x") == ""
    assert checked("") == ""


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "hooks.example/secret",
        "http://",
        "file:///etc/secret",
        "http://[::1/secret",
        "http://x/a secret",
    ],
)
def test_what_cannot_be_posted_to_is_refused_without_being_repeated(url):
    with pytest.raises(BadInput, match=r"--notify: .*expected an http\(s\) address") as raised:
        checked(url)
    assert "secret" not in str(raised.value)


def test_ends_are_counted_by_kind():
    outcomes = [Outcome({"m": 1.0}), Outcome({"m": 1.0}), Outcome(error="x"), Outcome()]
    assert counts(outcomes) == {"finished": 2, "failed": 1, "stopped": 1}
