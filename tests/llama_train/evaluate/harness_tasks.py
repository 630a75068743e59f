"""Our task files as tasks of lm-evaluation-harness, for its own Hugging Face backend to run."""

from pathlib import Path
from typing import Any

from llama_train.evaluate.task_files import kind_of, read_task
from llama_train.evaluate.task_scores import MAX_NEW_TOKENS

ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}
NUMBERS = EXACT | {"ignore_punctuation": False, "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"]}


def harness_task(path: Path, delimiter: str, shots: int, max_new_tokens: int | None = None) -> dict[str, Any]:
    """Describe a task file as the harness' documentation says; examples are shown by its sampler `first_n`."""
    kind = kind_of(read_task("any", path, " ", 1).examples[0], "")
    ask = delimiter.rstrip(" ")  # in the harness, what is behind the question belongs to the answer
    common = {
        "task": path.name.split(".jsonl")[0],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(path)},
        "test_split": "train",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots,
        "target_delimiter": " " if delimiter.endswith(" ") else "",
    }
    generated = {
        "output_type": "generate_until",
        "generation_kwargs": {
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": max_new_tokens or MAX_NEW_TOKENS.get(kind),
        },
    }
    if kind == "multiple_choice":
        return common | {
            "output_type": "multiple_choice",
            "doc_to_text": lambda example: example["query"] + ask,
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [ACCURACY, ACCURACY | {"metric": "acc_norm"}],
        }
    if kind == "schema":
        return common | {
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_choice": "context_options",
            "doc_to_target": "continuation",
            "metric_list": [ACCURACY],
        }
    if kind == "language_modeling":
        perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
        return common | {
            "output_type": "loglikelihood",
            "doc_to_text": lambda example: example["context"] + ask,
            # of this output type the harness puts the delimiter before what is shown, but not before what is scored
            "doc_to_target": lambda example: common["target_delimiter"] + example["continuation"],
            "fewshot_config": {"sampler": "first_n", "doc_to_target": "{{continuation}}"},
            "metric_list": [ACCURACY, perplexity],
        }
    generated["generation_kwargs"]["until"] = {
        "generation": ["\n"],
        "reasoning": ["\n\n", "Question:"],
        "gsm8k": ["Question:", "</s>", "<|im_end|>"],
        "code": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
    }[kind]
    if kind == "gsm8k":
        return (
            common
            | generated
            | {
                "doc_to_text": lambda example: f"Question: {example['question']}\nAnswer:",
                "doc_to_target": "answer",
                "metric_list": [NUMBERS],
                "filter_list": [
                    _filter("strict", {"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"}),
                    _filter(
                        "flexible",
                        {
                            "function": "regex",
                            "group_select": -1,
                            "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)",
                        },
                    ),
                ],
            }
        )
    if kind == "code":
        return common | generated | {"doc_to_text": "prompt", "doc_to_target": "test", "metric_list": [EXACT]}
    text = "{{chain_of_thought}} The answer is {{answer}}" if kind == "reasoning" else "{{answer}}"
    return (
        common
        | generated
        | {
            "doc_to_text": lambda example: example["context"] + ask,
            "doc_to_target": text,
            "metric_list": [EXACT | {"ignore_punctuation": True}],
            "filter_list": [_filter("stripped", {"function": "remove_whitespace"})],
        }
    )


def _filter(name: str, first: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "filter": [first, {"function": "take_first"}]}
