"""What a process in the sandbox can and cannot do, as root and as an ordinary user."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from minids3.isolation import landlock, sandbox, seccomp

needs = pytest.mark.skipif(bool(sandbox.missing()), reason="no isolation on this machine")

PROBE = """
import json, os, sys, socket, subprocess, threading
from pathlib import Path
scratch, victim = Path(sys.argv[1]), sys.argv[2]
grants = json.loads(sys.argv[3])
if sys.argv[4] != "0":
    os.setgroups([]); os.setgid(int(sys.argv[4])); os.setuid(int(sys.argv[4]))
from minids3.isolation import landlock, sandbox
if sys.argv[5] != "0":  # as an older kernel
    landlock.abi = lambda: int(sys.argv[5])
import array, ctypes, fcntl, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
def datagram(send):
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with a, b:
        send(a)
def owner(command, value):
    a, b = socket.socketpair()
    with a, b:
        fcntl.fcntl(a, command, value)
def ioctl(number, argument=b"\\0" * 8):
    a, b = socket.socketpair()
    with a, b:
        fcntl.ioctl(a, number, argument)
def talk():
    a, b = socket.socketpair()
    with a, b:
        a.sendall(b"x"); assert b.recv(1) == b"x"
def descriptor():
    a, b = socket.socketpair()
    with a, b:
        socket.send_fds(a, [b"x"], [0])
sandbox.enter(scratch, sandbox.Limits(memory_mib=512, file_mib=1), grants, 3)
def attempt(act):
    try:
        act()
        return "done"
    except BaseException as error:
        return type(error).__name__
