"""MNIST: both file formats, finding, downloading (from a server of our own), and damage."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import sys
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawgrad.engine.data import MNIST, download_mnist, find_mnist, mnist
from rawgrad.engine.data.mnist import read_mnist_json
from rawgrad.kernels._errors import ArgumentError, DataError

SMALL = {"train": 5, "validation": 2, "test": 3}
NAMES = list(mnist.FILES)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """No test sees this machine's own copies, nor its proxies."""
    monkeypatch.delenv("RAWGRAD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def small(monkeypatch):
    """A data set of ten digits: (images, labels) of the 7 + 3 samples of the two pairs of IDX files."""
    monkeypatch.setattr(mnist, "COUNTS", SMALL)
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28)).astype(np.uint8)
    images[:, 0, 0] = 255
    return images, np.array([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], np.uint8)


def idx_files(images, labels):
    def idx(array):
        return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()

    return dict(zip(NAMES, map(idx, (images[:7], labels[:7], images[7:], labels[7:])), strict=True))


def write_idx(folder, small, spell=lambda name: name, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in idx_files(*small).items():
        (folder / (spell(name) + (".gz" if packed else ""))).write_bytes(gzip.compress(data) if packed else data)
    return folder


def check_small(splits, small):
    images, labels = small
    for split, rows in (("train", slice(0, 5)), ("validation", slice(5, 7)), ("test", slice(7, 10))):
        part = splits[split]
        assert part.images.dtype == np.float32 and part.labels.dtype == np.int64
        assert np.array_equal(part.images, images[rows, None] / np.float32(255))
        assert np.array_equal(part.labels, labels[rows])
        assert np.array_equal(part.data, images[rows]) and part.split == split


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
def test_idx_in_every_spelling(tmp_path, small, packed, dots, below):
    spell = (lambda name: name.replace("-idx", ".idx")) if dots else str
    write_idx(tmp_path / below, small, spell, packed)
    check_small(MNIST.splits(tmp_path), small)
    check_small({split: MNIST(tmp_path, split) for split in SMALL}, small)
    assert np.array_equal(MNIST(tmp_path, "test", raw=True).images[:, 0], small[0][7:].astype(np.float32))


@pytest.mark.parametrize("scale", [None, 255, 256])
@pytest.mark.parametrize("packed", [False, True])
def test_json(tmp_path, small, scale, packed):
    path = tmp_path / "mnist.json.gz"
    text = json.dumps(as_json(*small, scale), indent=1 if packed else None).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    check_small(MNIST.splits(tmp_path), small)
    check_small(MNIST.splits(path), small)


def as_json(images, labels, scale=None):
    pixels = images.reshape(-1, 784)
    pixels = (pixels if scale is None else np.round(pixels / scale, 8)).tolist()
    parts = (slice(0, 5), slice(5, 7), slice(7, 10))
    return [[pixels[part], labels[part].tolist()] for part in parts]


def changed(path, value):
    """A function that sets the entry at ``path`` of nested lists to ``value``, or drops it for None."""

    def change(data):
        *way, last = path
        for step in way:
            data = data[step]
        if value is None:
            del data[last]
        else:
            data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed((0, 0, 3, 17), 256), ["train image 3, number 17", "0 to 255", "256"]),
        (changed((2, 0, 1, 783), -1), ["test image 1, number 783", "-1"]),
        (changed((0, 0, 2, 5), 0.5), ["train image 2, number 5", "whole numbers", "0.5"]),
        (changed((1, 0, 1, 0), None), ["validation image 1", "784 numbers", "783"]),
        (changed((1, 0, 1), []), ["validation image 1", "784 numbers", "got 0"]),
        (changed((1, 0, 1), None), ["a comma before validation image 1 of 2", "']'"]),
        (changed((0, 1, 2), None), ["train labels", "5 numbers", "4"]),
        (changed((0, 1, 2), 10), ["train labels, number 2", "0 to 9", "10"]),
        (changed((0, 1, 2), 1.5), ["train labels, entry 2", "whole number", "1.5"]),
        (changed((0, 1, 2), "3"), ["train labels: numbers", "'\"'"]),
        (changed((0, 1, 2), True), ["train labels: numbers", "'t'"]),
        (changed((0, 1, 2), [3]), ["train labels: a list of numbers"]),
        (changed((0, 0, 0, 0), float("nan")), ["train image 0: numbers", "'N'"]),
        (changed((0, 0, 0, 0), 10**5000), ["train image 0"]),
        (changed((2,), None), ["a comma before the test split"]),
        (changed((0,), {}), ["'[' (the pair of images and labels of the train split)", "'{'"]),
    ],
)
def test_wrong_json_is_named(tmp_path, small, change, words):
    data = as_json(*small)
    change(data)
    path = tmp_path / "mnist.json"

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(data)
    finally:
        sys.set_int_max_str_digits(limit)
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_mnist_json(path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_bad_json_gives_the_offset(tmp_path, small):
    text = json.dumps(as_json(*small))
    path = tmp_path / "mnist.json"
    at = text.index(",", 500)
    for damaged, offset in [
        (text[:at] + ";" + text[at + 1 :], at),
        (text + " x", len(text) + 1),
        (text[:-1], len(text) - 1),
        ("", 0),
        ("   {", 3),
        (text[:at] + "," + text[at:], at + 2),
    ]:
        path.write_text(damaged)
        with pytest.raises(DataError) as caught:
            read_mnist_json(path)
        came = int(str(caught.value).split("byte ")[1].split(":")[0])
        # The JSON parser puts a doubled comma at one comma or the other.
        assert abs(came - offset) <= 1, (damaged[:20], str(caught.value))


def test_hostile_json_takes_no_memory(tmp_path):
    bombs = [
        b"[[[[" + b"1," * 50_000_000,  # an image without end
        b" " * 100_000_000,
        b"[" * 100_000_000,
        b"[[[[" + b"1" * 100_000_000,
    ]
    for bomb in bombs:
        path = tmp_path / "mnist.json.gz"
        path.write_bytes(gzip.compress(bomb, 1))
        tracemalloc.start()
        try:
            with pytest.raises(DataError):
                read_mnist_json(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # The array for the training images, which nothing has touched yet, and a few pieces of text.
        assert peak < 50_000 * 784 * 4 + 8 * 2**20
    with pytest.raises(DataError, match="at most max_bytes=1000000 bytes"):
        path.write_bytes(gzip.compress(b" " * 10_000_000, 1))
        read_mnist_json(path, max_bytes=1_000_000)


@settings(max_examples=80)
@given(data=st.data())
def test_fuzzed_json_only_raises_data_errors(tmp_path_factory, data):
    images = np.zeros((10, 28, 28), np.uint8)
    images[:, 3, 4] = 200
    text = json.dumps(as_json(images, np.arange(10))).encode()
    damaged = bytearray(gzip.compress(text, 1) if data.draw(st.booleans()) else text)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))]
    path = tmp_path_factory.mktemp("json") / "file"
    path.write_bytes(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "COUNTS", SMALL)
        try:
            splits = read_mnist_json(path)
        except DataError:
            return
    assert {name: len(labels) for name, (_, labels) in splits.items()} == SMALL


