"""Agents of other people in a real sandbox: what they hand back, and what they cannot do."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from runner.agents import bubblewrap, confined, handback
from runner.agents.bubblewrap import Confinement
from runner.agents.command import CommandAgent, Options, changed, cost, told_page
from runner.agents.confined import Kept
from runner.agents.failures import FAILURES_IN_A_ROW
from runner.agents.handback import NotHandedBackError
from runner.agents.prompt import Facts, Try
from runner.cli.commanding import Commanded
from runner.errors import AgentError, UsageError
from runner.loop import Stops
from runner.money import Purse
from runner.trial import Kind, Proposal, Record, Refusal, Spent, Verdict
from tests.conftest import run_git
from tests.test_loop import Bench

CHAMPION = "DEPTH = 2\nWIDTH = 64\n\n\ndef main() -> None:\n    print(DEPTH)\n"
DEEPER = CHAMPION.replace("DEPTH = 2", "DEPTH = 3")
EDIT = "sed -i 's/DEPTH = 2/DEPTH = 3/' train.py"
CLAUDE = '{"total_cost_usd": 0.25, "usage": {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 7}}'
ROOT = Path(__file__).resolve().parents[1]


def record(trial: int, verdict: Verdict = Verdict.DISCARD, **values: Any) -> Record:
    known = {"trial": trial, "tag": "t", "commit": f"c{trial}", "parent": "c0", "agent": "command", "idea": f"idea {trial}", "token": str(trial), "verdict": verdict}
    return Record(**{**known, **values})


def facts(champion: str, history: Sequence[Record]) -> Facts:
    return Facts(
        brief="The brief.", editable="trainer/train.py", champion=champion, hardware="CPU", budget="20 steps", metric="lower is better",
        tries=tuple(Try(record=one) for one in history),
    )  # fmt: skip


def agent(run: Path, script: str, *, purse: Purse | None = None, **values: Any) -> CommandAgent:
    options = Options(command=f"sh -c {shlex.quote(script)}", **{"seconds": 20, **values})
    return CommandAgent(options, facts, run, limit=100_000, count=len, purse=purse)


def propose(run: Path, script: str, **values: Any) -> Proposal | Refusal:
    found = agent(run, script, **values).propose(CHAMPION, [])
    assert found is not None
    assert not (run / "command" / "scratch").exists()
    return found


def refused(run: Path, script: str, **values: Any) -> str:
    found = propose(run, script, **values)
    assert isinstance(found, Refusal)
    return found.reason


def said(run: Path, name: str = "stdout.txt", number: int = 0) -> str:
    return (run / "command" / f"{number:04d}" / name).read_text()


def alive(mark: str) -> list[str]:
    """Processes of this machine with the mark in their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and place.name != str(os.getpid()):
            found.append(line)
    return found


# What the sandbox is ----------------------------------------------------------------------------


def test_the_sandbox_is_this_list_of_arguments() -> None:
    confinement = Confinement(scratch=Path("/run-1/scratch"), given=(Path("/run-1/0000/prompt.md"),), agent_paths=(Path("/opt/agent"),))

    assert bubblewrap.arguments("/usr/bin/bwrap", confinement, ["agent", "-x"], status=7) == [
        "/usr/bin/bwrap",
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--ro-bind", "/usr", "/usr"),
        *("--ro-bind-try", "/bin", "/bin"),
        *("--ro-bind-try", "/sbin", "/sbin"),
        *("--ro-bind-try", "/lib", "/lib"),
        *("--ro-bind-try", "/lib32", "/lib32"),
        *("--ro-bind-try", "/lib64", "/lib64"),
        *("--ro-bind-try", "/etc/alternatives", "/etc/alternatives"),
        *("--ro-bind-try", "/etc/ca-certificates", "/etc/ca-certificates"),
        *("--ro-bind-try", "/etc/group", "/etc/group"),
        *("--ro-bind-try", "/etc/host.conf", "/etc/host.conf"),
        *("--ro-bind-try", "/etc/hosts", "/etc/hosts"),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        *("--ro-bind-try", "/etc/localtime", "/etc/localtime"),
        *("--ro-bind-try", "/etc/nsswitch.conf", "/etc/nsswitch.conf"),
        *("--ro-bind-try", "/etc/passwd", "/etc/passwd"),
        *("--ro-bind-try", "/etc/pki", "/etc/pki"),
        *("--ro-bind-try", "/etc/protocols", "/etc/protocols"),
        *("--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"),
        *("--ro-bind-try", "/etc/services", "/etc/services"),
        *("--ro-bind-try", "/etc/ssl/certs", "/etc/ssl/certs"),
        *("--ro-bind-try", "/etc/ssl/openssl.cnf", "/etc/ssl/openssl.cnf"),
        *("--dev", "/dev"),
        *("--proc", "/proc", "--remount-ro", "/proc"),
        *("--tmpfs", "/tmp"),
        *("--tmpfs", "/home/agent"),
        *("--ro-bind", "/opt/agent", "/opt/agent"),
        *("--bind", "/run-1/scratch", "/task"),
        *("--ro-bind", "/run-1/0000/prompt.md", "/task/prompt.md"),
        *("--remount-ro", "/"),
        *("--chdir", "/task"),
        *("--json-status-fd", "7"),
        *("--", "/bin/sh", "-c", 'ulimit -c 0; ulimit -f 524288; exec "$@"', "sh", "agent", "-x"),
    ]


