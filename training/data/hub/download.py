"""A program that downloads a model from the Hugging Face hub and prints its progress as lines of JSON.

Arguments: the model's id, then patterns of the files to download.
"""

import fnmatch
import json
import sys

from huggingface_hub import HfApi, snapshot_download

ANSWER_SECONDS = 10


def main(model_id: str, patterns: list[str]) -> None:
    """Prints {"bytes": size of the files}, then {"folder": their folder}; {"error": why} on failure."""
    try:
        files = HfApi().model_info(model_id, timeout=ANSWER_SECONDS, files_metadata=True).siblings or []
        wanted = [file for file in files if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in patterns)]
        say(bytes=sum(file.size or 0 for file in wanted))
        say(folder=snapshot_download(model_id, allow_patterns=patterns))
    except Exception as error:  # any error is reported to the user
        lines = str(error).strip().splitlines() or [""]
        say(error=f"{type(error).__name__}: {lines[0]}")


def say(**fact: str | int) -> None:
    """Prints a line without buffering."""
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
