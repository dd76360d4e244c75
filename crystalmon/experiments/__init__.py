"""The essay's experiments, on a model or on a pair of models, alone or inside training."""