def test_the_environment_is_built_from_empty() -> None:
    assert bubblewrap.environment({"KEY": "k"}, [Path("/opt/agent")]) == {
        "KEY": "k",
        "HOME": "/home/agent",
        "PATH": "/opt/agent/bin:/opt/agent:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def test_placeholders_are_filled_in_and_other_braces_stay() -> None:
    command = """agent -p 'read {prompt_file} in {workdir}' --max {seconds} --json '{"a": {"b": 1}, "c": "{other}"}' {} {{seconds}}"""

    assert bubblewrap.words(command, prompt_file="/task/prompt.md", seconds=60) == [
        "agent", "-p", "read /task/prompt.md in /task", "--max", "60", "--json", '{"a": {"b": 1}, "c": "{other}"}', "{}", "{60}",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["", "  ", "agent 'open", "a\0b"])
def test_a_command_that_is_none_is_named(command: str) -> None:
    with pytest.raises(UsageError, match="--command"):
        bubblewrap.words(command, prompt_file="p", seconds=1)


def test_variables_are_named_one_by_one() -> None:
    assert bubblewrap.passed_variables(["KEY"], {"KEY": "k", "OTHER": "o"}) == {"KEY": "k"}
    for name, why in (("KEY=k", "name a variable"), ("PATH", "its own"), ("LD_PRELOAD", "its own"), ("ABSENT", "not set here"), ("", "name a variable")):
        with pytest.raises(UsageError, match=why):
            bubblewrap.passed_variables([name], {"PATH": "/bin", "LD_PRELOAD": "x", "KEY": "k"})


def test_no_path_shows_a_home_state_or_sockets(tmp_path: Path) -> None:
    home, state, installed = tmp_path / "home", tmp_path / "repo" / ".autoresearch", tmp_path / "home" / "agent"
    for folder in (installed, state / "data"):
        folder.mkdir(parents=True)
    (tmp_path / "innocent").symlink_to(state)

    assert bubblewrap.shown_paths([installed], closed=[state], home=home) == (installed,)
    for path in (home, tmp_path, Path("/"), state, state / "data", tmp_path / "repo", tmp_path / "innocent", Path("/run"), Path("/tmp"), Path("/etc"), tmp_path / "none"):
        with pytest.raises(UsageError, match="--agent-path"):
            bubblewrap.shown_paths([path], closed=[state], home=home)


def test_a_program_that_the_sandbox_lacks_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "elsewhere").write_text("#!/bin/sh\n")
    (tmp_path / "elsewhere").chmod(0o755)
    (tmp_path / "bin" / "agent").symlink_to(tmp_path / "elsewhere")

    bubblewrap.refuse_unseen("sh", [])
    bubblewrap.refuse_unseen("/bin/sh", [])
    bubblewrap.refuse_unseen("agent", [tmp_path])
    for program, paths in (("no-such-agent", []), ("./agent", [tmp_path]), (str(tmp_path / "elsewhere"), []), ("agent", [tmp_path / "bin"])):
        with pytest.raises(AgentError, match="--agent-path"):
            bubblewrap.refuse_unseen(program, paths)


