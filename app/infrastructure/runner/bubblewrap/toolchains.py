"""The languages' toolchains on this machine: where they are, what of the machine each needs to see, how each is run."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.domain.code_runner import Toolchain
from app.infrastructure.runner.java_file import java_file

PROGRAM = "/program"
"""Where a sandbox has the program; its working directory is ``/work``."""
JAR = f"{PROGRAM}/main.jar"
"""All classes of a Java program in one file: each file takes a descriptor as long as the program is kept, and one more
for each run of it."""

_VERSION = re.compile(r"\d+(?:\.\d+)+")
_VERSION_S = 20
_PUBLIC_CLASS = re.compile(
    r"\bpublic\s+(?:(?:final|abstract|strictfp|sealed)\s+)*(?:class|record|enum|interface)\s+(\w+)"
)


@dataclass(frozen=True, slots=True)
class Bind:
    """Something of the machine that a sandbox sees, read-only: ``source`` there, ``place`` in it."""

    source: str
    place: str


@dataclass(frozen=True, slots=True)
class View:
    """What a sandbox sees of the machine. ``links`` are symbolic links (target, place); ``empty`` are covered."""

    binds: tuple[Bind, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    empty: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Language:
    """One language, as it is on this machine.

    Attributes:
        compile: the command that makes ``/work/out`` of the file in ``PROGRAM``, or only checks it.
        makes: ``file`` (the program is ``/work/out``), ``tree`` (a jar of what ``/work/out`` holds) or ``nothing``
            (the source is the program).
        run: the command for a limit in MiB and the program's name.
        name_of: what the source file is called.
        compile_factor: how many times the limits of time its compiler gets.
        more_mb: MiB the language itself needs besides what a program is granted.
        more_processes: threads it starts by itself.
        stack_mb: of the first thread.
        reserved_mb: MiB it asks the kernel for and does not use, such as stacks of threads.
        memory_marks: what it writes on standard error when a program's memory is used up.
    """

    toolchain: Toolchain
    compile_view: View
    run_view: View
    compile: Callable[[str], Sequence[str]]
    run: Callable[[int, str], Sequence[str]]
    name_of: Callable[[str], str]
    makes: str = "file"
    compile_factor: float = 1.0
    more_mb: int = 0
    more_processes: int = 0
    stack_mb: int = 8
    reserved_mb: int = 0
    memory_marks: tuple[bytes, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def find_languages() -> dict[str, Language]:
    """Those whose toolchain is found. Starts each compiler once to ask its version (a second in all)."""
    found = {}
    for find in (_python, _javascript, _java, _c, _cpp, _go):
        language = find()
        if language is not None:
            found[language.toolchain.language] = language
    return found


def _python() -> Language | None:
    # The one this service runs on: it is there, and its version is the one that is promised.
    base, name = Path(sys.base_prefix).resolve(), f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = base / "lib" / name
    interpreter = base / "bin" / name
    if not (library.is_dir() and interpreter.is_file()):
        return None
    binds = [Bind(str(interpreter), f"/python/bin/{name}"), Bind(str(library), f"/python/lib/{name}")]
    binds += [Bind(str(path), f"/python/lib/{path.name}") for path in sorted((base / "lib").glob("libpython*.so*"))]
    packages = [f"/python/lib/{name}/{path.name}" for path in library.glob("*-packages")]
    view = _view(binds, empty=packages)
    command = [f"/python/bin/{name}", "-B"]
    check = "import sys; compile(open(sys.argv[1], 'rb').read(), sys.argv[1], 'exec')"
    return Language(
        Toolchain("python", platform.python_version()),
        view,
        view,
        compile=lambda source: [*command, "-c", check, f"{PROGRAM}/{source}"],
        run=lambda _, name: [*command, f"{PROGRAM}/{name}"],
        name_of=lambda _: "main.py",
        makes="nothing",
        stack_mb=64,
        memory_marks=(b"MemoryError",),
        environment={"LD_LIBRARY_PATH": "/python/lib"},
    )


def _javascript() -> Language | None:
    node = _which("node")
    version = _version(node, "--version")
    if node is None or version is None:
        return None
    view = _view([Bind(str(node), "/node/node")])
    return Language(
        Toolchain("javascript", version),
        view,
        view,
        compile=lambda source: ["/node/node", "--check", f"{PROGRAM}/{source}"],
        run=lambda memory, name: ["/node/node", f"--max-old-space-size={memory}", f"{PROGRAM}/{name}"],
        name_of=lambda _: "main.js",
        makes="nothing",
        more_mb=64,
        more_processes=12,
        memory_marks=(b"JavaScript heap out of memory",),
    )


def _java() -> Language | None:
    java, javac = _which("java"), _which("javac")
    version = _version(javac, "-version")
    if java is None or javac is None or version is None:
        return None
    home = java.parent.parent
    # Debian keeps a JDK's settings in /etc, behind links.
    beside = {path.resolve().parent for path in (home / "lib").glob("*.cfg") if home not in path.resolve().parents}
    beside |= {
        path.resolve() for path in [home / "conf", *(home / "conf").glob("*")] if home not in path.resolve().parents
    }
    binds = [Bind(str(home), str(home)), *(Bind(str(path), str(path)) for path in _outermost(beside) if path.is_dir())]
    run_view = _view(binds)
    small = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto", "-XX:TieredStopAtLevel=1")
    common = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xshare:auto", "-XX:+ExitOnOutOfMemoryError", "-Xss64m")
    encoding = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dstderr.encoding=UTF-8")
    return Language(
        Toolchain("java", version),
        _view([*binds, *_shell()]),
        run_view,
        compile=lambda source: [
            str(javac), *(f"-J{option}" for option in small), "-proc:none", "-encoding", "UTF-8", "-d", "/work/out",
            f"{PROGRAM}/{source}",
        ],
        run=lambda memory, name: [
            str(java), *common, *encoding, f"-Xmx{memory}m", "-cp", JAR, name,
        ],
        name_of=_java_file,
        makes="tree",
        more_mb=160,
        more_processes=32,
        reserved_mb=1024,
        memory_marks=(b"OutOfMemoryError",),
    )  # fmt: skip


def _java_file(source: str) -> str:
    bare = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', " ", source, flags=re.DOTALL)
    public = _PUBLIC_CLASS.search(bare)
    return java_file(public[1] if public else None)


def main_class(classes: dict[str, bytes], source_name: str) -> str:
    """Which of the compiled classes (path: content) is started: ``Main``, the file's, or the first that can be."""
    can = [
        path.removesuffix(".class").replace("/", ".")
        for path, content in sorted(classes.items())
        if path.endswith(".class") and b"\x01\x00\x04main\x01" in content and b"([Ljava/lang/String;)V" in content
    ]
    wanted = ("Main", source_name.removesuffix(".java"))
    return next((name for name in (*wanted, *can) if name in can), wanted[1])


