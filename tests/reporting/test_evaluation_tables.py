"""Tables of what `evaluate` measured: every number is there, and what is lacking is said."""

import re
from io import StringIO

import pytest
from rich.console import Console

from rolekd_ray.reporting.evaluation_tables import evaluation_tables

CLASSES = ["cat", "dog", "frog", "ship", "truck", "bird"]


def results(**more):
    clean = {}
    for place, split in enumerate(("validation", "test")):
        values = {"accuracy": 0.81, "loss": 0.51, "calibration_error": 0.03, "entropy": 0.41, "top5_accuracy": 0.97}
        clean |= {f"{split}_{name}": value + place / 1000 for name, value in values.items()}
        clean |= {f"{split}_class_accuracy": [0.9, 0.8, 0.7, None, 0.6, 0.5 + place / 1000], f"{split}_images": 100}
        clean[f"{split}_lowest_class_accuracy"] = 0.5 + place / 1000
    return clean | {"class_names": CLASSES} | more


TAUGHT = {"validation_teacher_agreement": 0.88, "test_teacher_agreement": 0.89}
ROBUST = {
    "robust_images": 40,
    "pgd_accuracy": 0.21,
    "teacher_pgd_accuracy": 0.22,
    "transferability": None,
    "transfer_attacks": 0,
    "boundary_magnitude": 0.61,
    "boundary_angle": -0.25,
    "boundary_pairs": 345,
    "cka": [
        {"student": "stage1", "teacher": "stage1", "cka": 0.9876},
        {"student": "stage2", "teacher": "layer4.1", "cka": None},
    ],
    "corruptions": {"noise": [0.5, 0.4, 0.3, 0.2, 0.1], "gaussian_blur": [0.9, 0.8, 0.7, 0.6, 0.5]},
    "corruption_accuracy": 0.5,
}


def printed(found) -> str:
    text = StringIO()
    for table in evaluation_tables("runs/a/student", found):
        Console(file=text, width=80).print(table)
    lines = text.getvalue().split("\n")
    assert all(len(line) <= 80 for line in lines)
    return "\n".join(line.rstrip() for line in lines)


def test_clean_metrics_per_split_and_class():
    text = printed(results(**TAUGHT))
    for words, one, other in (
        ("accuracy", "0.8100", "0.8110"),
        ("top-5 accuracy", "0.9700", "0.9710"),
        ("lowest class accuracy", "0.5000", "0.5010"),
        ("mean entropy, nats", "0.4100", "0.4110"),
        ("agreement with teacher", "0.8800", "0.8900"),
        ("cat", "0.9000", "0.9000"),
        ("ship", "–", "–"),
        ("bird", "0.5000", "0.5010"),
    ):
        assert re.search(rf"^{re.escape(words)} +{one} +{other}$", text, re.M), words
    assert "PGD" not in text and "severity" not in text and "no teacher" not in text


def test_few_classes_have_no_top_5():
    found = {name: value for name, value in results().items() if "top5" not in name}
    assert "top-5" not in printed(found)


def test_of_many_classes_the_worst():
    names = [f"class{k:02d}" for k in range(30)]
    values = [((k * 7) % 30) / 30 for k in range(30)]
    values[4] = None
    text = printed(results(class_names=names, test_class_accuracy=values, validation_class_accuracy=values))
    shown = re.findall(r"^class\d\d", text, re.M)
    assert shown == [names[k] for k in sorted(set(range(30)) - {4}, key=lambda k: values[k])[:10]]
    assert "the 10 worst of 30" in text


def test_robustness_beside_a_teacher():
    text = printed(results(**TAUGHT, **ROBUST))
    for row in (
        r"linear CKA with teacher: stage1 +0\.9876 +40 images",
        r"linear CKA with teacher: stage2 and layer4\.1 +– +40 images",
        r"accuracy under PGD-20, ε 8/255 +0\.2100 +40 images",
        r"the same of the teacher +0\.2200 +40 images",
        r"attacks on the teacher that fool it too +– +0 attacks",
        r"boundaries: MagSim +0\.6100 +345 image–class pairs",
        r"boundaries: AngSim +-0\.2500 +345 image–class pairs",
        r"accuracy on corrupted images, mean +0\.5000 +40 images",
        r"noise( +0\.\d000){5} +0\.3000",
        r"gaussian blur( +0\.\d000){5} +0\.7000",
        r"mean +0\.7000 +0\.6000 +0\.5000 +0\.4000 +0\.3000 +0\.5000",
    ):
        assert re.search(rf"^{row}$", text, re.M), row


def test_what_lacks_a_teacher_says_so():
    alone = {name: ROBUST[name] for name in ("robust_images", "pgd_accuracy", "corruptions", "corruption_accuracy")}
    text = printed(results(**alone))
    assert re.search(r"^agreement with teacher +no teacher +no teacher$", text, re.M)
    for words in ("linear CKA with teacher", "the same of the teacher", "attacks on the teacher that", "AngSim"):
        assert re.search(rf"{words}.* – +no teacher$", text, re.M), words


@pytest.mark.parametrize("everything", [True, False])
def test_networks_without_stages(everything):
    attacks = ROBUST if everything else {"robust_images": 40}
    text = printed(results(**TAUGHT, **attacks | {"cka": []}))
    assert re.search(r"^linear CKA with teacher +– +no stages known: --layers$", text, re.M)


def test_corruptions_alone():
    alone = {name: ROBUST[name] for name in ("robust_images", "corruptions", "corruption_accuracy")}
    text = printed(results(**alone))
    assert "accuracy on corrupted images, mean" in text and "PGD" not in text and "CKA" not in text
