"""An S3 server for the tests of what is fetched from one."""

from collections.abc import Iterator
from itertools import count

import pytest
from buckets import ENVIRONMENT, Bucket, Server

NUMBERS = count()


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = Server()
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
        server.http.shutdown()


@pytest.fixture
def bucket(s3: Server) -> Bucket:
    """An empty one."""
    return Bucket(s3, f"bucket-{next(NUMBERS)}")
