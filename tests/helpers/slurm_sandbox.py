"""A private, loopback-only Slurm for tests: no systemd, no cgroups, nothing outside one temporary directory.

Needs the Debian/Ubuntu packages ``slurmctld slurmd slurm-client munge``
(``apt-get install -y --no-install-recommends``); works as root and as an ordinary user.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_SBIN = "/usr/sbin:/sbin"
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")

_CONF = """\
ClusterName=citest
SlurmctldHost=localhost({addr})
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
{auth}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool-%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
ReturnToService=2
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=30
MinJobAge=300
"""


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + _SBIN)


def missing_programs() -> list[str]:
    return [p for p in _PROGRAMS if _which(p) is None]


def _free_ports(n: int) -> list[int]:
    socks = [socket.socket() for _ in range(n)]
    try:
        for s in socks:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in socks]
    finally:
        for s in socks:
            s.close()


def _slurm_version() -> tuple[int, int]:
    out = subprocess.run([_which("slurmd"), "-V"], capture_output=True, text=True).stdout  # "slurm-wlm 22.05.8"
    major, minor = out.split()[-1].split(".")[:2]
    return int(major), int(minor)


def _binding() -> tuple[str, list[str]]:
    """(address, command prefix) with which the daemons listen on loopback only.

    With CommunicationParameters=No*InAddrAny they listen on what gethostname() resolves to (not on the
    address in SlurmctldHost or NodeAddr!), without it on 0.0.0.0.
    """
    try:
        addr = socket.gethostbyname(socket.gethostname())
    except OSError:
        addr = ""
    if addr.startswith("127."):  # 127.0.0.1, or Debian's 127.0.1.1
        return addr, []
    # otherwise a UTS namespace in which the host is called localhost
    user = [] if os.getuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    prefix = [_which("unshare") or "unshare", *user, "--uts", "sh", "-c", 'hostname localhost && exec "$@"', "sh"]
    try:
        subprocess.run([*prefix, "true"], capture_output=True, check=True)
        return "127.0.0.1", prefix
    except (OSError, subprocess.CalledProcessError) as e:
        raise RuntimeError(
            f"host name {socket.gethostname()!r} resolves to {addr or 'nothing'}, not to loopback, and unshare does "
            'not help here: run as root, or do  echo "127.0.0.1 $(hostname)" >> /etc/hosts'
        ) from e


class SlurmSandbox:
    """
    A Slurm of some nodes on this machine.

    proctrack: "pgid" finds every process of a cancelled job (SIGKILL after KillWait) but waits for PID 1 to reap
    them: a cancelled Dask job leaves the queue after 1.7 s (PID 1 that reaps at once) to 3.7 s. "linuxproc" takes
    0.1 s, but the batch shell dies of SIGTERM at once, its children go to PID 1, and one that survives SIGTERM is
    never found again, unless the job script has ``trap : TERM`` (0.2 s, and nothing lost).
    """

    def __init__(
        self,
        nodes: int = 2,
        cpus: int = 4,
        mem_mb: int = 64000,
        munge: bool | None = None,
        spread: bool = True,
        proctrack: str = "pgid",
        extra: str = "",
    ):
        self.nodes, self.cpus, self.mem_mb, self.spread = nodes, cpus, mem_mb, spread
        self.proctrack, self.extra = proctrack, extra
        self.munge = (_which("munged") is not None) if munge is None else munge
        # not pytest's tmp_path: a unix socket path has at most 107 characters
        self.base = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.base.chmod(0o755)  # munged: every directory above its socket needs x for all
        self.procs: dict[str, subprocess.Popen] = {}
        self.timings: dict[str, float] = {}

    @property
    def conf(self) -> Path:
        return self.base / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        env["SLURM_CONF"] = str(self.conf)
        env["PATH"] = env.get("PATH", "") + ":" + _SBIN
        return env

    # -- commands ---------------------------------------------------------
    def run(self, *cmd: str, check: bool = True) -> str:
        r = subprocess.run(cmd, env=self.env, capture_output=True, text=True, timeout=30)
        if check and r.returncode:
            raise RuntimeError(f"{cmd}: {r.returncode}\n{r.stdout}{r.stderr}")
        return r.stdout

    def jobs(self, states: str | None = None) -> dict[str, str]:
        """{job id: state}, of the jobs still in the queue"""
        args = ["squeue", "-h", "-o", "%A %T"] + (["-t", states] if states else [])
        return dict(line.split() for line in self.run(*args).splitlines())

    def job_info(self, job_id: str) -> dict[str, str]:
        out = self.run("scontrol", "-o", "show", "job", str(job_id))
        return dict(f.split("=", 1) for f in out.split() if "=" in f)

    def cancel(self, *job_ids: str, signal: str | None = None) -> None:
        opts = [f"--signal={signal}", "--full"] if signal else []
        self.run("scancel", *opts, *job_ids)

    def cancel_all(self, timeout: float = 30) -> None:
        ids = self.jobs()
        if ids:
            self.run("scancel", *ids, check=False)
        self.wait(lambda: not self.jobs(), timeout, "the queue to empty")

    def wait(self, cond, timeout: float, what: str = "condition", step: float = 0.05):
        end = time.monotonic() + timeout
        while True:
            v = cond()
            if v:
                return v
            for name, p in self.procs.items():
                if p.poll() is not None:
                    raise RuntimeError(f"{name} exited with {p.returncode}\n{self.log(name)}")
            if time.monotonic() > end:
                raise TimeoutError(f"no {what} in {timeout} s\n" + "\n".join(self.log(n) for n in self.procs))
            time.sleep(step)

    def log(self, name: str, n: int = 30) -> str:
        try:
            lines = (self.base / f"{name}.out").read_text(errors="replace").splitlines()
            return "\n".join([f"--- {name}", *lines[-n:]])
        except OSError:
            return f"--- {name}: no log"

    # -- life cycle -------------------------------------------------------
    def _spawn(self, name: str, *cmd: str) -> None:
        full = [*self.prefix, _which(cmd[0]), *cmd[1:]]
        setpriv = _which("setpriv")
        if setpriv:  # the daemon gets SIGTERM if this process dies without stop()
            full = [setpriv, "--pdeathsig", "TERM", "--", *full]
        with open(self.base / f"{name}.out", "wb") as f:
            self.procs[name] = subprocess.Popen(
                full, env=self.env, cwd=self.base, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def start(self) -> SlurmSandbox:
        t0 = time.monotonic()
        try:
            self._start(t0)
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, t0: float) -> None:
        b = self.base
        for d in ["state", "munge"] + [f"spool-n{i}" for i in range(1, self.nodes + 1)]:
            (b / d).mkdir(mode=0o755)
        if self.munge:
            auth = f"AuthType=auth/munge\nAuthInfo=socket={b}/munge/munge.socket\nCredType=cred/munge"
        else:
            auth = "AuthType=auth/none\nCredType=cred/none"
        ctld_port, *ports = _free_ports(self.nodes + 1)
        self.addr, self.prefix = _binding()
        text = self.extra + _CONF.format(
            base=b, user=getpass.getuser(), auth=auth, addr=self.addr, ctld_port=ctld_port, proctrack=self.proctrack
        )
        # slurmd always loads a cgroup plugin, and the autodetected one fails without /sys/fs/cgroup, with
        # v2 mixed with v1, and (v2) without systemd; cgroup/v1 does nothing until something asks for it
        plugin = "disabled" if _slurm_version() >= (23, 11) else "cgroup/v1"
        (b / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        for i, port in enumerate(ports, 1):
            text += (
                f"NodeName=n{i} NodeHostname=localhost NodeAddr={self.addr} Port={port} "
                f"CPUs={self.cpus} RealMemory={self.mem_mb} State=UNKNOWN\n"
            )
        spread = "YES" if self.spread else "NO"
        text += f"PartitionName=test Nodes=ALL Default=YES DefaultTime=30 MaxTime=INFINITE State=UP LLN={spread}\n"
        self.conf.write_text(text)

        if self.munge:
            key = b / "munge" / "munge.key"
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(1024))
            m = f"{b}/munge"
            self._spawn(
                "munged", "munged", "--foreground", f"--key-file={key}", f"--socket={m}/munge.socket",
                f"--pid-file={m}/munged.pid", f"--seed-file={m}/munged.seed", f"--log-file={m}/munged.log",
            )  # fmt: skip
            self.wait(lambda: (b / "munge" / "munge.socket").exists(), 10, "munge socket", 0.01)
            self.timings["munged"] = time.monotonic() - t0
        self._spawn("slurmctld", "slurmctld", "-D")
        self.wait(lambda: "UP" in self.run("scontrol", "ping", check=False), 20, "slurmctld")
        self.timings["slurmctld"] = time.monotonic() - t0
        for i in range(1, self.nodes + 1):
            self._spawn(f"slurmd-n{i}", "slurmd", "-D", "-N", f"n{i}")
        self.wait(
            lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * self.nodes, 20, "idle nodes"
        )
        self.timings["nodes idle"] = time.monotonic() - t0

    def stop(self) -> None:
        t0 = time.monotonic()
        if "slurmctld" in self.procs and self.procs["slurmctld"].poll() is None:
            try:  # jobs first: slurmstepd outlives slurmd
                self.cancel_all()
            except Exception as e:
                print("slurm sandbox:", e)
        for name in reversed(list(self.procs)):  # slurmd*, slurmctld, munged
            p = self.procs[name]
            if p.poll() is None:
                p.terminate()
                try:
                    p.wait(15)
                except subprocess.TimeoutExpired:
                    p.kill()
                    p.wait()
        self.procs.clear()
        self.timings["stop"] = time.monotonic() - t0
        if not os.environ.get("SLURM_SANDBOX_KEEP"):
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.stop()
