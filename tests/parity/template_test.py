"""Chat templates give the tokens and the assistant mask of transformers' apply_chat_template."""

import pytest

from lm.data import tokenizer as tokenizers
from lm.data.template import TEMPLATES, tokenize
from tests.data.hf_tokenizer_test import write_files
from tests.data.template_test import CHATML, SIGNS, TALK

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
SAID = (
  "{{% if m['role'] == 'assistant' %}}{{% generation %}}{{{{ {0} }}}}{{% endgeneration %}}"
  "{{% else %}}{{{{ {0} }}}}{{% endif %}}"
)
SYSTEM = (
  "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}"
)
# As the models' makers publish them, without tools, and with what the assistant says marked; plain is our own.
PUBLISHED = {
  "chatml": CHATML,
  "qwen": f"{{% if messages[0]['role'] != 'system' %}}{{{{ '<|im_start|>system\n{TEMPLATES['qwen'].system}<|im_end|>\n' }}}}"
  + "{% endif %}" + CHATML,
  "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
  + SAID.format("(m['content'] | trim) + '<|eot_id|>'")
  + "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
  "gemma": "{{ bos_token }}" + SYSTEM + "{% else %}{% set first = '' %}{% endif %}{% for m in messages %}"
  "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '') }}"
  + SAID.format("(m['content'] | trim) + '<end_of_turn>'")
  + "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
  "plain": "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':\n' }}" + SAID.format("(m['content'] | trim) + eos_token")
  + "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[1:4]], ids=["system", "no system", "asked"])
def test_tokens_and_mask_are_those_of_transformers(name, talk, tmp_path):
  tok = tokenizers.load(str(write_files(tmp_path / "from", "gpt2", additional_special_tokens=list(SIGNS))))
  tok.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
  prompt = talk[-1]["role"] == "user"
  expected = theirs.apply_chat_template(
    list(talk), chat_template=PUBLISHED[name], add_generation_prompt=prompt, return_dict=True, return_assistant_tokens_mask=True
  )
  tok.chat_template = PUBLISHED[name]
  for template in (name, "own"):
    ids, mask = tokenize(talk, tok, template, prompt)
    assert ids.tolist() == expected["input_ids"]
    assert mask.astype(int).tolist() == expected["assistant_masks"]
    assert mask.any()
