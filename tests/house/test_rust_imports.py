"""Rust files import each other in one direction: no circle in any folder.

The rule: a file has an arrow to each file that defines something that it names, in a `use` or in a path in its code
(`super::x::f`, `crate::x::T`, or `x::f` where x is a child). A name that a file only hands on (`pub use x::T`, also a
private `use` that a child reaches through `super`) is followed to the file that defines it: handing on is no arrow, and
neither is `mod x;`. So a child that takes what its parent's file defines has an arrow to the parent, and a parent that
calls a child has one to the child. In each folder, the folder's own file and each stem (`x.rs` with all that lies in
`x/`) are the points among which there must be no circle. Code under `#[cfg(test)]` counts for nothing.

What it does not see: methods of a type, called by files that do not name the type.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

RUST = Path(__file__).parent.parent.parent / "rust"
NO_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/"  # comments
    r"|\bb?r(?P<hash>#*)\".*?\"(?P=hash)|\"(?:\\.|[^\"\\])*\""  # strings
    r"|'(?:\\u\{\w+\}|\\.[^']*|[^'\\])'",  # characters, not lifetimes
    re.DOTALL,
)
TEST = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*mod\s+\w+\s*(?P<open>[{;])")
USE = re.compile(r"\b(?P<pub>pub\s*(?:\([^)]*\)\s*)?)?use\s+(?P<tree>[^;]+);")

Module = tuple[str, ...]


@dataclass
class File:
    """What one file says of others."""

    path: Path
    children: set[str] = field(default_factory=set)
    named: dict[str, Module] = field(default_factory=dict)  # names that a `use` brings, with their paths
    handed_on: set[str] = field(default_factory=set)
    paths: set[Module] = field(default_factory=set)  # in code


def code_of(text: str) -> str:
    """The text without comments, literals and test modules."""
    text = NO_CODE.sub(" ", text)
    while test := TEST.search(text):
        end, depth = test.end(), int(test["open"] == "{")
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        text = text[: test.start()] + text[end:]
    return text


def leaves(tree: str) -> list[tuple[Module, str]]:
    """The paths of a use tree, each with the name that it brings; `*` brings none."""
    tree = tree.strip()
    if "{" not in tree:
        path, _, alias = (part.strip() for part in tree.partition(" as "))
        parts = tuple(part.strip() for part in path.split("::"))
        parts = parts[:-1] if parts[-1] in ("self", "*") and len(parts) > 1 else parts
        return [(parts, "" if path.endswith("*") else alias or parts[-1])]
    start, inner = tree.index("{"), tree[tree.index("{") + 1 : tree.rindex("}")]
    head = tuple(part.strip() for part in tree[:start].split("::") if part.strip())
    branches, depth, last = [], 0, 0
    for at, character in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and not depth:
            branches.append(inner[last:at])
            last = at + 1
    branches = [branch for branch in [*branches, inner[last:]] if branch.strip()]
    found = [leaf for branch in branches for leaf in leaves(branch)]
    return [(head, name if name != "self" else head[-1]) if p == ("self",) else (head + p, name) for p, name in found]


def read(source: Path) -> dict[Module, File]:
    """The files of a crate that are no tests, by their modules."""
    files: dict[Module, File] = {}
    open_: list[tuple[Module, Path]] = [((), source / "lib.rs")]
    while open_:
        module, path = open_.pop()
        text = code_of(path.read_text(encoding="utf-8"))
        file = files[module] = File(path, set(re.findall(r"\bmod\s+(\w+)\s*;", text)))
        for use in USE.finditer(text):
            for parts, name in leaves(use["tree"]):
                file.named[name or "::".join((*parts, "*"))] = parts
                file.handed_on |= {name} if use["pub"] else set()
        file.paths = {tuple(p.split("::")) for p in re.findall(r"(?<![\w:])\w+(?:::\w+)+", USE.sub(" ", text))}
        open_ += [((*module, child), source.joinpath(*module, f"{child}.rs")) for child in sorted(file.children)]
    return files


def definer(
    files: dict[Module, File], module: Module, path: Module, *, seen: frozenset[Module] = frozenset()
) -> Module:
    """The module whose file defines what `path` names in `module`; a LookupError: another crate's."""
    head, *rest = path
    if head == "crate":
        at: Module = ()
    elif head == "super":
        at = module[:-1]
    elif head == "self":
        at = module
    elif head in files[module].children:
        at = (*module, head)
    else:
        raise LookupError
    while rest and (rest[0] in ("super", "self") or rest[0] in files[at].children):
        at = at[:-1] if rest[0] == "super" else at if rest[0] == "self" else (*at, rest[0])
        rest = rest[1:]
    if rest and rest[0] in files[at].named and (*at, rest[0]) not in seen:
        further = (*files[at].named[rest[0]], *rest[1:])
        try:
            return definer(files, at, further, seen=seen | {(*at, rest[0])})
        except LookupError:  # another crate's
            return module
    return at


