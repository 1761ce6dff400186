"""A dataset behind a URL becomes a folder of this machine: fetched once, verified, and taken up again where it was left.

Only the files that a run reads are fetched: all are listed (a request per thousand of them), annotations are fetched and
read, then the images of the three roles. A file is here when it has the size and the time of change of the listing. One that
`SHA256SUMS` in the root names is compared with it before it gets its own name, so that what bears its own name is whole and
right. A machine's copy is below the cache folder, in datasets/NAME-DIGEST of the URL:

    files/      the dataset
    partial/    files that are not whole yet
    whole/      which choices of images were fetched, of the listing whose digest is in `listed`
    progress    for processes that wait: one fetches, under a lock
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import DownloadColumn, TextColumn, TransferSpeedColumn

from ram_tune.config import Data, digest, file_digest
from ram_tune.data import checksums
from ram_tune.data.annotations import inside
from ram_tune.data.progress import bars, listening
from ram_tune.data.storage import State, Storage, Unreachable
from ram_tune.data.voc import LAYOUTS
from ram_tune.errors import BadInput
from ram_tune.options import make_folder, require_space
from ram_tune.presets import is_url

THREADS = 16
"""Files that are fetched at once: small ones wait for answers most of the time."""

CHUNK = 8 * 2**20
"""Bytes asked for at once; the most that is lost of a file when its fetching is interrupted."""

PICTURES = {"name", "image_size", "crop_margin", "crop", "mirror", "max_image_pixels"}
"""Fields of `data` on which it does not depend which files a run reads."""

Advance = Callable[[int, int], None]
"""Told how many more files, and how many more bytes, have come."""

Read = TypeVar("Read")


def is_remote(data: Data) -> bool:
    """Whether its root or its file is a URL."""
    return is_url(data.root) or is_url(data.file)


def local(
    data: Data, cache_dir: Path, kept: bool, read: Callable[[Data], Read], images: Callable[[Read], Iterable[Path]]
) -> Read:
    """What `read` makes of `data` with its root and file on this machine, where all `images` of it are then as well.

    With `kept`, nothing is asked of the storage where the same choice of images was fetched before. Raises BadInput, which
    names URLs where `read` named this machine's copies of them.
    """
    file, root = data.file, data.root or _folder(data.file)
    copy = Copy(root, cache_dir) if is_url(root) else None
    if copy and data.format == "scenes":
        raise BadInput("--data-root", found=root, expected="none for scenes, which each machine renders for itself")
    name = copy.storage.below(file) if copy else ""
    apart = Copy(_folder(file), cache_dir) if is_url(file) and not name else None
    if apart:
        data = data.model_copy(update={"file": str(apart.only(apart.storage.below(file)))})
    with _named(copy, apart):
        if copy is None:
            return read(data)
        there = {"root": str(copy.root), "file": str(copy.root / name) if name else data.file}
        own = Path(data.file) if data.file and not name else None  # it may change with no listing to say so
        choice = digest([data.model_dump(exclude=PICTURES), file_digest(own) if own and own.is_file() else ""])
        with copy.held():
            if not (kept and copy.was_whole(choice)):
                copy.look()
                copy.fetch([name] if data.file else _annotation_files(data, copy))
                found = read(data.model_copy(update=there))
                copy.fetch(path.relative_to(copy.root).as_posix() for path in images(found))
                copy.note_whole(choice)
                return found
        return read(data.model_copy(update=there))


def _folder(file: str) -> str:
    parts = urlsplit(file)
    return urlunsplit(parts._replace(path=parts.path.rpartition("/")[0]))


@contextmanager
def _named(*copies: Copy | None) -> Iterator[None]:
    """Bad input names the URL where it would name this machine's copy of it."""
    try:
        yield
    except Unreachable:
        raise
    except BadInput as error:
        texts = [error.where, error.found, error.expected, error.remedy]
        for copy in copies:
            texts = [text.replace(str(copy.root), copy.storage.url()) if copy else text for text in texts]
        where, found, expected, remedy = texts
        raise BadInput(where, found=found, expected=expected, remedy=remedy) from error


