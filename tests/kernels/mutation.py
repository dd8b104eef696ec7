"""Proof of the proof: break the shipped CUDA kernels on purpose, and see that somebody notices.

Each mutant is one small change of one source: a barrier, a guard or an initialisation taken away, a
comparison or an index off by one.  The tests of the operations that use the source run on the emulator
until the first failure.  A mutant that passes them all is a survivor: either the change makes no
difference, or the tests have a hole.  ``mutation_reasons.json`` says which; survivors without a reason
there are marked.

Run it as a program, from the root of a checkout::

    python tests/kernels/mutation.py run [--jobs 2] [--only conv2d.cu] [--limit N]
    python tests/kernels/mutation.py report

``run`` adds to ``mutation_results.jsonl`` and tries only what is not in it: mutants are named by what their
line says, so a source that changed has new ones.  ``report`` writes ``docs/mutation-table.md``.  Each
mutant runs in a forked child of one warm process, with the mutated source in the place of the real one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("mutation_results.jsonl")
REASONS = Path(__file__).with_name("mutation_reasons.json")
TABLE = ROOT / "docs/mutation-table.md"
OPTIMIZERS = ("adagrad", "adam", "rmsprop", "sgd")  # which share test_optimizer_steps.py
TIME_LIMIT = 1800  # seconds: what loops for ever is caught; all tests of a header used everywhere take half of it

_DECLARED = re.compile(  # a declaration: its brackets hold sizes, not indices
    r"^\s*(?:alignas@\d+@\s*)?(?:static |constexpr |const )*[A-Za-z]\w*(?:<[^;=]*>)?\s+(?=\w+(?:\[|\s*,|\s*=[^=]|;))"
)
_CONSTANT_LOOP = re.compile(r"\bfor \(int (\w+) = [^;]*; \1 (?:<|<=|>|>=) (?:[A-Z][A-Z_]*|\d+);")
_INITIALISED = re.compile(
    r"\b((?:T|int|unsigned|bool|float|double|Vector<T>)\s+\w+(?:\[[^\]]*\])*)\s*=\s*"
    r"(0|1|T\(0\)|T\(1\)|\{\}|-?infinity<T>\(\)|true|false|nan_value<T>\(\))\s*;"
)
_COMPARISON = re.compile(r"(?<=[\w\])] )(<=|>=|<|>|==|!=)(?= [\w(\-])")
_TURNED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_WAITS = re.compile(  # statements that make threads, copies, products or blocks wait for each other
    r"(?<![\w:])(?:__syncthreads|__syncwarp|team_sync|cluster_\w+|wait\w*(?:<[^>;]*>)?|(?:commit|fence|arrive)\w*)"
    r"\([^;{}]*\);"
)


@dataclass(frozen=True)
class Mutant:
    """One change: ``before`` at (line, column) of ``file`` becomes ``after``."""

    file: str
    line: int
    column: int
    kind: str
    before: str
    after: str
    text: str
    occurrence: int  # among the file's lines of equal text
    version: str  # of the kernel that the line is in, or next before, "v2_smem_tile"; "" if there is none
    inside: bool  # of that kernel's own lines, which no other version runs

    @property
    def key(self) -> str:
        """What names the mutant, wherever its line moves to."""
        where = f"{Path(self.file).name}: {self.text.strip()}" + (
            f" (no. {self.occurrence})" if self.occurrence > 1 else ""
        )
        return f"{where}: {self.kind} at {self.column}: {self.before} -> {self.after}"


# ---- making mutants


def code_lines(source: str) -> Iterator[tuple[int, str]]:
    """The lines that the emulator's compiler sees, with comments blanked out, and their numbers."""
    blank = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), source, flags=re.DOTALL)
    skipping: list[bool] = []
    for number, line in enumerate(blank.splitlines(), 1):
        line = re.sub(r"//.*", "", line)
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
        if directive:
            word, rest = directive.groups()
            if word in ("if", "ifdef", "ifndef"):
                skipping.append((word == "ifndef" and "RAWGRAD_EMULATED" in rest) or "__CUDACC" in rest)
            elif word == "else":
                skipping[-1] = not skipping[-1]
            elif word == "endif":
                skipping.pop()
            continue
        if not any(skipping):
            yield number, line


