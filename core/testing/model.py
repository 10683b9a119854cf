"""The contracts of models and checkpoint formats: every weight is found, whole, and read without unpickling anything."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from jinja2 import Environment
from numpy.typing import NDArray

from core.errors import UserError
from core.interfaces.model import CheckpointFormat, DecoderSpec, ModelFamily, Stored, weight_names
from core.testing.contract import Contract


class ModelContract(Contract, kit=True):
    """Give ``make``, ``config`` and ``tensors``: a checkpoint of this family in miniature. One class for each layout.

    ``tensors`` maps the names of the stored tensors to arrays of their shapes, as they lie in the file. ``unused`` names those
    that the decoder does not need (rotary tables). ``refused``: changes to the config that ask for what the decoder cannot do.
    """

    config: ClassVar[Mapping[str, Any]]
    unused: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    def make(self) -> ModelFamily:
        """The family, as your offer's ``family`` gives it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Stored name -> array, in the layout of the file."""
        raise NotImplementedError(f"{type(self).__name__} must define tensors()")

    def spec(self) -> DecoderSpec:
        return self.make().spec(self.config)

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_it_answers_to_its_architectures(self) -> None:
        family = self.make()
        assert family.architectures
        assert set(self.config["architectures"]) & set(family.architectures), "the config names an architecture of the family"

    def test_the_spec_is_a_decoder(self) -> None:
        spec = self.spec()
        for field in (
            "num_layers",
            "hidden",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate",
            "vocab",
            "max_positions",
        ):
            assert getattr(spec, field) > 0, f"{field} is {getattr(spec, field)}"
        assert spec.num_heads % spec.num_kv_heads == 0
        assert spec.head_dim % 2 == 0
        assert spec.rope_theta > 0
        assert 0 < spec.norm_eps < 1
        assert spec.rope_style in ("interleaved", "half")
        assert all(0 <= token < spec.vocab for token in spec.eos_token_ids)

    def test_every_weight_is_found_in_its_shape(self) -> None:
        family, spec, tensors = self.make(), self.spec(), self.tensors()
        for weight in weight_names(spec):
            parts = []
            for stored in family.stored(weight, spec, frozenset(tensors)):
                assert stored.name in tensors, f"{weight} is looked for in {stored.name}, which the checkpoint lacks"
                parts.append(view(tensors, stored))
            assert parts, f"{weight} is stored nowhere"
            shape = np.concatenate(parts).shape
            assert shape == spec.shape(weight.role), f"{weight} has shape {shape}, not {spec.shape(weight.role)}"

    def test_every_weight_is_given_in_its_parts(self) -> None:
        """Query, key and value by themselves, and gate and up, also where the checkpoint has them in one tensor."""
        family, spec, tensors = self.make(), self.spec(), self.tensors()
        for weight in weight_names(spec):
            found = tuple(len(view(tensors, part)) for part in family.stored(weight, spec, frozenset(tensors)))
            wanted = spec.parts(weight.role)
            assert found == wanted, (
                f"{weight} is given in parts of {found} rows, and has parts of {wanted}: of one stored tensor, a Stored with "
                "its rows for each"
            )

    def test_every_stored_value_is_used_once(self) -> None:
        """Nothing is left over, nothing but a tied embedding is taken twice."""
        family, spec = self.make(), self.spec()
        uses = {name: np.zeros(tensor.shape, dtype=np.int32) for name, tensor in self.tensors().items()}
        for weight in weight_names(spec):
            if weight.role == "head" and spec.tied_head:
                continue
            for stored in family.stored(weight, spec, frozenset(uses)):
                view = uses[stored.name].T if stored.transposed else uses[stored.name]
                view[stored.rows] += 1
        for name, counts in uses.items():
            if name not in self.unused:
                assert (counts == 1).all(), f"{name} is used {counts.min()} to {counts.max()} times"

    def test_a_tied_head_is_the_embedding(self) -> None:
        family, spec, names = self.make(), self.spec(), frozenset(self.tensors())
        embed, head = (family.stored(weight, spec, names) for weight in weight_names(spec) if weight.role in ("embed", "head"))
        assert (embed == head) == spec.tied_head

    def test_what_the_decoder_cannot_do_is_refused(self) -> None:
        common: tuple[Mapping[str, Any], ...] = ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {"hidden_act": "gelu"})
        for change in (*common, *self.refused):
            with pytest.raises(UserError) as refused:
                self.make().spec({**self.config, **change})
            assert any(key in str(refused.value) for key in change), f"the refusal of {change} does not name the key"

    def test_a_conversation_can_be_written_in_its_text(self) -> None:
        """What it lends to checkpoints that lack a template is one, and says what was said."""
        text = self.make().text()
        if text.chat_template is not None:
            said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
            shown = Environment().from_string(text.chat_template).render(messages=said, add_generation_prompt=False)
            assert "Hello" in shown
            assert "Hi" in shown
        assert all(isinstance(value, float | int) for value in text.sampling.values()), f"{dict(text.sampling)} has no numbers"


