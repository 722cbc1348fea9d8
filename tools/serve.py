"""Serve a folder on localhost: at the port that is asked for, or the next free one.   python tools/serve.py FOLDER [PORT]"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


def main(folder: str, port: str = "8000") -> int:
    """Serve until Ctrl-C; returns an exit status."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    first = int(port)
    for number in range(first, first + 20):
        try:
            server = ThreadingHTTPServer(("127.0.0.1", number), handler)
        except OSError as error:
            print(f"port {number} cannot be used ({error.strerror})", flush=True)
            continue
        print(f"http://127.0.0.1:{number}/   (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    print(f"error: no port from {first} to {first + 19} is free; try: make serve PORT=9000")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
