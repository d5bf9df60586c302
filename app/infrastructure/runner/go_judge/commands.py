"""How each language is found, compiled and run on a go-judge, whose image holds the toolchains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.infrastructure.runner.remote.java_names import java_names

ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin:/usr/lib/jvm/default-java/bin",
    "HOME=/tmp",
    "LANG=C.UTF-8",
    "LC_ALL=C.UTF-8",
)

_CHECK = "import sys; compile(open(sys.argv[1], 'rb').read(), sys.argv[1], 'exec')"
_JAVA_SMALL = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto")
_JAVA_ENCODING = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dstderr.encoding=UTF-8")
_JAVA_COMPILE = (
    'mkdir -p out && "$1" -J-XX:+UseSerialGC -J-XX:TieredStopAtLevel=1 -proc:none -encoding UTF-8 -d out "$2" '
    '&& "$3" cf program.jar -C out .'
)


@dataclass(frozen=True, slots=True)
class Commands:
    """One language.

    Attributes:
        programs: what has to be there; commands get their paths in this order.
        version: what asks the version, for a shell.
        source: what the source file is called.
        compile: the command, of paths and the source.
        run: the command, of paths, the memory limit in MiB and the source; further arguments are added to it.
        makes: the file that compiling makes, in the working directory; ``None``: the source is the program, and
            compiling only looks at its syntax.
        more_mb: MiB the language itself needs besides what a program is granted.
        more_processes: threads it starts by itself.
        memory_marks: what it writes on standard error when a program's memory is used up.
    """

    programs: tuple[str, ...]
    version: str
    source: Callable[[str], str]
    compile: Callable[[Sequence[str], str], list[str]]
    run: Callable[[Sequence[str], int, str], list[str]]
    makes: str | None = None
    more_mb: int = 0
    more_processes: int = 0
    memory_marks: tuple[bytes, ...] = ()
    environment: tuple[str, ...] = ()

    @property
    def find(self) -> list[str]:
        """Prints one path per program and then the version; exit code 127 where one is not there."""
        script = f'for name in "$@"; do command -v "$name" || exit 127; done; {self.version} 2>&1'
        return ["/bin/sh", "-c", script, "sh", *self.programs]


def _native(compiler: str, name: str, flags: Sequence[str], libraries: Sequence[str] = ()) -> Commands:
    return Commands(
        programs=(compiler,),
        version=f"{compiler} -dumpfullversion",
        source=lambda _: name,
        compile=lambda paths, _: [
            paths[0], "-fdiagnostics-color=never", "-fmax-errors=20", *flags, "-o", "main", name, *libraries,
        ],
        run=lambda _paths, _mb, _source: ["./main"],
        makes="main",
    )  # fmt: skip


COMMANDS = {
    "python": Commands(
        programs=("python3",),
        version="python3 --version",
        source=lambda _: "main.py",
        compile=lambda paths, _: [paths[0], "-I", "-B", "-c", _CHECK, "main.py"],
        run=lambda paths, _mb, _source: [paths[0], "-B", "main.py"],
        memory_marks=(b"MemoryError",),
    ),
    "javascript": Commands(
        programs=("node",),
        version="node --version",
        source=lambda _: "main.js",
        compile=lambda paths, _: [paths[0], "--check", "main.js"],
        run=lambda paths, mb, _source: [paths[0], f"--max-old-space-size={mb}", "main.js"],
        more_mb=64,
        more_processes=12,
        memory_marks=(b"JavaScript heap out of memory",),
    ),
    "java": Commands(
        programs=("javac", "java", "jar"),
        version="javac -version",
        source=lambda source: java_names(source).file,
        compile=lambda paths, source: [
            "/bin/sh", "-c", _JAVA_COMPILE, "sh", paths[0], java_names(source).file, paths[2],
        ],
        run=lambda paths, mb, source: [
            paths[1], *_JAVA_SMALL, "-XX:+ExitOnOutOfMemoryError", "-Xss64m", *_JAVA_ENCODING, f"-Xmx{mb}m",
            "-cp", "program.jar", java_names(source).main,
        ],
        makes="program.jar",
        more_mb=160,
        more_processes=32,
        memory_marks=(b"OutOfMemoryError",),
    ),
    "c": _native("gcc", "main.c", ("-std=gnu17", "-O2"), ("-lm",)),
    "cpp": _native("g++", "main.cpp", ("-std=gnu++17", "-O2")),
    "go": Commands(
        programs=("go",),
        version="go version",
        source=lambda _: "main.go",
        compile=lambda paths, _: [paths[0], "build", "-o", "main", "main.go"],
        run=lambda _paths, _mb, _source: ["./main"],
        makes="main",
        more_mb=32,
        more_processes=16,
        memory_marks=(b"runtime: out of memory", b"cannot allocate memory"),
        environment=(
            "GOCACHE=/tmp/cache", "GOPATH=/tmp/path", "GO111MODULE=off", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false",
            "GOTOOLCHAIN=local", "GOTELEMETRY=off",
        ),
    ),
}  # fmt: skip
