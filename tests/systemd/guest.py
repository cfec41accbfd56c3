"""A real systemd as PID 1 of private namespaces, on an overlay of this machine's root, with a store that it can reach.

Needs root, util-linux, iproute2 and systemd, and nothing else: no nspawn, no image, no dbus. Every mount lives in a private mount
namespace whose upper layer is a tmpfs; the machine keeps nothing, also when the tests are killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ckptsync

UID = 4711
USER = "trainer"
STORE_PORT = 8787
PYTHON = "/opt/ckptsync/bin/python"
CKPTSYNC = "/opt/ckptsync/bin/ckptsync"
SHARED = "/srv/shared"
_SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(path).exists()), "")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_CLONE_NEWNET = 0x40000000
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207

_OUTER = r"""
set -eu
D=$1; CG=$D/cg/$2
mount --make-rprivate /
mkdir -p $D/cg $D/tm; mount -t cgroup2 cgroup2 $D/cg; mkdir $CG
cleanup() {
  set +e
  if [ -n "${U:-}" ]; then
    { read -r K _ < /proc/$U/task/$U/children; [ -n "${K:-}" ] && kill -KILL $K; kill -KILL $U; wait $U; } 2>/dev/null
  fi
  echo 1 > $CG/cgroup.kill
  for i in $(seq 100); do find $CG -depth -type d -exec rmdir {} + 2>/dev/null; [ -d $CG ] || break; sleep 0.02; done
  umount $D/cg; rm -rf --one-file-system $D
}
trap cleanup EXIT
exec 3<&0
# Joined before unshare --cgroup: the guest's root cgroup has to be this one.
( echo $BASHPID > $CG/cgroup.procs
  exec unshare --fork --kill-child --pid --mount --cgroup --uts --ipc --net bash -eu -c "$INNER" inner "$D" <&- 3<&- ) &
