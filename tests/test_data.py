import errno
import hashlib
import os
import pickle
import shutil
import struct
import sys
import tarfile
from http.client import HTTPException
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CLASSES
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

import data
from data import Augmentation, DataError, Info, Loader, Split


def numbered(n, size=8):
    """A split of n pictures, each filled with its own number, whose label is that number too."""
    numbers = torch.arange(n)
    return Split(numbers.view(-1, 1, 1, 1).expand(n, 3, size, size).to(torch.uint8).contiguous(), numbers)


def loader(split, batch_size=16, seed=None, rank=0, world=1, **options):
    """Batches of pixels from 0 to 255, a class a number."""
    classes = [str(number) for number in range(int(split.labels.max()) + 1)]
    info = Info("test", classes, [0.0] * 3, [1 / 255] * 3, len(split.labels), 0, "test")
    return Loader(split, info, batch_size, "cpu", Augmentation(**options), seed, rank, world)


def gradient_split(n=64):
    """Pictures that rise from left to right and from top to bottom, all the same."""
    ramp = torch.arange(32).view(1, 1, 1, 32) * 7 + torch.arange(32).view(1, 1, 32, 1)
    return Split(ramp.expand(n, 3, 32, 32).to(torch.uint8).contiguous(), torch.zeros(n, dtype=torch.long))


