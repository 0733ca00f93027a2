"""The charts, tables and sentences of the figures of a survey, whose rows `analysis.survey` gives."""

from jaxinfer.experiment.survey import devices, operators, quantization
from jaxinfer.experiment.survey.parts import Figure

DRAWN: dict[str, Figure] = {
    "rooflines": operators.ROOFLINES,
    "memory": quantization.MEMORY,
    "decode_time": quantization.DECODE_TIME,
    "prefill_time": quantization.PREFILL_TIME,
    "cache_memory": quantization.CACHE_MEMORY,
    "flash_attention": operators.FLASH_ATTENTION,
    "fusion": operators.FUSION,
    "offloading": devices.OFFLOADING,
    "batching": devices.BATCHING,
    "bandwidth": devices.BANDWIDTH,
    "dynamic": operators.DYNAMIC,
}
"""The figures by the names of `analysis.survey.FIGURES`."""
