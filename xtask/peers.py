"""The two peers of the image's drill: a name server whose only answer is 127.0.0.1, and an HTTPS receiver.

peers.py <address of the name server> <certificate> <key>

It prints the receiver's port, then the path of each request that came over TLS.
"""

import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()
        print(self.path, flush=True)

    def log_message(self, *arguments):
        pass


def names(server):
    while True:
        query, client = server.recvfrom(512)
        end = query.index(0, 12) + 5
        is_a = query[end - 4 : end - 2] == b"\x00\x01"
        # An answer to this question, with one record where it asks for an IPv4 address and none otherwise.
        head = query[:2] + b"\x81\x80\x00\x01" + (b"\x00\x01" if is_a else b"\x00\x00") + b"\x00\x00\x00\x00"
        record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04" + socket.inet_aton("127.0.0.1")
        server.sendto(head + query[12:end] + (record if is_a else b""), client)


address, certificate, key = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
threading.Thread(target=names, args=(server,), daemon=True).start()

receiver = HTTPServer(("127.0.0.1", 0), Receiver)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
print(receiver.server_port, flush=True)
while True:
    try:
        receiver.serve_forever()
    except ssl.SSLError:
        # A client that does not trust the certificate.
        continue
