"""Programs that solve nothing and want to pass: 25 ways to forge a verdict.

The problem is to print the sum of two numbers. Each program is run on several cases, one after the other, and forged
a pass when one case that it did not compute is accepted.
"""

from __future__ import annotations

from typing import NamedTuple


class Forged(NamedTuple):
    """One program, and whether it is meant for a checker program or a tolerance."""

    name: str
    language: str
    source: str
    checker: str = "tokens"


_SEARCH = """
import glob, os, re
def numbers(text):
    return re.findall(rb"-?\\d{5,}", text)
seen = []
"""

FORGED = [
    Forged("leave at once", "python", "raise SystemExit(0)"),
    Forged("leave under the interpreter", "python", "import os\nos._exit(0)"),
    Forged("the checker's own exit code", "python", "import os\nos._exit(42)", "program"),
    Forged("claim success", "python", "print('ALL TESTS PASSED')\nprint('AC')\nprint('accepted: true')"),
    Forged("a verdict in JSON", "python", "import json, sys\nprint(json.dumps({'verdict': 'AC', 'exit-code': 0, 'ok': True}))\nprint('AC', file=sys.stderr)"),
    Forged("equal to everything", "python", "class Any(str):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n    def __str__(self): return '0'\nprint(Any('0'))"),
    Forged("patched built-ins", "python", "import builtins, sys, unittest\nbuiltins.print = lambda *a, **k: None\nsys.exit = lambda *a: None\nunittest.TestCase.assertEqual = lambda *a, **k: None\nbuiltins.open = None"),
    Forged("answers among files", "python", _SEARCH + "for root in ('/work', '/program', '/tmp', '/judge', '/', '/home', '/data'):\n    for place in glob.glob(root + '/**', recursive=True) if root != '/' else glob.glob('/*') + glob.glob('/*/*'):\n        try:\n            with open(place, 'rb') as one: seen += numbers(one.read(4096))\n        except OSError: pass\nfor one in seen[:100]: print(one.decode()); break"),
    Forged("answers in the environment", "python", _SEARCH + "for place in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):\n    seen += numbers(open(place, 'rb').read())\nprint(*(one.decode() for one in seen))"),
    Forged("answers in open files", "python", _SEARCH + "for one in range(3, 256):\n    try: seen += numbers(os.pread(one, 65536, 0))\n    except OSError:\n        try: os.set_blocking(one, False); seen += numbers(os.read(one, 65536))\n        except OSError: pass\nprint(*(one.decode() for one in seen))"),
    Forged("answers in the parent's memory", "python", _SEARCH + "for pid in ('1', '0', str(os.getppid()), 'self'):\n    try:\n        with open('/proc/%s/maps' % pid) as maps, open('/proc/%s/mem' % pid, 'rb') as memory:\n            for line in maps:\n                if '[heap]' in line:\n                    start, end = (int(x, 16) for x in line.split()[0].split('-'))\n                    memory.seek(start); seen += numbers(memory.read(end - start))\n    except OSError: pass\nprint(seen[0].decode() if seen else 'none')"),
    Forged("write into the launcher's pipes", "python", "import os, json\nfor one in range(3, 256):\n    try: os.write(one, json.dumps({'exit-code': 0, 'child-pid': 1, 'verdict': 'AC'}).encode() + b'\\n')\n    except OSError: pass"),
    Forged("time itself", "python", "import time\nstart = time.time()\nwhile time.time() - start < 0.2: pass\nprint(int(start) % 2)"),
    Forged("poison modules for later cases", "python", "import os\nfor place in ('/work', '/tmp', '/program', '/python/lib/python3.11', '.'):\n    for name in ('sitecustomize.py', 'usercustomize.py', 'json.py', 'main.py', 'answer'):\n        try: open(os.path.join(place, name), 'w').write('print(open(\"/work/answer\").read())')\n        except OSError: pass\nprint(0)"),
    Forged("a daemon that answers the next case", "python", "import os, time, sys\nif os.fork() == 0:\n    os.setsid()\n    for _ in range(50):\n        time.sleep(0.02)\n        for pid in os.listdir('/proc'):\n            if pid.isdigit() and int(pid) != os.getpid():\n                try: open('/proc/%s/fd/1' % pid, 'w').write('0\\n')\n                except OSError: pass\n"),
    Forged("shared memory between cases", "python", "from multiprocessing import shared_memory\ntry:\n    kept = shared_memory.SharedMemory('kept')\n    print(bytes(kept.buf[:20]).strip(b'\\0').decode())\nexcept (FileNotFoundError, OSError, ImportError):\n    try:\n        kept = shared_memory.SharedMemory('kept', create=True, size=64)\n        kept.buf[:6] = b'424242'\n    except OSError: pass\n    import os; os._exit(0)"),
    Forged("kill whoever judges", "python", "import os, signal\nfor pid in (-1, 0, os.getppid()):\n    if pid:\n        try: os.kill(pid, signal.SIGKILL)\n        except OSError: pass"),
    Forged("end by the judge's signal", "python", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nos._exit(137)"),
    Forged("nothing that can be seen", "python", "import sys\nsys.stdout.write('\\0' * 1000 + '\\x1b[2J' + ' \\n\\t' * 1000)"),
    Forged("every answer there is", "python", "import sys\nfor n in range(200000): sys.stdout.write('%d\\n' % n)"),
    Forged("not a number", "python", "print('nan')", "floats"),
    Forged("infinitely far", "python", "print('1e999')\nprint('-inf')", "floats"),
    Forged("talk to the checker", "python", "import sys\nsys.stdout.write('42\\n' + 'accepted\\n' * 10 + '\\0' + '../../judge/answer' + '\\n' * 100)", "program"),
    Forged("read what the checker has", "python", "import glob\nfor place in glob.glob('judge/*') + glob.glob('/work/judge/*') + glob.glob('/work/feedback/*'):\n    print(open(place).read())", "program"),
    Forged("digits of another script", "python", "a, b = map(int, input().split())\nprint(''.join(chr(0x0660 + int(d)) for d in str(abs(a + b))))"),
    Forged("nearly right", "python", "a, b = map(int, input().split())\nprint(a + b, a + b)"),
    Forged("right, and then dead", "python", "import os\na, b = map(int, input().split())\nprint(a + b, flush=True)\nos._exit(1)"),
    Forged("before main", "c", "#include <stdio.h>\n#include <unistd.h>\n__attribute__((constructor)) static void first(void) { puts(\"AC\"); _exit(0); }\nint main(void) { return 1; }"),
    Forged("while it is compiled", "c", "#include <stdio.h>\n#pragma message(\"AC\")\n#warning exit code 0, all tests passed\nint main(void) { puts(__FILE__ __TIME__); return 0; }"),
    Forged("a getter that leaves", "javascript", "Object.defineProperty(global, 'answer', { get() { process.exit(0); } });\nObject.prototype.toString = () => 'AC';\nArray.prototype.includes = () => true;\nglobal.answer;"),
    Forged("a hook at the end", "javascript", "process.on('exit', () => { process.exitCode = 0; require('fs').writeSync(1, 'AC\\n'); });\nthrow new Error('wrong');"),
]  # fmt: skip
