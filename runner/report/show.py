"""The text of `autoresearch show N`: everything about one trial that a person asks for."""

from __future__ import annotations

from collections.abc import Iterator

from runner.money import FREE
from runner.report.summary import scored, unverified
from runner.report.text import block, plain
from runner.trial import Record, Suggested, Verdict

_BRIEF = {
    "tuner": "The tuner does not read program.md: it tries numbers.",
    "replay": "Replayed from a file; program.md played no part.",
    "hand": "Handed in as a file; program.md played no part.",
    "runner": "Measured again by the runner itself, to know the champion better.",
}
_SUGGESTED = {
    Suggested.UNSEEN: "the tuner's, and the model was not asked",
    Suggested.TAKEN: "the tuner's, which the model saw and took as it is",
    Suggested.CHANGED: "the model's, made of what the tuner suggested",
    Suggested.OVERRIDDEN: "the model's own, in place of what the tuner suggested",
    Suggested.FALLBACK: "the tuner's, since the model failed or there was no money left to ask it",
}
_PHASES = ("startup", "train", "claim", "audit", "total")


def show_text(record: Record, diff: str) -> str:
    """One trial for a terminal; `diff` is what it changes, as text."""
    parts = [
        "\n".join([f"trial {record.trial} of {plain(record.tag)}: {plain(record.idea)}", *_facts(record)]),
        _paragraph("Measurements", "\n".join(_measurements(record))),
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
        "val_bpb" if record.metric is None else "score": _score(record),
        "gain": _gain(record),
        "charge": _charge(record),
        "audit": _audit(record),
        "seconds": ", ".join(
            f"{phase} {value:.1f}"
            for phase in _PHASES
            if (value := getattr(record.seconds, phase)) is not None
        ),
        "work": _work(record),
        "memory": "" if record.memory_gb is None else f"{record.memory_gb:.2f} GB at most",
        "seed": "" if record.seed is None else str(record.seed),
        "cost": _cost(record),
        "agent": f"{plain(record.agent)}, {plain(record.kind)}",
        "suggested": "" if record.suggestion is None else f"{record.suggestion}: {_SUGGESTED[record.suggestion]}",
        "commit": record.commit or "none: it was refused before it became one",
        "parent": record.parent or "",
        "image": record.image or "",
        "gpu": record.gpu or "",
        "proposed": record.proposed_at,
        "log": record.log_path or "",
    }
    return (f"  {name:<9} {plain(value)}" for name, value in facts.items() if value)


def _cost(record: Record) -> str:
    if record.agent in FREE:
        return ""
    usd = "unknown" if record.cost_usd is None else f"${record.cost_usd:.4f}"
    if record.prompt_tokens is None or record.completion_tokens is None:
        return f"{usd}, tokens unknown"
    return f"{usd}, {record.prompt_tokens:,} tokens in, {record.completion_tokens:,} out"


def _score(record: Record) -> str:
    score = scored(record)
    if score is None:
        return ""
    if unverified(record):
        better = "higher" if record.maximise else "lower"
        return f"{score:.6f} {record.metric or ''} ({record.score_level}, unverified; {better} is better)"
    return f"{score:.6f} bits per byte" + (f" ({record.score_level})" if record.score_level else "")


def _measurements(record: Record) -> Iterator[str]:
    if len(record.measurements) < 2:
        return
    for number, one in enumerate(record.measurements, 1):
        score = "no score" if one.val_bpb is None else f"{one.val_bpb:.6f}"
        charge = f"  charge {one.charge:.6f}" if one.charge else ""
        spent = "" if one.seconds is None else f"  {one.seconds:.1f} s"
        yield f"{number}  seed {one.seed}  {score}{charge}{spent}{'  confirmed' if one.confirmed else ''}"


def _charge(record: Record) -> str:
    parts = []
    if record.charge:
        parts.append(f"{record.charge:.6f} for computation beyond the baselines'")
    if record.slack is not None:
        parts.append(f"what is not charged is worth {record.slack:.6f} at most")
    return ", ".join(parts)


def _audit(record: Record) -> str:
    facts = record.audit
    if facts is None:
        return ""
    return (
        f"{facts.k:,} tokens in {facts.rounds} rounds moved the score by {facts.correction:+.6f} "
        f"(standard error {facts.standard_error:.6f}); a liar could hide {facts.detectable_blind:.6f}, "
        f"one who knows the reference {facts.detectable_informed:.6f}, 1 time in 100"
    )


def _gain(record: Record) -> str:
    if record.gain is None or record.verdict is Verdict.BASELINE:
        return ""
    needed = "" if record.threshold is None else f", {record.threshold:.6f} was needed"
    noise = (
        "" if record.sigma is None else f"; one measurement has a standard deviation of {record.sigma:.6f}"
    )
    if record.sigma_interval is not None:
        noise += " (90 %: {:.6f} to {:.6f})".format(*record.sigma_interval)
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
