# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Grading a class, run here
#
# The [instructor guide](instructor_guide.md) says what to plan and what the
# grader promises. This notebook does it once, with notebook 03 and a class
# of four that we make up: what you release, what you get back, what the
# command writes. About a minute on two CPU cores.
#
# Everything goes into a temporary folder.

# %%
import os

os.environ["TQDM_DISABLE"] = "1"  # progress bars, for once, are in the way

import csv
import json
import tempfile
from pathlib import Path

from minids3.course.registry import exercises
from minids3.course.repository import root
from minids3.isolation import sandbox
from minids3.grade.cli import main

NAME = "03_latent_attention"
NOTEBOOKS = root() / "notebooks"
os.chdir(tempfile.mkdtemp())

# %% [markdown]
# ## 1. What students get
#
# On a command line this is `minids3 release 03 --out week3`. The bundle is
# made of the repository's student notebooks; a notebook with an answer or an
# output in it is refused.

# %% tags=["nbval-check-output"]
main(["release", "03", "--out", "week3"])
for path in sorted(Path("week3").iterdir()):
    print(path.name)

# %% [markdown]
# ## 2. What you get back
#
# Four students. **ada** has everything right. **eve** made one of the known
# mistakes, and wrote her helper into a cell of its own. **kurt** deleted
# every cell id and all metadata, as some editors do, and left two exercises
# as they came. **noor** sent half a file.

# %%
def notebook(folder):
    return json.loads((NOTEBOOKS / folder / f"{NAME}.ipynb").read_text())


def answer(nb, id):
    return next(c for c in nb["cells"] if c.get("id") == f"answer-{id}")


ada, eve, kurt = (notebook("solutions") for _ in range(3))
answer(eve, "mla-cache-size")["source"] = """\
# EXERCISE mla-cache-size
def cache_bytes(kind, layers, heads, kv_heads, head_dim, latent, rotary,
                size=2):
    kept = {"mha": heads, "gqa": kv_heads}
    if kind == "mla":
        return layers * size * twice(latent + rotary)
    return layers * size * twice(kept[kind] * head_dim)
"""
helper = {"cell_type": "code", "metadata": {}, "outputs": [],
          "source": "def twice(x):\n    return 2 * x"}
eve["cells"].insert(3, helper)
for id in ("mla-absorb", "mla-choose"):
    answer(kurt, id)["source"] = answer(notebook("."), id)["source"]
for cell in kurt["cells"]:
    cell.pop("id", None)
    cell["metadata"] = {}

for name, nb in {"ada": ada, "eve": eve, "kurt": kurt}.items():
    folder = Path("submissions") / name
    folder.mkdir(parents=True)
    (folder / f"{NAME}.ipynb").write_text(json.dumps(nb))
half = json.dumps(ada)[:5000]
Path("submissions", "noor (1).ipynb").write_text(half)

# %% [markdown]
# ## 3. Grade
#
# **Predict** the four totals, of 22 points. Eve's formula doubles the
# latent for MLA, as MHA doubles keys and values.
#
# On a command line: `minids3 grade 03 submissions --out grades`. Without
# `--seed` a fresh one is drawn; we give one, to see the same thing twice.
# Where this machine cannot isolate students' code, the command would refuse;
# the code here is our own, so then we say `--no-sandbox`.

# %%
trust = ["--no-sandbox"] if sandbox.missing() else []


def grade(out, *more):
    status = main(["grade", "03", "submissions", "--out", out,
                   "--seed", "1", *trust, *more])
    return status, json.loads(Path(out, "grades.json").read_text())


status, grades = grade("grades")

# %% [markdown]
# Status 1 means that something waits for a human: noor's file. It is no
# zero, it is a question to noor.

# %% tags=["nbval-check-output"]
print("status", status)
with open("grades/grades.csv") as file:
    for row in csv.DictReader(file):
        points = " ".join(row[e.id].rjust(5) for e in exercises(NAME))
        print(f"{row['student']:11} {points}   total {row['total']:>5}"
              f"   {row['needs a human']}")

