"""A model and a suite → exact log-probabilities of the choices, without a trace in the training.

A probe goes through these modules in this order:

1. `models` loads a model and its tokenizer by name, where none is given.
2. `rendering` writes the suite's prompts in a *view*; `plan` tokenizes them and what may follow:
   which distributions are needed, and how to add them up to the choices.
3. `compatibility` refuses a plan that the model cannot run, `engines` an engine that would falsify
   it; `ranks` are the processes that share it.
4. `route` finds out on a few prompts (`trial`) how the model is run: as trees or rows, in which
   precision (`precision_trial`).
5. `sequences` makes a plan's rows into sequences and batches, packed as trees with `trie`.
6. `forward` runs the batches, on every rank the same number, and takes log softmax at the needed
   positions. `memory` limits a batch. `isolation` puts back what a pass may change; `precision`
   makes it exact.
7. `score` adds the tokens' log-probabilities up to those of the choices.

`fingerprint` tells whether a model is one whose answers are known.
"""
