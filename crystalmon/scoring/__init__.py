"""A model and a suite → the exact log-probabilities of the choices, without a trace."""
