"""Edges to photo: paint a line drawing, in the colours of a reference.

The source is an edge map, dark lines on white, and the photo it was taken from the reference while training.
An edge map has no chroma: as in colourisation, only the luma's MI term says something. A drawing to paint
wants lines that are a pixel wide when it is reduced to the run's --size.

    python examples/edges2photo.py                        # photos that come with scikit-image, edges by Canny
    python examples/edges2photo.py --data edges2shoes     # or any folder of photos
    python examples/edges2photo.py --apply drawing.png --reference colours.jpg
    python examples/edges2photo.py --evaluate             # with and without each loss
"""

from shared.cli import Recipe
from shared.deephist import DeepHist, main

RECIPE = Recipe(
    name="edges2photo",
    description=__doc__,
    system=DeepHist,
    epochs=15,
)

if __name__ == "__main__":
    main(RECIPE)
