"""A session takes exactly what its contract says, runs where it was told to or says why not, and never elsewhere."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from edgecifar.runtime import session as sessions
from edgecifar.runtime.contract import CIFAR10, Contract
from edgecifar.runtime.errors import InputError, ModelError, ProviderError
from edgecifar.runtime.session import PROVIDERS, Session, import_onnxruntime

FLOAT, UINT8 = 1, 2
"""ONNX's numbers of these dtypes."""


@pytest.fixture
def model(tiny) -> bytes:
    return (tiny / "model.onnx").read_bytes()


@pytest.fixture
def session(model) -> Session:
    return Session(model, provider="cpu", threads=1)


@pytest.fixture
def other(model):
    """Change the tiny model by a function of onnx's ModelProto, and return its bytes."""
    onnx = pytest.importorskip("onnx")

    def change(edit) -> bytes:
        proto = onnx.load_from_string(model)
        edit(proto)
        return proto.SerializeToString()

    return change


def refusal(kind: type[Exception], *arguments, **options) -> str:
    with pytest.raises(kind) as caught:
        Session(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


class TestAnswers:
    def test_logits_are_exact(self, session, images, expected):
        logits = session.logits(images)
        assert (logits.dtype, logits.shape) == (np.float32, (10, 10))
        assert logits.tolist() == expected.tolist()

    def test_probabilities(self, session, images, expected):
        probabilities = session.probabilities(images)
        assert (probabilities.dtype, probabilities.shape) == (np.float32, (10, 10))
        powers = np.exp(expected / 2 - (expected / 2).max(1, keepdims=True))  # the temperature is 2
        np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), rtol=1e-5, atol=1e-12)
        assert probabilities.argmax(1).tolist() == list(range(10))

    @pytest.mark.parametrize("size", [1, 2, 7, 64, 300])
    def test_any_batch_size(self, session, images, expected, size):
        wanted = np.arange(size) % 10
        assert session.logits(images[wanted]).tolist() == expected[wanted].tolist()

    def test_an_empty_batch(self, session):
        for call in (session.probabilities, session.logits):
            answer = call(np.empty((0, 32, 32, 3), np.uint8))
            assert (answer.dtype, answer.shape) == (np.float32, (0, 10))

    @pytest.mark.parametrize(
        "lay_out",
        [
            np.asfortranarray,
            lambda x: x[::-1][::-1],
            lambda x: np.repeat(x, 2, axis=0)[::2],
            lambda x: np.repeat(x, 3, axis=2)[:, :, 1::3],
            lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
            lambda x: np.flip(np.ascontiguousarray(np.flip(x, 3)), 3),
            lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].reshape(x.shape),
            lambda x: np.broadcast_to(x[:, :1, :1], x.shape),
        ],
        ids=["Fortran", "reversed", "every second", "strided", "NCHW", "BGR", "odd and read-only", "stride 0"],
    )
    def test_any_memory_layout(self, session, lay_out):
        images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        images[:, :] = images[:, :1, :1]  # one colour a picture, so that every layout here can hold it
        laid_out = lay_out(images)
        assert (laid_out == images).all()
        assert session.logits(laid_out).tolist() == session.logits(images).tolist()

    def test_every_layout_of_noise(self, session):
        images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        wanted = session.logits(images).tolist()
        assert session.logits(np.asfortranarray(images)).tolist() == wanted
        assert session.logits(np.flip(np.flip(images, 3).copy(), 3)).tolist() == wanted
        assert session.logits(np.flip(images, 3)).tolist() != wanted

    def test_the_input_is_left_alone(self, session, images):
        before = images.copy()
        session.probabilities(images)
        assert (images == before).all()


