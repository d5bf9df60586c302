"""Programs that reach for what is outside: files, processes, networks, the kernel."""

from __future__ import annotations

from app.domain.code_runner import Ended, Limits
from hostile_programs.program import Hostile, c, only, python

_ORDERLY = only(Ended.FINISHED)
_ROOMY = Limits(cpu_s=4, wall_s=12, memory_mb=128, output_bytes=256 * 1024, processes=16, files_mb=8)


def _py(name: str, body: str) -> Hostile:
    return Hostile(name, "python", python(body), _ORDERLY, _ROOMY)


def _c(name: str, body: str, head: str = "", ends: frozenset[Ended] = _ORDERLY) -> Hostile:
    return Hostile(name, "c", c(body, head), ends, _ROOMY)


FILES = [
    _py(
        "read the machine's files",
        """
for place in (file, "/etc/shadow", "/etc/passwd", "/etc/hostname", "/root", "/home", "/var/log", "/run", "/boot"):
    works(os.stat, place)
for start in ("/work/", "/program/", "/proc/self/cwd/", "/proc/self/root/", "/proc/1/root/"):
    works(open, start + "../" * 20 + file.lstrip("/"))
""",
    ),
    _py(
        "links out of the sandbox",
        """
os.symlink(file, "/work/link")
works(open, "/work/link")
os.symlink("/proc/1/root" + file, "/work/link2")
works(open, "/work/link2")
works(os.link, "/bin/sh", "/work/hard")
works(os.link, "/program/main.py", "/work/hard2")
works(os.rename, "/work", "/elsewhere")
""",
    ),
    _py(
        "write outside its folder",
        """
for place in ("/x", "/program/x", "/program/main.py", "/usr/x", "/dev/x", "/.gate", "/proc/x", "/python/lib/x", "/etc/x"):
    works(open, place, "w")
    works(os.mkdir, place + "dir")
    works(os.unlink, place)
for place in ("/", "/program", "/dev", "/usr"):
    works(os.chmod, place, 0o777)
""",
    ),
    _py(
        "poison the libraries of later runs",
        """
import glob
for place in glob.glob("/python/lib/python3*/site-packages") + glob.glob("/python/lib/python3*/"):
    works(open, place + "/sitecustomize.py", "w")
""",
    ),
    _py(
        "devices and sys",
        """
for place in ("/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/kvm", "/dev/fuse", "/dev/tty", "/dev/ptmx",
              "/sys", "/sys/fs/cgroup", "/sys/kernel", "/dev/net/tun", "/dev/vhost-vsock"):
    works(os.stat, place)
for kind in (0o020000, 0o060000):
    works(os.mknod, "/work/node%d" % kind, kind | 0o666, os.makedev(1, 1))
""",
    ),
    _py(
        "kernel settings in proc",
        """
def put(place, value):
    descriptor = os.open(place, os.O_WRONLY)
    os.write(descriptor, value)
for place in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/modprobe",
              "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups", "/proc/irq/default_smp_affinity"):
    works(put, place, b"0 0 1")
works(put, "/proc/self/oom_score_adj", b"-1000")
for place in ("/proc/kcore", "/proc/kmsg", "/proc/1/pagemap/x", "/proc/keys/x"):
    works(open, place, "rb")
""",
    ),
]

