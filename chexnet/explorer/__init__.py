"""The interactive viewer of a run."""

from chexnet.explorer.panel import explore
from chexnet.explorer.upload import upload_panel

__all__ = ["explore", "upload_panel"]
