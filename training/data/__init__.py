"""Pictures and captions: where they come from, how they are cut, encoded and kept."""