class TestInput:
    @pytest.mark.parametrize(
        ("images", "got"),
        [
            (np.zeros((1, 32, 32, 3), np.float32), "float32 [1, 32, 32, 3]"),
            (np.full((1, 32, 32, 3), np.nan), "float64 [1, 32, 32, 3]"),
            (np.zeros((1, 32, 32, 3), np.int8), "int8 [1, 32, 32, 3]"),
            (np.zeros((1, 32, 32, 3), np.int64), "int64 [1, 32, 32, 3]"),
            (np.zeros((1, 32, 32, 3), bool), "bool [1, 32, 32, 3]"),
            (np.zeros((1, 32, 32, 3), object), "object [1, 32, 32, 3]"),
            (np.zeros((1, 32, 32, 3), "S1"), "|S1 [1, 32, 32, 3]"),
            (np.zeros((32, 32, 3), np.uint8), "uint8 [32, 32, 3]"),
            (np.zeros((1, 3, 32, 32), np.uint8), "uint8 [1, 3, 32, 32]"),
            (np.zeros((1, 32, 32), np.uint8), "uint8 [1, 32, 32]"),
            (np.zeros((1, 32, 32, 4), np.uint8), "uint8 [1, 32, 32, 4]"),
            (np.zeros((1, 33, 32, 3), np.uint8), "uint8 [1, 33, 32, 3]"),
            (np.zeros((1, 1, 32, 32, 3), np.uint8), "uint8 [1, 1, 32, 32, 3]"),
            (np.zeros((0, 32, 32), np.uint8), "uint8 [0, 32, 32]"),
            (np.uint8(3), "uint8"),
            (np.array(3, np.uint8), "uint8 []"),
            (np.zeros(0, np.uint8), "uint8 [0]"),
            ([[0, 0, 0]], "list"),
            (None, "NoneType"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_another_kind(self, session, images, got):
        for call in (session.probabilities, session.logits, session.scores):
            with pytest.raises(InputError) as caught:
                call(images)
            assert str(caught.value) == (
                f"Images must be a numpy array, uint8 [N, 32, 32, 3] in RGB order, not {got}: read pictures with "
                "load_picture, and convert floats in 0 to 1 with (x * 255).round().astype('uint8')."
            )
            assert isinstance(caught.value, ValueError)


class TestModel:
    @pytest.mark.parametrize("content", [b"", b"\0", b"not a model", b"ORTM" + bytes(100), bytes(1000)])
    def test_damaged(self, content):
        message = refusal(ModelError, content, provider="cpu", name="x.onnx")
        assert message.startswith("x.onnx is not a model that onnxruntime can load (")
        assert message.endswith("): export it again.")

    @pytest.mark.parametrize("size", [1, 100, 500, 1000])
    def test_truncated(self, model, size):
        refusal(ModelError, model[:size], provider="cpu")

    def test_another_format_of_onnxruntime(self, model):
        """Not even one that it could read: only ONNX was checked."""
        refusal(ModelError, b"\x20\0\0\0ORTM" + model, provider="cpu")

    @pytest.mark.parametrize(
        "edit",
        [
            lambda graph: setattr(graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 7),
            lambda graph: graph.output.pop(),
            lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 64),
            lambda graph: setattr(graph.input[0].type.tensor_type.shape.dim[3], "dim_param", "channels"),
            lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", FLOAT),
            lambda graph: graph.input.add().CopyFrom(
                type(graph.input[0])(name="second", type=graph.input[0].type),
            ),
        ],
        ids=["7 classes", "no logits", "64 rows", "any channels", "float", "two inputs"],
    )
    def test_another_kind(self, other, edit):
        message = refusal(ModelError, other(lambda proto: edit(proto.graph)), provider="cpu", name="x.onnx")
        assert message.startswith("x.onnx is ")

    def test_fewer_classes(self, other):
        def cut(proto) -> None:
            matrix, bias = (next(t for t in proto.graph.initializer if t.name == name) for name in ("matrix", "bias"))
            values = np.frombuffer(matrix.raw_data, np.float32).reshape(3, 10)[:, :7]
            matrix.raw_data, bias.raw_data = values.tobytes(), bias.raw_data[: 4 * 7]
            matrix.dims[1] = bias.dims[0] = 7
            for output in proto.graph.output:
                output.type.tensor_type.shape.dim[1].dim_value = 7

        assert "is another kind of model" in refusal(ModelError, other(cut), provider="cpu", name="x.onnx")

    def test_another_input_name(self, other):
        def rename(proto) -> None:
            proto.graph.input[0].name = proto.graph.node[0].input[0] = "x"

        message = refusal(ModelError, other(rename), provider="cpu", name="x.onnx")
        assert "another kind of model (its input is [('x'," in message

    def test_a_frozen_batch(self, other):
        def freeze(proto) -> None:
            for value in (*proto.graph.input, *proto.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = 1

        message = refusal(ModelError, other(freeze), provider="cpu", name="x.onnx")
        assert message == "x.onnx takes only batches of 1: export it again."

    def test_a_batch_frozen_inside(self, other, images):
        onnx = pytest.importorskip("onnx")

        def freeze(proto) -> None:
            shape = onnx.numpy_helper.from_array(np.array([1, 3], np.int64), "shape")
            proto.graph.initializer.append(shape)
            proto.graph.node.insert(2, onnx.helper.make_node("Reshape", ["colour", "shape"], ["one"]))
            proto.graph.node[3].input[0] = "one"

        session = Session(other(freeze), provider="cpu", threads=1, name="x.onnx")
        assert session.probabilities(images[:1]).argmax(1).tolist() == [0]
        with pytest.raises(ModelError) as caught:
            session.probabilities(images)
        assert str(caught.value).startswith("x.onnx cannot classify 10 images (")
        assert str(caught.value).endswith("): export it again, or give fewer at once.")

    @pytest.mark.parametrize(
        ("kind", "value", "said"),
        [
            ("Mul", np.float32("nan"), "gives probabilities that mean nothing, nan to nan"),
            ("Mul", np.float32("inf"), "gives probabilities that mean nothing"),
            ("Mul", np.float32(-1e30), "gives probabilities that mean nothing, -"),
            ("Mul", np.float32(1.5), "gives probabilities that mean nothing"),
            ("Gather", np.array([0]), r"gives probabilities of the shape \[1, 10\] for 10 images"),
        ],
    )
    def test_answers_that_are_none(self, other, images, kind, value, said):
        """As half precision gives where it overflows: the first class was the answer, with nan as its probability."""
        onnx = pytest.importorskip("onnx")

        def spoil(proto) -> None:
            (last,) = [node for node in proto.graph.node if "probabilities" in node.output]
            last.output[0] = "sound"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), "value"))
            proto.graph.node.append(onnx.helper.make_node(kind, ["sound", "value"], ["probabilities"]))

        session = Session(other(spoil), provider="cpu", threads=1, name="x.onnx")
        with pytest.raises(ModelError, match=f"x.onnx {said}"):
            session.probabilities(images)

    @pytest.mark.parametrize("place", ["weights.bin", "../weights.bin", "absolute", "/dev/zero"])
    def test_external_data_is_refused(self, other, tmp_path, monkeypatch, place):
        (tmp_path / "inside").mkdir()
        monkeypatch.chdir(tmp_path / "inside")
        location = str(tmp_path / "weights.bin") if place == "absolute" else place

        def externalise(proto) -> None:
            tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "matrix")
            for folder in (tmp_path, tmp_path / "inside"):
                (folder / "weights.bin").write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = 1
            for key, value in {"location": location, "length": "120"}.items():
                tensor.external_data.add(key=key, value=value)

        message = refusal(ModelError, other(externalise), provider="cpu", name="x.onnx")
        assert message.startswith("x.onnx is not a model that onnxruntime can load (")

    def test_metadata(self, session):
        assert session.metadata() == {
            "contract": CIFAR10.as_json(),
            "provenance": {"made by": "make_tiny_bundle.py"},
            "model_license": "MIT",
        }


