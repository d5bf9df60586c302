"""A way to a server that can be broken without a word: what is sent is taken, and nothing ever comes of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class SilentProxy:
    """Forwards TCP connections on a loopback port to a unix socket.

    While it is ``silent`` new connections are taken and lead nowhere. Those that were open by then stay so for good:
    neither end hears of the other again, nor that it is gone.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._era = 0
        self.silent = False
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def fall_silent(self) -> None:
        """From now on nothing arrives."""
        self.silent = True
        self._era += 1

    def speak_again(self) -> None:
        """New connections work."""
        self.silent = False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                if self.silent:
                    continue
                far = socket.socket(socket.AF_UNIX)
                self._sockets.append(far)
                far.connect(self._target)
                for here, there in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(here, there, self._era), daemon=True).start()

    def _forward(self, here: socket.socket, there: socket.socket, era: int) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65_536):
                if era == self._era:
                    there.sendall(data)
            if era == self._era:
                there.shutdown(socket.SHUT_WR)
