"""Claims about GPUs: which are used, how many make a worker, and how they are dealt out.

The sizes are worked by hand: a GPU of M MiB has room for 0.6 * M * 2**20 bytes of weights.
"""

from types import SimpleNamespace

import pytest

from self_lengthen import devices
from self_lengthen.devices import (
    Gpu,
    default_tensor_parallel,
    select_gpus,
    visible_gpus,
    worker_groups,
)
from self_lengthen.errors import UserError

LISTING = "0, GPU-aaa, 81559\n1, GPU-bbb, 81559\n2, GPU-ccc, 24564\n3, GPU-ddd, 24564\n"
GIB = 1024  # in MiB


def gpus(count: int, gib: int = 80) -> list[Gpu]:
    return [Gpu(str(number), gib * GIB) for number in range(count)]


class TestSelectGpus:
    @pytest.mark.parametrize(
        ("visible", "ids"),
        [
            (None, ["0", "1", "2", "3"]),
            ("", []),
            ("2,3", ["2", "3"]),
            (" 3 , 1 ", ["3", "1"]),
            ("GPU-ccc,GPU-aaa", ["GPU-ccc", "GPU-aaa"]),
            ("1,-1,2", ["1"]),
            ("-1", []),
        ],
    )
    def test_cuda_visible_devices_chooses_and_orders(self, visible, ids):
        assert [gpu.id for gpu in select_gpus(LISTING, visible)] == ids

    def test_the_memory_is_that_of_the_chosen_gpu(self):
        assert select_gpus(LISTING, "2,GPU-bbb") == [Gpu("2", 24564), Gpu("GPU-bbb", 81559)]

    @pytest.mark.parametrize("visible", ["4", "0,9", "GPU-zzz", "all"])
    def test_a_gpu_that_is_not_there_is_named(self, visible):
        missing = visible.rpartition(",")[2]
        with pytest.raises(UserError) as refusal:
            select_gpus(LISTING, visible)
        assert str(refusal.value) == (
            f"CUDA_VISIBLE_DEVICES={visible}: there is no GPU {missing} on this node"
        )

    def test_memory_that_is_not_told_is_unknown_and_no_reason_to_split(self):
        found = select_gpus("0, GPU-aaa, [N/A]\n1, GPU-bbb, [Not Supported]\n", None)
        assert found == [Gpu("0", 0), Gpu("1", 0)]
        assert default_tensor_parallel(found, 140 * 2**30, 64) == 1

    def test_an_empty_listing_has_no_gpus(self):
        assert select_gpus("\n", None) == []


class TestVisibleGpus:
    @pytest.fixture(autouse=True)
    def _cuda_torch(self, monkeypatch):
        self.set_torch(monkeypatch, "2.13.0+cu130")

    @staticmethod
    def set_torch(monkeypatch, version: str) -> None:
        metadata = SimpleNamespace(version=lambda package: {"torch": version}[package])
        monkeypatch.setattr(devices, "importlib", SimpleNamespace(metadata=metadata))

    def test_nvidia_smi_is_asked(self, monkeypatch):
        monkeypatch.setattr(devices, "QUERY", ("printf", "%b", LISTING.replace("\n", r"\n")))
        found = visible_gpus({"CUDA_VISIBLE_DEVICES": "1,2"})
        assert found == [Gpu("1", 81559), Gpu("2", 24564)]
        assert len(visible_gpus({})) == 4

    @pytest.mark.parametrize("query", [("/no/such/nvidia-smi",), ("false",)])
    def test_without_a_driver_there_are_none(self, monkeypatch, query):
        monkeypatch.setattr(devices, "QUERY", query)
        assert visible_gpus({}) == []

    def test_a_driver_that_hangs_does_not_hang_us(self, monkeypatch):
        monkeypatch.setattr(devices, "QUERY", ("sleep", "60"))
        monkeypatch.setattr(devices, "QUERY_TIMEOUT_S", 0.1)
        assert visible_gpus({}) == []

    def test_a_torch_for_the_cpu_uses_none(self, monkeypatch):
        self.set_torch(monkeypatch, "2.13.0+cpu")
        monkeypatch.setattr(devices, "QUERY", ("printf", "%b", LISTING.replace("\n", r"\n")))
        assert visible_gpus({}) == []


