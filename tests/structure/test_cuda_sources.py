"""The discipline of the CUDA sources: what they may include and use, and what their comments must say."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

from rawgrad.kernels._cuda.source import read_source

#: Ways to wait for other threads; at each the source must say which race it prevents.
WAITS = re.compile(r"\b(__syncthreads\w*|__syncwarp)\(")


def sources(files: list[PurePosixPath], root: Path, suffix: str) -> dict[str, str]:
    """The texts of the package's files with this suffix, by path."""
    found = [path for path in files if path.parts[0] == "kernels" and path.suffix == suffix]
    return {str(path): (root / path).read_text() for path in found}


@pytest.fixture(scope="module")
def kernels(files: list[PurePosixPath], root: Path) -> dict[str, str]:
    found = sources(files, root, ".cu")
    assert len(found) >= 16
    return found


@pytest.fixture(scope="module")
def headers(files: list[PurePosixPath], root: Path) -> dict[str, str]:
    return sources(files, root, ".cuh")


def code(text: str) -> str:
    """``text`` with comments blanked out, line by line."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)


def test_sources_include_headers_of_ours_alone(kernels: dict[str, str], headers: dict[str, str]) -> None:
    ours = {Path(path).name for path in headers}
    for path, text in kernels.items():
        included = re.findall(r'#\s*include\s*["<]([^">]+)[">]', code(text))
        assert included and set(included) <= ours, f"{path} includes {included}"


def test_only_headers_know_which_compiler_reads_them(kernels: dict[str, str]) -> None:
    for path, text in kernels.items():
        assert not re.search(r"\basm\b|RAWGRAD_EMULATED|__CUDA_ARCH__|#\s*if", code(text)), path


def test_sources_open_with_a_comment_that_names_their_versions(kernels: dict[str, str]) -> None:
    for path, text in kernels.items():
        head = re.match(r"(//[^\n]*\n)+", text)
        assert head and len(head[0].splitlines()) >= 5, f"{path} must open with its mathematics and versions"
        for version in set(re.findall(r"__global__[^;{]*?\w_(v\d_\w+)\(", code(text))):
            assert re.search(rf"\b{version.partition('_')[0]}\b|{version}", head[0]), f"{path}: {version} is not told"


def test_every_wait_says_which_race_it_prevents(kernels: dict[str, str], headers: dict[str, str]) -> None:
    for path, text in {**kernels, **headers}.items():
        lines = text.splitlines()
        for number, line in enumerate(code(text).splitlines()):
            if WAITS.search(line):
                above = lines[number - 1].strip()
                assert "//" in lines[number] or above.startswith("//"), f"{path}:{number + 1}: {lines[number].strip()}"


def test_every_kernel_says_what_a_block_and_a_thread_own(kernels: dict[str, str]) -> None:
    for path, text in kernels.items():
        lines = text.splitlines()
        for number, line in enumerate(code(text).splitlines()):
            if "__global__" not in line:
                continue
            start = max(i for i in range(number) if i == 0 or lines[i].startswith("// ---"))  # the section's
            told = "\n".join(lines[start:number])
            assert re.search(r"//.*\b[Bb]lock", told) and re.search(r"//.*\b([Tt]hread|[Ll]ane|[Ww]arp)", told), (
                f"{path}:{number + 1}"
            )


def test_sums_need_no_floating_point_atomics(kernels: dict[str, str]) -> None:
    allowed = r"atomic(Min|Add|Max|CAS|Or|And|Exch)\("
    for path, text in kernels.items():
        for call in re.finditer(rf"\b{allowed}([^;]*);", code(text)):
            declared = re.search(rf"(\w+)\s*\*\s*(?:__restrict__\s+)?{re.escape(_name(call[2]))}\b", code(text))
            assert declared is None or declared[1] in ("int", "int64_t", "unsigned", "long", "uint32_t", "uint64_t"), (
                f"{path}: {call[0]}"
            )


def _name(argument: str) -> str:
    """The array in the first argument of an atomic operation: ``&counts[i]`` gives ``counts``."""
    match = re.match(r"\s*(?:reinterpret_cast<[^>]*>\()?&?(\w+)", argument)
    return match[1] if match else argument


def test_no_host_code_no_globals_no_cooperation(kernels: dict[str, str]) -> None:
    for path, text in kernels.items():
        plain = code(text)
        assert not re.search(r"<<<|cudaMalloc|cooperative_groups|\bprintf\b|\bmain\s*\(", plain), path
        assert not re.search(
            r"^(static |__device__ |__constant__ )+\w+ \w+(\[[^\]]*\])* *(=|;)", plain, re.MULTILINE
        ), path
        assert len(re.findall(r"\b__shared__\b", plain)) == 0, f"{path}: shared memory is block_shared<Shared>()"


def test_signatures_are_understood(kernels: dict[str, str], root: Path) -> None:
    for path, text in kernels.items():
        found = read_source(root / path).signatures
        assert len(found) == len(set(re.findall(r"__global__", code(text)))) or found, path
        assert len(found) == code(text).count("__global__"), f"{path}: {sorted(found)}"
