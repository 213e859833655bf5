import pytest
import torch

from lidc_cdam.explain.gradcam import gradcam


@pytest.mark.parametrize("target", [0, 2])
def test_agrees_with_pytorch_grad_cam_before_its_scaling(any_model, make_images, target):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = make_images(any_model)
    rows, columns = any_model.backbone.patch_embed.grid_size
    prefix = any_model.backbone.num_prefix_tokens

    def on_the_grid(tokens):
        return tokens[:, prefix:].reshape(len(tokens), rows, columns, -1).movedim(3, 1)

    layer = any_model.backbone.blocks[-1].norm1
    with GradCAM(any_model, [layer], reshape_transform=on_the_grid) as cam:
        outputs = cam.activations_and_grads(images)
        sum(ClassifierOutputTarget(target)(output) for output in outputs).backward()
        values = cam.activations_and_grads.activations[-1].numpy()
        slopes = cam.activations_and_grads.gradients[0].numpy()
        expected = cam.get_cam_image(images, layer, [], values, slopes, False)
    any_model.zero_grad()
    signed = gradcam(any_model, images, signed=True)[:, target].numpy()
    assert signed == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert gradcam(any_model, images)[:, target].numpy() == pytest.approx(expected.clip(min=0), rel=1e-9, abs=1e-12)


def test_the_rectified_map_keeps_what_is_positive(model, make_images):
    signed = gradcam(model, make_images(model), signed=True)
    assert float(signed.min()) < 0
    assert torch.equal(gradcam(model, make_images(model)), signed.clamp(min=0))
