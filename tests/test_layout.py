"""The house's rules (imports go one way), read from the source by `ast`.

nodes -> training -> training/host -> ComfyUI
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from host import PACK

HOST_MODULES = {
    *("app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    "comfyui_version",
    *(
        "cuda_malloc",
        "execution",
        "folder_paths",
        "latent_preview",
        "main",
        "node_helpers",
        "nodes",
        "protocol",
    ),
    *("server", "utils"),
}
NODES_MAY = {"comfy_api"}  # what of the host the doors need: schemas


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """The full names of all that a module's source imports; the pack's own start with "lora_kiln".

    Args:
        source: the text of the module.
        module: its full name, such as "lora_kiln.training.loop".
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


def broken_rules(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports against the house's rules, a line each."""
    names = imports(source, module, is_package)
    host = within(names, *HOST_MODULES)
    in_training = bool(within({module}, "lora_kiln.training"))
    is_host_room = bool(within({module}, "lora_kiln.training.host"))
    broken: dict[str, set[str]] = {"star imports": {name for name in names if name.endswith(".*")}}
    broken["tests"] = within(names, "lora_kiln.tests", "tests", "kit", "conftest")
    if in_training:
        broken["training/ imports nodes/"] = within(names, "lora_kiln.nodes")
        if not is_host_room:
            broken["only training/host imports the host"] = host
    else:
        broken["nodes/ may import comfy_api alone"] = host - within(host, *NODES_MAY)
    if module == "lora_kiln.training.loop":
        broken["the loop gets the model as a function"] = within(names, "lora_kiln.training.host")
    return [f"{rule}: {name}" for rule, found in broken.items() for name in sorted(found)]


def product_files() -> list[Path]:
    rooms = [path for room in ("nodes", "training") for path in sorted((PACK / room).rglob("*.py"))]
    return [PACK / "__init__.py", *rooms]


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(PACK).as_posix())
def test_imports_go_one_way(path: Path):
    parts = path.relative_to(PACK).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(["lora_kiln", *(parts[:-1] if is_package else parts)])
    assert broken_rules(path.read_text("utf-8"), module, is_package) == []


@pytest.mark.parametrize(
    ("module", "source", "named"),
    [
        ("lora_kiln.training.engine", "import comfy.utils", "comfy.utils"),
        ("lora_kiln.training.engine", "def f():\n    from nodes import LoraLoader", "nodes.LoraLoader"),
        ("lora_kiln.training.engine", "from ..nodes import types", "lora_kiln.nodes.types"),
        ("lora_kiln.training.loop", "from .host import view", "lora_kiln.training.host.view"),
        ("lora_kiln.training.loop", "from . import host", "lora_kiln.training.host"),
        ("lora_kiln.nodes.train", "import comfy.model_management", "comfy.model_management"),
        ("lora_kiln.nodes.train", "import folder_paths", "folder_paths"),
        ("lora_kiln.nodes.train", "from ..training.config import *", "lora_kiln.training.config.*"),
        ("lora_kiln.training.host.view", "from ...nodes import types", "lora_kiln.nodes.types"),
    ],
)
def test_a_broken_rule_is_seen(module: str, source: str, named: str):
    assert any(line.endswith(named) for line in broken_rules(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lora_kiln.training.host.view", "import comfy.utils, folder_paths"),
        ("lora_kiln.training.engine", "from .host import view"),
        ("lora_kiln.training.loop", "from . import objective\nimport utilities"),
        ("lora_kiln.nodes.train", "from comfy_api.latest import io\nfrom ..training import loop"),
    ],
)
def test_what_is_allowed(module: str, source: str):
    assert broken_rules(source, module) == []


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
