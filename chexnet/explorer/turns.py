"""The page's messages to the controls of a panel are handled one at a time, in their order."""

import functools
import threading
from collections.abc import Callable, Iterable

import ipywidgets


def in_turn(controls: Iterable[ipywidgets.Widget]) -> None:
    """Makes the messages to these controls wait for each other.

    JupyterLab asks the kernel to handle the messages of all widgets in a second thread. ipykernel
    7.4 does so only for widgets that were used before: a click on "flagged only" was handled in the
    main thread while a key was still handled in the second, and was lost. So each message is
    handled in the thread that the page asks for; with other kernels, it waits for the lock.
    """
    lock = threading.RLock()

    def handle(of_control: Callable[[dict], None], message: dict) -> None:
        with lock:
            of_control(message)

    for control in controls:
        control.comm.on_msg(functools.partial(handle, control._handle_msg))
        control.comm._reply_subshell_for = lambda _data, asked_for: asked_for
