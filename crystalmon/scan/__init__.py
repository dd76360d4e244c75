"""The monitor over a list of checkpoints."""
