"""AutoAugment: images moved, sheared, turned, and their colours changed, a batch at once.

After Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data" (2019), who searched for the
pairs of changes that help on CIFAR-10. Every image gets one pair, by random choices of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The 25 pairs that they found: each change with its probability and its strength, 0 to 9.
POLICY = [
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
]
# Each change and what it amounts to at strength 9; all but the last five go both ways.
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
    """Changes batches of images; pixels from outside an image become `grey` (3 values, 0 to 255)."""

    def __init__(self, grey: list[float], device: torch.device | str = "cpu") -> None:
        names = list(LARGEST)
        kinds = [[names.index(name) for name, _, _ in pair] for pair in POLICY]
        chances = [[chance for _, chance, _ in pair] for pair in POLICY]
        amounts = [[LARGEST[name] * strength / 9 for name, _, strength in pair] for pair in POLICY]
        self.kinds = torch.tensor(kinds, device=device)  # 25×2, as the two others
        self.chances = torch.tensor(chances, device=device)
        self.amounts = torch.tensor(amounts, device=device)
        self.grey = torch.tensor(grey, device=device).round().view(3, 1, 1)

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """Images (B×3×S×S, whole numbers from 0 to 255 as float32), changed.

        `random` (5×B, 0 to 1) decides: which pair, whether its changes are made, which way they go.
        """
        pair = (random[0] * len(POLICY)).long()
        for turn in (0, 1):
            made = random[1 + turn] < self.chances[pair, turn]
            kind = torch.where(made, self.kinds[pair, turn], -1)
            amount = self.amounts[pair, turn] * (random[3 + turn] < 0.5).float().mul(2).sub(1)
            images = change(images, kind, amount, self.grey)
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
