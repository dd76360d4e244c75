"""Compliance against the share of adversarial context."""
