"""Weights and training state on disk: bit for bit, atomic, and every damage noticed."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import nn, optim
from rawgrad.autograd.random import Generator
from rawgrad.engine import weights
from rawgrad.engine.weights import ModelInfo, load_state, load_weights, save_state, save_weights
from rawgrad.kernels._errors import ArgumentError, CheckpointError

INFO = ModelInfo(
    "mlp", {"sizes": [4, 3]}, (1, 2, 2), {"scale": 1 / 255, "mean": 0.1307}, ["zero", "one", "zwei"], {"epoch": 3}
)


def model(seed=0, out=3):
    rg.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, out), nn.BatchNorm1d(out))


def saved(path, seed=0):
    save_weights(path, model(seed), INFO)
    return path


class TestWeights:
    def test_bit_for_bit_with_all_that_predict_needs(self, tmp_path):
        source = model()
        source(rg.tensor(np.random.default_rng(0).normal(size=(5, 1, 2, 2)).astype(np.float32)))
        save_weights(tmp_path / "w.safetensors", source, INFO)
        target = model(seed=1)
        arrays, info = load_weights(tmp_path / "w.safetensors", target)
        assert (info.architecture, info.arguments, info.input_size) == ("mlp", {"sizes": [4, 3]}, (1, 2, 2))
        assert (info.normalization, info.classes, info.extra) == (INFO.normalization, INFO.classes, INFO.extra)
        assert info.rawgrad == rg.__version__
        assert list(target.state_dict()) == list(source.state_dict())
        for name, value in source.state_dict().items():
            assert arrays[name].dtype == value.dtype
            np.testing.assert_array_equal(target.state_dict()[name].numpy(), value.numpy())
            np.testing.assert_array_equal(arrays[name], value.numpy())
        assert target[2].num_batches_tracked.item() == 1

    def test_odd_arrays(self, tmp_path):
        # Not contiguous, of no dimensions, empty, special values, a name with dots and letters beyond ASCII.
        arrays = {
            "a.b.ü": np.arange(12, dtype=np.float32).reshape(3, 4).T,
            "c": np.array(-0.0),
            "d": np.zeros((0, 3), np.float64),
            "e": np.array([np.nan, np.inf, -np.inf, 5e-324]),
            "f": np.arange(5, dtype=np.int64)[::-2],
            "g": np.array([0.1, np.nan, -np.inf], "bfloat16"),
            "h": np.array([0.1, 6e-8], np.float16),
            "i": np.array([True, False]),
        }
        save_weights(tmp_path / "w", arrays, INFO)
        loaded, _ = load_weights(tmp_path / "w")
        assert set(loaded) == set(arrays)
        for name, array in arrays.items():
            assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
            assert loaded[name].tobytes() == array.tobytes()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_a_model_of_halves(self, tmp_path, dtype):
        source, target = (nn.Linear(4, 3, dtype=dtype) for _ in range(2))
        save_weights(tmp_path / "w", source, INFO)
        load_weights(tmp_path / "w", target)
        kept = source.weight.detach().numpy().tobytes()
        assert target.weight.detach().numpy().tobytes() == kept
        with pytest.raises(CheckpointError, match=f"weight must be float32; got {dtype}"):
            load_weights(tmp_path / "w", nn.Linear(4, 3))
        save_state(tmp_path / "s", {"weight": source.weight})
        assert load_state(tmp_path / "s")["weight"].tobytes() == kept

    def test_other_readers_can_read_it(self, tmp_path):
        safetensors = pytest.importorskip("safetensors.numpy")
        arrays = safetensors.load_file(saved(tmp_path / "w"))
        np.testing.assert_array_equal(arrays["1.weight"], model().state_dict()["1.weight"].numpy())

    def test_weights_of_another_model(self, tmp_path):
        path, other = saved(tmp_path / "w"), model(out=2)
        before = other[1].weight.detach().numpy().copy()
        with pytest.raises(CheckpointError) as caught:
            load_weights(path, other)
        text = str(caught.value)
        assert str(path) in text and "weights of mlp({'sizes': [4, 3]})" in text
        assert "1.weight must have shape (2, 4); got (3, 4)" in text
        np.testing.assert_array_equal(other[1].weight.detach().numpy(), before)
        with pytest.raises(
            CheckpointError, match=r"missing keys: weight, bias\n  unexpected keys: 1.bias, 1.weight, 2.bias"
        ):
            load_weights(path, nn.Linear(4, 3))

    def test_the_same_weights_are_the_same_bytes(self, tmp_path):
        contents = {saved(tmp_path / str(number)).read_bytes() for number in range(8)}
        assert len(contents) == 1

    def test_no_json_no_file(self, tmp_path):
        with pytest.raises(ArgumentError, match="must be expressible in JSON"):
            save_weights(tmp_path / "w", model(), ModelInfo("mlp", {"activation": object()}))
        assert not list(tmp_path.iterdir())


class TestDamage:
    def test_every_flipped_byte_is_noticed(self, tmp_path):
        path = tmp_path / "w"
        save_weights(path, {"w": np.arange(6, dtype=np.float32)}, ModelInfo("m"))
        content = path.read_bytes()
        for position in range(len(content)):
            for flip in (0x01, 0x20, 0x80):
                path.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
                with pytest.raises(CheckpointError, match=str(path)):
                    load_weights(path)

    def test_no_other_byte_goes_unnoticed_where_json_would_take_it(self, tmp_path):
        """White space for white space, and a letter's other way to be written."""
        path = tmp_path / "w"
        save_weights(path, {"w": np.arange(6, dtype=np.float32)}, ModelInfo("m", {"a": "ü"}))
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        assert content[end - 1 : end] == b" "
        for byte in b"\t\n\r":
            path.write_bytes(content[: end - 1] + bytes([byte]) + content[end:])
            with pytest.raises(CheckpointError, match="damaged"):
                load_weights(path)

    def test_the_damaged_tensor_is_named(self, tmp_path):
        state = {"first": np.arange(7.0), "second": {"part": np.arange(5, dtype=np.int32)}, "third": np.ones(3)}
        save_state(tmp_path / "s", state)
        content = bytearray((tmp_path / "s").read_bytes())
        content[content.index(np.arange(5, dtype=np.int32).tobytes()) + 9] ^= 4
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged: tensor state\.second\.part does not give the SHA-256"):
            load_state(tmp_path / "s")

    def test_a_description_edited_by_hand_is_noticed(self, tmp_path):
        """One of the same length, so that nothing else would."""
        save_weights(tmp_path / "w", {"w": np.zeros(2)}, ModelInfo("m", {"lr": 0.125}))
        content = (tmp_path / "w").read_bytes()
        (tmp_path / "w").write_bytes(content.replace(b"0.125", b"0.925"))
        with pytest.raises(CheckpointError, match="its head .* does not give the SHA-256"):
            load_weights(tmp_path / "w")

    def test_every_truncation_is_noticed(self, tmp_path):
        path = saved(tmp_path / "w")
        content = path.read_bytes()
        for size in [*range(40), *range(40, len(content), 7), len(content) - 1]:
            path.write_bytes(content[:size])
            with pytest.raises(CheckpointError, match="truncated"):
                load_weights(path)
        path.write_bytes(content + b"\0")
        with pytest.raises(CheckpointError, match="damaged"):
            load_weights(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "0 bytes; the header's length takes 8"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "its header should end at byte"),
            (struct.pack("<Q", 2**63) + b"{}", "its header should end at byte 9223372036854775816; it has 10"),
            (struct.pack("<Q", 5) + b"[1,2]", "the header in bytes 8 to 13 is no JSON"),
            (struct.pack("<Q", 4) + b"\xff\xfe{}", "is no JSON"),
            (struct.pack("<Q", 100000) + b"[" * 100000, "nested too deeply|is no JSON"),
            (struct.pack("<Q", 2) + b"{}", "not written by rawgrad"),
        ],
    )
    def test_foreign_files(self, tmp_path, content, message):
        path = tmp_path / "w"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_weights(path)

    def test_missing_foreign_and_of_another_kind_or_format(self, tmp_path, monkeypatch):
        with pytest.raises(CheckpointError, match="there is no such file"):
            load_weights(tmp_path / "none")
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_weights(tmp_path)
        save_state(tmp_path / "s", {"epoch": 1})
        with pytest.raises(CheckpointError, match="holds 'state'; expected 'weights'"):
            load_weights(tmp_path / "s")
        safetensors = pytest.importorskip("safetensors.numpy")
        safetensors.save_file({"w": np.ones(2)}, tmp_path / "f", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="not written by rawgrad"):
            load_weights(tmp_path / "f")
        monkeypatch.setattr(weights, "FORMAT", 7)
        save_state(tmp_path / "s", {})
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=r"is of format 7, written by rawgrad .* reads formats 1 and 2"):
            load_state(tmp_path / "s")

    @pytest.mark.parametrize("end", [float("inf"), float("nan"), "8", None, [8]])
    def test_a_header_of_odd_numbers(self, tmp_path, end):
        text = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}}).encode()
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
        with pytest.raises(CheckpointError, match="entry for 'w' is not whole|not written by rawgrad"):
            load_weights(tmp_path / "w")

    def test_a_header_that_lies_allocates_nothing(self, tmp_path):
        header = {
            "w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
            "__metadata__": {
                "rawgrad": json.dumps({"format": 1, "kind": "weights", "sha256": ""}),
                "description": "{}",
            },
        }
        text = json.dumps(header).encode()
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
        with pytest.raises(CheckpointError, match="truncated: w should end at byte"):
            load_weights(tmp_path / "w")


