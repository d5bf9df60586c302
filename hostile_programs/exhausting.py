"""Programs that use up what they can: time, memory, processes, files, output; and do not want to be ended."""

from __future__ import annotations

from app.domain.code_runner import Ended, Limits
from hostile_programs.program import ANY, Hostile, c, only, python

_TIME = only(Ended.TLE)
_MEMORY = only(Ended.MLE)
_OUTPUT = only(Ended.OLE)
_VIRTUAL = Limits(cpu_s=1.5, wall_s=4, memory_mb=64, output_bytes=256 * 1024, processes=16, files_mb=8)


_QUICK = {
    "loop", "sleep", "ignore all signals", "die badly", "fork bomb", "thread bomb", "daemon that holds its output open",
    "memory bomb", "memory of many children", "memory of many children whose name is no text", "all descriptors",
    "file flood", "huge hole", "output flood",
}  # fmt: skip
"""One of each kind, for the suite."""


def _py(name: str, body: str, ends: frozenset[Ended]) -> Hostile:
    return Hostile(name, "python", python(body), ends, quick=name in _QUICK)


def _c(name: str, body: str, ends: frozenset[Ended], head: str = "") -> Hostile:
    return Hostile(name, "c", c(body, head), ends, quick=name in _QUICK)


TIME = [
    _c("loop", "for (volatile long i = 0;; i++);", _TIME),
    _py("sleep", "time.sleep(60)", _TIME),
    _c("close everything and loop", "for (int i = 0; i < 1024; i++) close(i); for (;;);", _TIME),
    _c(
        "ignore all signals",
        """
    for (int i = 1; i < 65; i++) signal(i, SIG_IGN);
    sigset_t all; sigfillset(&all); sigprocmask(SIG_BLOCK, &all, 0);
    for (;;);
""",
        _TIME,
    ),
    _py(
        "time shared by children nobody waits for",
        """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        child = os.fork()
    except OSError:
        time.sleep(0.01)
        continue
    if child == 0:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        os._exit(0)
    time.sleep(0.04)
""",
        only(Ended.TLE, Ended.MLE),
    ),
    _c("stop itself", "raise(SIGSTOP); kill(getpid(), SIGTSTP); for (;;) pause();", _TIME),
    _c("die badly", "abort();", only(Ended.RE)),
    _c(
        "dump its memory",
        "struct rlimit l = {1, 1}; setrlimit(RLIMIT_CORE, &l); *(volatile int *)8 = 1;",
        only(Ended.RE),
    ),
]

