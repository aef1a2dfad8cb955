"""Small pictures held in memory, and batches of them cut, augmented and normalised for all images at once.

    python data.py [cifar10 | folder | synthetic] [DATA_DIR]     # fetch, check, and print what is there
"""

import argparse
import hashlib
import math
import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale
from tqdm import tqdm

import files

SIZE = 32


class DataError(Exception):
    """Missing or bad data; the message is one line that names the file or setting and what to do."""


class Split(NamedTuple):
    """Pictures and their classes."""
    images: Tensor  # N×3×32×32, uint8, in channels_last order
    labels: Tensor  # N, int64


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, with the mean and standard deviation of its training images by channel, in 0 to 1."""
    source: str
    classes: list[str]
    train: Split
    test: Split
    mean: list[float]
    std: list[float]


def load(name, data_dir):
    """The data set `cifar10`, `folder` or `synthetic`. Raises DataError where it is missing or bad."""
    source, classes, train, test = SOURCES[name](Path(data_dir))
    for split in (train, test):
        if len(split.labels) == 0 or not 0 <= split.labels.min() <= split.labels.max() < len(classes):
            raise DataError(f"{source}: needs images whose labels lie in 0 to {len(classes) - 1}")
    # A histogram of the 256 grey levels gives both moments exactly, without a float copy of the images.
    counts = torch.stack([train.images[:, channel].flatten().bincount(minlength=256) for channel in range(3)]).double()
    level = torch.arange(256) / 255
    mean = (counts * level).sum(1) / counts.sum(1)
    std = ((counts * (level - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt().clamp(min=1 / 255)
    return Dataset(source, classes, train, test, mean.tolist(), std.tolist())


def cifar10(root):
    """CIFAR-10 from `root`, fetched by torchvision (checksums, progress bar) unless it is there."""
    try:
        train, test = (CIFAR10(root, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        batches = [(Path(CIFAR10.base_folder, name), md5) for name, md5 in CIFAR10.train_list + CIFAR10.test_list]
        for name, md5 in [(CIFAR10.filename, CIFAR10.tgz_md5), *batches]:
            if (root / name).exists() and not check_integrity(root / name, md5):
                raise DataError(f"{root / name}: is damaged (wrong checksum) and could not be fetched again; delete or replace it") from None
        raise DataError(f"CIFAR-10 is not in {root} and could not be fetched ({error}); put {CIFAR10.filename} into "
                        f"data_dir, or use dataset=folder with pictures of your own, or dataset=synthetic") from None
    splits = [Split(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in (train, test)]
    return "CIFAR-10", train.classes, *splits


def folder(root):
    """The pictures under root/train/<class>/ and root/test/<class>/, decoded once and kept in root/decoded.pt."""
    for name in ("train", "test"):
        if not (root / name).is_dir():
            raise DataError(f"{root / name}: there is no such folder; data_dir needs train/<class>/ and test/<class>/ with pictures")
    try:
        train, test = (ImageFolder(root / name, loader=decode, allow_empty=True) for name in ("train", "test"))
    except FileNotFoundError as error:
        raise DataError(f"{root}: train/ and test/ each need a folder of pictures a class ({error})") from None
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{root}: train/ and test/ must hold the same classes; only one of them has {', '.join(odd)}")
    for part in (train, test):
        for label in set(range(len(part.classes))) - set(part.targets):
            raise DataError(f"{Path(part.root, part.classes[label])}: holds no picture; add some, or remove the class from train/ and test/")
    source = f"pictures in {root}"

    # The kept copy is used only if the same files are there, unchanged, and its own bytes are what was written.
    listing = hashlib.sha256()
    for path, _ in train.samples + test.samples:
        status = os.stat(path)
        listing.update(f"{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    kept = root / "decoded.pt"
    try:
        saved = files.load(kept)
        if saved["listing"] == listing.hexdigest() and saved["digest"] == digest(saved["tensors"]):
            images, labels, test_images, test_labels = saved["tensors"]
            return source, train.classes, Split(images, labels), Split(test_images, test_labels)
    except (files.RunError, KeyError, TypeError, ValueError):
        pass  # none yet, or damaged: decode again
    tensors = []
    for part in (train, test):
        bar = tqdm(part, desc=f"decoding {part.root}", unit=" pictures", disable=None, leave=False)
        images = torch.stack([image for image, _ in bar]).contiguous(memory_format=torch.channels_last)
        tensors += [images, torch.tensor(part.targets)]
    try:
        files.save(kept, {"format": files.FORMAT, "listing": listing.hexdigest(), "digest": digest(tensors), "tensors": tensors})
    except OSError as error:
        print(f"note: the decoded pictures could not be kept in {kept} ({error.strerror}); the next start decodes again")
    return source, train.classes, Split(*tensors[:2]), Split(*tensors[2:])


def digest(tensors):
    """SHA-256 of the tensors' shapes and bytes."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        result.update((tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().numpy())
    return result.hexdigest()