class TestFirstFormat:
    """A file that ``rawgrad train --resume`` wrote before format 2: three steps of Adam on the digits."""

    PATH = Path(__file__).with_name("first-format.safetensors")

    def test_it_is_still_read(self):
        state = load_state(self.PATH)
        assert (state["epoch"], state["seed"], state["limit"], state["task"]["network"]) == (1, 0, 25, "mlp")
        np.testing.assert_array_equal(state["steps"][:, 2], [2.377326011657715, 2.2646756172180176, 2.476186752319336])
        assert state["optimizer"]["state"][0]["step"] == 3
        assert [array.shape for array in state["model"].values()] == [(6, 64), (6,), (10, 6), (10,)]

    def test_damage_is_noticed(self, tmp_path):
        content = bytearray(self.PATH.read_bytes())
        content[-20] ^= 1
        (tmp_path / "s").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged: its 8976 bytes do not give the SHA-256"):
            load_state(tmp_path / "s")


class TestState:
    def test_any_nest_comes_back_as_it_was(self, tmp_path):
        state = {
            "epoch": 3, "best": 0.1 + 0.2, "nan": float("nan"), "big": 2**63 + 1, "name": "ä", "none": None,
            "yes": True, "list": [1, [2.5, (3, "x")], {}],
            7: {"a.b": np.arange(3), "t": rg.tensor(np.ones((2, 0), np.float32))},
        }  # fmt: skip
        save_state(tmp_path / "s", state)
        loaded = load_state(tmp_path / "s")
        assert list(loaded) == list(state)
        loaded[7]["a.b"][0] = 0  # what comes back can be written to
        np.testing.assert_equal(loaded.pop(7), {"a.b": np.arange(3), "t": np.ones((2, 0), np.float32)})
        state.pop(7)
        assert repr(loaded) == repr(state)

    def test_paths_that_would_clash(self, tmp_path):
        state = {"a": {"b": np.array([1.0])}, "a.b": np.array([2.0]), 1: np.array([3.0]), "1": np.array([4.0])}
        save_state(tmp_path / "s", state)
        np.testing.assert_equal(load_state(tmp_path / "s"), state)

    def test_training_goes_on_bit_for_bit(self, tmp_path):
        def start():
            net = model()
            opt = optim.Adam(net.parameters(), lr=0.01)
            return net, opt, optim.lr_scheduler.ExponentialLR(opt, 0.9), Generator(5)

        def run(parts, steps):
            net, opt, schedule, generator = parts
            for _ in range(steps):
                x = generator.numpy().normal(size=(8, 1, 2, 2)).astype(np.float32)
                loss = (net(rg.tensor(x)) ** 2).mean()
                opt.zero_grad()
                loss.backward()
                opt.step()
                schedule.step()

        whole = start()
        run(whole, 3)
        net, opt, schedule, generator = whole
        state = {
            "model": net.state_dict(), "optimizer": opt.state_dict(), "schedule": schedule.state_dict(),
            "generator": generator.get_state(),
        }  # fmt: skip
        save_state(tmp_path / "s", state)
        run(whole, 3)
        resumed = start()
        loaded = load_state(tmp_path / "s")
        for part, name in zip(resumed[:3], ("model", "optimizer", "schedule"), strict=True):
            part.load_state_dict(loaded[name])
        resumed[3].set_state(loaded["generator"])
        run(resumed, 3)
        for name, value in resumed[0].state_dict().items():
            np.testing.assert_array_equal(value.numpy(), whole[0].state_dict()[name].numpy())
        np.testing.assert_equal(resumed[1].state_dict(), whole[1].state_dict())

    def test_refusals(self, tmp_path):
        with pytest.raises(ArgumentError, match=r"state\.a\.0 must be numbers, strings, arrays .* got object"):
            save_state(tmp_path / "s", {"a": [object()]})
        with pytest.raises(ArgumentError, match="must have strings or integers as keys"):
            save_state(tmp_path / "s", {(1, 2): 3})
        assert not list(tmp_path.iterdir())


