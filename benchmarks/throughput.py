"""Images per second of each part of training, side by side in one run, and the ratios that tell where time goes.

    python -m benchmarks.throughput                      # every network
    python -m benchmarks.throughput fast s8 batch_size=128

For each network: (a) our batches alone; (b) torchvision's usual pipeline alone (PIL images, RandomCrop, RandomHorizontalFlip,
ToTensor, Normalize, DataLoader with 2 workers, batches of 128); (c) the training step on one fixed batch; (d) the real training loop;
(e) the network's convolutions alone, forward and backward, each at its own shape: the limit. The images are random; what is measured
does not depend on them. Medians of several rounds, in which the parts take turns, so that a noisy machine hits all alike.
"""

import argparse
import statistics
import sys
import time

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import data
import model
import settings as configuration
import train

IMAGES, ROUNDS = 20_000, 3


class Pictures(Dataset):
    """What torchvision's CIFAR10 does for each image: an array to a PIL image, then the transform."""

    def __init__(self, split):
        self.images, self.labels = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        self.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                                             transforms.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def rate(work, seconds):
    """Images per second of `work`, an iterator that yields numbers of images done, after its first one."""
    next(work)
    began, images = time.perf_counter(), 0
    for count in work:
        images += count
        if (spent := time.perf_counter() - began) > seconds:
            break
    return images / spent


def synchronise(device):
    """Wait for the device, so that what was asked of it is done when the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def ours(trainer):
    for epoch in range(1000):
        for images, _ in trainer.train_loader.epoch(epoch):
            synchronise(trainer.device)
            yield len(images)


def torchvisions(loader):
    while True:
        for images, _ in loader:
            yield len(images)


def fixed_batch(trainer):
    batch = next(trainer.train_loader.epoch())
    while True:
        for _ in trainer.batches(trainer.forward, [batch], trainer.totals, trainer.update):
            synchronise(trainer.device)
            yield len(batch[0])


def real_loop(trainer):
    for epoch in range(1000):
        trainer.step = 0
        for logits, _ in trainer.batches(trainer.forward, trainer.train_loader.epoch(epoch), trainer.totals, trainer.update):
            trainer.step += 1
            trainer.attend()
            yield len(logits)


def convolutions(trainer):
    """Every convolution of the network, forward and backward, on inputs of its own shape kept from one pass."""
    calls = []
    hooks = [layer.register_forward_hook(lambda layer, inputs, output: calls.append(
        (layer, inputs[0].detach().requires_grad_(inputs[0].requires_grad), torch.ones_like(output))))
             for layer in trainer.network.modules() if isinstance(layer, nn.Conv2d)]
    images, _ = next(trainer.train_loader.epoch())
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.bfloat16):
        trainer.network(images)
    for hook in hooks:
        hook.remove()
    while True:
        for layer, entry, gradient in calls:
            with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.bfloat16):
                result = layer(entry)
            if wanted := [tensor for tensor in (layer.weight, entry) if tensor.requires_grad]:
                torch.autograd.grad(result, wanted, gradient)
        synchronise(trainer.device)
        yield len(images)


def main(argv=None):
    """Print the table for the networks named, or for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="network | name=value")
    arguments = parser.parse_args(argv).words
    pairs = [argument for argument in arguments if "=" in argument]
    names = [argument for argument in arguments if "=" not in argument] or list(model.NETWORKS)
    try:
        chosen = [train.resolve(configuration.read([*pairs, f"network={name}", "small_epochs=0"])) for name in names]
    except configuration.SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    split = data.Split(images, torch.arange(IMAGES) % 10)
    dataset = data.Dataset("random images", [str(label) for label in range(10)], split, split, [0.5] * 3, [0.25] * 3)
    loader = DataLoader(Pictures(split), batch_size=128, shuffle=True, num_workers=2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; images/s, median of {ROUNDS} rounds")
    print(f"{'network':<18}" + "".join(f"{title:>14}" for title in ("a batches", "b torchvision", "c step", "d loop", "e conv only", "a/b", "d/c", "d/e")))
    a = b = None
    for settings in chosen:
        trainer = train.Trainer(settings, dataset, train.pick_device(settings.device))
        if a is None:  # these two are the same for every network
            a, b = medians((lambda: ours(trainer), lambda: torchvisions(loader)), 1.5)
        c, d, e = medians((lambda: fixed_batch(trainer), lambda: real_loop(trainer), lambda: convolutions(trainer)), 0.8)
        print(f"{settings.network:<18}{a:>14,.0f}{b:>14,.0f}{c:>14,.0f}{d:>14,.0f}{e:>14,.0f}{a / b:>14.1f}{d / c:>14.2f}{d / e:>14.2f}", flush=True)
    return 0


def medians(parts, seconds):
    """The median rate of each part over rounds in which they take turns."""
    return [statistics.median(column) for column in zip(*[[rate(part(), seconds) for part in parts] for _ in range(ROUNDS)])]


if __name__ == "__main__":
    sys.exit(main())
