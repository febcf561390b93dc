"""Checks the files of `deploy/` against published schemas and against the metrics of a running server.

    python reference/deploy_check.py --danlu target/release/danlu

Kubernetes objects are checked by PyPI's `kubernetes-validate`. The metrics in the rules and in the dashboard must exist.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

from serve_clients import REPOSITORY, Server

DEPLOY = REPOSITORY / "deploy"

# Kinds of extensions, whose schemas are not part of Kubernetes.
EXTENSIONS = {"InferencePool"}

METRIC = re.compile(r"\b(?:vllm:|danlu_)[a-z_]+")


def check_kubernetes():
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        if document["kind"] not in EXTENSIONS:
            kubernetes_validate.validate(document, "1.31", strict=True)
        print("ok  ", document["kind"])


def check_metrics(danlu):
    with tempfile.TemporaryDirectory() as top:
        server = Server(danlu, Path(top))
        server.request("/v1/chat/completions", {"model": "poet", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2})
        exposed = set(METRIC.findall(server.request("/metrics")[2]))
        server.stop()
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    absent = {name for expression in expressions for name in METRIC.findall(expression)} - exposed
    assert not absent, f"no such metrics: {absent}"
    print("ok  ", len(expressions), "expressions")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu", required=True, type=Path)
    check_kubernetes()
    check_metrics(parser.parse_args().danlu)


if __name__ == "__main__":
    main()
