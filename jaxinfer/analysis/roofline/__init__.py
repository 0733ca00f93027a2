"""Roofline analysis: operations, bytes, bound and time of every operator of a model on a device, before anything runs.

    from jaxinfer.analysis.roofline import Setting, analyze
    analyze(model.config, hardware.get("h100"), Setting(batch=8, prompt=2048)).seconds("decode")

The method is that of "LLM Inference Unveiled: Survey and Roofline Model Insights" (Yuan et al. 2024, section 2): an
operator takes the longer of two times, that of its operations at the peak rate and that of its bytes at the bandwidth.
"""

from jaxinfer.analysis.roofline.analysis import Roofline, Timed, analyze
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.analysis.roofline.setting import Setting, Storage

__all__ = ["Operator", "Roofline", "Setting", "Storage", "Timed", "analyze"]
