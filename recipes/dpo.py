"""Direct preference optimisation with TRL, watched by crystalmon.

python recipes/dpo.py --config recipes/liquid-tiny/dpo.yaml --output_dir runs/dpo
accelerate launch recipes/dpo.py --config recipes/smollm2/dpo.yaml --output_dir runs/dpo
"""

from __future__ import annotations

from common import load, load_rows, parse
from trl import DPOConfig, DPOTrainer, get_peft_config

from crystalmon import CrystalCallback
from crystalmon.synthetic import preference_rows


def main() -> None:
    data, args, model_args, monitor = parse(DPOConfig)

    model, tokenizer = load(model_args)
    rows = load_rows(data, monitor.suite, preference_rows, args.seed)
    if isinstance(rows[0]["chosen"], list):  # whole conversations: TRL takes the prompt from them
        rows = rows.select_columns(["chosen", "rejected"])
    callback = CrystalCallback(
        monitor.suite,
        every=monitor.probe_every,
        reference=monitor.reference,
        view=monitor.view,
        max_overhead=monitor.max_overhead,
        experiments=monitor.intervals,
    )
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)  # the next stage starts from this folder


if __name__ == "__main__":
    main()
