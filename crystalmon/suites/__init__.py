"""Suites of random tasks: tasks, their prompts and their choices.

`tasks` parses, validates and hashes them; the YAML files here are the bundled suites.
"""
