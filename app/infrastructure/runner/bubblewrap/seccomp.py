"""The system calls a candidate's program may not make, as a program for the kernel's filter.

A deny-list: what is listed reaches parts of the kernel that no exam's program needs and that attacks have come from.
The namespaces, the missing capabilities and the read-only root hold without it; it is a wall behind these walls.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import NamedTuple

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
"""Offsets in ``struct seccomp_data``: the call's number, the ABI, the low halves of its first two arguments."""

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32_BIT = 0x40000000
_NAMESPACES = 0x7E020000
"""The flags of ``clone`` that make new namespaces. ``CLONE_NEWTIME`` cannot be given to it."""

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX = 1


class _Machine(NamedTuple):
    audit: int
    clone: int
    socket: int
    socketpair: int
    ioctl: int
    personality: int
    column: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 56, 41, 53, 16, 135, 0),
    "aarch64": _Machine(0xC00000B7, 220, 198, 199, 29, 92, 1),
}

# name: its number on x86_64, on aarch64 (None where it has none)
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # namespaces, mounts, roots
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
    "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "statmount": (457, 457), "listmount": (458, 458), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "nfsservctl": (180, 42), "ustat": (136, None), "sysfs": (139, None), "uselib": (134, None),
    # the machine itself
    "reboot": (169, 142), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "create_module": (174, None),
    "get_kernel_syms": (177, None), "query_module": (178, None), "syslog": (103, 116), "_sysctl": (156, None),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "vhangup": (153, 58), "ioprio_set": (251, 30), "vserver": (236, None),
    "lookup_dcookie": (212, 18), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450), "remap_file_pages": (216, 234), "lsm_set_self_attr": (460, 460),
    "sched_setaffinity": (203, 122),  # the first CPU is the chats'
    # parts of the kernel with a history
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "vmsplice": (278, 75),
    # memory that no file system's size and no process's size accounts for
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip

# Run-time libraries try these first and do without them when the kernel seems not to know them.
_UNKNOWN: dict[str, tuple[int, int]] = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),  # its flags are in memory, where no filter can look
}

# Writing all of the machine's files out would slow down everybody; a sandbox has none worth it.
_NOTHING: dict[str, tuple[int, int]] = {"sync": (162, 81), "syncfs": (306, 267)}


def seccomp_program(machine: str | None = None) -> bytes:
    """The filter for ``machine`` (this one by default) as an array of ``struct sock_filter``.

    Calls of another ABI (32 bits, x32) end the program. Sockets are of the family Unix only.

    Raises:
        ValueError: no numbers are known for this machine.
    """
    name = machine or platform.machine()
    if name not in _MACHINES:
        raise ValueError(f"no system calls are known for {name}; {' and '.join(_MACHINES)} can be filtered")
    this = _MACHINES[name]
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, this.audit, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if name == "x86_64":
        code += [_instruction(_AT_LEAST, _X32_BIT, 0, 1), _instruction(_RETURN, _KILL)]
    code += _on_argument(this.clone, _FIRST, [_instruction(_ANY_BIT, _NAMESPACES, 0, 1), _fail(errno.EPERM)])
    for call in (this.socket, this.socketpair):
        code += _on_argument(call, _FIRST, [_instruction(_EQUAL, _AF_UNIX, 1, 0), _fail(errno.EAFNOSUPPORT)])
    for request in (_TIOCSTI, _TIOCLINUX):
        code += _on_argument(this.ioctl, _SECOND, [_instruction(_EQUAL, request, 0, 1), _fail(errno.EPERM)])
    asks, leaves = _instruction(_EQUAL, 0xFFFFFFFF, 2, 0), _instruction(_EQUAL, 0, 1, 0)
    code += _on_argument(this.personality, _FIRST, [asks, leaves, _fail(errno.EPERM)])
    for calls, error in ((_REFUSED, errno.EPERM), (_UNKNOWN, errno.ENOSYS), (_NOTHING, 0)):
        for numbers in calls.values():
            number = numbers[this.column]
            if number is not None:
                code += [_instruction(_EQUAL, number, 0, 1), _fail(error)]
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _on_argument(number: int, offset: int, checks: list[bytes]) -> list[bytes]:
    """Checks of one argument of one call; what falls through goes on with the next rule."""
    body = [_instruction(_LOAD, offset), *checks, _instruction(_LOAD, _NUMBER)]
    return [_instruction(_EQUAL, number, 0, len(body)), *body]


def _fail(error: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | error)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
