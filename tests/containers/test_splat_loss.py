"""The fused loss against an independent float64 SSIM, differentiated by autograd."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad as autograd_grad

from splat import metrics
from splat.loss import PhotoLoss, to_planes
from splat.threads import Workers


def reference_ssim(x, y):
    """Wang et al. 2004, window by window, straight from the definition (weighted variances, not E[xx] - mu^2)."""
    offsets = np.arange(11) - 5.0
    w = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    w = w / w.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            for c in range(3):
                p, q = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
                mp, mq = anp.sum(w * p), anp.sum(w * q)
                vp, vq = anp.sum(w * (p - mp) ** 2), anp.sum(w * (q - mq) ** 2)
                cov = anp.sum(w * (p - mp) * (q - mq))
                values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return sum(values) / len(values)


def make_pair(width, height, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 256, (height, width, 3), np.uint8)
    image = np.clip(0.6 * target / 255 + 0.3 * rng.random((height, width, 3)) - 0.05, -0.1, 1.2)
    return image, target


def padded(image):
    height, width = image.shape[:2]
    planes = np.full((4, -(-height // 16) * 16, -(-width // 16) * 16), 0.7, np.float32)
    planes[:3, :height, :width] = image.transpose(2, 0, 1)
    return planes


@pytest.mark.parametrize("size", [(21, 17), (35, 12)])
@pytest.mark.parametrize("threads", [1, 3])
def test_loss_and_gradient_agree_with_the_reference(size, threads):
    width, height = size
    image, target = make_pair(width, height)

    def loss(x):
        return 0.8 * anp.mean(anp.abs(x - target / 255.0)) + 0.2 * (1 - reference_ssim(x, target / 255.0))

    value, grad = PhotoLoss(Workers(threads))(padded(image), to_planes(target), width, height)
    wanted = autograd_grad(loss)(image)
    got = grad[:3, :height, :width].transpose(1, 2, 0)
    assert value == pytest.approx(loss(image), abs=1e-6)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-4
    assert not grad[3].any() and not grad[:, height:].any() and not grad[:, :, width:].any()


def test_metrics_agree_with_the_definition():
    image, target = make_pair(24, 15, seed=2)
    y = target / 255.0
    assert metrics.ssim(image, y) == pytest.approx(reference_ssim(image, y), abs=1e-12)
    assert metrics.psnr(image, y) == pytest.approx(-10 * np.log10(np.mean((image - y) ** 2)), abs=1e-9)
    assert metrics.ssim(y, y) == pytest.approx(1.0)
    assert metrics.psnr(y, y) == float("inf")
    assert metrics.psnr(np.zeros((9, 9, 3)), np.full((9, 9, 3), 0.1)) == pytest.approx(20.0)


def test_metrics_name_what_does_not_fit():
    with pytest.raises(ValueError, match="different shape"):
        metrics.psnr(np.zeros((9, 9, 3)), np.zeros((8, 9, 3)))
    with pytest.raises(ValueError, match="at least 11x11"):
        metrics.ssim(np.zeros((9, 30, 3)), np.zeros((9, 30, 3)))


def test_tiny_images_are_compared_by_l1():
    image, target = make_pair(9, 20)
    value, grad = PhotoLoss(Workers(1))(padded(image), to_planes(target), 9, 20)
    assert value == pytest.approx(np.abs(image - target / 255).mean(), abs=1e-6)
    assert np.allclose(grad[:3, :20, :9].transpose(1, 2, 0), np.sign(image - target / 255) / (3 * 9 * 20), atol=1e-9)