def test_flags_go_with_the_agent() -> None:
    nothing = Commanded(command=None, seconds=None, passed=(), paths=())
    nothing.check(wanted=False)
    with pytest.raises(UsageError, match="--agent command wants --command"):
        nothing.check(wanted=True)
    with pytest.raises(UsageError, match="--pass-env goes with --agent command"):
        Commanded(command=None, seconds=None, passed=("KEY",), paths=()).check(wanted=False)
    found = Commanded(command="sh -c true", seconds=None, passed=(), paths=()).options(closed=[])
    assert (found.command, found.seconds, found.passed, found.agent_paths) == ("sh -c true", 600, {}, ())


def test_without_bubblewrap_there_is_no_agent(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nfrom runner.agents.confined import try_sandbox\nfrom runner.errors import AgentError\n"
        f"try:\n    try_sandbox(Path({str(tmp_path)!r}))\nexcept AgentError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env={"PATH": "/nowhere", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)

    assert "there is no bubblewrap (bwrap) here" in done.stdout
    assert "apt-get install bubblewrap" in done.stdout


def test_a_sandbox_that_cannot_be_made_is_told_from_a_command_that_fails(tmp_path: Path) -> None:
    confined.try_sandbox(tmp_path)
    with pytest.raises(AgentError, match=r"bubblewrap makes no sandbox here: .*absent"):
        confined.try_sandbox(tmp_path / "absent")


# What is handed back ----------------------------------------------------------------------------


def test_an_edit_becomes_a_proposal(tmp_path: Path) -> None:
    found = propose(tmp_path, f"{EDIT}; printf '# Go deeper\\n\\nMore layers.\\nThey help.\\n' > idea.md; echo working; echo oh >&2; echo '{CLAUDE}'")

    assert found == Proposal(
        agent="command", idea="Go deeper", why="More layers.\nThey help.", source=DEEPER, token="0",
        spent=Spent(cost_usd=0.25, prompt_tokens=100, completion_tokens=7),
    )  # fmt: skip
    assert said(tmp_path) == f"working\n{CLAUDE}\n"
    assert said(tmp_path, "stderr.txt") == "oh\n"


def test_it_is_told_what_a_model_is_but_for_the_form(tmp_path: Path) -> None:
    history = [record(3, idea="wider"), record(4, agent="llm", idea="another's")]
    script = f"cat {{prompt_file}} > /tmp/p; cat /tmp/p program.md history.md; pwd; stat -c '%a %n' . ; ls; {EDIT}"
    found = agent(tmp_path, script).propose(CHAMPION, history)

    assert isinstance(found, Proposal)
    assert found.token == "4"
    text = said(tmp_path, number=4)
    for part in ("The brief.", "```python\nDEPTH = 2", "wider", "another's", "Edit train.py in place", "the idea in its first line", "You have 20 seconds", "/task\n700 .\n"):
        assert part in text
    assert "SEARCH" not in text
    assert text.endswith("history.md\nprogram.md\nprompt.md\ntrain.py\n")
    assert stat.S_IMODE((tmp_path / "command").stat().st_mode) == 0o700


def test_without_an_idea_the_change_is_summarised(tmp_path: Path) -> None:
    found = propose(tmp_path, EDIT)

    assert isinstance(found, Proposal)
    assert (found.idea, found.why, found.spent) == ("changed 1 line: DEPTH = 3", "", Spent())


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("true", "train.py is unchanged"),
        ("rm train.py", "train.py is gone"),
        ("ln -sf /etc/passwd train.py", "train.py is a link"),
        ("rm train.py; mkfifo train.py", "train.py is no regular file"),
        ("rm train.py; mkdir train.py", "train.py is no regular file"),
        (f"{EDIT}; ln train.py other.py", "train.py is one file under 2 names"),
        ("truncate -s 100M train.py", "train.py has 104,857,600 bytes; 1,048,576 are read"),
        ("printf '\\377' > train.py", "train.py is not UTF-8 text"),
        (f"{EDIT}; echo no key >&2; exit 3", "the command ended with exit code 3 (no key)"),
        (f"{EDIT}; kill -9 $$", "the command ended with exit code 137"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, script: str, why: str) -> None:
    assert refused(tmp_path, script).startswith(why)


def test_its_proposals_are_judged_and_recorded_like_anybodys(repository: Path) -> None:
    bench = Bench(repository)
    script = (
        "case $(grep -c ' | other | ' history.md) in "
        "0) echo 'SCORE = 1.5' > train.py; printf 'halve it\\nIt helps.' > idea.md;; "
        "1) ;; "
        "2) grep -q 'train.py is unchanged' history.md && echo 'SCORE = 1.9' > train.py;; "
        "esac"
    )
    proposer = agent(bench.folder, script)

    bench.run(proposer, Stops(trials=3))

    tried = [(one.token, one.verdict, one.idea, one.why) for one in bench.records if one.agent == "command"]
    assert tried == [
        ("0", Verdict.KEEP, "halve it", "It helps."),
        ("1", Verdict.INVALID, "(no proposal)", ""),
        ("2", Verdict.DISCARD, "changed 1 line: SCORE = 1.9", ""),
    ]
    assert run_git(repository, "log", "-1", "--format=%s", "autoresearch/t").endswith("halve it")


def test_an_idea_of_a_refused_proposal_is_recorded_with_its_cost(tmp_path: Path) -> None:
    found = propose(tmp_path, f"echo 'wider\n' > idea.md; echo '{CLAUDE}'")

    assert isinstance(found, Refusal)
    assert (found.idea, found.spent.cost_usd) == ("wider", 0.25)


@pytest.mark.parametrize(
    ("written", "idea", "why", "kind"),
    [
        ("go deeper\nit helps\nKIND: architecture", "go deeper", "it helps", Kind.ARCHITECTURE),
        ("KIND: schedule\nfall longer", "fall longer", "", Kind.SCHEDULE),
        ("- **Kind:** Init.\nsmaller\n\nsince", "smaller", "since", Kind.INIT),
        ("a\nkind: of a tweak\nKIND: no such", "a", "kind: of a tweak\nKIND: no such", Kind.OTHER),
        ("a\nKIND: novelty\nb", "a", "b", Kind.OTHER),
    ],
)
def test_a_line_of_the_idea_names_its_kind(tmp_path: Path, written: str, idea: str, why: str, kind: Kind) -> None:
    found = propose(tmp_path, f"{EDIT}; printf %s {shlex.quote(written)} > idea.md")

    assert isinstance(found, Proposal)
    assert (found.idea, found.why, found.kind) == (idea, why, kind)


def test_what_it_will_be_told_can_be_read_before(tmp_path: Path) -> None:
    history = [record(trial, idea="wider") for trial in range(3)]
    agent(tmp_path, EDIT).propose(CHAMPION, history)

    page = told_page(facts(CHAMPION, history), history, seconds=20, limit=100_000, count=len)
    assert page == said(tmp_path, "prompt.md", number=3)
    assert "Not kind other this time" in page


@pytest.mark.parametrize("prepared", ["ln -s /etc/passwd idea.md", "mkfifo idea.md", "truncate -s 1M idea.md", "printf '\\377' > idea.md", "echo > idea.md"])
def test_an_idea_that_cannot_be_read_is_none(tmp_path: Path, prepared: str) -> None:
    found = propose(tmp_path, f"{EDIT}; {prepared}")

    assert isinstance(found, Proposal)
    assert found.idea == "changed 1 line: DEPTH = 3"


def test_an_idea_cannot_play_tricks_on_a_terminal(tmp_path: Path) -> None:
    found = propose(tmp_path, f"{EDIT}; printf 'a\\033[31mb\\nc\\033]0;x\\007d\\n' > idea.md")

    assert isinstance(found, Proposal)
    assert (found.idea, found.why) == ("ab", "cd")


def test_a_set_id_file_is_gone_with_its_folder_and_only_text_comes_back(tmp_path: Path) -> None:
    found = propose(tmp_path, f"{EDIT}; chmod 6755 train.py; cp /bin/sh sh; chmod 4755 sh")

    assert isinstance(found, Proposal)
    assert found.source == DEEPER
    assert not [place for place in tmp_path.rglob("*") if place.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)]


