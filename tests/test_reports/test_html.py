import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from reports import html, sections
from reports.context import open_run
from reports.material import load
from reports.viewer import viewer_data

HOSTILE = '"><script>alert(1)</script> #panic("x") $x$ \\ @a <b> {{ 7*7 }}'


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def digest_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def pages(made) -> list[str]:
    _, out = made
    return [path.read_text(encoding="utf-8") for path in sorted(out.glob("*.html"))]


def test_no_page_can_ask_the_network_for_anything(made):
    for page in pages(made):
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page
        tags = Tags(page).found
        assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
        for tag, attributes in tags:
            for name in ("src", "href", "xlink:href", "action", "srcset"):
                value = attributes.get(name)
                assert value is None or value.startswith(("#", "data:image/")) or tag == "a"
        targets = [attributes["href"] for tag, attributes in tags if tag == "a"]
        assert targets
        assert all(re.fullmatch(r"[\w.-]+\.(html|pdf)|#[\w-]+", str(target)) for target in targets)


def test_every_page_has_a_strict_policy_and_a_script_only_by_its_digest(made):
    for page in pages(made):
        policy = next(a["content"] for t, a in Tags(page).found if a.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        assert policy.startswith("default-src 'none'")
        found = Tags(page).found
        kinds = [attributes.get("type") for tag, attributes in found if tag == "script"]
        scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
        assert set(kinds) <= {None, "application/json"}
        assert kinds.count(None) == len(scripts) == ("script-src" in policy)
        assert all(f"script-src '{digest_of(script)}'" in policy for script in scripts)
        assert not any(name.startswith("on") for _, attributes in Tags(page).found for name in attributes)


@pytest.mark.parametrize("name", ["LIDC-IDRI-0001_n01", "index", "run"])
def test_a_page_allows_its_own_style_alone(made, name):
    _, out = made
    page = (out / f"{name}.html").read_text(encoding="utf-8")
    policy = next(a["content"] for _, a in Tags(page).found if a.get("http-equiv") == "Content-Security-Policy")
    assert "unsafe" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert f"style-src '{digest_of(style)}'" in policy
    assert not any("style" in attributes for _, attributes in Tags(page).found)


def test_every_picture_has_words_and_every_identifier_is_there_once(made):
    for page in pages(made):
        tags = Tags(page).found
        identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
        assert len(identifiers) == len(set(identifiers))
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
        assert set(used) <= set(identifiers)
        labels = [attributes.get("aria-label") for _, attributes in tags if attributes.get("role") == "img"]
        assert all(labels)
        assert sum(tag == "h1" for tag, _ in tags) == 1
    assert all(page.count("Research use only - not for diagnosis") >= 3 for page in pages(made))


def test_the_scale_of_each_target_is_printed_on_its_page(made):
    cohort, out = made
    for run in (cohort.biomarkers, cohort.malignancy):
        facts, cases = open_run(run, "cdam")
        for case in cases:
            page = (out / f"{case.nodule_id}.html").read_text()
            for key, limit in facts.limits[case.fold].items():
                assert f'data-target="{key}"' in page
                assert f"±{limit:.3g}" in page


def hostile(value):
    """Content whose every text is hostile, save for pictures and what names things in the page."""
    if isinstance(value, dict):
        kept = ("svg", "shared", "key")
        return {key: part if key in kept else hostile(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) and value else value


def test_hostile_text_is_shown_as_text(made):
    cohort, _ = made
    facts, cases = open_run(cohort.biomarkers, "cdam")
    material = load([facts], [cases[0]])
    content = sections.document(material)
    viewer = viewer_data(material, content)
    page = html.render_case(hostile(content), "key", hostile(viewer))
    (policy,) = [a for t, a in Tags(page).found if t == "meta" and "http-equiv" in a]
    assert sum(tag == "script" for tag, _ in Tags(page).found) == page.count("<script") == 2
    assert page.count("&lt;script&gt;alert(1)") > 100
    assert "alert(1)</script>" not in page
    assert "{{ 7*7 }}" in page
    assert "alert" not in str(policy)
    assert not any(name.startswith("on") for _, attributes in Tags(page).found for name in attributes)


def test_the_index_names_hostile_nodules_and_reasons_as_text():
    failed = [{"nodule_id": HOSTILE, "reason": HOSTILE}]
    content = {
        "title": "t",
        "research": "r",
        "targets": [],
        "rows": [],
        "count": "0 nodules",
        "runs": [],
        "failed": failed,
    }
    content |= {
        "synthetic": 0,
        "unread": 0,
        "folds": [],
        "problem": HOSTILE,
        "flags": [{"flag": HOSTILE, "meaning": HOSTILE, "nodules": 1}],
    }
    page = html.render_index(content)
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in page


def test_a_stored_key_is_read_back_and_anything_else_has_none(made, tmp_path):
    cohort, out = made
    assert re.fullmatch("[0-9a-f]{64}", html.stored_key(out / f"{cohort.nodules[0]}.html") or "")
    assert html.stored_key(tmp_path / "absent.html") is None
    (tmp_path / "other.html").write_text("<html>")
    assert html.stored_key(tmp_path / "other.html") is None


def test_commands_in_a_sentence_are_code_and_hostile_ones_text():
    assert html.told("run `lidc-cdam explain`, then") == "run <code>lidc-cdam explain</code>, then"
    assert html.told("`<b>` & <i>") == "<code>&lt;b&gt;</code> &amp; &lt;i&gt;"
