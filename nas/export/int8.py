"""An ONNX model with eight-bit weights, its activations quantised as they come.

Every linear map becomes a MatMulInteger and every table a Gather of bytes, by ONNX Runtime's dynamic quantisation, in
operators of the standard domain. The settings serve x86 CPUs with and without VNNI alike:

* signed weights: ONNX Runtime has fast kernels for them on both; with unsigned ones a VNNI machine gained nothing;
* one scale for each output channel: with one for each matrix, outliers cost ten times more accuracy;
* seven bits of range: without VNNI two products are added in 16 bits, and 2 * 255 * 64 = 32,640 still fits.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx


def quantize(model: onnx.ModelProto, path: Path) -> None:
    """Writes the int8 form of a model.

    Args:
        model: What ``nas.export.onnx_graph.build_graph`` returned; left as it is.
        path: The file to write.
    """
    # onnxruntime.quantization takes 0.3 s to import, and a search that only times shapes never needs it
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_advice():
        quantize_dynamic(model, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the quantiser's advice to pre-process, which it gives on the root logger: the graph is lean already."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    silent = None if root.handlers else logging.NullHandler()  # else logging.warning would configure the root logger
    root.addFilter(is_wanted)
    if silent is not None:
        root.addHandler(silent)
    try:
        yield
    finally:
        root.removeFilter(is_wanted)
        if silent is not None:
            root.removeHandler(silent)