U=$!; echo $U
set +e
while kill -0 $U 2>/dev/null; do read -r -t 0.25 x <&3; r=$?; [ $r -gt 128 ] || break; done
"""
"""Owns the cgroup and the folder, and removes both when its stdin ends or the guest is gone."""

_INNER = r"""
D=$1; T=$D/tm; R=$T/root
mount --make-rprivate /
mount -t tmpfs -o size=512m,mode=755 guest $T
mkdir $T/up $T/wk $R
mount -t overlay overlay -o lowerdir=/,upperdir=$T/up,workdir=$T/wk $R
mount -t proc -o nosuid,nodev,noexec proc $R/proc
mount --bind $R/proc/sys $R/proc/sys; mount -o remount,bind,ro,nosuid,nodev,noexec $R/proc/sys  # sysctls are the machine's
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs $R/sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 $R/sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid tmpfs $R/dev
for n in null zero full random urandom tty; do : > $R/dev/$n; mount --bind /dev/$n $R/dev/$n; done
mkdir $R/dev/pts $R/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts $R/dev/pts; ln -s pts/ptmx $R/dev/ptmx
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs $R/dev/shm
ln -s /proc/self/fd $R/dev/fd
for l in stdin:0 stdout:1 stderr:2; do ln -s /proc/self/fd/${l#*:} $R/dev/${l%%:*}; done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs $R/run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs $R/tmp
S=$R/usr/lib/systemd; [ -d $S/system ] || S=$R/lib/systemd
rm -rf $R/etc/systemd/system $R/etc/systemd/user $S/system/*.target.wants $R/var/lib/systemd $R/var/log/journal
rm -rf $S/system-generators $S/system-environment-generators $R/etc/ckptsync
mkdir -p $R/etc/systemd/system $S/system/sockets.target.wants $S/system/sysinit.target.wants $R/var/lib/systemd
for s in systemd-journald.socket systemd-journald-dev-log.socket; do
  [ ! -e $S/system/$s ] || ln -s ../$s $S/system/sockets.target.wants/
done
for s in systemd-journald.service systemd-tmpfiles-setup.service; do ln -s ../$s $S/system/sysinit.target.wants/; done
mkdir -p $R/etc/systemd/journald.conf.d $R/etc/systemd/system.conf.d
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' > $R/etc/systemd/journald.conf.d/test.conf
printf '[Manager]\nDefaultTimeoutStopSec=10s\n' > $R/etc/systemd/system.conf.d/test.conf
: > $R/etc/fstab; tr -d - < /proc/sys/kernel/random/uuid > $R/etc/machine-id  # filled: or a first boot enables everything
echo guest > $R/etc/hostname; : > $R/etc/resolv.conf
while IFS=$'\t' read -r mode src dst; do
  [ -n "$mode" ] || continue
  mkdir -p $R$dst; mount --bind "$src" $R$dst; [ $mode = rw ] || mount -o remount,bind,ro $R$dst
done < $D/binds
ip link set lo up
cd $R; mkdir -p .old; pivot_root . .old; umount -l /.old; rmdir /.old
mount --make-rshared /  # or the mounts of LoadCredential= never reach the service
exec env -i container=ckptsync-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  "$SYSTEMD" --system --log-target=journal --show-status=no --unit=multi-user.target </dev/null
"""
"""Builds the root and becomes PID 1."""

_INSTALL = """
set -eu
grep -q ^{user}: /etc/passwd || echo '{user}:x:{uid}:{uid}::/home/{user}:/bin/bash' >> /etc/passwd
grep -q ^{user}: /etc/group || echo '{user}:x:{uid}:' >> /etc/group
install -d -m 700 -o {uid} -g {uid} /home/{user}
{base} -m venv --without-pip /opt/ckptsync
cd /opt/ckptsync/lib/python*/site-packages
printf '%s\\n' /opt/ckguest/checkout/src "import site; site.addsitedir('/opt/ckguest/site')" > guest.pth
printf '#!{python}\\nfrom ckptsync.cli import main\\nmain()\\n' > {ckptsync}
chmod 755 {ckptsync}
"""


def why_not() -> str | None:
    """None when a real manager can be booted here, else the reason."""
    if sys.platform != "linux":
        return "not Linux"
    if os.geteuid() != 0:
        return "needs root"
    if not _SYSTEMD:
        return "systemd is not installed"
    missing = [tool for tool in ("unshare", "nsenter", "systemctl", "pivot_root", "ip") if not shutil.which(tool, path=_PATH)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as folder:
        script = (
            f"mount --make-rprivate /; mount -t tmpfs x {folder}; mkdir {folder}/u {folder}/w {folder}/r {folder}/c; "
            f"mount -t overlay o -o lowerdir=/,upperdir={folder}/u,workdir={folder}/w {folder}/r; "
            f"mount -t cgroup2 c {folder}/c; test -w {folder}/c/cgroup.procs"
        )
        spaces = ["--fork", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net"]
        tried = subprocess.run(["unshare", *spaces, "sh", "-ec", script], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"namespaces, overlay or cgroup2 are refused: {tried.stderr.strip()}"


class Guest:
    """One machine. `shared` is a folder of the host that it sees as SHARED: what outlives the machine."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self.store: Store | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="ckptsync-guest-"))
        (self._folder / "binds").write_text("".join("\t".join(bind) + "\n" for bind in self._binds()))
        environment = {"PATH": _PATH, "INNER": _INNER, "SYSTEMD": _SYSTEMD}
        self._console = (self._folder / "console").open("w+")
        self._outer = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", _OUTER, "outer", str(self._folder), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._console,
            env=environment,
            text=True,
            start_new_session=True,
        )
        try:
            self.pid = self._boot()
            base = Path(os.path.realpath(sys.base_prefix))
            # It may lie below a home of mode 0700. In the guest's own layer that can be changed.
            self.sh(f"chmod a+x {' '.join(map(str, [base, *base.parents]))}", check=False)
            self.sh(_INSTALL.format(user=USER, uid=UID, base=f"{base}/bin/python3", python=PYTHON, ckptsync=CKPTSYNC))
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def sh(self, command: str, *, check: bool = True, user: str | None = None, timeout: float = 120) -> str:
        """What a shell in the guest prints, as root or as a user with a clean environment."""
        words = ["bash", "-c", command]
        environ = ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"]
        if user:
            words = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups", *words]
            environ += [f"HOME=/home/{user}", f"XDG_RUNTIME_DIR=/run/user/{UID}"]
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), *["-m", "-u", "-i", "-n", "-p", "-C"], "env", "-i", *environ, *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Put a file there."""
        script = 'mkdir -p "$(dirname "$1")"; cat > "$1"; chmod "$2" "$1"'
        command = ["nsenter", "-t", str(self.pid), "-m", "sh", "-ec", script, "write", path, f"{mode:o}"]
        subprocess.run(command, input=text, text=True, check=True)

    def show(self, unit: str, *properties: str, user: str | None = None) -> dict[str, str]:
        """Properties of a unit."""
        manager = "--user" if user else ""
        out = self.sh(f"systemctl {manager} show {unit} -p {','.join(properties)}", user=user)
        return dict(line.split("=", 1) for line in out.splitlines())

    def journal(self, unit: str) -> list[dict[str, str]]:
        """Every entry of a unit, and about it."""
        out = self.sh(f"journalctl -o json --no-pager --all -u {unit}")
        return [json.loads(line) for line in out.splitlines()]

    def told(self, unit: str) -> str:
        """The messages of a unit, for a look by regular expression."""
        return "\n".join(str(entry.get("MESSAGE")) for entry in self.journal(unit))

    def wait(self, condition: Callable[[], Any], *, what: str, seconds: float = 60) -> Any:
        """The first true answer of a condition; fails when there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := condition():
                return answer
            time.sleep(0.1)
        raise AssertionError(f"not in {seconds} s: {what}\n{self.sh('journalctl --no-pager | tail -40')}")

    def wait_for_unit(self, unit: str, *, seconds: float = 60, user: str | None = None, **wanted: str) -> dict[str, str]:
        """Wait until properties of a unit match these regular expressions."""

        def matching() -> dict[str, str] | None:
            found = self.show(unit, *wanted, user=user)
            return found if all(re.search(pattern, found[name]) for name, pattern in wanted.items()) else None

        result: dict[str, str] = self.wait(matching, what=f"{unit} {wanted}", seconds=seconds)
        return result

    def as_trainer(self, program: str) -> str:
        """Run a Python program as the user whose training it is; the project's tests can be imported."""
        return self.sh(f"cd /opt/ckguest/checkout && {PYTHON} -c {shlex.quote(program)}", user=USER)

    def outside(self, pid: int) -> int:
        """The number by which this machine knows a process of the guest."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()[1:]
                same = (status.parent / "ns" / "pid").readlink() == Path(f"/proc/{self.pid}/ns/pid").readlink()
            except (OSError, StopIteration):
                continue
            if same and numbers[-1] == str(pid):
                return int(status.parent.name)
        raise AssertionError(f"no process {pid} in the guest")

    def kill(self) -> None:
        """The machine is gone: every process in it, at once."""
        if self.store:
            self.store.stop()
        if self._outer.stdin and not self._outer.stdin.closed:
            self._outer.stdin.close()
        self._outer.wait(20)
        if self._outer.stdout:
            self._outer.stdout.close()
        self._console.close()

    def power_off(self) -> None:
        """An orderly shutdown, up to the end."""
        os.kill(self.pid, signal.SIGRTMIN + 4)
        self._outer.wait(90)

    def _boot(self) -> int:
        assert self._outer.stdout
        unshared = self._outer.stdout.readline().strip()
        deadline = time.monotonic() + 30
        while unshared and time.monotonic() < deadline and self._outer.poll() is None:
            for child in Path(f"/proc/{unshared}/task/{unshared}/children").read_text().split():
                if Path(f"/proc/{child}/exe").readlink().name == "systemd":
                    self.pid = int(child)
                    if re.search("running|degraded", self.sh("systemctl is-system-running", check=False)):
                        return self.pid
            time.sleep(0.02)
        self._console.seek(0)
        raise RuntimeError(f"the guest did not boot: {self._console.read()}")

    def _binds(self) -> list[tuple[str, str, str]]:
        """What the guest sees of this machine at other places, since it may lie below a home that others can't enter."""
        checkout = Path(__file__).parents[2]
        packages = [Path(sysconfig.get_path("purelib")), Path(ckptsync.__file__).parent.parent]
        inside = next((path for path in packages if path.name == "site-packages"), Path(site.getsitepackages()[0]))
        base = Path(os.path.realpath(sys.base_prefix))
        binds = [("ro", str(checkout), "/opt/ckguest/checkout"), ("ro", str(inside), "/opt/ckguest/site")]
        # Where it is, since its libraries are looked for there; a mount of its own need not be part of the overlay.
        binds += [("ro", str(base), str(base))] if base != Path("/usr") else []
        return [*binds, ("rw", str(self.shared), SHARED)]


