"""What the colourisation trainers share: systems that give ab for L, and the command line's --apply."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from histloss import ColorBins, ColorPrior
from shared.cli import Recipe, make_fabric, make_options, make_parser, make_schedule, save_painted, train
from shared.data import Draw, Kind, Samples, read_image
from shared.lab import join_lab, lightness, split_lab
from shared.networks import resize
from shared.training import System, Trainer, load_system

COUNTED = 5000


def count_colors(photos: Samples, bins: ColorBins) -> ColorPrior:
    """How often the colours of photos occur; of more than COUNTED photos, of so many evenly among them."""
    prior, count = ColorPrior(bins), min(len(photos), COUNTED)
    for number in tqdm(range(count), desc="colours", leave=False):
        index = number * len(photos) // count
        prior.update(split_lab(photos[Draw(index, index)].reference[None])[1])
    return prior


class Colorizer(System):
    """A system that gives the chroma ab of a grey image."""

    @property
    def kind(self) -> Kind:
        return "colorization_lab"

    @abstractmethod
    def chroma(self, source: Tensor) -> Tensor:
        """ab (B, 2, H, W) for greys (B, 3, H, W)."""

    def paint(self, source: Tensor, reference: Tensor) -> Tensor:
        """The source with chroma. It is not told the reference."""
        return join_lab(split_lab(source)[0], self.chroma(source))

    @torch.no_grad()
    def colorize(self, photo: Tensor) -> Tensor:
        """A photo of any height and width, (B, 3, H, W), with the chroma of a small copy, enlarged."""
        size = self.options.size
        chroma = self.chroma(resize(lightness(photo), (size, size)))
        return join_lab(split_lab(photo)[0], resize(chroma, photo.shape[-2:]))


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Train a Colorizer, go on with it, or colour a photo."""
    parser, _, _ = make_parser(recipe)
    args = parser.parse_args(argv)
    if args.output and not args.apply:
        parser.error("--output goes with --apply")
    try:
        if args.apply:
            system = load_system(args.out, recipe.name, recipe.system)
            torch.manual_seed(system.options.seed)
            save_painted(system.colorize(read_image(Path(args.apply))[None]), args)
            return
        options = make_options(recipe, args, goes_on=args.resume)
        trainer = Trainer(make_fabric(args), recipe.system, options, args.out)
        schedule = make_schedule(recipe, args, [trainer])
    except (ValueError, OSError) as error:
        parser.error(str(error))
    train([trainer], schedule)