class TestInterrupted:
    def test_a_failure_at_any_point_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = saved(tmp_path / "w")
        old = path.read_bytes()
        for call in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
                with pytest.raises(OSError, match="disk full"):
                    saved(path, seed=1)
            assert [p.name for p in tmp_path.iterdir()] == ["w"]
            assert path.read_bytes() == old

    def test_the_new_file_is_on_the_disk_before_it_takes_the_name(self, tmp_path, monkeypatch):
        order, fsync, replace = [], os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
        monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
        saved(tmp_path / "w")
        assert order == ["fsync", "replace", "fsync"]

    def test_a_killed_writer_leaves_a_whole_file(self, tmp_path):
        path = tmp_path / "w"
        program = (
            "import sys, itertools, numpy as np\n"
            "from rawgrad.engine.weights import save_state\n"
            "for n in itertools.count():\n"
            "    save_state(sys.argv[1], {'n': n, 'w': np.full(500_000, n, np.float64)})\n"
            "    print(n, flush=True)\n"
        )
        for delay in (0.0, 0.004, 0.011):
            writer = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
            try:
                for _ in range(3):
                    assert writer.stdout.readline()
                time.sleep(delay)
            finally:
                writer.send_signal(signal.SIGKILL)
                writer.wait()
                writer.stdout.close()
            state = load_state(path)
            assert state["n"] >= 2
            np.testing.assert_array_equal(state["w"], np.full(500_000, state["n"], np.float64))

    def test_a_link_keeps_pointing_to_the_file(self, tmp_path):
        saved(tmp_path / "real")
        (tmp_path / "link").symlink_to("real")
        saved(tmp_path / "link", seed=1)
        assert (tmp_path / "link").is_symlink()
        arrays, _ = load_weights(tmp_path / "real")
        np.testing.assert_array_equal(arrays["1.weight"], model(1).state_dict()["1.weight"].numpy())
