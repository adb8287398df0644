from tasks.metrics.normalize import normalize_chinese, normalize_english


def test_english() -> None:
    assert normalize_english("  The  U.S.A. has an   A-team; theatre ") == "usa has ateam theatre"
    assert normalize_english("A an B", lowercase=False) == "A B"


def test_chinese() -> None:
    # LongBench's list has 》 but not 《.
    assert normalize_chinese("《书》") == "《书"
    assert normalize_chinese("「你好」， World！ 　…") == "你好world"
