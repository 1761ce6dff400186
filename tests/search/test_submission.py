"""What is sent to a cluster as a job, what is refused, and what its jobs look like; no Ray is started."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from ram_tune.errors import BadInput
from ram_tune.search import job_server
from ram_tune.search import space as spaces
from ram_tune.search.__main__ import main
from ram_tune.search.arguments import overrides_of, parser
from ram_tune.search.provenance import COMMIT, commit, provenance
from ram_tune.search.submission import (
    IN_A_JOB,
    PLACES,
    STOP_VARIABLE,
    arguments_of,
    check_places,
    settle_in,
    submission,
    working_directory,
)

MINE = "version: 1\ntitle: Mine\narms: {one: {}}\n"
SECRET = "postgresql://me:secret@db/studies"


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine that runs the tests."""
    for name in (*job_server.VARIABLES, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", IN_A_JOB, STOP_VARIABLE, COMMIT):
        monkeypatch.delenv(name, raising=False)
    for place in PLACES:
        if place.variable:
            monkeypatch.delenv(place.variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def parsed(text: str) -> Any:
    return parser().parse_args(shlex.split(text))


# What is sent


def test_the_job_is_the_same_search_without_what_concerns_the_way_there():
    given = "constraints --submit http://h:8265 --arms 'A + S' none --seeds 3 --fresh --set loss.anchor=off 'x=[1, 2]'"
    job = submission(parsed(given))
    words = shlex.split(job.entrypoint)
    assert words[:4] == ["python", "-m", "ram_tune.search", "constraints"]
    again = parsed(shlex.join(words[3:]))
    there = parsed(given)
    there.submit = None
    assert vars(again) == vars(there)


@pytest.mark.parametrize(
    "text",
    [
        "full --submit --trials 40 --hours 1.5 --gpu-hours 8 --confirm 0 --dry-run",
        "my.yaml --data /d/l.csv --data-root /d --cache-dir /c --results '/r with space' --keep-checkpoints none --submit",
        "constraints --submit http://h --workers 1:4 --gpus-per-worker 0.5 --concurrency 2",
    ],
)
def test_every_option_arrives(text: str):
    there = parsed(text)
    there.submit = None
    assert vars(parsed(shlex.join(arguments_of(parsed(text))))) == vars(there)


def test_passwords_travel_apart_from_the_command():
    job = submission(parsed(f"constraints --study-storage {SECRET} --tracking-uri http://u:secret@m:5000 --submit"))
    assert "secret" not in job.entrypoint + str(job.metadata)
    assert job.variables["RAM_TUNE_STUDY_STORAGE"] == SECRET
    assert job.variables["MLFLOW_TRACKING_URI"] == "http://u:secret@m:5000"


def test_no_variable_is_set_twice():
    """Ray refuses a job whose variables `ray.init` sets again."""
    from ram_tune.distribution.trial import ENVIRONMENT

    job = submission(parsed(f"constraints --study-storage {SECRET} --tracking-uri http://m --submit"))
    assert not job.variables.keys() & {*ENVIRONMENT, "RAY_ADDRESS"}


def test_a_stopped_job_has_time_for_its_epoch(monkeypatch):
    assert int(submission(parsed("constraints --submit")).variables[STOP_VARIABLE]) >= 600
    monkeypatch.setenv(STOP_VARIABLE, "7")
    assert submission(parsed("constraints --submit")).variables[STOP_VARIABLE] == "7"


def test_its_id_says_what_it_is():
    first, second = (submission(parsed("'my search.yaml' --data '/d/My pictures.csv' --submit")).id for _ in range(2))
    assert first.startswith(time.strftime("my-search-My-pictures-%Y%m")) and first != second
    assert set(first) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def test_the_package_is_sent_as_it_is_here_and_nothing_else(tmp_path):
    (tmp_path / "secrets.env").write_text("key")
    mine = tmp_path / "mine.yaml"
    mine.write_text(MINE)
    with working_directory(str(mine)) as folder:
        assert {path.name for path in folder.iterdir()} == {"ram_tune", "search_spaces", "mine.yaml"}
        assert (folder / "ram_tune" / "search" / "submission.py").read_text() == Path(
            sys.modules[working_directory.__module__].__file__
        ).read_text()
        assert not list(folder.rglob("__pycache__"))
        assert sum(path.stat().st_size for path in folder.rglob("*")) < 5e6
        # There, with another package installed, it is this one that is found, and its spaces.
        said = subprocess.check_output(
            [sys.executable, "-c", "from ram_tune.search import space; print(space.folder()); print(space.names())"],
            cwd=folder,
            text=True,
        ).splitlines()
        assert Path(said[0]).resolve() == (folder / "search_spaces").resolve()
        assert said[1] == str(spaces.names())
    assert not folder.exists()


def test_the_commit_goes_with_it(monkeypatch, tmp_path):
    known = commit()
    assert submission(parsed("constraints --submit")).variables.get(COMMIT, "") == known
    for told, dirty in (("abc123", "false"), ("abc123 dirty", "true")):
        monkeypatch.setenv(COMMIT, told)
        tags = provenance(tmp_path)  # no checkout
        assert (tags["mlflow.source.git.commit"], tags["ram_tune.dirty"]) == ("abc123", dirty)
    monkeypatch.delenv(COMMIT)
    assert "mlflow.source.git.commit" not in provenance(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("--results runs", "--results"),
        ("--cache-dir cache", "--cache-dir"),
        ("--data labels.csv", "--data"),
        ("--data images/coco.json", "--data"),
        ("--data-root images", "--data-root"),
        ("--tracking-uri sqlite:///mlflow.db", "--tracking-uri"),
        ("--tracking-uri sqlite://", "--tracking-uri"),
        ("--study-storage sqlite:///studies.db", "--study-storage"),
        ("--set data.root=images", "data.root"),
        ("--set model.backbone.weights=vgg.pth", "model.backbone.weights"),
    ],
)
def test_places_in_the_working_directory_are_refused_before_anything_is_sent(given: str, field: str):
    with pytest.raises(BadInput, match="thrown away") as caught:
        main(shlex.split(f"constraints --submit http://127.0.0.1:1 {given}"))  # nobody is asked there
    assert caught.value.where.startswith(field)
    assert "such as" in caught.value.expected


def refused(text: str, there: bool = False) -> str:
    """The place that is refused, or nothing."""
    options = parsed(f"constraints {text}")
    try:
        check_places(options, spaces.read("constraints"), overrides_of(options), there)
    except BadInput as error:
        return error.where.partition(" ")[0]
    return ""


@pytest.mark.parametrize(
    "given",
    [
        "",
        "--results /r --cache-dir '~/cache' --data /d/labels.csv --data-root s3://bucket/d",
        f"--tracking-uri http://u:secret@m:5000 --study-storage {SECRET}",
        "--tracking-uri databricks --study-storage sqlite:////r/studies.db?timeout=5",
        "--data voc2007 --set model.backbone.weights=IMAGENET1K_V1 data.root=/d",
    ],
)
def test_other_places_are_not(given: str):
    assert refused(given) == ""


def test_a_refusal_shows_no_password():
    with pytest.raises(BadInput) as caught:
        main(shlex.split("constraints --submit http://u:secret@127.0.0.1:1"))
    assert "secret" not in str(caught.value)


def test_in_a_job_what_is_left_out_is_looked_up_in_the_clusters_environment(monkeypatch):
    assert refused("", there=True) == "--results"
    monkeypatch.setenv("RAM_TUNE_RESULTS", "runs")
    assert refused("", there=True) == "--results"
    monkeypatch.setenv("RAM_TUNE_RESULTS", "/shared/results")
    assert refused("", there=True) == "--tracking-uri"  # MLflow's own default is a file in the folder at hand
    assert refused("--tracking-uri sqlite:////shared/mlflow.db", there=True) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:secret@m")
    assert refused("", there=True) == ""
    monkeypatch.setenv("RAM_TUNE_STUDY_STORAGE", "sqlite:///studies.db")
    assert refused("", there=True) == "--study-storage"
    assert refused("--study-storage sqlite:////here/studies.db", there=True) == ""


def test_a_search_knows_that_it_is_a_job(monkeypatch):
    space = spaces.read("constraints")
    here = parsed("constraints")
    settle_in(here, space, {})
    assert here.address == ""
    monkeypatch.setenv(IN_A_JOB, "{}")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(BadInput, match="RAM_TUNE_RESULTS"):
        main(["constraints"])
    there = parsed("constraints --results /r --tracking-uri http://m")
    settle_in(there, space, {})
    assert there.address == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("command", "where", "hint"),
    [
        ("--submit constraints", "--submit", "its name first"),  # argparse takes the name for the address
        ("constraints --submit 127.0.0.1:8265", "--submit 127.0.0.1:8265", "http://"),
        ("constraints --submit --address 10.0.0.1:6379", "--address", "one of them"),
        ("constraints --submit --set training.epocs=3", "--set", "training.epochs"),
        ("constraints --submit --set training.epochs=many", "configuration: training.epochs", "integer"),
        ("constraints --submit --data vco2007", "--data", "voc2007"),
        ("constraints --submit --arms A+X", "--arms", "A+S"),
        ("--jobs --address auto", "--address auto", "http://"),
        ("--follow some-job --address http://127.0.0.1:1", "http://127.0.0.1:1", "ray dashboard"),
    ],
)
def test_what_cannot_be_is_said_here(command: str, where: str, hint: str):
    with pytest.raises(BadInput) as caught:
        main(shlex.split(command))
    assert caught.value.where.startswith(where) and hint in str(caught.value)


