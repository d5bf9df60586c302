"""Lint of JavaScript, Java, C, C++ and Go by our own rules: each finds what it is for, and nothing in clean code."""

from __future__ import annotations

from importlib.resources import files

import pytest
import yaml

from app.infrastructure.analysis.grammar import Parsed
from app.infrastructure.analysis.lint import lint_of, own_rules
from app.infrastructure.analysis.matching import refused

RULES = yaml.safe_load(files("app.infrastructure.analysis").joinpath("lint_rules.yaml").read_text(encoding="utf-8"))

FOUND = [
    ("assignment-in-condition", "javascript", "if (a = 1) { f(); }"),
    ("assignment-in-condition", "java", "class A { void f(boolean a) { if (a = g()) { h(); } } }"),
    ("assignment-in-condition", "c", "int f(int a) { if (a = 1) { return 2; } return 0; }"),
    ("assignment-in-condition", "cpp", "int f(int a) { if (a = 1) { return 2; } return 0; }"),
    ("loose-equality", "javascript", "const x = a == 1;"),
    ("var-declaration", "javascript", "var a = 1;"),
    ("for-in-array", "javascript", "for (const k in list) { f(k); }"),
    ("eval", "javascript", "eval(code);"),
    ("empty-catch", "javascript", "try { f(); } catch (e) { }"),
    ("empty-catch", "java", "class A { void f() { try { g(); } catch (Exception e) { } } }"),
    ("empty-catch", "cpp", "int main() { try { f(); } catch (...) { } }"),
    ("string-by-identity", "java", 'class A { boolean f(String s) { return s == "x"; } }'),
    ("catches-everything", "java", "class A { void f() { try { g(); } catch (Throwable e) { h(); } } }"),
    ("string-built-in-loop", "java", 'class A { void f(String s) { for (int i = 0; i < 3; i++) { s += "x" + i; } } }'),
    ("unbounded-input", "c", "int main(void) { char a[9]; gets(a); return 0; }"),
    ("unbounded-input", "cpp", "int main() { char a[9]; strcpy(a, b); }"),
    ("scanf-without-width", "c", 'int main(void) { char a[9]; scanf("%s", a); return 0; }'),
    ("scanf-without-width", "cpp", 'int main() { char a[9]; scanf("%d %s", &n, a); }'),
    ("empty-body", "javascript", "if (a); f();"),
    ("empty-body", "java", "class A { void f(boolean a) { if (a); g(); } }"),
    ("empty-body", "c", "int f(int a) { if (a); return 1; }"),
    ("empty-body", "cpp", "int f(int a) { if (a); return 1; }"),
    ("void-main", "c", "void main(void) { }"),
    ("void-main", "cpp", "void main() { }"),
    ("new-without-delete", "cpp", "int main() { int* a = new int[5]; return a[0]; }"),
    ("by-value-loop", "cpp", "int main() { for (string s : words) f(s); }"),
    ("ignored-error", "go", "package main\nfunc main() { _ = f() }"),
    ("ignored-error", "go", "package main\nfunc main() { a, _ := f() \n g(a) }"),
    ("empty-branch", "go", "package main\nfunc main() { if a { } }"),
    ("defer-in-loop", "go", "package main\nfunc main() { for i := 0; i < 3; i++ { defer f() } }"),
    ("bool-compared", "java", "class A { boolean f(boolean a) { return a == true; } }"),
    ("bool-compared", "javascript", "const b = a === false;"),
    ("bool-compared", "go", "package main\nfunc main() { if a == true { f() } }"),
]

CLEAN = {
    "javascript": """const fs = require('fs');
const add = (a, b) => a + b;
let best = null;
for (const k of list) { try { f(k); } catch (e) { console.error(e); } }
if (best == null) { best = add(1, 2); } else if (best === 3) { g(); }
while ((m = next()) !== null) { f(m); }
""",
    "java": """import java.util.*;
class Main {
    public static void main(String[] args) {
        StringBuilder all = new StringBuilder();
        for (String s : args) { if (s.equals("x")) { all.append(s); } else { all.append("y"); } }
        try { f(all); } catch (IllegalStateException e) { throw new RuntimeException(e); }
        int total = 0; for (int i = 0; i < 3; i++) { total += i; }
    }
}
""",
    "c": """#include <stdio.h>
int main(void) {
    char name[20]; int c;
    if (scanf("%19s", name) != 1) { return 1; }
    while ((c = getchar()) != EOF) { putchar(c); }
    if (c == 1) { printf("%s", name); }
    return 0;
}
""",
    "cpp": """#include <bits/stdc++.h>
using namespace std;
int main() {
    vector<string> words;
    for (const string& s : words) { cout << s; }
    for (int i : {1, 2}) { cout << i; }
    int* a = new int[5]; delete[] a;
    if (auto it = find(1); it != 2) { return 1; }
    try { f(); } catch (const exception& e) { cerr << e.what(); }
}
""",
    "go": """package main

import "fmt"

func main() {
	for i := range 3 {
		func() { defer f() }()
		if v, err := g(i); err != nil {
			fmt.Println(v)
		}
	}
}
""",
}


@pytest.mark.parametrize(("rule", "language", "code"), FOUND, ids=[f"{rule}-{lang}" for rule, lang, _ in FOUND])
def test_a_rule_finds_what_it_is_for(rule: str, language: str, code: str) -> None:
    parsed = Parsed(language, code)
    assert not parsed.has_error
    assert rule in {message["rule"] for message in lint_of(parsed)["messages"]}


@pytest.mark.parametrize("language", CLEAN)
def test_clean_code_is_left_alone(language: str) -> None:
    parsed = Parsed(language, CLEAN[language])
    assert not parsed.has_error
    assert lint_of(parsed)["messages"] == []


@pytest.mark.parametrize("language", CLEAN)
def test_ast_grep_takes_every_rule(language: str) -> None:
    assert refused(own_rules(language)) == {}


def test_every_rule_has_an_example_in_each_of_its_languages() -> None:
    ruled = {(rule["id"], language) for rule in RULES for language in rule["languages"]}
    assert ruled == {(rule, language) for rule, language, _ in FOUND}
