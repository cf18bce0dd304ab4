"""The script in docs/headless.md, run as it stands against the real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from host import PACK, Server
from kit.concepts import Concept
from kit.demo import demo_prompt, node, node_id, write_data
from saved_workflows import with_ids_of_its_own

SCRIPT = re.search(r"```python\n(.*?)```", (PACK / "docs" / "headless.md").read_text("utf-8"), re.DOTALL)


def test_the_script_in_the_docs_queues_a_run_follows_it_and_says_where_the_lora_is(
    server: Server, kit_dir: Path, tmp_path: Path
):
    concept = Concept(1)
    write_data(server.workspace / "input", concept)
    with server.client() as client:
        prompt = demo_prompt(client, concept, {"steps": 3, "batch_size": 1, "rank": 4})
    node(prompt, "KilnTrainLoRA")["inputs"]["dataset"] = [node_id(prompt, "KilnLoadDataset"), 0]
    node(prompt, "KilnSaveLoRA")["inputs"]["filename"] = "headless"
    outputs = ("KilnApplyLoRAPreview", "SaveImage", "LossGraphNode", "PreviewAny")
    prompt = {key: each for key, each in prompt.items() if each["class_type"] not in outputs}
    (tmp_path / "my_lora_api.json").write_text(json.dumps(with_ids_of_its_own(prompt, "script ")))
    assert SCRIPT is not None
    script = SCRIPT[1].replace("http://127.0.0.1:8188", server.url)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.search(r"step \d of 3, loss \d", done.stdout)
    assert done.stdout.splitlines()[-1].startswith("success")
    assert "headless.safetensors" in done.stdout
