"""What a model file was found to hold, stage by stage, in a few words."""

from __future__ import annotations

from torch import nn

from unified.admission import ModelForm, ModelRef
from unified.quantities import plural
from unified.submission.interpreter import ArchiveModule
from unified.validation import Stage

_CONTENT = (Stage.CONTAINER, Stage.TENSORS)
_STAGES = {
    ModelForm.UMODEL: (
        Stage.CONTAINER,
        Stage.SCHEMA,
        Stage.HASH,
        Stage.TENSORS,
        Stage.NAMES,
        Stage.GRAPH,
        Stage.OPERATORS,
    ),
    ModelForm.WEIGHTS: (*_CONTENT, Stage.NAMES, Stage.OPERATORS),
    ModelForm.PRETRAINED: (*_CONTENT, Stage.SCHEMA, Stage.NAMES, Stage.OPERATORS),
    ModelForm.MODULE: (*_CONTENT, Stage.NAMES, Stage.OPERATORS),
}


def model_stages(form: ModelForm) -> tuple[Stage, ...]:
    """Return the stages that reading a model of this form goes through; a trusted one runs its code and has but one."""
    return _STAGES.get(form, (Stage.CONTAINER,))


def describe_model(ref: ModelRef, module: nn.Module) -> dict[Stage, str]:
    """Return what each stage found in a model that passed it."""
    found = dict.fromkeys(model_stages(ref.form), "")
    found[Stage.CONTAINER] = "its owner's code, trusted" if ref.runs_code else "data, of which nothing runs"
    if Stage.TENSORS in found:
        tensors = [*module.parameters(), *module.buffers()]
        found[Stage.TENSORS] = plural(len(tensors), "tensor")
    if isinstance(module, ArchiveModule):
        nodes, operators = module.sizes()
        found[Stage.GRAPH] = f"{plural(nodes['train'], 'node')} in training, {nodes['eval']} in evaluation"
        found[Stage.OPERATORS] = f"{plural(operators, 'operator')}, all allowed"
    return found
