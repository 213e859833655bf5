"""What identifies a person or this machine: planted in the source and in folders' names, sought in every output."""

import base64
import gzip
import io
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pikepdf
import pydicom
import pypdfium2
import pytest
from PIL import Image, PngImagePlugin
from test_reports import placed

from lidc_cdam import artifacts, cli
from lidc_cdam.files import replacing

FOLDER = "canary_folder"
"""Part of the path of everything that is read and written."""
DATES = ("1947-03-12", "1999-12", "31.12.1999", "12/31/1999", "31 December 1999", "Dec 1999")
"""Other ways of writing the planted dates."""
WORDS = (
    *placed.CANARIES.values(),
    *(part for name in placed.CANARIES.values() for part in name.split("^") if len(part) > 5),
    *DATES,
    *(placed.FIELD, placed.DAY, "1847-03-12"),
    FOLDER,
)


def layers(held: bytes, depth: int = 0) -> Iterator[bytes]:
    """A file's bytes, and what is packed in them: gzip, ZIP, zlib, PDF streams and text, base64 in pages, PNG."""
    yield held
    if depth > 4:
        return
    for inner in unpacked(held):
        yield from layers(inner, depth + 1)


def unpacked(held: bytes) -> Iterator[bytes]:
    if held.startswith(b"\x1f\x8b"):
        yield gzip.decompress(held)
    elif held.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(held)) as archive:
            yield from (name.encode() + archive.read(name) for name in archive.namelist())
    elif held.startswith(b"%PDF-"):
        yield from of_pdf(held)
    elif held.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(held)) as image:
            yield repr(image.info).encode()
    elif held.startswith(b"NRRD"):
        yield gzip.decompress(held.split(b"\n\n", 1)[1])
    elif held[128:132] == b"DICM":
        made = pydicom.dcmread(io.BytesIO(held))
        yield str(made).encode()
        if "EncapsulatedDocument" in made:
            yield made.EncapsulatedDocument[: made.EncapsulatedDocumentLength]
    elif held.startswith(b"x\xda"):
        yield zlib.decompress(held)
    else:
        yield from (
            base64.b64decode(text) for text in re.findall(rb"[A-Za-z0-9+/]{60,}={0,2}", held) if not len(text) % 4
        )


def of_pdf(held: bytes) -> Iterator[bytes]:
    with pikepdf.open(io.BytesIO(held)) as opened:
        yield repr({str(key): str(value) for key, value in opened.docinfo.items()}).encode()
        yield from (part.read_bytes() for part in opened.objects if isinstance(part, pikepdf.Stream) and readable(part))
        yield repr([part for part in opened.objects if isinstance(part, pikepdf.Dictionary)]).encode()
    document = pypdfium2.PdfDocument(held)
    yield "\n".join(page.get_textpage().get_text_range() for page in document).encode()
    document.close()


def readable(stream: pikepdf.Stream) -> bool:
    return "/Filter" not in stream or stream["/Filter"] == "/FlateDecode"


