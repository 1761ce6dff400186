"""Ray's job server, which listens where the dashboard does: send it a search, follow, list and stop what it runs.

What a user sees of the dashboard through SSH is all that is needed: `ray dashboard cluster.yaml`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ram_tune.errors import BadInput, error_line, nearest
from ram_tune.options import masked
from ram_tune.search.space import Space
from ram_tune.search.submission import check_fields, check_places, submission, working_directory

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

URL = "http://127.0.0.1:8265"
"""Where `ray dashboard` brings it to on this machine, and where it is on the head; Ray's default port."""

VARIABLES = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"
"""Where `ray job` looks for another address, in this order."""

CONNECT_SECONDS = 5.0
AGAIN_SECONDS = 2.0
GIVE_UP_SECONDS = 300.0
"""How long the log is looked for again when the way to the cluster is cut: long enough for a new `ray dashboard`."""

CODES = 1, 2, 130
"""What a search ends with that does not succeed; 130 also for what was stopped, and for leaving a job that goes on."""

LEFT = 130
COMMAND = "python -m ram_tune.search"


def submit(options: argparse.Namespace, space: Space, overrides: Mapping[str, Any]) -> int:
    """Send a search, follow its log → its exit code; 130 where Ctrl-C left it running. Raises BadInput."""
    if options.address:
        raise BadInput(f"--address {options.address}", found="--submit too", expected="one of them")
    check_fields(options, space, overrides)
    check_places(options, space, overrides)
    url = server_url(options.submit, "--submit")
    client = connect(url)
    job = submission(options)
    with working_directory(options.search) as folder:
        runtime = {"working_dir": str(folder), "env_vars": job.variables}
        sent = {"entrypoint": job.entrypoint, "submission_id": job.id, "metadata": job.metadata, "runtime_env": runtime}
        try:
            client.submit_job(**sent)
        except (RuntimeError, OSError) as error:
            raise BadInput(
                f"--submit {masked(url)}",
                found=f"a cluster that would not take the job ({error_line(str(error))})",
                expected="one that does",
                remedy="Look at its dashboard.",
            ) from error
    print(f"{job.id} is sent to {masked(url)}. Ctrl-C leaves it running.", flush=True)
    return follow(client, url, job.id)


def manage(options: argparse.Namespace) -> int:
    """--jobs, --follow ID, --stop ID → the exit code. Raises BadInput."""
    url = server_url(options.address, "--address")
    client = connect(url)
    jobs = [job for job in client.list_jobs() if job.submission_id]
    if options.jobs:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)
        console.print(table(jobs) if jobs else f"no jobs at {masked(url)}")
        return 0
    option, wanted = ("--stop", options.stop) if options.follow is None else ("--follow", options.follow)
    known = [str(job.submission_id) for job in newest_first(jobs)]
    if wanted not in known:
        raise BadInput(
            f"{option} {wanted}",
            found="no such job",
            expected=f"one of {', '.join(known)}" if known else "a job; there is none",
            remedy=nearest(wanted, known),
        )
    if options.follow:
        return follow(client, url, wanted)
    return stop(client, url, wanted)


def server_url(given: str, option: str) -> str:
    """The server's address: `given`, else as `ray job` finds it, else URL. Raises BadInput for what is no web address."""
    where, found = f"{option} {masked(given)}", given
    for variable in () if given else VARIABLES:
        if value := os.environ.get(variable, ""):
            where, found = f"${variable}", value
            break
    url = (found or URL).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise BadInput(
            where,
            found=repr(masked(url)),
            expected=f"the address of the cluster's dashboard, such as {URL}",
        )
    return url


def connect(url: str) -> JobSubmissionClient:
    """A client of the server at `url`, which knows the token if there is one. Raises BadInput, within seconds."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # Ray's client by itself prefers the variable to the address it is given, may wait for minutes, and logs what it does.
    os.environ[VARIABLES[0]] = url
    logging.getLogger("ray").handlers = [logging.NullHandler()]
    token = _token()
    try:
        requests.get(f"{url}/api/version", timeout=CONNECT_SECONDS)
        return JobSubmissionClient(url, headers=token)
    except AuthenticationError as error:
        raise BadInput(
            masked(url),
            found="a cluster that refuses this machine's token" if token else "a cluster that asks for a token",
            expected="its token, in ~/.ray/auth_token, or in the file or the words of $RAY_AUTH_TOKEN_PATH, $RAY_AUTH_TOKEN",
            remedy="`ray get-auth-token` prints it on the head.",
        ) from error
    except (
        RuntimeError,
        KeyError,
        OSError,
        ValueError,
    ) as error:  # `requests`' own are OSErrors; of an address ValueErrors
        reason = str(error) if isinstance(error, RuntimeError) else type(error).__name__
        raise BadInput(
            masked(url),
            found=f"no Ray cluster there ({reason})",
            expected="the dashboard of a running one",
            remedy="`ray dashboard cluster.yaml` brings it here; on a head of your own, `ray start --head`.",
        ) from error


def _token() -> dict[str, str]:
    """As a header, if this machine has one; Ray's client sends none by itself unless $RAY_AUTH_MODE says so."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and file.is_file():
        token = file.read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


