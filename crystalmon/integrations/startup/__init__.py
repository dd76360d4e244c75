"""The folder that `crystalmon run` puts on PYTHONPATH: nothing else may lie in it."""