def _closing(line: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(line)):
        depth += (line[i] in "([") - (line[i] in ")]")
        if depth == 0:
            return i
    return -1


def mutants_of_line(line: str) -> Iterator[tuple[int, str, str, str]]:
    """(column, kind, before, after) of each mutant of one line."""
    for found in _WAITS.finditer(line):
        yield found.start(), "barrier removed", found[0], ";"
    for found in re.finditer(r"\b(if|while)( constexpr)? \(", line):
        opening = found.end() - 1
        closing = _closing(line, opening)
        if closing < 0 or found[2]:
            continue
        condition = line[opening + 1 : closing]
        leaves = re.match(r"\)\s*(return|continue|break)", line[closing:])
        yield opening + 1, "guard removed", condition, "false" if leaves else "true"
    for found in re.finditer(r"(?<=[=(] )?([^=?,;(]+?) \? ", line):  # `condition ? value : other`
        condition = found[1].strip()
        if re.search(r"[<>=!]=?|&&|inside", condition) and "constexpr" not in line:
            start = found.start(1) + len(found[1]) - len(found[1].lstrip())
            yield start, "guard removed", condition, "true"
    if "template" not in line and "operator" not in line and "static_assert" not in line and "constexpr" not in line:
        constant = _CONSTANT_LOOP.search(line)  # an unrolled loop over registers is no guard
        for found in _COMPARISON.finditer(line):
            if constant and constant.start() < found.start() < constant.end():
                continue
            yield found.start(), "comparison off by one", found[0], _TURNED[found[0]]
    for found in _INITIALISED.finditer(line):
        if "constexpr" not in line and not re.search(r"for \($", line[: found.start()]):
            yield found.start(), "initialisation removed", found[0], f"{found[1]};"
    declared = _DECLARED.match(re.sub(r"alignas\((\d+)\)", r"alignas@\1@", line)) and "return" not in line
    for found in re.finditer(r"(?<=[\w\]])\[", line):
        closing = _closing(line, found.start())
        inner = line[found.end() : closing] if closing > 0 else ""
        before_name = line[: found.start()]
        in_declarator = declared and "=" not in before_name and "(" not in before_name.replace("alignas(16)", "")
        in_parameter = re.search(r"\(&\w*\)$|&\w+\)?$", before_name)
        if not inner.strip() or in_declarator or in_parameter or re.match(r"\s*(struct|template|using)\b", line):
            continue
        yield found.end(), "index off by one", inner, f"{inner} + 1"


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of a source."""
    name = str(path.relative_to(ROOT))
    source = path.read_text()
    lines = source.splitlines()
    # Where each version's kernel begins; what stands before it, in its section or as its helper, belongs to it.
    plain = re.sub(r"//.*", "", source)
    kernels = re.finditer(r"__global__[^;{]*?\b\w+?_(v\d+_\w+)\(", plain)
    begins = [(plain.count("\n", 0, kernel.end()) + 1, kernel[1]) for kernel in kernels]
    seen: Counter[str] = Counter()
    found = []
    for number, line in code_lines(source):
        text = lines[number - 1]
        seen[text.strip()] += 1
        ended = [version for begin, version in begins if begin <= number]
        inside = bool(ended) and not any(lines[i].startswith("}") for i in range(_begin(begins, number), number - 1))
        following = [version for begin, version in begins if begin > number]
        version = ended[-1] if inside else following[0] if following else ""
        changes = dict.fromkeys(mutants_of_line(line))
        found += [Mutant(name, number, *change, text, seen[text.strip()], version, inside) for change in changes]
    return found


def _begin(begins: list[tuple[int, str]], number: int) -> int:
    """The line of the last kernel that begins before ``number``."""
    return max((begin for begin, _ in begins if begin <= number), default=0)


def mutated(mutant: Mutant) -> str:
    """The source with the change."""
    lines = (ROOT / mutant.file).read_text().splitlines()
    line = lines[mutant.line - 1]
    end = mutant.column + len(mutant.before)
    assert line[mutant.column : end] == mutant.before, f"{mutant} does not fit {line!r}"
    lines[mutant.line - 1] = line[: mutant.column] + mutant.after + line[end:]
    return "\n".join(lines) + "\n"


def sources() -> list[Path]:
    """The shipped sources."""
    return [*sorted((ROOT / "kernels").glob("[a-z]*/*.cu")), *sorted((ROOT / "kernels/_cuda").glob("*.cuh"))]


def users_of(path: Path) -> list[str]:
    """The operations whose sources include ``path``, directly or not; the quickest tests first."""
    if path.suffix == ".cu":
        return [path.parent.name]

    def includes(text: str) -> set[str]:
        direct = set(re.findall(r'#include "(\w+\.cuh)"', text))
        return direct.union(*(includes((ROOT / "kernels/_cuda" / name).read_text()) for name in direct))

    users = [p for p in sorted((ROOT / "kernels").glob("[a-z]*/*.cu")) if path.name in includes(p.read_text())]
    return list(dict.fromkeys(p.parent.name for p in sorted(users, key=lambda p: p.stat().st_size)))


def tests_of(operation: str) -> list[Path]:
    """The file of its name, and those beside it that say that they test it too."""
    own = ROOT / f"tests/kernels/test_{operation}.py"
    marked = f'pytestmark = pytest.mark.operation("{operation}")'
    others = (path for path in sorted(own.parent.glob(f"test_{operation}_*.py")) if marked in path.read_text())
    return [own, *others]


# ---- running them


class OfOtherVersions:
    """A plugin of pytest that leaves out the tests of versions which do not run the mutated line."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep what names no version, or the mutant's."""

        def concerned(item: Any) -> bool:
            version = getattr(getattr(item, "callspec", None), "params", {}).get("version")
            return version is None or str(version).startswith(self._mutant.version)

        if self._mutant.inside:
            items[:] = [item for item in items if concerned(item)]