def _c() -> Language | None:
    return _native("c", "gcc", "main.c", ("-std=gnu17", "-O2"), ("-lm",))


def _cpp() -> Language | None:
    return _native("cpp", "g++", "main.cpp", ("-std=gnu++17", "-O2"), ())


def _native(
    language: str, compiler: str, source_name: str, flags: Sequence[str], libraries: Sequence[str]
) -> Language | None:
    path = _which(compiler)
    version = _version(path, "-dumpfullversion")
    if path is None or version is None:
        return None
    prefixes = {Path("/usr"), path.parent.parent}
    wanted = [
        prefix / name for prefix in sorted(prefixes) for name in ("bin", "lib", "lib32", "lib64", "libexec", "include")
    ]
    binds = [Bind(str(each), str(each)) for each in wanted if each.is_dir() and not each.is_symlink()]
    return Language(
        Toolchain(language, version),
        _view([*binds, *_shell()]),
        _view(()),
        compile=lambda source: [
            str(path), "-fdiagnostics-color=never", "-fmax-errors=20", *flags, "-o", "/work/out",
            f"{PROGRAM}/{source}", *libraries,
        ],
        run=lambda _, name: [f"{PROGRAM}/{name}"],
        name_of=lambda _: source_name,
        stack_mb=64,
    )  # fmt: skip


def _go() -> Language | None:
    go = _which("go")
    version = _version(go, "version")
    if go is None or version is None:
        return None
    home = go.parent.parent
    beside = {path.resolve() for path in home.iterdir() if path.is_symlink() and path.resolve().is_dir()}
    binds = [Bind(str(home), str(home)), *(Bind(str(path), str(path)) for path in sorted(beside))]
    return Language(
        Toolchain("go", version),
        _view([*binds, *_shell()]),
        _view(()),
        compile=lambda source: [str(go), "build", "-o", "/work/out", f"{PROGRAM}/{source}"],
        run=lambda _, name: [f"{PROGRAM}/{name}"],
        name_of=lambda _: "main.go",
        compile_factor=3.0,  # from version 1.20 on it compiles its own library with each program
        more_mb=32,
        more_processes=16,
        memory_marks=(b"runtime: out of memory", b"cannot allocate memory"),
        environment={
            "GOROOT": str(home), "GOCACHE": "/work/cache", "GOPATH": "/work/path", "GO111MODULE": "off",
            "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local", "GOTELEMETRY": "off",
        },
    )  # fmt: skip


def _shell() -> list[Bind]:
    """What hands over a compiled program: a shell, ``cat`` and ``tar``."""
    paths = [_which(name) for name in ("sh", "cat", "tar")]
    return [Bind(str(path), f"/shell/{name}") for path, name in zip(paths, ("sh", "cat", "tar"), strict=True) if path]


def _view(binds: Iterable[Bind], empty: Iterable[str] = ()) -> View:
    """Add the machine's shared libraries, where its loader looks for them."""
    links = []
    multiarch = f"/usr/lib/{platform.machine()}-linux-gnu"
    wanted = [multiarch] if Path(multiarch).is_dir() else ["/usr/lib"]
    covered = tuple(f"{bind.place}/" for bind in binds)
    wanted = [name for name in (*wanted, "/usr/lib64") if Path(name).is_dir() and not f"{name}/".startswith(covered)]
    libraries = [Bind(name, name) for name in wanted]
    for name in ("/lib", "/lib64", "/bin"):
        place = Path(name)
        if place.is_symlink():
            links.append((str(place.readlink()), name))
        elif place.is_dir() and name != "/bin":
            libraries.append(Bind(name, name))
    return View((*libraries, *binds), tuple(links), tuple(empty))


def _outermost(paths: set[Path]) -> list[Path]:
    return sorted(path for path in paths if not paths & set(path.parents))


def _which(name: str) -> Path | None:
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath))
    return Path(found).resolve() if found else None


def _version(program: Path | None, option: str) -> str | None:
    if program is None:
        return None
    try:
        said = subprocess.run([program, option], capture_output=True, text=True, timeout=_VERSION_S, check=True)  # noqa: S603  # found on PATH
    except (OSError, subprocess.SubprocessError):
        return None
    version = _VERSION.search(said.stdout + said.stderr)
    return version[0] if version else None