def decode(path):
    """A picture file as 3×32×32 uint8: turned upright, transparency on white, of an animation the first frame."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":
                raise ValueError("more than 8 bits a channel; save it as an 8-bit picture")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if image.size != (SIZE, SIZE):
                image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise whatever they trip over
        raise DataError(f"{path}: cannot be read as a picture ({error})") from None


def synthetic(root):
    """24,000 pictures of ten shapes and textures in random place, size, tilt and colours, with noise. `root` is not used."""
    classes = ["disc", "ring", "square", "triangle", "plus", "rows", "columns", "checks", "dots", "gradient"]
    generator = torch.Generator().manual_seed(0)

    def uniform(low, high, *shape):
        return torch.rand(shape, generator=generator) * (high - low) + low

    def draw(n):
        labels = torch.arange(n) % len(classes)
        axis = torch.linspace(-1, 1, SIZE)
        x, y = axis - uniform(-0.35, 0.35, n, 1, 1), axis[:, None] - uniform(-0.35, 0.35, n, 1, 1)
        tilt, scale = uniform(-0.35, 0.35, n, 1, 1), uniform(0.4, 0.8, n, 1, 1)
        u, v = (x * tilt.cos() + y * tilt.sin()) / scale, (y * tilt.cos() - x * tilt.sin()) / scale
        far, near, radius = u.abs().maximum(v.abs()), u.abs().minimum(v.abs()), u.square() + v.square()
        wave_u, wave_v = (8 * u).sin(), (8 * v).sin()
        shapes = [radius < 1, (radius < 1) & (radius > 0.3), far < 0.85, (v < 0.7) & (v > 2 * u.abs() - 1), (near < 0.3) & (far < 1),
                  wave_v > 0, wave_u > 0, wave_u * wave_v > 0, wave_u + wave_v > 0.8, (v / 2 + 0.5).clamp(0, 1)]
        mask = torch.stack([shape.float() for shape in shapes])[labels, torch.arange(n)]
        back, front = uniform(0.1, 0.9, 2, n, 3, 1, 1)
        front = torch.where((front - back).abs() < 0.25, (back + 0.5) % 1, front)  # never too faint to see
        noise = torch.randn((n, 3, SIZE, SIZE), generator=generator) * 0.08
        images = (back + (front - back) * mask[:, None] + noise).clamp(0, 1).mul(255).to(torch.uint8)
        return images.contiguous(memory_format=torch.channels_last), labels

    def split(n):
        return Split(*(torch.cat(parts) for parts in zip(*(draw(1000) for _ in range(n // 1000)))))

    return "synthetic pictures (not CIFAR-10)", classes, split(20_000), split(4_000)


def shrink(split, size):
    """The split with its images scaled to `size`×`size` pixels; training on fewer pixels takes less time."""
    chunks = [resize(chunk, [size, size], antialias=True) for chunk in split.images.split(1000)]
    return Split(torch.cat(chunks).contiguous(memory_format=torch.channels_last), split.labels)


class Loader:
    """Batches of normalised images (B×3×32×32 float32) and labels, cut for all images at once on the device that holds them.

    With `shuffle`, every image comes exactly once an epoch in fresh order, the last short batch included, each with random choices
    of its own: `flip` (half of them mirrored), `crop` (shifted by up to that many pixels, reflected at the border), `rotate` (turned
    by up to that many degrees), `colour` (brightness, contrast and saturation changed by up to that share), `cutout` (a grey square of
    that side). A share `mixup` of the images is blended with another of the batch (Zhang et al. 2018), a share `cutmix` gets a square of
    another (Yun et al. 2019), both in a proportion uniform from 0 to 1. Labels are classes (B, int64), or, where images are mixed, the share of
    each class (B×classes). `batch_size` counts the images of all `world` ranks; rank r takes every world-th from r.
    """

    def __init__(self, split, mean, std, batch_size, device="cpu", *, shuffle=False, flip=False, crop=0, rotate=0.0, colour=0.0, cutout=0,
                 mixup=0.0, cutmix=0.0, seed=0, rank=0, world=1):
        self.batch_size, self.shuffle, self.seed, self.rank, self.world = batch_size, shuffle, seed, rank, world
        self.flip, self.crop, self.rotate, self.colour, self.cutout, self.mixup, self.cutmix = flip, crop, rotate, colour, cutout, mixup, cutmix
        self.labels = split.labels.to(device)
        self.classes = int(split.labels.max()) + 1
        self.size = split.images.shape[-1]
        padded = F.pad(split.images, (crop,) * 4, mode="reflect").contiguous(memory_format=torch.channels_last).to(device)
        # Every crop of every image as a view, N×3×(2·crop+1)×(2·crop+1)×32×32: only the chosen ones are ever copied.
        self.windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        self.mean, self.std = (torch.tensor(value, device=device).view(3, 1, 1) * 255 for value in (mean, std))

    def __len__(self):
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, epoch=0, start=0):
        """Batches `start`, `start` + 1, … of an epoch. Each image's choices depend on the seed, the epoch and its place in the order alone."""
        n, device = len(self.labels), self.labels.device
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        shift = torch.randint(0, 2 * self.crop + 1, (2, n), generator=generator)
        mirror = torch.rand(n, generator=generator) < 0.5 * self.flip
        hole = torch.randint(0, self.size, (2, n), generator=generator)
        angle = (torch.rand(n, generator=generator) * 2 - 1) * math.radians(self.rotate)
        factors = 1 + (torch.rand((3, n), generator=generator) * 2 - 1) * self.colour
        kind, share = torch.rand((2, n), generator=generator)
        place = torch.randint(0, self.size, (2, n), generator=generator)
        order, (top, left), mirror, hole, angle, factors, kind, share, place = (
            choice.to(device) for choice in (order, shift, mirror, hole, angle, factors, kind, share, place))
        for first in range(start * self.batch_size, n, self.batch_size):
            part = slice(first + self.rank, min(first + self.batch_size, n), self.world)
            images, labels = self.windows[order[part], :, top[part], left[part]], self.labels[order[part]]
            images = torch.where(mirror[part, None, None, None], images.flip(3), images).float()
            if self.colour:
                images = recolour(images, *factors[:, part, None, None, None])
            images.sub_(self.mean).div_(self.std)
            if self.rotate:
                images = turn(images, angle[part])
            if self.cutout:
                images.masked_fill_(squares(hole[:, part], hole.new_full((1,), self.cutout), self.size), 0)
            if self.mixup or self.cutmix:
                # How much of each pixel is the image's own: the same everywhere, or none in a square.
                chosen, blend = kind[part, None, None, None], share[part, None, None, None]
                square = squares(place[:, part], (1 - share[part]).sqrt() * self.size, self.size)
                own = torch.where(chosen < self.mixup, blend, 1 - (square & (chosen >= 1 - self.cutmix)).float())
                images = images.lerp(images.roll(1, 0), 1 - own)
                labels = F.one_hot(labels, self.classes).float()
                labels = labels.lerp(labels.roll(1, 0), 1 - own.mean((1, 2, 3))[:, None])
            yield images, labels


