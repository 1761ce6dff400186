"""The file of a cluster, and the command that says what it lacks and leaves open."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.cluster import faults, main, prepared, read
from ram_tune.errors import BadInput

ROOT = Path(__file__).parents[1]
FILE = ROOT / "cluster.yaml"
VALUES = {"<region>": "eu-central-1", "<ami-id>": "ami-0123456789abcdef0"}
SSH = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}

Config = dict[str, Any]


def fill(text: str, but: str = "") -> Config:
    """The content of a file with its placeholders filled in, all `but` one."""
    for name, value in VALUES.items():
        text = text if name == but else text.replace(name, value)
    return yaml.safe_load(text)


def own_machines(text: str) -> str:
    """cluster.yaml with what docs/cluster.md says is to be put in place for one's own machines."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    config = yaml.safe_load(text)
    for name in ("metadata", "max_workers", "provider", "auth", "head_node_type", "available_node_types"):
        del config[name]
    return yaml.safe_dump({**config, **yaml.safe_load(block)})


def kind_of(config: Config, name: str) -> Config:
    return config["available_node_types"][name]


def rules(config: Config) -> list[Any]:
    return config["provider"]["security_group"]["IpPermissions"]


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the clone, with a token."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")


@pytest.fixture
def filled() -> Config:
    return fill(FILE.read_text())


def check(config: Config) -> list[tuple[str, str]]:
    return [(fault.kind, fault.field) for fault in faults(config, FILE)]


# cluster.yaml itself


def test_filled_in_it_is_what_ray_reads(filled: Config):
    ready = prepared(filled, FILE)
    assert ready["head_setup_commands"][:3] == filled["setup_commands"]  # Ray's own preparation was here
    assert kind_of(ready, "head") == kind_of(filled, "head") | {"min_workers": 0, "max_workers": 0}
    assert faults(filled, FILE) == []


