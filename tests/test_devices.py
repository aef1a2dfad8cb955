import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import FILES, settings_of_run
from soak import ROOT, launch
from torch import nn

import model
import train
from harness import checkpoint, devices, folder, metrics, settings
from harness.errors import FirstRankFailed, UserError

windows = sys.platform == "win32"
needs_torchrun = pytest.mark.skipif(windows, reason="torchrun needs libuv, which torch for Windows lacks")


def gradients(pairs):
    """The gradients after each update of an epoch, whose last batch is short."""
    chosen = settings.read(pairs)
    training = train.Training(chosen, train.load_data(chosen), torch.device("cpu"))
    found = []
    # In training mode BatchNorm's statistics would differ between one process and several.
    training.network.train = lambda mode=True: training.network
    nn.Module.train(training.network, False)
    training.optimizer.zero_grad = lambda: None
    weights = [weight for weight in training.network.parameters() if weight.requires_grad]

    def after_batch(training):
        found.extend(weight.grad.clone() for weight in weights)
        for weight in weights:
            weight.grad = None

    train.train_epoch(training, after_batch)
    return found, training.all_losses()


def images_after_resuming(pairs):
    """What the second epoch trains on, which leaves images out, and what it does resumed between the two.

    With it the losses of these images before that epoch has seen any.
    """
    chosen = settings.read([*pairs, "epochs=5", "leave_out=0.6"])
    pair = [train.Training(chosen, train.load_data(chosen), torch.device("cpu")) for _ in range(2)]
    training, resumed = pair
    means = [part(training, lambda training: None) for part in (train.train_epoch, train.test_epoch)]
    training.end_epoch(*means)
    resumed.load_state_dict(training.state_dict())
    for each in pair:
        each.begin_epoch()
    return [each.indices.tolist() for each in pair], training.all_losses()[training.indices].tolist()


def divergence(rank):
    """What a rank says where only the other's loss is no longer finite."""
    meter = metrics.Meter(torch.device("cpu"), "epoch 1", 0.1)
    meter.add(torch.eye(2), torch.tensor([0, 1]), torch.tensor([1.0, float("inf") if rank else 1.0]))
    with pytest.raises(UserError) as error:
        meter.means()
    return str(error.value)


def agreements(rank, root):
    """What a rank learns of the other's numbers."""
    learnt = [devices.agree(0, rank), devices.agree(15 * rank, 1 - rank), devices.agree(0, 0)]
    asked = [batch for batch in range(100) if devices.time_to_agree(batch)]
    total = devices.total(torch.tensor([1.0, rank])).tolist()
    order = []
    with devices.first_rank_first():
        order.append((root / "first").exists())
        if rank == 0:
            time.sleep(0.05)  # meanwhile the other would come
            (root / "first").touch()
    with contextlib.suppress(FirstRankFailed, OSError), devices.first_rank_first():
        order.append("went on")  # as rank 0 does, until it fails
        raise OSError
    return learnt, asked, total, divergence(rank), order


