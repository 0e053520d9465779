"""The floor: an empty unary call on grpc.aio that carries Decide's payload sizes, and does nothing else.

Run as a program it serves on the port it is given, in a process of its own, as a service would.
"""

import asyncio
import sys

import grpc

METHOD = "/bench.Floor/Call"
RESPONSE_BYTES = 1024


async def serve(port: int) -> None:
    """Answer every call with RESPONSE_BYTES bytes until the process is told to stop."""
    server = grpc.aio.server()
    reply = bytes(RESPONSE_BYTES)

    async def answer(request: bytes, context: object) -> bytes:
        return reply

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Floor", {"Call": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
