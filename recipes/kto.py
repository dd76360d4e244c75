"""Kahneman-Tversky optimisation with TRL, watched by crystalmon.

python recipes/kto.py --config recipes/liquid-tiny/kto.yaml --output_dir runs/kto
accelerate launch recipes/kto.py --config recipes/smollm2/kto.yaml --output_dir runs/kto
"""

from __future__ import annotations

from common import load, load_rows, parse
from trl import KTOConfig, KTOTrainer, get_peft_config

from crystalmon import CrystalCallback
from crystalmon.synthetic import feedback_rows


def main() -> None:
    data, args, model_args, monitor = parse(KTOConfig)

    model, tokenizer = load(model_args)
    callback = CrystalCallback(
        monitor.suite,
        every=monitor.probe_every,
        reference=monitor.reference,
        view=monitor.view,
        max_overhead=monitor.max_overhead,
        experiments=monitor.intervals,
    )
    trainer = KTOTrainer(
        model=model,
        args=args,
        train_dataset=load_rows(data, monitor.suite, feedback_rows, args.seed),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)  # the next stage starts from this folder


if __name__ == "__main__":
    main()
