"""The explorer: figures of the analyzer as pages and drawings.

page("llama-3-8b").write("roofline.html")         one file, with all models, devices and formulas
figure(analyze(config, device, setting))          a roofline plot, as SVG; notebooks show both
"""

from jaxinfer.analysis.explorer.document import Page, page
from jaxinfer.analysis.explorer.drawing import Figure, figure, roofline_svg

__all__ = ["Figure", "Page", "figure", "page", "roofline_svg"]