def test_a_deep_and_closed_folder_is_removed(tmp_path: Path) -> None:
    deep = "i=0; while [ $i -lt 3000 ]; do mkdir d; cd d; i=$((i+1)); done; mkdir x; touch x/y; chmod 0 x"
    propose(tmp_path, f"{EDIT}; {deep}")  # which looks whether it is gone


def test_eight_proposals_that_came_to_no_trial_are_enough(tmp_path: Path) -> None:
    proposer = agent(tmp_path, "true")
    history = [record(0, Verdict.INVALID)] * FAILURES_IN_A_ROW
    assert isinstance(proposer.propose(CHAMPION, history), Refusal)  # of an earlier invocation

    with pytest.raises(AgentError, match="the last 8 proposals of sh came to no trial, at last: is unchanged"):
        proposer.propose(CHAMPION, [*history, *[record(at, Verdict.INVALID, reason="is unchanged") for at in range(FAILURES_IN_A_ROW)]])


def test_a_limit_in_dollars_wants_a_cost(tmp_path: Path) -> None:
    assert isinstance(propose(tmp_path, f"{EDIT}; echo '{CLAUDE}'", purse=Purse(1.0)), Proposal)
    with pytest.raises(AgentError, match="--max-usd"):
        propose(tmp_path, EDIT, purse=Purse(1.0))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (CLAUDE, Spent(cost_usd=0.25, prompt_tokens=100, completion_tokens=7)),
        (f"{CLAUDE}\n\n", Spent(cost_usd=0.25, prompt_tokens=100, completion_tokens=7)),
        (f"{CLAUDE}\nbye", Spent()),
        ('{"total_cost_usd": 0}', Spent(cost_usd=0.0)),
        ('{"total_cost_usd": -1, "usage": []}', Spent()),
        ('{"total_cost_usd": NaN, "usage": {"input_tokens": -1, "output_tokens": true}}', Spent()),
        ('{"total_cost_usd": 1e999}', Spent()),
        ('{"total_cost_usd": ' + "9" * 5000 + "}", Spent()),
        ('{"total_cost_usd": true}', Spent()),
        ("[" * 100_000, Spent()),
        ("[]", Spent()),
        ("", Spent()),
    ],
)
def test_the_cost_is_the_last_lines_if_that_is_one(line: str, expected: Spent) -> None:
    assert cost(line) == expected


