"""An S3 server of this process, which counts what it is asked and can be made to stall."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "anybody",
    "AWS_SECRET_ACCESS_KEY": "anything",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

KILLED = "killed"


class Server:
    """What each of its users asks of it is counted: (user, method, path) → times."""

    def __init__(self):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.app = DomainDispatcherApplication(create_backend_app)
        self.http = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.port}"
        self.asked: Counter[tuple[str, str, str]] = Counter()
        self._stall: Callable[[], bool] | None = None
        self._stalled, self._go_on = threading.Event(), threading.Event()
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")

    def _answer(self, environ: dict, start: Callable) -> Iterable[bytes]:
        signed = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        user = signed[1] if signed else ""
        self.asked[user, environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"])] += 1
        if self._stall and self._stall():
            self._stalled.set()
            self._go_on.wait(60)
        return self.app(environ, start)

    def gets(self, user: str, path: str = "") -> int:
        """How often `user` read what has `path` in its name."""
        asked = list(self.asked.items())
        return sum(times for (who, method, where), times in asked if (who, method) == (user, "GET") and path in where)

    @contextmanager
    def stalling(self, when: Callable[[], bool]) -> Iterator[Callable[[], None]]:
        """Answer nothing as soon as `when`, until the end; gives a function that waits for that."""
        self._stalled.clear()
        self._go_on.clear()
        self._stall = when

        def wait() -> None:
            assert self._stalled.wait(60)

        try:
            yield wait
        finally:
            self._stall = None
            self._go_on.set()


class Bucket:
    """One of its buckets."""

    def __init__(self, server: Server, name: str):
        self.server, self.name, self.url = server, name, f"s3://{name}"
        server.client.create_bucket(Bucket=name)
        server.asked.clear()

    def put(self, name: str, content: bytes) -> None:
        self.server.client.put_object(Bucket=self.name, Key=name, Body=content)

    def remove(self, name: str) -> None:
        self.server.client.delete_object(Bucket=self.name, Key=name)

    def upload(self, folder: Path, prefix: str = "") -> None:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(prefix + file.relative_to(folder).as_posix(), file.read_bytes())

    def fetched(self) -> Counter[str]:
        """Name → how often it was asked for since the last call; `` for listings. Of a process that
        was killed requests may still come in: those of the user `KILLED` do not count."""
        gets: Counter[str] = Counter()
        for (user, method, path), times in self.server.asked.items():
            if method == "GET" and user != KILLED:
                gets[path] += times
        self.server.asked.clear()
        return Counter({path.removeprefix(f"/{self.name}").lstrip("/"): times for path, times in gets.items()})


def sums(folder: Path) -> bytes:
    """What `sha256sum` writes of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  ./{file.relative_to(folder)}\n" for file in files]
    return "".join(lines).encode()
