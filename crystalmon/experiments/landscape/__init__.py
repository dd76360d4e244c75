"""Alignment free energy by category of instruction."""
