"""What the browser's tests share."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


class Watched:
    """A page, and what it complained of and asked of the network."""

    def __init__(self, page, own):
        self.page = page
        self.errors, self.foreign = [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self.hear)
        page.on(
            "request",
            lambda r: (
                r.url.startswith((own, "data:", "blob:", own.replace("http", "ws")))
                or self.foreign.append(r.url)
            ),
        )

    def hear(self, message):
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def clean(self):
        assert self.errors == [], self.errors
        assert self.foreign == [], self.foreign


def serious(page, within, besides=()):
    """What axe-core finds serious or critical inside some elements, a line each.

    ``besides``: selectors of what is inside them and not ours.
    """
    from axe_playwright_python.sync_playwright import Axe

    context = {"include": [[within]], "exclude": [[selector] for selector in besides]}
    found = Axe().run(page, context=context).response["violations"]
    return [
        f"{v['id']}: {node['target']} {node['html'][:160]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


def framed(title, body):
    """A whole page, with colours of its own in both themes."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>:root { color-scheme: light dark } body { background: Canvas; color: CanvasText }"
        f"</style><main><h1>{title}</h1>{body}</main></html>"
    )
