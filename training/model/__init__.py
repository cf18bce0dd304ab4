"""Learners: twins of the graph's models with adapters, their batches, and building them to fit into the memory."""