PROCESSES = [
    _py(
        "environment of others",
        """
for one in os.listdir("/proc"):
    if one.isdigit():
        try:
            text = open("/proc/%s/environ" % one, "rb").read()
        except OSError:
            continue
        print(text)
works(open, "/proc/%s/environ" % pid)
if os.environ.keys() - {"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PWD", "LD_LIBRARY_PATH", "LC_CTYPE"}:
    print("ESCAPED", list(os.environ))
""",
    ),
    _py(
        "see other processes",
        """
others = [one for one in os.listdir("/proc") if one.isdigit() and int(one) != os.getpid()]
if others or os.getpid() != 1:
    print("ESCAPED", others)
""",
    ),
    _py(
        "signals to everybody",
        """
import signal
for target in (int(pid), os.getppid() or 2, 2, 3):
    works(os.kill, target, signal.SIGKILL)
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
""",
    ),
    _py(
        "memory of the first process",
        """
works(open, "/proc/%s/mem" % pid, "rb")
child = os.fork()
if child == 0:
    # The first process is this program's own; nothing else may be there.
    names = open("/proc/1/cmdline").read()
    if "bwrap" in names or "warden" in names:
        print("ESCAPED", names)
    os._exit(0)
os.waitpid(child, 0)
""",
    ),
    _c(
        "ptrace",
        """
    BAD(ptrace(PTRACE_TRACEME, 0, 0, 0));
    pid_t child = fork();
    if (!child) { pause(); }
    BAD(ptrace(PTRACE_ATTACH, child, 0, 0));
    BAD(ptrace(PTRACE_SEIZE, 1, 0, 0));
    kill(child, SIGKILL);
""",
    ),
    _c(
        "memory of other processes",
        """
    char buffer[16]; struct { void *base; size_t size; } here = {buffer, 16}, there = {main, 16};
    BAD(syscall(SYS_process_vm_readv, getpid(), &here, 1, &there, 1, 0));
    BAD(syscall(SYS_process_vm_writev, getpid(), &here, 1, &here, 1, 0));
    BAD(syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0));
    int me = syscall(434, getpid(), 0);
    BAD(syscall(438, me, 0, 0));
""",
    ),
    _c(
        "become root",
        """
    if (setuid(0) == 0 || seteuid(0) == 0 || setgid(0) == 0 || getuid() == 0) puts("ESCAPED setuid");
    gid_t groups[1] = {0};
    BAD(syscall(SYS_setgroups, 1, groups));
    unsigned head[2] = {0x20080522, 0}, data[6] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    BAD(syscall(SYS_capset, head, data));
""",
    ),
    _c(
        "more than its share",
        """
    struct rlimit most = {RLIM_INFINITY, RLIM_INFINITY};
    BAD(setrlimit(RLIMIT_CORE, &most)); BAD(setrlimit(RLIMIT_NOFILE, &most)); BAD(setrlimit(RLIMIT_CPU, &most));
    BAD(setpriority(PRIO_PROCESS, 0, -20));
    struct sched_param real = {1};
    BAD(sched_setscheduler(0, SCHED_FIFO, &real));
    BAD(syscall(SYS_ioprio_set, 1, 0, 1 << 13));
    BAD(mlockall(MCL_CURRENT));
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    BAD(sched_setaffinity(0, sizeof first, &first));
""",
    ),
]

NETWORKS = [
    _py(
        "loopback of the machine",
        """
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
    def reach():
        with socket.socket(family) as one:
            one.settimeout(1)
            one.connect((address, int(port)))
    works(reach)
""",
    ),
    _py(
        "names and the world",
        """
def ask():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"\\0" * 12, ("8.8.8.8", 53))
works(ask)
works(socket.create_connection, ("1.1.1.1", 443), timeout=1)
works(socket.getaddrinfo, "example.com", 80)
""",
    ),
    _py(
        "unix sockets of the machine",
        """
for address in ("\\0" + nameless, path, "/var/run/docker.sock", "/run/systemd/private", "/tmp/.s.PGSQL.5432"):
    def reach():
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(address)
    works(reach)
""",
    ),
    _c(
        "kernel sockets",
        """
    int families[] = {AF_INET, AF_INET6, 16, 17, 38, 40, 44, 15, 29, 30};  /* netlink, packet, alg, vsock, xdp, key, can, tipc */
    int ends[2];
    for (int i = 0; i < 10; i++)
        for (int kind = 1; kind <= 5; kind++) {
            if (socket(families[i], kind, 0) >= 0) printf("ESCAPED socket %d %d\\n", families[i], kind);
            if (socketpair(families[i], kind, 0, ends) >= 0) printf("ESCAPED pair %d %d\\n", families[i], kind);
        }
    BAD(socket(AF_INET, SOCK_RAW, 1));
""",
    ),
    _py(
        "a listener for its neighbours",
        """
def listen():
    with socket.create_server(("127.0.0.1", 45678)):
        pass
works(listen)
""",
    ),
]

