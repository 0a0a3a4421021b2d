"""Settings: what is taken, what is refused and in which words."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rolekd_ray.config import Settings, load_settings, parse_settings, settings_text
from rolekd_ray.errors import ConfigError, InputError
from rolekd_ray.files import parse_yaml, read_yaml
from rolekd_ray.policy.space import load_space, searchspaces_folder
from rolekd_ray.roles import Role
from rolekd_ray.storage import ObjectPath

SHIPPED = sorted(searchspaces_folder().glob("*.yaml"))


def parsed(text: str) -> Settings:
    return parse_settings(parse_yaml(text, where="mine.yaml"), where="mine.yaml", name="mine")


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parsed(text)
    return list(error.value.problems)


# ---- what is taken


def test_settings_are_shipped():
    assert {"quickstart", "cifar10_pba", "cifar10_reduced", "cifar100_rolekd"} <= {file.stem for file in SHIPPED}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_file_parses_and_names_its_source(file):
    settings = load_settings(file.stem)
    assert settings == load_settings(file) == load_settings(str(file))
    assert settings.source
    assert settings.search_space() == load_space(file.stem if isinstance(settings.space, dict) else settings.space)
    given = read_yaml(file)
    assert given.keys() <= Settings.model_fields.keys()
    for section, values in given.items():  # nothing that stands in the file is lost
        if section not in ("space", "source"):
            plain = json.loads(settings.model_dump_json())[section]
            if section == "data" and "path" in values:
                values["path"] = str(Path(values["path"]).absolute())
            assert holds(plain, values), (section, plain, values)


def holds(plain, values) -> bool:
    """Whether all that a file says stands among the settings, whatever stands beside it."""
    if isinstance(values, dict) and isinstance(plain, dict):
        return all(key in plain and holds(plain[key], value) for key, value in values.items())
    return plain == values


def test_quickstart_is_the_default_and_a_folder_of_its_name_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_settings() == load_settings("quickstart")
    (tmp_path / "mine").write_text("seed: 3")
    assert load_settings("mine").seed == 3, "a file needs no suffix"


def test_an_empty_mapping_is_all_defaults():
    assert parsed("{}") == Settings()
    assert Settings().network(Role.TEACHER).model == "resnet20" and Settings().network(Role.STUDENT).model == "resnet8"


def test_relative_paths_are_read_from_the_current_folder_once_and_for_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = load_settings("quickstart", ["data.path=some/folder", "teacher.checkpoint=~/net"])
    assert settings.data.path == tmp_path / "some" / "folder"
    assert settings.teacher.checkpoint == tmp_path / "home" / "net"
    several = load_settings("quickstart", ["teacher.checkpoint=[~/net, here, s3://bucket/net]"])
    assert several.teacher.checkpoint == (
        tmp_path / "home" / "net",
        tmp_path / "here",
        ObjectPath("s3", "bucket/net"),
    )
    for found in (settings, several):
        (tmp_path / "config.yaml").write_text(settings_text(found))
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            assert load_settings(tmp_path / "config.yaml") == found, "a run can be gone on with from anywhere"


def test_final_trainings_are_as_long_as_the_search_unless_told():
    assert parsed("search: {epochs: 30}").final_epochs == 30
    assert parsed("{search: {epochs: 30}, final: {epochs: 7}}").final_epochs == 7


@pytest.mark.parametrize("text, value", [("1e-5", 1e-5), ("2E-3", 2e-3), ("1", 1.0), ("0.1", 0.1), ("1.5e-3", 1.5e-3)])
def test_numbers_as_everybody_writes_them(text, value):
    assert parsed(f"training: {{learning_rate: {text}}}").training.learning_rate == value
    assert load_settings(None, [f"training.learning_rate={text}"]).training.learning_rate == value


def test_a_space_may_stand_inline_and_is_named_after_its_file():
    settings = parsed("space: {ops: {rotate: {range: [0, 9]}}}")
    assert settings.search_space().name == "mine"
    assert [op.name for op in settings.search_space().ops] == ["rotate"]
    assert parsed("space: {name: other, ops: {invert: {}}}").search_space().name == "other"


def test_noise_and_imbalance_are_none_unless_set():
    assert parsed("{}").data.noise is None and parsed("{}").data.imbalance is None
    found = load_settings(None, ["data.noise={kind: pair_flip, rate: 1}", "data.noise.seed=7"]).data.noise
    assert (found.kind, found.rate, found.seed) == ("pair_flip", 1.0, 7)
    found = parsed("data: {imbalance: {kind: power_law, gamma: 0.2, n_min: 250}}")
    assert (found.data.imbalance.n_max, found.data.imbalance.images) == (None, "first")
    assert "imbalance: {kind: power_law, n_max: null, images: first, seed: 0, gamma: 0.2, n_min: 250}" in settings_text(
        found
    )
    assert parsed(settings_text(found)) == found
    assert parsed("data: {imbalance: {kind: exponential, ratio: 100}}").data.imbalance.ratio == 100.0


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 3


# ---- what is refused


@pytest.mark.parametrize(
    "text, problem",
    [
        ("training: {batch_size: '1'}", "training.batch_size: got '1'; expected a valid integer."),
        ("training: {batch_size: 64.0}", "training.batch_size: got 64.0; expected a valid integer."),
        ("training: {batch_size: true}", "training.batch_size: got True; expected a valid integer."),
        ("training: {batch_size: 1}", "training.batch_size: got 1; expected greater than or equal to 2."),
        ("training: {learning_rate: '0.1'}", "training.learning_rate: got '0.1'; expected a valid number."),
        ("training: {learning_rate: 0}", "training.learning_rate: got 0; expected greater than 0."),
        ("training: {learning_rate: .inf}", "training.learning_rate: got inf; expected a finite number."),
        ("training: {learning_rate: .nan}", "training.learning_rate: got nan; expected a finite number."),
        ("training: {momentum: 1.01}", "training.momentum: got 1.01; expected less than or equal to 1."),
        ("training: {weight_decay: -0.1}", "training.weight_decay: got -0.1; expected greater than or equal to 0."),
        ("base_augmentation: {flip: 1}", "base_augmentation.flip: got 1; expected true or false."),
        ("search: {population_size: 1}", "search.population_size: got 1; expected greater than or equal to 2."),
        ("search: {quantile: 0.6}", "search.quantile: got 0.6; expected less than or equal to 0.5."),
        ("search: {quantile: 0}", "search.quantile: got 0; expected greater than 0."),
        ("search: {epochs: 0}", "search.epochs: got 0; expected greater than or equal to 1."),
        (
            "slots: {resources_per_worker: {gpus: 1.5}}",
            "slots.resources_per_worker.gpus: got 1.5; expected a share below 1 or a whole number",
        ),
        (
            "slots: {resources_per_worker: {gpus: -1}}",
            "slots.resources_per_worker.gpus: got -1; expected greater than or equal to 0.",
        ),
        ("teacher: {model: 20}", "teacher.model: got 20; expected a valid string."),
        ("distill: {losses: {cross-entropy: -1}}", "distill.losses.cross-entropy: got -1; expected greater than or"),
        ("distill: {losses: {}}", "distill.losses: got {}; expected at least one entry."),
        (
            "distill: {layers: {hint: {student: a, teacher: [a]}}}",
            "distill.layers.hint.student: got 'a'; expected a list, as [one, two].",
        ),
        ("distill: {losses: hinton}", "distill.losses: got 'hinton'; expected a section, as {key: value}."),
        ("distill: {clip_to_task: 1}", "distill.clip_to_task: got 1; expected true or false."),
        ("data: {train: 0}", "data.train: got 0; expected greater than or equal to 1."),
        ("data: {noise: {kind: symmetric, rate: 1.1}}", "data.noise.rate: got 1.1; expected less than or equal to 1."),
        ("data: {noise: {kind: symmetric, rate: -0.1}}", "data.noise.rate: got -0.1; expected greater than or equal"),
        ("data: {noise: {kind: symmetric}}", "data.noise.rate: got {'kind': 'symmetric'}; expected this key, too."),
        ("data: {noise: {kind: pairflip, rate: 0}}", "data.noise.kind: got 'pairflip'; expected 'symmetric', "),
        ("data: {imbalance: 3}", "data.imbalance: got 3; expected a section, as {key: value}."),
        (
            "data: {imbalance: {kind: power_law, gamma: 0, n_min: 1}}",
            "data.imbalance.gamma: got 0; expected greater than 0.",
        ),
        (
            "data: {imbalance: {kind: power_law, gamma: 1, n_min: 30, n_max: 20}}",
            "data.imbalance.n_min: got 30; expected at most n_max, 20.",
        ),
        (
            "data: {imbalance: {kind: exponential, ratio: 0.5}}",
            "data.imbalance.ratio: got 0.5; expected greater than or equal to 1.",
        ),
        (
            "data: {imbalance: {kind: powerlaw}}",
            "data.imbalance: unknown kind 'powerlaw'; expected one of power_law, exponential. Did you mean 'power_law'",
        ),
        ("data: {imbalance: {ratio: 2}}", "data.imbalance: unknown kind None; expected one of power_law, exponential."),
        (
            "data: {imbalance: {kind: exponential, ratio: 3, gama: 1}}",
            "data.imbalance: unknown key 'gama'; expected one of kind, n_max, images, seed, ratio.",
        ),
        (
            "data: {noise: {kind: symmetric, rate: 0, sed: 1}}",
            "data.noise: unknown key 'sed'; expected one of kind, rate, seed. Did you mean 'seed'?",
        ),
        ("search:", "search: got None; expected a section, as {key: value}."),
        ("student: {checkpoint: net}", "student.model: "),
    ],
)
def test_a_value_is_refused_with_location_value_and_rule(text, problem):
    (found,) = problems(text)
    assert found.startswith(f"mine.yaml: {problem}")


@pytest.mark.parametrize(
    "text, location, key, section, hint",
    [
        ("serch: {}", "mine.yaml", "serch", "", "search"),
        ("my-key: 1", "mine.yaml", "my-key", "", ""),
        ("search: {epoch: 3}", "mine.yaml: search", "epoch", "search", "epochs"),
        ("training: {learning-rate: 3}", "mine.yaml: training", "learning-rate", "training", "learning_rate"),
        ("data: {int: 3}", "mine.yaml: data", "int", "data", ""),
        ("teacher: {model: resnet8, 1: 2}", "mine.yaml: teacher", "1", "teacher", ""),
    ],
)
def test_an_unknown_key_is_refused_with_all_known_ones_and_the_nearest(text, location, key, section, hint):
    names = (Settings.model_fields[section].annotation if section else Settings).model_fields
    (found,) = problems(text)
    expected = f"{location}: unknown key {key!r}; expected one of {', '.join(names)}."
    assert found == expected + (f" Did you mean {hint!r}?" if hint else "")


@pytest.mark.parametrize(
    "text, location, value, allowed, hint",
    [
        ("data: {source: cifar}", "data.source", "cifar", ["digits", "cifar10", "image_folder"], "cifar10"),
        ("search: {mode: synchronus}", "search.mode", "synchronus", ["synchronous", "asynchronous"], "synchronous"),
        ("training: {optimizer: adamw}", "training.optimizer", "adamw", ["sgd", "adam"], "adam"),
        ("distill: {view_mode: shared}", "distill.view_mode", "shared", ["shared_student", "teacher_clean"], ""),
    ],
)
def test_an_unknown_name_is_refused_with_all_known_ones_and_the_nearest(text, location, value, allowed, hint):
    (found,) = problems(text)
    assert found.startswith(f"mine.yaml: {location}: got {value!r}; expected ")
    assert all(f"'{name}'" in found for name in allowed)
    assert f"Did you mean {hint!r}?" in found or not hint


def test_slots_are_counted_or_automatic():
    assert parsed("slots: {count: 3}").slots.count == 3 and parsed("slots: {count: auto}").slots.count == "auto"
    assert problems("slots: {count: auot}") == [
        "mine.yaml: slots.count: got 'auot'; expected a valid integer.",
        "mine.yaml: slots.count: got 'auot'; expected 'auto'. Did you mean 'auto'?",
    ]


def test_a_space_that_nobody_knows_is_refused_with_the_nearest():
    (found,) = problems("space: cifar10_pb")
    assert found.startswith("mine.yaml: space: unknown search space 'cifar10_pb'; expected one of ")
    assert found.endswith("Did you mean 'cifar10_pba'?")


def test_a_space_of_the_wrong_type_is_refused():
    assert {p.split(";")[0] for p in problems("space: 5")} == {"mine.yaml: space: got 5"}


def test_a_misspelt_op_is_refused_with_the_nearest():
    (found,) = problems("space: {ops: {rotat: {range: [0, 9]}}}")
    assert found.startswith("mine.yaml: space.ops.rotat: unknown op 'rotat'; expected one of rotate, ")
    assert found.endswith("Did you mean 'rotate'?")


def test_a_scalar_that_nothing_would_use_is_refused():
    scalar = "{initial: 0.5, range: [0.1, 1]}"
    (found,) = problems(f"space: {{ops: {{invert: }}, scalars: {{losses.hintn: {scalar}}}}}")
    assert found.startswith("mine.yaml: space.scalars: unknown scalar of the student 'losses.hintn'; expected one of ")
    assert found.endswith("Did you mean 'losses.hinton'?")
    (found,) = problems("space: {ops: {invert: }, scalars: {temperature: {role: teacher, initial: 4, range: [1, 9]}}}")
    assert found == (
        "mine.yaml: space.scalars: unknown scalar of the teacher 'temperature'; "
        "expected one of learning_rate, weight_decay."
    )
    text = f"space: {{ops: {{invert: }}, scalars: {{losses.mine: {scalar}}}}}\ndistill: {{losses: {{mine: 1}}}}"
    assert parsed(text).search_space().scalars[0].name == "losses.mine"


def test_all_problems_are_reported_at_once():
    found = problems(
        """
        sead: 1
        data: {source: cifar, validaton: 3}
        training: {batch_size: '1', learning_rate: -1}
        search: {population_size: 1, mode: synchronus}
        space: {copys: 2, ops: {rotat: {range: [0, 9]}, cutout: {}}}
        """
    )
    expected = [
        "mine.yaml: unknown key 'sead'",
        "mine.yaml: data.source: got 'cifar'",
        "mine.yaml: data: unknown key 'validaton'",
        "mine.yaml: training.batch_size: got '1'",
        "mine.yaml: training.learning_rate: got -1",
        "mine.yaml: search.population_size: got 1",
        "mine.yaml: search.mode: got 'synchronus'",
        "mine.yaml: space: unknown key 'copys'",
        "mine.yaml: space.ops.rotat: unknown op 'rotat'",
        "mine.yaml: space.ops.cutout: got no strength",
    ]
    assert sorted(problem.split(";")[0] for problem in found) == sorted(expected)


def test_contradictions_are_refused():
    assert problems("student: {model: resnet8, checkpoint: net}") == [
        "mine.yaml: student.checkpoint: the student is what a run trains; expected none"
    ]
    for one in ("net", "[net]"):
        assert problems(f"teacher: {{model: resnet8, checkpoint: {one}, combine: logits}}") == [
            "mine.yaml: teacher.combine: got 'logits' for one checkpoint; expected several"
        ]
    assert problems("teacher: {model: resnet8, checkpoint: []}") == [
        "mine.yaml: teacher.checkpoint: got []; expected a place or a list of at least one."
    ]
    (found,) = problems("{teacher: {model: resnet8, checkpoint: net}, search: {protocol: coevolve}}")
    assert found.startswith("mine.yaml: teacher.checkpoint: a given teacher cannot co-evolve; expected search.protocol")


@pytest.mark.parametrize("content", ["[1, 2]", "5", "text", ""])
def test_a_file_that_is_no_mapping_is_refused(content, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"mine\.yaml: expected a mapping of sections, got "):
        load_settings(tmp_path / "mine.yaml")


def test_a_file_that_is_not_there_is_refused_with_the_nearest_shipped(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"'quickstrt'; expected one of .*Did you mean 'quickstart'\?"):
        load_settings("quickstrt")
    (tmp_path / "broken.yaml").write_text("search: {epochs: 3")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML: .*line 1"):
        load_settings(tmp_path / "broken.yaml")


# ---- overrides


def test_overrides_go_deep_and_the_last_one_wins():
    overrides = [
        "search.epochs=30", "search.epochs=31", "distill.losses.hinton=0.5", "slots.count=2", "source=a=b",
        "search.mode=asynchronous", "data.path=/data", "data.train=null", "space={ops: {invert: {}}, counts: {1: 1}}",
        "space.copies=1",
    ]  # fmt: skip
    settings, before = load_settings("quickstart", overrides), load_settings("quickstart")
    assert (settings.search.epochs, settings.slots.count, settings.source) == (31, 2, "a=b")
    assert settings.distill.losses == {"cross_entropy": 0.1, "hinton": 0.5}, "the others stay"
    assert (settings.data.path, settings.data.train) == (Path("/data"), None)
    assert settings.search_space().slots() == ["invert"]
    assert settings.search.population_size == before.search.population_size
    assert settings.teacher == before.teacher


def test_an_evolving_weight_of_a_loss_is_one_key_though_it_has_a_dot():
    overrides = [
        "space.scalars.losses.hinton={initial: 1, range: [0.1, 10], log: true}",
        "space.scalars.losses.hinton.initial=2",
        "space.scalars.temperature.initial=3",
    ]
    found = {scalar.name: scalar.initial for scalar in load_settings("quickstart", overrides).search_space().scalars}
    assert found == {"losses.hinton": 2.0, "temperature": 3.0}


def test_names_of_scalars_and_choices_end_before_the_key_of_a_rule():
    overrides = [
        "space.scalars.losses.hinton.initial=1",
        "space.scalars.losses.hinton.range=[0.1, 10]",
        "space.choices.agents={initial: policy, values: [policy, cutmix]}",
        "space.choices.agents.initial=[cutmix]",
        "space.choices.pick.criterion.values=[one, other]",
        "space.choices.pick.criterion.initial=other",
        "space.choices.pick.criterion.role=teacher",
    ]
    space = load_settings("quickstart", overrides).search_space()
    found = {choice.name: (choice.role, choice.initial, choice.values) for choice in space.choices}
    assert found == {
        "agents": ("student", "cutmix", ("policy", "cutmix")),
        "pick.criterion": ("teacher", "other", ("one", "other")),
    }
    assert [(s.low, s.high) for s in space.scalars if s.name == "losses.hinton"] == [(0.1, 10.0)]


@pytest.mark.parametrize(
    "override, problem",
    [
        ("space.scalars.temperature.rang=[1, 2]", "quickstart.yaml: space.scalars.temperature: unknown key 'rang'"),
        ("space.choices.agents.values=policy", "quickstart.yaml: space.choices.agents.values: got 'policy'"),
        ("space.choices=policy", "quickstart.yaml: space.choices: got 'policy'; expected a mapping"),
        ("search.epochs", "--set: got 'search.epochs'; expected key=value"),
        ("=3", "--set: got '=3'; expected key=value"),
        ("search.epochs.x=3", "--set search.epochs.x: 'epochs' is not a section, got 30"),
        ("space.scalars.losses={}", "quickstart.yaml: space.scalars"),
        ("search.epochs=[3", "--set search.epochs: not valid YAML"),
        ("search.epochs='3'", "quickstart.yaml: search.epochs: got '3'; expected a valid integer."),
        ("search.epochs=", "quickstart.yaml: search.epochs: got None; expected a valid integer."),
        ("search.epoch=3", "quickstart.yaml: search: unknown key 'epoch'"),
        ("seach.epochs=3", "quickstart.yaml: unknown key 'seach'"),
        ("space.ops.rotat={}", "quickstart.yaml: space.ops.rotat: unknown op 'rotat'"),
    ],
)
def test_a_wrong_override_is_refused(override, problem):
    with pytest.raises(InputError) as error:
        load_settings("quickstart", [override])
    assert str(error.value).startswith(problem)


# ---- there and back


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_resolved_settings_come_back_from_a_file(file, tmp_path):
    settings = load_settings(file.stem, ["data.path=some/folder", "training.weight_decay=1e-5"])
    (tmp_path / "config.yaml").write_text(settings_text(settings))
    again = load_settings(tmp_path / "config.yaml")
    assert again == settings
    assert again.search_space() == settings.search_space()
    assert settings_text(again) == settings_text(settings)


def test_the_text_holds_every_setting():
    plain = parse_yaml(settings_text(Settings()), where="text")
    assert plain.keys() == Settings.model_fields.keys()
    for name, section in Settings.model_fields.items():
        if hasattr(section.annotation, "model_fields"):
            assert plain[name].keys() == section.annotation.model_fields.keys()


# PyYAML loses rare line breaks such as U+0085
text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20)
losses_given = st.dictionaries(text, st.floats(0, 1e6), min_size=1, max_size=3)


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.floats(1e-12, 1e12), st.integers(-(2**40), 2**40), text, text, losses_given)
def test_any_values_come_back(rate, seed, source, model, losses):
    given = {
        "seed": seed,
        "source": source,
        "student": {"model": model},
        "training": {"learning_rate": rate},
        "distill": {"losses": losses},
    }
    settings = parse_settings(given, where="given")
    assert (settings.seed, settings.source, settings.distill.losses) == (seed, source, losses)
    assert settings.training.learning_rate == rate
    assert parse_settings(parse_yaml(settings_text(settings), where="text"), where="text") == settings
