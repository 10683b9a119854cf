"""A sound format, and what the contract has to say about unsound ones."""

import json
import pickle

import numpy as np

from core.interfaces.model import Checkpoint, CheckpointFormat
from core.testing import CheckpointFormatContract
from core.testing.inputs import random_weights, tiny_spec


class Folder(Checkpoint):
    def __init__(self, path, config):
        self.path, self.config = path, config

    def names(self):
        return frozenset(file.stem for file in self.path.glob("*.npy"))

    def tensor(self, name):
        if name not in self.names():
            raise KeyError(name)
        return np.load(self.path / f"{name}.npy", allow_pickle=False)


class NumpyFiles(CheckpointFormat):
    """A folder of .npy files and a config.json."""

    checkpoint = Folder

    def recognizes(self, path):
        return path.is_dir() and any(path.glob("*.npy"))

    def config(self, path):
        return json.loads((path / "config.json").read_text())

    def open(self, path):
        return self.checkpoint(path, self.config(path))


class Contract(CheckpointFormatContract):
    __test__ = False
    implementation = NumpyFiles

    def make(self):
        return self.implementation()

    def write(self, folder):
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps({"architectures": ["PlainForCausalLM"]}))
        tensors = {str(name): weight.parts[0] for name, weight in random_weights(tiny_spec()).items()}
        for name, tensor in tensors.items():
            np.save(model / f"{name}.npy", tensor)
        return model, tensors


class TestSound(Contract):
    __test__ = True


class TestRecognizesNothing(Contract):
    __test__ = True
    caught_by = "test_it_recognizes_its_own"

    class implementation(NumpyFiles):
        def recognizes(self, path):
            return False


class TestClaimsEveryFolder(Contract):
    __test__ = True
    caught_by = "test_it_recognizes_nothing_else"

    class implementation(NumpyFiles):
        def recognizes(self, path):
            return (path / "config.json").is_file()


class TestFailsWhereNothingIs(Contract):
    __test__ = True
    caught_by = "test_it_recognizes_nothing_else"

    class implementation(NumpyFiles):
        def recognizes(self, path):
            return any(file.suffix == ".npy" for file in path.iterdir())


class TestNamelessConfig(Contract):
    __test__ = True
    caught_by = "test_the_config_names_an_architecture"

    class implementation(NumpyFiles):
        def config(self, path):
            return {"architectures": []}


class TestTransposes(Contract):
    __test__ = True
    caught_by = "test_every_tensor_is_read"

    class implementation(NumpyFiles):
        class checkpoint(Folder):
            def tensor(self, name):
                return super().tensor(name).T


class TestLosesATensor(Contract):
    __test__ = True
    caught_by = "test_every_tensor_is_read"

    class implementation(NumpyFiles):
        class checkpoint(Folder):
            def names(self):
                return super().names() - {"head"}


class TestReleasesForGood(Contract):
    __test__ = True
    caught_by = "test_a_released_tensor_can_be_read_again"

    class implementation(NumpyFiles):
        class checkpoint(Folder):
            def release(self, name):
                (self.path / f"{name}.npy").unlink()


class TestNothingForTheUnknown(Contract):
    __test__ = True
    caught_by = "test_an_unknown_tensor_is_a_key_error"

    class implementation(NumpyFiles):
        class checkpoint(Folder):
            def tensor(self, name):
                return super().tensor(name) if name in self.names() else None


class TestReadsTheArguments(Contract):
    __test__ = True
    caught_by = "test_nothing_is_unpickled"

    class implementation(NumpyFiles):
        def open(self, path):
            arguments = path / "training_args.bin"
            if arguments.exists():
                pickle.loads(arguments.read_bytes())
            return super().open(path)
