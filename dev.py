#!/usr/bin/env python3
"""LoRA Kiln's development commands: test, fuzz, soak, leaks, repeat, demo, serve, bench, check. Standard library only.

Each sets up first what it needs (tests/environment.py) and then runs a program of tests/ in that environment. Only
`check` sets up nothing: it tries a person's own ComfyUI, in the Python that runs it (unless --host names one of ours).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TESTS = ROOT / "tests"
sys.path.insert(0, str(TESTS))  # of this process alone: Setup.environ says what the programs get
from environment import HOSTS, NEWEST, Problem, atheris, cache_dir, chromium, comfy_cli, say, set_up  # noqa: E402

CI = os.environ.get("CI", "").lower() == "true"
BENCHES = {"quality": "kit.bench", "speed": "bench.speed", "memory": "bench.memory", "recipes": "bench.recipes"}


# ---------------------------------------------------------------- the verbs


def hand_over(command: list[str], environ: dict[str, str]) -> int:
    """Becomes the command where the system can, so that Ctrl-C and a kill of this process reach it."""
    os.chdir(TESTS)
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(command[0], command, environ)
    process = subprocess.Popen(command, env=environ)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


def common_arguments(options: argparse.Namespace) -> list[object]:
    """Arguments of the programs under tests/: ComfyUI's base directory, and the file for the figures."""
    workspace = Path(options.workspace or cache_dir() / "workspaces" / options.verb).expanduser().resolve()
    figures = ["--json", Path(options.json).expanduser().resolve()] if getattr(options, "json", None) else []
    return ["--workspace", workspace, *figures]


def serve(options: argparse.Namespace, rest: list[str]) -> int:
    setup = set_up(options.host)
    address = ["--port", options.port, "--listen", options.listen]
    return hand_over(setup.module("host", *common_arguments(options), *address, "--", *rest), setup.environ())


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    setup = set_up(options.host, need_kit=True)
    port = ["--port", options.port] if options.port else []
    arguments = [*common_arguments(options), "--seed", options.seed, *port, *rest]
    return hand_over(setup.module("kit.demo", *arguments), setup.environ())


def bench(options: argparse.Namespace, rest: list[str]) -> int:
    setup = set_up(options.host, need_kit=True)
    added = ["--add", *(Path(name).expanduser().resolve() for name in options.add)] if options.add else []
    return hand_over(setup.module(BENCHES[options.what], *common_arguments(options), *added, *rest), setup.environ())


def fuzz(options: argparse.Namespace, rest: list[str]) -> int:
    """Strangers' files by the million: libFuzzer looks for one that breaks a reader."""
    setup = set_up(options.host)
    environ = setup.environ()
    environ["PYTHONPATH"] += f"{os.pathsep}{atheris(setup.python)}"
    target = ["--target", options.target] if options.target else []
    arguments = ["--workspace", cache_dir() / "fuzz", "--runs", options.runs, *target, *rest]
    return hand_over([str(setup.python), "-m", "fuzz.run", *map(str, arguments)], environ)


def soak(options: argparse.Namespace, rest: list[str]) -> int:
    """The real server killed at random moments of a run: the LoRA must be that of a run that never stopped."""
    return in_fresh_workspace(options, ["--kills", options.kills, "--seed", options.seed, *rest])


def leaks(options: argparse.Namespace, rest: list[str]) -> int:
    """Many runs one after another in one real server: memory, open files and threads must stay what they are."""
    return in_fresh_workspace(options, ["--runs", options.runs, *rest])


def repeat(options: argparse.Namespace, rest: list[str]) -> int:
    """The same deterministic run again and again, several at a time: all must be equal to the last bit."""
    setup = set_up(options.host)
    command = [setup.python, "-m", "repeat", "--runs", options.runs, "--beside", options.beside, *rest]
    return hand_over([str(part) for part in command], setup.environ())


