"""Programs that are hostile to the compiler, or by the languages' own back doors."""

from __future__ import annotations

from app.domain.code_runner import Ended, Limits
from hostile_programs.program import ANY, ESCAPED, Hostile, only

_FINISHED = only(Ended.FINISHED)
_REFUSED: frozenset[Ended] = frozenset()
_ROOMY = Limits(cpu_s=4, wall_s=12, memory_mb=128, output_bytes=256 * 1024, processes=16, files_mb=8)

COMPILERS = [
    Hostile("include what never ends", "c", '#include "/dev/zero"\nint main() { return 0; }', _REFUSED, quick=False),
    Hostile("include what is random", "c", '#include "/dev/urandom"\nint main() { return 0; }', _REFUSED, quick=False),
    Hostile(
        "include the machine's users", "c", '#include "/etc/passwd"\n#include "/etc/shadow"\nint main() {}', _REFUSED
    ),
    Hostile(
        "include the environment",
        "c",
        '#include "/proc/self/environ"\n#include "/proc/1/environ"\nint main() {}',
        _FINISHED,
    ),
    Hostile(
        "carry the machine's users away",
        "c",
        'int main() { extern char a[]; __asm__(".section .data\\n.globl a\\na: .incbin \\"/etc/shadow\\"\\n.text"); return a[0]; }',
        _REFUSED,
    ),
    Hostile(
        "a program of gigabytes", "c", "char a[1L << 32] = {1}; int main() { return a[5]; }", _REFUSED, quick=False
    ),
    Hostile(
        "macros that explode",
        "c",
        "\n".join(["#define A0 x", *(f"#define A{n} {f'A{n - 1} ' * 10}" for n in range(1, 12)), "int main() { A11 }"]),
        _REFUSED,
        quick=False,
    ),
    Hostile(
        "templates without end",
        "cpp",
        "template<int N> struct A { typedef typename A<N + 1>::B B; typedef typename A<N + 2>::B C; };\nint main() { A<0>::B b; }",
        _REFUSED,
        quick=False,
    ),
    Hostile(
        "a constant that takes for ever",
        "cpp",
        'constexpr long f(int n) { return n < 2 ? 1 : f(n - 1) + f(n - 2); }\nstatic_assert(f(60) == 1, "");\nint main() {}',
        _REFUSED,
        quick=False,
    ),
    Hostile("include itself", "cpp", '#include "/program/main.cpp"\nint main() {}', _REFUSED, quick=False),
    Hostile(
        "brackets without end",
        "python",
        "x = " + "(" * 100_000,
        _REFUSED,
    ),
]

LANGUAGES = [
    Hostile(
        "reflection",
        "java",
        f"""import java.io.*; import java.lang.reflect.*; import java.nio.file.*;
class Main {{ public static void main(String[] a) throws Exception {{
    String[] lines = new BufferedReader(new InputStreamReader(System.in)).lines().toArray(String[]::new);
    for (String place : new String[] {{lines[3], "/etc/shadow", "/etc/passwd", "/proc/" + lines[4] + "/environ"}})
        if (Files.exists(Paths.get(place))) System.out.println("{ESCAPED} " + place);
    try {{ Runtime.getRuntime().exec(new String[] {{"/bin/sh", "-c", "id"}}); System.out.println("{ESCAPED} exec"); }}
    catch (IOException expected) {{ }}
    try {{ new java.net.Socket("127.0.0.1", Integer.parseInt(lines[0])); System.out.println("{ESCAPED} net"); }}
    catch (IOException expected) {{ }}
    Field field = Class.forName("sun.misc.Unsafe").getDeclaredField("theUnsafe");
    field.setAccessible(true);
    for (String name : System.getenv().keySet()) if (name.contains("CANARY")) System.out.println("{ESCAPED} env");
}} }}""",
        _FINISHED,
        _ROOMY,
        quick=False,
    ),
    Hostile(
        "crash a virtual machine",
        "java",
        """class Main { public static void main(String[] a) throws Exception {
    var field = Class.forName("sun.misc.Unsafe").getDeclaredField("theUnsafe"); field.setAccessible(true);
    ((sun.misc.Unsafe) field.get(null)).putAddress(8, 1); } }""",
        only(Ended.RE),
        _ROOMY,
        quick=False,
    ),
    Hostile(
        "child processes of node",
        "javascript",
        f"""const fs = require('fs'); const lines = fs.readFileSync(0, 'utf8').split('\\n');
const {{ spawnSync }} = require('child_process');
for (const tried of ['/bin/sh', '/usr/bin/id', '/shell/sh', 'bwrap']) if (!spawnSync(tried, ['-c', 'id']).error) console.log('{ESCAPED}', tried);
for (const place of [lines[3], '/etc/shadow', '/proc/' + lines[4] + '/environ', '/root', '/sys']) if (fs.existsSync(place)) console.log('{ESCAPED}', place);
if (JSON.stringify(process.env).includes('CANARY')) console.log('{ESCAPED} env');
try {{ process.setuid(0); console.log('{ESCAPED} root'); }} catch (expected) {{ }}
try {{ process.kill(Number(lines[4]), 9); console.log('{ESCAPED} kill'); }} catch (expected) {{ }}
const socket = require('net').connect(Number(lines[0]), '127.0.0.1');
socket.on('connect', () => console.log('{ESCAPED} net')); socket.on('error', () => {{ }});""",
        _FINISHED,
        _ROOMY,
    ),
    Hostile(
        "code in node's own libraries",
        "javascript",
        "process.binding('fs'); process.dlopen({exports: {}}, '/work/x.node');",
        only(Ended.RE),
        _ROOMY,
    ),
    Hostile(
        "go's own calls",
        "go",
        f"""package main
import ("fmt"; "net"; "os"; "syscall")
func main() {{
    if _, err := net.Dial("tcp", "127.0.0.1:80"); err == nil {{ fmt.Println("{ESCAPED}") }}
    for _, n := range []uintptr{{101, 155, 165, 250, 272, 321, 425}} {{
        if _, _, e := syscall.RawSyscall(n, 0, 0, 0); e == 0 {{ fmt.Println("{ESCAPED}", n) }} }}
    if _, err := os.Stat("/etc/passwd"); err == nil {{ fmt.Println("{ESCAPED}") }}
}}""",
        _FINISHED,
        _ROOMY,
        quick=False,
    ),
    Hostile(
        "be something else",
        "python",
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'while True: pass'])",
        only(Ended.TLE),
    ),
    Hostile(
        "deep recursion",
        "cpp",
        "int f(int n) { volatile char a[4096]; a[0] = n; return f(n + 1) + a[0]; }\nint main() { return f(0); }",
        ANY,
    ),
]

COMPILING = [*COMPILERS, *LANGUAGES]