def view(tensors: Mapping[str, NDArray[Any]], part: Stored) -> NDArray[Any]:
    tensor = tensors[part.name]
    found: NDArray[Any] = (tensor.T if part.transposed else tensor)[part.rows]
    return found


class CheckpointFormatContract(Contract, kit=True):
    """Give ``make`` and ``write``, which puts a checkpoint of the format on disk."""

    def make(self) -> CheckpointFormat:
        """The format, as your offer's ``create`` makes it."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def write(self, folder: Path) -> tuple[Path, Mapping[str, NDArray[Any]]]:
        """Write a small checkpoint into an empty folder.

        Returns what ``recognizes`` is asked about (a folder or a file), and every tensor as ``Checkpoint.tensor`` gives it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define write(folder)")

    # --- what is promised -------------------------------------------------------------------------------------------

    def test_it_recognizes_its_own(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        assert self.make().recognizes(path)

    def test_it_recognizes_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "README.md").write_text("no model here")
        (tmp_path / "notes" / "config.json").write_text("{}")
        (tmp_path / "file.bin").write_bytes(bytes(range(256)))
        for path in ("empty", "notes", "notes/README.md", "file.bin", "missing"):
            assert not self.make().recognizes(tmp_path / path), f"it claims {path}"

    def test_the_config_names_an_architecture(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        config = self.make().config(path)
        assert config["architectures"], "config.json's terms: architectures names the model family"

    def test_every_tensor_is_read(self, tmp_path: Path) -> None:
        path, expected = self.write(tmp_path)
        checkpoint = self.make().open(path)
        assert checkpoint.names() == frozenset(expected)
        assert checkpoint.config["architectures"] == self.make().config(path)["architectures"]
        for name, tensor in expected.items():
            found = checkpoint.tensor(name)
            assert found.shape == tensor.shape, f"{name} has shape {found.shape}, not {tensor.shape}"
            assert np.array_equal(found.astype(np.float32), tensor.astype(np.float32)), f"{name} has other values"
        checkpoint.close()

    def test_a_released_tensor_can_be_read_again(self, tmp_path: Path) -> None:
        path, expected = self.write(tmp_path)
        checkpoint = self.make().open(path)
        name = sorted(expected)[0]
        for _ in range(3):
            assert np.array_equal(checkpoint.tensor(name).astype(np.float32), expected[name].astype(np.float32))
            checkpoint.release(name)
        checkpoint.close()

    def test_an_unknown_tensor_is_a_key_error(self, tmp_path: Path) -> None:
        path, _ = self.write(tmp_path)
        checkpoint = self.make().open(path)
        with pytest.raises(KeyError):
            checkpoint.tensor("no.such.tensor")
        checkpoint.close()

    def test_nothing_is_unpickled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With pickles of every usual name beside the checkpoint, and the pickle module out of order."""
        path, expected = self.write(tmp_path)
        for folder in {tmp_path, path if path.is_dir() else tmp_path}:
            for name in ("pytorch_model.bin", "model.pdparams", "training_args.bin"):
                (folder / name).write_bytes(pickle.dumps(Bomb()))

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("a checkpoint format used pickle")

        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, refuse)
        assert self.make().recognizes(path)
        checkpoint = self.make().open(path)
        for name in expected:
            checkpoint.tensor(name)
        checkpoint.close()


class Bomb:
    """Unpickling this fails loudly."""

    def __reduce__(self) -> Any:
        return (exec, ("raise AssertionError('a pickle was read')",))