def test_a_change_in_a_line() -> None:
    assert changed("a\nb\nc\n", "a\nx\ny\nc\n") == "changed 2 lines: x"
    assert changed("a\nb\n", "a\n") == "changed 1 line: b"
    assert changed("a\nb\n", "b\na\n") == "changed order or spaces alone"
    assert changed("a\n", "a") == "changed order or spaces alone"


# What it cannot do ------------------------------------------------------------------------------


def test_an_attempt_that_works_is_seen(tmp_path: Path) -> None:
    assert isinstance(found := attempted(tmp_path, "ls -A /home"), Proposal)
    assert (found.idea, found.why) == ("it worked", "agent")


def attempted(run: Path, attempt: str) -> Proposal | Refusal:
    # In a shell of its own: a failed redirection ends some shells.
    tell = "then echo it worked > idea.md; cat /tmp/out >> idea.md; else echo failed > idea.md; fi"
    return propose(run, f"{EDIT}; if sh -c {shlex.quote(attempt)} > /tmp/out; {tell}")


@pytest.mark.parametrize(
    "attempt",
    [
        "echo x > {outside}/canary",
        "touch {outside}/new",
        "echo x > /usr/x",
        "echo x > /etc/passwd",
        "echo x > /x",
        "mkdir /y",
        "echo x > prompt.md",
        "rm -f program.md && false || echo x > program.md",
        "mv train.py history.md",
        "cat /proc/sys/vm/swappiness > /proc/sys/vm/swappiness",
        "echo 1 > /proc/self/oom_score_adj",
        "mount -t tmpfs x /task",
        "mount -o remount,rw /usr",
        "umount prompt.md",
        "mknod /tmp/d b 8 0",
        "chown 12345 train.py",
        "hostname other",
        "ls {outside}",
        "ls {home}",
        "ls /root /home/*/.ssh",
        "ls /run /sys /var",
        "cat /etc/shadow",
        "kill -0 {pid}",
        "printenv AUTORESEARCH_CANARY",
        "cat /proc/*/environ | tr '\\0' '\\n' | grep CANARY",
        "truncate -s 1T big",
        "[ -w /proc/1/mem ] && dd if=/proc/{pid}/mem of=/dev/null count=1",
    ],
)
def test_hostile_attempts_fail(tmp_path: Path, attempt: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (run, outside):
        folder.mkdir()
    (outside / "canary").write_text("unharmed")
    os.environ["AUTORESEARCH_CANARY"] = "a secret that is passed to nobody"
    try:
        done = attempt.replace("{outside}", str(outside)).replace("{home}", str(Path.home())).replace("{pid}", str(os.getpid()))
        found = attempted(run, done)
    finally:
        del os.environ["AUTORESEARCH_CANARY"]

    assert isinstance(found, Proposal)
    assert (found.idea, found.why) == ("failed", "")
    assert (outside / "canary").read_text() == "unharmed"
    assert [place.name for place in outside.iterdir()] == ["canary"]


def test_it_has_the_variables_that_were_named_and_a_home_of_its_own(tmp_path: Path) -> None:
    propose(tmp_path, 'env | cut -d= -f1 | sort; touch "$HOME/x" /tmp/x; ls -A /home; ls -A "$HOME"', passed={"SOME_KEY": "abcdefgh-key"})

    assert said(tmp_path) == "HOME\nPATH\nPWD\nSOME_KEY\nagent\nx\n"


def test_a_key_comes_back_in_nothing(tmp_path: Path) -> None:
    passed, leak = {"SOME_KEY": "abcdefgh-key", "FLAG": "1"}, 'echo "$SOME_KEY" | tee /dev/stderr idea.md'

    found = propose(tmp_path, f"{EDIT}; {leak}", passed=passed)
    assert isinstance(found, Proposal)
    assert found.idea == "[SOME_KEY]"
    assert refused(tmp_path, f"{leak}; exit 1", passed=passed).startswith("the command ended with exit code 1 ([SOME_KEY])")
    assert refused(tmp_path, 'echo "# $SOME_KEY" >> train.py', passed=passed).startswith("train.py has the value of the variable SOME_KEY")
    assert not [place for place in tmp_path.rglob("*") if place.is_file() and "abcdefgh-key" in place.read_text()]


def test_no_command_line_shows_a_key(tmp_path: Path) -> None:
    mark = uuid4().hex
    ended = threading.Thread(target=agent(tmp_path, f"sleep 2; : {mark}", passed={"SOME_KEY": f"secret-{mark}"}).propose, args=(CHAMPION, []))
    ended.start()
    time.sleep(1)
    lines = alive(mark)
    ended.join()

    assert lines
    assert not any(f"secret-{mark}" in line for line in lines)


def test_it_finds_what_is_installed_in_an_agent_path_and_cannot_change_it(tmp_path: Path) -> None:
    run, installed = tmp_path / "run", tmp_path / "installed"
    (installed / "bin").mkdir(parents=True)
    run.mkdir()
    (installed / "bin" / "my-agent").write_text(f"#!/bin/sh\n{EDIT}\necho x > {installed}/bin/my-agent\nexit 0\n")
    (installed / "bin" / "my-agent").chmod(0o755)
    # Of our own PATH, never of the agent's folder.
    (installed / "bin" / "bwrap").write_text(f"#!/bin/sh\ntouch {tmp_path}/escaped\n")
    (installed / "bin" / "bwrap").chmod(0o755)

    found = CommandAgent(Options(command="my-agent", agent_paths=(installed,)), facts, run, limit=100_000, count=len).propose(CHAMPION, [])

    assert isinstance(found, Proposal)
    assert (installed / "bin" / "my-agent").read_text().startswith("#!/bin/sh")
    assert not (tmp_path / "escaped").exists()


def test_the_network_is_the_machines(tmp_path: Path) -> None:
    class Model(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"an answer")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Model) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{server.server_port}').read().decode())"
        propose(tmp_path, f"/usr/bin/python3 -c {shlex.quote(ask)}")

    assert said(tmp_path) == "an answer\n"


