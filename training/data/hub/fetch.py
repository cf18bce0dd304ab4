"""A program: brings a model from the Hugging Face hub, and says how it goes in lines of JSON.

Args: the model's id, then patterns of the files to bring.
"""

import fnmatch
import json
import sys

from huggingface_hub import HfApi, snapshot_download

ANSWER_SECONDS = 10


def main(model_id: str, patterns: list[str]) -> None:
    """Prints {"bytes": size of the files}, then {"folder": where they are}; {"error": why} where it fails."""
    try:
        files = HfApi().model_info(model_id, timeout=ANSWER_SECONDS, files_metadata=True).siblings or []
        wanted = [file for file in files if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in patterns)]
        say(bytes=sum(file.size or 0 for file in wanted))
        say(folder=snapshot_download(model_id, allow_patterns=patterns))
    except Exception as error:  # whatever it is, the person is told
        lines = str(error).strip().splitlines() or [""]
        say(error=f"{type(error).__name__}: {lines[0]}")


def say(**fact: str | int) -> None:
    """A line, at once."""
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
