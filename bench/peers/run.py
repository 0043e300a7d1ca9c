#!/usr/bin/env python3
"""What users have today beside loglinear, measured in one go on the same threads. README.md has the preparations.

Every peer is a process of its own that first compares its result with a plain definition and then prints medians. A
peer that is not installed is left out with a line on standard error; one that computes something else makes the exit
code 1.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
SCALAR, GATED = "H=16,G=1,K=128,V=64", "H=16,G=16,K=128,V=128"
CACHE = 16384  # tokens before a decoding step: one live state
FOUR = 15360  # the last position before that with four live states

# peer, the power of T that its time grows with, and the row of ours that it is compared with
FORWARD = {
    "ggml": [
        ("ssm_scan", 1, "scalar_decay"),
        ("gated_delta_net", 1, "gated_delta"),
        ("flash_f16", 2, "scalar_decay"),
        ("flash_f32", 2, "scalar_decay"),
    ],
    "torch": [
        ("log_linear_masks", 1.3, "scalar_decay"),
        ("log_linear_tree", 1.1, "scalar_decay"),
        ("log_linear_paper", 1.5, "scalar_decay"),
        ("ssd", 1.1, "scalar_decay, one level"),
        ("softmax", 2, "scalar_decay"),
        ("sdpa", 2, "scalar_decay"),
        ("sdpa_bf16", 2, "scalar_decay, bfloat16"),
    ],
}
TRAIN = {
    "torch": [
        ("log_linear_masks_train", 1.4, "scalar_decay"),
        ("log_linear_tree_train", 1.1, "scalar_decay"),
        ("log_linear_paper_train", 1.8, "scalar_decay"),
    ]
}
STEP = {
    "ggml": [
        ("ssm_scan_step", 0, "scalar_decay"),
        ("gated_delta_net_step", 0, "gated_delta"),
        ("flash_f16_step", 0, "scalar_decay"),
    ]
}


class Session:
    """Starts the processes one after the other and collects their rows."""

    def __init__(self, options):
        self.options = options
        self.rows = []  # table, peer, T, ms and what else the peer says
        self.failed = False
        threads = str(options.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self.environment = {**os.environ, **dict.fromkeys(names, threads), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment["LOGLINEAR_PEERS"] = str(options.peers)

    def process(self, command):
        """Its standard output. What it printed before it failed has been checked, so it counts."""
        command = [*shlex.split(self.options.prefix), *map(str, command)]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            self.failed = True
            print(f"[run] exit code {done.returncode}: {shlex.join(command)}", file=sys.stderr)
        return done.stdout

    def ours(self, table, arguments, T=None, note=""):
        program = pathlib.Path(self.options.program)
        command = [program, "bench", *arguments, "--threads", self.options.threads, "--seconds", "0.5", "--json"]
        output = self.process(command)
        for row in json.loads(output) if output else []:
            name = f"loglinear {row['rule']}" + (", one level" if row["L"] == 1 else "")
            name += (", bfloat16" if row["dtype"] == "bf16" else "") + note
            self.rows.append(dict(row, table=table, peer=name, T=T or row["T"]))

    def peer(self, table, label, command, T, cases):
        wanted = [case for case, power, _ in cases if not self.too_long(label, case, power, T)]
        output = self.process([*command, self.options.threads, T, *wanted]) if wanted else ""
        for line in output.splitlines():
            row = json.loads(line)
            self.rows.append(dict(row, table=table, peer=f"{label} {row['peer'].split(' ', 1)[1]}"))

    def too_long(self, label, case, power, T):
        """Going by the longest run so far."""
        before = [r for r in self.rows if r["peer"] == f"{label} {case}"]
        if not before:
            return False
        last = max(before, key=lambda r: r["T"])
        return last["ms"] * (T / last["T"]) ** power > 1e3 * self.options.limit

    def find(self, table, peer, T):
        return next((r["ms"] for r in self.rows if (r["table"], r["peer"], r["T"]) == (table, peer, T)), None)


def measure(session, peers):
    options = session.options

    def shapes(shape, extra=""):
        return [x for T in options.lengths for x in ("--shape", f"T={T},{shape}{extra}")]

    scalar, gated = ["op", "--rule", "scalar_decay", "--form"], ["op", "--rule", "gated_delta", "--form"]
    session.ours("forward", [*scalar, "forward", *shapes(SCALAR), *shapes(SCALAR, ",L=1")])
    session.ours("forward", [*scalar, "forward", "--dtype", "bf16", *shapes(SCALAR)])
    session.ours("forward", [*gated, "forward", *shapes(GATED)])
    session.ours("backward", [*scalar, "backward", *shapes(SCALAR)])
    for rule, shape in (("scalar_decay", SCALAR), ("gated_delta", GATED)):
        command = ["step", "--rule", rule, "--shape", shape, "--position"]
        session.ours("step", [*command, CACHE], CACHE)
        session.ours("step", [*command, FOUR], CACHE, ", 4 live states")
    # A training step is both; the backward computes again what it needs of the forward.
    for row in [r for r in session.rows if r["table"] == "backward"]:
        ahead = session.find("forward", row["peer"], row["T"])
        if ahead is not None:
            session.rows.append(dict(row, table="forward and backward", form="both", ms=ahead + row["ms"]))

    for T in options.lengths:
        for label, kind, command in peers:
            print(f"[run] {label}, T = {T}", file=sys.stderr)
            session.peer("forward", label, command, T, FORWARD[kind])
            for case in TRAIN.get(kind, []):
                session.peer("forward and backward", label, command, T, [case])
    for label, kind, command in peers:
        if kind in STEP:
            session.peer("step", label, command, CACHE, STEP[kind])


def compared_with(peer):
    """The row of ours that a peer's row is divided by."""
    for cases in (*FORWARD.values(), *TRAIN.values(), *STEP.values()):
        for case, _, ours in cases:
            if peer.endswith(" " + case):
                return f"loglinear {ours}"
    return None


