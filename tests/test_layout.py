"""The house's rules, read from the source by `ast`: imports go down only, and only training/host knows ComfyUI.

nodes -> run, recipes -> model, lora -> data -> host -> learning -> config -> adapters -> basics; host -> kernels
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

from host import PACK

COMFYUI = {
    *("app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("comfyui_version", "cuda_malloc", "execution", "folder_paths", "latent_preview", "main", "node_helpers"),
    *("nodes", "protocol", "server", "utils"),
}
NODES_MAY = {"comfy_api"}
"""What of ComfyUI the nodes need: schemas."""
FLOORS = (
    ("nodes",),
    ("run", "recipes"),
    ("model", "lora"),
    ("data",),
    ("host",),
    ("learning",),
    ("config",),
    ("adapters",),
    ("basics",),
)
"""Rooms from the top; a room imports from lower floors only."""
HEIGHTS = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
CORE = ("learning", "config", "adapters", "basics", "kernels")
"""Rooms that reach ComfyUI on no way."""


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """The full names of all that a module's source imports, in functions too; the pack's own start with "lora_kiln".

    Args:
        source: the text of the module.
        module: its full name, such as "lora_kiln.training.learning.loop".
        is_package: whether it is an `__init__.py`.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def within(names: set[str], *packages: str) -> set[str]:
    """Those of the names that are one of the packages or lie in it."""
    return {name for name in names if any(f"{name}.".startswith(f"{package}.") for package in packages)}


def room_of(name: str) -> str:
    """The room that a full name of the pack's own lies in, such as "learning"; empty where it lies in none."""
    parts = name.split(".")
    if parts[0] != "lora_kiln" or len(parts) < 2:
        return ""
    return parts[1] if parts[1] != "training" else "".join(parts[2:3])


def broken_rules(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports against the house's rules, a line each."""
    names = imports(source, module, is_package)
    room = room_of(module)
    comfyui = within(names, *COMFYUI)
    allowed = comfyui if room == "host" else within(comfyui, *NODES_MAY) if room == "nodes" else set()
    broken: dict[str, set[str]] = {
        "star imports": {name for name in names if name.endswith(".*")},
        "tests": within(names, "lora_kiln.tests", "tests", "kit", "conftest"),
        "only training/host imports ComfyUI; nodes/ may import comfy_api": comfyui - allowed,
    }
    others = {name for name in within(names, "lora_kiln") if room_of(name) not in ("", room)}
    kernels = within(others, "lora_kiln.training.kernels")
    if room == "kernels":
        broken["kernels/ imports no other room"] = others
    elif room != "host":
        broken["only training/host imports kernels/"] = kernels
    if room in HEIGHTS:
        height = HEIGHTS[room]
        broken["imports go down"] = {name for name in others - kernels if HEIGHTS.get(room_of(name), height) >= height}
    return [f"{rule}: {name}" for rule, found in broken.items() for name in sorted(found)]


def reached(sources: Mapping[str, tuple[str, bool]], start: str) -> dict[str, str]:
    """The modules that a module imports, directly or through others, each with the module that imports it.

    The pack's root is left out: it imports nothing before the host asks for its nodes.

    Args:
        sources: of all modules: full name -> (text, whether it is an `__init__.py`).
    """
    found: dict[str, str] = {}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for name in imports(*_named(sources, module)):
            parts = name.split(".")
            modules = {".".join(parts[:end]) for end in range(2, len(parts) + 1)} & sources.keys()
            for each in modules - found.keys() - {start}:
                found[each] = module
                waiting.append(each)
    return found


def _named(sources: Mapping[str, tuple[str, bool]], module: str) -> tuple[str, str, bool]:
    source, is_package = sources[module]
    return source, module, is_package


def on_the_way_to_the_host(sources: Mapping[str, tuple[str, bool]], start: str) -> list[str]:
    """Modules of the host's room that a module reaches, a line each, with the module that imports it."""
    return [f"{by} imports {name}" for name, by in sorted(reached(sources, start).items()) if room_of(name) == "host"]


def product_files() -> list[Path]:
    rooms = [path for room in ("nodes", "training") for path in sorted((PACK / room).rglob("*.py"))]
    return [PACK / "__init__.py", *rooms]


def module_of(path: Path) -> tuple[str, bool]:
    """A file's full name, and whether it is an `__init__.py`."""
    parts = path.relative_to(PACK).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return ".".join(["lora_kiln", *(parts[:-1] if is_package else parts)]), is_package


def product_sources() -> dict[str, tuple[str, bool]]:
    return {
        module: (path.read_text("utf-8"), is_package)
        for path in product_files()
        for module, is_package in [module_of(path)]
    }


CORE_MODULES = [module for module, _ in map(module_of, product_files()) if room_of(module) in CORE]


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(PACK).as_posix())
def test_imports_go_one_way(path: Path):
    module, is_package = module_of(path)
    assert broken_rules(path.read_text("utf-8"), module, is_package) == []


