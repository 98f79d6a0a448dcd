"""A pretrained model with another head, other labels or another dropout: its trunk's weights, and a report of what is new."""
from pyllm.errors import ConfigError
from pyllm.folders import build

TASKS = {"lm": None, "classify": "ForSequenceClassification", "tag": "ForTokenClassification", "span": "ForQuestionAnswering",
         "value": "ForValue"}


def transfer(model, task, *, labels=None, dropout=None, seed=0):
    """-> (a model for `task`, paths drawn from `seed`, paths of `model` left behind): the weights of `model` where path and shape agree.

    task: of TASKS; "lm" is the family's language model. labels: names of a classifier's labels in order of their ids, which the
    configuration then keeps. dropout: a probability instead of the configuration's, for every kind of dropout that the family has. The
    two models share their arrays. ConfigError: a task that the family has no head for; ValueError: packed weights, which learn nothing.
    """
    if task not in TASKS:
        raise ConfigError(f"transfer: task={task!r}; expected one of {', '.join(TASKS)}")
    if packed := [path for path, _ in model.named_packed()]:
        raise ValueError(f"transfer: {len(packed)} packed weights, among them {packed[0]}; expected floats. "
                         "Hint: pyllm.quantize(model, 'f32')")
    values = model.config.to_dict()
    if dropout is not None:
        values.update(dict.fromkeys(model.config.SIZES["dropout"], dropout))
    if labels is not None:
        values.pop("num_labels", None)
        values.update(id2label={str(i): name for i, name in enumerate(labels)}, label2id={name: i for i, name in enumerate(labels)})
    head = TASKS[task]
    values["architectures"] = [model.config.base_architecture.removesuffix("Model") + head if head else model.config.architecture]
    new = build(values, seed)
    given, fresh = {path.removeprefix(model.PREFIX): p for path, p in model.named_parameters()}, []
    for path, p in new.named_parameters():
        found = given.get(path.removeprefix(new.PREFIX))
        if found is None or found.shape != p.shape:
            fresh.append(path)
        else:
            p.data = given.pop(path.removeprefix(new.PREFIX)).data
    return new, fresh, [path for path, _ in model.named_parameters() if path.removeprefix(model.PREFIX) in given]