def arrows(source: Path) -> dict[tuple[Module, Module], str]:
    """Which file needs which, with a name by which it does."""
    files = read(source)
    found: dict[tuple[Module, Module], str] = {}
    for module, file in files.items():
        uses = {path for name, path in file.named.items() if name not in file.handed_on}
        for path in sorted(uses | file.paths):
            try:
                other = definer(files, module, path)
            except LookupError:
                continue
            if other != module:
                found.setdefault((module, other), "::".join(path))
    return found


def circles(source: Path) -> list[str]:
    """A line for each folder with a circle: the files of one, and by what they need each other."""
    levels: dict[Module, dict[Module, dict[Module, str]]] = defaultdict(lambda: defaultdict(dict))
    for (start, end), name in arrows(source).items():
        for depth in range(min(len(start), len(end)) + 1):
            if start[:depth] != end[:depth]:
                break
            here, there = start[: depth + 1], end[: depth + 1]  # of the folder's own file: the folder
            if here != there:
                reason = f"{'/'.join(start) or 'lib'}.rs -> {'/'.join(end) or 'lib'}.rs ({name})"
                levels[start[:depth]][here].setdefault(there, reason)
    found = []
    for folder, graph in sorted(levels.items()):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            ring = error.args[1][:0:-1]
            first = ring.index(min(ring))
            ring = [*ring[first:], *ring[:first], ring[first]]
            reasons = [graph[a][b] for a, b in pairwise(ring)]
            found.append(f"{'/'.join(('src', *folder))}: " + ", ".join(reasons))
    return found


@pytest.mark.parametrize("crate", ["core", "bindings"])
def test_no_circle(crate):
    assert circles(RUST / crate / "src") == []


def planted(folder: Path, files: dict[str, str]) -> list[str]:
    """The circles of a crate of these files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return circles(folder)


TREE = {
    "lib.rs": "mod a;\nmod b;\npub use b::Thing;\n",
    "a.rs": "use crate::Thing; // through lib.rs\nfn f(_: Thing) {}\n",
    "b.rs": "mod c;\nmod d;\npub use c::Thing;\npub fn g() { d::h(); }\n",
    "b/c.rs": "use std::fmt::{self, Write as _};\npub struct Thing;\n",
    "b/d.rs": "use super::Thing; // through b.rs\npub fn h() {}\n",
}


def test_a_tree_has_no_circle(tmp_path):
    assert planted(tmp_path, TREE) == []


@pytest.mark.parametrize(
    ("name", "text", "arrows"),
    [
        ("b/c.rs", "use crate::a::{self, f};", ["a.rs -> b/c.rs (crate::Thing)", "b/c.rs -> a.rs (crate::a)"]),
        ("b/c.rs", "fn k() { crate::a::f(1) }", ["a.rs -> b/c.rs (crate::Thing)", "b/c.rs -> a.rs (crate::a::f)"]),
        ("b/d.rs", "use super::g;", ["b.rs -> b/d.rs (d::h)", "b/d.rs -> b.rs (super::g)"]),
        ("b/c.rs", "use super::{d::{h}};", ["b/c.rs -> b/d.rs (super::d::h)", "b/d.rs -> b/c.rs (super::Thing)"]),
        ("b/c.rs", "#[cfg(test)]\n#[allow(dead_code)]\nmod tests { fn f() { super::super::d::h(); } }", []),
        ("b/c.rs", '/* use super::d; */ const TEXT: &str = "super::d::h";', []),
        (
            "b/c.rs",
            "fn f<'a>(c: &'a char) -> bool { *c == '\"' || super::d::h() }",
            ["b/c.rs -> b/d.rs (super::d::h)", "b/d.rs -> b/c.rs (super::Thing)"],
        ),
    ],
)
def test_a_planted_circle_is_found(tmp_path, name, text, arrows):
    found = planted(tmp_path, {**TREE, name: TREE[name] + text})
    assert [line.split(": ", 1)[1].split(", ") for line in found] == ([arrows] if arrows else [])
