"""Reads metrics from standard input with Prometheus' own parser, and prints them as JSON: {name: {labels: value}}."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

samples = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
        samples.setdefault(sample.name, {})[labels] = None if sample.value != sample.value else sample.value
json.dump(samples, sys.stdout)
