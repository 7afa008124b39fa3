"""The model card of an exported student: README.md with YAML in front, as the Hugging Face hub reads it.

Names in it come from users' files. In the YAML they are one line of visible text each, quoted where that is needed; in
the text they are escaped, so that none of them is markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from harness.records import Cost, MetricInfo, Record, RunInfo
from leaderboard.labels import clean
from leaderboard.markup import escape_markdown
from leaderboard.publishing.paths import without_paths

LICENSE = "choose-a-license"  # nobody but the student's owner can
HUB_TASKS = {
    "segmentation": "image-segmentation",
    "depth": "depth-estimation",
    "artifacts": "image-feature-extraction",
    "refinement": "image-feature-extraction",
}
HUB_METRICS = {"top1": "accuracy", "mIoU": "mean_iou"}  # as the hub calls them; others keep their name
_ON_THE_HUB = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")  # a timm name with the tag of its weights


def model_card(
    run: RunInfo,
    cost: Cost,
    records: Iterable[Record],
    *,
    name: str,
    head_trained: bool,
    cite: str = "",
    does: str = "",
    versions: Mapping[str, Any] | None = None,
) -> str:
    """The card's text.

    Args:
        run, cost, head_trained, versions: what run.yaml says of the student; versions of packages.
        records: those of this run. name: of the folder that it is exported to.
        cite: the method's source. does: the method in a sentence.
    """
    run = RunInfo.model_validate(without_paths(run.model_dump(mode="json")))
    mine = sorted((r for r in records if r.run.id == run.id), key=_place)
    parts = [
        _about(run, name, cite, does),
        _training(run, cost),
        _results(mine),
        _loading(run, name, head_trained),
        _limits(run, mine, head_trained),
        _made(run, versions or {}),
    ]
    return f"---\n{_front(run, mine, clean(name), head_trained)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front(run: RunInfo, records: Sequence[Record], name: str, head_trained: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=HUB_TASKS.get(record.task_kind, "image-classification"),
            task_name=clean(record.task),
            dataset_type=_slug(_data(record)),
            dataset_name=clean(_data(record)),
            dataset_config=f"protocol {record.task_id}",  # results of two protocols are never one
            metric_type=HUB_METRICS.get(metric, clean(metric)),
            metric_name=clean(f"{metric} ({info.unit}, {info.direction})"),  # the value is in this unit
            metric_value=record.values[metric],
        )
        for record in records
        for metric, info in record.metrics.items()
        if info.ranked and metric in record.values
    ]
    data = ModelCardData(
        license="other",
        license_name=LICENSE,
        library_name="timm",
        pipeline_tag="image-classification" if head_trained else "image-feature-extraction",
        tags=["timm", "knowledge-distillation", "vision-transformer", "singer-bench", _slug(run.method)],
        base_model=_base_model(run),
        datasets=[_slug(run.data)],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name,
        eval_results=results or None,
    )
    if not results:  # the name belongs to the index of results
        data.pop("model_name")
    return data.to_yaml(line_break="\n")


def _base_model(run: RunInfo) -> str | None:
    """The teacher on the hub, where its weights came from there. What a file holds, a model's name does not prove."""
    teacher = run.spec.get("teacher")
    if isinstance(teacher, dict) and isinstance(twin := teacher.get("register_teacher"), dict):
        pretrained = twin.get("pretrained")
        teacher = {**twin, "pretrained": teacher.get("pretrained") if pretrained is None else pretrained}
    if not isinstance(teacher, dict) or teacher.get("pretrained") is not True or teacher.get("checkpoint"):
        return None
    model = teacher.get("model")
    return f"timm/{model}" if isinstance(model, str) and _ON_THE_HUB.fullmatch(model) else None


def _about(run: RunInfo, name: str, cite: str, does: str) -> str:
    lines = [f"# {escape_markdown(name)}", ""]
    lines += [
        f"A Vision Transformer ({escape_markdown(run.student)}), distilled from {escape_markdown(run.teacher)} by "
        f"{escape_markdown(run.label)}, on {escape_markdown(run.data)}.",
        "",
        f"**License: not chosen yet.** `license_name: {LICENSE}` above is a placeholder. The teacher's weights and the "
        "data have licenses of their own; choose one that they allow before you share this model.",
        "",
        "## Method",
        "",
        f"{escape_markdown(run.method)}" + (f": {escape_markdown(does)}" if does else "."),
    ]
    if cite:
        lines += ["", f"Source: {_linked(cite)}"]
    if run.hyperparameters:
        rows = [[escape_markdown(str(k)), escape_markdown(str(v))] for k, v in run.hyperparameters.items()]
        lines += ["", tabulate(rows, ["hyperparameter", "value"], "pipe", disable_numparse=True)]
    return "\n".join(lines)