def be_a_rank(rank, root, pairs):
    """Save what one of two ranks finds, and leave no thread behind."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(root / "meeting").as_uri(), rank=rank, world_size=2)
    torch.save(
        (agreements(rank, root), gradients(pairs), images_after_resuming(pairs)), root / f"rank{rank}.pt"
    )
    devices.leave()
    tasks = Path("/proc/self/task").glob("*")  # none where there is no /proc
    threads = [Path(task, "comm").read_text() for task in tasks]
    assert not any("gloo" in name for name in threads), threads


@pytest.fixture(scope="module")
def deterministic(pictures):
    """Settings under which one process and several compute the same."""
    same = ["precision=float32", "dropout=0", "small_epochs=0"]
    return [*settings_of_run(pictures, "unused"), *same]


@pytest.fixture(scope="module")
def ranks(deterministic, tmp_path_factory):
    """What each of two ranks found: agreements, gradients, images. One start serves several tests."""
    root = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(be_a_rank, (root, deterministic), nprocs=2)
    return [torch.load(root / f"rank{rank}.pt") for rank in range(2)]


def test_gradients_of_two_ranks_are_those_of_one_process(ranks, deterministic):
    one = gradients(deterministic)
    for _, two, _ in ranks:
        assert len(one[0]) == len(two[0]) > 0
        for a, b in zip([*one[0], one[1]], [*two[0], two[1]]):  # and the losses of all images
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * a.abs().max().item() + 1e-7)


def test_resumed_ranks_train_on_the_images_they_would_have(ranks):
    (straight, *others), resumed = zip(*(images for *_, (images, _) in ranks))
    assert 0 < len(straight) < 21 and others == [straight] and resumed == (straight, straight)


def test_no_loss_is_added_up_that_was_of_the_epoch_before(ranks):
    assert not any(sum(to_come) for *_, (_, to_come) in ranks)


def test_ranks_agree_on_the_largest_and_ask_now_and_then(ranks):
    for (learnt, asked, total, *_), *_ in ranks:
        assert learnt == [[0, 1], [15, 1], [0, 0]] and total == [2, 1]
        assert asked[0] == 0 and 4 < len(asked) < 20
    assert devices.agree(1, 2) == [1, 2] and devices.time_to_agree(7)  # alone


def test_all_ranks_say_that_a_loss_is_no_longer_finite(ranks):
    (first, second), words = [said for (*_, said, _), *_ in ranks], "no longer finite in epoch 1, step 1,"
    assert first == second and words in first


def test_the_first_rank_goes_first_and_the_others_learn_that_it_failed(ranks):
    first, second = (orders for (*_, orders), *_ in ranks)
    assert (first, second) == ([False, "went on"], [True])


@needs_torchrun
def test_torchrun_shows_an_error_once(arguments, tmp_path):
    process = launch(*arguments, f"data_dir={tmp_path / 'none'}", ranks=2)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and not (tmp_path / "run").exists()
    assert error.count("error: ") == 1 and "there is no such folder" in error


def test_a_batch_smaller_than_the_ranks_is_refused(arguments, monkeypatch, call):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 6)
    monkeypatch.setattr(dist, "all_reduce", lambda *_: None)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda network: network)
    code, _, error = call(*arguments)
    assert code == 2 and "batch_size=8" in error and len(error.splitlines()) == 1


@needs_torchrun
def test_two_ranks_make_one_run_stop_together_and_resume(arguments, tmp_path):
    run = tmp_path / "run"
    process = launch(*arguments, "epochs=5000", ranks=2)
    for line in process.stdout:
        if line.startswith("epoch   3"):
            break
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its workers
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and error.count("stopped and saved; go on with") == 1, error
    done = len(checkpoint.load(run / "last.pt")["rows"])
    out, error = launch("--resume", run, f"epochs={done + 1}", ranks=2).communicate(timeout=120)
    assert "2 ranks" in out and out.count("\nepoch ") == out.count("evaluate with") == 1, error
    assert sorted(path.name for path in run.iterdir()) == FILES
    rows = folder.read_metrics(run / "metrics.csv")
    assert [row.epoch for row in rows] == list(range(1, done + 2))
    for part, images in (("train", 21), ("test", 12)):
        for row in rows:  # each image was counted once
            right = getattr(row, f"{part}_accuracy") * images / 100
            assert right == pytest.approx(round(right), abs=1e-3)


def test_a_run_in_a_thread_trains_without_signals(arguments, tmp_path):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(train.main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0] and (tmp_path / "run" / "best.pt").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda_is_named(call, arguments):
    code, _, error = call(*arguments, "device=cuda")
    assert code == 2 and "device=cuda" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("torchrun, codes", [(False, [128 + signal.SIGTERM]), (True, [])])
def test_a_second_signal_ends_the_process_at_once_but_not_under_torchrun(monkeypatch, torchrun, codes):
    ended, stop = [], devices.StopSignal()
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(dist, "is_initialized", lambda: torchrun)
    stop.listen()
    try:
        signal.raise_signal(signal.SIGINT)
        assert ended == []
        signal.raise_signal(signal.SIGTERM)
    finally:
        stop.release()
    assert ended == codes


def test_signals_are_given_back_after_the_block():
    before = signal.getsignal(signal.SIGTERM)
    stop = devices.StopSignal()
    stop.listen()
    signal.raise_signal(signal.SIGTERM)
    stop.release()
    assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose malloc is asked")
def test_freed_memory_is_kept_for_the_next_step():
    import resource

    devices.pick("cpu")
    libc, size = ctypes.CDLL(None), 27 * 2**20
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    faults = []
    for _ in range(3):  # not of tensors: where torch aligns one in the heap differs from step to step
        step = [libc.malloc(size) for _ in range(4)]
        for memory in step:
            ctypes.memset(memory, 1, size)
            libc.free(memory)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert faults[2] - faults[0] < 100


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot take tiny numbers for 0")
def test_tiny_numbers_are_taken_for_zero_by_all_threads(finished):
    code = """import sys, torch, train
