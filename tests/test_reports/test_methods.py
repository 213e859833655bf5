from lidc_cdam.explain import EXPLAINERS
from reports import methods


def test_every_estimator_has_its_row_and_rows_agree_with_the_estimators():
    assert set(methods.METHODS) == set(EXPLAINERS)
    for key, row in methods.METHODS.items():
        assert row.kind in methods.KINDS
        assert row.reach in methods.REACHES
        if key not in ("random", "centre"):
            assert (row.kind == methods.SHARED) == (not EXPLAINERS[key].targeted)


def test_reach_is_told_and_an_estimator_of_ones_own_has_words_too():
    assert "last block only" in methods.reach_sentence("smooth_cdam")
    assert "back through the whole model" in methods.reach_sentence("input_gradient")
    assert "attention through all blocks" in methods.reach_sentence("rollout")
    assert methods.reach_sentence("mine").startswith("A map (mine) explains the model in its method's own way;")
    assert methods.score_words("mine", ["logit"]).endswith("Scores are in the method's own unit.")


def test_a_control_is_not_told_as_an_explanation():
    assert methods.score_words("cdam", ["logit"]).startswith("Orange raises, blue lowers the predicted value")
    assert "(logit and z-score)" in methods.score_words("integrated_cdam", ["logit", "z-score"])
    for method in ("random", "centre"):
        assert "Orange" not in methods.score_words(method, ["logit"])
        assert "say nothing about this nodule" in methods.score_words(method, ["logit"])


def test_attention_is_not_told_as_signed():
    for method in ("attention", "rollout"):
        assert methods.score_words(method, ["logit"]).startswith(
            "Not signed, and the same for every target: a score is"
        )
    assert "Orange raises" in methods.score_words("gradcam", ["logit"])
    assert "(logit) against a black image" in methods.score_words("integrated_gradients", ["logit"])
