"""The `crystalmon` command."""
