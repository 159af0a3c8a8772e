"""autoresearch: autonomous research on one training file, every trial in its own locked-down container.

Imports point down only::

    cli ─ builds the parts, maps errors to exit codes
     ├── loop ── protocols, workspace (git), ledger, judge, score
     ├── sandbox.* (docker)      agents.* (optuna, litellm, bubblewrap)      report.* (matplotlib, rich)
     ├── mcpserver (mcp) ── driver
     └── trial ── errors ── the standard library

One module or package per outside system; none lets a foreign exception or type out.
"""
