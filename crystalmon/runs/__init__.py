"""The run folder, `<output_dir>/crystalmon`: what is written while a model trains, and read after.

    run.json            what was measured, with what
    records.jsonl       one line a probe
    events.jsonl        one line an event
    trainer_log.jsonl   the trainer's own log: step, epoch, and its numbers by name
    reference/          the frozen base's answers
    experiments/        results of experiments that ran inside the training
    scan.json           of a scan: what was found, and the verdicts

The line files only ever grow. A run that is resumed from step s first writes the marker
`{"resume": s}` to each: lines before it with a step past s are superseded, not deleted. A probe's
events are written before its record, and events of a step without a record do not count: the run
was killed between the two. The marker `{"doubtful_after": s}` in `records.jsonl` says that the
records before it with a step past s may be wrong.

    names.py        names of folders and files
    records.py      what a probe found, and the events it raised
    json_values.py  values as strict JSON, and each part checked as it is read
    reference.py    the base's answers
    compared_answers.py  … as a stored run was compared with them
    find_reference.py  where those of a path lie
    base_cache.py   bases of earlier runs, in the user's cache folder
    results.py      what an experiment found
    trainer_log.py  what the trainer itself has logged
    files.py        lines and files written durably, and errors told in one sentence
    store.py        writing a run
    places.py       what a step is called: by its number, or by a stage's name
    shares.py       monitoring's share of the time, against its limit
    plurals.py      how many there are of a thing
    run.py          a run as it is read back, and what can be asked of it
    data_frames.py  the same as pandas data frames
    line_file.py    a file of JSON lines, read while it grows
    reader.py       reading a run, also while it grows
    lock.py         one command at a time in a folder
    wordings.py     the texts of a run's prompts and choices
    notebook.py     the HTML that a notebook shows

Nothing here needs torch.
"""