def test_the_address_is_found_where_ray_job_finds_it(monkeypatch):
    assert job_server.server_url("", "--address") == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://there:8265/")
    assert job_server.server_url("", "--address") == "http://there:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://before:1")
    assert job_server.server_url("", "--address") == "https://before:1"
    assert job_server.server_url("http://named:2", "--submit") == "http://named:2"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "10.0.0.1:6379")  # of the cluster itself, not of its dashboard
    with pytest.raises(BadInput, match="RAY_API_SERVER_ADDRESS"):
        job_server.server_url("", "--submit")


# Against something that answers as the job server does


class Server(BaseHTTPRequestHandler):
    """A job server with two jobs; `token`: what it asks for."""

    token: ClassVar[str] = ""
    asked: ClassVar[list[str]] = []
    jobs: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        type(self).asked.append(self.path)
        if self.token and not given:
            self.answer(401, "Unauthorized: Missing authentication token")
        elif self.token and given != f"Bearer {self.token}":
            self.answer(403, "Forbidden: Invalid authentication token")
        elif self.path == "/api/version":
            self.answer(
                200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
            )
        elif self.path == "/api/jobs/":
            self.answer(200, json.dumps(self.jobs))
        else:
            self.answer(404, "no such page")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # what is named counts, not this
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "jobs", [details("old", 1_000), details("new", 2_000_000)])
    monkeypatch.setattr(Server, "token", "")
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def details(name: str, start: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "SUBMISSION",
        "submission_id": name,
        "status": "RUNNING",
        "entrypoint": "python -m ram_tune.search constraints --tracking-uri http://u:secret@m",
        "start_time": start,
        "metadata": {},
        **more,
    }


