"""A sound family, and what the contract has to say about unsound ones."""

from itertools import accumulate, pairwise

import numpy as np

from core.errors import UserError
from core.interfaces.model import DecoderSpec, FamilyText, ModelFamily, Stored
from core.testing import ModelContract
from core.testing.inputs import random_weights, tiny_spec


class Family(ModelFamily):
    """Names are the canonical ones; fused weights are stored [in, out]; a tied head is the embedding."""

    architectures = ("PlainForCausalLM",)

    def spec(self, config):
        for key, only in {"rope_scaling": None, "hidden_act": "silu"}.items():
            if config.get(key, only) != only:
                raise UserError.of(f"{key} must be {only}", "", "choose another model")
        return tiny_spec(tied_head=config["tied"])

    def stored(self, weight, spec, names):
        if weight.role == "head" and spec.tied_head:
            return (Stored("embed"),)
        if weight.role in ("qkv", "gate_up"):
            cuts = accumulate(spec.parts(weight.role), initial=0)
            return tuple(Stored(str(weight), True, slice(a, b)) for a, b in pairwise(cuts))
        return (Stored(str(weight), transposed=weight.role not in ("embed", "head", "norm")),)


class Contract(ModelContract):
    __test__ = False
    config = {"architectures": ["PlainForCausalLM"], "tied": True}
    implementation = Family

    def make(self):
        return self.implementation()

    def tensors(self):
        weights = random_weights(tiny_spec(tied_head=self.config["tied"]))
        tensors = {str(name): np.concatenate(weight.parts) for name, weight in weights.items() if not weight.tied}
        return {
            name: np.ascontiguousarray(tensor.T) if "layers" in name and tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        }


class TestSound(Contract):
    __test__ = True


class TestSoundUntied(Contract):
    __test__ = True
    config = {"architectures": ["PlainForCausalLM"], "tied": False}


class TestOtherArchitecture(Contract):
    __test__ = True
    caught_by = "test_it_answers_to_its_architectures"

    class implementation(Family):
        architectures = ("FancyForCausalLM",)


class TestOddHeads(Contract):
    __test__ = True
    caught_by = "test_the_spec_is_a_decoder"

    class implementation(Family):
        def spec(self, config):
            spec = super().spec(config)
            return DecoderSpec(**{**vars(spec), "num_kv_heads": 3})


class TestForgetsToTranspose(Contract):
    __test__ = True
    caught_by = "test_every_weight_is_found_in_its_shape"

    class implementation(Family):
        def stored(self, weight, spec, names):
            return tuple(Stored(each.name, False, each.rows) for each in super().stored(weight, spec, names))


class TestNamesThatAreNotThere(Contract):
    __test__ = True
    caught_by = "test_every_weight_is_found_in_its_shape"

    class implementation(Family):
        def stored(self, weight, spec, names):
            return (Stored(f"model.{weight}"),)


class TestGivesGateAndUpAsOne(Contract):
    __test__ = True
    caught_by = "test_every_weight_is_given_in_its_parts"

    class implementation(Family):
        def stored(self, weight, spec, names):
            return (Stored(str(weight), True),) if weight.role == "gate_up" else super().stored(weight, spec, names)


class TestKeyIsReadTwice(Contract):
    __test__ = True
    caught_by = "test_every_stored_value_is_used_once"

    class implementation(Family):
        def stored(self, weight, spec, names):
            parts = super().stored(weight, spec, names)
            return (parts[0], parts[1], parts[1]) if weight.role == "qkv" else parts


class TestLeavesANormBehind(Contract):
    __test__ = True
    caught_by = "test_every_stored_value_is_used_once"

    class implementation(Family):
        def stored(self, weight, spec, names):
            if weight.norm == "post":
                return (Stored(str(weight).replace("post", "input")),)
            return super().stored(weight, spec, names)


class TestUntiedHeadIsTheEmbedding(TestSoundUntied):
    __test__ = True
    caught_by = "test_a_tied_head_is_the_embedding"

    class implementation(Family):
        def stored(self, weight, spec, names):
            return (Stored("embed"),) if weight.role == "head" else super().stored(weight, spec, names)


class TestTakesAnyConfig(Contract):
    __test__ = True
    caught_by = "test_what_the_decoder_cannot_do_is_refused"

    class implementation(Family):
        def spec(self, config):
            return tiny_spec()


class TestItsTemplateForgetsTheAnswers(Contract):
    __test__ = True
    caught_by = "test_a_conversation_can_be_written_in_its_text"

    class implementation(Family):
        def text(self):
            return FamilyText("{% for said in messages if said.role == 'user' %}{{ said.content }}{% endfor %}")
