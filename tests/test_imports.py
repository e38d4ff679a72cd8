"""The rooms of the code: no module imports upwards, in a circle, or from one stage to another."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("internal_rl", "envs", "scripts")
# From bottom to top: what stands together is one room, and imports its own modules and lower rooms.
ROOMS = (
    ("envs",),
    ("config", "runtime", "streams"),
    ("validation",),
    ("models",),
    ("objectives",),
    ("driver", "internal_env", "rollout"),
    ("training",),
    ("data",),
    ("measures",),
    ("trained",),
    ("run",),
    ("stages",),
    ("report",),
    ("running",),
    ("gymnasium_env", "ant_expert"),
    ("scripts",),
)
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
MOST_AT_THE_TOP = 12  # modules beside the packages of internal_rl
Graph = dict[str, set[str]]


@cache
def imported(module: str, is_package: bool, text: str) -> frozenset[str]:
    """Every name that a module imports: at its top, within functions, and for type checkers."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names.update(f"{source}.{alias.name}" for alias in node.names)
    return frozenset(names)


def sources() -> dict[str, str]:
    """The text of every module by its path."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def graph_of(sources: dict[str, str]) -> Graph:
    """The modules that each module imports; a package is its __init__.py."""
    names = {path: path.removesuffix(".py").replace("/", ".") for path in sources}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    modules = set(names.values())
    graph: Graph = {}
    for path, text in sources.items():
        found = imported(names[path], path.endswith("__init__.py"), text)
        # A name within a module is that module.
        targets = {name if name in modules else name.rpartition(".")[0] for name in found}
        graph[names[path]] = (targets & modules) - {names[path]}
    return graph


def floor_of(module: str) -> int:
    """The floor of a module's room; KeyError for a module in no room."""
    first, *rest = module.split(".")
    return FLOOR[rest[0] if first == "internal_rl" else first]


def arrows(graph: Graph) -> Iterator[tuple[str, str]]:
    """(module, what it imports), but for the package internal_rl itself, which is empty."""
    for module, targets in graph.items():
        if module != "internal_rl":
            yield from ((module, target) for target in targets if target != "internal_rl")


def upward(graph: Graph) -> list[str]:
    """Imports of a higher room."""
    return [f"{a} -> {b}" for a, b in arrows(graph) if floor_of(a) < floor_of(b)]


def between_stages(graph: Graph) -> list[str]:
    """Imports of a stage, or of the package that collects them, by a stage."""
    package = "internal_rl.stages"
    return [
        f"{a} -> {b}"
        for a, b in arrows(graph)
        if a.startswith(f"{package}.") and (b == package or b.startswith(f"{package}."))
    ]


def circle(graph: Graph) -> list[str]:
    """The modules of one circle, [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(sources())


def test_all_modules_are_read(graph: Graph) -> None:
    assert len(graph) > 70
    assert "envs.tasks" in graph["envs.api"]
    assert "envs.ant.mjx" in graph["envs.ant.world"]  # within a function
    assert graph["internal_rl"] == set()


def test_no_modules_import_each_other_in_a_circle(graph: Graph) -> None:
    assert circle(graph) == []


def test_no_room_imports_a_higher_one(graph: Graph) -> None:
    assert upward(graph) == []


def test_no_stage_imports_another(graph: Graph) -> None:
    assert between_stages(graph) == []


def test_the_method_is_not_hidden_among_other_modules() -> None:
    top = {path.stem for path in (ROOT / "internal_rl").glob("*.py")} - {"__init__"}
    assert len(top) <= MOST_AT_THE_TOP, sorted(top)


def test_every_room_exists() -> None:
    for name in FLOOR:
        places = [ROOT / name, ROOT / "internal_rl" / name, ROOT / "internal_rl" / f"{name}.py"]
        assert any(place.exists() for place in places), name


LAZY = "\n\ndef late():\n    {}\n"
TYPES = "\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    {}\n"


@pytest.mark.parametrize("frame", ["\n\n{}\n", LAZY, TYPES])
@pytest.mark.parametrize(
    ("file", "line", "check"),
    [
        ("envs/tasks.py", "from envs.api import TimeStep", circle),
        ("envs/tasks.py", "from . import api", circle),
        ("envs/tasks.py", "import internal_rl.config", upward),
        ("internal_rl/models/hawk.py", "from internal_rl import rollout", upward),
        ("internal_rl/measures/nll.py", "from internal_rl.trained import ALGORITHMS", upward),
        (
            "internal_rl/stages/pretrain.py",
            "from internal_rl.stages import propose",
            between_stages,
        ),
        ("internal_rl/stages/pretrain.py", "from internal_rl import stages", between_stages),
    ],
)
def test_an_import_that_breaks_a_rule_is_found(
    file: str, line: str, frame: str, check: Callable[[Graph], list[str]]
) -> None:
    broken = sources()
    broken[file] += frame.format(line)
    assert check(graph_of(broken)) != []
