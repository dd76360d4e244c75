"""The essay's predictions, judged by the results of the experiments."""
