import copy

import pytest
import torch

from memoir_fast.modules import MemoirLinear, tickets


def test_a_ticket_is_of_one_kind_and_gives_what_it_was_issued_for():
    first = tickets.issue("first")
    with torch.inference_mode():
        second = tickets.issue("second")
    assert (tickets.redeem(first), tickets.redeem(second.clone())) == ("first", "second")
    for ticket in (first, second):
        assert (ticket.dtype, ticket.shape, ticket.device.type) == (torch.int64, (1,), "cpu")
        assert not ticket.is_inference()


def test_what_is_deposited_goes_with_its_ticket():
    kept, numbers = tickets.issue("kept"), []
    for _ in range(100):
        ticket = tickets.issue("gone soon")
        numbers.append(ticket.clone())
    del ticket
    more = [tickets.issue("more") for _ in range(100)]
    assert tickets.redeem(kept) == "kept" and [tickets.redeem(one) for one in more] == ["more"] * 100
    assert [tickets.redeem(one) for one in numbers] == [None] * 100


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_a_copy_has_a_number_of_its_own(copied):
    layer = MemoirLinear(torch.nn.Linear(8, 4), 2)
    other = copied(layer)
    assert other.number != layer.number
    assert tickets.enrolled(layer.number) is layer and tickets.enrolled(other.number) is other
    number = other.number
    del other
    assert tickets.enrolled(number) is None