def count(*_, **__):
    tiny = torch.ones(2**22, dtype=torch.int32).view(torch.float32)
    print((tiny * 1.0).view(torch.int32).count_nonzero().item())
train.run = count
train.main([f"weights={sys.argv[1]}"])"""
    words = [sys.executable, "-c", code, str(finished / "best.pt")]
    several = os.environ | {"OMP_NUM_THREADS": "4"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=several)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.skipif(windows, reason="needs POSIX signals")
def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = devices.StopSignal()
    stop.listen()
    signal.raise_signal(signal.SIGHUP)
    stop.release()
    assert stop.number == 0 and signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


def test_auto_is_cuda_where_it_works_else_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "cuda_fails", lambda device: "")
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert devices.pick("auto") == devices.pick("cuda") == torch.device("cuda", rank)
    assert devices.pick("cpu").type == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="torch finds 2 CUDA devices"):
        devices.pick("auto")


@pytest.mark.parametrize("kind", [RuntimeError, torch.cuda.DeferredCudaCallError])
def test_a_gpu_that_torch_has_no_code_for_is_not_taken(kind, monkeypatch, capsys):
    def fail(*_, **__):
        raise kind("CUDA error: no kernel image is available\nCompile with ...")

    for owner, name, value in (
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "set_device", lambda device: None),
        (torch, "ones", fail),
    ):
        monkeypatch.setattr(owner, name, value)
    assert devices.pick("auto").type == "cpu"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: cuda:0 does not work") and "no kernel image is available)" in line
    with pytest.raises(UserError, match="device=cuda: cuda:0 does not work .*device=cpu"):
        devices.pick("cuda")
    monkeypatch.setattr(devices, "world_size", lambda: 2)  # one rank alone must not take another device
    with pytest.raises(UserError, match="device=auto"):
        devices.pick("auto")


@pytest.mark.parametrize("name, usual_order", [("separable", True), ("fast", False)])
def test_without_onednn_depthwise_networks_keep_the_usual_order(name, usual_order, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network, seen = model.build(name).eval(), []
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    before = network(images)
    network = devices.place(network, torch.device("cpu"))
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    assert torch.allclose(network(images), before, atol=1e-4)
    assert set(seen[:-1]) == {usual_order}  # the last has one pixel, which is in every order
    assert convolutions[0].weight.is_contiguous() == usual_order


def test_without_onednn_nothing_is_left_to_nnpack(monkeypatch):
    flags = []
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.nnpack, "set_flags", flags.append)
    devices.pick("cpu")
    assert flags == [False]


def test_peak_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert devices.peak_memory(torch.device("cuda")) == 3
    assert windows or 0.05 < devices.peak_memory(torch.device("cpu")) < 1000