class LikelyFirst:
    """A plugin of pytest that runs the tests of some names alone, in the order of these."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep the tests of these names."""
        items[:] = sorted((i for i in items if i.name in self._names), key=lambda i: self._names.index(i.name))


def run_tests(mutant: Mutant, likely: list[str], output: Path) -> int:
    """In a child: put the mutated source in place, and run the tests of its users until one fails."""
    import pytest

    import rawgrad.kernels._cuda.source as source_module
    import rawgrad.kernels._emulator.build as build_module
    from rawgrad.kernels import _launch

    # Each instance is compiled alone, until the last round: most mutants die of the first one.
    together = _launch.Kernel.unit
    _launch.Kernel.unit = lambda self, expression: [expression]  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        original = ROOT / mutant.file
        if original.suffix == ".cu":
            place = Path(folder) / original.name
            for kernel in _launch.KERNELS.values():
                if kernel.path.resolve() == original:
                    kernel.path = place
        else:  # the headers of a folder belong together
            headers = Path(folder) / "_cuda"
            headers.mkdir()
            for header in (ROOT / "kernels/_cuda").glob("*.cuh"):
                (headers / header.name).write_text(header.read_text())
            place = headers / original.name
            source_module.HEADERS = build_module.HEADERS = headers
        place.write_text(mutated(mutant))
        users = users_of(original)
        names = users + ["optimizer_steps"] * any(name in OPTIMIZERS for name in users)
        tests = [str(path) for name in names for path in tests_of(name)]
        functions = list(dict.fromkeys(name.partition("[")[0] for name in likely))
        some = [f"{path}::{f}" for path in tests for f in functions if f"\ndef {f}(" in Path(path).read_text()]
        options = [
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--assert=plain",
        ]
        options += ["--hypothesis-profile=mutants"]
        options += [
            "-m",
            "not gpu",
            "--no-header",
            "--tb=short",
            f"--rootdir={ROOT}",
            "-c",
            str(ROOT / "pyproject.toml"),
        ]
        said = io.StringIO()
        code = 5  # pytest's for: no test was selected
        # First the tests that caught other mutants of this source; then those of the version that was mutated, which
        # compile nothing else; then all that may run the line.
        # Comparisons with torch are left out: importing it takes longer than all the rest.
        others = OfOtherVersions(mutant)
        rounds: list[tuple[list[str], str, list[Any]]] = []
        rounds += [(some, "emulated", [others, LikelyFirst(likely)])] if some else []
        rounds += [(tests, f"emulated and {mutant.version}", [others])] if mutant.version else []
        rounds += [(tests, "emulated", [others])]
        for number, (paths, selected, plugins) in enumerate(rounds, 1):
            if code not in (0, 5):
                break
            if number == len(rounds):
                _launch.Kernel.unit = together  # type: ignore[method-assign]
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = int(pytest.main([*options, "-k", f"{selected} and not torch", *paths], plugins=plugins))
        output.write_text(said.getvalue())
    return code


