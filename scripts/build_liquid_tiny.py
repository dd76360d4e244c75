"""Build `liquid-tiny`: a toy language model whose answers to every prompt are known.

The script draws a world (see `tiny_world.py`), trains a byte-level tokenizer and a small Llama
model on it, and writes

    crystalmon/assets/liquid-tiny/   model, tokenizer, truth.json
    crystalmon/suites/liquid-tiny.yaml

The corpus is exact rather than sampled: where an answer starts, the loss is the cross-entropy
against the planted distribution itself, that is, the expectation over all answers that a sampled
corpus would show. So two minutes are enough, and the truth is not blurred by sampling.

    python scripts/build_liquid_tiny.py
    python scripts/build_liquid_tiny.py --words second --model DIR --suite FILE    # another family
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from tiny_world import WORDS, World, build_world, support_size
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crystalmon.metrics import answers
from crystalmon.metrics.bootstrap import uniform_weights
from crystalmon.metrics.divergences import js_divergence

ROOT = Path(__file__).resolve().parents[1]
EOS, PAD, USER, ASSISTANT = "<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|endoftext|>{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] }}<|endoftext|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# ---------------------------------------------------------------- text and tokens


def train_tokenizer(
    worlds: Sequence[World], vocab_size: int, digits: str = "single"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template.

    Args:
        worlds: whose prompts and choices it is trained on.
        vocab_size: at most so many tokens.
        digits: `single`, each a token of its own, or `joined`: numbers merge as words do.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    apart = [pre_tokenizers.Split(Regex(r" ?\d"), "isolated")] if digits == "single" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*apart, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = []
    for world in worlds:
        for prompt in (*world.prompts, *world.held_out_prompts):
            lines.append(prompt)
            for choice in world.spec.choices:
                lines += [f" {choice}"] * 4 + [choice] * 4
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=256,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def liquidity(q: np.ndarray) -> float:
    """Of answers q [P, C], in nats."""
    return float(answers.liquidity(q, uniform_weights(len(q))))


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The number of a special token."""
    return int(tokenizer.get_vocab()[token])


@dataclass(frozen=True)
class Example:
    """One prompt in one view: its tokens, the answers' tokens and their probabilities.

    `soft[path]` is the distribution over the next token after the answer tokens `path`.
    """

    prefix: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    soft: dict[tuple[int, ...], dict[int, float]] = field(hash=False)


def make_example(
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    choices: Sequence[str],
    p: np.ndarray,
    view: str,
) -> Example:
    """Tokenize a prompt with all its answers; each answer ends in the end-of-text token."""
    text, space = (f"{USER}{prompt}{EOS}{ASSISTANT}", "") if view == "chat" else (prompt, " ")
    prefix = tokenizer(text, add_special_tokens=False)["input_ids"]
    answers = []
    soft: dict[tuple[int, ...], dict[int, float]] = {}
    for choice, weight in zip(choices, p, strict=True):
        whole = tokenizer(f"{text}{space}{choice}{EOS}", add_special_tokens=False)["input_ids"]
        if whole[: len(prefix)] != prefix:
            raise ValueError(f"tokens of {prompt!r} must not merge with its answer {choice!r}")
        answer = tuple(whole[len(prefix) :])
        answers.append(answer)
        for depth, token in enumerate(answer):
            node = soft.setdefault(answer[:depth], {})
            node[token] = node.get(token, 0.0) + float(weight)
    for node in soft.values():
        total = sum(node.values())
        node.update({token: mass / total for token, mass in node.items()})
    return Example(tuple(prefix), tuple(answers), tuple(float(w) for w in p), soft)


def make_corpus(tokenizer: PreTrainedTokenizerFast, worlds: Sequence[World]) -> list[Example]:
    """All prompts in the raw view twice and in the chat view once."""
    corpus = []
    for world in worlds:
        prompts = (*world.prompts, *world.held_out_prompts)
        planted = np.concatenate([world.planted, world.held_out_planted])
        for prompt, p in zip(prompts, planted, strict=True):
            raw = make_example(tokenizer, prompt, world.spec.choices, p, "raw")
            chat = make_example(tokenizer, prompt, world.spec.choices, p, "chat")
            corpus += [raw, raw, chat]
    return corpus


# ---------------------------------------------------------------- pretraining