# What stays -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 & sleep 1001 {mark} &",
        "(setsid sh -c 'exec > /dev/null 2>&1 < /dev/null; while :; do sleep 1; done; : {mark}' &) ; sleep 0.3",
        "(trap '' TERM INT HUP; setsid nohup sh -c 'trap \"\" TERM; sleep 1000; : {mark}' > /dev/null 2>&1 &) ; sleep 0.3",
    ],
)
def test_a_process_in_the_background_dies_with_the_command(tmp_path: Path, script: str) -> None:
    mark = uuid4().hex
    began = time.monotonic()

    assert isinstance(propose(tmp_path, f"{EDIT}; {script.replace('{mark}', mark)}"), Proposal)
    assert alive(mark) == []
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000; : {mark}",
        "trap '' TERM INT HUP QUIT; while :; do sleep 1; done; : {mark}",
        "exec > /dev/null 2>&1; for i in 1 2 3 4 5 6 7 8 9 10; do (setsid sh -c 'sleep 1000; : {mark}' &); done; sleep 1000; : {mark}",
        "yes {mark}",
    ],
)
def test_the_deadline_ends_everything(tmp_path: Path, script: str) -> None:
    mark = uuid4().hex
    began = time.monotonic()

    assert refused(tmp_path, f"{EDIT}; {script.replace('{mark}', mark)}", seconds=2).startswith("the command was stopped: it was still running after 2 s")
    assert alive(mark) == []
    assert 2 <= time.monotonic() - began < 12


