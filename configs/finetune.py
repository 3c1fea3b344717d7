"""Fine-tune a pretrained model on data of your own: a label or a number for a text or a pair, or a tag for every word.

python -m lm.main --config=configs/finetune.py --workdir=runs/reviews --config.init_from=runs/tiny_mlm \\
  --config.data.path=reviews.csv --config.data.text=review --config.data.label=stars --config.peft=lora

csv, tsv, jsonl and parquet; `--config.data.text=a,b` for pairs; `--config.data.validation=FILE --config.data.test=FILE`, else
both are cut from the one file. It ends with the confusions, and errors.csv in the workdir. BERT's recipe (Devlin et al. 2018,
appendix A.3: 3 epochs, batches of 32, linear decay), but with a learning rate for models of a few million parameters, LoRA or
all of them: on 800 made-up reviews (75 steps, two cores) 3e-3 reached 0.94 with LoRA, where 1e-3 stopped at 0.50. All
parameters of a model of BERT's size want `--config.optimizer.learning_rate=5e-5`. `--config.task.class_weights=balanced` gives
all labels the same part in the loss, `spam=5,ham=1` others.

Under LoRA and every other method that leaves kernels frozen, `--config.quantizer=nf4` keeps them in 4 bits (QLoRA).

Any number of labels per row, "price|food" or a list in jsonl; it ends with micro and macro F1:

python -m lm.main --config=configs/finetune.py:multilabel --workdir=runs/topics --config.init_from=runs/tiny_mlm \\
  --config.data.path=reviews.csv --config.data.text=review --config.data.label=topics

A number instead of a label, as how alike two sentences are, by squared error; it ends with Pearson, Spearman and the largest
errors. Scores of 0 to 5 are learned as they are:

python -m lm.main --config=configs/finetune.py:regress --workdir=runs/alike --config.init_from=runs/tiny_mlm \\
  --config.data.path=pairs.csv --config.data.text=sentence1,sentence2 --config.data.label=score

Named entities in CoNLL files, tags in BIO, IOB or BIOES; it ends with precision, recall and F1 by type, as seqeval counts:

python -m lm.main --config=configs/finetune.py:tag --workdir=runs/names --config.init_from=runs/tiny_mlm \\
  --config.data.path=wnut17train.conll --config.data.validation=emerging.dev.conll

`--config.task.scheme=bioes` learns BIOES, `plain` tags that are no entities (parts of speech); `--config.data.token_column=0
--config.data.tag_column=-1` say the columns. Spans in JSON, as CLUENER has them, where every character has a tag:
`--config.data="spans(path='train.json',validation='dev.json')" --config.task.words=character`.

Answers that stand in a text, in the JSON of SQuAD 1.1 or 2.0; it ends with exact match and F1, and every answer by its
question's id in predictions_<split>.json. BERT's own on SQuAD are rates of 3e-5 to 5e-5, 2 or 3 epochs, `task.stride` 128:

python -m lm.main --config=configs/finetune.py:span_qa --workdir=runs/squad --config.init_from=answerdotai/ModernBERT-base \\
  --config.data.path=train-v2.0.json --config.data.validation=dev-v2.0.json --config.optimizer.learning_rate=3e-5

One of several choices, as in SWAG (`--config.data.context=sent1 --config.data.question=sent2
--config.data.columns=ending0,ending1,ending2,ending3`), COPA, or RACE (a list, letters). A row holds all choices, so `seq_len`
is the length of all of them, each with the context:

python -m lm.main --config=configs/finetune.py:choose --workdir=runs/race --config.init_from=runs/tiny_mlm \\
  --config.data.path=race.jsonl --config.data.context=article --config.data.question=question --config.data.columns=options \\
  --config.data.label=answer --config.data.first=A

What a user takes next, from the texts of what came before: two tables, of interactions and of items, as MovieLens has them. It
ends with nDCG@10, recall@10, MRR and AUC among all items, beside popularity. `--config.task.kind=pointwise` is binary
cross-entropy instead of BPR:

python -m lm.main --config=configs/finetune.py:rank --workdir=runs/films --config.init_from=runs/tiny_mlm \\
  --config.data.path=ratings.csv --config.data.items_path=movies.csv --config.data.user=userId --config.data.item=movieId \\
  --config.data.time=timestamp --config.data.text=title,genres

Texts as vectors: pairs of a question and what answers it, further columns of what does not, or single texts, alike by their
label or by nothing but themselves (SimCSE). The other texts of the batch are negatives; it ends with recall, nDCG, MRR and MAP:

python -m lm.main --config=configs/finetune.py:embed --workdir=runs/vectors --config.init_from=runs/tiny_mlm \\
  --config.data.path=faq.csv --config.data.text=question,answer

`--config.task.matryoshka_dims=256,128,64` trains leading dims to be used alone. Models of BERT's size want 2e-5 and the largest
batch that fits.

Few labelled texts, by what a pretrained model, masked or autoregressive, puts in the place of {answer}; step 0 is zero-shot:

python -m lm.main --config=configs/finetune.py:prompt_classify --workdir=runs/few --config.init_from=runs/tiny_mlm \\
  --config.data.path=reviews.csv --config.data.text=review --config.data.label=stars --config.data.examples_per_label=10 \\
  --config.task.pattern="{text} It was {answer}." --config.task.verbalizers=1=terrible,5=great

python -m lm.main --config=configs/finetune.py:sft --workdir=runs/sft --config.init_from=runs/tiny --config.data.path=talk.jsonl
python -m lm.main --config=configs/finetune.py:dpo --workdir=runs/dpo --config.init_from=runs/sft --config.data.path=pairs.jsonl

Instructions or conversations, then preferences, on an autoregressive base; layouts of rows in `lm/data/dialogue.py`. The rates
are those of models of a few million parameters. Of billions, conversations want 1e-5 to 2e-5 (LoRA 1e-4 to 2e-4), preferences
5e-7 (LoRA 5e-6; Tunstall et al. 2023).
"""

