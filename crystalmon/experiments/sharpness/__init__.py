"""How sharp the transition is against the KL penalty."""
