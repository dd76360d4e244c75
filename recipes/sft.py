"""Supervised fine-tuning with TRL, watched by crystalmon.

python recipes/sft.py --config recipes/liquid-tiny/sft.yaml --output_dir runs/sft
accelerate launch recipes/sft.py --config recipes/smollm2/sft.yaml --output_dir runs/sft
"""

from __future__ import annotations

from common import load, load_rows, parse
from trl import SFTConfig, SFTTrainer, get_peft_config

from crystalmon import CrystalCallback
from crystalmon.synthetic import sft_rows


def main() -> None:
    data, args, model_args, monitor = parse(SFTConfig)

    model, tokenizer = load(model_args)
    callback = CrystalCallback(
        monitor.suite,
        every=monitor.probe_every,
        reference=monitor.reference,
        view=monitor.view,
        max_overhead=monitor.max_overhead,
        experiments=monitor.intervals,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=load_rows(data, monitor.suite, sft_rows, args.seed),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)  # the next stage starts from this folder


if __name__ == "__main__":
    main()
