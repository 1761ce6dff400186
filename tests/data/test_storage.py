"""What lies behind a URL, and what is said when it does not."""

from pathlib import Path

import pytest
from buckets import Bucket
from moto import settings

from ram_tune.data.storage import Storage, Unreachable
from ram_tune.errors import BadInput


def refusal(url: str) -> str:
    with pytest.raises(BadInput) as caught:
        Storage(url).list()
    assert not isinstance(caught.value, Unreachable)
    return str(caught.value)


def test_files_of_a_prefix(bucket: Bucket):
    bucket.put("set/a.txt", b"hello")
    bucket.put("set/two words/ü.txt", b"")
    bucket.put("set/folder/", b"")  # as consoles make them
    bucket.put("settings", b"beside it")
    storage = Storage(f"{bucket.url}/set/")
    listing = storage.list()
    assert {name: size for name, (size, _) in listing.items()} == {"a.txt": 5, "two words/ü.txt": 0}
    assert storage.list("a.txt", "none") == {"a.txt": listing["a.txt"]}
    with storage.open("a.txt") as file:
        file.seek(1)
        assert [storage.read(file, 3, "a.txt") for _ in range(3)] == [b"ell", b"o", b""]
    assert storage.url("a.txt") == f"{bucket.url}/set/a.txt"


def test_what_is_escaped_in_a_url_and_what_is_not(bucket: Bucket, tmp_path: Path):
    bucket.put("two words/ü/a.txt", b"1")
    assert set(Storage(f"{bucket.url}/two words/ü").list()) == {"a.txt"}
    assert set(Storage(f"{bucket.url}/two%20words/%C3%BC").list()) == {"a.txt"}
    (tmp_path / "two words").mkdir()
    (tmp_path / "two words" / "b.txt").write_text("2")
    assert set(Storage(f"file://{tmp_path}/two words").list()) == {"b.txt"}


def test_names_below_it():
    storage = Storage("s3://bucket/set/?region=eu-central-1")
    assert storage.below("s3://bucket/set/a/labels%20x.csv?region=eu-central-1") == "a/labels x.csv"
    assert storage.below("s3://bucket/settings/a.csv?region=eu-central-1") == ""
    assert storage.below("s3://other/set/a.csv?region=eu-central-1") == ""
    assert storage.url("x") == "s3://bucket/set/x"


def test_places_that_are_not(bucket: Bucket, tmp_path: Path):
    assert "s3://no-such-bucket/x: found no such bucket" in refusal("s3://no-such-bucket/x")
    assert f"{bucket.url}/none: found nothing there" in refusal(f"{bucket.url}/none")
    assert "found nothing there" in refusal(f"file://{tmp_path}/none")
    assert "no bucket" in refusal("s3://")
    assert "ftp" in refusal("ftp://somewhere/x") and "s3://BUCKET/FOLDER" in refusal("ftp://somewhere/x")
    bucket.put("set/a.txt", b"hello")
    storage = Storage(f"{bucket.url}/set")
    storage.list()
    bucket.remove("set/a.txt")
    with pytest.raises(BadInput, match=r"set/a\.txt: found nothing there.*try again"):
        storage.open("a.txt")


def test_credentials_that_do_not_count(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    bucket.put("set/a.txt", b"hello")
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on the server looks at them
    text = refusal(f"{bucket.url}/set")
    assert "no access" in text and "AWS_ACCESS_KEY_ID" in text


def test_no_password_in_a_url():
    with pytest.raises(BadInput, match="password") as caught:
        Storage("s3://me:hush@bucket/x")
    assert "hush" not in str(caught.value)
    assert Storage("gs://anonymous@bucket/x").url("a") == "gs://anonymous@bucket/x/a"


def test_a_place_that_does_not_answer_may_do_so_later():
    storage = Storage("gs://anonymous@bucket/x?retry_limit_seconds=1&scheme=http&endpoint_override=127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"gs://anonymous@bucket/x: found .*try again"):
        storage.list()
