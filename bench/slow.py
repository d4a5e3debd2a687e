#!/usr/bin/env python3
"""A way to a port of this machine that is 100 Mbit/s wide and 10 ms long, for kernels without tc's netem. Prints its own port."""
import asyncio
import sys
import time

RATE, DELAY, PIECE = 100e6 / 8, 0.010, 16 << 10
due = {"up": 0.0, "down": 0.0}  # one width for all connections, each way


async def carry(reader, writer, way):
    pieces = asyncio.Queue(256)

    async def deliver():
        while (piece := await pieces.get()) is not None:
            at, data = piece
            await asyncio.sleep(max(0, at - time.monotonic()))
            writer.write(data)
            await writer.drain()
        writer.close()

    delivering = asyncio.create_task(deliver())
    try:
        while data := await reader.read(PIECE):
            now = time.monotonic()
            due[way] = max(due[way], now) + len(data) / RATE
            await pieces.put((due[way] + DELAY, data))
            await asyncio.sleep(max(0, due[way] - now))
    finally:
        await pieces.put(None)
    await delivering


async def serve(reader, writer):
    try:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
        await asyncio.gather(carry(reader, up_writer, "up"), carry(up_reader, writer, "down"))
    except OSError:
        writer.close()  # somebody has hung up


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
