"""The exporters' errors."""

from fusion_onnx.verification import Verdict


class ExportError(ValueError):
    """A module that cannot be exported as asked; nothing is written."""


class VerificationError(ExportError):
    """The exported model differs from eager execution; `verdict` says where. Nothing is written.

    note: the cause, where it is known.
    """

    def __init__(self, verdict: Verdict, note: str = "") -> None:
        text = ("the exported model differs from eager execution; nothing is written.", note, str(verdict))
        super().__init__("\n".join(filter(None, text)))
        self.verdict = verdict
