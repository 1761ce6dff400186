"""A logged model in processes of its own: what is logged is all they need, and over HTTP it says what the run says."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from ram_tune.presets import configure, parse_set
from ram_tune.search.model import log_model, register
from ram_tune.training.local import train_in_folder
from ram_tune.training.trained import Trained

pytestmark = pytest.mark.drill

ALONE = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "optuna", "pycocotools", "torchmetrics"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import pandas
from mlflow import pyfunc

folder, image = sys.argv[1:]
model = pyfunc.load_model(folder)
import ram_tune
print(json.dumps([ram_tune.__file__, model.predict(pandas.DataFrame({"image": [open(image, "rb").read()]}))]))
"""


@pytest.fixture
def run(pictures, tiny, tmp_path):
    """A trained run's folder."""
    fields = [*tiny, "training.precision=fp32"]
    train_in_folder(configure(str(pictures), overrides=parse_set(fields)), tmp_path / "run", tmp_path / "cache")
    return tmp_path / "run"


@pytest.fixture
def image():
    """An encoded image."""
    stream = io.BytesIO()
    Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 50).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def logged(run, store, place):
    """Log and register the run's model in a store → its logged model."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.create_experiment("e", artifact_location=place)
    uri = log_model(store, client.create_run(experiment).info.run_id, run, "constraints", "# Best")
    register(store, uri, "constraints", "# Best", {})
    return client.get_logged_model(uri.removeprefix("models:/"))


def check(said, run, image):
    """The answer for one image is what the run's own network says of it."""
    trained = Trained.load(run, "cpu")
    (found,) = trained.predict([Image.open(io.BytesIO(image))])
    assert said["size"] == [80, 60]
    expected = trained.labels(found)
    assert [row["label"] for row in said["labels"]] == [row["label"] for row in expected]
    for row, other in zip(said["labels"], expected, strict=True):
        assert row["region"] == other["region"]
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert row["box"] == pytest.approx(other["box"], abs=0.101)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """A command that answers at a port, in a process group of its own."""

    def __init__(self, arguments, cwd, **variables):
        self.port = free_port()
        environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.log = (cwd / f"server-{self.port}.log").open("w+")
        command = [sys.executable, "-m", "mlflow", *arguments, "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        until = time.monotonic() + 180
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        self.log.seek(0)
        pytest.fail(self.log.read())

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(30)

    def ask(self, content):
        body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/invocations", body, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


def test_the_logged_model_stands_alone(run, image, tmp_path):
    """In another place, by the package that was logged with it, without what only a search needs."""
    location = logged(run, f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()).artifact_location
    model = shutil.copytree(location.removeprefix("file://"), tmp_path / "model")
    (tmp_path / "image.jpg").write_bytes(image)
    command = [sys.executable, "-P", "-c", ALONE, str(model), str(tmp_path / "image.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    where, (said,) = json.loads(done.stdout.splitlines()[-1])
    assert Path(where) == model / "code" / "ram_tune" / "__init__.py"
    check(said, run, image)


@pytest.mark.parametrize("where", ["database", "server"])
def test_served_over_http(run, image, tmp_path, where):
    store, place = f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()
    if where == "database":
        logged(run, store, place)
        serve_and_ask(store, run, image, tmp_path)
        return
    options = ["--workers", "1", "--backend-store-uri", store, "--artifacts-destination", place]
    with Server(["server", *options], tmp_path, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as server:
        logged(run, server.address, None)
        serve_and_ask(server.address, run, image, tmp_path)


def serve_and_ask(store, run, image, folder):
    """Serve the registered model and post the image in the formats that MLflow's server takes."""
    encoded = base64.b64encode(image).decode()
    options = ["--env-manager", "local", "-m", "models:/constraints/1"]
    with Server(["models", "serve", *options], folder, MLFLOW_TRACKING_URI=store, PYTHONPATH="") as served:
        records = served.ask({"dataframe_records": [{"image": encoded}, {"image": encoded}]})
        assert len(records["predictions"]) == 2
        split = served.ask({"dataframe_split": {"columns": ["image"], "data": [[encoded]]}})
        for said in (*records["predictions"], *split["predictions"]):
            check(said, run, image)
        for broken in (base64.b64encode(b"no image").decode(), "*"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                served.ask({"dataframe_records": [{"image": encoded}, {"image": broken}]})
            assert caught.value.code == 400
            assert "image 1: found" in caught.value.read().decode()
        with pytest.raises(urllib.error.HTTPError) as caught:
            served.ask({"dataframe_records": [{"picture": encoded}]})
        assert caught.value.code == 400