def test_jobs_are_listed_the_newest_first(server, capsys):
    Server.jobs += [details("newest", 3_000_000, status="SUCCEEDED", metadata={"command": "full --trials 3"})]
    Server.jobs += [{"type": "DRIVER", "job_id": "01000000", "status": "RUNNING", "entrypoint": "python x.py"}]
    assert main(["--jobs", "--address", server]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows[::2]] == ["newest", "new", "old"]
    assert "succeeded" in rows[0] and "full --trials 3" in rows[1]
    assert "secret" not in said and "x.py" not in said
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(3_000))
    assert since in rows[0]


@pytest.mark.parametrize("option", ["--follow", "--stop"])
def test_an_unknown_job_is_refused_with_those_there_are(server, option):
    with pytest.raises(BadInput) as caught:
        main([option, "neww", "--address", server])
    assert "new, old" in str(caught.value) and "Did you mean new?" in str(caught.value)


def test_the_token_is_sent_when_there_is_one(server, monkeypatch, tmp_path):
    monkeypatch.setattr(Server, "token", "right")
    with pytest.raises(BadInput, match="asks for a token"):
        main(["--jobs", "--address", server])
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("right\n")
    assert main(["--jobs", "--address", server]) == 0
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    (tmp_path / "other").write_text("wrong")
    with pytest.raises(BadInput, match="refuses this machine's token"):
        main(["--jobs", "--address", server])
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert main(["--jobs", "--address", server]) == 0


def test_something_else_that_listens_there_is_no_cluster(server, monkeypatch):
    monkeypatch.setattr(Server, "do_GET", lambda self: self.answer(200, "<html>"))
    with pytest.raises(BadInput, match="no Ray cluster there"):
        main(["--jobs", "--address", server])


# The log