@given(
    n=st.integers(1, 70),
    batch_size=st.integers(1, 80),
    world=st.integers(1, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_ranks_and_batches_are_a_partition_of_the_images(n, batch_size, world, epoch, shuffle):
    split = numbered(n)
    seed = 0 if shuffle else None
    loaders = [loader(split, batch_size, seed, rank, world, crop=2) for rank in range(world)]
    seen = []
    for shards in zip(*(each.batches(epoch) for each in loaders), strict=True):
        sizes = [len(batch.labels) for batch in shards]
        assert sum(sizes) == shards[0].images_on_all_ranks
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) <= batch_size
        for images, labels, *_ in shards:
            assert torch.equal(images[:, 0, 0, 0], labels.float())  # labels stay with their images
            seen += labels.tolist()
    assert sorted(seen) == list(range(n))
    assert loaders[0].steps() == len(list(loaders[0].batches(epoch)))


def test_images_of_low_loss_are_left_out():
    batches, losses = loader(numbered(50), 16, seed=0, crop=2), torch.arange(50.0)
    chosen = data.least_known(losses, 0.4, 16)
    drawn = []
    for batch in batches.batches(3, indices=chosen):
        assert torch.equal(batch.indices, batch.labels)
        assert torch.equal(batch.images[:, 0, 0, 0], batch.labels.float())
        drawn += batch.labels.tolist()
    assert sorted(drawn) == list(range(18, 50)) and drawn != sorted(drawn)
    assert batches.steps(len(chosen)) == 2  # 30 images, and 2 more to fill a batch
    chosen = data.least_known(losses, 0.999, 16)
    assert [len(batch.labels) for batch in batches.batches(3, indices=chosen)] == [16]
    chosen = data.least_known(torch.rand(50), 0, 16)
    for batch, other in zip(batches.batches(3, indices=chosen), batches.batches(3), strict=True):
        assert torch.equal(batch.labels, other.labels)


def test_same_seed_and_epoch_same_batches_wherever_one_starts():
    options = dict(flip=True, crop=4, autoaugment=True, cutout=8, cutmix=0.4)
    split = gradient_split()
    first = list(loader(split, seed=3, **options).batches(5))
    again = list(loader(split, seed=3, **options).batches(5, start=2))
    for one, two in zip(first[2:], again, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    for seed, epoch in ((4, 5), (3, 6)):
        other = next(loader(split, seed=seed, **options).batches(epoch))
        assert not torch.equal(other[0], first[0][0])


def test_test_batches_are_in_order_and_untouched():
    split = numbered(50)
    batches = list(loader(split, 16).batches())
    images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    assert torch.equal(labels, split.labels) and torch.equal(images, split.images.float())


def test_every_image_has_its_own_crop_mirror_and_cutout():
    plain = gradient_split(1).images[0, 0].float()
    images = next(loader(gradient_split(256), 256, crop=4).batches()).images
    padded = np.pad(plain.numpy(), 4, mode="reflect")
    crops = {padded[top : top + 32, left : left + 32].tobytes() for top in range(9) for left in range(9)}
    got = {image[0].numpy().tobytes() for image in images}
    assert got <= crops and len(got) > 60  # of 81

    images = next(loader(gradient_split(256), 256, flip=True).batches()).images
    mirrored = (images[:, 0] == plain.flip(1)).all((1, 2))
    assert (mirrored | (images[:, 0] == plain).all((1, 2))).all() and 90 < mirrored.sum() < 166

    white = Split(torch.full((256, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(256, dtype=torch.long))
    for side in (7, 8, 16):
        images = next(loader(white, 256, cutout=side).batches()).images
        holes = images[:, 0] == 0
        assert holes.sum((1, 2)).max() == side * side and holes.any((1, 2)).all()
        assert len({hole.numpy().tobytes() for hole in holes}) > 200


def test_autoaugment_changes_the_images_it_is_asked_to():
    split = gradient_split(64)
    plain, changed = (next(loader(split, 64, autoaugment=asked).batches()).images for asked in (False, True))
    assert torch.equal(plain, split.images.float())
    assert 20 < (changed != plain).any(3).any(2).any(1).sum() < 64


def test_mixed_labels_are_the_shares_of_the_pixels():
    split = numbered(40)
    for cutmix, least, most in ((1.0, 20, 40), (0.5, 8, 32)):
        images, labels, *_ = next(loader(split, 40, seed=0, cutmix=cutmix).batches())
        assert labels.shape == (40, 40) and torch.allclose(labels.sum(1), torch.ones(40))
        assert torch.allclose(images.mean((1, 2, 3)), labels @ torch.arange(40.0), atol=1e-3)
        assert least < (labels.max(1).values < 1).sum() <= most
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_with_the_mean_and_deviation_of_the_training_images(pictures):
    found = data.load("folder", pictures)
    pixels = found.train.images.double() / 255
    assert torch.allclose(torch.tensor(found.info.mean), pixels.mean((0, 2, 3)).float())
    assert torch.allclose(torch.tensor(found.info.std), pixels.std((0, 2, 3), correction=0).float())
    images = next(Loader(found.train, found.info, 100).batches()).images
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_shrunk_images_keep_their_brightness_and_labels():
    split = gradient_split(5)
    small = data.shrink(split, 24)
    assert small.images.shape == (5, 3, 24, 24) and small.images.dtype == torch.uint8
    assert torch.equal(small.labels, split.labels)
    assert torch.allclose(small.images.float().mean(), split.images.float().mean(), atol=1)
    images = next(loader(small, 5, crop=2).batches()).images
    assert images.shape == (5, 3, 24, 24)


def test_synthetic_is_the_same_each_time_and_balanced():
    one, two = data.load("synthetic", "unused"), data.load("synthetic", "unused")
    assert torch.equal(one.train.images, two.train.images) and "synthetic" in one.info.source
    assert len(one.info.classes) == 10 and one.test.labels.bincount().tolist() == [400] * 10
    assert not torch.equal(one.train.images[:1000], one.train.images[1000:2000])


@pytest.fixture
def copy(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "copy", ignore=shutil.ignore_patterns("decoded.pt"))


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.train + one.test, two.train + two.test))


def test_folder_is_decoded_once_and_again_when_it_changes(copy, monkeypatch):
    decoded = []
    monkeypatch.setattr(data, "decode", lambda path, decode=data.decode: decoded.append(path) or decode(path))
    first = data.load("folder", copy)
    assert first.info.classes == CLASSES and first.train.labels.bincount().tolist() == [7, 7, 7]
    assert len(decoded) == 33
    assert same(first, data.load("folder", copy)) and len(decoded) == 33
    os.utime(copy / "train" / "cat" / "3.png", ns=(1, 1))
    data.load("folder", copy)
    assert len(decoded) == 66
    (copy / "test" / "dog" / "0.png").unlink()
    assert len(data.load("folder", copy).test.labels) == 11 and len(decoded) == 66 + 32


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:20000] + b"\x55" + raw[20001:],
        lambda raw: b"",
        lambda raw: b"x" * 100,
    ],
)
def test_damaged_kept_copy_is_rebuilt(copy, damage):
    first = data.load("folder", copy)
    raw = (copy / "decoded.pt").read_bytes()
    (copy / "decoded.pt").write_bytes(damage(raw))
    assert same(first, data.load("folder", copy))
    assert (copy / "decoded.pt").read_bytes() == raw


