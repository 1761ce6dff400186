"""What lies behind a URL: its files listed and read, and what may go wrong with that in the words of bad input.

Through pyarrow, not fsspec: Ray and MLflow bring it along, S3 and Google Cloud Storage are built into it (fsspec needs a
package for each), it finds a bucket's region, and it repeats requests that fail.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit, urlunsplit

from ram_tune.errors import BadInput

GOOGLE_RETRY_SECONDS = 60
"""How long Google's library tries again, where the URL does not say (`retry_limit_seconds`); its own default is 15 minutes."""

DENIED = re.compile(
    r"AWS Error \w*(ACCESS|SIGNATURE|TOKEN|CLIENT)|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED|OAuth2"
)
NO_BUCKET = re.compile(r"AWS Error NO_SUCH_BUCKET|Bucket '.*' not found")

State = tuple[int, int]
"""Size in bytes, and time of change in ns: another one, another file."""


class Unreachable(BadInput):
    """A place that does not answer, and may do so at a second try."""


class Storage:
    """The folder at a URL. Raises BadInput for a URL that holds a password."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        if parts.password:
            raise BadInput(
                "--data-root",
                found=f"a URL with a password, for {parts.hostname}",
                expected="one without: it is written into records",
                remedy="Give it as the storage's own tools take it, such as AWS_SECRET_ACCESS_KEY or ~/.aws/credentials.",
            )
        self.parts = parts._replace(path=parts.path.rstrip("/"))

    def __str__(self) -> str:
        return urlunsplit(self.parts)

    def url(self, name: str = "") -> str:
        """The URL of the file of that name, or of the folder, for people to read: without its options."""
        return urlunsplit(self.parts._replace(path=f"{self.parts.path}/{name}" if name else self.parts.path, query=""))

    def below(self, file: str) -> str:
        """The name in this folder of the file at a URL; empty where that lies elsewhere."""
        parts, folder = urlsplit(file), self.parts.path + "/"
        same = parts._replace(path="") == self.parts._replace(path="") and parts.path.startswith(folder)
        return unquote(parts.path.removeprefix(folder)) if same else ""

    def list(self, *names: str) -> dict[str, State]:
        """Name → state of the files of these names that are there; without names, of all. Raises BadInput."""
        with self._asking():
            self._open()
            from pyarrow.fs import FileSelector, FileType

            what = [f"{self.base}/{name}" for name in names] or FileSelector(self.base, recursive=True)
            files = [entry for entry in self.system.get_file_info(what) if entry.type == FileType.File]
        return {file.path[len(self.base) + 1 :]: (file.size, file.mtime_ns or 0) for file in files}

    def open(self, name: str) -> Any:
        """A listed file, to `read` from any place. Raises BadInput."""
        with self._asking(name):
            return self.system.open_input_file(f"{self.base}/{name}")

    def read(self, source: Any, size: int, name: str) -> bytes:
        """The next bytes, at most `size`, of the open file of that name; none at its end. Raises BadInput."""
        with self._asking(name):
            return source.read(size)

    def _open(self) -> None:
        """Connect: `system` is pyarrow's file system, `base` the folder's path in it."""
        try:
            from pyarrow.fs import FileSystem
        except ImportError as error:
            raise BadInput("--data-root", found="no pyarrow", expected="it", remedy="pip install pyarrow") from error
        parts = self.parts
        if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parse_qs(parts.query):
            more = urlencode({"retry_limit_seconds": GOOGLE_RETRY_SECONDS})
            parts = parts._replace(query=f"{parts.query}&{more}" if parts.query else more)
        # What stands for itself stays, and so does what is escaped.
        self.system, base = FileSystem.from_uri(quote(urlunsplit(parts), safe=string.punctuation))
        self.base = base.rstrip("/")
        if not self.base:
            raise ValueError("no bucket or folder")

    @contextmanager
    def _asking(self, name: str = "") -> Iterator[None]:
        """What pyarrow raises, as bad input."""
        where = self.url(name)
        try:
            yield
        except FileNotFoundError as error:
            remedy = "It was there when the folder was listed: try again." if name else "Check the URL."
            raise BadInput(where, found="nothing there", expected="a dataset's files", remedy=remedy) from error
        except (ValueError, NotImplementedError) as error:
            expected = "a URL such as s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
            raise BadInput(where, found=str(error), expected=expected) from error
        except OSError as error:
            said = str(error).splitlines()[0]
            if NO_BUCKET.search(said):
                raise BadInput(where, found="no such bucket", expected="one", remedy="Check the URL.") from error
            if DENIED.search(said):
                raise BadInput(
                    where,
                    found=f"no access ({said})",
                    expected="credentials that may list and read it",
                    remedy="S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role; "
                    "Google: GOOGLE_APPLICATION_CREDENTIALS, or gs://anonymous@BUCKET for a public bucket.",
                ) from error
            remedy = "Check network and region, and try again: what has come stays."
            raise Unreachable(where, found=said, expected="an answer", remedy=remedy) from error