def described(proto, **values: str) -> None:
    """Make `values` the only metadata of ours."""
    del proto.metadata_props[:]
    for key, value in values.items():
        proto.metadata_props.add(key=f"io.github.edgecifar.{key}", value=value)


class TestContract:
    def test_is_read_from_the_file(self, session):
        assert session.contract == CIFAR10

    def test_of_files_of_before(self, other, images, expected):
        first = CIFAR10.as_json()
        tensors = json.dumps({"input": first["input"], "outputs": first["outputs"]})
        old = other(lambda proto: described(proto, labels=json.dumps(first["labels"]), contract=tensors))
        session = Session(old, provider="cpu", threads=1)
        assert session.contract == CIFAR10
        assert session.logits(images).tolist() == expected.tolist()

    def test_is_given_where_the_file_has_none(self, other):
        bare = other(described)
        assert "does not say what its labels" in refusal(ModelError, bare, provider="cpu")
        renamed = Contract(tuple("abcdefghij"), 32)
        assert Session(bare, contract=renamed, provider="cpu").contract == renamed

    @pytest.mark.parametrize(
        "contract",
        [Contract(tuple("abcdefghij"), 32), Contract(CIFAR10.labels[::-1], 32), Contract(CIFAR10.labels, 33)],
        ids=["labels", "order", "size"],
    )
    def test_another_than_the_files_is_refused(self, model, contract):
        assert "than its bundle says" in refusal(ModelError, model, contract=contract, provider="cpu")

    def test_its_preprocessing_may_be_another(self, model):
        padded = CIFAR10.with_fit("pad")
        assert Session(model, contract=padded, provider="cpu").contract == padded

    @pytest.mark.parametrize(
        "value", ["", "{", "[" * 100_000, "1", "null", "[]", "{}", '{"labels": 1}', '{"labels": ["\\u001b[2J", "b"]}']
    )
    def test_damaged(self, other, value):
        damaged = other(lambda proto: described(proto, contract=value))
        assert "x.onnx is damaged (" in refusal(ModelError, damaged, provider="cpu", name="x.onnx")

    def test_metadata_that_is_no_text(self, model):
        damaged = model.replace(b"io.github.edgecifar.provenance", b"io.github.edgecifar.provenanc\xff")
        assert "damaged" in refusal(ModelError, damaged, provider="cpu")

    def test_a_familiarity_score(self, three_classes, three_colours):
        session = Session((three_classes / "model.onnx").read_bytes(), provider="cpu", threads=1)
        size = session.contract.size
        images = np.broadcast_to(np.array(list(three_colours.values()), np.uint8)[:, None, None], (3, size, size, 3))
        probabilities, familiarity = session.scores(images)
        assert probabilities.argmax(1).tolist() == [0, 1, 2]
        assert familiarity.tolist() == [0, 0, 0]  # minus the squared distance to the nearest colour
        assert session.scores(images[:0])[1].shape == (0,)
        (_, (far,)) = session.scores(np.zeros((1, size, size, 3), np.uint8))
        assert far == -(200**2 + 2 * 20**2)

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_a_familiarity_that_is_no_number(self, three_classes, value):
        """Every picture would be known, or none, without a word."""
        onnx = pytest.importorskip("onnx")
        proto = onnx.load_from_string((three_classes / "model.onnx").read_bytes())
        (last,) = [node for node in proto.graph.node if "familiarity" in node.output]
        last.output[0] = "sound"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(float(value), np.float32), "value"))
        proto.graph.node.append(onnx.helper.make_node("Add", ["sound", "value"], ["familiarity"]))
        session = Session(proto.SerializeToString(), provider="cpu", threads=1, name="x.onnx")
        pictures = np.zeros((2, *session.contract.picture_shape), np.uint8)
        assert session.probabilities(pictures).shape == (2, 3)
        with pytest.raises(ModelError, match=r"x\.onnx gives familiarity that mean nothing"):
            session.scores(pictures)

    def test_none(self, session, images):
        probabilities, familiarity = session.scores(images)
        assert familiarity is None
        assert probabilities.tolist() == session.probabilities(images).tolist()


