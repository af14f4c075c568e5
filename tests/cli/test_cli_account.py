"""Addresses of a server that hold an account are refused, and the account is shown nowhere."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (["http://me:secret@mlflow.example"], "unexpected extra argument"),
        (["--tracking-uri", "http://me:secret@mlflow.example"], "without user and password"),
        (["--tracking-uri", "postgresql://me:secret@db/runs"], "must be sqlite:///FILE or http(s)://SERVER"),
    ],
)
def test_an_account_in_an_address_is_refused_and_not_shown(say, address, why):
    refused = say("ls", *address)
    assert refused.code != 0
    assert why in refused.err
    assert "secret" not in refused.out + refused.err
