"""Colour transfer: paint photos in the colours of other photos.

There are no pairs to learn from. The EMD pulls the output's histograms to the reference's, mutual information
holds its content to the source, and the discriminator, which sees the sources, asks that it look real.

    python examples/color_transfer.py                                  # photos that come with scikit-image
    python examples/color_transfer.py --data summer2winter_yosemite    # or any folder of photos
    python examples/color_transfer.py --apply photo.jpg --palette "#b03020:0.6,#203050:0.4"
    python examples/color_transfer.py --evaluate                       # with and without each loss
"""

from shared.cli import Recipe
from shared.deephist import DeepHist, main

RECIPE = Recipe(
    name="color_transfer",
    description=__doc__,
    system=DeepHist,
    epochs=100,
)

if __name__ == "__main__":
    main(RECIPE)
