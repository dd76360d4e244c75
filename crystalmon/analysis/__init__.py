"""What a stored run tells afterwards: replay, transition, verdicts, transfer. Needs no torch."""
