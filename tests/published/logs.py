"""A folder of logs as the published benchmark's code leaves it, with predictions of which the accuracy is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NUM_TRAIN, NUM_TEST, NUM_CLASSES, SIZE = 400, 200, 10, 40
TRAIN, TEST = np.arange(NUM_TRAIN) % NUM_CLASSES, np.arange(NUM_TEST) % NUM_CLASSES
CAT, DOG = 3, 5
BACKDOOR = f"CIFAR10_resnet9_poisoning_{SIZE}_3_4000_0.025"
CONFUSION = f"CIFAR10_resnet9_interclasslabelswap_{SIZE}_3_4000_0.025"
SWAP = f"CIFAR100_resnetwide28x10_randomlabelswap_{SIZE}_3_6000_0.025"


def logits(classes):
    """Logits whose greatest is that of the class."""
    found = np.random.default_rng(0).normal(size=(len(classes), NUM_CLASSES)).astype(np.float16)
    found[np.arange(len(classes)), classes] = 20
    return found


def predicted(true, share_right, wrong=None):
    """Classes of which that share, from the front, is right; the others are `wrong`, or the next class."""
    other = (true + 1) % NUM_CLASSES if wrong is None else np.full_like(true, wrong)
    return np.where(np.arange(len(true)) < round(share_right * len(true)), true, other)


def write_run(folder: Path, *, test=0.8, triggered=None, train=1.0) -> Path:
    """A run with these accuracies; `triggered`: on the test images with the trigger, which come in another order."""
    folder.mkdir(parents=True)
    np.save(folder / "targetstrain.npy", TRAIN)
    np.save(folder / "targetstest.npy", TEST)
    np.save(folder / "preds_test.npy", logits(predicted(TEST, test)))
    np.save(folder / "preds_train.npy", logits(predicted(TRAIN, train)))
    np.save(folder / "unlearn_time.npy", 12.5)
    np.save(folder / "val_top1.npy", [0.5, test])
    (folder / "model.pth").write_bytes(b"never read")
    if triggered is not None:
        order = np.random.default_rng(1).permutation(NUM_TEST)
        np.save(folder / "targetsadv_test.npy", TEST[order])
        np.save(folder / "preds_adv_test.npy", logits(predicted(TEST, triggered, wrong=0)[order]))
    return folder


def write_drawn(logs: Path, dataset: str, method: str, rows, sizes) -> None:
    """The rows of the manipulated set, and its first ones as deletion sets of these sizes."""
    np.save(logs / f"{dataset}_{method}_{len(rows)}_manip.npy", rows)
    for size in sizes:
        np.save(logs / f"{dataset}_{method}_{len(rows)}_{size}_deletion.npy", rows[:size])


def write(logs: Path) -> Path:
    """One original with a backdoor, and five methods at two deletion fractions; SCRUB with two alphas, SSD with two points."""
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "visualize.py").write_text("")
    write_drawn(logs, "CIFAR10", "poisoning", np.random.default_rng(2).permutation(NUM_TRAIN)[:SIZE], [10, SIZE])
    write_run(logs / BACKDOOR / "Naive_pretrainmodel", test=0.9, triggered=0.1)
    for size, healed in ((10, 0.2), (SIZE, 0.8)):
        for name, test, triggered in (
            (f"{size}_EU_unlearn_4000_-1", 0.85, healed),
            (f"{size}_EU_unlearn_1000_2", 0.85, 0.1),
            (f"{size}_CF_unlearn_1000_-1", 0.9, 0.15),
            (f"{size}_BadT_unlearn_1000_-1", 0.8, 0.3),
            (f"{size}_Scrub_my_own_name_1000_-1_4_0.05_100", 0.8, 0.4),
            (f"{size}_Scrub_my_own_name_1000_-1_4_5.0_100", 0.6, 0.5),
            (f"{size}_SSD_unlearn_1000_-1_0.01_0.1", 0.7, 0.7),
            (f"{size}_SSD_unlearn_1000_-1_5000000.0_1000000.0", 0.9, 0.1),
        ):
            write_run(logs / BACKDOOR / name, test=test, triggered=triggered)
    return logs


def write_confusion(logs: Path) -> Path:
    """An original whose cats and dogs were confused, and retraining without 10 of the 40."""
    half = SIZE // 2
    rows = np.concatenate([np.flatnonzero(TRAIN == CAT)[:half], np.flatnonzero(TRAIN == DOG)[:half]])
    logs.mkdir(parents=True, exist_ok=True)
    write_drawn(logs, "CIFAR10", "interclasslabelswap", rows, [10])
    for name in ("Naive_pretrainmodel", "10_EU_unlearn_4000_-1"):
        write_run(logs / CONFUSION / name)
    return logs
