"""Simulated hosts on one machine: each with an address, processes, a home, /tmp and /dev/shm of its own, and sshd.

A host is a set of namespaces (network, processes, mounts, host name) that have no name on the machine and end with the host's
first process, and that one with us: nothing of the machine's own is changed, and nothing is left to be cleaned up. All cables
end in a bridge on the desk, the host from which the others are looked after, as from a machine of one's own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = "ip", "make", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "unshare"
SSHD = Path("/usr/sbin/sshd")
NETWORK = "198.18.77"
"""Of 198.18.0.0/15, which RFC 2544 keeps for tests: nobody's machine is there."""

HOME = "/root"
KEY = f"{HOME}/.ssh/id_ed25519"
BASH = {"HOME": HOME, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

SSHD_CONFIG = f"""\
HostKey {HOME}/.ssh/host_key
PidFile none
StrictModes no
UseDNS no
UsePAM no
"""

NAMESPACES = shlex.split("setpriv --pdeathsig KILL unshare --net --uts --mount --pid --fork --kill-child")
ENTER = shlex.split("nsenter --net --uts --mount --pid --root")

FIRST_PROCESS = r"""
root=$1 name=$2 home=$3 shared=$4 clone=$5 venv=$6 python=$7
read -r pid _ </proc/self/stat  # as the machine counts: this /proc is still its own
hostname "$name"
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs "$root"
for path in /*; do
  case $path in /dev|/home|/lost+found|/mnt|/proc|/root|/run|/scratch|/shared|/tmp) continue;; esac
  if [ -L "$path" ]; then cp -P "$path" "$root"
  elif [ -d "$path" ]; then mkdir "$root$path"; mount --rbind "$path" "$root$path"; fi
done
mkdir -p "$root"/{dev,proc,root,run/{changes,sshd,work},shared,tmp}
chmod 1777 "$root/tmp"
mount --rbind /dev "$root/dev"; mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
[ -L /etc/resolv.conf ] || mount --bind /dev/null "$root/etc/resolv.conf"  # no name is waited for
inside=$root/root  # the home, as this host sees it
mount --bind "$home" "$inside"
mount --bind "$shared" "$root/shared"
mkdir -p "$root$python"; mount --bind "$python" "$root$python"
mkdir -p "$root$clone"
if [ "$name" = desk ]; then mount --bind "$clone" "$root$clone"; else mount -t tmpfs tmpfs "$root$clone"; fi
# Where its scripts look for it, and where `make install` does; whatever is written to it stays with this host.
mkdir -p "$root$venv" "$inside/ram_tune/.venv"
mount -t overlay overlay -o "lowerdir=$venv,upperdir=$root/run/changes,workdir=$root/run/work" "$root$venv"
mount --bind "$root$venv" "$inside/ram_tune/.venv"
echo "$pid"
exec chroot "$root" bash -c '
  export HOME=/root; [ ! -e ~/.ssh/sshd_config ] || /usr/sbin/sshd -f ~/.ssh/sshd_config
  exec >/dev/null 2>&1
  while :; do sleep 60 & wait; done'  # it buries all whose parents are gone
"""


def missing() -> str:
    """What the machine lacks for hosts, or nothing."""
    if os.geteuid() != 0:
        return "not root"
    absent = [name for name in NEEDED if not shutil.which(name)] + ([] if SSHD.exists() else [str(SSHD)])
    if absent:
        return f"no {', '.join(absent)}"
    probe = "mount -t tmpfs tmpfs /mnt && ip link add bridge0 type bridge && mkdir /mnt/{a,b,c,d} && "
    probe += "mount -t overlay overlay -o lowerdir=/mnt/a,upperdir=/mnt/b,workdir=/mnt/c /mnt/d"
    done = subprocess.run([*NAMESPACES, "bash", "-c", probe], capture_output=True, text=True, check=False)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Host:
    """One host; `home` is its home as the machine sees it."""

    name: str
    address: str
    home: Path
    pid: int  # of its first process, as the machine counts

    def command(self, script: str, folder: str = HOME, **variables: str) -> list[str]:
        """For the machine, a command that runs a script of bash on the host."""
        settings = [f"{name}={value}" for name, value in {**BASH, **variables}.items()]
        return [*ENTER, f"--target={self.pid}", f"--wdns={folder}", "env", "-i", *settings, "bash", "-c", script]

    def run(self, script: str, timeout: float = 60, check: bool = True, **options: str) -> str:
        """Run a script of bash → what it said; AssertionError where it failed."""
        done = subprocess.run(
            self.command(script, **options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{self.name}: {script}: {done.returncode}\n{done.stdout}"
        return done.stdout


@dataclass(frozen=True)
class Hosts:
    """The desk, and the others by their place in the network; `shared` is what is at /shared on all of them."""

    desk: Host
    others: list[Host]
    shared: Path

    def cable(self, host: Host, state: str) -> None:
        """Pull the host's plug (`down`), or put it in again (`up`)."""
        self.desk.run(f"ip link set to-{host.name} {state}")


@contextmanager
def hosts(names: Sequence[str], folder: Path, clone: Path) -> Iterator[Hosts]:
    """The desk, where the clone is seen, and hosts of these names, where it is not; they keep their files in `folder`."""
    shared = folder / "shared"
    shared.mkdir(parents=True)
    with ExitStack() as stack:
        desk = stack.enter_context(_host("desk", f"{NETWORK}.1", folder, clone))
        desk.run(
            f"ip link add bridge0 type bridge; ip link set bridge0 up; ip address add {desk.address}/24 dev bridge0"
        )
        # What is meant for the internet is told that there is none.
        desk.run("echo 1 >/proc/sys/net/ipv4/ip_forward; ip route add unreachable default")
        desk.run(f"mkdir -p .ssh; ssh-keygen -q -t ed25519 -N '' -f {KEY}")
        desk.run("echo StrictHostKeyChecking accept-new >.ssh/config")
        others = []
        for place, name in enumerate(names, start=2):
            _let_in(folder / name, desk.home / ".ssh")
            host = stack.enter_context(_host(name, f"{NETWORK}.{place}", folder, clone))
            _plug_in(host, desk)
            others.append(host)
        yield Hosts(desk, others, shared)


def _let_in(home: Path, keys: Path) -> None:
    """A home as a new machine has it, whose sshd knows the key."""
    shutil.copytree("/etc/skel", home)
    (home / ".ssh").mkdir()
    shutil.copy(keys / "id_ed25519.pub", home / ".ssh" / "authorized_keys")
    (home / ".ssh" / "sshd_config").write_text(SSHD_CONFIG)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh" / "host_key"], check=True)


@contextmanager
def _host(name: str, address: str, folder: Path, clone: Path) -> Iterator[Host]:
    home, root = folder / name, folder / f"{name} root"
    home.mkdir(exist_ok=True)
    root.mkdir()
    places = [root, name, home, folder / "shared", clone, sys.prefix, sys.base_prefix]
    process = subprocess.Popen(
        [*NAMESPACES, "bash", "-euc", FIRST_PROCESS, "bash", *map(str, places)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        pid = process.stdout.readline().strip()
        assert pid, f"{name} did not start"
        yield Host(name, address, home, int(pid))
    finally:
        process.kill()  # and with it all that runs there
        process.wait()


def _plug_in(host: Host, desk: Host) -> None:
    """A cable from the host's eth0 to the bridge."""
    cable = f"ip link add to-{host.name} type veth peer name eth0 netns {host.pid}"
    subprocess.run(["nsenter", "--target", str(desk.pid), "--net", *cable.split()], check=True)
    desk.run(f"ip link set to-{host.name} master bridge0 up")
    host.run(f"ip address add {host.address}/24 dev eth0; ip link set eth0 up; ip route add default via {desk.address}")
