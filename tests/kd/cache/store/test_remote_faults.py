"""Every fault of a driver has its name, and none shows a secret."""

from __future__ import annotations

import errno
import importlib
import socket
from collections.abc import Callable
from http.client import IncompleteRead

import pytest

from tasks.kd.cache.store.faults import named_faults, redact
from tasks.kd.errors import CacheError, CacheQuotaError, KDError, TransientError

# Libraries of the drivers, which we do not use ourselves.
aiohttp = importlib.import_module("aiohttp")
botocore = importlib.import_module("botocore.exceptions")
requests = importlib.import_module("requests")


def make_request_error(kind: Callable[..., Exception]) -> Exception:
    return kind(endpoint_url="http://x/", error="broke")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (make_request_error(botocore.EndpointConnectionError), TransientError),
        (make_request_error(botocore.ConnectTimeoutError), TransientError),
        (make_request_error(botocore.ReadTimeoutError), TransientError),
        (make_request_error(botocore.ConnectionClosedError), TransientError),
        (make_request_error(botocore.SSLError), TransientError),
        (botocore.NoCredentialsError(), CacheError),
        (botocore.ParamValidationError(report="bad name"), CacheError),
        (aiohttp.ServerDisconnectedError(), TransientError),
        (aiohttp.ClientPayloadError("cut off"), TransientError),
        (requests.ConnectionError("refused"), TransientError),
        (requests.ReadTimeout("late"), TransientError),
        (IncompleteRead(b""), TransientError),
        (TimeoutError("late"), TransientError),
        (ConnectionResetError("reset"), TransientError),
        (socket.gaierror(-2, "Name or service not known"), TransientError),
        (OSError(errno.EBUSY, "Please reduce your request rate"), TransientError),
        (OSError(errno.EREMOTEIO, "We encountered an internal error"), TransientError),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), TransientError),
        (OSError(errno.ENOSPC, "No space left on device"), CacheQuotaError),
        (PermissionError("Access Denied"), CacheError),
        (OSError(errno.EINVAL, "The authorization mechanism is not supported"), CacheError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_every_fault_of_a_driver_gets_its_name(error: Exception, kind: type[KDError]) -> None:
    with pytest.raises(KDError, match=r"s3://bucket/p\.") as caught, named_faults("s3://bucket/p"):
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize("error", [FileNotFoundError("x"), CacheQuotaError("x"), KeyError("x")])
def test_what_is_no_fault_of_the_store_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, named_faults("s3://bucket"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("sftp://me:hush@host:22/place", "sftp://host:22/place"),
        ("sftp://me:hu@sh@host/place", "sftp://host/place"),
        ("s3://AKIA:hu/sh+/x@bucket/prefix", "s3://bucket/prefix"),
        ("https://host/p?sig=hush&se=1", "https://host/p"),
        ("https://me:hush@host/p?sig=hush#hush", "https://host/p"),
    ],
)
def test_secrets_are_cut_out_of_urls(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert redact(f'can\'t open "{shown}" today') == f'can\'t open "{shown}" today'
    assert "hush" not in redact(f"first {url} then {url}")


@pytest.mark.parametrize(
    "said",
    [
        "no host me:hu%73h in the list",
        "password hu%73h, that is hush, is wrong",
        "no place for sig=t0ken",
        "t0ken has expired",
    ],
)
def test_secrets_that_a_driver_repeats_out_of_place_are_cut_out(said: str) -> None:
    url = "sftp://me:hu%73h@host/place?se=1&sig=t0ken"
    with pytest.raises(TransientError) as caught, named_faults(url):
        raise TimeoutError(said)
    for secret in ("hush", "hu%73h", "t0ken"):
        assert secret not in str(caught.value)
    assert "sftp://host/place" in str(caught.value)
