"""The page's messages to the controls of a panel are handled one at a time, in their order."""

import functools
import threading
from collections.abc import Callable, Iterable

import ipywidgets


def in_turn(controls: Iterable[ipywidgets.Widget]) -> None:
    """Makes the messages to these controls wait for each other.

    JupyterLab asks for a thread of their own for the messages of widgets. ipykernel 7.4 follows
    only for widgets that were used before: a click on "flagged only" was handled in the main thread
    while a key was still handled in the other, and was lost. So each message goes to the thread
    that the page asks for, and where it does not (another kernel), they wait.
    """
    lock = threading.RLock()

    def handle(of_control: Callable[[dict], None], message: dict) -> None:
        with lock:
            of_control(message)

    for control in controls:
        control.comm.on_msg(functools.partial(handle, control._handle_msg))
        control.comm._reply_subshell_for = lambda _data, asked_for: asked_for
