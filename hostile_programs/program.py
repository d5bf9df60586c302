"""What a hostile program is, and what it is told about the machine it should not reach."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.domain.code_runner import Ended, Limits

ESCAPED = "ESCAPED"
"""What a program prints when it got something it should not have."""

SHORT = Limits(cpu_s=0.5, wall_s=1.5, memory_mb=64, output_bytes=256 * 1024, processes=16, files_mb=8)
ANY = frozenset(Ended) - {Ended.SE}


@dataclass(frozen=True, slots=True)
class Hostile:
    """One program.

    Attributes:
        name: what it tries.
        language: what it is written in.
        source: its text. Standard input tells it, a line each: a TCP port of the machine, a Unix socket without a
            file, one with a file, a file that everybody may read, the service's process id.
        ends: how it may end; anything else is a wrong verdict. Empty: it must not compile.
        limits: what it is granted.
        quick: whether the suite runs it, too.
    """

    name: str
    language: str
    source: str
    ends: frozenset[Ended] = field(default=ANY)
    limits: Limits = SHORT
    quick: bool = True


def only(*ends: Ended) -> frozenset[Ended]:
    """Exactly these ends."""
    return frozenset(ends)


def python(body: str) -> str:
    """A Python program with the machine's addresses at hand and a way to say that something worked."""
    return f'''
import os, sys, socket, time
port, nameless, path, file, pid = (sys.stdin.read().split("\\n") + [""] * 5)[:5]
def works(what, *arguments, **named):
    """Whether a call works that should not."""
    try:
        got = what(*arguments, **named)
    except (OSError, ValueError, OverflowError) as error:
        return False
    print("{ESCAPED}", getattr(what, "__name__", what), arguments)
    return got
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    """A system call by its number; it should fail."""
    got = libc.syscall(number, *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments))
    if got >= 0:
        print("{ESCAPED}", number, got)
    return got
{body}
'''


def c(body: str, head: str = "") -> str:
    """A C program with everything included; ``BAD(x)`` reports a call that should fail and does not."""
    return (
        """#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define BAD(x) do { if ((long)(x) >= 0) { printf("ESCAPED %s\\n", #x); fflush(stdout); } } while (0)
"""
        + head
        + "\nint main(int argc, char **argv) {\n"
        + body
        + "\nreturn 0; }\n"
    )
