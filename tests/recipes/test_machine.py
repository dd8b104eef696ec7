"""What is recorded about the machine, on planted systems."""

from __future__ import annotations

import importlib.machinery
import subprocess
import types

import pytest

from rawgrad.recipes import machine


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_quota_of_both_generations_of_control_groups(monkeypatch, files, cores):
    monkeypatch.setattr(machine, "_text", files.get)
    assert machine.machine()["core_quota"] == cores


def test_clocks_and_driver_where_the_system_tells(monkeypatch):
    scaling = "/sys/devices/system/cpu/cpu0/cpufreq/"
    files = {
        "/proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2700.4\n\nprocessor : 1\ncpu MHz\t\t: 3100.0\n",
        f"{scaling}cpuinfo_max_freq": "3800000",
        f"{scaling}scaling_governor": "performance",
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024",
    }
    monkeypatch.setattr(machine, "_text", files.get)
    found = machine.machine()
    assert found["clocks"] == {"mhz": 2900, "max_mhz": 3800, "governor": "performance"}
    assert found["gpu_driver"] == "550.54.15"
    monkeypatch.setattr(machine, "_text", {}.get)
    found = machine.machine()
    assert found["clocks"] == {"mhz": None, "max_mhz": None, "governor": None} and found["gpu_driver"] is None


def test_command_line_tells_the_variables_that_matter(monkeypatch):
    monkeypatch.setattr(machine.sys, "argv", ["/somewhere/bin/rawgrad", "bench", "a row", "--rounds", "3"])
    for name in [name for name in machine.os.environ if name.startswith(("RAWGRAD_", "OMP_", "OPENBLAS_", "MKL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAWGRAD_BACKEND", "numpy")
    assert machine.command_line() == "RAWGRAD_BACKEND=numpy rawgrad bench 'a row' --rounds 3"


@pytest.mark.parametrize(
    ("module", "script", "command"),
    [
        ("rawgrad.bench.prefetch", "/somewhere/rawgrad/bench/prefetch.py", "python -m rawgrad.bench.prefetch --out x"),
        ("rawgrad.__main__", "/somewhere/rawgrad/__main__.py", "python -m rawgrad --out x"),
        (None, "/somewhere/bin/rawgrad", "rawgrad --out x"),
        ("another", "/somewhere/bin/rawgrad", "rawgrad --out x"),  # a script that was started by a module
    ],
)
def test_command_line_of_a_module(monkeypatch, module, script, command):
    spec = module and importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setitem(machine.sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(machine.sys, "argv", [script, "--out", "x"])
    assert machine.command_line().endswith(command)


def git(where, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, "-C", str(where), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_a_checkout_and_whether_it_was_changed(tmp_path, monkeypatch):
    package = tmp_path / "house"
    (package / "bench" / "results").mkdir(parents=True)
    (package / "recipes").mkdir()
    (package / "recipes" / "machine.py").write_text("code")
    git(tmp_path, "init", "-q", str(package))
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "first")
    monkeypatch.setattr(machine, "__file__", str(package / "recipes" / "machine.py"))
    head = git(package, "rev-parse", "HEAD")
    assert machine.commit() == (head, False)
    (package / "bench" / "results" / "new.json").write_text("{}")  # what the bench itself writes is no change
    assert machine.commit() == (head, False)
    (package / "new.py").write_text("more code")
    assert machine.commit() == (head, True)


def test_installed_inside_a_strangers_repository_there_is_no_commit(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q", ".")
    inside = tmp_path / "site-packages" / "rawgrad" / "recipes"
    inside.mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(inside / "machine.py"))
    assert machine.commit() == (None, None)


def test_versions_name_every_thread_pool():
    found = machine.versions()
    assert found["numpy"] and found["rawgrad"] and "numpy" in found["backends"]
    assert all("threads" in pool for pool in found["pools"])
