"""Read ahead: all results in order, whatever becomes of one; and no more than one ahead."""

import time

import pytest

from lung_unet.data.read_ahead import ReadAhead
from lung_unet.errors import InputError

FAILS = "(_ for _ in ()).throw(__import__('lung_unet.errors', fromlist=['']).InputError('broken'))"
DIES = "__import__('os')._exit(1)"
TOO_LARGE = "bytearray(1 << 62)"


def test_results_come_in_order_and_errors_and_deaths_cost_one_each():
    with ReadAhead(eval, ["1", FAILS, "3", DIES, "5"]) as ahead:
        jobs, results = zip(*ahead, strict=True)
    assert jobs == ("1", FAILS, "3", DIES, "5")
    assert [r for r in results if not isinstance(r, InputError)] == [1, 3, 5]
    assert str(results[1]) == "broken"
    assert str(results[3]).startswith(DIES)


@pytest.mark.parametrize(
    "job", ["1 / 0", "{}['key']", "b'\\xe9'.decode()", "__import__('os').abort()", "exit(3)"]
)
def test_what_nobody_foresaw_costs_one_scan_and_is_told_in_a_line(job):
    with ReadAhead(eval, ["1", job, "3"]) as ahead:
        one, error, three = (result for _, result in ahead)
    assert (one, three) == (1, 3)
    assert isinstance(error, InputError)
    assert str(error).startswith(f"{job}: ") and "\n" not in str(error)


def test_a_scan_beyond_the_memory_costs_itself_alone():
    with ReadAhead(eval, ["1", TOO_LARGE, "3"]) as ahead:
        one, error, three = (result for _, result in ahead)
    assert (one, three) == (1, 3)
    assert isinstance(error, InputError) and str(error).startswith(TOO_LARGE)


def test_a_process_that_dies_between_two_jobs_is_made_again():
    dies_later = "__import__('threading').Timer(0.2, __import__('os')._exit, [1]).start()"
    with ReadAhead(eval, ["1", dies_later, "3", "4"]) as ahead:
        results = iter(ahead)
        assert next(results) == ("1", 1)
        time.sleep(2)
        assert [result for _, result in results][1:] == [3, 4]


def test_one_job_is_ahead_and_no_more(tmp_path):
    files = [tmp_path / str(number) for number in range(4)]

    def wait_for(path):
        deadline = time.time() + 60
        while not path.exists() and time.time() < deadline:
            time.sleep(0.01)
        return path.exists()

    jobs = [f"open({str(f)!r}, 'w').close()" for f in files]
    with ReadAhead(eval, jobs) as ahead:
        assert wait_for(files[0])  # before anything is asked for
        for number, _ in enumerate(ahead):
            assert all(wait_for(f) for f in files[: number + 2])
            time.sleep(0.1)  # what came too early would come now
            assert not any(f.exists() for f in files[number + 2 :])


def test_no_jobs_no_results():
    with ReadAhead(eval, []) as ahead:
        assert list(ahead) == []