class TestThreads:
    def test_by_default_what_this_process_may_use(self, model, monkeypatch):
        monkeypatch.setattr(sessions, "usable_cpus", lambda: 3)
        assert Session(model, provider="cpu").threads == 3
        assert Session(model, provider="cpu", threads=2).threads == 2

    @pytest.mark.parametrize("threads", [0, -1, 257, 100_000])
    def test_too_few_or_too_many(self, model, threads):
        assert refusal(ProviderError, model, provider="cpu", threads=threads) == (
            f"A call cannot have {threads} threads: choose 1 to 256."
        )

    def test_several_give_the_answers_of_one(self, model, session):
        images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
        wanted = session.probabilities(images).tolist()
        assert Session(model, provider="cpu", threads=2).probabilities(images).tolist() == wanted

    def test_one_session_in_eight_threads(self, session):
        batches = np.random.default_rng(0).integers(0, 256, (8, 5, 32, 32, 3), np.uint8)
        wanted = [session.probabilities(batch).tolist() for batch in batches]
        answers: list[list] = [[] for _ in batches]
        start = threading.Barrier(8)

        def work(index: int) -> None:
            start.wait()
            for _ in range(20):
                answers[index].append(session.probabilities(batches[index]).tolist())

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [[answer] * 20 for answer in wanted]


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture
def installed(monkeypatch):
    """Say which packages of onnxruntime are installed."""

    def install(*packages: str) -> None:
        def version(package: str) -> str:
            if package not in packages:
                raise importlib.metadata.PackageNotFoundError
            return "1.0"

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