def _annotation_files(data: Data, copy: Copy) -> list[str]:
    """The names of what is read before it is known which images are needed; makes the folders that COCO's reader looks for."""
    if data.format == "voc":
        tops = (f"{layout}/" if layout != "." else "" for layout in LAYOUTS)
        top = next((top for top in tops if any(name.startswith(f"{top}ImageSets/Main/") for name in copy.listing)), "")
        wanted = re.compile(re.escape(top) + r"(ImageSets/Main/[^/]+\.txt|Annotations/.+\.xml)", re.DOTALL)
        return [name for name in copy.listing if wanted.fullmatch(name)]
    splits = {data.train_split, data.selection_split, data.test_split} - {""}
    for place in [folder for split in splits for folder in (split, f"images/{split}")]:
        if any(name.startswith(f"{place}/") for name in copy.listing):
            copy.path(place).mkdir(parents=True, exist_ok=True)
    named = {f"annotations/instances_{split}.json" for split in splits}
    if named <= copy.listing.keys():
        return sorted(named)
    # One is missing: the reader says which there are.
    return [name for name in copy.listing if re.fullmatch(r"annotations/instances_[^/]+\.json", name)]


class Copy:
    """This machine's copy of the folder at a URL."""

    def __init__(self, url: str, cache_dir: Path):
        self.storage = Storage(url)
        readable = re.sub(r"[^\w.-]+", "-", self.storage.url().partition("://")[2]).strip("-.")[-60:]
        self.home = cache_dir / "datasets" / f"{readable}-{digest(str(self.storage))}"
        self.root = self.home / "files"
        self.partial = self.home / "partial"
        self.listing: dict[str, State] = {}  # name below the root → its state there
        self.sums: dict[str, str] = {}  # name → SHA-256, of those that SHA256SUMS names
        self.leaving = False

    def path(self, name: str) -> Path:
        """Where the file of that name is, or will be. Raises BadInput for a name that leads out of the folder."""
        url = self.storage.url()
        if inside(name, url) != name:
            raise BadInput(url, found=f"the name {name!r}", expected="plain names", remedy="Rename it there.")
        return self.root / name

    @contextmanager
    def held(self) -> Iterator[None]:
        """The only process of this machine that changes the copy; until it is that, it tells how far the other is."""
        for folder in (self.root, self.partial):
            make_folder(folder, "--cache-dir")
        lock, told = FileLock(self.home / ".lock"), False
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except Timeout:
                text = f"waiting for another process that fetches {self.storage.url()}"
                if listener := listening():
                    listener(text, *self._far())
                elif not told:
                    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
                told = True
        try:
            yield
        finally:
            lock.release()

    def only(self, name: str) -> Path:
        """Fetch a single file. Raises BadInput."""
        with self.held():
            self.look(name)
            if name not in self.listing:
                found = "no such file"
                raise BadInput(self.storage.url(name), found=found, expected="annotations", remedy="Check the URL.")
            self.fetch([name])
        return self.root / name

    def look(self, only: str = "") -> None:
        """List what is there, or `only` that file, and remove what `SHA256SUMS` says something new of."""
        self.listing = self.storage.list(*[only, checksums.NAME] if only else [])
        seen, listed = digest(sorted(self.listing.items())), self.home / "listed"
        if not listed.exists() or listed.read_text() != seen:
            shutil.rmtree(self.home / "whole", ignore_errors=True)
            listed.write_text(seen)
        mine = self.root / checksums.NAME
        before = checksums.parse(mine.read_bytes(), mine) if mine.exists() else {}
        if checksums.NAME not in self.listing:
            mine.unlink(missing_ok=True)
        elif self._is_here(checksums.NAME):
            self.sums = before
        else:
            new = self._whole(checksums.NAME, lambda files, size: None)
            self.sums = checksums.parse(new.read_bytes(), self.storage.url(checksums.NAME))
            for name in self.listing.keys() & self.sums.keys():
                file = self.path(name)
                if self.sums[name] != before.get(name) and file.is_file() and checksums.of(file) != self.sums[name]:
                    file.unlink()
            self._keep(new, checksums.NAME)  # after all that was compared with the one before

    def fetch(self, names: Iterable[str]) -> None:
        """Bring the files of these names that are there and not here. Raises BadInput."""
        lacking = [name for name in dict.fromkeys(names) if name in self.listing and not self._is_here(name)]
        if not lacking:
            return
        size = sum(self.listing[name][0] for name in lacking)
        require_space(self.home, size, f"what is fetched of {self.storage.url()}")
        pool = ThreadPoolExecutor(THREADS)
        try:
            with self._progress(len(lacking), size) as advance, _writing(self.home):
                for _ in pool.map(lambda name: self._bring(name, advance), lacking):
                    pass
        finally:
            self.leaving = True  # neither an error nor Ctrl-C waits for the rest
            pool.shutdown(cancel_futures=True)
            self.leaving = False
        shutil.rmtree(self.partial)
        self.partial.mkdir()

    def was_whole(self, choice: str) -> bool:
        """Whether this choice of images was fetched, and no later listing was another."""
        return (self.home / "whole" / choice).exists()

    def note_whole(self, choice: str) -> None:
        """From now on it was."""
        (self.home / "whole").mkdir(exist_ok=True)
        (self.home / "whole" / choice).touch()

    def _is_here(self, name: str) -> bool:
        try:
            found = self.path(name).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == self.listing[name]

    def _bring(self, name: str, advance: Advance) -> None:
        self._keep(self._whole(name, advance), name)
        advance(1, 0)

    def _whole(self, name: str, advance: Advance) -> Path:
        """Fetch a file, and once more where it is not what it should be → the partial file, which is whole."""
        size, listed = self.listing[name][0], self.sums.get(name)
        found = expected = ""
        for _ in range(2):
            new = self._download(name, advance)
            if (got := new.stat().st_size) != size:
                found, expected = f"{got} bytes", f"{size}, as listed"
            elif listed and (sha256 := checksums.of(new)) != listed:
                found, expected = f"SHA-256 {sha256}", f"{listed}, as {checksums.NAME} says"
            else:
                return new
            new.unlink()
        remedy = (
            f"Upload the file again, or make {checksums.NAME} anew; if somebody is writing there, wait for the end."
        )
        raise BadInput(self.storage.url(name), found=found, expected=expected, remedy=remedy)

    def _download(self, name: str, advance: Advance) -> Path:
        """The file as a partial one, going on where an earlier process left this state of it."""
        new = self.partial / digest([name, self.listing[name]])
        with self.storage.open(name) as source, new.open("ab") as file:
            have = min(file.tell(), source.size())
            source.seek(have)
            advance(0, have)
            while chunk := self.storage.read(source, CHUNK, name):
                if self.leaving:
                    raise InterruptedError  # nobody hears it
                file.write(chunk)
                advance(0, len(chunk))
        return new

    def _keep(self, new: Path, name: str) -> None:
        """Give a file that is whole its name, and the time of change by which it is known again."""
        changed = self.listing[name][1]
        os.utime(new, ns=(changed, changed))
        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        new.replace(file)

    @contextmanager
    def _progress(self, total: int, size: int) -> Iterator[Advance]:
        task, lock, listener = f"fetching {self.storage.url()}", Lock(), listening()
        done, written = 0, 0.0
        with bars(TextColumn("{task.fields[files]}"), DownloadColumn(), TransferSpeedColumn()) as shown:
            bar = shown.add_task(task, total=size, files=f"0/{total} files")

            def advance(files: int, new: int) -> None:
                nonlocal done, written
                with lock:
                    done += files
                    shown.update(bar, advance=new, files=f"{done}/{total} files")
                    if listener and files:
                        rate = (shown.tasks[0].finished_speed or shown.tasks[0].speed or 0) / 1e6
                        listener(f"{task} at {rate:.0f} MB/s", done, total)
                    if time.monotonic() - written > 1:
                        written = time.monotonic()
                        (self.home / "progress").write_text(f"{done} {total}")

            yield advance
        (self.home / "progress").unlink(missing_ok=True)

    def _far(self) -> tuple[int, int]:
        """How many files, of how many, the process that fetches has brought."""
        try:
            done, total = (self.home / "progress").read_text().split()
        except (OSError, ValueError):  # it has not begun to fetch, or is just writing it
            return 0, 0
        return int(done), int(total)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A disk that is full all the same, as bad input."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = "Make room, or name another disk with --cache-dir (or RAM_TUNE_CACHE); what has come stays."
        raise BadInput(folder, found=error.strerror, expected="room for the dataset", remedy=remedy) from error