def test_every_kind_of_picture_is_read_or_refused_by_name(tmp_path):
    path = tmp_path / "picture.png"
    for mode, colour, expected in (
        ("L", 90, [90] * 3),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255] * 3),
        ("LA", (90, 255), [90] * 3),
        ("1", 1, [255] * 3),
        ("P", 0, [0] * 3),
    ):
        Image.new(mode, (50, 20), colour).save(path)
        assert data.decode(path).float().mean((1, 2)).tolist() == expected, mode
    Image.new("CMYK", (40, 40), (0, 0, 0, 255)).save(tmp_path / "cmyk.jpg")
    assert data.decode(tmp_path / "cmyk.jpg").shape == (3, 32, 32)
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert data.decode(tmp_path / "moving.gif").min() == 255
    Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(path)
    assert data.decode(path).unique().tolist() == [40000 // 256]
    (tmp_path / "grey.pgm").write_bytes(b"P5 32 32 65535\n" + b"\x9c\x40" * 1024)
    assert data.decode(tmp_path / "grey.pgm").unique().tolist() == [0x9C]
    Image.fromarray(np.full((32, 32), 40000, np.float32)).save(tmp_path / "scan.tiff")
    with pytest.raises(DataError, match="scan.tiff.*16 bits"):
        data.decode(tmp_path / "scan.tiff")
    for size in ((1, 1), (1, 3000)):
        Image.new("L", size, 7).save(path)
        assert data.decode(path).unique().tolist() == [7]


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(10))
def test_turned_photograph_is_set_upright(tmp_path, orientation, kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"turned.{kind}", exif=exif)
    image.info["exif"] = exif.tobytes()
    wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(data.decode(tmp_path / f"turned.{kind}").permute(1, 2, 0).numpy(), wanted)


def test_odd_words_of_a_camera_refuse_no_photograph(tmp_path):
    entries = [(0x0112, 3, 6), (0x011C, 4, 99_999)]  # turned; and a number too large for what it stands for
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    exif += b"".join(struct.pack("<HHII", name, kind, 1, value) for name, kind, value in entries) + bytes(4)
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))
    image.save(tmp_path / "odd.jpg", exif=exif)
    upright = data.decode(tmp_path / "odd.jpg")[0]
    assert upright[:, 16:].min() > 200 and upright[:, :16].max() < 50


def test_what_is_no_exif_data_refuses_no_photograph(tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (32, 32), "white").save(tmp_path / name, exif=b"Exif\0\0garbage!", dpi=(72, 72))
        assert data.decode(tmp_path / name).min() > 250


def test_every_reason_has_words_on_one_line(tmp_path, monkeypatch):
    for error, words in ((MemoryError(), "(MemoryError)"), (OSError("a\nb"), "(a b)")):
        monkeypatch.setattr(data, "open_picture", Mock(side_effect=error))
        with pytest.raises(DataError) as caught:
            data.decode(tmp_path / "a.png")
        assert str(caught.value).endswith(words)


def test_a_name_cut_within_a_character_is_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_size=1, st_mtime_ns=1))
    assert len(data.listing(tmp_path, [str(tmp_path / "cat\ud83d.jpg")])) == 64


