import math

import torch

from lidc_cdam.kernel import LENGTH, KernelHead, matern


def test_likeness_is_the_matern_kernel_of_the_root_mean_square_difference():
    first, second = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    found = matern(first, second)
    for row, one in enumerate(first):
        for column, other in enumerate(second):
            apart = math.sqrt(sum(float(a - b) ** 2 for a, b in zip(one, other, strict=True)) / 5)
            scaled = math.sqrt(3) * apart / LENGTH
            assert math.isclose(found[row, column], (1 + scaled) * math.exp(-scaled), rel_tol=1e-12)
    assert torch.equal(matern(first, first).diagonal(), torch.ones(3, dtype=torch.float64))


def test_a_head_weighs_its_likeness_to_the_nodules_that_it_knows():
    support, weights, offset = torch.randn(6, 5), torch.randn(6, 2), torch.randn(2)
    head, asked = KernelHead.of(support.double(), weights.double(), offset.double()), torch.randn(3, 5)
    assert torch.equal(head(asked), matern(asked, support) @ weights + offset)
    assert torch.allclose(head(torch.full((1, 5), 1e3)), offset)
    assert not list(head.parameters())
    assert not KernelHead(6, 5, 2)(asked).any()
