"""Text in, packed token rows out: the program of the prepare container.

Run as ``python3 -m corpus [spec.json]``.  It trains the tokenizer on training text alone, keeps the
three splits apart, packs each into rows of tokens and writes the manifest last, so a tree without a
manifest is an unfinished one.  Progress leaves on standard output as one JSON object a line.

::

    __main__ ─ reads the spec, maps errors to exit codes
     └── build ── tokenizer, pack, manifest
          └── kjv · shards · files     where the documents come from
               └── split ── progress, errors

Nothing here is imported on the host.
"""