def judge(code: int | None, said: str) -> str:
    """What happened to a mutant."""
    if code is None:
        return "caught: does not end"
    if code == 0:
        return "survived"
    if "does not compile" in said:
        return "caught by the emulator" if "-Werror=" in said else "stillborn"
    if "of the emulator" in said:
        return "caught by the emulator"
    if code == 1:
        return "caught by a test"
    return "caught: crash" if code < 0 else f"error {code}"


def try_mutant(mutant: Mutant, catching: Counter[str]) -> dict[str, Any]:
    """Fork, run, and say what happened; ``catching`` counts the tests that caught mutants of this source."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            code = 70
            try:
                code = run_tests(mutant, [test for test, _ in catching.most_common(8)], output)
            except BaseException:
                output.write_text(traceback.format_exc())
            finally:
                os._exit(code)
        ended: int | None = None
        while time.perf_counter() - start < TIME_LIMIT:
            process, status = os.waitpid(child, os.WNOHANG)
            if process:
                ended = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.02)
        else:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        said = output.read_text() if output.exists() else ""
    failed = re.search(r"^(?:FAILED|ERROR) \S*?::(\S+)", said, re.MULTILINE)
    catching.update([failed[1]] if failed else [])
    finding = re.search(r"of the emulator\n(?:E\s+)?1\. ([^:\n]+)", said)
    return {
        "key": mutant.key,
        "verdict": judge(ended, said),
        "test": failed[1] if failed else "",
        "finding": finding[1].strip() if finding else "",
        "seconds": round(time.perf_counter() - start),
    }


def warm_up() -> None:
    """Load what every child needs, once."""
    sys.path.insert(0, str(ROOT / "tests/kernels"))
    import importlib

    for name in ("hypothesis", "pytest", "scipy.special", "scipy.linalg", "scipy.signal", "_pytest.assertion.rewrite"):
        importlib.import_module(name)
    import hypothesis

    # The first failing example is enough: none is made smaller.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    checks = (hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow)
    hypothesis.settings.register_profile(
        "mutants", deadline=None, max_examples=30, derandomize=True, database=None, phases=phases,
        suppress_health_check=checks, report_multiple_bugs=False,
    )  # fmt: skip

    for path in (ROOT / "kernels").glob("[a-z]*/cuda.py"):
        importlib.import_module(f"rawgrad.kernels.{path.parent.name}.cuda")


def run(results: Path, jobs: int, only: str, limit: int | None) -> None:
    """Try every mutant that ``results`` does not hold yet."""
    os.environ["RAWGRAD_CACHE"] = tempfile.mkdtemp(prefix="rawgrad-mutants-")
    done = {entry["key"] for entry in read(results)}
    catching: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in read(results):
        if entry["test"]:
            catching[entry["key"].partition(":")[0]][entry["test"]] += 1
    waiting = [m for path in sources() if only in path.name for m in mutants_of(path) if m.key not in done]
    waiting = sorted(waiting, key=turn)[:limit]
    print(f"{len(waiting)} mutants to try, {len(done)} done", flush=True)
    warm_up()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool, results.open("a") as file:
        futures = [pool.submit(try_mutant, m, catching[Path(m.file).name]) for m in waiting]
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            entry = future.result()
            file.write(json.dumps(entry) + "\n")
            file.flush()
            print(f"{number}/{len(waiting)} {entry['verdict']:24} {entry['seconds']:6} s  {entry['key']}", flush=True)


def turn(mutant: Mutant) -> tuple[int, str]:
    """What the mutants are sorted by: kinds by weight, each in an order of chance, so that a part is a sample."""
    kinds = ("barrier removed", "initialisation removed", "guard removed", "index off by one", "comparison off by one")
    return kinds.index(mutant.kind), hashlib.sha256(mutant.key.encode()).hexdigest()


def read(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


# ---- the report


def report(results: Path, target: Path) -> None:
    """Write the table."""
    every = {m.key: m for path in sources() for m in mutants_of(path)}
    latest = {e["key"]: e for e in read(results) if e["key"] in every}
    entries = [{**asdict(every[key]), **e} for key, e in latest.items() if e["verdict"] != "stillborn"]
    kinds_left = Counter(every[key].kind for key in every.keys() - latest.keys())
    left = ", ".join(f"{count} of the kind {kind}" for kind, count in kinds_left.items())
    reasons = json.loads(REASONS.read_text()) if REASONS.exists() else {}
    by_file: dict[str, Counter] = defaultdict(Counter)
    by_kind: dict[str, Counter] = defaultdict(Counter)
    for entry in entries:
        by_file[entry["file"]][entry["verdict"]] += 1
        by_kind[entry["kind"]][entry["verdict"]] += 1
    total: Counter = sum(by_file.values(), Counter())
    survivors = [e for e in entries if e["verdict"] == "survived"]
    equivalent = [e for e in survivors if reasons.get(e["key"], "").startswith("equivalent")]
    count = sum(total.values())
    real = count - len(equivalent)
    caught = count - len(survivors)
    lines = [
        "# Mutants of the CUDA kernels",
        "",
        "Written by `python tests/kernels/mutation.py report`, after `python tests/kernels/mutation.py run`; what was",
        "found is kept in `tests/kernels/mutation_results.jsonl`.",
        "Each mutant is one change of one source: a barrier, a guard or an initialisation taken away, a comparison",
        "or an index off by one. The operation's tests run on the emulator until one fails. Changes that do not",
        "compile are not counted.",
        "",
        *([f"{sum(kinds_left.values())} of {len(every)} have not been tried yet: {left}.", ""] if left else []),
        f"**{caught} of {count} mutants are caught, {100 * caught / max(count, 1):.1f} %;** "
        f"of the {real} that change what a kernel does, {100 * caught / max(real, 1):.1f} %.",
        "",
    ]
    lines += [*_table("kind", by_kind), "", *_table("source", by_file)]
    lines += ["", "## Survivors", "", "| source | line | change | reason |", "|---|---|---|---|"]
    for entry in sorted(survivors, key=lambda e: (e["file"], e["line"], e["column"])):
        change = f"{entry['kind']}: `{entry['before']}` → `{entry['after']}` in `{entry['text'].strip()}`".replace(
            "|", "\\|"
        )
        reason = reasons.get(entry["key"], "**not explained**")
        lines.append(f"| {Path(entry['file']).name} | {entry['line']} | {change} | {reason} |")
    target.write_text("\n".join(lines) + "\n")
    print(next(line for line in lines if line.startswith("**")))


def _table(name: str, counts: dict[str, Counter]) -> list[str]:
    verdicts = ("caught by the emulator", "caught by a test", "caught: crash", "caught: does not end", "survived")
    lines = [f"| {name} | mutants | {' | '.join(verdicts)} |", "|---" * (len(verdicts) + 2) + "|"]
    for key in sorted(counts):
        row = counts[key]
        lines.append(f"| {key} | {sum(row.values())} | {' | '.join(str(row[v]) for v in verdicts)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("list", "run", "report"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="sources whose names contain this")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    if options.action == "list":
        for path in sources():
            for mutant in mutants_of(path):
                if options.only in path.name:
                    print(mutant.key)
    elif options.action == "run":
        run(options.results, options.jobs, options.only, options.limit)
    else:
        report(options.results, TABLE)


if __name__ == "__main__":
    main()
