#!/usr/bin/env python3
"""Make descriptions.txt.gz beside this file from the Go module `k8s.io/kubernetes`, unpacked: describe.py MODULE.

Its generated OpenAPI definitions carry Kubernetes' own descriptions (Apache-2.0), those of the values of enumerations
among them. A line is a type of types.txt by its OpenAPI name, or, indented, one of its fields; then a tab and the
description as a JSON string.
"""
import gzip, json, pathlib, re, sys

SOURCE = pathlib.Path(sys.argv[1]) / "pkg/generated/openapi/zz_generated.openapi.go"
TARGET = pathlib.Path(__file__).parent
NAME = re.compile(r'^\t\t"(k8s\.io/[\w./-]+)": +(schema_\w+)\(ref\),$')
START = re.compile(r"^func (schema_\w+)\(")
TYPE = re.compile(r'^\t{4}Description: +("(?:[^"\\]|\\.)*"),$')
FIELD = re.compile(r'^\t{5}"([\w$-]+)": \{$')
TEXT = re.compile(r'^\t{7}Description: +("(?:[^"\\]|\\.)*"),$')


def read(path):
    """Types of the file: name → (description, {field: description})."""
    names, found, at, field = {}, {}, None, None
    for line in path.read_text().splitlines():
        if match := NAME.match(line):
            package, name = match[1].rsplit(".", 1)
            names[match[2]] = "io.k8s." + package.removeprefix("k8s.io/").replace("/", ".") + "." + name
        elif match := START.match(line):
            at, field = ["", {}], None
            found[names.get(match[1], match[1])] = at
        elif at is None:
            continue
        elif match := TYPE.match(line):
            at[0] = json.loads(match[1])
        elif match := FIELD.match(line):
            field = match[1]
        elif field and (match := TEXT.match(line)):
            at[1].setdefault(field, json.loads(match[1]))
    return found


wanted = [line.split(" ")[1] for line in (TARGET / "types.txt").read_text().splitlines() if line and line[0] != " "]
found = read(SOURCE)
lines = []
for name in dict.fromkeys(wanted):
    text, fields = found.get(name, ("", {}))
    if text or fields:
        lines.append(f"{name}\t{json.dumps(text, ensure_ascii=False)}")
        lines += [f" {field}\t{json.dumps(text, ensure_ascii=False)}" for field, text in sorted(fields.items())]
data = "".join(f"{line}\n" for line in lines).encode()
(TARGET / "descriptions.txt.gz").write_bytes(gzip.compress(data, 9, mtime=0))
missing = [name for name in dict.fromkeys(wanted) if name not in found]
print(f"{len(lines)} descriptions, {len(data)} bytes; types without: {len(missing)}: {' '.join(missing[:400])}")