def table_lines(session):
    for table in ("forward", "forward and backward", "step"):
        rows = [r for r in session.rows if r["table"] == table]
        lengths = sorted({r["T"] for r in rows})
        if not rows:
            continue
        names = list(dict.fromkeys(r["peer"] for r in rows))
        title = f"one token after {CACHE}" if table == "step" else table
        heads = "" if table == "step" else " | ".join(f"T = {T}" for T in lengths)
        yield f"| {title}, ms (times ours) | {heads} |"
        yield "| --- |" + " ---: |" * len(lengths)
        for name in names:
            cells = []
            for T in lengths:
                ms = session.find(table, name, T)
                ours = session.find(table, compared_with(name), T)
                cell = "-" if ms is None else f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}"
                cells.append(cell + (f" ({ms / ours:.1f})" if ms is not None and ours else ""))
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""


def goals(session):
    """What was set out to be reached: text, table, row of ours, cases of the peers, T, at least so many times."""
    scalar, one, gated = "loglinear scalar_decay", "loglinear scalar_decay, one level", "loglinear gated_delta"
    for T in session.options.lengths:
        if T >= 4096:
            yield "ggml's Mamba-2 scan", "forward", scalar, ("ssm_scan",), T, 1
            yield "ggml's gated delta net", "forward", gated, ("gated_delta_net",), T, 1
            yield "ggml's Mamba-2 scan, ours with one level", "forward", one, ("ssm_scan",), T, 1.5
        for name, case in (("the authors' in torch", "log_linear_paper"), ("ours in torch", "log_linear_masks")):
            if T in (4096, 16384):
                yield f"chunked log-linear, {name}", "forward", scalar, (case,), T, 25 if T == 4096 else 40
            if T == 16384:
                yield "that, forward and backward", "forward and backward", scalar, (case + "_train",), T, 50
        if T == 16384:
            yield "ggml's flash attention", "forward", scalar, ("flash_f16", "flash_f32"), T, 50
        if T >= 512:
            best = ("flash_f16", "flash_f32", "softmax", "sdpa")
            factor = 20 if T == 16384 else 1
            yield "the best softmax attention", "forward", scalar, best, T, factor
            yield "softmax attention, both bfloat16", "forward", f"{scalar}, bfloat16", ("sdpa_bf16",), T, factor

    four = f"{gated}, 4 live states"
    yield "ggml's gated delta step, ours with 4 live states", "step", four, ("gated_delta_net_step",), CACHE, 0.77