class TestProvider:
    def test_cpu(self, model):
        assert Session(model, provider="cpu").provider == "cpu"

    def test_auto_without_cuda(self, fake):
        ort = fake(["AzureExecutionProvider", CPU])
        assert Session(b"").provider == "cpu"
        assert ort.tried == [(CPU, {"enable_fallback": 0})]

    def test_auto_with_cuda(self, fake):
        ort = fake([CUDA, CPU])
        assert Session(b"").provider == "cuda"
        assert ort.tried == [(CUDA, {"enable_fallback": 0, "enable_cuda_graph": "1"})]

    def test_auto_where_cuda_does_not_start(self, fake):
        ort = fake([CUDA, CPU], fails={CUDA: RuntimeError("no driver")})
        assert Session(b"").provider == "cpu"
        assert [name for name, _ in ort.tried] == [CUDA, CPU]

    def test_auto_where_nothing_works(self, fake):
        fake([CUDA, CPU], fails={CUDA: RuntimeError("no driver"), CPU: RuntimeError("bad model")})
        assert refusal(ModelError, b"", name="x.onnx") == (
            "x.onnx is not a model that onnxruntime can load (bad model): export it again."
        )

    def test_no_node_may_fall_back(self, fake):
        ort = fake([CUDA, CPU])
        Session(b"", provider="cuda", threads=3)
        Session(b"", provider="cpu", threads=3)
        gpu, cpu = ort.options
        assert gpu.entries["session.disable_cpu_ep_fallback"] == "1"
        assert "session.disable_cpu_ep_fallback" not in cpu.entries
        for options in (gpu, cpu):
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
            assert options.entries["session.force_spinning_stop"] == "1"
            assert options.entries["session.load_model_format"] == "ONNX"
            assert options.entries["session.model_external_initializers_file_folder_path"] == os.devnull

    def test_one_that_cannot_run_every_node(self, fake):
        ort = fake(
            [CUDA, CPU],
            fails={CUDA: RuntimeError("[ONNXRuntimeError] : 1 : FAIL : a node has no kernel.\nMore")},
            probe_fails=False,
        )
        assert refusal(ProviderError, b"", provider="cuda", name="x.onnx") == (
            "The provider cuda cannot run x.onnx here (a node has no kernel): it runs fp32 and fp16 variants, which "
            "'edgecifar export --variant fp16' makes: choose another --variant, or use --provider cpu."
        )
        assert ort.probed == [CUDA]
        assert [name for name, _ in ort.tried] == [CUDA]

    def test_one_that_silently_became_another(self, fake):
        fake([CUDA, CPU], starts_as=CPU)
        assert refusal(ProviderError, b"", provider="cuda") == (
            "The provider cuda could not be started here, most often because a driver or one of its libraries is "
            "missing: install them (for CUDA 'pip install onnxruntime-gpu[cuda,cudnn]'), or use --provider cpu."
        )

    def test_one_whose_libraries_are_missing(self, fake, capsys):
        """onnxruntime prints them, which would spoil --json, and then says something about nodes on the CPU."""
        error = RuntimeError("fallback to the CPU EP has been explicitly disabled")
        ort = fake([CUDA, CPU], fails={CUDA: error}, starts_as=CPU, probe_fails=False, missing="libcudart.so.13 a/b.so")
        said = refusal(ProviderError, b"", provider="cuda")
        assert "could not be started here (its libraries libcudart.so.13, b.so are not found)" in said
        assert "onnxruntime-gpu[cuda,cudnn]" in said
        assert (ort.preloaded, ort.probed, capsys.readouterr().out) == (1, [CUDA], "")

    def test_one_without_a_driver(self, fake):
        fake([CUDA, CPU], fails={CUDA: RuntimeError("CUDA failure 35: driver too old")})
        assert "could not be started here (CUDA failure 35: driver too old)" in refusal(
            ProviderError, b"", provider="cuda"
        )

    def test_libraries_are_loaded_before_providers_are_counted(self, fake):
        """A provider that comes as a plug-in is not there before."""
        ort = fake([CPU])
        ort.get_available_providers = lambda: [CUDA, CPU] if ort.preloaded else [CPU]
        assert Session(b"").provider == "cuda"

    def test_an_error_that_says_nothing(self, fake):
        fake([CPU], fails={CPU: KeyError()})
        assert "(KeyError)" in refusal(ModelError, b"", provider="cpu")

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")], ids=str)
    def test_memory_that_runs_out_is_no_damage(self, fake, error):
        fake([CPU], fails={CPU: error})
        assert "memory" in refusal(ModelError, b"", provider="cpu")

    @pytest.mark.parametrize("name", ["gpu", "", "CPU", CPU])
    def test_unknown(self, model, name):
        assert refusal(ProviderError, model, provider=name) == (
            f"There is no provider called {name}: "
            "choose auto, cpu, cuda, tensorrt, openvino, directml, coreml, xnnpack."
        )

    @pytest.mark.parametrize(
        ("provider", "packages", "remedy"),
        [
            (
                "cuda",
                ["onnxruntime"],
                "it comes with onnxruntime-gpu, which replaces onnxruntime: 'pip uninstall -y onnxruntime' and then "
                "'pip install \"onnxruntime-gpu[cuda,cudnn]\"'",
            ),
            (
                "cuda",
                ["onnxruntime", "onnxruntime-gpu"],
                "onnxruntime and onnxruntime-gpu are both installed and overwrite one another: 'pip uninstall -y "
                "onnxruntime onnxruntime-gpu' and then 'pip install onnxruntime-gpu'",
            ),
            (
                "openvino",
                ["onnxruntime", "onnxruntime-gpu"],
                "it comes with onnxruntime-openvino, which replaces onnxruntime and onnxruntime-gpu: 'pip uninstall -y "
                "onnxruntime onnxruntime-gpu' and then 'pip install onnxruntime-openvino'",
            ),
            ("cuda", ["onnxruntime-gpu"], "it is not built for this system, choose another provider"),
            ("coreml", ["onnxruntime"], "it is not built for this system, choose another provider"),
            ("tensorrt", [], "it comes with onnxruntime-gpu: 'pip install \"onnxruntime-gpu[cuda,cudnn]\"'"),
            ("xnnpack", ["onnxruntime"], "it needs an onnxruntime built with XNNPACK"),
        ],
    )
    def test_not_in_this_onnxruntime(self, fake, installed, provider, packages, remedy):
        ort = fake(["AzureExecutionProvider", CPU])
        installed(*packages)
        assert refusal(ProviderError, b"", provider=provider) == (
            f"The provider {provider} is not in the onnxruntime installed here: {remedy}."
        )
        assert ort.tried == []

    @pytest.mark.parametrize("provider", PROVIDERS)
    def test_every_provider_runs_or_is_refused(self, model, provider, images):
        ort = import_onnxruntime()
        if PROVIDERS[provider][0] in ort.get_available_providers():
            assert Session(model, provider=provider).probabilities(images).argmax(1).tolist() == list(range(10))
        else:
            assert refusal(ProviderError, model, provider=provider).startswith(
                f"The provider {provider} is not in the onnxruntime installed here: "
            )


