"""What a probe would cost on models of 1B to 70B parameters: an estimate, nothing is run.

python scripts/estimate_cost.py
python scripts/estimate_cost.py --view chat --steps 5000 --tokens-per-step 524288
python scripts/estimate_cost.py --scan 4 --rate 1.15e11    # of a scan of so many stages

The models' shapes are written down here, not read from their repositories. The suite's tokens are
by default those of SmolLM2's tokenizer (vocabulary 49152), since the models' own are not bundled;
larger vocabularies make slightly fewer. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig

from crystalmon.monitor.cost import Cost, ModelSize, Rate, estimate_cost, model_size
from crystalmon.scoring.models import load_tokenizer
from crystalmon.scoring.plan import build_plan
from crystalmon.suites.tasks import load_suite

# layers, hidden, intermediate, heads, key-value heads, vocabulary. All of them are of the Llama
# shape; OLMo 2 has some further norms, of which this count knows nothing.
MODELS = {
    "OLMo 2 1B": (16, 2048, 8192, 16, 16, 100352),
    "OLMo 2 7B": (32, 4096, 11008, 32, 32, 100352),
    "OLMo 2 13B": (40, 5120, 13824, 40, 40, 100352),
    "OLMo 2 32B": (64, 5120, 27648, 40, 8, 100352),
    "Llama 3 8B": (32, 4096, 14336, 32, 8, 128256),
    "Llama 3 70B": (80, 8192, 28672, 64, 8, 128256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="randomness")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="a model whose tokens count")
    parser.add_argument("--view", default="raw", choices=("raw", "chat"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int)
    parser.add_argument("--tokens-per-step", type=int, default=131_072)
    parser.add_argument("--scan", type=int, metavar="STAGES", help="of a scan, not of a run")
    parser.add_argument("--rate", type=float, default=1e13, help="FLOP/s that a machine achieves")
    args = parser.parse_args()
    plan = build_plan(load_suite(args.suite), load_tokenizer(args.tokenizer), args.view)
    run = {"steps": args.steps, "every": args.every, "tokens_per_step": args.tokens_per_step}
    costs = {name: estimate_cost(size_of(*shape), plan, **run) for name, shape in MODELS.items()}
    first = next(iter(costs.values()))
    if args.scan is not None:
        Console(width=140).print(scan_table(costs, args.scan, args.rate))
        return
    table = Table(
        *("model", "layer parameters", "TFLOP a probe", "s at 1e13 FLOP/s", "s at 1e14 FLOP/s"),
        *("reference, MiB", "share of FLOPs"),
        title=f"estimate: suite {args.suite}, {args.view}, {first.unique_tokens} tokens by "
        f"the tokenizer of {args.tokenizer}; {args.steps} steps of {args.tokens_per_step} tokens, "
        f"{first.probes} probes",
    )
    for name, cost in costs.items():
        times = [cost.probe_flops / Rate(rate).value for rate in (1e13, 1e14)]
        table.add_row(
            name,
            f"{cost.size.layer_parameters / 1e9:.2f}e9",
            f"{cost.probe_flops / 1e12:.0f}",
            *(f"{seconds:.1f}" for seconds in times),
            f"{cost.reference_bytes / 2**20:.0f}",
            f"{cost.share:.2%}",
        )
    Console(width=140).print(table)
    print(json.dumps({name: cost.to_json() for name, cost in costs.items()}))


def scan_table(costs: Mapping[str, Cost], stages: int, rate: float) -> Table:
    """Time and memory of scanning so many stages, one after the other.

    The peak: the weights, the reference, and, in float32 on a GPU and in float64 on a CPU, the
    output projection's weight and a batch of logits.
    """
    table = Table(
        *("model", "weights in bf16, GiB", "peak on a GPU, GiB", "on a CPU, GiB", "TFLOP"),
        *(f"hours at {rate:.2g} FLOP/s", "minutes at 1e13", "minutes at 1e14"),
        title=f"estimate: a scan of {stages} stages; loading and downloading are not in it",
    )
    for name, cost in costs.items():
        weights = 2 * (cost.size.layer_parameters + 2 * cost.size.head_parameters)
        head = 4 * cost.size.head_parameters
        held = weights + cost.reference_bytes
        flops = stages * cost.probe_flops
        table.add_row(
            name,
            f"{weights / 2**30:.1f}",
            f"{(held + head + cost.logits_bytes) / 2**30:.1f}",
            f"{(held + 2 * head + cost.logits_bytes_on_cpu) / 2**30:.1f}",
            f"{flops / 1e12:.0f}",
            f"{flops / rate / 3600:.2g}",
            *(f"{flops / each / 60:.2g}" for each in (1e13, 1e14)),
        )
    return table


def size_of(
    layers: int, hidden: int, intermediate: int, heads: int, key_value_heads: int, vocabulary: int
) -> ModelSize:
    """Count the parameters of such a model."""
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate,
        num_attention_heads=heads, num_key_value_heads=key_value_heads, vocab_size=vocabulary,
        tie_word_embeddings=False,
    )  # fmt: skip
    return model_size(config)


if __name__ == "__main__":
    main()
