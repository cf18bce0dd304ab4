"""A program that downloads a model from the Hugging Face hub and prints its progress as lines of JSON in ASCII.

Arguments: where to search modules, as a JSON list; the model's id; patterns of the files to download. The list stands
in for PYTHONPATH, which an isolated Python, such as that of ComfyUI's portable build for Windows, does not read.
"""

import fnmatch
import json
import os
import sys
import threading
import time

ANSWER_SECONDS = 10
HEARTBEAT = 0.5


def main(model_id: str, patterns: list[str]) -> None:
    """Prints {"bytes": size of the files}, then {"folder": their folder}; {"error": why} on failure."""
    try:
        from huggingface_hub import HfApi, snapshot_download

        files = HfApi().model_info(model_id, timeout=ANSWER_SECONDS, files_metadata=True).siblings or []
        wanted = [file for file in files if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in patterns)]
        say(bytes=sum(file.size or 0 for file in wanted))
        say(folder=snapshot_download(model_id, allow_patterns=patterns))
    except Exception as error:  # any error is reported to the user
        lines = str(error).strip().splitlines() or [""]
        say(error=f"{type(error).__name__}: {lines[0]}")


def say(**fact: str | int) -> None:
    """Writes a line at once and whole; raises OSError when nobody reads any more."""
    os.write(1, json.dumps(fact).encode() + b"\n")


def end_with_reader() -> None:
    """Ends this process soon after the one that reads its lines has ended, in whatever way."""
    while True:
        time.sleep(HEARTBEAT)
        try:
            say()
        except OSError:
            os._exit(1)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    threading.Thread(target=end_with_reader, daemon=True).start()
    main(sys.argv[2], sys.argv[3:])
