"""Attached without a line of code: `crystalmon run`, and plugins of training frameworks.

`launch` starts a program so that each Python process in it runs `startup/sitecustomize.py`. That one
waits until the program imports transformers' callbacks, and `attach` then sees to it that every
trainer has a `CrystalCallback` when it begins to train, made as `settings` says. The other modules
are plugins by which a framework attaches the callback itself, with the same settings.
"""
