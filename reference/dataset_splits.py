"""Writes the splits that Python's datasets finds by the names of files, for the tests of `danlu-hub`.

    pip install datasets==5.2.0
    python reference/dataset_splits.py > crates/hub/src/dataset/splits_by_name.json

Every layout is a list of paths. The script creates the files in a temporary folder.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns

LAYOUTS = [
    ["train.jsonl", "test.jsonl"],
    ["train.jsonl", "valid.jsonl", "test.jsonl"],
    ["data/train.csv", "data/test.csv"],
    ["a.jsonl", "b.jsonl"],
    ["my_train_file.csv", "my_dev.csv"],
    ["training.json", "validation.json", "evaluation.json"],
    ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
    ["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "extra.json"],
    ["train/a.jsonl", "test/b.jsonl"],
    ["data/train/a.jsonl", "data/dev/b.jsonl"],
    ["contest.jsonl", "detest.jsonl"],
    ["constraint.csv", "train.csv"],
    ["x/train-1.json", "x/test-1.json"],
    ["train_1.json", "train_2.json", "test-extra.json"],
    ["Train.jsonl", "Test.jsonl"],
    ["data.train.json", "data.test.json"],
    ["eval.jsonl", "a.jsonl"],
    ["dev.jsonl"],
    ["test.jsonl"],
    ["data/a.jsonl", "b.jsonl"],
    ["README.md", "a.csv"],
    [".hidden/train.json", "a.json"],
    ["__pycache__/train.json", "a.json"],
    ["sft-train.jsonl", "sft train.jsonl"],
    ["train1.jsonl", "test2.jsonl"],
    ["trainset.jsonl", "testset.jsonl"],
    ["val.jsonl", "train.jsonl"],
    ["holdout.jsonl", "train.jsonl"],
    ["data/foo-00000-of-00001.parquet", "data/bar-00000-of-00001.parquet"],
    ["foo-00000-of-00001.parquet"],
    ["deep/a/train/x.json", "deep/a/test/y.json"],
    ["train/sub/a.json", "test/sub/b.json"],
    ["data/train.json", "other/test.json"],
    ["en/train.json", "zh/train.json"],
    ["training_data.json"],
    ["validation-split.json", "train-split.json"],
    ["train.json.gz", "test.json.gz"],
    ["a.jsonl", "dataset_infos.json"],
    ["a.jsonl", "config.json"],
    ["test_train.json"],
    ["train_test.json"],
    ["data/mytrain.json", "data/b.json"],
    ["metadata.jsonl", "train.jsonl"],
    ["raw/test.csv", "train/a.csv", "train/b/c.csv", "x.csv"],
    ["test/train.json", "b.json"],
    ["data/train-00000-of-00001-a1b2.parquet", "data/test-00000-of-00001-c3d4.parquet"],
    ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"],
    ["2024-train.json", "2024.test.json"],
    ["train,x.json", "test.json"],
    ["数据/train.json", "数据/dev.json"],
]


def splits(paths: list[str]) -> dict[str, list[str]]:
    """Returns the files of each split."""
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        patterns = sanitize_patterns(get_data_patterns(folder))
        found = DataFilesDict.from_patterns(patterns, base_path=folder)
        return {str(split): sorted(os.path.relpath(file, folder) for file in files) for split, files in found.items()}


json.dump([{"paths": paths, "splits": splits(paths)} for paths in LAYOUTS], sys.stdout, ensure_ascii=False, indent=1)
print()
