"""YaRN far beyond the original positions: against figures of Hugging Face's, and its model."""

import pytest
import torch

from deepseek_twin import CONFIGS, build, twin
from minids3.config import get_config
from minids3.model import Transformer
from minids3.nn.rope import attention_scale
from minids3.ref.rope import yarn_frequencies, yarn_mscale

# What transformers 5.24.0 computes, torch 2.13 (ROPE_INIT_FUNCTIONS["yarn"] and the scaling of
# DeepseekV3Attention): rotary width, other width, base, original, factor, betas, the two mscales,
# attention factor, softmax scale, frequencies of some pairs.
FIGURES = [
    (
        64,
        128,
        10000.0,
        4096,
        40,
        32,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.1352337788608801,
        {
            1: 0.7498942017555237,
            8: 0.10000000149011612,
            16: 0.005500000435858965,
            21: 0.0004149904125370085,
            31: 3.3338035336782923e-06,
        },
    ),
    (
        64,
        128,
        10000.0,
        4096,
        8,
        32,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.10530357086036152,
        {
            1: 0.7498942017555237,
            8: 0.10000000149011612,
            16: 0.0059615387581288815,
            21: 0.0006156450835987926,
            31: 1.666901880525984e-05,
        },
    ),
    (
        32,
        64,
        10000.0,
        256,
        4,
        32,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.13232112898211335,
        {
            1: 0.5020904541015625,
            4: 0.05714285373687744,
            8: 0.0024999999441206455,
            10: 0.0007905694656074047,
            15: 4.4456985051510856e-05,
        },
    ),
    (
        16,
        32,
        10000.0,
        256,
        4,
        32,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.18713033519502428,
        {
            1: 0.2569350600242615,
            2: 0.0625,
            4: 0.0024999999441206455,
            5: 0.0007905694656074047,
            7: 7.905694656074047e-05,
        },
    ),
    (
        16,
        32,
        10000.0,
        128,
        8,
        32,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.21060714172072303,
        {
            1: 0.2239946573972702,
            2: 0.0416666641831398,
            4: 0.0012499999720603228,
            5: 0.00039528473280370235,
            7: 3.9528473280370235e-05,
        },
    ),
    (
        8,
        16,
        10000.0,
        64,
        4,
        32,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.2646422579642267,
        {1: 0.0625, 2: 0.0024999999441206455, 3: 0.0002500000118743628},
    ),
    (
        16,
        32,
        10000.0,
        256,
        4,
        8,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.18713033519502428,
        {
            1: 0.3162277638912201,
            2: 0.07499999552965164,
            4: 0.0024999999441206455,
            5: 0.0007905694656074047,
            7: 7.905694656074047e-05,
        },
    ),
    (
        16,
        32,
        10000.0,
        256,
        4,
        4,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.18713033519502428,
        {
            1: 0.3162277638912201,
            2: 0.10000000149011612,
            4: 0.0024999999441206455,
            5: 0.0007905694656074047,
            7: 7.905694656074047e-05,
        },
    ),
    (
        32,
        64,
        500.0,
        128,
        4,
        8,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.13232112898211335,
        {
            1: 0.6781322360038757,
            4: 0.1586056798696518,
            8: 0.011180340312421322,
            10: 0.005141428206115961,
            15: 0.0007373193511739373,
        },
    ),
    (
        64,
        128,
        10000.0,
        4096,
        40,
        32,
        1,
        True,
        None,
        None,
        1.3688879454113936,
        0.07216878364870322,
        {
            1: 0.7498942017555237,
            8: 0.10000000149011612,
            16: 0.005500000435858965,
            21: 0.0004149904125370085,
            31: 3.3338035336782923e-06,
        },
    ),
    (
        64,
        128,
        10000.0,
        4096,
        40,
        32,
        1,
        True,
        0.707,
        0.707,
        1.0,
        0.1147213867929261,
        {
            1: 0.7498942017555237,
            8: 0.10000000149011612,
            16: 0.005500000435858965,
            21: 0.0004149904125370085,
            31: 3.3338035336782923e-06,
        },
    ),
    (
        64,
        128,
        10000.0,
        4096,
        40,
        32,
        1,
        True,
        1.0,
        0.5,
        1.1557219901962608,
        0.10124612961325218,
        {
            1: 0.7498942017555237,
            8: 0.10000000149011612,
            16: 0.005500000435858965,
            21: 0.0004149904125370085,
            31: 3.3338035336782923e-06,
        },
    ),
    (
        64,
        128,
        10000.0,
        4096,
        40,
        32,
        1,
        True,
        1.0,
        0.0,
        1.3688879454113936,
        0.07216878364870322,
        {
            1: 0.7498942017555237,
            8: 0.10000000149011612,
            16: 0.005500000435858965,
            21: 0.0004149904125370085,
            31: 3.3338035336782923e-06,
        },
    ),
    (
        16,
        32,
        10000.0,
        256,
        4,
        32,
        1,
        False,
        1.0,
        1.0,
        1.0,
        0.18713033519502428,
        {
            1: 0.25397229194641113,
            2: 0.05539863556623459,
            4: 0.0024999999441206455,
            5: 0.0007905694656074047,
            7: 7.905694656074047e-05,
        },
    ),
    (
        64,
        128,
        10000.0,
        4096,
        1.0,
        32,
        1,
        True,
        1.0,
        1.0,
        1.0,
        0.07216878364870322,
        {
            1: 0.7498942017555237,
            8: 0.10000000149011612,
            16: 0.009999999776482582,
            21: 0.0023713738191872835,
            31: 0.0001333521504420787,
        },
    ),
]