def goal_lines(session):
    yield "| goal: times faster than | T | at least | measured |"
    yield "| --- | ---: | ---: | ---: |"
    for text, table, ours, cases, T, factor in goals(session):
        mine = session.find(table, ours, T)
        rows = [r for r in session.rows if r["table"] == table and r["T"] == T]
        theirs = [r for r in rows if any(r["peer"].endswith(" " + case) for case in cases)]
        if not theirs or not mine:
            continue
        best = min(theirs, key=lambda r: r["ms"])
        ratio = best["ms"] / mine
        verdict = "" if ratio >= factor else ", missed"
        yield f"| {text} | {T} | {factor} | {ratio:.1f} ({best['peer']}){verdict} |"


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")] or [platform.machine()]
    flags = next((x.split() for x in lines if x.startswith("flags")), [])
    sets = (("avx512_bf16", "AVX512-BF16"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
    best = next((name for flag, name in sets if flag in flags), "neither AVX2 nor AVX-512")
    return f"{len(names)} cores of {names[0]} ({best})"


def main():
    def lengths(text):
        values = sorted(int(x) for x in text.split(","))
        if values[0] < 128 or any(T & (T - 1) for T in values):
            raise argparse.ArgumentTypeError("lengths are powers of two, 128 or more")
        return values

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--lengths", type=lengths, default=[512, 1024, 4096, 16384], metavar="T,T,...")
    option("--threads", type=int, default=os.cpu_count())
    option("--json", metavar="FILE", help="all rows, the machine and the command")
    option("--program", default=ROOT / "build/loglinear", metavar="PATH")
    option("--peers", default=ROOT / "build/peers", metavar="FOLDER", help="what prepare.sh filled")
    option("--debian-python", default="/usr/bin/python3", metavar="PATH", help="has Debian's python3-torch")
    option("--limit", type=float, default=60, metavar="SECONDS", help="leave out runs that would take longer")
    option("--prefix", default="", metavar="COMMAND", help="put before every process, for instance 'nice -n -10'")
    options = parser.parse_args()

    session = Session(options)
    peers = []
    for label, kind, command in (
        ("ggml", "ggml", [pathlib.Path(options.peers) / "bench_ggml"]),
        ("torch (Debian)", "torch", [options.debian_python, HERE / "torch_peer.py"]),
        ("torch (PyPI)", "torch", [pathlib.Path(options.peers) / "torch/bin/python", HERE / "torch_peer.py"]),
    ):
        there = os.access(command[0], os.X_OK)
        if there and kind == "torch":
            there = subprocess.run([command[0], "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0
        if there:
            peers.append((label, kind, command))
        else:
            print(f"[run] {label} is not installed (README.md): left out", file=sys.stderr)
    if not os.access(options.program, os.X_OK):
        sys.exit(f"[run] {options.program}: no such program; ./run build makes it")

    start = time.monotonic()
    measure(session, peers)
    about = f"{machine()}, {options.threads} threads, {time.strftime('%Y-%m-%d')}, {time.monotonic() - start:.0f} s"
    versions = sorted({f"{r['peer'].rsplit(' ', 1)[0]} {r['version']}" for r in session.rows if "version" in r})
    print("\n".join([about, *versions, "", *table_lines(session), *goal_lines(session)]))
    if options.json:
        content = {"machine": about, "command": shlex.join(sys.argv), "rows": session.rows}
        pathlib.Path(options.json).write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(1 if session.failed else 0)


main()
