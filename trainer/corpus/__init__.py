"""Text in, packed token rows out: the program of the prepare container.

Run as ``python3 -m corpus [spec.json]``.  It keeps the three splits apart and cuts repetitions
of held-out text out of them, trains the tokenizer on what is left of the training text, packs each
split into rows of tokens and writes the manifest last, so a tree without a manifest is an unfinished
one.  Progress leaves on standard output as one JSON object a line.

::

    __main__ ─ reads the spec, maps errors to exit codes
     └── build ── repeats, tokenizer, pack, manifest
          └── kjv · shards · files     where the documents come from
               └── split ── progress, errors

Nothing here is imported on the host.
"""