class Log:
    """What a job printed, as far as it has been shown."""

    def __init__(self, shown: int = 0):
        self.shown = shown  # characters

    async def tail(self, client: JobSubmissionClient, job: str) -> None:
        """Show what is new, up to the job's end. May be called again where the connection was lost."""
        passed = 0  # the server begins anew each time
        async for text in client.tail_job_logs(job):
            passed += len(text)
            if passed > self.shown:
                print(text[len(text) - (passed - self.shown) :], end="", flush=True)
                self.shown = passed


def follow(client: JobSubmissionClient, url: str, job: str, log: Log | None = None) -> int:
    """Show a job's log to its end → its exit code: the search's own, or 130 if it was stopped, or left by Ctrl-C."""
    import aiohttp

    log, lost_at = log or Log(), 0.0
    try:
        while True:
            shown = log.shown
            try:
                asyncio.run(log.tail(client, job))
                info, lost_at = client.get_job_info(job), 0.0
                if info.status.is_terminal():
                    return ended(info)
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                lost_at = 0.0 if log.shown > shown else lost_at  # it had been found again
                if not lost_at:
                    lost_at = time.monotonic()
                    print(f"\nno way to {masked(url)} ({type(error).__name__}); trying again", file=sys.stderr)
                if time.monotonic() - lost_at > GIVE_UP_SECONDS:
                    break
            time.sleep(AGAIN_SECONDS)
    except KeyboardInterrupt:
        pass
    print(_left(url, job))
    return LEFT


def _left(url: str, job: str) -> str:
    at = "" if url == URL else f" --address {masked(url)}"
    return (
        f"\nNo longer following {job}, which goes on by itself.\n"
        f"follow it: {COMMAND} --follow {job}{at}\nstop it:   {COMMAND} --stop {job}{at}"
    )


def stop(client: JobSubmissionClient, url: str, job: str) -> int:
    """Ask a job to end, and wait for it → 0, or 130 where Ctrl-C ended the waiting."""
    log = Log(len(client.get_job_logs(job)))
    before = client.get_job_info(job)
    if before.status.is_terminal() or not client.stop_job(job):
        ended(before)
        return 0
    print("asked to stop: running jobs end with their epoch, and the same command goes on later", flush=True)
    follow(client, url, job, log)
    return 0 if client.get_job_info(job).status.is_terminal() else LEFT


def ended(job: JobDetails) -> int:
    """Say how a job ended → the exit code."""
    code, state = job.driver_exit_code, job.status.value
    print(f"{job.submission_id} {state.lower()}" + (f" with exit code {code}" if code else ""))
    if job.error_type and job.error_type != "JOB_ENTRYPOINT_COMMAND_ERROR":  # of that one, the log has said it all
        print(masked(job.message or job.error_type))
    if state == "SUCCEEDED":
        return 0
    return LEFT if state == "STOPPED" else code if code in CODES else 1


def newest_first(jobs: Sequence[JobDetails]) -> list[JobDetails]:
    return sorted(jobs, key=lambda job: -(job.start_time or 0))


def table(jobs: Sequence[JobDetails]) -> Table:
    """The jobs that were sent to a cluster, the newest first, each over its command."""
    made = Table(title="Jobs", show_lines=True, caption=f"{COMMAND} --follow ID | --stop ID", caption_justify="left")
    longest = max(len(str(job.submission_id)) for job in jobs)
    made.add_column("id, command", min_width=longest, overflow="fold")  # ids are there to be copied
    for name in ("state", "since"):
        made.add_column(name, no_wrap=True)
    for job in newest_first(jobs):
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
        command = (job.metadata or {}).get("command") or masked(job.entrypoint)
        made.add_row(Text(f"{job.submission_id}\n{command}"), job.status.value.lower(), since)
    return made
