"""The kinds of hostile requests that hostile_requests.py sends: each a function of a random generator to bytes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable

import numpy as np
from PIL import Image

INFER, CLASSIFY = "/v2/models/tiny-edge/infer", "/classify"


def picture(rng: random.Random) -> bytes:
    """Return a small picture in one of several formats, at times damaged."""
    array = np.frombuffer(rng.randbytes(20 * 30 * 3), np.uint8).reshape(20, 30, 3)
    file = io.BytesIO()
    Image.fromarray(array).save(file, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))
    return mutate(file.getvalue(), rng) if rng.random() < 0.8 else file.getvalue()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with some bytes changed, cut, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at = rng.randrange(len(changed) + 1)
        what = rng.randrange(5)
        if what == 0 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif what == 1:
            changed[at:at] = rng.choice(
                [b"\0", b"\r\n", b"\xff", b'"', b"[", b"{", b"}", rng.randbytes(rng.randrange(40))]
            )
        elif what == 2:
            del changed[at : at + rng.choice([1, 4, 100, 5000])]
        elif what == 3:
            changed[at:at] = changed[at : at + 60]
        elif what == 4:
            del changed[at:]
    return bytes(changed)


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a POST request, whose Content-Length may lie."""
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def infer_json(rng: random.Random) -> dict:
    """Return a good request of one picture."""
    data = list(rng.randbytes(3072))
    return {"inputs": [{"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": data}]}


ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**30,
    "",
    "x" * 1000,
    [],
    {},
    [[]],
    [{}],
    {"a": {}},
    ["images"],
    "UINT8",
    [1, 2, 3, 4],
]
"""Values that stand where others are expected."""


