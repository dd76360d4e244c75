"""Suites of random tasks: tasks, their prompts and their choices.

`tasks` parses, validates and hashes them; `draft` writes a first file of one's own, `imported` one
of a data set's rows, `advice` says what a suite's text is too little for. The YAML files here are
the bundled suites.
"""
