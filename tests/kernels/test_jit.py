"""The cache of compiled kernels, the number of threads, and Python threads that call kernels at once.

What a process finds when it starts is tested in processes of their own, on a small package of a user's.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import prange
from numba.core import codegen

from rawgrad.kernels import _cache, _jit, _threads
from rawgrad.kernels._dispatch import BACKENDS
from rawgrad.kernels._errors import ArgumentError

ANNOUNCED = "rawgrad: compiling kernels for this processor as they are needed; "
#: A package whose kernel needs a constant, a compiled function and a vector function of other modules.
PACKAGE = {
    "__init__.py": "",
    "sizes.py": "SHIFT = 100\n",
    "helper.py": "from rawgrad.kernels._jit import serial\n\n@serial\ndef twice(x):\n    return 2 * x\n",
    "vectors.py": (
        "from rawgrad.kernels._simd import simd\n\n@simd\ndef fill(s, y, n, value):\n"
        "    with s.range(0, n) as i:\n        y[i] = y[i] + value.to(y.dtype) + 3\n"
    ),
    "kernels.py": (
        "import numpy as np\nfrom rawgrad.kernels._jit import serial\n"
        "from .helper import twice\nfrom .sizes import SHIFT\nfrom .vectors import fill\n\n"
        "@serial\ndef kernel(y):\n    for part in range(2):\n"
        "        fill(y[part * 4 :], 4, twice(float(part)) + SHIFT)\n\n"
        "def result():\n    y = np.zeros(8)\n    kernel(y)\n    return y[[0, 4]].tolist()\n"
    ),
}
PRINT = "from user.kernels import result; print(result())"
RIGHT = "[103.0, 105.0]\n"


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in ``folder``; an empty variable is removed."""
    environment = {**os.environ, "RAWGRAD_CACHE": str(folder / "cache"), **variables}
    environment = {name: value for name, value in environment.items() if value}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def printed(code: str, folder: Path, **variables: str) -> str:
    """What ``code`` prints; what it logs would be in the way, so there may be nothing."""
    done = python(code, folder, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder with the package ``user``."""
    (tmp_path / "user").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "user" / name).write_text(text)
    return tmp_path


def kept(folder: Path) -> list[Path]:
    return sorted(file for file in (folder / "cache").rglob("*") if file.is_file())


# ---- the cache


def test_a_second_process_compiles_nothing(user: Path) -> None:
    first = python(PRINT, user)
    assert (first.returncode, first.stdout) == (0, RIGHT), first.stderr
    assert first.stderr == f"{ANNOUNCED}kept in {user / 'cache' / 'numba'}\n"  # once, for two functions
    files = kept(user)
    assert [file.name.partition("-")[0] for file in files] == ["twice", "kernel"]
    assert {file.parent.parent.name for file in files} == {"user.helper", "user.kernels"}
    times = [file.stat().st_mtime_ns for file in files]
    assert printed(PRINT, user) == RIGHT
    assert (kept(user), [file.stat().st_mtime_ns for file in files]) == (files, times)


def test_a_changed_source_is_compiled_anew(user: Path) -> None:
    assert python(PRINT, user).stdout == RIGHT
    for name, old, new, right in (
        ("helper.py", "2 * x", "7 * x", "[103.0, 110.0]\n"),
        ("sizes.py", "100", "50", "[53.0, 55.0]\n"),
        ("vectors.py", "+ 3", "+ 4", "[104.0, 106.0]\n"),
        ("kernels.py", "fill(", "y[part * 4] = 1; fill(", "[104.0, 106.0]\n"),
    ):
        file = user / "user" / name
        before = file.read_text()
        file.write_text(before.replace(old, new))
        changed = python(PRINT, user)
        assert changed.stdout == right and ANNOUNCED in changed.stderr, name
        file.write_text(before)
    assert printed(PRINT, user) == RIGHT  # what was compiled of the first is there still


VARIANTS = """from functools import cache
import numpy as np
from rawgrad.kernels._jit import in_parts, serial

@cache
def adding(number):
    @serial
    def inner(x):
        return x + number

    @in_parts
    def parts(part, slot, y):
        y[part] = inner(part)
LONG

    @in_parts
    def more(part, slot, y):
        y[part] += inner(100)

    return parts, more

def result(number):
    y = np.zeros(3)
    parts, more = adding(number)
    parts(3, y)
    more(3, y)
    return y.tolist()
"""


def test_variants_compiled_by_different_processes(user: Path) -> None:
    """Numba names machine code by what a process counted so far, so two variants may have one name."""
    long = "        y[part] -= math.sin(y[part]) - math.sin(y[part])\n" * 50  # so that it is called, by its name
    (user / "user" / "variants.py").write_text("import math\n" + VARIANTS.replace("LONG\n", long))
    text = "from user.variants import result; print({})"
    expected = {number: [100 + 2 * number + part for part in range(3)] for number in (10, 20, 30)}
    for number, right in expected.items():
        assert python(text.format(f"result({number})"), user).stdout == f"{[float(n) for n in right]}\n"
    every = "*[x for number in (10, 20, 30) for x in result(number)]"
    assert printed(text.format(every), user).split() == [f"{float(n)}" for right in expected.values() for n in right]


def test_parts_run_once_each_and_apart() -> None:
    @_jit.in_parts
    def visit(part: int, slot: int, counts: Any, slots: Any, pair: Any) -> None:
        counts[part] += pair[0]
        slots[part] = slot
        for _ in range(pair[1]):  # long enough for other threads to take parts too
            counts[part] *= 1.0

    before = _threads.get_num_threads()
    for launch in (visit, visit.here):
        for threads in {1, before}:
            _threads.set_num_threads(threads)
            try:
                for parts in (0, 1, 2, 1000):
                    counts, slots = np.zeros(1000), np.full(1000, -1)
                    launch(parts, counts, slots, (3.0, 1000))
                    np.testing.assert_array_equal(counts, [3.0] * parts + [0.0] * (1000 - parts))
                    assert slots[:parts].min(initial=0) >= 0 and slots.max() < _jit.thread_slots()
                    assert (slots[parts:] == -1).all()
                    if launch is visit.here or threads == 1:
                        assert not slots[:parts].any()
            finally:
                _threads.set_num_threads(before)


def test_other_settings_are_compiled_apart(user: Path) -> None:
    assert python(PRINT, user).stdout == RIGHT
    narrow = {"RAWGRAD_VECTOR_BYTES": "16"} if _jit.vector_bytes() > 16 else {"NUMBA_OPT": "2"}
    for variables in (narrow, {"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_CPU_NAME": "generic"}):
        other = python(PRINT, user, **variables)
        assert other.stdout == RIGHT and ANNOUNCED in other.stderr
    assert printed(PRINT, user, RAWGRAD_THREADS="1", NUMBA_THREADING_LAYER="workqueue") == RIGHT  # do not matter to it


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a bit of the code": lambda data: data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:],
    "a bit of the checksum": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "something else": lambda data: b"\x80\x05" * 500,
}


def test_damaged_files_are_replaced(user: Path) -> None:
    assert python(PRINT, user).stdout == RIGHT
    files = kept(user)
    for damage, change in DAMAGES.items():
        for file in files:
            file.write_bytes(change(file.read_bytes()))
        done = python(PRINT, user)
        assert (done.returncode, done.stdout) == (0, RIGHT), damage
        assert done.stderr.count("cannot be used and is replaced: it is damaged") == 2, damage
    assert printed(PRINT, user) == RIGHT and kept(user) == files


def test_unreadable_files_are_no_error(user: Path) -> None:
    assert python(PRINT, user).stdout == RIGHT
    for file in kept(user):
        file.unlink()
        file.mkdir()  # as a folder it can be neither read nor replaced, even by root
    done = python(PRINT, user)
    assert (done.returncode, done.stdout) == (0, RIGHT)
    assert "cannot be used and is replaced: " in done.stderr and "cannot keep a compiled kernel in " in done.stderr
    assert kept(user) == []  # nor is anything left lying about


@pytest.mark.parametrize(
    "variables",
    [
        {"RAWGRAD_CACHE": "{folder}/user/sizes.py/cache"},  # below a file: nothing can be made there
        {"RAWGRAD_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "{folder}/user/sizes.py"},
    ],
)
def test_without_a_place_to_keep_anything(user: Path, variables: dict[str, str]) -> None:
    variables = {name: value.format(folder=user) for name, value in variables.items()}
    done = python(PRINT, user, **variables)
    assert (done.returncode, done.stdout) == (0, RIGHT)
    assert done.stderr == f"{ANNOUNCED}for this process alone: no cache folder can be written to\n"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("RAWGRAD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = _cache.cache_folder.__wrapped__("numba")
    assert folder.is_dir() and _cache.is_temporary(folder)
    _cache._temporary.pop().cleanup()


def test_processes_that_compile_the_same_at_once(user: Path) -> None:
    environment = {**os.environ, "RAWGRAD_CACHE": str(user / "cache")}
    command = [sys.executable, "-c", PRINT]
    several = [subprocess.Popen(command, cwd=user, env=environment, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0].decode() for process in several] == [RIGHT] * 4
    assert [file.suffix for file in kept(user)] == [".bin", ".bin"]
    assert printed(PRINT, user) == RIGHT


FULL_DISK = """
import errno, os, tempfile
class Full:
    def __init__(self, **arguments):
        self.file = made(**arguments)
        self.name = self.file.name
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def write(self, data):
        self.file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")
made, tempfile.NamedTemporaryFile = tempfile.NamedTemporaryFile, Full
"""


def test_a_full_disk(user: Path) -> None:
    done = python(FULL_DISK + PRINT, user)
    assert (done.returncode, done.stdout) == (0, RIGHT)
    assert done.stderr.count("No space left on device") == 2
    assert kept(user) == []


def test_a_disk_too_full_for_folders(user: Path) -> None:
    code = (
        "import os, pathlib\n"
        "from rawgrad.kernels._cache import cache_folder\n"
        "cache_folder('numba')\n"
        "def full(*a, **k): raise OSError(28, 'No space left on device')\n"
        "pathlib.Path.mkdir = full\n"
    )
    done = python(code + PRINT, user)
    assert (done.returncode, done.stdout) == (0, RIGHT)
    assert "compiled kernels cannot be kept: [Errno 28] No space left on device" in done.stderr


def test_only_what_has_a_source_is_kept(user: Path) -> None:
    """At a prompt, or changed while the process runs, nothing says later what the code was."""
    definition = "from rawgrad.kernels._jit import serial\n@serial\ndef one():\n    return 1\nprint(one())"
    done = python(definition, user)
    assert (done.returncode, done.stdout) == (0, "1\n") and kept(user) == []
    touched = "import os, user.helper; os.utime('user/helper.py'); print(user.helper.twice(4))"
    done = python(touched, user)
    assert (done.returncode, done.stdout) == (0, "8\n") and kept(user) == []
    (user / "program.py").write_text(definition)
    for announced in (1, 0):  # a program's own kernels are kept
        command = [sys.executable, "program.py"]
        environment = {**os.environ, "RAWGRAD_CACHE": str(user / "cache")}
        done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr.count(ANNOUNCED)) == ("1\n", announced)


def test_code_that_holds_addresses_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_jit, "_folder", lambda module: tmp_path)
    monkeypatch.setattr(codegen.CodeLibrary, "has_dynamic_globals", True)
    caplog.set_level(logging.DEBUG, "rawgrad")

    @_jit.serial
    def one() -> int:
        return 1

    assert one() == 1 and list(tmp_path.iterdir()) == []
    assert "holds addresses of this process" in caplog.text


def test_what_distinguishes_the_kernels_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants, kinds of arguments, and whether it is parallel; a constant may be of a few types only."""
    monkeypatch.setattr(_jit, "_folder", lambda module: tmp_path)

    def make(value: Any, decorate: Callable[..., Any] = _jit.serial) -> Any:
        def filled(x: Any) -> None:
            for i in prange(x.size):
                x[i] = value

        return decorate(filled)

    count = 0
    for value in (1, 2, 1.0, True):
        for dtype in (np.float32, np.float64):
            make(value)(x := np.zeros(3, dtype))
            assert (x == value).all()
            count += 1
            assert len(list(tmp_path.iterdir())) == count
    make(1, lambda function: _jit._compiled(function, parallel=True))(np.zeros(3))
    assert len(list(tmp_path.iterdir())) == count + 1
    make(1)(np.zeros(3))
    assert len(list(tmp_path.iterdir())) == count + 1
    with pytest.raises(AssertionError, match="closes over more than constants"):
        make(np.ones(2))(np.zeros(2))

    def adding(number: int) -> Any:  # functions that close over compiled ones are told apart by what these close over
        inner = _jit.serial(lambda: number)
        return _jit.serial(lambda: inner() + 10)

    assert [adding(1)(), adding(2)(), adding(1)()] == [11, 12, 11]
    assert len(list(tmp_path.iterdir())) == count + 5


def test_a_cache_that_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Numba does while it compiles for other purposes."""
    monkeypatch.setattr(_jit, "_folder", lambda module: tmp_path)

    @_jit.serial
    def one() -> int:
        return 1

    one._cache.disable()
    assert one() == 1 and list(tmp_path.iterdir()) == []
    one._cache.enable()
    one._cache.flush()
    one.recompile()
    assert one() == 1 and len(list(tmp_path.iterdir())) == 1
    assert one._cache.cache_path == str(tmp_path)


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*names: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    _jit._write(tmp_path / "a", b"content")
    assert _jit._read(tmp_path / "a") == b"content"
    monkeypatch.setattr(os, "replace", no)
    with pytest.raises(OSError, match="Permission denied"):
        _jit._write(tmp_path / "b", b"content")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


# ---- how many threads


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight processors, and nothing else that decides the number of threads."""
    for name in ("RAWGRAD_THREADS", "NUMBA_NUM_THREADS", *_threads._RANKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(_threads, "quota", lambda: None)
    return monkeypatch


def test_affinity(bare: pytest.MonkeyPatch) -> None:
    assert _threads.available_threads() == 8
    bare.delattr(os, "sched_getaffinity")
    bare.setattr(os, "cpu_count", lambda: 5)
    assert _threads.available_threads() == 5
    bare.setattr(os, "cpu_count", lambda: None)
    assert _threads.available_threads() == 1


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "what\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300001\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300001\n"}, None),
        ({"cpu.max": "100000 100000\n", "cpu/cpu.cfs_quota_us": "9\n", "cpu/cpu.cfs_period_us": "1\n"}, 1),
    ],
)
def test_the_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], processors: int | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert _threads.quota(tmp_path) == processors