class Store:
    """The embedded server, elsewhere: a process of this machine that shares the guest's network alone, and outlives it."""

    def __init__(self, guest: Guest, data_dir: Path) -> None:
        self.url = f"http://127.0.0.1:{STORE_PORT}"
        self._data_dir = data_dir
        self._network = ThreadPoolExecutor(1, initializer=_enter_network, initargs=(guest.pid,))
        (data_dir / "server.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "ckptsync.server", "--data-dir", str(data_dir), "--port", str(STORE_PORT)]
        self._process = subprocess.Popen(
            ["nsenter", "-t", str(guest.pid), "-n", *command, "--faults", "--until-unused"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        guest.store = self
        guest.wait(lambda: (data_dir / "server.json").exists() and self._answers(), what="the store")

    @property
    def key(self) -> str:
        """The API key."""
        return (self._data_dir / "api-key").read_text().strip()

    def faults(self, *rules: dict[str, Any]) -> None:
        """Replace the fault rules."""
        self.ask("DELETE", "/_faults")
        if rules:
            assert self.ask("POST", "/_faults", json.dumps(rules).encode())[0] == 200

    def ask(self, method: str, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        """One request from within the guest's network."""
        return self._network.submit(self._request, method, self.url + path, data).result(30)

    def stop(self) -> None:
        """End the server."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._network.shutdown()

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def _request(self, method: str, url: str, data: bytes | None) -> tuple[int, bytes]:
        request = urllib.request.Request(url, data=data, method=method)  # noqa: S310 - our own server
        request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


def _enter_network(pid: int) -> None:
    """Move this thread, and no other, into the network of a process."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


class FrozenThread:
    """Stops one thread of a process while all others go on, as a call that never returns would. Lets go on leaving."""

    def __init__(self, pid: int) -> None:
        self._over = threading.Event()
        self._frozen: Future[None] = Future()
        self._thread = threading.Thread(target=self._trace, args=(pid,))
        self._thread.start()
        self._frozen.result(10)

    def _trace(self, pid: int) -> None:
        """The whole life of the tracer: the kernel ties a tracee to the thread that froze it, and lets go when that ends."""
        library = ctypes.CDLL(None, use_errno=True)
        library.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        if library.ptrace(_PTRACE_SEIZE, pid, None, None) or library.ptrace(_PTRACE_INTERRUPT, pid, None, None):
            self._frozen.set_exception(OSError(ctypes.get_errno(), "ptrace"))
            return
        self._frozen.set_result(None)
        while not self._over.wait(0.05):
            # Or the dead process would stay a zombie, and its manager would wait for it.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