def odd_values(rng: random.Random) -> bytes:
    """JSON of the right form with values of other kinds in it."""
    request = infer_json(rng)
    tensor = request["inputs"][0]
    for _ in range(rng.randrange(1, 4)):
        target = rng.choice([request, tensor])
        names = ["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "x"]
        target[rng.choice(names)] = rng.choice(ODD)
    if rng.random() < 0.3:
        tensor["data"] = rng.choice([[0] * 3071, [300] * 3072, [0.5] * 3072, [[0]] * 3072, [True] * 3072])
    if rng.random() < 0.3:
        request["parameters"] = {rng.choice(["timeout", "binary_data_output", "shared_memory_region"]): rng.choice(ODD)}
    return post(INFER, json.dumps(request).encode())


def odd_json(rng: random.Random) -> bytes:
    """Bodies that are no JSON, or JSON that parsers choke on."""
    kind = rng.randrange(6)
    depth = rng.choice([10, 1000, 100_000])
    bodies = [
        b"[" * depth,
        b'{"inputs":' * depth,
        b'{"inputs": NaN, "id": Infinity}',
        b"\xff\xfe\x00" + rng.randbytes(100),
        b'{"a": "' + b"\\u0000" * 1000 + b'"}',
    ]
    body = bodies[kind] if kind < 5 else mutate(json.dumps(infer_json(rng)).encode(), rng)
    return post(INFER, body)


def lying_sizes(rng: random.Random) -> bytes:
    """Binary tensors whose sizes, shapes or JSON length are not true."""
    size = rng.choice([3072, 3071, 0, -1, 2**31, 2**63, 10**30, "3072", None])
    count = rng.choice([1, 1, 1, 0, 2, 10**9, -1])
    tensor = {
        "name": "images",
        "shape": [count, 32, 32, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": size},
    }
    head = json.dumps({"inputs": [tensor] * rng.choice([1, 1, 1, 2])}).encode()
    length = rng.choice([len(head), len(head), len(head) - 1, len(head) + 1, 0, -5, 10**18, "x", "0x10", " 5"])
    data = rng.randbytes(rng.choice([3072, 3072, 3071, 3073, 0, 10_000]))
    return post(INFER, head + data, f"Inference-Header-Content-Length: {length}")


def forms(rng: random.Random) -> bytes:
    """Uploads by forms that are damaged, or whose parts are."""
    boundary = rng.choice([b"x", b"----b" * 10, b"\xc3\xa4"])
    parts = b""
    for number in range(rng.choice([0, 1, 3])):
        name = rng.choice([b"a.png", b"../../etc/passwd", b"\x1b[31m", b"a" * 5000, b'"', b"%00", b"\xff"])
        head = b'Content-Disposition: form-data; name="%d"; filename="%s"' % (number, name)
        extra = rng.choice([b"", b"\r\nContent-Type: image/png", b"\r\nX: " + b"y" * 20_000])
        parts += b"--" + boundary + b"\r\n" + head + extra + b"\r\n\r\n" + picture(rng) + b"\r\n"
    body = parts + b"--" + boundary + b"--\r\n"
    if rng.random() < 0.6:
        body = mutate(body, rng)
    given = rng.choice([boundary, boundary, b"other", b"", b"z" * 300]).decode("latin-1")
    return post(
        f"{CLASSIFY}?top_k={rng.choice(['1', '3', '0', 'x', '9' * 30])}",
        body,
        f"Content-Type: multipart/form-data; boundary={given}",
    )


def raw_pictures(rng: random.Random) -> bytes:
    """Pictures as bodies, most of them damaged, with odd queries."""
    query = rng.choice(
        ["", "?fit=pad", "?fit=x", "?model=tiny-fp32", "?model=../x", "?top_k=2&top_k=3", "?%00=%ff", "?&&==&"]
    )
    kind = rng.choice(["image/png", "", "text/html", "application/json", "\x80", "multipart/form-data"])
    return post(CLASSIFY + query, picture(rng), f"Content-Type: {kind}")


def odd_headers(rng: random.Random) -> bytes:
    """Requests whose first line or headers are odd, or that are not HTTP."""
    paths = [
        "/",
        "/v2/models/%2e%2e/infer",
        "/v2/models//infer",
        "//",
        "*",
        "/" + "a" * 9000,
        "/v2/models/tiny/versions//infer",
        "/\xff",
        "/%ff%00",
        "http://b/v2",
        "/v2/models/tiny-edge/infer/",
    ]
    method = rng.choice(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "A" * 300, "\0"])
    version = rng.choice(["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""])
    headers = rng.sample(
        [
            *(
                "Host: a",
                "Host: b",
                "Content-Length: 5",
                "Content-Length: 6",
                "Content-Length: -1",
                "Content-Length: 9e9",
            ),
            *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Expect: 100-continue", "Expect: 5"),
            *("Upgrade: websocket", "Connection: upgrade", "Connection: close, keep-alive", "Upgrade: h2c"),
            *(
                "X: " + "y" * 30_000,
                ": empty",
                "A" * 5000,
                "Authorization: Bearer " + "z" * 5000,
                "Content-Encoding: gzip",
            ),
            *("Range: bytes=0-", "Origin: null", "X\0: a", "X: \r", "Inference-Header-Content-Length: 1"),
        ],
        rng.randrange(8),
    )
    if rng.random() < 0.1:
        headers += [f"X-{number}: {number}" for number in range(rng.choice([100, 5000]))]
    data = "\r\n".join([f"{method} {rng.choice(paths)} {version}", *headers, "", ""]).encode("latin-1")
    body = rng.choice(
        [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", rng.randbytes(300)]
    )
    return mutate(data + body, rng) if rng.random() < 0.3 else data + body


def mutated(rng: random.Random) -> bytes:
    """A good request with its bytes changed anywhere."""
    return mutate(post(INFER, json.dumps(infer_json(rng)).encode(), "Content-Type: application/json"), rng)


def lying_lengths(rng: random.Random) -> bytes:
    """Bodies shorter or longer than their Content-Length says."""
    return post(rng.choice([INFER, CLASSIFY]), rng.randbytes(50), length=rng.choice([0, 10, 51, 1000, 10**9, 10**18]))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    function.__name__: function
    for function in (odd_values, odd_json, lying_sizes, forms, raw_pictures, odd_headers, mutated, lying_lengths)
}
