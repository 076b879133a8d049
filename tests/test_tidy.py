"""The rules of CONTRIBUTING.md that a machine can check. A ratchet only ever goes down.

Looks at the files of the working tree, so it needs a checkout or an unpacked source archive. One test per rule; a
failure lists every place that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
C_TESTS = ("tests/c/", "tests/conformance/")
C_DIRECTORIES = ("csrc", "transports", *C_TESTS)
PYTHON_DIRECTORIES = ("pccl", "bindings", "tests", "examples", "stress")

FILE_LINES_MAX = 700
COLUMNS_MAX = 160

# Ratchets: the longest function today. Lower them when you can, never raise them.
C_FUNCTION_LINES_MAX = 50
PYTHON_FUNCTION_LINES_MAX = 45

# Call -> where it may still stand.
BANNED_C_CALLS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("strcpy", "strcat", "sprintf", "vsprintf", "strncpy", "gets", "strtok", "rand", "alloca"), ()),
    **dict.fromkeys(
        ("malloc", "calloc", "realloc", "free", "aligned_alloc", "posix_memalign"),
        ("csrc/mem.c", "transports/", *C_TESTS),
    ),
    **dict.fromkeys(("sleep", "usleep", "nanosleep"), ()),
    **dict.fromkeys(("printf", "puts"), C_TESTS),
    "pthread_create": ("csrc/engine_thread.c", *C_TESTS),
    "atoi": ("transports/tcp.c", "tests/conformance/"),  # of at most five digits that were checked
    "getenv": (),
}


def files(*suffixes: str, under: tuple[str, ...]) -> list[Path]:
    """Ours only: nothing built, nothing hidden."""
    found = [path for top in under for suffix in suffixes for path in sorted((ROOT / top).rglob(f"*{suffix}"))]
    return [path for path in found if "build" not in path.relative_to(ROOT).parts[:-1]]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


C_FILES = files(".c", ".h", under=C_DIRECTORIES)
PYTHON_FILES = files(".py", under=PYTHON_DIRECTORIES)
ALL_FILES = C_FILES + PYTHON_FILES


def without_comments(text: str) -> str:
    """C without comments and literals, line numbers kept."""
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n") or ("" if match[0].startswith("/") else "0")

    return pattern.sub(blank, text)


def c_functions(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function: a definition begins in column 0 and ends with the first "}" in column 0."""
    lines = without_comments(text).split("\n")
    start, label = 0, ""
    for number, line in enumerate(lines):
        heading = re.match(r"[A-Za-z_][\w\s\*]*?\b(\w+)\s*\(", line)
        if heading and not line.rstrip().endswith(";"):
            start, label = number, heading[1]
        elif line.startswith("}") and label:
            yield label, number - start + 1
            label = ""


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines without the docstring and the decorators) of every function."""
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = body[0].lineno if body else node.lineno
            assert node.end_lineno is not None
            yield node.name, max(0, node.end_lineno - first + 1)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parse(path)))


def dotted(node: ast.AST) -> str:
    """A name with its dots; what is no name, such as a call, is empty."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def every_line(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """("file:number", line) of all of them."""
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            yield f"{name(path)}:{number}", line


def test_the_rules_have_something_to_look_at() -> None:
    assert len(C_FILES) > 10
    assert len(PYTHON_FILES) > 10


def test_every_file_begins_by_saying_what_it_is_for() -> None:
    def silent(path: Path) -> bool:
        if path.suffix == ".py":
            return not ast.get_docstring(parse(path))
        return not path.read_text(encoding="utf-8").lstrip().startswith("/* " + path.name)

    assert not [name(path) for path in ALL_FILES if silent(path)], "a docstring, or '/* name.c - what it is for'"


def test_files_are_short_enough_to_be_read() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_FILES}
    assert not {file: n for file, n in lengths.items() if n > FILE_LINES_MAX}


def test_lines_are_not_too_wide() -> None:
    assert not [place for place, line in every_line(ALL_FILES) if len(line) > COLUMNS_MAX]


def test_no_notes_to_self() -> None:
    """Do it, or open an issue."""
    notes = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
    assert not [place for place, line in every_line(ALL_FILES) if notes.search(line)]


def test_c_makes_no_banned_calls() -> None:
    found = []
    for path in C_FILES:
        for number, line in enumerate(without_comments(path.read_text("utf-8")).split("\n"), 1):
            for call in re.findall(r"(?<![\w.>])(\w+)\s*\(", line):
                allowed = BANNED_C_CALLS.get(call)
                if allowed is not None and not name(path).startswith(allowed or ("-",)):
                    found.append(f"{name(path)}:{number} {call}")
    assert not found


def test_c_functions_fit_a_screen() -> None:
    sources = [path for path in C_FILES if path.suffix == ".c"]
    found = [(lines, f"{name(path)} {f}") for path in sources for f, lines in c_functions(path.read_text("utf-8"))]
    assert found, "the pattern of a C function matches nothing any more"
    assert not sorted(entry for entry in found if entry[0] > C_FUNCTION_LINES_MAX)


def test_python_functions_fit_a_screen() -> None:
    found = [(lines, f"{name(path)} {f}") for path in PYTHON_FILES for f, lines in python_functions(path)]
    assert not sorted(entry for entry in found if entry[0] > PYTHON_FUNCTION_LINES_MAX)


def test_the_engine_names_no_transport() -> None:
    """Sockets belong to transports/; only the simulated network is part of the API."""
    system = re.compile(r"#include\s+<(?:sys/socket|netinet|arpa|netdb|sys/epoll)")
    named = re.compile(r"\b(?:tcp|sim|faulty|tls|shm)_[a-z_]+\s*\(")
    found = []
    for path in files(".c", ".h", under=("csrc",)):
        for number, line in enumerate(without_comments(path.read_text("utf-8")).split("\n"), 1):
            if system.search(line) or named.search(line):
                found.append(f"{name(path)}:{number} {line.strip()}")
    assert not found


NATIVE = ("pccl/_native.py", "pccl/_codecs.py")


def test_only_native_knows_the_extension() -> None:
    found = []
    for path in PYTHON_FILES:
        for node in nodes(path):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            if any(module.split(".")[-1] == "_core" for module in modules) and name(path) not in NATIVE:
                found.append(f"{name(path)}:{node.lineno}")
    assert not found


def test_only_config_and_the_command_line_read_the_environment() -> None:
    found = []
    for path in files(".py", under=("pccl",)):
        if name(path) != "pccl/config.py" and not name(path).startswith("pccl/cli/"):
            attributes = [node for node in nodes(path) if isinstance(node, ast.Attribute)]
            found += [f"{name(path)}:{n.lineno}" for n in attributes if dotted(n) in ("os.environ", "os.getenv")]
    assert not found


def test_only_the_command_line_prints() -> None:
    quiet = [path for path in files(".py", under=("pccl",)) if not name(path).startswith("pccl/cli/")]
    assert not [f"{name(path)}:{node.lineno}" for path in quiet for call, node in calls(path) if call == "print"]


def test_tests_do_not_sleep() -> None:
    """They wait for what they wait for. asyncio.sleep(0) lets others run and is fine."""
    found = []
    for path in files(".py", under=("tests",)):
        for call, node in calls(path):
            if call.split(".")[-1] == "sleep" and [ast.unparse(argument) for argument in node.args] != ["0"]:
                found.append(f"{name(path)}:{node.lineno}")
    assert not found


def test_no_exception_is_swallowed_unseen() -> None:
    handlers = [(p, n) for p in PYTHON_FILES for n in nodes(p) if isinstance(n, ast.ExceptHandler)]
    assert not [f"{name(path)}:{node.lineno}" for path, node in handlers if node.type is None]


def test_no_test_is_excused() -> None:
    marks = ("pytest.mark.xfail", "pytest.mark.flaky", "pytest.xfail")
    attributes = [(p, n) for p in files(".py", under=("tests",)) for n in nodes(p) if isinstance(n, ast.Attribute)]
    assert not [f"{name(path)}:{node.lineno}" for path, node in attributes if dotted(node) in marks]
