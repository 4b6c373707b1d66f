"""The layers hold: imports point inwards only, without cycles; the core is pure; the model knows no product."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "mlbalance_client"
ROOT = Path(__file__).parents[1] / PACKAGE

FLOORS = {
    "word": ("backoff", "errors", "events", "calls", "config"),
    "core": ("core",),
    "rim": ("discovery", "health", "load_reports", "wire", "dialects"),
    "conduct": ("conduct",),
    "door": (
        "client",
        "httpx2",
        "face",
        "face_errors",
        "options",
        "loop_thread",
        "balancer",
        "cli",
        "",
        "simulator",
        "testing",
        "reporter",
    ),
}
ORDER = list(FLOORS)
# A room of the core knows those before it; the modules beside them are above or below them all.
CORE_ROOMS = ("members", "load", "health", "placement")
IMPURE = {
    "anyio", "asyncio", "datetime", "httpcore", "httpx", "httpx2", "io", "logging", "os", "pathlib", "random", "select",
    "secrets", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "trio", "urllib", "uuid",
}  # fmt: skip


def modules(root: Path) -> dict[str, ast.Module]:
    found = {}
    for path in root.rglob("*.py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text())
    return found


def imports(name: str, tree: ast.Module, is_package: bool) -> Iterator[tuple[str, str]]:
    """(module, imported name) of all imports, absolute, those inside functions and TYPE_CHECKING included."""
    here = [PACKAGE, *filter(None, name.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = len(here) - node.level + is_package
            base = ".".join([*here[:up], node.module or ""]).rstrip(".") if node.level else node.module or ""
            yield from ((base, alias.name) for alias in node.names)


def edges(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports."""
    trees = modules(root)
    packages = {".".join(p.parent.relative_to(root).parts) for p in root.rglob("__init__.py")}
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        graph[name] = set()
        for module, member in imports(name, tree, name in packages):
            if module == PACKAGE or module.startswith(PACKAGE + "."):
                inner = module.removeprefix(PACKAGE).lstrip(".")
                deeper = f"{inner}.{member}".lstrip(".")
                graph[name].add(deeper if deeper in trees else inner)
        graph[name].discard(name)
    return graph


def floor(module: str) -> int:
    room = module.partition(".")[0]
    return next(ORDER.index(name) for name, rooms in FLOORS.items() if room in rooms)


def _core_room(module: str) -> int | None:
    room, _, rest = module.removeprefix("core.").partition(".")
    return CORE_ROOMS.index(room) if rest and module.startswith("core.") else None


def violations(root: Path) -> list[str]:
    graph = edges(root)
    wrong = []
    for module, targets in graph.items():
        for target in targets:
            if module.startswith("simulator.model"):
                if not target.startswith("simulator.model") and target != "simulator":
                    wrong.append(f"the model imports the product: {module} -> {target}")
            elif floor(target) > floor(module):
                wrong.append(f"outwards: {module} -> {target}")
            inner, needed = _core_room(module), _core_room(target)
            if inner is not None and needed is not None and needed > inner:
                wrong.append(f"the core's rooms in the wrong order: {module} -> {target}")
            room, other = module.partition(".")[0], target.partition(".")[0]
            if room != other and {room, other} <= set(FLOORS["rim"]):
                wrong.append(f"rims import one another: {module} -> {target}")
    wrong += [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]
    for name, tree in modules(root).items():
        if name.startswith("core"):
            for module, member in imports(name, tree, name == "core"):
                top = module.partition(".")[0]
                if top in IMPURE and (module, member) != ("random", "Random"):
                    wrong.append(f"the core is not pure: {name} imports {module} {member}")
    return wrong


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One cycle for each way back that a depth-first walk finds."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def test_the_layers_hold() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("core/a.py", "import time", "not pure"),
        ("core/a.py", "from random import random", "not pure"),
        ("core/a.py", "from mlbalance_client.wire import b", "outwards"),
        ("wire/a.py", "from mlbalance_client.conduct import engine", "outwards"),
        ("wire/a.py", "from mlbalance_client.dialects import b", "rims"),
        ("core/a.py", "def f():\n    from . import b", "cycle"),
        ("core/load/a.py", "from ..health import b", "wrong order"),
        ("simulator/model/a.py", "from mlbalance_client import errors", "the model"),
    ],
)
def test_the_checker_sees_violations(tmp_path: Path, file: str, text: str, said: str) -> None:
    for name in (
        "core/b.py",
        "core/load/b.py",
        "core/health/b.py",
        "wire/b.py",
        "dialects/b.py",
        "conduct/engine.py",
        "errors.py",
        "simulator/model/b.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).parent.joinpath("__init__.py").touch()
    (tmp_path / "core/b.py").write_text("from . import a")
    (tmp_path / "core/a.py").touch()
    assert violations(tmp_path) == []

    (tmp_path / file).write_text(text)

    assert any(said in line for line in violations(tmp_path))
