"""The model that a config asks for."""

from typing import Any

from jaxinfer.experiment import attachments, runner
from jaxinfer.experiment.kind import Kind
from jaxinfer.experiment.progress import load_model, spread_over, waiting
from jaxinfer.experiment.spread import Spread


def load(kind: Kind, config: Any) -> Any:
    """Load the model that the config asks for, with extras, context and mesh; None where it asks for none."""
    spec, extras = kind.model(config), getattr(config, "extras", {})
    if spec is None:
        return None
    if not extras and spec.context is None:
        return load_model(spec.source, spec.dtype, spec.weights, tokenizer=spec.tokenizer, spread=Spread.of_model(spec))
    model = load_model(spec.source, spec.dtype, spec.weights, tokenizer=spec.tokenizer)
    if extras:
        with waiting(f"loading {', '.join(extras)}"):
            model = attachments.attach(model, spec.source, extras)
    model = runner.extended(model, spec)
    spread_over(model)
    return model
