"""Every contract check turns red: a method and a task that pass, and a planted fault for each check."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from harness.catalogue import catalogue
from harness.checking.checks import method_checks, run_check, run_checks, specimen, task_checks
from harness.checking.specimen import SIZES, MethodSpecimen
from harness.errors import UserError

GOOD_METHOD = '''
"""A method for tests."""

import random
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from harness.api import Method
from harness.matching import paired_patches, paired_tokens


class Mine(Method):
    """weight * MSE of the last blocks' tokens."""

    name = "mine"
    cite = "made up"
    student_options = {}
    per_image = True

    def __init__(self, student, teacher, *, weight: float = 1.0):
        super().__init__(student, teacher)
        self.ours, self.theirs = student.depth - 1, teacher.depth - 1
        self.student_layers, self.teacher_layers = frozenset({self.ours}), frozenset({self.theirs})
        self.project = nn.Linear(student.dim, teacher.dim)
        self.weight = weight

    def losses(self, student, teacher, batch):
        ours, target = paired_tokens(student, teacher, self.ours, self.theirs)
        error = F.mse_loss(self.project(ours).float(), target.float())
        return {"kd": self.weight * error}
'''

INIT = "        self.weight = weight\n"
READ = "        ours, target = paired_tokens(student, teacher, self.ours, self.theirs)\n"
GIVE = '        return {"kd": self.weight * error}\n'
MSE = "self.project(ours).float(), target.float()"

# check -> faults: what is replaced by what, and what the message must say
METHOD_FAULTS = {
    "final_and_cited": [
        ('    cite = "made up"\n', "", "names no source"),
        ('    """weight * MSE of the last blocks\' tokens."""\n', "", "no docstring"),
        ("class Mine(Method):", "class Half(Method):\n    pass\n\n\nclass Mine(Half):", "derives from Half"),
        (
            "    def losses(",
            '    if True:\n        name = "yours"\n\n    def losses(',
            "make it a literal",
        ),
        ("    def losses(", "    def loses(", "does not define losses"),
    ],
    "hyperparameters": [
        ("weight: float = 1.0", "weight: float = 0.5 * 2", "0.5 * 2, which is not a literal"),
        ("weight: float = 1.0", "weight=1.0", "no annotation"),
        ("weight: float = 1.0", "weight: float", "no default"),
        ("weight: float = 1.0", "weight: float = 1.0, **rest", "takes **rest"),
        ("*, weight: float = 1.0", "weight: float = 1.0", "must be keyword-only"),
        ("weight: float = 1.0", "weight: torch.Tensor = 1.0", "has 'torch.Tensor'"),
        ("weight: float = 1.0", 'weight: float = "much"', "it must be float"),
        ("    student_options = {}", '    presets = {"mine_2": {"wieght": 2.0}}', "did you mean 'weight'?"),
    ],
    "finite_scalar_terms": [
        (GIVE, '        return {"kd": torch.log(-error)}\n', "term 'kd' is nan"),
        (GIVE, '        return {"kd": error.expand(2)}\n', "must be a scalar"),
        (GIVE, '        return {"loss": error}\n', "'loss'"),
        (GIVE, "        return {}\n", "at least one named term"),
        (GIVE, "        return error\n", "returned Tensor"),
    ],
    "declared_layers": [
        (READ, READ + "        target = target + teacher.tokens[0].mean()\n", "reads layers 0 of the teacher"),
        (
            READ,
            READ + "        target = sum(teacher.tokens.values())\n",
            "reads layers 0, 1, 2, 3 and 1 more of the te",
        ),
        (
            READ,
            READ + "        target = teacher.tokens.get(self.theirs - 1, target)\n",
            "reads layers 4 of the teacher",
        ),
        (READ, READ + "        target = target + student.tokens[1].mean()\n", "reads layers 1 of the student"),
        ("frozenset({self.theirs})", "frozenset({-1})", "teacher_layers is [-1]"),
    ],
    "parameters_move": [
        (INIT, INIT + "        self.dead = nn.Parameter(torch.ones(2))\n", "dead did not move"),
        ("self.project(ours)", "self.project.requires_grad_(False)(ours)", "project.weight, project.bias did not move"),
    ],
    "student_gradient": [
        ("student.depth - 1", "0", "the last student layer that losses() reads is 0, and it does not read the logits"),
        (READ, READ + "        ours = ours.detach()\n", "although losses() reads layer 3; is something detached"),
    ],
    "teacher_untouched": [
        (INIT, INIT + "        teacher.block(0).requires_grad_(True)\n", "requires_grad of blocks.0"),
        (INIT, INIT + "        teacher.block(1).train()\n", "training mode of blocks.1"),
        (INIT, INIT + "        teacher.block(2).register_forward_hook(print_nothing)\n", "hooks of blocks.2"),
        (INIT, INIT + "        teacher.block(0).mlp.fc1.bias.data.add_(1)\n", "weights blocks.0.mlp.fc1.bias"),
        (INIT, INIT + "        teacher.seen = True\n", "attribute seen"),
    ],
    "teacher_unowned": [
        (INIT, INIT + "        self.block = teacher.block(0)\n", "the teacher's own"),
        (INIT, INIT + "        self.block = student.block(0)\n", "the student's own"),
    ],
    "shared_tensors_only_read": [
        (READ, READ + "        teacher.tokens[self.theirs].mul_(2)\n", "writes into teacher.tokens[5]"),
        (READ, READ + "        teacher.tokens[self.theirs].data.mul_(2)\n", "writes into teacher.tokens[5]"),
        (READ, READ + "        teacher.logits.zero_()\n", "writes into teacher.logits"),
        (READ, READ + "        batch.images.add_(0)\n", "writes into batch.images"),
    ],
    "deterministic": [
        (GIVE, "        error = error * (1 + time.perf_counter_ns() % 1000 / 1000)\n" + GIVE, "differ at step 0"),
        (GIVE, "        error = error * torch.rand((), generator=new_generator())\n" + GIVE, "differ at step 0"),
    ],
    "alone_as_among_neighbours": [
        (GIVE, "        error = error * random.random()\n" + GIVE, "differs among neighbours at step 0"),
        (GIVE, "        error = error * np.random.rand()\n" + GIVE, "differs among neighbours at step 0"),
        (
            GIVE,
            "        SEEN.append(1)\n        error = error * (1 + len(SEEN) % 2)\n" + GIVE,
            "differs among neighbours",
        ),
    ],
    "bf16_autocast": [
        (MSE, "self.project(ours), torch.quantile(self.project(ours).detach(), 0.5)", "mine.py:"),
        (MSE, "self.project(ours).half() * 60000, target.half()", "under bf16 autocast: the gradient of"),
    ],
    "teacher_with_registers": [(READ, READ + "        target = teacher.tokens[self.theirs]\n", "mine.py:")],
    "models_without_cls": [
        (READ, "        ours, target = student.cls(self.ours), teacher.cls(self.theirs)\n", "has no CLS token"),
    ],
    "equal_depth": [(INIT, INIT + "        self.ratio = 1 // (teacher.depth - student.depth)\n", "ZeroDivisionError")],
    "different_grids": [
        (READ, "        ours, target = student.patches(self.ours), teacher.patches(self.theirs)\n", "mine.py:"),
    ],
    "batch_without_labels": [
        (GIVE, "        error = error + 0 * batch.labels.sum()\n" + GIVE, "labels_of(batch)"),
    ],
    "state_dict_round_trip": [
        (GIVE, "        self.weight = self.weight + 1\n" + GIVE, "register_buffer"),
        (
            GIVE,
            '        self.register_buffer("late", torch.ones(1))\n' + GIVE,
            "does not load into a new instance",
        ),
    ],
    "per_image_as_declared": [
        (MSE, "self.project(ours).float().mean(0), target.float().mean(0)", "as the mean of its halves"),
        (MSE, "F.dropout(self.project(ours), 0.5).float(), target.float()", "draws random numbers"),
        (
            GIVE,
            "        with torch.no_grad():\n            self.project.bias.mul_(0.9)\n" + GIVE,
            "losses() changes project.bias",
        ),
    ],
}
HELPERS = """
SEEN = []


def print_nothing(*_):
    return None


def new_generator():
    generator = torch.Generator()
    generator.seed()
    return generator
"""

GOOD_TASK = '''
"""A task for tests."""

