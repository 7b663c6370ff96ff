"""Fine-tuning on the device: the cost that generated parameters save, beside the scenario ``adapt``."""

from __future__ import annotations

from dataclasses import replace

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.inputs import role_inputs
from lit_mmpg.profiling.meters import latency
from lit_mmpg.profiling.scenarios import Context, Outcome


def run(context: Context) -> Outcome:
    """Measure whole adaptations by fine-tuning.

    Raises:
        UserError: If torch or the weights are missing.
    """
    settings = context.config.finetune
    try:
        from lit_mmpg.torch_engines.finetuning import OnDeviceTraining
    except ImportError as error:
        raise UserError(f"fine-tuning needs {error.name or error}, which this machine lacks") from error
    pipeline = context.pipeline
    clips = role_inputs(pipeline.bundle, "model", settings.batch)
    training = OnDeviceTraining(pipeline.bundle, clips, settings.steps, settings.lr)
    # An adaptation takes seconds: few of them, but whole ones.
    few = replace(context.config.latency, warmup=0, min_count=4, attempts=1)
    return Outcome(
        unit=f"one adaptation by fine-tuning: {settings.steps} steps of {settings.batch} labelled clips, from features",
        latency=latency.measure(training.adapt, few),
        work=training.adapt,
        notes=[
            "labels are random: this row is about cost; accuracy and the steps it takes come from 'lit-mmpg compare'",
            "all weights are trained by AdamW in torch, on the processor",
        ],
    )