def test_the_least_limit_decides(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(_threads, "quota", lambda: 3)
    assert _threads.limits() == {"processors that this process may use": 8, "the control group's quota": 3}
    assert _threads.available_threads() == 3
    bare.setattr(_threads, "quota", lambda: 100)
    assert _threads.available_threads() == 8


@pytest.mark.parametrize("name", _threads._RANKS)
def test_ranks_of_an_mpi_job_share(bare: pytest.MonkeyPatch, name: str) -> None:
    for ranks, threads in (("1", 8), ("2", 4), ("3", 2), ("16", 1), ("0", 8), ("4(x2)", 8), ("", 8)):
        bare.setenv(name, ranks)
        assert _threads.available_threads() == threads, ranks


def test_a_worker_of_a_pool_has_one(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(multiprocessing, "parent_process", lambda: object())
    assert _threads.available_threads() == 1
    bare.setenv("RAWGRAD_THREADS", "2")  # goes before everything
    assert _threads.available_threads() == 2


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", " "])
def test_wrong_numbers_in_the_environment(bare: pytest.MonkeyPatch, wrong: str) -> None:
    bare.setenv("RAWGRAD_THREADS", wrong)
    with pytest.raises(ArgumentError, match=f"RAWGRAD_THREADS must be an integer of at least 1; got '{wrong}'"):
        _threads.available_threads()
    assert issubclass(ArgumentError, ValueError)


@pytest.mark.parametrize("wrong", [0, -1, 10**6, True, 1.0, "2", None])
def test_wrong_numbers_of_threads(wrong: Any) -> None:
    before = _jit.get_num_threads()
    with pytest.raises(ArgumentError, match=f"set_num_threads: .* from 1 to {_threads.most_threads()}; got {wrong!r}"):
        _jit.set_num_threads(wrong)
    assert _jit.get_num_threads() == before


THREADS = """
import threading, numpy as np
from rawgrad.kernels._threads import get_num_threads, set_num_threads
said = [get_num_threads()]
import numba
from rawgrad.kernels._jit import in_parts
@in_parts
def used(part, slot, slots):
    slots[part] = slot
def count():
    slots = np.zeros(64, np.int64)
    used(64, slots)
    said.append(numba.get_num_threads() if get_num_threads() > 1 else int(slots.max()) + 1)
def elsewhere():
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
count(), elsewhere()
set_num_threads(1)
count(), elsewhere()
set_num_threads(get_num_threads() + 1)
said.append(get_num_threads())
count(), elsewhere()
print(said)
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_the_number_holds_in_every_python_thread(tmp_path: Path, layer: str) -> None:
    done = python(THREADS, tmp_path, RAWGRAD_THREADS="3", NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="")
    assert done.stdout == "[3, 3, 3, 1, 1, 2, 2, 2]\n", done.stderr


def test_a_number_that_numba_cannot_start_any_more(tmp_path: Path) -> None:
    most = _threads.processors()
    code = "import numba, rawgrad.kernels._jit as j; print(j.get_num_threads())"
    done = python(code, tmp_path, RAWGRAD_THREADS=str(most + 1), NUMBA_NUM_THREADS="")
    assert f"ArgumentError: RAWGRAD_THREADS is {most + 1}, but Numba starts at most {most} threads" in done.stderr
    assert printed(code, tmp_path, RAWGRAD_THREADS=str(most + 1), NUMBA_NUM_THREADS=str(most + 1)) == f"{most + 1}\n"
    assert printed(code, tmp_path, RAWGRAD_THREADS="", NUMBA_NUM_THREADS="1") == "1\n"  # Numba's own limit holds


# libgomp itself says, when it is loaded, how long its threads will spin.
@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_waiting_threads_soon_sleep(tmp_path: Path, given: dict[str, str], spins: str) -> None:
    code = (
        "import os; before = dict(os.environ); import numba, rawgrad.kernels._jit; "
        "print(numba.threading_layer(), dict(os.environ) == before)"
    )
    unset = {"GOMP_SPINCOUNT": "", "OMP_WAIT_POLICY": ""}
    done = python(code, tmp_path, OMP_DISPLAY_ENV="verbose", **{**unset, **given})
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("the threads are not those of GNU's OpenMP")
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
    assert done.stdout == "omp True\n"


def test_asking_for_threads_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, rawgrad as rg; rg.set_num_threads(1); print(rg.get_num_threads(), 'numba' in sys.modules); "
        "from rawgrad.kernels import _jit; import numba; print(_jit.get_num_threads(), numba.get_num_threads())"
    )
    assert printed(code, tmp_path, RAWGRAD_THREADS="") == "1 False\n1 1\n"


SPAWNED = """
import multiprocessing, sys
def work(n):
    from user.kernels import result
    from rawgrad.kernels._jit import get_num_threads
    return get_num_threads(), result()
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.map(work, [0]))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_kernels_in_a_worker_process(user: Path, method: str) -> None:
    (user / "program.py").write_text(SPAWNED)
    environment = {**os.environ, "RAWGRAD_CACHE": str(user / "cache")}
    environment.pop("RAWGRAD_THREADS", None)
    command = [sys.executable, "program.py", method]
    done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True)
    assert done.stdout == "[(1, [103.0, 105.0])]\n", done.stderr