class TestDefaultTensorParallel:
    SEVEN_B = 15_200_000_000  # bytes in bf16; Qwen2.5-7B has 28 heads, Llama-3.1-8B 32
    SEVENTY_TWO_B = 145_400_000_000  # Qwen2.5-72B: 64 heads

    def test_without_gpus_it_is_one(self):
        assert default_tensor_parallel([], self.SEVENTY_TWO_B, 64) == 1

    def test_7b_fits_on_one_gpu_of_80_gib(self):
        # room 0.6 * 80 GiB = 51.5 GB > 15.2 GB
        assert default_tensor_parallel(gpus(8), self.SEVEN_B, 28) == 1

    def test_7b_fits_just_on_one_gpu_of_24_gib(self):
        # room 0.6 * 24 GiB = 15.46 GB > 15.2 GB
        assert default_tensor_parallel(gpus(8, 24), self.SEVEN_B, 28) == 1

    def test_8b_takes_two_gpus_of_24_gib(self):
        # 16.1 GB > 15.46 GB; half of it is not
        assert default_tensor_parallel(gpus(8, 24), 16_100_000_000, 32) == 2

    def test_72b_takes_four_gpus_of_80_gib(self):
        # 145.4 / 2 = 72.7 GB > 51.5 GB; 145.4 / 4 = 36.4 GB is not
        assert default_tensor_parallel(gpus(8), self.SEVENTY_TWO_B, 64) == 4

    def test_72b_takes_all_of_eight_gpus_of_40_gib(self):
        # room 25.8 GB; 145.4 / 4 = 36.4 GB is over it, 145.4 / 8 = 18.2 GB is not
        assert default_tensor_parallel(gpus(8, 40), self.SEVENTY_TWO_B, 64) == 8

    def test_the_smallest_gpu_counts(self):
        mixed = [Gpu("0", 80 * GIB), Gpu("1", 24 * GIB)]
        assert default_tensor_parallel(mixed, 16_100_000_000, 32) == 2

    def test_it_never_takes_more_gpus_than_there_are(self):
        assert default_tensor_parallel(gpus(3), self.SEVENTY_TWO_B, 64) == 2

    def test_it_divides_the_attention_heads(self):
        # 28 heads: 4 divides them, 8 does not
        assert default_tensor_parallel(gpus(8, 40), self.SEVENTY_TWO_B, 28) == 4

    def test_unknown_weights_take_one_gpu(self):
        assert default_tensor_parallel(gpus(8), 0, 64) == 1


class TestWorkerGroups:
    @pytest.mark.parametrize(
        ("count", "size", "groups"),
        [
            (1, 1, [["0"]]),
            (2, 1, [["0"], ["1"]]),
            (4, 2, [["0", "1"], ["2", "3"]]),
            (2, 2, [["0", "1"]]),
            (0, 1, [[]]),
        ],
    )
    def test_every_gpu_is_in_one_group_of_the_size(self, count, size, groups):
        assert worker_groups(gpus(count), size, 64) == groups

    @pytest.mark.parametrize(("count", "size"), [(3, 2), (2, 4), (6, 4)])
    def test_gpus_that_cannot_be_dealt_out_are_refused(self, count, size):
        with pytest.raises(UserError, match=rf"^--tensor_parallel={size}: {count} visible GPUs"):
            worker_groups(gpus(count), size, 64)

    def test_heads_that_cannot_be_dealt_out_are_refused(self):
        with pytest.raises(UserError, match="28 attention heads cannot be dealt out to 8 GPUs"):
            worker_groups(gpus(8), 8, 28)

    def test_an_unknown_number_of_heads_refuses_nothing(self):
        assert len(worker_groups(gpus(8), 8, 0)) == 1

    def test_parallelism_without_gpus_is_refused(self):
        with pytest.raises(UserError, match="^--tensor_parallel=2: this node has no visible GPU$"):
            worker_groups([], 2, 64)
