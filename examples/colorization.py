"""Colourisation: give a grey photo colours, in the proportions of a reference.

The source is the luma of a photo, and the photo itself the reference while training. The chroma of a grey
source is constant: two of the three MI terms say nothing, so that MI weighs a third of what its weight says.

    python examples/colorization.py                          # photos that come with scikit-image
    python examples/colorization.py --data 102flowers/jpg    # or any folder of photos
    python examples/colorization.py --apply grey.jpg --reference colours.jpg
    python examples/colorization.py --evaluate               # with and without each loss
"""

from shared.cli import Recipe
from shared.data import grey
from shared.deephist import DeepHist, main

RECIPE = Recipe(
    name="colorization",
    description=__doc__,
    system=DeepHist,
    epochs=200,
    source=grey,
)

if __name__ == "__main__":
    main(RECIPE)