def test_data_that_may_not_be_looked_at_are_named(tmp_path, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setitem(data.SOURCES, "folder", refuse)
    assert data.main(["folder", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be read (Permission denied)" in capsys.readouterr().err
    with pytest.raises(DataError, match="cannot be read .Permission denied"):
        data.load("folder", tmp_path)


def deeper(folder, name):
    """Put what is in a folder into a folder within it."""
    shutil.move(folder, folder.with_name("moved"))
    shutil.move(folder.with_name("moved"), folder / name)


def only_class(root, name):
    """Remove all classes but one."""
    for part in ("train", "test"):
        for folder in (root / part).iterdir():
            if folder.name != name:
                shutil.rmtree(folder)


def damaged_picture(root):
    path = root / "test" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:30])


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda root: shutil.rmtree(root / "train"), "train: there is no such folder"),
        (lambda root: shutil.rmtree(root), "copy: there is no such folder"),
        (lambda root: shutil.rmtree(root / "test" / "owl"), "owl"),
        (lambda root: (root / "train" / "yak").mkdir(), "yak"),
        (lambda root: [path.unlink() for path in (root / "test" / "owl").iterdir()], "owl: holds no picture"),
        (
            lambda root: [shutil.rmtree(folder) for folder in (root / "train").iterdir()],
            "folder of pictures for each class",
        ),
        (damaged_picture, "1 of the files cannot be used"),
        (lambda root: shutil.move(root / "test", root / "val"), "val: must be called test"),
        (lambda root: shutil.move(root / "train", root / "Train"), "Train: must be called train"),
        (lambda root: shutil.move(root / "train", root / "x" / "train"), "data_dir={root}/x"),
        (lambda root: shutil.move(root, root / ".." / "train"), "copy: there is no such folder"),
        (lambda root: deeper(root / "train", "images"), "(cat, dog, owl) lie one folder deeper"),
        (lambda root: deeper(root / "train", "train"), "data_dir={root}/train"),
        (lambda root: only_class(root, "cat"), "holds one class only (cat)"),
        (lambda root: shutil.rmtree(root) or root.write_text("a file"), "copy: is a file"),
    ],
)
def test_bad_folder_is_refused_by_name(copy, spoil, words, capsys):
    spoil(copy)
    assert data.main(["folder", str(copy)]) == 2
    error = capsys.readouterr().err
    words = words.format(root=copy).replace("/x", f"{os.sep}x").replace("/train", f"{os.sep}train")
    assert words in error and len(error.splitlines()) == 1


def test_a_class_may_be_called_train(copy):
    for part in ("train", "test"):
        (copy / part / "dog").rename(copy / part / "train")
    assert data.load("folder", copy).info.classes == ["cat", "owl", "train"]


def test_every_bad_file_is_told_at_once(copy, capsys):
    for number in range(7):
        (copy / "train" / "owl" / f"{number}.txt").write_text("no picture")
    with pytest.raises(DataError) as caught:
        data.load("folder", copy)
    message = str(caught.value)
    assert "7 files cannot be used" in message and len(message.splitlines()) == 7 and "6.txt" not in message
    assert f'python data.py folder "{copy}" lists them all' in message
    assert data.main(["folder", str(copy)]) == 2
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 7 and "6.txt: cannot be read as a picture (it is of no kind" in out
    assert "7 of the files" in error and len(error.splitlines()) == 1


def test_what_systems_leave_behind_is_neither_picture_nor_class(copy, capsys):
    for part in (copy / "train", copy / "test"):
        for name in (".ipynb_checkpoints", "__MACOSX", "$RECYCLE.BIN"):
            shutil.copytree(part / "cat", part / name)
            shutil.copytree(part / "cat", part / "dog" / name)
        (part / "labels.csv").write_text("beside the classes nobody looks")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
            (part / "cat" / name).write_bytes(b"\0\5\26\7")
    assert data.main(["folder", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "21 training and 12 test images" in out
    assert [line.split()[0] for line in out.splitlines()[2:]] == CLASSES


def test_every_kind_of_file_that_pillow_opens_is_a_picture(copy, monkeypatch):
    image = Image.new("RGB", (40, 30), (200, 30, 60))
    kinds = {"a.gif": "GIF", "d.jfif": "JPEG", "e": "JPEG", "f.webp": "WEBP", "g.bmp": "BMP", "h.PNG": "PNG"}
    if features.check("avif"):
        kinds["b.avif"] = "AVIF"
    for name, kind in kinds.items():
        image.save(copy / "train" / "dog" / name, kind)
    found = data.load("folder", copy)
    assert found.train.labels.bincount().tolist() == [7, 7 + len(kinds), 7]
    assert data.decode(copy / "train" / "dog" / "e").float().mean((1, 2)).round().tolist()[0] > 190
    (copy / "train" / "dog" / "telephone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match="telephone.heic.*HEIC; pip install pillow-heif"):
        data.load("folder", copy)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_links_to_nowhere_are_named(copy):
    os.mkfifo(copy / "train" / "cat" / "pipe")
    (copy / "train" / "cat" / "link.png").symlink_to(copy / "nowhere.png")
    with pytest.raises(DataError, match="2 files cannot be used") as caught:
        data.load("folder", copy)
    assert all(
        f"{name}: cannot be read as a picture (it is no file)" in str(caught.value)
        for name in ("pipe", "png")
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs the right to make links")
def test_links_that_lead_back_are_named(copy):
    for name in ("a", "b"):
        (copy / "train" / "cat" / name).symlink_to(copy / "train" / "cat")
    with pytest.raises(DataError, match="cat/a: leads to .*; remove the link"):
        data.load("folder", copy)


def test_what_may_not_be_read_is_named(copy, monkeypatch):
    def refuse(path, scandir=os.scandir):
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for name in ("owl", "train", "copy"):
        with pytest.raises(DataError, match=f"{name}: cannot be read .Permission denied"):
            data.load("folder", copy)


def test_classes_alone_are_trained_on_and_tested_with_holdout(copy, capsys):
    with pytest.raises(DataError, match=r"no test/ folder; set holdout=N"):
        data.load("folder", copy / "train")
    found = data.load("folder", copy / "train", holdout=6)
    assert (len(found.train.labels), len(found.test.labels), found.info.scored_on) == (15, 6, "held-out")
    assert found.info.classes == CLASSES
    assert data.main(["folder", str(copy / "train")]) == 0
    assert "21 training and no test images" in capsys.readouterr().out
    shutil.rmtree(copy / "test")
    assert len(data.load("folder", copy, holdout=6).test.labels) == 6
    for path in list((copy / "train" / "owl").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match="holdout=6: owl has one picture only"):
        data.load("folder", copy, holdout=6)


def test_odd_but_readable_pictures_are_noted_by_name(copy, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 - 1)  # as if they had 90 megapixels
    assert len(data.load("folder", copy).train.labels) == 21
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 6 and out[0].startswith(f"note: {copy}") and "28 more pictures are odd" in out[-1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 // 2 - 1)
    (copy / "decoded.pt").unlink()
    with pytest.raises(DataError, match="33 files cannot be used"):
        data.load("folder", copy)


def test_data_know_what_they_hold(copy):
    before = data.load("folder", copy).info
    assert before.train_digest != before.test_digest and len(before.train_digest) == 64
    os.rename(copy / "test" / "dog" / "0.png", copy / "test" / "dog" / "9.png")  # now the last
    after = data.load("folder", copy).info
    assert after.train_digest == before.train_digest and after.test_digest != before.test_digest


def test_cifar10_comes_from_the_next_server_if_one_fails(tmp_path, monkeypatch, capsys):
    """A small archive takes the place of the real one."""
    source = tmp_path / "cifar-10-batches-py"
    source.mkdir()
    lists, number = {"train_list": [], "test_list": []}, 0
    for part, names in (("train_list", ("data_batch_1", "data_batch_2")), ("test_list", ("test_batch",))):
        for name in names:
            images = np.full((1, 3072), number, dtype=np.uint8)
            (source / name).write_bytes(pickle.dumps({"data": images, "labels": [number]}))
            lists[part].append([name, hashlib.md5((source / name).read_bytes()).hexdigest()])
            number += 1
    (source / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog", "owl"]}))
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        archive.add(source, source.name)
    meta = hashlib.md5((source / "batches.meta").read_bytes()).hexdigest()
    for name, value in (
        *lists.items(),
        ("tgz_md5", hashlib.md5((tmp_path / "archive").read_bytes()).hexdigest()),
        ("meta", data.CIFAR10.meta | {"md5": meta}),
    ):
        monkeypatch.setattr(data.CIFAR10, name, value)
    asked = []

    def retrieve(url, path, *_):
        asked.append(url)
        if "zenodo" in url:
            raise HTTPException("an odd answer")
        shutil.copy(tmp_path / "archive", path)

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)
    _, classes, train, test = data.cifar10(tmp_path / "data")
    assert classes == ["cat", "dog", "owl"] and asked == [data.FromZenodo.url, data.CIFAR10.url]
    assert train.labels.tolist() == [0, 1] and test.images.unique().tolist() == [2]
    assert capsys.readouterr().out.count("zenodo.org") == 1
    data.cifar10(tmp_path / "data")
    assert len(asked) == 2
    (tmp_path / "data" / source.name / "batches.meta").unlink()
    with pytest.raises(DataError, match="batches.meta: is missing or damaged; delete .*batches-py and"):
        data.cifar10(tmp_path / "data")


def test_cifar10_absent_or_damaged(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", offline)
    assert data.main(["cifar10", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(words in error for words in ("cifar-10-python.tar.gz", "dataset=folder", "dataset=synthetic"))
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.parent.mkdir()
    batch.write_bytes(b"torn")
    assert data.main(["cifar10", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "data_batch_3: is damaged" in error and "(no network)" in error


@pytest.mark.parametrize("count, seed", [(300, 0), (1000, 0), (1000, 1), (999, 2)])
def test_held_out_images_are_even_over_the_classes_and_never_trained_on(monkeypatch, count, seed):
    total, classes = 5000, 10
    numbers = torch.arange(total)
    # Each picture says its number.
    coded = torch.stack([numbers // 100, numbers % 100, numbers * 0], 1).to(torch.uint8)
    images = coded[:, :, None, None].expand(total, 3, 8, 8).contiguous()
    split = Split(images, numbers % classes)
    source = ("numbers", list("0123456789"), split, Split(*(part[:20] for part in split)))
    monkeypatch.setitem(data.SOURCES, "synthetic", lambda root: source)
    info, train, held = data.load("synthetic", "unused", count, seed)
    corners = (split.images[:, :2, 0, 0].long() for split in (train, held))
    number = [(hundreds * 100 + units).tolist() for hundreds, units in (corner.T for corner in corners)]
    assert sorted(number[0] + number[1]) == list(range(total)) and len(number[1]) == count
    for split in (train, held):
        counts = split.labels.bincount(minlength=classes)
        assert counts.max() - counts.min() <= 1
    assert (info.train_images, info.scored_images, info.scored_on) == (total - count, count, "held-out")
    loader = Loader(train, info, 64, seed=0)
    pixels = torch.cat(
        [(batch.images * loader.std + loader.mean)[:, :2, 0, 0].round().long() for batch in loader.batches()]
    )
    assert sorted((pixels @ torch.tensor([100, 1])).tolist()) == sorted(number[0])
    again = data.load("synthetic", "unused", count, seed).test
    other = data.load("synthetic", "unused", count, seed + 1).test
    assert torch.equal(again.images, held.images) and not torch.equal(other.images, held.images)


@pytest.mark.parametrize(
    "count, words",
    [(21, "only 21"), (500, "only 21"), (20, "leaves a class without"), (1, "leaves a class without")],
)
def test_too_many_or_too_few_held_out_images_are_refused(pictures, count, words):
    with pytest.raises(DataError, match=f"holdout={count}: .*{words}"):
        data.load("folder", pictures, count)


def test_a_kept_copy_that_cannot_be_written_is_only_noted(copy, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.torch, "save", full)
    assert len(data.load("folder", copy).train.labels) == 21
    assert "No space left" in capsys.readouterr().out
    assert sorted(path.name for path in copy.iterdir()) == ["test", "train"]