def squares(centre, side, size):
    """B×1×size×size, true in a square around each centre (2×B): where c - side/2 <= pixel < c + side/2."""
    offset = torch.arange(size, device=centre.device) - centre[:, :, None]
    rows, columns = (2 * offset >= -side[..., None]) & (2 * offset < side[..., None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def recolour(images, brightness, contrast, saturation):
    """Images (B×3×H×W, 0 to 255), each with its own factors (B×1×1×1), as torchvision's adjust_brightness and the like do it for one."""
    images = (images * brightness).clamp_(0, 255)
    grey = rgb_to_grayscale(images)
    images = torch.lerp(grey.mean((1, 2, 3), keepdim=True), images, contrast).clamp_(0, 255)
    return torch.lerp(rgb_to_grayscale(images), images, saturation).clamp_(0, 255)


def turn(images, angle):
    """Images (B×3×H×W) turned about their centre, each by its own angle (B, radians), reflected at the border."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    grid = F.affine_grid(torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).contiguous(memory_format=torch.channels_last)


SOURCES = {"cifar10": cifar10, "folder": folder, "synthetic": synthetic}


def main(argv=None):
    """Fetch and check a data set and print what is there."""
    parser = argparse.ArgumentParser(description="Fetch and check a data set and print what is there.")
    parser.add_argument("dataset", nargs="?", default="cifar10", choices=list(SOURCES))
    parser.add_argument("data_dir", nargs="?", default="data")
    arguments = parser.parse_args(argv)
    try:
        found = load(arguments.dataset, arguments.data_dir)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{found.source}: {len(found.train.labels):,} training and {len(found.test.labels):,} test images of {SIZE}×{SIZE} pixels")
    print("mean", *(f"{value:.4f}" for value in found.mean), "  standard deviation", *(f"{value:.4f}" for value in found.std))
    counts = [split.labels.bincount(minlength=len(found.classes)).tolist() for split in (found.train, found.test)]
    for name, train, test in zip(found.classes, *counts):
        print(f"{name:>20}  {train:>7,} train  {test:>7,} test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
