"""Ranks that are threads and meet in a table, sound and unsound."""

import threading

from core.compute.torch_backend.backend import TorchBackend
from core.errors import EngineDeadError
from core.interfaces.parallel import Collective
from core.testing import ParallelismContract

TABLES = {}
LOCK = threading.Lock()


class Table:
    """What each rank brought to each call, and who has left after how many."""

    def __init__(self):
        self.changed = threading.Condition()
        self.brought = {}
        self.left = {}


class Threads(Collective):
    def __init__(self, rank, ranks):
        self.rank = rank
        self.ranks = ranks

    def meet(self, folder):
        self.calls = 0
        with LOCK:
            self.table = TABLES.setdefault(folder, Table())

    def together(self, array):
        call, table = self.calls, self.table
        self.calls += 1
        wanted = [(call, rank) for rank in range(self.ranks)]
        with table.changed:
            table.brought[call, self.rank] = array.clone()
            table.changed.notify_all()
            table.changed.wait_for(lambda: table.brought.keys() >= set(wanted) or self.missed(call), 20)
            if self.missed(call):
                raise EngineDeadError("a rank is gone")
            return [table.brought[each] for each in wanted]

    def missed(self, call):
        return any(calls <= call for calls in self.table.left.values())

    def sum(self, array):
        first, *others = self.together(array)
        return sum(others, first)

    def gather(self, array):
        import torch

        arrays = self.together(array)
        return torch.cat(arrays, 1) if self.rank == 0 else None

    def close(self):
        with self.table.changed:
            self.table.left[self.rank] = self.calls
            self.table.changed.notify_all()


class Contract(ParallelismContract):
    __test__ = False
    implementation = Threads

    def make(self, rank, ranks):
        return self.implementation(rank, ranks)

    def backend(self):
        return TorchBackend("cpu", "float32", threads=1)


class TestSound(Contract):
    __test__ = True


class TestSumsInItsOwnOrder(Contract):
    __test__ = True
    caught_by = "test_sums_have_the_same_bits_on_every_rank"

    class implementation(Threads):
        def sum(self, array):
            arrays = self.together(array)
            own = arrays.pop(self.rank)
            return sum(arrays, own * 1.0001)


class TestGathersBackwards(Contract):
    __test__ = True
    caught_by = "test_rank_0_gathers_side_by_side"

    class implementation(Threads):
        def together(self, array):
            return super().together(array)[::-1]


class TestGoesOnAlone(Contract):
    __test__ = True
    caught_by = "test_a_rank_that_leaves_is_noticed"

    class implementation(Threads):
        def sum(self, array):
            try:
                return super().sum(array)
            except EngineDeadError:
                return array


class TestForgetsARank(Contract):
    __test__ = True
    caught_by = "test_ranks_compute_the_logits_of_one_alone"

    class implementation(Threads):
        def sum(self, array):
            return self.together(array)[0]


class TestRoundsSums(Contract):
    __test__ = True
    caught_by = "test_ranks_multiply_by_the_quantized_weights_of_one_alone"

    class implementation(Threads):
        def sum(self, array):
            return super().sum(array).bfloat16().float()