class Client:
    """A job whose log is read in pieces over connections that break; `pieces`: of each connection, up to its break."""

    def __init__(self, *connections: list[str], status: str = "SUCCEEDED", **more: Any):
        self.connections, self.status, self.more = list(connections), status, more

    async def tail_job_logs(self, job: str):
        pieces = self.connections.pop(0)
        for piece in pieces:
            yield piece
        if self.connections:
            raise ConnectionResetError

    def get_job_info(self, job: str) -> Any:
        state = SimpleNamespace(value=self.status, is_terminal=lambda: not self.connections)
        known = {"driver_exit_code": None, "error_type": None, "message": None}
        return SimpleNamespace(submission_id=job, status=state, **{**known, **self.more})


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "AGAIN_SECONDS", 0.0)


def test_a_log_goes_on_where_the_connection_broke(capsys):
    client = Client(["one\n", "tw"], [], ["o", "ne\ntwo\nthr"], ["one\ntwo\nthree\n"])
    assert job_server.follow(client, "http://h", "job") == 0
    said = capsys.readouterr()
    assert said.out == "one\ntwo\nthree\njob succeeded\n"
    assert said.err.count("trying again") == 2  # it had been found again in between


def test_it_is_given_up_where_the_cluster_stays_away(capsys, monkeypatch):
    monkeypatch.setattr(job_server, "GIVE_UP_SECONDS", -1.0)
    assert job_server.follow(Client(["one\n"], []), "http://h", "job") == 130
    assert "--follow job --address http://h" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_server.time, "sleep", interrupted)
    assert job_server.follow(Client(["one\n"], []), job_server.URL, "job") == 130
    said = capsys.readouterr().out
    assert "python -m ram_tune.search --follow job\n" in said and "--stop job" in said and "goes on" in said


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 130, 130),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_code_is_the_searchs(status: str, code: int | None, expected: int, capsys):
    assert job_server.follow(Client([], status=status, driver_exit_code=code), "http://h", "job") == expected
    assert f"job {status.lower()}" in capsys.readouterr().out


def test_why_a_job_never_started_is_said(capsys):
    why = {"error_type": "RUNTIME_ENV_SETUP_FAILED", "message": "no space left at http://u:secret@h"}
    job_server.follow(Client([], status="FAILED", **why), "http://h", "job")
    said = capsys.readouterr().out
    assert "no space left" in said and "secret" not in said


def test_the_table_keeps_ids_whole():
    console = Console(width=80, color_system=None)
    long = "constraints-scenes-20261120-154500-ab12"
    jobs = [SimpleNamespace(**{**details(long, 0), "status": SimpleNamespace(value="RUNNING")})]
    with console.capture() as said:
        console.print(job_server.table(jobs))
    assert f"│ {long}" in said.get() and "running" in said.get()


def test_a_way_that_was_found_again_may_be_lost_again(monkeypatch: pytest.MonkeyPatch, capsys):
    """Two breaks hours apart are two: the second is not given up at once."""
    now, said = [0.0], iter(["one ", None, "one two ", None, "one two three"])

    class Client:
        async def tail_job_logs(self, job):
            text = next(said)
            if text is None:
                raise RuntimeError("no way")
            yield text
            if not text.endswith("three"):
                now[0] += 3600  # a long log, which then breaks off
                raise RuntimeError("cut")

        def get_job_info(self, job):
            return SimpleNamespace(
                status=SimpleNamespace(is_terminal=lambda: True, value="SUCCEEDED"),
                submission_id=job,
                driver_exit_code=0,
                error_type=None,
            )

    monkeypatch.setattr(job_server, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    assert job_server.follow(Client(), "http://head", "job") == 0
    assert "one two three" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("constraints --watchdog nan", "--watchdog: found nan; expected minutes"),
        ("constraints --watchdog -1", "--watchdog: found -1"),
        ("constraints --seeds 0", "--seeds: found 0; expected at least 1"),
        ("constraints --gpus-per-worker nan", "--gpus-per-worker: found nan; expected 0 or more"),
        ("constraints --notify ftp://secret", r"--notify: .*expected an http\(s\) address"),
        ("full --hours inf", "--hours: found inf; expected more than 0"),
        ("full --confirm -1", "--confirm: found -1; expected at least 0"),
        ("constraints --address a..b:6379 --workers 0", r"--address a\.\.b:6379: found no Ray cluster there"),
        ("--follow= --address http://a..b", r"http://a\.\.b: found no Ray cluster there"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, words, pictures, tiny, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAM_TUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput, match=words):
        main([*shlex.split(arguments), "--data", str(pictures), "--set", *tiny])
