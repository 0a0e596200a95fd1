#!/usr/bin/env python3
"""Make the compact tables beside this file from facts about a Kubernetes release; README.md says how to get those."""
import json, pathlib, sys

SOURCE, TARGET = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
FLAGS = [("omitempty", "o"), ("required", "r"), ("inline", "i")]
VALUES = [("default", "d"), ("enum", "e"), ("format", "f"), ("listType", "l"), ("listKeys", "k"), ("mapType", "m"),
          ("patchStrategy", "p"), ("patchMergeKey", "K")]
VERBS = {"create": "C", "delete": "D", "deletecollection": "X", "get": "G", "list": "L", "patch": "P", "update": "U", "watch": "W"}


def load(name):
    return json.loads((SOURCE / f"{name}.json").read_text())


def write(name, lines):
    (TARGET / name).write_text("".join(f"{line}\n" for line in lines))


def field(f):
    wire, _, tag = f.get("pb", "").partition(",")
    words = [f["n"] or "-", f["t"], (tag or "0") + ("v" if wire == "varint" else "")]
    words += [letter for key, letter in FLAGS if f.get(key)]
    for key, letter in VALUES:
        if key in f:
            value = f[key] if key != "default" else json.dumps(f[key])
            words.append(f"{letter}={'|'.join(value) if isinstance(value, list) else value}")
    return " " + " ".join(words)


def types():
    for name, t in load("types").items():
        extra = [f"map={t['map-type']}"] if "map-type" in t else []
        yield " ".join([name, t["openapi"], *extra])
        yield from (field(f) for f in t["fields"])
    # What every object has, for kinds without a schema.
    yield "apis.meta.v1.PartialObjectMetadata io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata"
    yield from (" - apis.meta.v1.TypeMeta 0 i", " metadata apis.meta.v1.ObjectMeta 1 o")


def resources():
    for key, r in load("resources").items():
        group, version, plural = key.split("/")
        verbs = lambda names: "".join(VERBS[v] for v in names)
        words = [group, version, plural, r["kind"], r.get("singular") or "-", "N" if r["namespaced"] else "C", verbs(r["verbs"])]
        words += [f"short={','.join(r['shortNames'])}"] if r.get("shortNames") else []
        words += [f"cat={','.join(r['categories'])}"] if r.get("categories") else []
        words += [f"sub={name}:{s['kind']}:{verbs(s['verbs'])}" for name, s in r.get("subresources", {}).items()]
        yield " ".join(words)


write("types.txt", types())
write("resources.txt", resources())
write("kinds.txt", (f"{k} {t}" for k, t in load("kinds").items() if not k.endswith("/WatchEvent")))
write("columns.txt", ("|".join([k, *(",".join(map(str, c)) for c in cs)]) for k, cs in load("columns").items()))