def test_blas_has_one_thread(tmp_path: Path) -> None:
    code = (
        "import numpy; from threadpoolctl import threadpool_info as info\n"
        "def blas(): return {pool['num_threads'] for pool in info() if pool['user_api'] == 'blas'}\n"
        "before = blas(); import rawgrad.kernels._jit; print(before, blas())"
    )
    several = {"OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "2"}
    out = printed(code, tmp_path, **several)
    assert out.endswith(" {1}\n") or out == "set() set()\n"


AT_ONCE = """
import threading
import numpy as np
import rawgrad as rg
from rawgrad.kernels.gemm import gemm
from user.kernels import result
a, b = (np.random.default_rng(i).standard_normal((65, 65)).astype(np.float32) for i in (0, 1))
right, wrong = gemm(a, b).tobytes(), []
def work():
    for _ in range(200):
        if gemm(a, b).tobytes() != right or result() != [103.0, 105.0]:
            wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import numba
print(numba.threading_layer(), len(wrong))
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_two_python_threads_call_kernels_at_once(user: Path, layer: str) -> None:
    cache = os.environ.get("RAWGRAD_CACHE", "")
    done = python(AT_ONCE, user, NUMBA_THREADING_LAYER=layer, RAWGRAD_BACKEND="numba", RAWGRAD_CACHE=cache)
    assert done.stdout == f"{layer} 0\n", done.stderr


# ---- what is missing


def test_a_numba_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.2 or less')\n")
    code = (
        "import numpy as np, rawgrad as rg; x = rg.tensor(np.ones((2, 2)))\n"
        "try: x @ x\nexcept rg.BackendError as error: print(error)\n"
        "rg.backend('numpy'); print((x @ x).sum().item())"
    )
    assert printed(code, tmp_path, RAWGRAD_BACKEND="") == (
        "backend 'numba' cannot run here: Numba needs NumPy 1.2 or less\n8.0\n"
    )


def test_a_numba_that_does_not_compile(tmp_path: Path) -> None:
    code = "import rawgrad as rg; print(rg.backends()['numba'])"
    assert printed(code, tmp_path, NUMBA_DISABLE_JIT="1", RAWGRAD_BACKEND="") == "NUMBA_DISABLE_JIT is set\n"
    assert BACKENDS["numba"].problem() is None
