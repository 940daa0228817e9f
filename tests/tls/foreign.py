"""Peers in another language and with other implementations of TLS: OpenSSL (Python's ssl) and BoringSSL (gRPC's).

Usage: foreign.py scrape ADDRESS FOLDER        prints the metrics of a coordinator, with worker 1's certificate
       foreign.py health ADDRESS FOLDER        prints the health of a coordinator, with worker 1's certificate
       foreign.py connect ADDRESS CA CERT KEY  connects to a coordinator, and prints how the handshake ended
       foreign.py serve CA CERT KEY            prints a port, and how the handshake of the first client there ended
       foreign.py coordinate FOLDER            prints a port, and what the first worker there says first
"""

import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

COORDINATOR = "coordinator.convoy.internal"
PATIENCE = 30


def files(folder, name):
    return [f"{folder}/ca.pem", f"{folder}/{name}.pem", f"{folder}/{name}-key.pem"]


def context(purpose, ca, certificate, key):
    made = ssl.create_default_context(purpose, cafile=ca)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(certificate, key)
    return made


def connected(address, made, protocol):
    host, port = address.rsplit(":", 1)
    made.set_alpn_protocols([protocol])
    plain = socket.create_connection((host, int(port)), timeout=PATIENCE)
    return made.wrap_socket(plain, server_hostname=COORDINATOR)


def scrape(address, folder):
    made = context(ssl.Purpose.SERVER_AUTH, *files(folder, "worker-1"))
    with connected(address, made, "http/1.1") as stream:
        stream.sendall(b"GET /metrics HTTP/1.1\r\nHost: convoy\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := stream.recv(1 << 16):
            answer += part
    print(answer.decode())


def credentials_of(folder, name):
    import grpc

    ca, certificate, key = (open(path, "rb").read() for path in files(folder, name))
    return (
        grpc.ssl_channel_credentials(ca, key, certificate),
        grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True),
    )


def health(address, folder):
    import grpc

    options = [("grpc.ssl_target_name_override", COORDINATOR)]
    with grpc.secure_channel(address, credentials_of(folder, "worker-1")[0], options) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        print(check(b"", timeout=PATIENCE))


def connect(address, *paths):
    try:
        with connected(address, context(ssl.Purpose.SERVER_AUTH, *paths), "h2") as stream:
            # The server refuses a client after the client's part of the handshake.
            print("received", len(stream.recv(1)))
    except ssl.SSLError as error:
        print(error.reason)


def serve(*paths):
    made = context(ssl.Purpose.CLIENT_AUTH, *paths)
    made.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        print(listener.getsockname()[1], flush=True)
        plain, _ = listener.accept()
        try:
            with made.wrap_socket(plain, server_side=True):
                print("received a client")
        except ssl.SSLError as error:
            print(error.reason)


def coordinate(folder):
    import grpc

    heard = []

    def control(messages, _):
        heard.append(next(messages))
        server.stop(0)
        yield b""

    handler = grpc.stream_stream_rpc_method_handler(control)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("convoy.v1.Coordinator", {"Control": handler})])
    port = server.add_secure_port("127.0.0.1:0", credentials_of(folder, "coordinator")[1])
    server.start()
    print(port, flush=True)
    server.wait_for_termination(PATIENCE)
    print(heard)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