@pytest.mark.parametrize("case", FIGURES)
def test_figures_of_hugging_face(case):
    rope, nope, theta, original, factor, fast, slow, truncate, a, b, tables, scale, some = case
    ours = yarn_frequencies(rope, theta, factor, original, fast, slow, truncate)
    for pair, frequency in some.items():
        assert ours[pair].item() == pytest.approx(frequency, rel=1e-6)
    if a and b:
        assert yarn_mscale(factor, a) / yarn_mscale(factor, b) == pytest.approx(tables, rel=1e-6)
    else:
        assert yarn_mscale(factor) == pytest.approx(tables, rel=1e-6)
    cfg = get_config(
        "mini",
        qk_rope_head_dim=rope,
        qk_nope_head_dim=nope,
        rope_factor=float(factor),
        mscale=a or 0.0,
        mscale_all_dim=b or 0.0,
    )
    assert attention_scale(cfg) == pytest.approx(scale, rel=1e-6)


LONG = {
    "rope_factor": 10.0,
    "original_max_position_embeddings": 32,
    "max_position_embeddings": 400,
    "beta_fast": 4.0,
}


@pytest.mark.parametrize("mscales", [(1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (0.0, 0.0)])
def test_logits_at_long_positions_are_hugging_faces(mscales):
    a, b = mscales
    model = build(**{**CONFIGS["yarn"], **LONG, "mscale": a, "mscale_all_dim": b}).eval()
    hf = twin(model).eval()
    ids = torch.randint(0, 101, (2, 390), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(ids), hf(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_position_0_hides_a_missing_softmax_factor():
    """The first token sees one key, and a softmax over one score is 1."""
    torch.manual_seed(0)
    cfg = get_config("mini", num_hidden_layers=2, num_nextn_predict_layers=0, rope_factor=40.0)
    right = Transformer(cfg).eval()
    with torch.no_grad():
        for parameter in right.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # attention that is not even
    wrong = Transformer(cfg).eval()
    wrong.load_state_dict(right.state_dict())
    for layer in wrong.layers:
        layer.self_attn.scale = cfg.qk_head_dim**-0.5
    ids = torch.randint(0, 2048, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gap = (right(ids) - wrong(ids)).abs().amax(-1)[0]
    assert gap[0] < 1e-5
    assert gap[1:].max() > 1e-2
