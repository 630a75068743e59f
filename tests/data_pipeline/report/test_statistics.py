import itertools

from data_pipeline.report.statistics import StageStatistics, total


def statistics(number):
    result = StageStatistics("stage")
    result.count(result.seen, "web", "en", 10 * number)
    result.count(result.seen, "web", None, 1)
    result.count(result.dropped, "web", f"stage.rule{number % 2}", 10 * number)
    result.abstained[f"rule{number}"] = number
    result.tokens = {"web": {"train": number}}
    for hash_ in (number, number + 10, number + 20):
        result.example("stage.rule", {"hash": hash_, "record_id": f"{hash_:02}"})
    return result


def test_merging_in_any_order_gives_the_same_sums_and_the_smallest_examples():
    results = []
    for order in itertools.permutations([1, 2, 3, 4]):
        merged = StageStatistics("stage")
        for number in order:
            merged.merge(statistics(number))
        results.append(merged)
    assert all(each == results[0] for each in results)
    merged = results[0]
    assert merged.seen == {"web": {"en": [4, 100], "unknown": [4, 4]}}
    assert total(merged.seen) == [8, 104]
    assert merged.reasons() == {"stage.rule0": [2, 60], "stage.rule1": [2, 40]}
    assert merged.abstained == {f"rule{number}": number for number in (1, 2, 3, 4)}
    assert merged.tokens == {"web": {"train": 10}}
    assert [each["hash"] for each in merged.examples["stage.rule"]] == [1, 2, 3]


def test_an_example_that_would_not_stay_is_not_wanted():
    merged = statistics(1)
    assert merged.wants_example("stage.rule", 20)
    assert not merged.wants_example("stage.rule", 22)
    assert merged.wants_example("stage.another", 22)
