"""What only a CUDA device can show: a run on it learns as one on the CPU does, is stopped and goes on."""

from __future__ import annotations

import signal
import time

import pytest
import torch
import torch.distributed as dist
from prometheus_client import CollectorRegistry, generate_latest

from mvfoul.clip import preset
from mvfoul.errors import OutOfMemoryError
from training import memory
from training.assembly import assemble
from training.checkpoint import load_checkpoint, load_network
from training.distributed import World
from training.exposition import RunMetrics
from training.folder import BEST, LAST
from training.learner import build_learner
from training.model.network import FoulNetwork
from training.run import train

pytestmark = pytest.mark.gpu

CLIP = {"num_frames": 8, "size_px": 32}
COUNTS = {"action": [1] * 8, "offence_severity": [1] * 4}


@pytest.fixture
def gpu_config(tiny_config, tmp_path):
    def make(name="gpu", **settings):
        return tiny_config(**{"output": tmp_path / name, "device": "cuda", "clip": CLIP, **settings})

    return make


def test_the_losses_are_those_of_the_cpu(gpu_config, monkeypatch):
    """MViT has no batch norms, which make much of little: rounding to 18 bits moves mc3_18's second epoch by 2 %."""
    # On tensor cores convolutions keep 10 bits of each factor (TF32, PyTorch's default).
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr("training.model.mvit._STOCHASTIC_DEPTH", 0.0)
    how = {"clip": {"num_frames": 4, "size_px": 32}, "model": {"backbone": "mvit_v2_s", "aggregation": "attention"}}
    on_gpu, on_cpu = (train(gpu_config(f"on {device}", device=device, **how)).histories for device in ("cuda", "cpu"))
    for split in ("train", "valid"):
        assert on_gpu[f"{split}/loss"] == pytest.approx(on_cpu[f"{split}/loss"], rel=2e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize(
    "loop",
    [
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"amp": "bf16", "channels_last": True, "gradient_checkpointing": True, "accumulate": 2},
        {"amp": "bf16", "compile": True},
    ],
    ids=lambda loop: "-".join(str(value) for value in loop.values()),
)
def test_every_way_to_compute_a_step_learns_and_its_checkpoint_answers_on_the_cpu(gpu_config, loop):
    config = gpu_config(loop={"epochs": 12, **loop}, augment={"preset": "flip" if "accumulate" in loop else "none"})
    histories = train(config).histories
    losses = histories["train/loss"]
    assert losses[-1] < 0.9 * losses[0]
    views = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    answers = []
    for device in ("cpu", "cuda"):
        network, _ = load_network(config.output / BEST, device)
        with torch.inference_mode():
            answers.append(network.eval().encode(views.to(device)).cpu())
    cosine = torch.nn.functional.cosine_similarity(*answers, dim=1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_a_stopped_run_goes_on_with_its_optimiser_and_its_loss_scale(programs, gpu_config, tiny_dataset, amp):
    config = gpu_config("stopped")
    flags = ["--recipe", "cpu-demo", "--device", "cuda", "--clip.num-frames", "8", "--clip.size-px", "32"]
    flags += ["--data.root", tiny_dataset, "--output", config.output, "--loop.amp", amp]
    first = programs.start([*flags, "--loop.epochs", "1000"])
    last = config.output / LAST
    end = time.monotonic() + 120
    while not last.exists():
        assert first.running(), first.err
        assert time.monotonic() < end
        time.sleep(0.1)
    first.kill(signal.SIGTERM)
    assert first.wait() == 75, first.err
    before = load_checkpoint(last)
    second = programs.start([*flags, "--resume", "--loop.epochs", str(before.epoch + 3)])
    assert second.wait() == 0, second.err
    after = load_checkpoint(last)
    assert after.epoch > before.epoch
    assert after.histories["train/loss"][: before.epoch] == before.histories["train/loss"][: before.epoch]
    assert bool(after.scaler) == (amp == "fp16")


def test_ddp_over_nccl_with_synchronised_norms_has_the_gradients_of_one_process(gpu_config, tmp_path):
    """A group of one: NCCL takes no second process on the same GPU."""
    config = gpu_config(model={"sync_batch_norm": True})
    plain = _learner(gpu_config(), World())
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        shared = _learner(config, World(size=2, local_size=2))
        shared.network.load_state_dict(plain.network.state_dict())
        batch = next(iter(assemble(gpu_config("data")).train.loader))
        for learner in (plain, shared):
            learner.start_epoch(0)
            learner.forward(learner.prepare(batch)).action.square().sum().backward()
        norms = [module for module in shared.network.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
        assert len(norms) > 10
        other = dict(shared.network.named_parameters())
        for name, parameter in plain.network.backbone.named_parameters():
            got, expected = other[f"backbone.{name}"].grad, parameter.grad
            assert (got - expected).norm() <= 0.02 * expected.norm() + 1e-6, name
        assert shared.world.sum(torch.ones(2, device="cuda")).tolist() == [1, 1]
    finally:
        dist.destroy_process_group()


def _learner(config, world):
    torch.manual_seed(0)
    network = FoulNetwork("mc3_18", clip=preset(num_frames=8, size_px=32))
    return build_learner(config, network, COUNTS, torch.device("cuda"), world)


def test_memory_that_is_short_is_said_with_the_gpus_size(gpu_config):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6e9 / total)
    try:
        with pytest.raises(OutOfMemoryError, match=r"views of 16x112x112 on cuda.*the GPU has \d+\.\d GiB.*--loop"):
            train(gpu_config(clip={"num_frames": 16, "size_px": 112}, loop={"batch_size": 16}))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_prometheus_reads_what_pytorch_holds_of_the_gpu(gpu_config):
    config = gpu_config()
    registry = CollectorRegistry()
    learner = _learner(config, World())
    RunMetrics(config, "run", registry).watch(learner)
    (line,) = [line for line in generate_latest(registry).decode().splitlines() if "gpu_memory_bytes{" in line]
    labels, value = line.split()
    assert labels == 'mvfoul_training_gpu_memory_bytes{device="0"}'
    assert float(value) == torch.cuda.memory_reserved() > 40e6
    memory.forget_peak(learner.device)
    assert memory.peak_bytes(learner.device) == torch.cuda.max_memory_allocated() > 40e6