def test_wrong_idx_files_are_named(tmp_path, small):
    images, labels = small
    write_idx(tmp_path, (images, labels))
    with pytest.raises(ArgumentError, match="'train', 'validation', 'test'; got 'val'"):
        MNIST(tmp_path, "val")
    write_idx(tmp_path, (images, np.where(np.arange(10) == 3, 11, labels).astype(np.uint8)))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte, byte 11: label 3 must be from 0 to 9; got 11"):
        MNIST(tmp_path)
    write_idx(tmp_path, (images[1:], labels))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte must hold uint8 of shape \(3, 28, 28\); got.*\(2, 28"):
        MNIST(tmp_path, "test")


def test_the_validation_split_is_the_last_of_the_training_file():
    assert mnist.COUNTS == {"train": 50_000, "validation": 10_000, "test": 10_000}


def test_finding(tmp_path, small, monkeypatch):
    with pytest.raises(DataError) as caught:
        find_mnist(tmp_path / "nowhere")
    for words in (str(tmp_path / "nowhere"), "does not exist", *NAMES, "RAWGRAD_DATA", "--data-dir", "download"):
        assert words in str(caught.value)
    cache = write_idx(tmp_path / "cache" / "rawgrad" / "mnist", small)
    assert find_mnist() == cache
    variable = write_idx(tmp_path / "variable" / "mnist", small)
    monkeypatch.setenv("RAWGRAD_DATA", str(variable.parent))
    assert find_mnist() == variable
    given = write_idx(tmp_path / "given", small)
    assert find_mnist(given) == given
    (given / NAMES[1]).unlink()
    assert find_mnist(given) == variable
    with pytest.raises(DataError, match=f"not found in .*missing {NAMES[1]}"):
        MNIST(given)  # a folder that was named is the only one


# ---- downloading ------------------------------------------------------------------------------


@pytest.fixture
def server():
    """Serves ``server.files`` on 127.0.0.1; ``server.cut`` breaks off each answer after so many bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.server.files.get(self.path.rpartition("/")[2])
            self.server.asked.append(self.path)
            if body is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: self.server.cut])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.files, httpd.cut, httpd.asked = {}, None, []
        httpd.address = f"http://127.0.0.1:{httpd.server_port}/mnist/"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def served(server, small, monkeypatch):
    files = idx_files(*small)
    server.files = {f"{name}.gz": gzip.compress(data) for name, data in files.items()}
    monkeypatch.setattr(mnist, "FILES", {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    monkeypatch.setattr(mnist, "MIRROR", server.address)
    return server


def test_download(served, small, tmp_path):
    folder = download_mnist(mirror=served.address)
    assert folder == tmp_path / "cache" / "rawgrad" / "mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    check_small(MNIST.splits(), small)
    assert len(served.asked) == 4
    (folder / NAMES[2]).unlink()
    download_mnist(mirror=served.address.rstrip("/"))
    assert served.asked[4:] == [f"/mnist/{NAMES[2]}.gz"]  # what was there is kept


def bomb():
    return gzip.compress(b"\0" * 60_000_000, 1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.files.update({f"{NAMES[1]}.gz": gzip.compress(b"others")}), ["SHA-256", "must be"]),
        (lambda s: setattr(s, "cut", 30), ["could not be fetched"]),
        (lambda s: s.files.update({f"{NAMES[1]}.gz": b"<html>sign in</html>"}), ["could not be fetched"]),
        (lambda s: s.files.update({f"{NAMES[1]}.gz": bomb()}), ["unpacks to more than"]),
        (lambda s: s.files.pop(f"{NAMES[1]}.gz"), ["Not Found"]),
    ],
    ids=["wrong hash", "truncated", "not gzip", "bomb", "missing"],
)
def test_a_bad_download_leaves_nothing_behind(served, tmp_path, damage, words):
    damage(served)
    folder = tmp_path / "target"
    with pytest.raises(DataError) as caught:
        download_mnist(folder, mirror=served.address)
    for word in (*words, served.address, "Put these four files"):
        assert word in str(caught.value)
    assert {p.name for p in folder.iterdir()} <= {NAMES[0]}  # whole files only, no temporary ones


def test_no_network(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as httpd:
        closed = httpd.server_port  # nobody listens there any more, below
    with pytest.raises(DataError) as caught:
        download_mnist(tmp_path, mirror=f"http://127.0.0.1:{closed}/")
    for words in (*NAMES, "--data-dir", "RAWGRAD_DATA", str(tmp_path / "cache" / "rawgrad" / "mnist")):
        assert words in str(caught.value)


# ---- the genuine files ------------------------------------------------------------------------

GENUINE = Path(os.environ.get("RAWGRAD_DATA", "no such folder"))


@pytest.mark.mnist
@pytest.mark.skipif(not (GENUINE / "mnist").is_dir(), reason="RAWGRAD_DATA names no folder with mnist/")
def test_genuine_mnist():
    splits = MNIST.splits(GENUINE)
    assert {name: len(split) for name, split in splits.items()} == mnist.COUNTS
    # The first labels, known to everyone who printed them once, and the counts of the test labels
    # (LeCun's page); the mean and deviation that every MNIST example normalises with: 0.1307, 0.3081.
    assert splits["train"].labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert splits["test"].labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(splits["test"].labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = np.concatenate([splits["train"].data, splits["validation"].data])
    assert round(float(pixels.mean() / 255), 4) == 0.1307 and round(float(pixels.std() / 255), 4) == 0.3081
    for name, digest in mnist.FILES.items():
        with gzip.open(GENUINE / "mnist" / f"{name}.gz") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest
