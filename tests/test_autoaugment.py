"""AutoAugment against torchvision's, which changes one image at a time."""

import pytest
import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as one_by_one

import data
from data import LARGEST, AutoAugment

GREY = [125, 123, 114]
STILL = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], fill=GREY)


def shear(images, amount):
    degrees = torch.tensor(amount).atan().rad2deg().item()
    return one_by_one.affine(images, **STILL | dict(shear=[0.0, degrees], center=[0, 0]))


# torchvision's own function for each change; `amount` is in the unit of LARGEST.
PEERS = {
    "ShearY": shear,
    "TranslateX": lambda i, amount: one_by_one.affine(i, **STILL | dict(translate=[int(amount * 32), 0])),
    "TranslateY": lambda i, amount: one_by_one.affine(i, **STILL | dict(translate=[0, int(amount * 32)])),
    "Rotate": lambda i, amount: one_by_one.rotate(i, amount, fill=GREY),
    "Brightness": lambda i, amount: one_by_one.adjust_brightness(i, 1 + amount),
    "Contrast": lambda i, amount: one_by_one.adjust_contrast(i, 1 + amount),
    "Color": lambda i, amount: one_by_one.adjust_saturation(i, 1 + amount),
    "Sharpness": lambda i, amount: one_by_one.adjust_sharpness(i, 1 + amount),
    "Posterize": lambda i, amount: one_by_one.posterize(i, 8 - round(abs(amount))),
    "Solarize": lambda i, amount: one_by_one.solarize(i, 255 * (1 - abs(amount))),
    "Invert": lambda i, amount: one_by_one.invert(i),
    "AutoContrast": lambda i, amount: one_by_one.autocontrast(i),
    "Equalize": lambda i, amount: one_by_one.equalize(i),
}


def pictures():
    """Uneven ones, of one colour, of two, and ones that fill all levels: N×3×32×32, uint8."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((6, 3, 32, 32), generator=generator)
    dark = noise[:2] ** 3 * 90 + 20
    smooth = torch.nn.functional.interpolate(noise[2:4, :, :5, :5], size=32, mode="bilinear") * 200
    plain = torch.full((1, 3, 32, 32), 77.0)
    two = (noise[4:5] > 0.7) * 255.0
    return torch.cat([dark, smooth, plain, two, noise[5:] * 255]).to(torch.uint8)


@pytest.mark.parametrize("name", LARGEST)
def test_each_change_is_that_of_torchvision(name):
    images, number = pictures(), list(LARGEST).index(name)
    for strength in range(-9, 10):
        amount = LARGEST[name] * strength / 9
        kind = torch.full((len(images),), number)
        grey = torch.tensor(GREY).view(3, 1, 1)
        changed = data.change(images.float(), kind, torch.full((len(images),), amount), grey)
        expected = PEERS[name](images, amount)
        rounded = name in ("Brightness", "Contrast", "Color", "Sharpness", "AutoContrast")
        wrong = (changed - expected).abs() > rounded  # by 1 where 39.99 or 40.00 was cut to 39 or 40
        allowed = 0.02 if name in ("ShearY", "Rotate") else 0  # where two pixels are equally near
        assert wrong.float().mean() <= allowed
        assert torch.equal(changed, changed.round())


def test_each_image_has_changes_of_its_own_as_often_as_the_policy_says():
    images = pictures()[:1].float().expand(1000, 3, 32, 32)
    changed = AutoAugment(GREY)(images, torch.rand((5, 1000), generator=torch.Generator().manual_seed(0)))
    untouched = (changed == images).all((1, 2, 3)).float().mean()
    policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies
    expected = sum((1 - first[1]) * (1 - second[1]) for first, second in policy) / 25
    assert abs(untouched - expected) < 0.06  # some changes do nothing to some images
    assert len(changed.unique(dim=0)) > 50
    assert changed.is_contiguous(memory_format=torch.channels_last)
