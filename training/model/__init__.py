"""What is trained: twins of the graph's models with adapters on, their builder and their state."""
