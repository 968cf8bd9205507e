"""The plan of docs/architecture.md: imports point downwards, every folder says what it holds."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import networkx as nx
import pytest

from openmm_sd.moved import MOVED

PACKAGE = Path(__file__).resolve().parents[1] / "openmm_sd"

#: From the ground up; what stands in one line may not import its neighbours.
LAYERS = (
    ("version",),
    ("settings", "progress", "lazy", "moved"),
    ("files",),
    ("workers",),
    ("molecule",),
    ("analysis", "report"),
    ("propagator",),
    ("model",),
    ("jump",),
    ("bridges",),
    ("system",),
    ("integrator", "rollout", "prepare", "data"),
    ("generate", "train", "run", "validate"),
    ("adapt", "doctor", "demo"),
    ("benchmark",),
    ("verbs",),
    ("cli",),
    ("",),  # openmm_sd/__init__.py loads the public names at their first use
    ("__main__",),
)
LONGEST_FILE = 700
LONGEST_FUNCTION = 80


def modules() -> dict[str, Path]:
    """Return every module of the package by its full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["openmm_sd", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[tuple[str, bool]]:
    """Yield what a module imports from this package, and whether at load; not for type checks."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, at_load: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_load) for alias in node.names if alias.name in MODULES)
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*base, node.module or ""]).rstrip(".") if node.level else node.module
            for alias in node.names if source in MODULES else ():
                inner = f"{source}.{alias.name}"
                yield (inner if inner in MODULES else source), at_load
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load and not inside)

    yield from visit(ast.parse(path.read_text()), True)


IMPORTS = {name: set(imported(name)) for name in MODULES}


def room(module: str) -> str:
    """Return the folder or top-level module that a module belongs to."""
    return [*module.split("."), ""][1]


def test_every_room_has_a_place() -> None:
    known = {name for layer in LAYERS for name in layer}
    rooms = {room(module) for module in MODULES}
    assert rooms - {"models"} == known, "openmm_sd and the table of layers differ"


def test_imports_point_downwards() -> None:
    height = {name: k for k, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target, _ in sorted(targets)
        if room(module) != room(target)
        and height[room(module)] <= height[room(target)]
        # The version is all that a part may ask of the package itself.
        and target != "openmm_sd"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("at_load_only", [True, False], ids=["load", "any time"])
def test_no_circle(at_load_only: bool) -> None:
    graph = nx.DiGraph(
        (module, target)
        for module, targets in IMPORTS.items()
        for target, at_load in targets
        if at_load or not at_load_only
    )
    # A package and the modules that it hands out are one piece.
    circles = [
        sorted(circle)
        for circle in nx.strongly_connected_components(graph)
        if len(circle) > 1 and not any(MODULES[m].name == "__init__.py" for m in circle)
    ]
    assert not circles


def test_molecule_and_analysis_know_no_torch() -> None:
    for module, path in MODULES.items():
        if room(module) in {"files", "workers", "molecule", "analysis", "report", "checks"}:
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                heavy = {n.split(".")[0] for n in names} & {"torch"}
                # Shares of a machine are by its GPUs, which torch knows.
                assert not heavy or module == "openmm_sd.workers.shares", module


def test_every_folder_says_what_it_holds() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold more than comments and blanks."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    return {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in quiet
        for line in range(token.start[0], token.end[0] + 1)
    }


def test_files_and_functions_are_short() -> None:
    wrong = []
    for module, path in MODULES.items():
        text = path.read_text()
        if text.count("\n") > LONGEST_FILE:
            wrong.append(f"{module}: {text.count(chr(10))} lines")
        lines = code_lines(text)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            body = {k for k in lines if node.lineno <= k <= (node.end_lineno or 0)}
            if ast.get_docstring(node):
                first = node.body[0]
                body -= set(range(first.lineno, (first.end_lineno or 0) + 1))
            # The constructor of a network is its table of contents.
            network = room(module) == "propagator" and node.name == "__init__"
            if len(body) > LONGEST_FUNCTION and not network:
                wrong.append(f"{module}.{node.name}: {len(body)} lines of code")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("old", MOVED)
def test_modules_answer_to_their_old_names(old):
    with pytest.warns(FutureWarning, match=f"{old} is {MOVED[old]} now"):
        found = import_module(old)
    assert found is import_module(MOVED[old])
    del sys.modules[old]
