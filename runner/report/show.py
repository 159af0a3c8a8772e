"""The text of `autoresearch show N`: everything about one trial that a person asks for."""

from __future__ import annotations

from collections.abc import Iterator

from runner.report.summary import scored
from runner.report.text import block, plain
from runner.trial import Record, Verdict

_BRIEF = {
    "tuner": "The tuner does not read program.md: it tries numbers.",
    "replay": "Replayed from a file; program.md played no part.",
    "hand": "Handed in as a file; program.md played no part.",
}
_PHASES = ("startup", "train", "claim", "audit", "total")


def show_text(record: Record, diff: str) -> str:
    """One trial for a terminal; `diff` is what it changes, as text."""
    parts = [
        "\n".join([f"trial {record.trial} of {plain(record.tag)}: {plain(record.idea)}", *_facts(record)]),
        _paragraph("Why", record.why),
        _paragraph("Risk", record.risk),
        _paragraph("The agent", _BRIEF.get(record.agent, "")),
        _paragraph(
            "What train.py said about itself (not checked)",
            "\n".join(f"{name}: {value}" for name, value in record.summary),
        ),
        _diff(record, diff),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(record: Record) -> Iterator[str]:
    facts = {
        "verdict": f"{record.verdict}, {plain(record.reason)}" if record.reason else str(record.verdict),
        "ending": str(record.ending or ""),
        "val_bpb": _score(record),
        "gain": _gain(record),
        "seconds": ", ".join(
            f"{phase} {value:.1f}"
            for phase in _PHASES
            if (value := getattr(record.seconds, phase)) is not None
        ),
        "work": _work(record),
        "memory": "" if record.memory_gb is None else f"{record.memory_gb:.2f} GB at most",
        "seed": "" if record.seed is None else str(record.seed),
        "cost": "" if record.cost_usd is None else f"${record.cost_usd:.4f}",
        "agent": f"{plain(record.agent)}, {plain(record.kind)}",
        "commit": record.commit or "none: it was refused before it became one",
        "parent": record.parent or "",
        "image": record.image or "",
        "gpu": record.gpu or "",
        "proposed": record.proposed_at,
        "log": record.log_path or "",
    }
    return (f"  {name:<9} {plain(value)}" for name, value in facts.items() if value)


def _score(record: Record) -> str:
    score = scored(record)
    if score is None:
        return ""
    return f"{score:.6f} bits per byte" + (f" ({record.score_level})" if record.score_level else "")


def _gain(record: Record) -> str:
    if record.gain is None or record.verdict is Verdict.BASELINE:
        return ""
    needed = "" if record.threshold is None else f", {record.threshold:.6f} was needed"
    noise = (
        "" if record.sigma is None else f"; one measurement has a standard deviation of {record.sigma:.6f}"
    )
    return f"{record.gain:+.6f} against the champion{needed}{noise}"


def _work(record: Record) -> str:
    parts = [
        f"{value:,} {name}"
        for name, value in (("steps", record.steps), ("tokens", record.tokens), ("parameters", record.params))
        if value is not None
    ]
    return ", ".join(parts)


def _paragraph(title: str, text: str) -> str:
    return f"{title}\n{_indent(block(text))}" if text.strip() else ""


def _diff(record: Record, diff: str) -> str:
    """Not indented, so that it can be copied into `git apply`."""
    if diff.strip():
        return f"Diff\n{block(diff.rstrip(chr(10)))}"
    return "Diff\n  none: the file is the same" if record.commit else ""


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.split("\n"))