# %% [markdown]
# Eve's helper cell ran with her answer, and kurt's answers were found by
# their first lines. What eve is told:

# %% tags=["nbval-check-output"]
by_name = {s["student"]: s for s in grades["submissions"]}
eves = by_name["eve"]["exercises"][2]
print(f"{eves['id']}: {eves['status']}, {eves['points']:g} "
      f"of {eves['max_points']:g} points")
for item in eves["items"]:
    print(f"  {item['status']:11} {item['label']}")
print(eves["diagnosis"])

# %% [markdown]
# Her page, as she gets it:

# %% tags=["nbval-ignore-output"]
import html

from IPython.display import HTML

page = Path("grades", "feedback", "eve.html").read_text()
HTML(f'<div><iframe srcdoc="{html.escape(page)}" style="width:100%; height:'
     '480px; border:1px solid #999; border-radius:8px" title="Feedback '
     'page of eve: points, checklist, diagnosis and hint"></iframe></div>')

# %% [markdown]
# And the class summary, for you: who needs a human, how points are spread,
# which exercise was hard, which mistakes were common.

# %% tags=["nbval-ignore-output"]
page = Path("grades", "summary.html").read_text()
HTML(f'<div><iframe srcdoc="{html.escape(page)}" style="width:100%; height:'
     '480px; border:1px solid #999; border-radius:8px" title="Class '
     'summary: histogram, exercises, misconceptions"></iframe></div>')

# %% [markdown]
# ## 4. Again
#
# The same command grades nothing a second time: nothing changed. The same
# seed in another folder gives the same grades, item by item.

# %% tags=["nbval-check-output"]
import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()) as said:
    grade("grades")
    _, again = grade("again")
print(said.getvalue().splitlines()[0])


def content(grades):
    """All of it but the seconds it took."""
    return [{k: v for k, v in s.items() if k not in ("seconds", "key")}
            for s in grades["submissions"]]


print("same seed, same grades:", content(grades) == content(again))

# %% [markdown]
# ## 5. A check of your own
#
# A folder with Python files, written as the workbook's checks are. The
# worked solution has to pass it, or the command refuses to grade with it.
# Its items share the exercise's points.

# %% tags=["nbval-check-output"]
Path("private").mkdir()
Path("private", "long.py").write_text('''
from minids3.grade.private import private_check


@private_check("mla-cache-size", title="half the latent")
def check_half(c):
    sizes = (61, 128, 8, 128)
    whole = c.call("mla", *sizes, 512, 64)
    half = c.call("mla", *sizes, 256, 64)
    c.true(whole - half == 61 * 256 * 2, "saves 256 numbers a layer",
           "keep the latent once")
''')
with contextlib.redirect_stdout(io.StringIO()):
    _, private = grade("private-grades", "--private", "private")
for s in private["submissions"][:2]:
    last = s["exercises"][2]["items"][-1]
    print(f"{s['student']}: {last['status']:3} {last['label']}")

# %% [markdown]
# ## 6. What students see themselves
#
# `minids3 grade --self NOTEBOOK` runs the public checks of one notebook in
# seconds. The end of what it tells eve:

# %% tags=["nbval-check-output"]
mine = f"submissions/eve/{NAME}.ipynb"
with contextlib.redirect_stdout(io.StringIO()) as said:
    main(["grade", "--self", mine])
print(said.getvalue().splitlines()[-1])

# %% [markdown]
# `pytest --nbval-lax --nbval-current-env 03_latent_attention.ipynb` tells
# the same story cell by cell, and takes as long as the notebook does.
#
# ## What this does not show
#
# - Code that means harm. `tests/grade/attacks` has dozens of submissions
#   that try; none gains a point.
# - Whether somebody understands what they handed in. Ask them.
