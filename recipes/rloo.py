"""REINFORCE leave-one-out with TRL, watched by crystalmon.

python recipes/rloo.py --config recipes/liquid-tiny/rloo.yaml --output_dir runs/rloo
accelerate launch recipes/rloo.py --config recipes/smollm2/rloo.yaml --output_dir runs/rloo
"""

from __future__ import annotations

from common import load, load_prompts, make_reward, parse
from trl import RLOOConfig, RLOOTrainer, get_peft_config

from crystalmon import CrystalCallback


def main() -> None:
    data, args, model_args, monitor = parse(RLOOConfig)

    model, tokenizer = load(model_args)
    callback = CrystalCallback(
        monitor.suite,
        every=monitor.probe_every,
        reference=monitor.reference,
        view=monitor.view,
        max_overhead=monitor.max_overhead,
        experiments=monitor.intervals,
    )
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=make_reward(data, monitor.suite),
        args=args,
        train_dataset=load_prompts(data, monitor.suite, args.seed),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)  # the next stage starts from this folder


if __name__ == "__main__":
    main()
