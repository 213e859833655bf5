import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from lidc_cdam.metrics.inpainting import BESIDE, DIAGONAL, inpaint


def solved(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel, solved directly."""
    places = np.argwhere(removed)
    number = {tuple(place): index for index, place in enumerate(places)}
    system, known = lil_matrix((len(places), len(places))), np.zeros(len(places))
    for index, (row, column) in enumerate(places):
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                place = (row + down, column + right)
                inside = 0 <= place[0] < image.shape[0] and 0 <= place[1] < image.shape[1]
                if (down, right) == (0, 0) or not inside:
                    continue
                weight = DIAGONAL if down and right else BESIDE
                system[index, index] += weight
                if place in number:
                    system[index, number[place]] -= weight
                else:
                    known[index] += weight * image[place]
    filled = image.copy()
    filled[removed] = spsolve(system.tocsc(), known)
    return filled


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("token", [1, 4])
def test_equals_the_direct_solution(share: float, token: int) -> None:
    generator = torch.Generator().manual_seed(int(100 * share) + token)
    images = torch.randn(3, 2, 24, 20, generator=generator)
    order = torch.rand(3, 24 // token, 20 // token, generator=generator)
    removed = (order <= share).repeat_interleave(token, 1).repeat_interleave(token, 2)
    found = inpaint(images, removed)
    for image in range(3):
        for channel in range(2):
            wanted = solved(images[image, channel].double().numpy(), removed[image].numpy())
            spread = float(np.ptp(images[image, channel].numpy()))
            assert np.abs(found[image, channel].numpy() - wanted).max() < 2e-3 * spread


def test_a_plane_is_continued_and_known_pixels_stay() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    plane = (2 * rows - columns).expand(1, 3, -1, -1)
    removed = torch.zeros(1, 32, 32, dtype=torch.bool)
    removed[:, 8:24, 10:20] = True
    found = inpaint(plane, removed)
    torch.testing.assert_close(found, plane, atol=0.2, rtol=0)
    assert torch.equal(found[:, :, ~removed[0]], plane[:, :, ~removed[0]])


def test_without_a_known_pixel_the_mean_is_left() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    removed = torch.ones(2, 8, 8, dtype=torch.bool)
    removed[1, 0, 0] = False
    found = inpaint(images, removed)
    torch.testing.assert_close(found[0], images[0].mean((-2, -1), keepdim=True).expand(-1, 8, 8))
    torch.testing.assert_close(found[1], images[1, :, :1, :1].expand(-1, 8, 8), atol=1e-2, rtol=0)


def test_an_image_does_not_depend_on_its_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, 1, 32, 32, generator=generator)
    removed = torch.rand(5, 32, 32, generator=generator) < torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])[:, None, None]
    together = inpaint(images, removed)
    alone = torch.cat([inpaint(images[each, None], removed[each, None]) for each in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert torch.equal(together[0], images[0])