from ml_collections import ConfigDict

# What a row's label is, by argument: the task, and what its source has to know.
KINDS = {
  "": ("classify", dict(name="table", label="label")),
  "multilabel": ("multilabel", dict(name="table", label="label", label_type="list")),
  "regress": ("regress", dict(name="table", label="label", label_type="number")),
  "tag": ("tag", dict(name="conll")),
  "span_qa": ("span_qa", dict(name="squad")),
  "choose": ("choose", dict(name="choices")),
  "rank": ("rank", dict(name="interactions")),
  "embed": ("embed", dict(name="table")),
  "prompt_classify": ("prompt_classify", dict(name="table", label="label")),
}
# Tokens of a row, and the shorter rows of which each is filled, where a sentence is not the measure: a question and a
# paragraph, all choices, a history and what it is compared with. A text of embed is compared with those of its batch, which
# would be few where a length is rare: rows of one length have all.
ROWS: dict[str, tuple[int, tuple[int, ...]]] = {
  "span_qa": (384, (96, 160, 256, 384)),
  "choose": (512, (128, 256, 512)),
  "rank": (512, (128, 256, 512)),
  "embed": (128, ()),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" for one label, or what else is learned, as the error names them."""
  if arg in ("sft", "dpo"):
    return _chat(arg)
  if arg not in KINDS:
    kinds = "'' (classification of texts or pairs), multilabel (several labels), regress (a number), tag (named entities)"
    kinds += ", span_qa (answers in a text), choose (multiple choice), rank (recommendations), embed (vectors)"
    kinds += ", prompt_classify (few labels), sft (conversations) and dpo (preferences)"
    raise ValueError(f"configs/finetune.py:{arg}: accepted are {kinds}")
  task, data = KINDS[arg]
  seq_len, buckets = ROWS.get(arg, (128, (32, 64, 128)))
  return ConfigDict(
    dict(
      init_from="runs/tiny_mlm",
      task=task,
      data=data,
      optimizer=dict(name="adamw", learning_rate=3e-3, schedule="linear", warmup_steps="10%", weight_decay=0.01, b2=0.999),
      seq_len=seq_len,
      length_buckets=buckets,
      batch_size=32,
      total_steps="3 epochs",
      eval_every="20%",
    )
  )


def _chat(task: str) -> ConfigDict:
  """Of an autoregressive base: conversations, then preferences over answers of the model that learned them."""
  first = task == "sft"
  return ConfigDict(
    dict(
      init_from="runs/tiny" if first else "runs/sft",
      task=task,
      data=dict(name="chat"),
      optimizer=dict(
        name="adamw",
        learning_rate=1e-3 if first else 1e-4,
        schedule="linear",
        warmup_steps="5%",
        weight_decay=0.0,
        b2=0.999,
      ),
      seq_len=512 if first else 1024,  # of a pair both conversations stand in one row
      batch_size=8,
      total_steps="3 epochs" if first else "1 epoch",
      eval_every="20%",
    )
  )