def _linked(cite: str) -> str:
    """A source, with its arXiv number as a link."""
    link = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", escape_markdown(cite))
    return link if link.endswith(".") else f"{link}."


def _training(run: RunInfo, cost: Cost) -> str:
    teacher = run.spec.get("teacher")
    checkpoint = teacher.get("checkpoint") if isinstance(teacher, dict) else None
    rows = [
        ["teacher", escape_markdown(run.teacher)],
        ["teacher's weights", f"file with SHA-256 {escape_markdown(checkpoint)}" if checkpoint else None],
        ["data", escape_markdown(run.data)],
        ["steps", cost.steps],
        ["images seen", cost.images_seen],
        ["seed", f"{run.seed}; this is one student of one seed"],
        ["settings tried before", run.trials],
        ["parameters", cost.student_parameters],
        ["own training", None if cost.own_s is None else f"{cost.own_s:.1f} s"],
        ["run", f"{escape_markdown(run.id)}, the hash of all that decided this student"],
    ]
    shown = [[key, str(value)] for key, value in rows if value is not None]
    return "## Training\n\n" + tabulate(shown, ["", ""], "pipe", disable_numparse=True)


def _results(records: Sequence[Record]) -> str:
    rows = [
        [
            *map(escape_markdown, (record.task, _data(record), f"{metric} ({_unit(info)})")),
            _number(record.values[metric], info),
            record.task_id,
        ]
        for record in records
        for i, (metric, info) in enumerate(record.metrics.items())
        if metric in record.values and (i == 0 or info.ranked or info.shown)
    ]
    if not rows:
        return "## Results\n\nNone: this student has not been measured."
    table = tabulate(rows, ["task", "data", "metric", "value", "protocol"], "pipe", disable_numparse=True)
    said = {r.task_id: r.protocol.get("summary") for r in records}
    notes = [f"- {i}: {escape_markdown(summary)}" for i, summary in said.items() if isinstance(summary, str)]
    text = f"## Results\n\n{table}\n\nValues of one student; compare only numbers of the same protocol."
    return text + ("\n\n" + "\n".join(notes) if notes else "")


def _loading(run: RunInfo, name: str, head_trained: bool) -> str:
    use = "logits = model(images)" if head_trained else "tokens = model.forward_features(images)"
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "import timm",
            "",
            f'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:USER/{_slug(name)}"',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
            "images = transform(picture).unsqueeze(0)",
            use,
            "```",
        ]
    )


def _limits(run: RunInfo, records: Sequence[Record], head_trained: bool) -> str:
    lines = [f"- One seed ({run.seed}): how much another seed would differ, this card cannot tell."]
    lines += ["- Trained and measured to compare methods of distillation, not to be used where errors do harm."]
    if not head_trained:
        lines += ["- Its classifier was never trained: use its features, not its logits."]
    seen = sorted({_data(record) for record in records})
    what = f"only on {escape_markdown(', '.join(seen))}" if seen else "nowhere"
    lines += [f"- It was measured {what}; biases of the teacher and of the data come with it."]
    return "## Limits\n\n" + "\n".join(lines)


def _made(run: RunInfo, versions: Mapping[str, Any]) -> str:
    told = ", ".join(f"{escape_markdown(str(k))} {escape_markdown(str(v))}" for k, v in versions.items())
    return f"Made by singer-bench{f' ({told})' if told else ''}."


def _place(record: Record) -> tuple[bool, str, str]:
    """What says how good it is comes before what describes it."""
    return not any(info.ranked for info in record.metrics.values()), record.task, record.task_id


def _data(record: Record) -> str:
    data = record.protocol.get("data")
    found = data.get("name") if isinstance(data, dict) else None
    return without_paths(found) if isinstance(found, str) and found else record.run.data


def _unit(info: MetricInfo) -> str:
    return f"{'%' if info.unit == 'fraction' else info.unit} {'↑' if info.direction == 'up' else '↓'}"


def _number(value: float, info: MetricInfo) -> str:
    return f"{100 * value:.2f}" if info.unit == "fraction" else f"{value:.4g}"


def _slug(name: str) -> str:
    """As the hub takes names: letters, digits, dots, dashes, underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:96] or "unnamed"
