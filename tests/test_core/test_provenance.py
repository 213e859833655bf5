import multiprocessing

import pytest

from lidc_cdam import provenance
from lidc_cdam.errors import LidcCdamError
from lidc_cdam.files import read_json, write_json


def test_a_stage_claims_finishes_and_is_recognised(tmp_path):
    record = provenance.begin(tmp_path, "split", {"protocol": "sound", "sizes": (1, 2)})
    assert not record.finished
    record.finish(nodules=3)
    assert provenance.begin(tmp_path, "split", {"protocol": "sound", "sizes": (1, 2)}).finished
    stored = provenance.read_record(tmp_path, "split")
    assert stored["results"] == {"nodules": 3}
    assert stored["versions"]["python"]


def test_another_configuration_is_refused_and_named(tmp_path):
    provenance.begin(tmp_path, "split", {"protocol": "sound"}).finish()
    with pytest.raises(LidcCdamError, match=r'protocol = "sound", but this call has protocol = "paper_main"; choose'):
        provenance.begin(tmp_path, "split", {"protocol": "paper_main"})


def test_changed_input_bytes_are_refused(tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("a")
    provenance.begin(tmp_path / "out", "split", {}, {"cohort": table})
    provenance.begin(tmp_path / "out", "split", {}, {"cohort": table})
    table.write_text("b")
    with pytest.raises(LidcCdamError, match="cohort"):
        provenance.begin(tmp_path / "out", "split", {}, {"cohort": table})


def test_stages_share_a_folder_and_can_be_reopened(tmp_path):
    provenance.begin(tmp_path, "cohort", {"preset": "all"}).finish()
    provenance.begin(tmp_path, "extract", {}).finish()
    provenance.reopen(tmp_path, "extract")
    assert provenance.begin(tmp_path, "cohort", {"preset": "all"}).finished
    assert not provenance.begin(tmp_path, "extract", {}).finished


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(LidcCdamError, match="is a file"):
        provenance.begin(tmp_path / "out", "split", {})


def claim_many(folder, name):
    for index in range(20):
        provenance.begin(folder, f"{name}/{index}", {}).finish()


def test_stages_that_claim_one_folder_at_the_same_time_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=claim_many, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    records = [provenance.read_record(tmp_path, f"{name}/{index}") for name in "abc" for index in range(20)]
    assert all(record["finished"] for record in records)
    assert [path.name for path in tmp_path.iterdir()] == [provenance.FILE]


def test_a_claimed_folder_is_recognised_where_nothing_can_be_written(tmp_path, monkeypatch):
    provenance.begin(tmp_path, "extract", {"side": 32}).finish()
    monkeypatch.setattr(provenance, "held", lambda *_, **__: pytest.fail("wrote"))
    assert provenance.begin(tmp_path, "extract", {"side": 32}).finished


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ('{"schema": 99, "split": {}}', "must have schema 1, but it has 99; use the version"),
        ("[]", "must have schema 1, but it has no object"),
        ('{"split": 3}', "must hold one record a stage, but 'split' is none"),
    ],
)
def test_records_of_another_form_are_refused_and_stay(tmp_path, stored, sentence):
    (tmp_path / provenance.FILE).write_text(stored)
    for call in (lambda: provenance.begin(tmp_path, "split", {}), lambda: provenance.read_record(tmp_path, "split")):
        with pytest.raises(LidcCdamError, match=sentence):
            call()
    assert (tmp_path / provenance.FILE).read_text() == stored


def test_records_say_their_form_and_those_of_earlier_versions_are_read(tmp_path):
    provenance.begin(tmp_path, "split", {"protocol": "sound"}).finish()
    stored = read_json(tmp_path / provenance.FILE)
    assert stored.pop("schema") == 1
    write_json(tmp_path / provenance.FILE, stored)
    assert provenance.begin(tmp_path, "split", {"protocol": "sound"}).finished
    provenance.begin(tmp_path, "other", {})
    assert read_json(tmp_path / provenance.FILE).keys() == {"schema", "split", "other"}
    assert provenance.read_records(tmp_path).keys() == {"split", "other"}


def test_a_folder_of_other_stages_is_refused(tmp_path):
    provenance.refuse_others(tmp_path / "absent", ("report",))
    provenance.begin(tmp_path, "report", {})
    provenance.refuse_others(tmp_path, ("report", "export"))
    provenance.begin(tmp_path, "extract", {})
    with pytest.raises(
        LidcCdamError, match=r"--out must be a folder of its own, but .* holds what `extract` made; choose another"
    ):
        provenance.refuse_others(tmp_path, ("report", "export"))
