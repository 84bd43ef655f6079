"""The network in other runtimes, and results as DICOM objects."""

from chexnet.export.facts import Facts, describe_run
from chexnet.export.network import export_model
from chexnet.export.of_run import open_run
from chexnet.export.results import write_dicom_results
from chexnet.export.runtimes import is_exported, open_exported, precisions

__all__ = [
    "Facts", "describe_run", "export_model", "is_exported", "open_exported", "open_run",
    "precisions", "write_dicom_results",
]  # fmt: skip