def test_endless_output_is_kept_at_both_ends(tmp_path: Path) -> None:
    found = propose(tmp_path, f"{EDIT}; echo first; yes | head -c 8000000; echo; echo '{CLAUDE}'; yes | head -c 3000000 >&2")

    assert found.spent.cost_usd == 0.25
    assert said(tmp_path).startswith("first\ny\n")
    assert said(tmp_path).endswith(f"{CLAUDE}\n")
    for name in ("stdout.txt", "stderr.txt"):
        assert "[... cut here ...]" in said(tmp_path, name)
        assert len(said(tmp_path, name)) <= confined.KEPT_BYTES + 100


def test_what_is_kept_of_a_stream() -> None:
    kept = Kept(most=8)
    for data in (b"ab", b"cdef", b"", b"gh"):
        kept.add(data)
    assert kept.text == "abcdefgh"
    kept.add(b"ij")
    assert kept.text == f"abcd{confined.CUT.decode()}ghij"


def test_a_folder_that_fills_up_is_noticed(tmp_path: Path) -> None:
    limits = {"most_bytes": 1 << 20, "most_files": 10}
    assert handback.too_much(tmp_path, **limits) is None
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    (tmp_path / "link").symlink_to("/")
    assert handback.too_much(tmp_path, **limits) is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "large").write_bytes(bytes(2 << 20))
    assert "more than 1 MiB" in (handback.too_much(tmp_path, **limits) or "")
    assert "or 1 files" in (handback.too_much(tmp_path, most_bytes=1 << 40, most_files=1) or "")
    assert "deep" in (handback.too_much(_deep(tmp_path / "d"), **{**limits, "most_files": 1000}) or "")


def _deep(folder: Path) -> Path:
    (folder / "/".join(["d"] * 50)).mkdir(parents=True)
    return folder


def test_a_command_is_stopped_when_its_folder_fills_up(tmp_path: Path) -> None:
    began = time.monotonic()
    reason = refused(tmp_path, "i=0; while :; do mkdir $i; touch $i/1 $i/2 $i/3 $i/4 $i/5 $i/6 $i/7 $i/8 $i/9 $i/10 $i/11 $i/12 $i/13 $i/14 $i/15 $i/16 $i/17 $i/18; i=$((i+1)); done")

    assert reason.startswith("the command was stopped: it left more than 512 MiB or 20,000 files")
    assert time.monotonic() - began < 20


def test_a_file_that_changes_while_it_is_looked_at_is_no_worry(tmp_path: Path) -> None:
    with pytest.raises(NotHandedBackError, match="gone"):
        handback.read_text(tmp_path, "train.py", 10)
    (tmp_path / "train.py").write_text("x" * 11)
    with pytest.raises(NotHandedBackError, match="11 bytes; 10 are read"):
        handback.read_text(tmp_path, "train.py", 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_runner_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    mark = uuid4().hex
    script = f"trap '' TERM INT; (setsid sh -c 'sleep 1000; : {mark}' &); while :; do sleep 1; done; : {mark}"
    program = f"import tests.test_command as t; from pathlib import Path; t.propose(Path({str(tmp_path)!r}), {script!r}, seconds=100)"
    runner = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, start_new_session=True)
    inside = f"sleep 1000; : {mark}"
    _until(lambda: any(line.startswith(f"sh -c {inside}") for line in alive(mark)))
    runner.send_signal(number)
    _, said_last = runner.communicate(timeout=30)

    _until(lambda: alive(mark) == [])
    assert (tmp_path / "command" / "scratch").exists() is (number == signal.SIGKILL)
    assert (b"KeyboardInterrupt" in said_last) is (number == signal.SIGINT)
    # The next invocation begins anew.
    assert isinstance(propose(tmp_path, EDIT), Proposal)


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
