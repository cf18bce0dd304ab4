"""Notes: sentences about a run for the log, the page and the report."""

from .. import host


class Notes:
    """Sentences in the order they were added, each once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.telling = host.Telling(self.add)
        """guards what tells a person how the run goes"""

    def add(self, *sentences: str) -> None:
        """Adds and logs the sentences that are new."""
        for sentence in sentences:
            if sentence not in self.sentences:
                self.sentences.append(sentence)
                host.log("%s", sentence)
