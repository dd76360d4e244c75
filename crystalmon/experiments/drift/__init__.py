"""How far generated text drifts from its instruction."""
