"""A provider that costs as little as it can: one fixed answer, over kept connections.

`python -m benchmarks.provider` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import re
import sys

ANSWER_BODY = (
    b'{"id": "chatcmpl-1", "choices": [{"message": {"content": "' + b"x" * 820 + b'"}}], '
    b'"usage": {"prompt_tokens": 480, "completion_tokens": 205, "total_tokens": 685}}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER_BODY),
    ANSWER_BODY,
)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


async def read_request(reader: asyncio.StreamReader) -> bool:
    """Read a request whose body has a length; False for another one."""
    length = _LENGTH.search(await reader.readuntil(b"\r\n\r\n"))
    if length is None:
        return False
    await reader.readexactly(int(length[1]))
    return True


class Provider(asyncio.Protocol):
    """Reads requests by their Content-Length and answers each."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.buffer[:end])
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < whole:
                return
            self.buffer = self.buffer[whole:]
            self.transport.write(ANSWER)  # type: ignore[attr-defined]


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Provider, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
