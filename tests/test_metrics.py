import pytest
import torch

from harness.errors import UserError
from harness.metrics import Meter, Row, best


def test_the_best_row_is_the_first_of_equals():
    rows = [Row(number, 0, 0, 0, 0, accuracy, 0) for number, accuracy in enumerate([50, 70, 70, 60], 1)]
    assert best(rows).epoch == 2


def test_a_meter_counts_plain_and_mixed_labels():
    meter = Meter(torch.device("cpu"), "epoch 1", 0.1)
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    meter.add(logits, torch.tensor([0, 1, 1]), torch.tensor(6.0))
    assert meter.means() == pytest.approx((2.0, 200 / 3))
    meter.add(logits[:1], torch.tensor([[0.3, 0.7]]), torch.tensor(2.0))
    assert meter.means() == pytest.approx((2.0, 50.0))
    other = Meter(torch.device("cpu"), "epoch 1", 0.1)
    other.restore(meter.total())
    assert other.means() == meter.means()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_longer_finite_is_told_where(value):
    meter = Meter(torch.device("cpu"), "epoch 7", 0.5)
    meter.add(torch.zeros(1, 2), torch.tensor([0]), torch.tensor(1.0))
    with pytest.raises(
        UserError, match="no longer finite in epoch 7, step 2, at learning rate 0.5; start again"
    ):
        meter.add(torch.zeros(1, 2), torch.tensor([0]), torch.tensor(value))
