"""Takes up memory of the GPU from outside, as a child process, so that another process finds a smaller card.

A question is a line of JSON {"bytes": N}: from now on N are held. The answer is RESULT {} or RESULT {"failed": why}.
"""

from __future__ import annotations

import json
import sys

import torch

from bench.runs import RESULT


def main() -> None:
    held: list[torch.Tensor] = []
    for line in sys.stdin:
        held.clear()
        torch.cuda.empty_cache()
        answer = {}
        try:
            if size := json.loads(line)["bytes"]:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError as error:
            answer = {"failed": str(error)}
        print(RESULT + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
