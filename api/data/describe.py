#!/usr/bin/env python3
"""Make descriptions.txt.gz beside this file from the sources of the crate `k8s-openapi`: describe.py CRATE/src/v1_34.

The crate carries Kubernetes' own descriptions (Apache-2.0) as schemas for `schemars`. A line is a type of types.txt by its
OpenAPI name, or, indented, one of its fields; then a tab and the description as a JSON string.
"""
import gzip, json, pathlib, re, sys

SOURCE, TARGET = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
NAME = re.compile(r'^        "(io\.k8s\.[\w.-]+)"\.into\(\)$')
TYPE = re.compile(r'^            "description": ("(?:[^"\\]|\\.)*"),$')
FIELD = re.compile(r'^                "([\w$-]+)": [({]')
TEXT = re.compile(r'(?:"description": |insert\("description"\.into\(\), )("(?:[^"\\]|\\.)*")')


def read(path):
    """Types of a file: name → (description, {field: description})."""
    found, name, field = {}, None, None
    for line in path.read_text().splitlines():
        if match := NAME.match(line):
            name, field = match[1], None
            found[name] = ["", {}]
        elif name is None:
            continue
        elif match := TYPE.match(line):
            found[name][0] = json.loads(match[1])
        elif match := FIELD.match(line):
            field = match[1]
        elif field and (match := TEXT.search(line)):
            found[name][1].setdefault(field, json.loads(match[1]))
    return found


wanted = [line.split(" ")[1] for line in (TARGET / "types.txt").read_text().splitlines() if line and line[0] != " "]
found = {}
for path in sorted(SOURCE.rglob("*.rs")):
    found.update(read(path))
lines = []
for name in dict.fromkeys(wanted):
    text, fields = found.get(name, ("", {}))
    if text or fields:
        lines.append(f"{name}\t{json.dumps(text, ensure_ascii=False)}")
        lines += [f" {field}\t{json.dumps(text, ensure_ascii=False)}" for field, text in fields.items()]
data = "".join(f"{line}\n" for line in lines).encode()
(TARGET / "descriptions.txt.gz").write_bytes(gzip.compress(data, 9, mtime=0))
missing = [name for name in dict.fromkeys(wanted) if name not in found]
print(f"{len(lines)} descriptions, {len(data)} bytes; types without: {len(missing)}: {' '.join(missing[:400])}")
