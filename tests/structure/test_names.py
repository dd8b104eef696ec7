"""One operation, one name: in the folder, the tests and the documentation; and the public face is whole."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import PurePosixPath

import pytest

import rawgrad

#: The public face as the design fixes it, page by page; what GPUs and many ranks need comes with them.
FACE = {
    "": """tensor Tensor zeros ones arange randn no_grad manual_seed backend backends precision gradcheck gradgradcheck
        Function set_num_threads get_num_threads""",
    "autograd": "grad",
    "cuda": "is_available synchronize Kernel Graph graphed",
    "functional": """linear conv2d pad max_pool2d avg_pool2d relu leaky_relu elu gelu silu softplus sigmoid tanh softmax
        log_softmax cross_entropy nll_loss mse_loss l1_loss binary_cross_entropy_with_logits dropout batch_norm
        layer_norm group_norm embedding one_hot cat stack where split chunk bmm mm tril triu cosine_similarity""",
    "nn": """Module Parameter Sequential Linear Conv2d MaxPool2d AvgPool2d ZeroPad2d ReLU LeakyReLU Sigmoid Tanh GELU
        SiLU Softmax Dropout BatchNorm2d LayerNorm Embedding Flatten CrossEntropyLoss MSELoss init""",
    "optim": "SGD Adagrad RMSprop Adam AdamW lr_scheduler clip_grad_norm_",
    "data": """Dataset TensorDataset Subset random_split DataLoader DistributedSampler MNIST Digits ImageFolder
        TextLines TextWindows Compose Normalize Pad RandomCrop CenterCrop RandomShift RandomHorizontalFlip
        RandomVerticalFlip RandomRotation Draws Timing""",
}
TENSOR = """reshape view flatten permute transpose squeeze unsqueeze expand sum mean var std prod amax amin argmax
    logsumexp cumsum norm exp log sqrt abs sin cos tanh sigmoid clamp pow maximum minimum numpy item to detach clone
    backward grad __array__ __copy__ __deepcopy__ __dlpack__ __dlpack_device__ __matmul__ __getitem__ __add__ __radd__
    __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __neg__ __lt__ __le__ __gt__ __ge__ __eq__
    __ne__"""


def operations(files: list[PurePosixPath]) -> list[str]:
    """The folders of kernels/ that are operations, by name."""
    folders = {path.parts[1] for path in files if path.parts[0] == "kernels" and len(path.parts) > 2}
    return sorted(name for name in folders if not name.startswith("_"))


def test_operations_have_contract_reference_and_test(
    files: list[PurePosixPath], sources: dict[PurePosixPath, ast.Module]
) -> None:
    wrong = []
    for name in operations(files):
        package = sources.get(PurePosixPath("kernels", name, "__init__.py"))
        if package is None or not ast.get_docstring(package):
            wrong.append(f"kernels/{name}/__init__.py must open with the operation's contract")
        for path in (f"kernels/{name}/reference.py", f"tests/kernels/test_{name}.py"):
            if PurePosixPath(path) not in files:
                wrong.append(f"{path} is missing")
    assert not wrong, "\n".join(wrong)


def test_backends_define_what_the_reference_defines(
    files: list[PurePosixPath], sources: dict[PurePosixPath, ast.Module]
) -> None:
    def functions(path: PurePosixPath) -> set[str]:
        nodes = sources[path].body
        return {n.name for n in nodes if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}

    for name in operations(files):
        wanted = functions(PurePosixPath("kernels", name, "reference.py"))
        assert wanted, f"kernels/{name}/reference.py defines no function"
        for backend in ("numba_cpu", "cuda", "numba_cuda"):
            path = PurePosixPath("kernels", name, f"{backend}.py")
            if path in sources:
                assert functions(path) >= wanted, f"{path} lacks {sorted(wanted - functions(path))}"


@pytest.mark.parametrize("page", FACE)
def test_public_face_is_whole_and_documented(page: str) -> None:
    module = import_module(f"rawgrad.{page}") if page else rawgrad
    missing = [name for name in FACE[page].split() if not hasattr(module, name)]
    assert missing == [], f"rawgrad.{page} lacks {missing}"
    assert set(FACE[page].split()) <= set(module.__all__)
    assert list(module.__all__) == sorted(set(module.__all__), key=list(module.__all__).index), "a name stands twice"
    named = {name: getattr(module, name) for name in module.__all__ if name != "__version__"}
    silent = [name for name, value in named.items() if not inspect.getdoc(value)]
    assert silent == [], f"no docstring: {silent}"


def test_tensor_has_the_names_of_the_design() -> None:
    assert [name for name in TENSOR.split() if not hasattr(rawgrad.Tensor, name)] == []


def test_dir_shows_the_lazy_names_and_unknown_ones_are_refused() -> None:
    assert set(rawgrad.__all__) <= set(dir(rawgrad))
    with pytest.raises(AttributeError, match=r"module 'rawgrad' has no attribute 'tenzor'"):
        _ = rawgrad.tenzor


def test_modules_and_public_definitions_have_docstrings(sources: dict[PurePosixPath, ast.Module]) -> None:
    wrong = []
    for path, tree in sources.items():
        if not ast.get_docstring(tree):
            wrong.append(f"{path}: the module has no docstring")
        private = any(part.startswith("_") and not part.startswith("__") for part in path.parts)
        backend = path.name in ("reference.py", "numba_cpu.py", "numba_cuda.py")
        if private or backend:  # the contract stands in the operation's package
            continue
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                wrong.append(f"{path}:{node.lineno}: {node.name} has no docstring")
    assert not wrong, "\n".join(wrong)