def found_in(held: bytes) -> set[str]:
    """The planted words that a file holds, in any layer."""
    spelled = [
        (word, [word.encode(kind) for kind in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")]) for word in WORDS
    ]
    # Long runs of zeros, of which frames beside the nodule consist, hold no word in any spelling.
    short = (re.sub(rb"\0{64,}", bytes(64), layer) for layer in layers(held))
    return {word for layer in short for word, forms in spelled if any(form in layer for form in forms)}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> tuple[placed.Placed, Path]:
    """A run on planted DICOM, its reports and one nodule in every format, all below a folder with a telling name."""
    root = tmp_path_factory.mktemp("privacy") / FOLDER
    made = placed.make(root, keys=("malignancy", "spiculation"))
    outputs, run, nodule = root / "outputs", str(made.run), made.nodules[0]
    report = ["report", "--run", run, "--out", str(outputs / "report"), "--nodules", nodule]
    assert cli.main([*report, "--combined", str(outputs / "combined.pdf")]) == 0
    export = ["export", "--run", run, "--out", str(outputs / "export"), "--dicom", str(made.dicom)]
    assert cli.main([*export, "--nodules", nodule, "--format", "nifti,nrrd,sc,pdf,seg,sr,pmap"]) == 0
    export[export.index("--out") + 1] = str(outputs / "full")
    assert cli.main([*export, "--nodules", nodule, "--format", "seg,sr,pmap", "--extent", "full"]) == 0
    return made, outputs


def test_no_output_holds_what_was_planted(chain) -> None:
    _, outputs = chain
    paths = [path for path in outputs.rglob("*") if path.is_file()]
    assert {path.parent.parent.name for path in paths if path.name.startswith("pmap_")} == {"export", "full"}
    assert {"".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix for path in paths} >= {
        *(".html", ".pdf", ".json", ".csv", ".md", ".py", ".nii.gz", ".nrrd", ".dcm"),
    }
    holding = {str(path.relative_to(outputs)): found for path in paths if (found := found_in(path.read_bytes()))}
    assert not holding


def test_words_are_planted_all_over_the_source(chain) -> None:
    made, _ = chain
    source = pydicom.dcmread(next(made.dicom.rglob("*.dcm")))
    holding = [element for element in source if placed.FIELD in str(element.value)]
    assert len(holding) > 300
    several = {"OtherPatientIDs", "PerformingPhysicianName", "SeriesDescription", "RequestAttributesSequence"}
    assert several <= {element.keyword for element in holding}
    assert any(element.tag.is_private for element in holding)


@contextmanager
def archive() -> Iterator[tuple[str, list[tuple[bytes, bytes]]]]:
    """A service on loopback that takes all that it is sent, and each request as it came: its head and its body."""
    received: list[tuple[bytes, bytes]] = []

    class Taker(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            head = f"{self.requestline}\r\n{self.headers}".encode()
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((head, body))
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/dicom-web", received
        finally:
            server.shutdown()
            thread.join()


def test_what_is_sent_holds_nothing_that_was_planted(chain, capsys) -> None:
    made, outputs = chain
    with archive() as (url, received):
        for name, more in (("export", "nifti,nrrd,sc,pdf,seg,sr,pmap"), ("full", "seg,sr,pmap")):
            words = ["export", "--run", str(made.run), "--out", str(outputs / name), "--dicom", str(made.dicom)]
            words += ["--nodules", made.nodules[0], "--format", more, "--stow", url]
            assert cli.main([*words, *(("--extent", "full") if name == "full" else ())]) == 0
    said = capsys.readouterr().out
    files = [path for name in ("export", "full") for path in (outputs / name).rglob("*.dcm")]
    # Each file is sent once, also where two formats list it.
    assert len(received) == len(files) == 16
    assert f"10 DICOM objects are stored at {url}" in said
    sent = {}
    for request in received:
        head, body = request
        held = body[body.index(b"DICM") - 128 : body.rindex(b"\r\n--")]
        assert not found_in(head + body[: body.index(b"DICM")])
        assert not found_in(held)
        sent[pydicom.dcmread(io.BytesIO(held)).SOPInstanceUID] = held
    assert sent.keys() == {pydicom.dcmread(path).SOPInstanceUID for path in files}


def test_what_extraction_keeps_holds_nothing_of_a_person(chain) -> None:
    made, _ = chain
    persons = set(WORDS) - {FOLDER}
    for path in (path for folder in (made.data, made.run) for path in folder.rglob("*") if path.is_file()):
        assert not found_in(path.read_bytes()) & persons, path.name


def test_reasons_of_failures_name_no_folder(chain, capsys) -> None:
    made, outputs = chain
    broken = made.dicom.parent / "broken"
    for path in made.dicom.rglob("*.dcm"):
        copy = pydicom.dcmread(path)
        del copy.ImagePositionPatient
        target = broken / path.relative_to(made.dicom)
        with replacing(target) as temporary:
            copy.save_as(temporary)
    words = ["export", "--run", str(made.run), "--out", str(outputs / "failed"), "--dicom", str(broken)]
    assert cli.main([*words, "--nodules", made.nodules[0], "--format", "seg"]) == 1
    table = artifacts.read_table(outputs / "failed" / artifacts.FAILED, artifacts.FAILED_COLUMNS, "export")
    assert "must hold CT slices with positions" in table["reason"][0]
    assert not found_in((outputs / "failed" / artifacts.FAILED).read_bytes())
    assert "No nodule could be exported" in capsys.readouterr().err


def planted_png() -> bytes:
    stream, facts = io.BytesIO(), PngImagePlugin.PngInfo()
    facts.add_itxt("Comment", "CANARYSTATION", zip=True)
    Image.new("L", (2, 2)).save(stream, "png", pnginfo=facts)
    return stream.getvalue()


def planted_npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, patient=np.array(["CANARYSTATION"]))
    return stream.getvalue()


def planted_pdf() -> bytes:
    stream, made = io.BytesIO(), pikepdf.new()
    made.add_blank_page()
    made.Root.Hidden = made.make_stream(b"CANARYSTATION")
    made.save(stream, compress_streams=True, recompress_flate=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "held",
    [
        b"CANARYSTATION",
        "CANARYSTATION".encode("utf-16-le"),
        gzip.compress(b"CANARYSTATION"),
        b"NRRD0004\n\n" + gzip.compress(b"CANARYSTATION"),
        b'<p data="' + base64.b64encode(zlib.compress(b"CANARYSTATION" + bytes(range(200)), 9)) + b'">',
        b"url(" + base64.b64encode(planted_png()) + b")",
        planted_npz(),
        planted_pdf(),
        planted_png(),
    ],
    ids=["plain", "utf-16", "gzip", "nrrd", "packed in a page", "picture in a page", "npz", "pdf", "png"],
)
def test_the_search_sees_into_every_container(held: bytes) -> None:
    assert found_in(held) == {"CANARYSTATION"}