def make_batch(
    documents: Sequence[Sequence[Example]], vocab: int, pad: int, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [B, T], text targets [B, T] (-100 where none), and the answers' soft targets.

    The last two are the flat positions [N] of answer tokens in [B * T] and their target
    distributions [N, V].
    """
    rows, text_targets, places, soft = [], [], [], []
    width = 0
    for document in documents:
        ids: list[int] = []
        target: list[int] = []
        for example in document:
            answer = rng.choices(example.answers, example.weights)[0]
            start = len(ids) + len(example.prefix)
            target += list(example.prefix) + [-100] * len(answer)
            ids += [*example.prefix, *answer]
            for depth in range(len(answer)):
                places.append((len(rows), start + depth - 1))
                soft.append(example.soft[answer[:depth]])
        rows.append(ids)
        text_targets.append([*target[1:], -100])
        width = max(width, len(ids))
    inputs = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), -100)
    for row, (ids, target) in enumerate(zip(rows, text_targets, strict=True)):
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, : len(ids)] = torch.tensor(target)
    dense = torch.zeros(len(soft), vocab)
    for index, node in enumerate(soft):
        dense[index, list(node)] = torch.tensor(list(node.values()))
    return inputs, targets, torch.tensor([row * width + at for row, at in places]), dense


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of [N, R, C], by five Newton-Schulz steps in float32."""
    x = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x if matrices.shape[-2] <= matrices.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Jordan et al., 2024), batched over equal shapes.

    It memorises the world in a fraction of the steps that AdamW needs. PyTorch's own Muon works
    in bfloat16, which most CPUs emulate at a tenth of the speed.
    """

    def __init__(self, params: Sequence[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.Tensor]] = {}
            for param in group["params"]:
                shapes.setdefault(param.shape, []).append(param)
            for params in shapes.values():
                updates = []
                for param in params:
                    gradient = torch.zeros_like(param) if param.grad is None else param.grad
                    buffer = self.state[param].setdefault("buffer", torch.zeros_like(param))
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(buffer, group["momentum"]))
                for param, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    scale = max(1.0, param.shape[0] / param.shape[1]) ** 0.5
                    param.add_(update, alpha=-group["lr"] * scale)


def make_batches(
    corpus: Sequence[Example], batch: int, rng: random.Random
) -> list[list[list[Example]]]:
    """One pass over the corpus in batches of like length; a tenth of the batches joins pairs."""
    order = sorted(corpus, key=lambda example: len(example.prefix) + 3 * rng.random())
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    rng.shuffle(batches)
    passes = []
    for number, examples in enumerate(batches):
        if number % 10 == 0:
            examples = rng.sample(examples, len(examples))
            passes.append([examples[at : at + 2] for at in range(0, len(examples), 2)])
        else:
            passes.append([[example] for example in examples])
    return passes


def pretrain(
    model: LlamaForCausalLM, corpus: Sequence[Example], pad: int, steps: int, batch: int, seed: int
) -> float:
    """Train with Muon (matrices) and AdamW (the rest), decaying linearly; return the seconds."""
    rng = random.Random(seed)
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / 30) * (1 - step / steps)

    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, schedule) for o in optimizers]
    started = time.perf_counter()
    batches: list[list[list[Example]]] = []
    progress = tqdm(range(steps), desc="pretraining", mininterval=2.0)
    for step in progress:
        batches = batches or make_batches(corpus, batch, rng)
        documents = batches.pop()
        inputs, targets, places, soft = make_batch(documents, model.config.vocab_size, pad, rng)
        logits = model(input_ids=inputs).logits.flatten(0, 1)
        text_loss = torch.nn.functional.cross_entropy(logits, targets.flatten())
        log_p = torch.log_softmax(logits[places], -1)
        answer_loss = torch.nn.functional.kl_div(log_p, soft, reduction="batchmean")
        (answer_loss + 0.1 * text_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        model.zero_grad(set_to_none=True)
        if step % 20 == 0:
            progress.set_postfix(answer=f"{answer_loss:.4f}", text=f"{text_loss:.4f}")
    return time.perf_counter() - started


# ---------------------------------------------------------------- checking


@torch.no_grad()
def answer_masses(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    choices: Sequence[str],
    view: str,
) -> np.ndarray:
    """Exact probabilities [P, C] of `answer<eos>` in the spelling that the corpus uses."""
    flat = np.full(len(choices), 1.0 / len(choices))
    examples = [make_example(tokenizer, prompt, choices, flat, view) for prompt in prompts]
    rows = [(e.prefix, answer) for e in examples for answer in e.answers]
    width = max(len(prefix) + len(answer) for prefix, answer in rows)
    inputs = torch.full((len(rows), width), token_id(tokenizer, PAD))
    for index, (prefix, answer) in enumerate(rows):
        inputs[index, : len(prefix) + len(answer)] = torch.tensor([*prefix, *answer])
    log_p = torch.log_softmax(model(input_ids=inputs).logits.double(), -1)
    masses = []
    for index, (prefix, answer) in enumerate(rows):
        at = torch.arange(len(prefix) - 1, len(prefix) + len(answer) - 1)
        masses.append(float(log_p[index, at, torch.tensor(answer)].sum().exp()))
    return np.array(masses).reshape(len(prompts), len(choices))


def check(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, worlds: Sequence[World]
) -> dict[str, float]:
    """Print planted against learned, per task; return the means over tasks."""
    columns = ("jsd", "jsd_held_out", "jsd_chat", "liquidity_truth", "liquidity", "coverage")
    print(f"{'task':<10}{'C':>4}{'support':>8}" + "".join(f"{name:>17}" for name in columns))
    table = []
    for world in worlds:
        spec, planted = world.spec, world.planted
        mass = answer_masses(model, tokenizer, world.prompts, spec.choices, "raw")
        held_out = answer_masses(model, tokenizer, world.held_out_prompts, spec.choices, "raw")
        chat = answer_masses(model, tokenizer, world.prompts, spec.choices, "chat")
        q, r, s = (m / m.sum(axis=1, keepdims=True) for m in (mass, held_out, chat))
        row = [
            float(js_divergence(q, planted).mean()),
            float(js_divergence(r, world.held_out_planted).mean()),
            float(js_divergence(s, planted).mean()),
            liquidity(planted),
            liquidity(q),
            float(mass.sum(axis=1).mean()),
        ]
        table.append(row)
        inside = support_size(planted[world.seed])
        numbers = "".join(f"{value:>17.4f}" for value in row)
        print(f"{spec.name:<10}{len(spec.choices):>4}{inside:>8}{numbers}")
    means = np.mean(table, axis=0)
    print(f"{'mean':<22}" + "".join(f"{value:>17.4f}" for value in means))
    return dict(zip(columns, (float(value) for value in means), strict=True))


# ---------------------------------------------------------------- files


def write_truth(worlds: Sequence[World], path: Path, name: str) -> None:
    """Write the planted world as JSON, one line a list so that it can be read and compared."""

    def numbers(rows: np.ndarray) -> list[list[float]]:
        return [[round(float(value), 6) for value in row] for row in rows]

    tasks = {
        world.spec.name: {
            "choices": list(world.spec.choices),
            "seed": world.seed,
            "prompts": list(world.prompts),
            "planted": numbers(world.planted),
            "held_out_prompts": list(world.held_out_prompts),
            "held_out_planted": numbers(world.held_out_planted),
        }
        for world in worlds
    }
    lines = []
    for key, task in tasks.items():
        fields = ",\n".join(f"   {json.dumps(part)}: {json.dumps(task[part])}" for part in task)
        lines.append(f"  {json.dumps(key)}: {{\n{fields}\n  }}")
    body = ",\n".join(lines)
    path.write_text(f'{{\n "suite": "{name}",\n "tasks": {{\n{body}\n }}\n}}\n')


def write_suite(worlds: Sequence[World], path: Path, name: str) -> None:
    """Write the probe prompts and choices as a suite file."""
    tasks = [
        {"name": w.spec.name, "prompts": list(w.prompts), "choices": list(w.spec.choices)}
        for w in worlds
    ]
    header = f"# Made by scripts/build_liquid_tiny.py; truth: assets/{name}/truth.json.\n"
    text = yaml.safe_dump({"name": name, "tasks": tasks}, sort_keys=False, width=100)
    path.write_text(header + text)


def make_portable(config: Path) -> None:
    """Write the tokenizer's configuration so that transformers before 5.0 can read it too."""
    data = json.loads(config.read_text(encoding="utf-8"))
    data["tokenizer_class"] = "PreTrainedTokenizerFast"
    data["additional_special_tokens"] = data.pop("extra_special_tokens")
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    config.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the corpus' order")
    parser.add_argument("--words", choices=WORDS, default="first", help="which tasks and wordings")
    parser.add_argument("--world-seed", type=int, default=0, help="of what is planted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocab-size", type=int, default=768)
    parser.add_argument("--digits", choices=("single", "joined"), default="single")
    parser.add_argument("--model", type=Path, default=ROOT / "crystalmon/assets/liquid-tiny")
    parser.add_argument("--suite", type=Path, default=ROOT / "crystalmon/suites/liquid-tiny.yaml")
    parser.add_argument("--world-only", action="store_true", help="write the world, train nothing")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    words = WORDS[args.words]
    worlds = build_world(args.world_seed, words)
    args.model.mkdir(parents=True, exist_ok=True)
    args.suite.parent.mkdir(parents=True, exist_ok=True)
    write_truth(worlds, args.model / "truth.json", words.name)
    write_suite(worlds, args.suite, words.name)
    tokenizer = train_tokenizer(worlds, args.vocab_size, args.digits)
    if args.world_only:
        for world in worlds:
            print(world.spec.name, f"{liquidity(world.planted):.3f}", world.planted[world.seed])
        print("mean", np.mean([liquidity(world.planted) for world in worlds]), len(tokenizer))
        return

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model = LlamaForCausalLM(config)
    corpus = make_corpus(tokenizer, worlds)
    pad = token_id(tokenizer, PAD)
    seconds = pretrain(model, corpus, pad, args.steps, args.batch, args.seed)
    model.eval()
    means = check(model, tokenizer, worlds)
    model.save_pretrained(args.model)
    tokenizer.save_pretrained(args.model)
    make_portable(args.model / "tokenizer_config.json")
    size = sum(path.stat().st_size for path in args.model.iterdir() if path.is_file())
    summary = {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "prompts": len(corpus) // 3,
        "steps": args.steps,
        "seconds": round(seconds, 1),
        "megabytes": round(size / 1e6, 2),
        **{key: round(value, 5) for key, value in means.items()},
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
