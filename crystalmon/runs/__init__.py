"""The run folder: its records, events, results and base answers; written and read without torch."""