class TestImport:
    def test_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ProviderError) as caught:
            import_onnxruntime()
        assert str(caught.value) == (
            "onnxruntime cannot be imported (import of onnxruntime halted; None in sys.modules): 'pip install "
            "onnxruntime', or onnxruntime-gpu for CUDA."
        )

    def test_too_little_memory_to_load_it(self, monkeypatch):
        class Loader:
            def find_spec(self, name, *_rest):
                if name == "onnxruntime":
                    raise ImportError("libonnxruntime.so: failed to map segment from shared object")

        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Loader(), *sys.meta_path])
        with pytest.raises(ProviderError, match="too little memory") as caught:
            import_onnxruntime()
        assert "pip install" not in str(caught.value)

    def test_two_packages_that_overwrote_one_another(self, monkeypatch, installed):
        monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
        installed("onnxruntime", "onnxruntime-gpu")
        with pytest.raises(ProviderError) as caught:
            import_onnxruntime()
        assert str(caught.value) == (
            "onnxruntime is broken here: 'pip uninstall -y onnxruntime onnxruntime-gpu' and then "
            "'pip install onnxruntime'."
        )

    @pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
    def test_telemetry_is_off_unless_the_user_has_set_it(self, monkeypatch, before, after):
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        if before is not None:
            monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before)
        import_onnxruntime()
        assert os.environ["ORT_DISABLE_TELEMETRY"] == after


def test_a_hundred_damaged_models_are_refused_or_run(model):
    """A flipped bit may leave a model that runs; it must never bring the process down."""
    rng = np.random.default_rng(0)
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    outcomes = set()
    for place in rng.integers(0, 8 * len(model), 100).tolist():
        damaged = bytearray(model)
        damaged[place // 8] ^= 1 << place % 8
        try:
            answer = Session(bytes(damaged), provider="cpu", threads=1).probabilities(picture)
        except ModelError:
            outcomes.add("refused")
        else:
            assert (answer.dtype, answer.shape) == (np.float32, (1, 10))
            outcomes.add("ran")
    assert outcomes == {"refused", "ran"}


def test_the_sizes_of_the_fixture(tiny: Path):
    assert sum(path.stat().st_size for path in tiny.iterdir()) < 80_000