KERNEL = [
    _c(
        "nested namespaces",
        """
    int flags[] = {CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, 0x02000000, 0x80,
                   CLONE_NEWUSER | CLONE_NEWNS};
    for (int i = 0; i < 9; i++) if (unshare(flags[i]) == 0) printf("ESCAPED unshare %x\\n", flags[i]);
    for (int i = 0; i < 9; i++) {
        if (flags[i] == 0x80) continue;
        long child = syscall(SYS_clone, flags[i] | SIGCHLD, 0, 0, 0, 0);
        if (child == 0) _exit(0);
        if (child > 0) printf("ESCAPED clone %x\\n", flags[i]);
    }
    uint64_t arguments[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long child = syscall(435, arguments, 88);
    if (child == 0) _exit(0);
    BAD(child);
    BAD(syscall(SYS_setns, open("/proc/self/ns/user", O_RDONLY), 0));
""",
    ),
    _c(
        "mounts and roots",
        """
    mkdir("/work/m", 0777);
    BAD(mount("none", "/work/m", "tmpfs", 0, "")); BAD(mount("/", "/work/m", 0, MS_BIND, 0));
    BAD(mount("none", "/", 0, MS_REMOUNT | MS_BIND, 0)); BAD(mount("proc", "/work/m", "proc", 0, 0));
    BAD(umount2("/proc", MNT_DETACH)); BAD(umount2("/", MNT_DETACH));
    BAD(chroot("/work/m")); BAD(syscall(SYS_pivot_root, "/work/m", "/work/m"));
    BAD(syscall(428, -100, "/", 1)); BAD(syscall(430, "tmpfs", 0)); BAD(syscall(442, -100, "/", 0, 0, 0));
    char handle[136]; int mount_id; *(unsigned *)handle = 128;
    BAD(syscall(SYS_name_to_handle_at, -100, "/", handle, &mount_id, 0));
    BAD(syscall(SYS_open_by_handle_at, -100, handle, 0)); BAD(syscall(SYS_swapon, "/work/m", 0));
""",
    ),
    _c(
        "io_uring",
        "char ring[256] = {0}; BAD(syscall(425, 8, ring)); BAD(syscall(427, -1, 0, 0, 0)); BAD(syscall(426, 0, 1, 0, 0, 0));",
    ),
    _c(
        "corners of the kernel",
        """
    char attributes[128] = {0};
    BAD(syscall(SYS_bpf, 0, attributes, 128)); BAD(syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0));
    BAD(syscall(323, 0)); BAD(syscall(SYS_kexec_load, 0, 0, 0, 0)); BAD(syscall(SYS_init_module, attributes, 128, ""));
    BAD(syscall(SYS_syslog, 3, attributes, 128)); BAD(syscall(SYS_fanotify_init, 0, 0)); BAD(syscall(SYS_acct, "/work/a"));
    BAD(syscall(SYS_reboot, 0xfee1dead, 672274793, 0x89abcdef, 0)); BAD(syscall(SYS_quotactl, 0, 0, 0, 0));
    BAD(syscall(SYS_sethostname, "x", 1)); BAD(syscall(SYS_settimeofday, attributes, 0));
    BAD(syscall(SYS_vmsplice, 1, 0, 0, 0)); BAD(syscall(SYS_move_pages, 0, 0, 0, 0, 0, 0));
    BAD(syscall(SYS_personality, 0x0040000)); BAD(syscall(SYS_seccomp, 2, 0, 0));
    BAD(syscall(SYS_userfaultfd, 1)); BAD(syscall(SYS_lookup_dcookie, 0, 0, 0));
""",
    ),
    _c(
        "keyrings",
        """
    BAD(syscall(SYS_add_key, "user", "x", "y", 1, -3)); BAD(syscall(SYS_keyctl, 0, -3, 1));
    BAD(syscall(SYS_request_key, "user", "x", 0, -3)); BAD(syscall(SYS_keyctl, 1, 0));
""",
    ),
    _c(
        "memory without an owner",
        """
    BAD(syscall(SYS_memfd_create, "x", 0)); BAD(syscall(SYS_shmget, 0, 1 << 20, 01600));
    BAD(syscall(SYS_msgget, 0, 01600)); BAD(syscall(SYS_semget, 0, 1, 01600)); BAD(syscall(447, 0));
    BAD(syscall(SYS_mq_open, "x", O_CREAT | O_RDWR, 0600, 0));
""",
    ),
    _c(
        "calls of the 32-bit kind",
        """
    long got;
    __asm__ volatile("int $0x80" : "=a"(got) : "a"(20) : "memory");  /* getpid */
    printf("ESCAPED %ld\\n", got);
""",
        ends=only(Ended.RE),
    ),
    _c(
        "calls of the x32 kind",
        """
    long got = syscall(0x40000000 | 39);
    printf("ESCAPED %ld\\n", got);
""",
        ends=only(Ended.RE),
    ),
    _c(
        "typing into a terminal",
        'int t = open("/dev/tty", O_RDWR); BAD(t); BAD(ioctl(0, TIOCSTI, "x")); BAD(ioctl(1, 0x541C, "x"));',
    ),
    _py(
        "calls by number",
        """
for number in (101, 155, 165, 246, 250, 272, 298, 304, 308, 310, 321, 323, 425, 428, 438):
    call(number, 0, 0, 0, 0, 0, 0)
""",
    ),
]

DESCRIPTORS = [
    _py(
        "speak through descriptors that were left open",
        """
for descriptor in range(3, 256):
    works(os.fstat, descriptor)
    works(os.write, descriptor, bytes(16))
""",
    ),
    _c(
        "duplicate descriptors that were left open",
        'for (int one = 3; one < 256; one++) { BAD(dup(one)); BAD(write(one, "\\0\\0\\0\\0", 4)); }',
    ),
]

REACHING = [*FILES, *PROCESSES, *NETWORKS, *KERNEL, *DESCRIPTORS]
