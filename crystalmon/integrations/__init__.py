"""Attached without a line of code: `crystalmon run`, and plugins of training frameworks.

`launch` starts a program in which each Python process runs `startup/sitecustomize.py` first. That
waits until the program imports transformers' callbacks. Then `attach` sees to it that every trainer
begins with a `CrystalCallback`, made as `arguments` says. `axolotl` and `ms_swift` are plugins by
which these frameworks attach the callback themselves, with the same arguments.
"""