def test_every_room_has_its_floor():
    rooms = {room_of(module) for module in product_sources()} - {""}
    assert rooms == {*HEIGHTS, "kernels"}


@pytest.mark.parametrize("module", CORE_MODULES)
def test_the_core_does_not_reach_comfyui_through_others(module: str):
    assert on_the_way_to_the_host(product_sources(), module) == []


@pytest.mark.parametrize(
    ("module", "source", "named"),
    [
        ("lora_kiln.training.learning.engine", "import comfy.utils", "comfy.utils"),
        ("lora_kiln.training.learning.engine", "def f():\n    from nodes import LoraLoader", "nodes.LoraLoader"),
        ("lora_kiln.training.learning.engine", "from ...nodes import types", "lora_kiln.nodes.types"),
        ("lora_kiln.training.learning.loop", "from ..host import twin", "lora_kiln.training.host.twin"),
        ("lora_kiln.training.learning.loop", "from .. import host", "lora_kiln.training.host"),
        ("lora_kiln.training.learning.loop", "def f():\n    from .. import host", "lora_kiln.training.host"),
        ("lora_kiln.training.adapters.lora", "from ..config import LoRAConfig", "lora_kiln.training.config.LoRAConfig"),
        ("lora_kiln.training.data.plan", "from ..lora import keys", "lora_kiln.training.lora.keys"),
        ("lora_kiln.training.model.builder", "from ..lora import keys", "lora_kiln.training.lora.keys"),
        ("lora_kiln.training.run.report", "from ..recipes import recipe", "lora_kiln.training.recipes.recipe"),
        ("lora_kiln.training.learning.loop", "from ..kernels import gelu", "lora_kiln.training.kernels.gelu"),
        ("lora_kiln.training.kernels.gelu", "from ..basics import errors", "lora_kiln.training.basics.errors"),
        ("lora_kiln.nodes.train", "import comfy.model_management", "comfy.model_management"),
        ("lora_kiln.nodes.train", "import folder_paths", "folder_paths"),
        ("lora_kiln.nodes.train", "from ..training.config import *", "lora_kiln.training.config.*"),
        ("lora_kiln.training.host.twin", "from ...nodes import types", "lora_kiln.nodes.types"),
        ("lora_kiln.training.host.twin", "from ..data import plan", "lora_kiln.training.data.plan"),
    ],
)
def test_a_broken_rule_is_seen(module: str, source: str, named: str):
    assert any(line.endswith(named) for line in broken_rules(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lora_kiln.training.host.twin", "import comfy.utils, folder_paths"),
        ("lora_kiln.training.host.fusion", "def f():\n    from ..kernels import gelu"),
        ("lora_kiln.training.run.trainer", "from .. import host\nfrom ..learning.loop import train"),
        ("lora_kiln.training.learning.loop", "from . import objective\nimport utilities"),
        ("lora_kiln.training.learning.loop", "from ..adapters import KINDS\nfrom ..config import LoRAConfig"),
        ("lora_kiln.nodes.train", "from comfy_api.latest import io\nfrom ..training.learning import loop"),
    ],
)
def test_what_is_allowed(module: str, source: str):
    assert broken_rules(source, module) == []


def test_a_way_to_the_host_through_others_is_seen():
    sources = {
        "lora_kiln.training.learning.loop": ("from .step import Step", False),
        "lora_kiln.training.learning.step": ("def f():\n    from ..adapters import LoRA", False),
        "lora_kiln.training.adapters": ("from .. import host", True),
        "lora_kiln.training.host": ("import comfy", True),
    }
    seen = ["lora_kiln.training.adapters imports lora_kiln.training.host"]
    assert on_the_way_to_the_host(sources, "lora_kiln.training.learning.loop") == seen


def test_a_package_resolves_its_own_siblings():
    assert imports("from .train import Train", "lora_kiln.nodes", is_package=True) == {"lora_kiln.nodes.train.Train"}


def test_the_root_imports_nothing_when_it_is_loaded():
    """A missing requirement must show as an error of one node pack, not stop the host's start."""
    tree = ast.parse((PACK / "__init__.py").read_text("utf-8"))
    assert [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))] == []


def test_page_modules_do_not_import_the_app():
    """The .mjs files run under Node alone; the .js file is the wiring."""
    modules = sorted((PACK / "web").rglob("*.mjs"))
    assert [path.name for path in modules if "/scripts/" in path.read_text("utf-8")] == []
