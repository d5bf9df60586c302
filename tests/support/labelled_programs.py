"""One program per language that ends as its input says, so that each class of verdict is seen in each language."""

from __future__ import annotations

# ruff: noqa: E501  # programs have the lines they have
PROGRAMS = {
    "python": """
import sys
mode, *rest = sys.stdin.read().split()
if mode == "sum": print(sum(map(int, rest)))
elif mode == "wrong": print(sum(map(int, rest)) + 1)
elif mode == "loop":
    while True: pass
elif mode == "memory":
    kept = []
    while True: kept.append(b"x" * 1000000)
elif mode == "exit": sys.exit(3)
elif mode == "flood":
    while True: print("x" * 10000)
elif mode == "error": print("told", file=sys.stderr)
elif mode == "echo": sys.stdout.buffer.write(" ".join(rest).encode())
""",
    "javascript": """
const [mode, ...rest] = require('fs').readFileSync(0, 'utf8').trim().split(/\\s+/);
const sum = rest.reduce((a, b) => a + Number(b), 0);
if (mode === 'sum') console.log(sum);
else if (mode === 'wrong') console.log(sum + 1);
else if (mode === 'loop') for (;;);
else if (mode === 'memory') { const kept = []; for (;;) kept.push(new Array(100000).fill(Math.random())); }
else if (mode === 'exit') process.exit(3);
else if (mode === 'flood') for (;;) require('fs').writeSync(1, 'x'.repeat(10000));
else if (mode === 'error') console.error('told');
else if (mode === 'echo') process.stdout.write(rest.join(' '));
""",
    "java": """
import java.util.*;
public class Solution {
    static class Inner { }
    public static void main(String[] arguments) throws Exception {
        String[] all = new String(System.in.readAllBytes(), "UTF-8").trim().split("\\\\s+");
        long sum = 0;
        if (all[0].equals("sum") || all[0].equals("wrong")) for (int i = 1; i < all.length; i++) sum += Long.parseLong(all[i]);
        switch (all[0]) {
            case "sum": System.out.println(sum); break;
            case "wrong": System.out.println(sum + 1); break;
            case "loop": for (;;);
            case "memory": List<byte[]> kept = new ArrayList<>(); for (;;) kept.add(new byte[1000000]);
            case "exit": System.exit(3);
            case "flood": for (;;) System.out.println("x".repeat(10000));
            case "error": System.err.println("told"); break;
            case "echo": System.out.print(String.join(" ", Arrays.copyOfRange(all, 1, all.length)));
        }
    }
}
""",
    "c": """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static char word[1 << 16];
int main(void) {
    long sum = 0, next; char mode[16]; int first = 1;
    scanf("%15s", mode);
    if (!strcmp(mode, "loop")) for (volatile int i = 0;; i++);
    if (!strcmp(mode, "memory")) for (;;) memset(malloc(1000000), 1, 1000000);
    if (!strcmp(mode, "exit")) return 3;
    if (!strcmp(mode, "flood")) for (;;) puts("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    if (!strcmp(mode, "error")) { fputs("told", stderr); return 0; }
    if (!strcmp(mode, "echo")) { while (scanf("%65535s", word) == 1) { printf(first ? "%s" : " %s", word); first = 0; } return 0; }
    while (scanf("%ld", &next) == 1) sum += next;
    printf("%ld\\n", sum + !strcmp(mode, "wrong"));
    return 0;
}
""",
    "cpp": """
#include <iostream>
#include <string>
#include <vector>
int main() {
    std::string mode, word; std::cin >> mode;
    if (mode == "loop") for (volatile int i = 0;; i++);
    if (mode == "memory") { std::vector<std::vector<char>> kept; for (;;) kept.emplace_back(1000000, 'x'); }
    if (mode == "exit") return 3;
    if (mode == "flood") for (;;) std::cout << std::string(10000, 'x');
    if (mode == "error") { std::cerr << "told"; return 0; }
    if (mode == "echo") { bool first = true; while (std::cin >> word) { std::cout << (first ? "" : " ") << word; first = false; } return 0; }
    long sum = 0; while (std::cin >> word) sum += std::stol(word);
    std::cout << sum + (mode == "wrong") << "\\n";
}
""",
    "go": """
package main
import ("bufio"; "fmt"; "io"; "os"; "strings")
func main() {
    all, _ := io.ReadAll(bufio.NewReader(os.Stdin))
    words := strings.Fields(string(all))
    var sum, next int64
    for _, word := range words[1:] { next = 0; fmt.Sscan(word, &next); sum += next }
    switch words[0] {
    case "sum": fmt.Println(sum)
    case "wrong": fmt.Println(sum + 1)
    case "loop": for { }
    case "memory": var kept [][]byte; for { x := make([]byte, 1000000); for i := range x { x[i] = 1 }; kept = append(kept, x) }
    case "exit": os.Exit(3)
    case "flood": for { fmt.Println(strings.Repeat("x", 10000)) }
    case "error": fmt.Fprint(os.Stderr, "told")
    case "echo": fmt.Print(strings.Join(words[1:], " "))
    }
}
""",
}

BROKEN = {
    "python": "def f(:\n    pass\n",
    "javascript": "function ( {",
    "java": "public class Main { int f() { return missing; } }",
    "c": "int main(void) { return missing; }",
    "cpp": "int main() { return missing; }",
    "go": "package main\nfunc main() { missing() }\n",
}