PROCESSES = [
    _c("fork bomb", "for (;;) fork();", ANY),
    _c("fork bomb that sleeps", "for (;;) if (fork() == 0) { setsid(); signal(SIGTERM, SIG_IGN); pause(); }", ANY),
    _c("vfork bomb", "for (;;) { if (vfork() == 0) { execl(argv[0], argv[0], NULL); _exit(0); } }", ANY),
    _c(
        "thread bomb",
        "pthread_t t; for (;;) pthread_create(&t, 0, rest, 0);",
        ANY,
        "static void *rest(void *x) { for (;;) pause(); return x; }",
    ),
    _py(
        "daemon",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3, 64):
            try:
                os.close(number)
            except OSError:
                pass
        time.sleep(120)
""",
        only(Ended.FINISHED),
    ),
    _py(
        "daemon that holds its output open",
        """
import signal
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
if os.fork() == 0:
    os.setsid()
    while True:
        time.sleep(1)
print("done", flush=True)
os._exit(0)
""",
        only(Ended.FINISHED),
    ),
    Hostile(
        "threads of a virtual machine",
        "java",
        """class Main { public static void main(String[] a) {
            for (;;) { Thread t = new Thread(() -> { for (;;) { try { Thread.sleep(9999); } catch (Exception e) { } } }); t.start(); } } }""",
        ANY,
        _VIRTUAL,
        quick=False,
    ),
    Hostile(
        "workers",
        "javascript",
        """const { Worker } = require('worker_threads');
        for (;;) { new Worker('for(;;){}', { eval: true }).on('error', () => {}); }""",
        ANY,
        _VIRTUAL,
        quick=False,
    ),
    Hostile(
        "goroutines",
        "go",
        "package main\nfunc main() { for { go func() { x := make([]byte, 1<<20); for i := range x { x[i] = 1 }; select {} }() } }",
        ANY,
        _VIRTUAL,
        quick=False,
    ),
]

MEMORY = [
    _c("memory bomb", "for (;;) { char *p = malloc(1 << 20); if (p) memset(p, 1, 1 << 20); }", _MEMORY),
    _py("memory bomb of one piece", "x = b'x' * (1 << 30)", _MEMORY),
    _c(
        "memory of many children",
        "for (int i = 0; i < 8; i++) if (!fork()) { char *p = malloc(32 << 20); memset(p, 1, 32 << 20); pause(); } pause();",
        _MEMORY,
    ),
    _c(
        "memory of many children whose name is no text",
        """
    prctl(PR_SET_NAME, "\\xff) \\xfe");
    for (int i = 0; i < 8; i++) if (!fork()) { char *p = malloc(32 << 20); memset(p, 1, 32 << 20); pause(); }
    pause();
""",
        _MEMORY,
    ),
    _c(
        "shared memory",
        """
    for (;;) {
        char *p = mmap(0, 1 << 24, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p != MAP_FAILED) memset(p, 1, 1 << 24);
    }
""",
        only(Ended.MLE, Ended.TLE),
    ),
    _c(
        "huge and locked",
        """
    char *p = mmap(0, 1L << 40, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    BAD(mlock(p == MAP_FAILED ? (char *)main : p, 1L << 30));
    if (p != MAP_FAILED) for (long i = 0; i < 1L << 40; i += 4096) p[i] = 1;
    abort();
""",
        only(Ended.MLE, Ended.RE),
    ),
    _c(
        "memory in pipes and sockets",
        """
    for (int n = 0; n < 4000; n++) {
        int ends[2];
        if (n % 2 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) break;
        fcntl(ends[1], F_SETPIPE_SZ, 1 << 20); fcntl(ends[1], F_SETFL, O_NONBLOCK);
        static char block[1 << 16];
        while (write(ends[1], block, sizeof block) > 0);
    }
""",
        ANY,
    ),
    _c(
        "all descriptors",
        'int n = 0; while (open("/dev/null", O_RDONLY) >= 0) n++; if (n > 4096) puts("ESCAPED"); while (dup(0) >= 0);',
        only(Ended.FINISHED),
    ),
    Hostile(
        "memory of a virtual machine",
        "java",
        """import java.util.*; class Main { public static void main(String[] a) {
            List<byte[]> kept = new ArrayList<>(); for (;;) kept.add(new byte[1 << 20]); } }""",
        _MEMORY,
        _VIRTUAL,
        quick=False,
    ),
    Hostile(
        "memory of node",
        "javascript",
        "const kept = []; for (;;) kept.push(new Array(100000).fill(Math.random()));",
        _MEMORY,
        Limits(cpu_s=4, wall_s=12, memory_mb=64, processes=16),
        quick=False,
    ),
]

FILES = [
    _c(
        "file flood",
        """
    static char block[1 << 16]; long total = 0;
    for (int n = 0; n < 64; n++) {
        char name[32]; sprintf(name, "/work/f%d", n);
        int f = open(name, O_CREAT | O_WRONLY, 0600); long got;
        signal(SIGXFSZ, SIG_IGN);
        while ((got = write(f, block, sizeof block)) > 0) total += got;
        close(f);
    }
    if (total > 16 << 20) printf("ESCAPED %ld\\n", total);
""",
        only(Ended.FINISHED, Ended.MLE),
    ),
    _c(
        "a file too many",
        """
    for (long n = 0;; n++) { char name[32]; sprintf(name, "/work/%ld", n); int f = open(name, O_CREAT | O_WRONLY, 0600); if (f < 0) break; close(f); }
""",
        only(Ended.FINISHED, Ended.MLE),
    ),
    _c(
        "huge hole",
        'signal(SIGXFSZ, SIG_IGN); int f = open("/work/hole", O_CREAT | O_RDWR, 0600); BAD(ftruncate(f, 1L << 40)); BAD(posix_fallocate(f, 0, 1L << 34) ? -1 : 0);',
        only(Ended.FINISHED),
    ),
    _c(
        "folders without end",
        'for (int n = 0; n < 100000; n++) { if (mkdir("d", 0700) || chdir("d")) break; }',
        only(Ended.FINISHED, Ended.MLE, Ended.TLE),
    ),
]

OUTPUT = [
    _c(
        "output flood", "static char block[1 << 16]; for (;;) if (write(1, block, sizeof block) < 0) return 0;", _OUTPUT
    ),
    _c("error flood", "static char block[1 << 16]; for (;;) if (write(2, block, sizeof block) < 0) return 0;", _OUTPUT),
    _py("output in small pieces", "while True: os.write(1, b'x' * 100)", only(Ended.OLE, Ended.TLE)),
    _c(
        "output by many",
        "fork(); fork(); fork(); static char block[1 << 16]; for (;;) write(1, block, sizeof block);",
        _OUTPUT,
    ),
    _py(
        "no output taken",
        "import fcntl\nfcntl.fcntl(1, 1031, 1 << 20)\nos.set_blocking(1, False)\nos.close(1)\nos.close(2)",
        ANY,
    ),
]

EXHAUSTING = [*TIME, *PROCESSES, *MEMORY, *FILES, *OUTPUT]
