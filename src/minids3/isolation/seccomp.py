"""A system-call filter (seccomp-bpf through ctypes): no network, no processes, no signals.

Landlock guards files; this guards the rest, on every kernel: sockets, datagrams to an address,
descriptors handed to others, fork and exec, signals to others (also those that the kernel sends for
a file's owner), tracing, namespaces, changing owners and modes (which Landlock leaves alone),
memory that belongs to no process, and the signal that ends a process with its parent. A denied
call fails with EPERM, so that Python raises an ordinary error.
Threads stay possible. The filter is a list of what is denied: what a student's arithmetic may need
is open-ended, what could hurt is not.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable

__all__ = ["available", "deny"]

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _SET, _ABOVE, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_THREAD = 0x00010000
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: (number on x86_64, number on aarch64), None where there is no such call.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "keyctl": (250, 219),
    "perf_event_open": (298, 241), "add_key": (248, 217), "request_key": (249, 218),
    "userfaultfd": (323, 282), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    "quotactl": (179, 60), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "fanotify_init": (300, 262), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
    "sched_setattr": (314, 274), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "fsopen": (430, 430),
    "fsmount": (432, 432), "move_mount": (429, 429), "open_tree": (428, 428),
    "mount_setattr": (442, 442), "fspick": (433, 433), "vhangup": (153, 58), "syslog": (103, 116),
    "sendmsg": (46, 211), "recvmsg": (47, 212), "sendmmsg": (307, 269), "recvmmsg": (299, 243),
    "accept": (43, 202), "accept4": (288, 242), "vmsplice": (278, 75),
    "iopl": (172, None), "ioperm": (173, None), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "inotify_add_watch": (254, 27), "setxattrat": (463, 463),
    "removexattrat": (466, 466),
}  # fmt: skip
_SENDTO, _FCNTL, _IOCTL, _PRCTL = (44, 206), (72, 25), (16, 29), (157, 167)
# Who gets a file's signals, and which (SETOWN, SETSIG, SETOWN_EX), leases and notices of changes.
_FCNTL_DENIED = (8, 10, 15, 1024, 1026)
# What a terminal, a pipe and a socket are asked for: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO,
# FIONCLEX, FIOCLEX. All else (owners, flags of inodes, a terminal's input) is refused.
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_IOCTL_DENIED = (0x8901, 0x8902, 0x5412, 0x40086602, 0x40046602, 0x401C5820)  # a kernel's process
# SET_PDEATHSIG, SET_DUMPABLE, SET_MM, SET_CHILD_SUBREAPER, SET_PTRACER.
_PRCTL_DENIED = (1, 4, 35, 36, 0x59616D61)
_OPEN, _OPENAT, _O_TRUNC, _O_WRITE = (2, None), (257, 56), 0x200, 0x3
_OPENAT2 = (437, 437)
_CLONE, _CLONE3, _KILL, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261)


def available() -> bool:
    """Whether this kernel and architecture can be filtered."""
    if not sys.platform.startswith("linux") or platform.machine() not in _ARCH:
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(21, 0, 0, 0, 0) >= 0  # PR_GET_SECCOMP


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


# These seem to work and change nothing: copying a file in one's own scratch ends with them.
_PRETENDED = {
    "chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "futimesat", "utimensat",
}  # fmt: skip


def _own_alone(column: int, refuse: list[bytes], argument: bytes) -> list[bytes]:
    """Return the part that lets a process make threads, and signal and limit only itself."""
    # A clone must be a thread.
    code = [_op(_EQUAL, _CLONE[column], 0, 4), argument, _op(_SET, _THREAD, 1, 0), *refuse]
    code += [_op(_RETURN, _ALLOW)]
    # Signals go to this process alone, limits are one's own (0, or one's process).
    for call, allowed in ((_KILL, (os.getpid(),)), (_TGKILL, (os.getpid(),)),
                          (_PRLIMIT, (0, os.getpid()))):  # fmt: skip
        tests = [_op(_EQUAL, pid, len(allowed) - i, 0) for i, pid in enumerate(allowed)]
        code += [_op(_EQUAL, call[column], 0, 3 + len(tests)), argument, *tests, *refuse]
        code += [_op(_RETURN, _ALLOW)]
    return code


def _by_argument(number: int, load: bytes, denied: Iterable[int], refuse: bytes) -> list[bytes]:
    """Return the part that refuses a call where an argument is one of ``denied``."""
    denied = tuple(denied)
    tests = [_op(_EQUAL, value, len(denied) - i, 0) for i, value in enumerate(denied)]
    # A jump past the last test allows; one of the tests that fits lands on the refusal.
    code = [_op(_EQUAL, number, 0, len(tests) + 3), load, *tests, _op(_RETURN, _ALLOW), refuse]
    return code


def _only(number: int, load: bytes, allowed: Iterable[int], refuse: bytes) -> list[bytes]:
    """Return the part that refuses a call unless an argument is one of ``allowed``."""
    allowed = tuple(allowed)
    tests = [_op(_EQUAL, value, len(allowed) - i, 0) for i, value in enumerate(allowed)]
    return [_op(_EQUAL, number, 0, len(tests) + 3), load, *tests, refuse, _op(_RETURN, _ALLOW)]


def _arguments(column: int, refuse: bytes, kernel: bool) -> list[bytes]:
    """Return the part that looks at what calls are asked to do, not only at which they are."""
    second, first = _op(_LOAD, 24), _op(_LOAD, 16)
    third = _op(_LOAD, 32)
    code = _by_argument(_FCNTL[column], second, _FCNTL_DENIED, refuse)
    for number, flags in ((_OPEN[column], second), (_OPENAT[column], third)):
        if number is not None:  # opened for reading alone, a file is not to be emptied
            code += [_op(_EQUAL, number, 0, 5), flags, _op(_SET, _O_TRUNC, 0, 1),
                     _op(_SET, _O_WRITE, 0, 1), _op(_RETURN, _ALLOW), refuse]  # fmt: skip
    code += _by_argument(_PRCTL[column], first, _PRCTL_DENIED, refuse)
    if kernel:
        return code + _by_argument(_IOCTL[column], second, _IOCTL_DENIED, refuse)
    code += _only(_IOCTL[column], second, _IOCTL_ALLOWED, refuse)
    # sendto is how send is called; with an address (both halves of the fifth argument) it is not.
    code += [_op(_EQUAL, _SENDTO[column], 0, 6), _op(_LOAD, 48), _op(_EQUAL, 0, 0, 3),
             _op(_LOAD, 52), _op(_EQUAL, 0, 0, 1), _op(_RETURN, _ALLOW), refuse]  # fmt: skip
    return code


# What a notebook's kernel needs: to be started, and to talk to its client over loopback.
_KERNEL_NEEDS = {
    "fork", "vfork", "execve", "execveat", "socket", "connect", "bind", "listen", "tkill",
    "sched_setscheduler", "sched_setparam", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
    "accept", "accept4",
    "inotify_init", "inotify_init1", "inotify_add_watch",
}  # fmt: skip


def _program(kernel: bool) -> bytes:
    machine = platform.machine()
    column = 0 if machine == "x86_64" else 1
    refuse = [_op(_RETURN, _ERRNO | _EPERM)]
    number, argument = _op(_LOAD, 0), _op(_LOAD, 16)  # the first argument's low half
    code = [_op(_LOAD, 4), _op(_EQUAL, _ARCH[machine], 1, 0), *refuse, number]
    if machine == "x86_64":
        code += [_op(_ABOVE, 0x40000000, 0, 1), *refuse]  # the x32 numbers
    free = _KERNEL_NEEDS if kernel else set()
    for newer in (_CLONE3[column], _OPENAT2[column]):  # callers fall back to the older call
        code += [_op(_EQUAL, newer, 0, 1), _op(_RETURN, _ERRNO | _ENOSYS)]
    code += _arguments(column, refuse[0], kernel)
    if not kernel:
        code += _own_alone(column, refuse, argument)
    for name, numbers in _CALLS.items():
        call = numbers[column]
        if call is not None and name not in free:
            answer = [_op(_RETURN, _ERRNO)] if name in _PRETENDED else refuse
            code += [_op(_EQUAL, call, 0, 1), *answer]
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def deny(kernel: bool = False) -> None:
    """Install the filter in this process, for good.

    ``kernel`` leaves out what starting a notebook's kernel and talking to it needs: for a process
    that is already alone in a network and a process namespace of its own.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program(kernel)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(header), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