def in_fresh_workspace(options: argparse.Namespace, arguments: list[object]) -> int:
    """Runs the module of a verb's name in a workspace of its own."""
    setup = set_up(options.host, need_kit=True)
    folder = cache_dir() / "workspaces" / options.verb
    shutil.rmtree(folder, ignore_errors=True)
    return hand_over(setup.module(options.verb, "--workspace", folder, *arguments), setup.environ())


def test(options: argparse.Namespace, rest: list[str]) -> int:
    """All checks, or pytest alone when there are arguments for it. The exit status is 0 when all is well."""
    setup = set_up(options.host)
    environ = setup.environ() | {"HF_HUB_OFFLINE": "1"}
    environ |= {"LORA_KILN_CHROMIUM": browser} if (browser := chromium()) else {}
    environ |= {"LORA_KILN_COMFY_CLI": str(comfy_cli())}
    # Three on the two cores of CI: while one waits for its server or its page another works.
    python = [setup.python, "-m"]
    pytest = [*python, "pytest", *(rest or ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"])]
    steps: dict[str, Callable[[], bool]] = {"pytest": lambda: passes(pytest, environ)}
    if not rest:
        steps = {
            "ruff check": lambda: passes([*python, "ruff", "check", "."], environ),
            "ruff format": lambda: passes([*python, "ruff", "format", "--check", "."], environ),
            "pyright": lambda: passes([*python, "pyright", "--pythonpath", setup.python], environ),
            "comfy node validate": validate_node,
            "web": check_web,
        } | steps

    def result_of(name: str) -> tuple[bool, float]:
        say(name)
        start = time.monotonic()
        return steps[name](), time.monotonic() - start

    with ThreadPoolExecutor() as pool:  # pyright keeps one core busy for a minute: the others have work meanwhile
        beside = {name: pool.submit(result_of, name) for name in steps if name == "pyright"}
        results = {name: result_of(name) for name in steps if name not in beside}
        results |= {name: future.result() for name, future in beside.items()}
    for name in steps:
        good, seconds = results[name]
        say(f"{'passed' if good else 'FAILED'}  {name} ({seconds:.0f} s)")
    return 0 if all(good for good, _ in results.values()) else 1


def check(options: argparse.Namespace, rest: list[str]) -> int:
    """What the pack needs of a person's machine, tried in this process, which must be that of ComfyUI's Python."""
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if options.host:
        setup = set_up(options.host)
        command = [setup.python, ROOT / "dev.py", "check", "--comfyui", setup.host, *rest]
        return hand_over([str(part) for part in command], setup.environ())
    from check.run import main

    return main(options.comfyui, rest, Path(__file__).absolute().parent)


def passes(command: Sequence[object], environ: dict[str, str] | None = None, **options) -> bool:
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=ROOT, env=environ or os.environ, **options).returncode == 0


def validate_node() -> bool:
    """The registry's own checks of pyproject.toml. The output is searched: of some faults it only warns."""
    python = comfy_cli()
    with tempfile.TemporaryDirectory() as home:  # its settings stay out of the person's own
        environ = os.environ | {"DO_NOT_TRACK": "1", "HOME": home, "USERPROFILE": home, "NO_COLOR": "1"}
        command = [python, "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
        result = subprocess.run(command, cwd=ROOT, env=environ, input=b"", capture_output=True)
    text = (result.stdout + result.stderr).decode(errors="replace")
    print(text, end="", flush=True)
    return result.returncode == 0 and "Warning" not in text and "Error" not in text


def check_web() -> bool:
    """Parses every script of the page as a module and runs the tests of the pure ones, where Node is."""
    node = shutil.which("node")
    if not node:
        say("there is no Node here: the page's scripts were not checked. Install Node 20 or later.")
        return not CI
    good = True
    with tempfile.TemporaryDirectory() as copies:
        for script in sorted(path for path in (ROOT / "web").rglob("*") if path.suffix in {".js", ".mjs"}):
            module = Path(copies) / f"{script.stem}.mjs"  # Node takes .js for CommonJS, the browser does not
            shutil.copyfile(script, module)
            good &= passes([node, "--check", module])
    if tests := sorted((TESTS / "web").glob("*.test.mjs")):
        good &= passes([node, "--test", *tests])
    return good


# ---------------------------------------------------------------- the door


def parser() -> argparse.ArgumentParser:
    common, measured, placed = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    common.add_argument("--host", default=NEWEST, metavar="VERSION", help=f"ComfyUI: {', '.join(HOSTS)}")
    measured.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    placed.add_argument("--workspace", metavar="DIR", help="ComfyUI's base directory (default: in the cache)")

    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(run: Callable[..., int], text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parents = parents if run is check else (common, *parents)
        made = verbs.add_parser(run.__name__, help=text, description=text, parents=parents, allow_abbrev=False)
        made.set_defaults(run=run)
        return made

    made = verb(test, "run all checks and tests; with further arguments, run pytest alone with them")
    made.epilog = "example: python3 dev.py test tests/test_dev.py -k layout -x"

    made = verb(fuzz, "fuzz every reader of a stranger's file (Linux): only its documented errors may come out")
    made.add_argument("--runs", type=int, default=20_000, metavar="N", help="inputs for each reader (default: 20000)")
    made.add_argument("--target", metavar="NAME", help="one reader alone: see tests/fuzz/targets.py")

    made = verb(soak, "kill the server at random moments of a run: what it learns must be the same to the last byte")
    made.add_argument("--kills", type=int, default=50, metavar="N", help="how many (default: 50)")
    made.add_argument("--seed", type=int, default=0, help="of the moments")

    made = verb(leaks, "many runs one after another in one server: memory, files and threads must stay as they are")
    made.add_argument("--runs", type=int, default=50, metavar="N", help="how many (default: 50)")

    made = verb(repeat, "the same deterministic run, several at a time: all must be equal to the last bit")
    made.add_argument("--runs", type=int, default=200, metavar="N", help="how many (default: 200)")
    made.add_argument("--beside", type=int, default=10, metavar="N", help="processes at a time (default: 10)")
    made.epilog = "further arguments choose the model and the recipe: see tests/repeat.py"

    made = verb(demo, "train a LoRA on the demo kit in a real ComfyUI: what it learned", measured, placed)
    made.add_argument("--seed", type=int, default=1, help="which concept is learned (default: 1)")
    made.add_argument("--port", type=int, help="the server's port (default: a free one)")

    made = verb(serve, "start ComfyUI with this pack; further arguments go to ComfyUI's main.py", placed)
    made.add_argument("--port", type=int, default=8188)
    made.add_argument("--listen", default="127.0.0.1", metavar="ADDR", help="default: 127.0.0.1")

    made = verb(bench, "measure what the trainer promises", measured, placed)
    what = "what a LoRA learns, how fast a step is, alone or with each recipe, or how small a card may be"
    made.add_argument("what", choices=BENCHES, help=what)
    made.add_argument("--add", nargs="+", default=[], metavar="FILE", help="figures of earlier runs to join")
    made.epilog = "further arguments go to the bench: see tests/kit/bench.py and tests/bench"

    made = verb(check, "try your own ComfyUI and print a report to post; run it with the Python that runs ComfyUI")
    made.add_argument("--comfyui", metavar="DIR", help="its folder (default: the one in whose custom_nodes this lies)")
    made.add_argument("--host", metavar="VERSION", help=f"not your own but that of the tests: {', '.join(HOSTS)}")
    made.epilog = "further arguments are those that you start ComfyUI's main.py with"
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036
        raise Problem(f"Python 3.10 or later is needed; this is {platform.python_version()}.")
    options, rest = parser().parse_known_args(arguments)
    return options.run(options, rest)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Problem as problem:
        raise SystemExit(f"[kiln] {problem}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