def test_only_ssh_is_open_with_the_rules_that_ray_adds(filled: Config):
    """The rules as Ray would send them to AWS: all of the group's own, and from outside nothing but SSH, nothing twice."""
    names = ["boto3", "boto3.exceptions", "boto3.resources", "boto3.resources.base"]
    names += ["botocore", "botocore.client", "botocore.config", "botocore.exceptions"]
    stubs = {name: mock.MagicMock(__version__="1.40.0") for name in names}  # AWS's library need not be there
    with mock.patch.dict(sys.modules, stubs):
        from ray.autoscaler._private.aws.config import _create_default_inbound_rules

        sent = _create_default_inbound_rules({"sg-1"}, rules(filled))
    inside = [rule for rule in sent if set(rule) & {"UserIdGroupPairs"}]
    outside = [rule for rule in sent if rule not in inside]
    assert [rule["UserIdGroupPairs"] for rule in inside] == [[{"GroupId": "sg-1"}]]
    assert {(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in outside} == {("tcp", 22, 22)}
    ranges = [str(entry) for rule in outside for name in ("IpRanges", "Ipv6Ranges") for entry in rule.get(name, ())]
    assert rules(filled) and len(ranges) == len(set(ranges)) == len(outside)
    assert not any("SecurityGroupIds" in kind["node_config"] for kind in filled["available_node_types"].values())


def test_workers_are_spot_machines_that_go_when_idle(filled: Config):
    worker = kind_of(filled, "worker")
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["min_workers"] == 0 < worker["max_workers"] == filled["max_workers"]
    assert 0 < filled["idle_timeout_minutes"] <= 30


def test_what_is_to_be_filled_in_is_named_once():
    text = FILE.read_text()
    assert set(re.findall(r'"(<.*?>)"', text)) == set(VALUES)
    assert all(text.count(name) == 1 for name in VALUES)


def test_its_commands_are_shell(filled: Config):
    for name in filled:
        for command in filled[name] if name.endswith("_commands") else ():
            done = subprocess.run(["bash", "-n", "-c", f"export X=1 && ({command})"], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), command


def test_every_shell_of_the_head_has_the_places(filled: Config, tmp_path: Path):
    commands = prepared(filled, FILE)["head_setup_commands"]
    made = [command for command in commands if command.lstrip().startswith(("cat > ~/.ram_tune", "mkdir -p ~/records"))]
    assert len(made) == 2
    (tmp_path / ".bashrc").write_text("case $- in *i*) ;; *) return;; esac\nexport MINE=1\n")
    for command in made * 2:  # `ray up` again
        subprocess.run(["bash", "-c", command], check=True)
    shell = ["env", "-i", f"HOME={tmp_path}", "PATH=/usr/bin:/bin", "bash", "-c", ". ~/.bashrc; env"]
    found = dict(line.split("=", 1) for line in subprocess.check_output(shell, text=True).splitlines() if "=" in line)
    assert found["RAY_AUTH_MODE"] == "token" and found["PATH"].startswith(f"{tmp_path}/ram_tune/.venv/bin:")
    assert found["RAM_TUNE_STUDY_STORAGE"] == f"sqlite:///{tmp_path}/records/studies.db"
    assert found["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert {"RAM_TUNE_RESULTS", "RAM_TUNE_CACHE"} <= set(found)
    bashrc = (tmp_path / ".bashrc").read_text()
    assert bashrc.count(".ram_tune.sh") == 1 and bashrc.endswith("export MINE=1\n")
    assert (tmp_path / "records").is_dir()


# check: what is missing


@pytest.mark.parametrize("name", VALUES)
def test_each_placeholder_is_found(name: str):
    (fault,) = faults(fill(FILE.read_text(), but=name), FILE)
    assert (fault.kind, fault.field.split(".")[0]) == ("missing", "metadata") and f"fill in {name}" in fault.text
    assert {"<region>": "provider.region", "<ami-id>": "available_node_types.worker"}[name] in fault.text


def test_a_placeholder_where_a_number_belongs(filled: Config):
    filled["max_workers"] = "<how many>"
    assert check(filled) == [("missing", "max_workers")]


def test_a_placeholder_that_goes_nowhere_is_not_missed(filled: Config):
    assert check({**filled, "metadata": {"note": "<whatever>"}}) == []


def test_without_a_token_it_says_how_to_make_one(filled: Config, tmp_path: Path):
    (tmp_path / ".ray" / "auth_token").unlink()
    (fault,) = faults(filled, FILE)
    assert fault.field == "file_mounts.~/.ray/auth_token" and "ray get-auth-token --generate" in fault.text


def test_local_paths_are_those_of_this_folder(filled: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert len(check(filled)) == len(filled["file_mounts"]) - 1  # the token is at home


# check: holes, each made in the file that has none

HEAD, WORKER = "available_node_types.head", "available_node_types.worker"
START, MADE = "head_start_ray_commands", "worker_setup_commands"
RULE = "provider.security_group.IpPermissions.1"


def rule(**fields: Any) -> Callable[[Config], object]:
    return lambda config: rules(config).append({**SSH, **fields})


def command(where: str, text: str) -> Callable[[Config], object]:
    return lambda config: config[where].append(text)


EVERYWHERE = [{"CidrIp": "0.0.0.0/0"}]
HOLES: dict[str, tuple[Callable[[Config], object], str, str]] = {
    "dashboard port": (rule(FromPort=8265, ToPort=8265, IpRanges=EVERYWHERE), "open", RULE),
    "all ports": (rule(IpProtocol="-1", IpRanges=[{"CidrIp": "10.0.0.0/8"}]), "open", RULE),
    "ports about 22": (rule(FromPort=21), "open", RULE),
    "UDP": (rule(IpProtocol="udp"), "open", RULE),
    "no rule at all": (lambda c: rules(c).append("22"), "open", RULE),
    "Ray's own rule": (rule(IpRanges=EVERYWHERE), "wrong", RULE),
    "no group": (lambda c: c["provider"].pop("security_group"), "missing", RULE[:-2]),
    "MLflow for all": (command(START, "mlflow server --host 0.0.0.0"), "open", f"{START}.2"),
    "in every set-up": (command("setup_commands", "x --bind 0.0.0.0:80"), "open", "setup_commands.3"),
    "dashboard for all": (command(START, "ray start --dashboard-host=0.0.0.0"), "open", f"{START}.2"),
    "dashboard for all of IPv6": (command(START, "--dashboard-host '::'"), "open", f"{START}.2"),
    "Ray's own start": (lambda c: c.pop(START), "open", f"{START}.1"),
    "debugger": (command(START, "ray start --ray-debugger-external"), "open", f"{START}.2"),
    "head asks no token": (command(START, "export RAY_AUTH_MODE=disabled"), "open", "head_setup_commands"),
    "workers ask no token": (command(MADE, "export RAY_AUTH_MODE=disabled"), "open", MADE),
    "a kind made its own way": (lambda c: kind_of(c, "worker").update({MADE: ["make"]}), "open", f"{WORKER}.{MADE}"),
    "no token sent": (lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "missing", "file_mounts"),
    "a mount that is not there": (lambda c: c["file_mounts"].update(x="no/such"), "missing", "file_mounts.x"),
    "a head that trains": (lambda c: kind_of(c, "head").update(resources={}), "wrong", f"{HEAD}.resources"),
    "no workers": (lambda c: c.update(max_workers=0), "wrong", "max_workers"),
    "none of any kind": (lambda c: kind_of(c, "worker").update(max_workers=0), "wrong", f"{WORKER}.max_workers"),
    "no region": (lambda c: c["provider"].pop("region"), "missing", "provider.region"),
    "no image": (lambda c: kind_of(c, "head")["node_config"].pop("ImageId"), "missing", f"{HEAD}.node_config.ImageId"),
}


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_is_found(name: str, filled: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make, kind, field = HOLES[name]
    make(filled)
    file = tmp_path / "holes.yaml"
    file.write_text(yaml.safe_dump(filled))
    assert main(["check", str(file)]) == 1
    said, last = capsys.readouterr().out.splitlines()
    assert (said[:9].strip(), said[9:].partition(": ")[0]) == (kind, field)
    assert last == f"{file}: 1 to mend"


def test_no_machine_asks_for_the_token(filled: Config):
    filled["setup_commands"] = [text.replace("RAY_AUTH_MODE=token", "X=1") for text in filled["setup_commands"]]
    assert check(filled) == [("open", "head_setup_commands"), ("open", "worker_setup_commands")]


@pytest.mark.parametrize(
    "command",
    [
        "ray start --head --dashboard-host 127.0.0.1",
        "mlflow server --host ::1",
        "echo '/shared 0.0.0.0/0(ro)'",
        "ip route add 10.0.0.0 dev eth0",
        "sort <in >out",
    ],
)
def test_a_command_without_a_hole(command: str, filled: Config):
    filled["head_setup_commands"].append(command)
    assert check(filled) == []


@given(first=st.integers(-1, 65535), last=st.integers(-1, 65535), protocol=st.sampled_from(["tcp", "udp", "-1"]))
@settings(max_examples=20, deadline=None)
def test_no_rule_but_ssh_passes(first: int, last: int, protocol: str):
    config = fill(FILE.read_text())
    rules(config).append(
        {"IpProtocol": protocol, "FromPort": first, "ToPort": last, "IpRanges": [{"CidrIp": "1.2.3.4/32"}]}
    )
    ssh = (protocol, first, last) == ("tcp", 22, 22)
    assert check(config) == ([] if ssh else [("open", RULE)])


# files that cannot be used

BROKEN: dict[str, tuple[Callable[[Config], object], str]] = {
    "unknown field": (lambda c: c.update(max_worker=3), "max_worker"),
    "a text for a number": (lambda c: c.update(max_workers="many"), "max_workers"),
    "no provider": (lambda c: c.pop("provider"), "provider"),
    "unknown provider": (lambda c: c["provider"].update(type="awz"), "awz"),
    "more at least than at most": (lambda c: kind_of(c, "worker").update(min_workers=99), "max_workers"),
    "a head that is no kind": (lambda c: c.update(head_node_type="boss"), "head_node_type"),
    "nothing mounted": (lambda c: c.update(file_mounts=None), "file_mounts"),
    "docker without an image": (lambda c: c.update(docker={"container_name": "x"}), "image"),
    "own machines, not named": (
        lambda c: c.update(provider={"type": "local"}, available_node_types={}, head_node_type="head"),
        "head_node_type",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_ray_refuses(name: str, filled: Config, capsys: pytest.CaptureFixture[str]):
    make, said = BROKEN[name]
    make(filled)
    before = copy.deepcopy(filled)
    with pytest.raises(BadInput, match=said):
        faults(filled, FILE)
    assert filled == before and capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["", "- a list", "a: [", "\x00", "a: !!python/object:os.system {}"])
def test_what_is_no_mapping(content: str, tmp_path: Path):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(BadInput, match=r"bad\.yaml"):
        read(tmp_path / "bad.yaml")
    with pytest.raises(BadInput, match=r"none\.yaml.*No such file"):
        read(tmp_path / "none.yaml")


# one's own machines


def test_the_documented_file_for_own_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = own_machines(FILE.read_text())
    names = {"<head-address>", "<first-worker>", "<second-worker>", "<user>"}
    found = faults(yaml.safe_load(text), FILE)
    assert {fault.text.removeprefix("fill in ") for fault in found} == names and len(found) == len(names)
    for number, name in enumerate(sorted(names)):
        text = text.replace(name, f"10.0.0.{number + 1}")
    file = tmp_path / "own.yaml"
    file.write_text(text)
    assert main(["check", str(file)]) == 0
    assert "firewall" in capsys.readouterr().out
    ready = prepared(yaml.safe_load(text), file)
    assert ready["max_workers"] == ready["available_node_types"]["local.cluster.node"]["min_workers"] == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("--num-cpus=0", ""),
        lambda text: text.replace("--num-cpus=0", "--num-cpus=08"),
        lambda text: text.replace("export RAY_enable_autoscaler_v2=0;", ""),
    ],
)
def test_own_machines_start_their_head_apart(change: Callable[[str], str]):
    config = yaml.safe_load(change(re.sub(r"<[\w-]+>", "10.0.0.1", own_machines(FILE.read_text()))))
    assert check({**config, "min_workers": 2, "max_workers": 2}) == [("wrong", START)]


# the command


def test_all_is_well(filled: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kind_of(filled, "worker")["node_config"]["SecurityGroupIds"] = ["sg-1"]
    file = tmp_path / "well.yaml"
    file.write_text(yaml.safe_dump(filled))
    assert main(["check", str(file)]) == 0
    unseen, well = capsys.readouterr().out.splitlines()
    assert unseen.startswith("unseen") and "worker.node_config.SecurityGroupIds" in unseen
    assert well.endswith(f"Next: ray up {file}")


def test_help_teaches(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["check", "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("missing", "open", "wrong", "unseen", "exit code", "ray up"))


def test_from_a_shell_without_ray():
    """A file that is not there is said so at once: Ray is not imported for it."""
    code = "import sys, ram_tune.cluster as c; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    command = [sys.executable, "-m", "ram_tune.cluster", "check", "none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: none.yaml: found No such file")
