"""Run folders → one page, figures, tables. Reads what is stored; needs no torch."""
