"""Sources that stay on disk, what happens to broken files, and one order split over ranks."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from rawgrad.engine.data import DataLoader, DistributedSampler, ImageFolder, TensorDataset, TextLines, TextWindows
from rawgrad.engine.data.dataset import in_memory
from rawgrad.kernels._errors import ArgumentError, DataError, IndexRangeError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("eins\r\nzwei\n\nfünf".encode())
    return path


def test_lines(text):
    lines = TextLines(text)
    assert [lines[i] for i in range(len(lines))] == ["eins", "zwei", "", "fünf"]
    assert list(pickle.loads(pickle.dumps(lines))) == list(lines)
    assert list(DataLoader(lines, 3, num_workers=1)) == [["eins", "zwei", ""], ["fünf"]]
    (text.parent / "more.txt").write_bytes(b"a\nb\n")
    assert list(TextLines(text.parent / "more.txt")) == ["a", "b"]
    with pytest.raises(DataError, match=r"text.txt, line 4: 'ascii' codec"):
        TextLines(text, "ascii")[3]
    with pytest.raises(IndexRangeError, match="from 0 to 3; got 4"):
        lines[4]


def test_windows(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(23)))
    for stride, count in ((None, 4), (2, 9)):
        windows = TextWindows(path, 5, stride)
        assert len(windows) == count
        inputs, targets = (part.numpy() for part in next(iter(DataLoader(windows, count, num_workers=1))))
        for row in range(count):
            start = row * (stride or 5)
            assert inputs[row].tolist() == list(range(start, start + 5)) == windows[row][0].tolist()
            assert targets[row].tolist() == list(range(start + 1, start + 6)) == windows[row][1].tolist()
    assert len(pickle.dumps(windows)) < 500
    for words, make in (
        ("is empty", lambda: TextLines(tmp_path / "none")),
        ("cannot be read: No such file", lambda: TextLines(tmp_path / "absent")),
        ("at least 24 bytes; it has 23", lambda: TextWindows(path, 23)),
    ):
        (tmp_path / "none").write_bytes(b"")
        with pytest.raises(DataError, match=words):
            make()
    with pytest.raises(ArgumentError, match="at least 1"):
        TextWindows(path, 0)


def test_mapped_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(20).reshape(10, 2))
    mapped = TensorDataset(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert not in_memory(mapped) and in_memory(TensorDataset(np.zeros(3)))
    batches = [x.numpy().tolist() for (x,) in DataLoader(mapped, 4, num_workers=2)]
    assert sum(batches, []) == np.arange(20).reshape(10, 2).tolist()


@pytest.fixture
def folder(tmp_path):
    for index in range(8):
        (tmp_path / "pictures" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 10 * index, np.uint8)).save(
            tmp_path / "pictures" / "ab"[index % 2] / f"{index}.png"
        )
    (tmp_path / "pictures" / "a" / "2.png").write_bytes(b"nothing of the kind")
    return ImageFolder(tmp_path / "pictures")  # a: 0 2 4 6, b: 1 3 5 7


def shades(loader):
    return [(x.numpy()[:, 0, 0, 0] * 25.5).round().astype(int).tolist() for x, _ in loader]


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 1, "processes": True}])
def test_broken_files(folder, options):
    with pytest.raises(DataError, match=r"2\.png must be a picture"):
        list(DataLoader(folder, 3, **options))
    for broken, expected in (("skip", [[0, 4], [6, 1, 3], [5, 7]]), ("replace", [[0, 4, 4], [6, 1, 3], [5, 7]])):
        loader = DataLoader(folder, 3, broken=broken, **options)
        done = "skipped" if broken == "skip" else "replaced"
        with pytest.warns(
            RuntimeWarning, match=rf"1 samples of epoch 0 could not be read and were {done}: 1: .*2\.png"
        ):
            assert shades(loader) == expected
        assert list(loader.missing) == [1] and "2.png must be a picture" in loader.missing[1]
        loader.close()
    with (
        pytest.warns(RuntimeWarning, match="1 samples of epoch 0 could not be read and were skipped"),
        DataLoader(folder, 1, broken="skip", **options) as loader,
    ):
        positions = [(x.shape[0], loader.state_dict()["batch"]) for x, _ in loader]
    assert positions == [(1, 1), *((1, batch) for batch in (3, 4, 5, 6, 7, 0))]  # nothing is left of the second


def test_policies():
    with pytest.raises(ArgumentError, match="broken must be one of 'stop', 'skip', 'replace'; got 'ignore'"):
        DataLoader([1], broken="ignore")

    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise OSError("bad disk")

    with pytest.raises(DataError, match="no sample of epoch 0 can be read; 0: OSError: bad disk; 1: OSError"):
        list(DataLoader(Broken(), broken="skip"))
    with pytest.raises(DataError, match="none of the 100 samples from 0 on can be read: OSError: bad disk"):
        list(DataLoader(Broken(), broken="replace"))


class TestDistributed:
    def parts(self, ranks, samples=22, **options):
        return [list(DistributedSampler(range(samples), ranks, rank, seed=3, **options)) for rank in range(ranks)]

    def test_every_number_of_ranks_sees_one_order(self):
        whole = self.parts(1)[0]
        assert sorted(whole) == list(range(22)) and whole != list(range(22))
        for ranks in (2, 4):
            loaders = [
                DataLoader(
                    range(22), 8 // ranks, sampler=DistributedSampler(range(22), ranks, rank, seed=3, uneven=True)
                )
                for rank in range(ranks)
            ]
            steps = [np.concatenate([b.numpy() for b in step]) for step in zip(*loaders, strict=True)]
            assert [sorted(step.tolist()) for step in steps] == [sorted(whole[i : i + 8]) for i in (0, 8, 16)]

    def test_what_does_not_divide_evenly(self):
        whole = self.parts(1)[0]
        padded = self.parts(4)
        assert [len(p) for p in padded] == [6] * 4 and sum(zip(*padded, strict=True), ()) == (*whole, *whole[:2])
        cut = self.parts(4, drop_last=True)
        assert sum(zip(*cut, strict=True), ()) == tuple(whole[:20])
        assert [len(p) for p in self.parts(4, uneven=True)] == [6, 6, 5, 5]
        assert self.parts(3, samples=1) == [[0]] * 3 and self.parts(3, samples=0) == [[]] * 3
        for options in ({}, {"drop_last": True}, {"uneven": True}):
            assert [len(p) for p in self.parts(4, **options)] == [
                len(DistributedSampler(range(22), 4, rank, **options)) for rank in range(4)
            ]

    def test_epochs(self):
        sampler = DistributedSampler(range(22), 2, 1, seed=3)
        loader = DataLoader(range(22), 11, sampler=sampler)
        first, second = (next(iter(loader)).numpy().tolist() for _ in range(2))
        assert first != second
        sampler.set_epoch(0)
        assert list(sampler) == first
        assert list(DistributedSampler(range(5), 2, 1, shuffle=False)) == [1, 3, 0]

    def test_refusals(self):
        with pytest.raises(ArgumentError, match="rank must be an integer from 0 to 1; got 2"):
            DistributedSampler(range(4), 2, 2)
        with pytest.raises(ArgumentError, match=r"rank must be an integer from 0 to 1; got 0\.5"):
            DistributedSampler(range(4), 2, 0.5)
        with pytest.raises(ArgumentError, match="num_replicas must be an integer of at least 1; got '2'"):
            DistributedSampler(range(4), "2", 0)
        with pytest.raises(ArgumentError, match="not both"):
            DistributedSampler(range(4), 2, 0, drop_last=True, uneven=True)
