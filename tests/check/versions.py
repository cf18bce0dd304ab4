"""What is installed: the system, Python, the packages that the pack needs, torch, ComfyUI, the GPU and its driver."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from check.ground import Ground
from check.outcome import FailedError, NotThereError
from host import PACK


def system(ground: Ground) -> str:
    wsl = " (WSL)" if "microsoft" in platform.release().lower() else ""
    return f"{platform.platform()}{wsl}, {platform.machine()}"


def python(ground: Ground) -> str:
    found = platform.python_version()
    if sys.version_info < (3, 10):  # noqa: UP036
        raise FailedError(f"{found}: the pack needs 3.10 or later")
    kind = "isolated, as in Windows portable" if sys.flags.isolated else "ordinary"
    return f"{found}, {kind}, {'a virtual environment' if sys.prefix != sys.base_prefix else 'no virtual environment'}"


def packages(ground: Ground) -> str:
    """The packages that requirements.txt asks for."""
    from packaging.requirements import Requirement

    told, problems = [], []
    for line in (PACK / "requirements.txt").read_text("utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{wanted.name} is missing")
            continue
        told.append(f"{wanted.name} {found}")
        if not wanted.specifier.contains(found, prereleases=True):
            problems.append(f"{wanted.name} is {found}, and {wanted.specifier} is needed")
    if problems:
        raise FailedError(f"{'; '.join(problems)}: install the pack's requirements.txt with this Python")
    return ", ".join(told)


def torch_version(ground: Ground) -> str:
    import torch

    return f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, ROCm {torch.version.hip or 'none'}"


def comfyui(ground: Ground) -> str:
    """ComfyUI's version; the pack refuses one that is too old."""
    from comfyui_version import __version__
    from lora_kiln.training import host  # noqa: F401

    return __version__


def pack(ground: Ground) -> str:
    found = re.search(r'^version = "(.+)"', (PACK / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    git = shutil.which("git")
    command = [git or "git", "-C", str(PACK), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() if git else ""
    return f"{found[1] if found else 'unknown'}{f', commit {commit}' if commit else ''}"


def gpu(ground: Ground) -> str:
    import torch

    device = ground.device
    if device.type == "cpu":
        raise NotThereError(f"the CPU computes: {torch.get_num_threads()} threads")
    if device.type == "mps":
        return f"Apple's, macOS {platform.mac_ver()[0]}"
    if device.type != "cuda":
        return f"{device.type}, {torch.xpu.get_device_name(device) if device.type == 'xpu' else 'unknown'}"
    facts = torch.cuda.get_device_properties(device)
    kind = getattr(facts, "gcnArchName", "") if torch.version.hip else f"compute capability {facts.major}.{facts.minor}"
    return f"{facts.name}, {kind}"


def driver(ground: Ground) -> str:
    """The driver's version, and on Windows its model: WDDM lets memory overflow into RAM."""
    import torch

    device = ground.device
    if device.type == "xpu":
        return str(getattr(torch.xpu.get_device_properties(device), "driver_version", "unknown"))
    if device.type != "cuda" or torch.version.hip:
        raise NotThereError("no NVIDIA GPU")
    program = shutil.which("nvidia-smi") or str(Path("/usr/lib/wsl/lib/nvidia-smi"))
    asked = "driver_version,driver_model.current"
    command = [program, f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        raise NotThereError("nvidia-smi does not answer") from None
    version, _, model = done.stdout.strip().partition("\n")[0].partition(",")
    return f"{version or 'unknown'}{f', {model.strip()}' if model.strip() not in ('', '[N/A]') else ''}"
