import pytest
import torch

from lidc_cdam.explain.controls import centre, random


def test_random_is_uniform_and_signed(make_model, make_images):
    model = make_model(img_size=128)
    scores = random(model, make_images(model)).flatten()
    assert float(scores.min()) >= -1
    assert float(scores.max()) <= 1
    assert abs(float(scores.mean())) < 0.03
    assert float(scores.var()) == pytest.approx(1 / 3, rel=0.04)


def test_random_maps_differ_by_image_target_and_seed(model, make_images):
    images = make_images(model)
    maps = random(model, images).flatten(2).reshape(9, -1)
    assert len(torch.unique(maps, dim=0)) == 9
    assert not torch.equal(random(model, images, seed=1), random(model, images))


def test_random_does_not_depend_on_the_model(make_model, make_images):
    images = make_images(make_model())
    assert torch.equal(random(make_model(seed=5), images), random(make_model(), images))


def test_centre_is_largest_in_the_middle_and_symmetric(any_model, make_images):
    maps = centre(any_model, make_images(any_model))
    torch.testing.assert_close(maps, maps.flip(2, 3))
    rows, columns = any_model.backbone.patch_embed.grid_size
    assert float(maps[0, 0, rows // 2, columns // 2]) == float(maps.max())
    assert torch.equal(maps[0, 0], maps[1, 2])


def test_centre_has_the_width_it_is_given(make_model, make_images):
    model = make_model(img_size=128)
    profile = centre(model, make_images(model), sigma=0.1)[0, 0, 16]
    position = (torch.arange(32) + 0.5) / 32 - 0.5
    assert float((profile * position**2).sum() / profile.sum()) ** 0.5 == pytest.approx(0.1, rel=1e-3)