import numpy as np

from harness.api import Metric, Task, Tiny
from harness.data import Data
from harness.toys import Colours, PixelVit


class Spread(Task):
    """How much the mean patch differs between images."""

    name = "spread"
    metrics = {"spread": Metric("ratio", "up")}

    def __init__(self, *, data: Data, scale: float = 1.0):
        self.data, self.scale = data, scale

    def protocol(self):
        return {"data": self.data.identity(), "scale": self.scale}

    def evaluate(self, encoder, *, seed):
        found = encoder.pooled(self.data.open("test"), self.data.view())
        vectors = found.mean_patch(encoder.depth - 1)
        value = float(vectors.std(axis=0).mean()) * self.scale
        return {"spread": value}

    @classmethod
    def tiny(cls):
        data = Data.of_sources({"test": Colours(8, split="test")}, image_size=32)
        return Tiny(cls(data=data), PixelVit(), PixelVit(blind=True))
'''


def with_items(column: str, metric: str = "spread") -> str:
    """The end of evaluate() with items."""
    items = f'Items({{"x": {column}}}, {{"{metric}": ("mean", "x")}})'
    return f'from harness.items import Items, Scores\n        return Scores({{"spread": value}}, {items})'


TASK_FAULTS = {
    "final_and_documented": [
        ('    """How much the mean patch differs between images."""\n', "", "no docstring"),
        ("class Spread(Task):", "class Half(Task):\n    pass\n\n\nclass Spread(Half):", "derives from Half"),
    ],
    "options": [
        ("scale: float = 1.0", "scale: float = 2 / 2", "not a literal"),
        ("scale: float = 1.0", "scale: int = 1.0", "it must be int"),
    ],
    "declared_metrics": [
        ('Metric("ratio", "up")', 'Metric("ratio", "higher")', "'spread'"),
        ('{"spread": Metric("ratio", "up")}', "{}", "metrics is empty"),
    ],
    "tiny_instance": [
        (
            "return Tiny(cls(data=data), PixelVit(), PixelVit(blind=True))",
            "return cls(data=data)",
            "tiny() returns Spr",
        ),
        ("Tiny(cls(data=data), PixelVit(), ", "Tiny(cls(data=data), np.mean, ", "oracle of tiny()"),
    ],
    "plain_protocol": [
        ('"scale": self.scale}', '"scale": {self.scale}}', "not plain JSON"),
        ('"scale": self.scale}', '"scale": (self.scale,)}', "changes when it is written as JSON: scale"),
    ],
    "protocol_of_data": [
        ('"scale": self.scale}', '"root": self.data.root}', "depends on the place of the data"),
        ('"data": self.data.identity(), ', "", "does not say which data"),
    ],
    "oracle_beats_blind": [('Metric("ratio", "up")', 'Metric("ratio", "down")', "turn the direction round")],
    "finite_metrics": [
        ('return {"spread": value}', 'return {"spread": value if value > 1e-6 else float("nan")}', "is nan"),
        ('return {"spread": value}', 'return {"spraed": value}', "leaves out spread"),
        ('return {"spread": value}', 'return {"spread": np.float32(value)}', "float32"),
    ],
    "items_make_the_values": [
        ('return {"spread": value}', with_items("np.ones(4, np.float32)"), "make spread 1, and evaluate() gives"),
        ('return {"spread": value}', with_items("np.ones(4)"), "column 'x' is float64"),
        ('return {"spread": value}', with_items("np.ones(4, bool)", "odd"), "are of 'odd', a metric without a value"),
    ],
    "any_vit": [
        ("found.mean_patch(", "found.cls(", "no CLS token"),
        (
            '{"spread": Metric("ratio", "up")}',
            '{"spread": Metric("ratio", "up"), "odd": Metric("ratio", "up")}',
            "gives odd for no encoder, although metrics declares it, so nothing tests it; let tiny() have an encoder "
            "for which it exists. Left out: oracle: odd; blind: odd; vit: odd; no CLS: odd",
        ),
    ],
    "reproducible": [("* self.scale\n", "* self.scale + np.random.rand()\n", "evaluated twice")],
    "encoder_untouched": [
        ("        vectors = ", "        encoder.vit.blind = True\n        vectors = ", "encoder.vit.blind"),
        (
            "        vectors = ",
            '        if hasattr(encoder.vit, "model"):\n            encoder.vit.model.train()\n        vectors = ',
            "encoder.vit.model of the encoder 'vit'",
        ),
        (
            "        vectors = ",
            "        if encoder.reference:\n            encoder.reference.clean.depth += 1\n        vectors = ",
            "encoder.reference.clean.depth of the encoder 'vit'",
        ),
    ],
}


def specimen_of(folder, text: str, kind: str):
    """The specimen of the one class in a plugin file with this text."""
    path = folder / "mine.py"
    path.write_text(text)
    (entry,) = [e for e in catalogue([path], strict=False).of_file(path) if e.kind == kind and e.preset_of is None]
    return specimen(entry)


def cases(faults):
    return [
        pytest.param(check, *fault, id=f"{check}-{i}")
        for check, found in faults.items()
        for i, fault in enumerate(found)
    ]


def red(checks, check, of, message):
    function = dict(checks)[check]
    outcome = run_check(check, function, of)
    assert not outcome.ok
    assert message in outcome.message


def test_a_method_within_the_contract_passes_every_check(tmp_path):
    outcomes = run_checks(specimen_of(tmp_path, GOOD_METHOD + HELPERS, "method").entry)
    assert [o for o in outcomes if not o.ok or o.message] == []
    assert [o.check for o in outcomes] == [name for name, _ in method_checks()]


def test_a_task_within_the_contract_passes_every_check(tmp_path):
    outcomes = run_checks(specimen_of(tmp_path, GOOD_TASK, "task").entry)
    assert [o for o in outcomes if not o.ok or o.message] == []
    assert [o.check for o in outcomes] == [name for name, _ in task_checks()]


def test_a_metric_may_be_left_out_where_it_does_not_exist_but_not_the_primary_one(tmp_path):
    some = GOOD_TASK.replace(
        '{"spread": Metric("ratio", "up")}', '{"spread": Metric("ratio", "up"), "cls": Metric("ratio", "up")}'
    ).replace('return {"spread": value}', 'return {"spread": value, **({"cls": value} if encoder.has_cls else {})}')
    assert [o for o in run_checks(specimen_of(tmp_path, some, "task").entry) if not o.ok] == []
    blind = some.replace('return {"spread"', "return {} if getattr(encoder.vit, 'blind', False) else {\"spread\"")
    (tmp_path / "other").mkdir()
    other = specimen_of(tmp_path / "other", blind, "task")
    red(task_checks(), "finite_metrics", other, "of the encoder 'blind' leaves out spread")


def test_every_check_has_a_planted_fault():
    assert set(METHOD_FAULTS) == {name for name, _ in method_checks()}
    assert set(TASK_FAULTS) == {name for name, _ in task_checks()}


@pytest.mark.parametrize(("check", "old", "new", "message"), cases(METHOD_FAULTS))
def test_a_planted_fault_turns_the_method_check_red(tmp_path, check, old, new, message):
    assert GOOD_METHOD.count(old) == 1
    red(method_checks(), check, specimen_of(tmp_path, GOOD_METHOD.replace(old, new) + HELPERS, "method"), message)


@pytest.mark.parametrize(("check", "old", "new", "message"), cases(TASK_FAULTS))
def test_a_planted_fault_turns_the_task_check_red(tmp_path, check, old, new, message):
    assert old in GOOD_TASK
    red(task_checks(), check, specimen_of(tmp_path, GOOD_TASK.replace(old, new), "task"), message)


def test_a_block_without_gradient_is_told_once(tmp_path):
    outcomes = run_checks(specimen_of(tmp_path, GOOD_METHOD.replace("student.depth - 1", "0"), "method").entry)
    assert [o.check for o in outcomes if not o.ok] == ["student_gradient"]


def test_a_block_whose_gradient_is_lost_under_bf16_only_is_told(tmp_path):
    lost = READ + "        ours = ours.detach() if torch.is_autocast_enabled('cpu') else ours\n"
    outcomes = run_checks(specimen_of(tmp_path, GOOD_METHOD.replace(READ, lost), "method").entry)
    assert [o.check for o in outcomes if not o.ok] == ["bf16_autocast"]


def test_a_refusal_in_init_is_no_fault_and_is_told(tmp_path):
    refusal = INIT + '        if student.grid != teacher.grid:\n            raise ValueError("grids differ")\n'
    of = specimen_of(tmp_path, GOOD_METHOD.replace(INIT, refusal), "method")
    outcome = run_check("different_grids", dict(method_checks())["different_grids"], of)
    assert outcome.ok
    assert outcome.message.endswith("grids differ")


def test_an_exception_is_told_with_the_users_line_and_without_a_traceback(tmp_path):
    of = specimen_of(tmp_path, GOOD_METHOD.replace(READ, READ + "        unheard_of += 1\n"), "method")
    outcome = run_check("finite_scalar_terms", dict(method_checks())["finite_scalar_terms"], of)
    line = GOOD_METHOD[: GOOD_METHOD.index(READ)].count("\n") + 2
    assert f"mine.py:{line}: UnboundLocalError" in outcome.message
    assert "Traceback" not in outcome.message


def test_a_file_that_fails_while_imported_is_told_with_its_line(tmp_path):
    outcomes = run_checks(specimen_of(tmp_path, GOOD_METHOD + "\n1 / 0\n", "method").entry)
    line = GOOD_METHOD.count("\n") + 2
    failed = [o.message for o in outcomes if not o.ok]
    assert failed and all(f"mine.py:{line}: ZeroDivisionError" in message for message in failed)


def test_a_method_whose_defaults_want_a_large_teacher_gets_one(tmp_path):
    wide = INIT + '        if teacher.dim < 64 or teacher.depth < 12:\n            raise ValueError("too small")\n'
    of = specimen_of(tmp_path, GOOD_METHOD.replace(INIT, wide), "method")
    assert isinstance(of, MethodSpecimen)
    assert of.size == SIZES[2]


def test_a_method_that_no_toy_fits_fails_with_its_own_reason(tmp_path):
    never = INIT + '        raise ValueError(f"wants more than {teacher.depth} blocks")\n'
    of = specimen_of(tmp_path, GOOD_METHOD.replace(INIT, never), "method")
    outcome = run_check("parameters_move", dict(method_checks())["parameters_move"], of)
    assert not outcome.ok
    assert "mine.py:" in outcome.message and f"wants more than {SIZES[-1].depth} blocks" in outcome.message


def test_the_student_is_built_as_the_method_wants_it(tmp_path):
    text = GOOD_METHOD.replace("student_options = {}", 'student_options = {"reg_tokens": 3}')
    of = specimen_of(tmp_path, text, "method")
    assert isinstance(of, MethodSpecimen)
    assert of.build().student.num_prefix_tokens == 4


def test_checks_leave_the_global_random_streams_alone(tmp_path):
    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    of = specimen_of(tmp_path, GOOD_METHOD + HELPERS, "method")
    before = state()
    for check in ("alone_as_among_neighbours", "deterministic"):
        assert run_check(check, dict(method_checks())[check], of).ok
    assert state() == before


def test_a_source_has_no_checks():
    with pytest.raises(UserError, match="is a source"):
        specimen(catalogue().sources["scenes"])