acts = {
    "read": lambda: open(victim).read(), "write": lambda: open(victim, "a"),
    "list": lambda: os.listdir(os.path.dirname(victim)), "create": lambda: open("/tmp/x9", "w"),
    "truncate": lambda: os.truncate(victim, 0), "chmod": lambda: os.chmod(victim, 0),
    "chown": lambda: os.chown(victim, 0, 0), "utime": lambda: os.utime(victim),
    "remove": lambda: os.remove(victim), "rename": lambda: os.rename(victim, victim + "x"),
    "link": lambda: os.link(victim, "there"), "passwd": lambda: open("/etc/passwd").read(),
    "socket": lambda: socket.socket(), "unix": lambda: socket.socket(socket.AF_UNIX),
    "fork": os.fork, "run": lambda: subprocess.run(["true"]),
    "kill parent": lambda: os.kill(os.getppid(), 0), "kill all": lambda: os.kill(-1, 0),
    "proc": lambda: open(f"/proc/{os.getppid()}/environ").read(),
    "memory": lambda: bytearray(1 << 30), "big file": lambda: open("b", "wb").write(bytes(1 << 22)),
    "root": lambda: os.setuid(0) if os.getuid() else (_ for _ in ()).throw(OSError),
    "mount": lambda: os.chroot("."), "source": lambda: open(sandbox.__file__).read(),
    "scratch": lambda: Path("a").write_text("x"), "thread": lambda: threading.Thread().start(),
    "library": lambda: __import__("wave"), "null": lambda: open("/dev/null", "w").write("x"),
    "datagram": lambda: datagram(lambda a: a.sendto(b"x", sys.argv[6])),
    "message": lambda: datagram(lambda a: a.sendmsg([b"x"], [], 0, sys.argv[6])),
    "descriptor": descriptor, "talk": talk,
    "owner": lambda: owner(fcntl.F_SETOWN, os.getppid()),
    "owner ex": lambda: owner(15, struct.pack("ii", 1, os.getppid())),
    "owner's signal": lambda: owner(10, signal.SIGKILL),
    "notify": lambda: fcntl.fcntl(os.open(".", os.O_RDONLY), 1026, 1),
    "owner by ioctl": lambda: ioctl(0x8901, struct.pack("i", os.getppid())),
    "group by ioctl": lambda: ioctl(0x8902, struct.pack("i", os.getppid())),
    "inode flags": lambda: ioctl(0x40086602),
    "parent's death": lambda: check(libc.prctl(1, 0, 0, 0, 0)),
    "dumpable": lambda: check(libc.prctl(4, 1, 0, 0, 0)),
    "thread's name": lambda: check(libc.prctl(15, b"mine", 0, 0, 0)),
    "empty it": lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC),
    "empty a library": lambda: os.open(sandbox.torch_file(), os.O_RDONLY | os.O_TRUNC),
    "rewrite one's own": lambda: os.open("a", os.O_WRONLY | os.O_TRUNC),
    "await": lambda: __import__("asyncio").run(__import__("asyncio").sleep(0)),
    "own signal": lambda: os.kill(os.getpid(), 0),
}
print(json.dumps({name: attempt(act) for name, act in acts.items()}))
"""
ALLOWED = {"scratch", "thread", "library", "null", "own signal", "talk", "thread's name", "await"}
ALLOWED |= {"rewrite one's own"}
PRETENDED = {"chmod", "utime"}  # seem to work


def probe(tmp_path, uid, abi=0):
    victim = tmp_path / "grades" / "grades.csv"
    victim.parent.mkdir()
    victim.write_text("grades")
    victim.chmod(0o666)
    before = os.stat(victim)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for folder in (tmp_path, scratch, victim.parent):
        folder.chmod(0o777)
    source = Path(sandbox.__file__).parents[2]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    place = str(tmp_path / "listener")
    listener.bind(place)
    os.chmod(place, 0o777)
    listener.settimeout(0.2)
    arguments = [scratch, victim, json.dumps(sandbox.granted()), str(uid), str(abi), place]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True, text=True, env={"PYTHONPATH": str(source), "PATH": os.defpath},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(TimeoutError), listener:
        listener.recv(10)
    assert victim.read_text() == "grades"
    after = os.stat(victim)
    assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)
    return json.loads(done.stdout)


@needs
@pytest.mark.parametrize("uid", [0, 65534])
@pytest.mark.parametrize("abi", [0, 1, 3, 5])  # 0: this kernel's own Landlock
def test_the_sandbox_holds(tmp_path, uid, abi):
    if uid and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    python = Path(sys.executable).resolve()
    if uid and not all(os.stat(p).st_mode & 1 for p in python.parents):
        pytest.skip("Python itself lies where only root can read")
    for path in tmp_path.parents:
        if path.name.startswith("pytest-"):
            path.chmod(0o755)
    told = probe(tmp_path, uid, abi)
    assert {name for name, outcome in told.items() if outcome == "done"} == ALLOWED | PRETENDED, (
        told
    )


def test_trees_leave_out_what_is_hidden(tmp_path):
    for name in ("a/b/secret/x", "a/b/open", "a/c", "d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    got = set(landlock.trees([tmp_path / "a", tmp_path / "d"], [tmp_path / "a/b/secret"]))
    assert got == {tmp_path / "a/b/open", tmp_path / "a/c", tmp_path / "d"}
    assert list(landlock.trees([tmp_path / "a"], [tmp_path])) == []
    assert list(landlock.trees([tmp_path / "nothing"], [])) == []


def test_the_package_is_granted_nowhere():
    import minids3

    home = Path(minids3.__file__).resolve().parent
    for path in map(Path, sandbox.granted()["read"]):
        assert home != path
        assert path not in home.parents
        assert home not in path.parents or "_data" in path.parts


def test_a_machine_without_isolation_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setattr(seccomp, "available", lambda: False)
    assert len(sandbox.missing()) == (2 if sys.platform.startswith("linux") else 1)


def test_the_environment_inherits_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIDS3_SECRET", "x")
    made = sandbox.environment(tmp_path)
    assert "MINIDS3_SECRET" not in made
    assert made["HOME"] == str(tmp_path)
