// What openai-node gets from a served mesh, one line of JSON a step. `openai_python.py` is the same script.
// Usage: node openai_node.mjs URL GRAPH; `openai` is found in OPENAI_NODE_MODULES, a folder made by `npm install`.

import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.OPENAI_NODE_MODULES, "package.json"));
const OpenAI = require("openai").default ?? require("openai");
const [url, graph] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const HI = [{ role: "user", content: "What is the capital of France? Answer with one word." }];
const BASE = { model: graph, messages: HI, temperature: 0, seed: 7 };
const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const TOOL = {
  type: "function",
  function: { name: "weather", description: "the weather in a city", parameters: CITY },
};

function show(step, found) {
  const all = { step, ...found };
  const sorted = Object.fromEntries(Object.keys(all).sort().map((name) => [name, all[name] ?? null]));
  console.log(JSON.stringify(sorted));
}

// What a whole reply says.
function chosen(reply) {
  const choice = reply.choices[0];
  const usage = reply.usage;
  return {
    text: choice.message.content,
    finish: choice.finish_reason,
    model: reply.model,
    tools: (choice.message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]),
    tokens: usage.total_tokens === usage.prompt_tokens + usage.completion_tokens && usage.total_tokens > 0,
    route: reply.mesh.route,
    outcome: reply.mesh.outcome,
  };
}

// What a stream said, put together.
async function streamed(chunks) {
  const found = { text: "", finish: null, names: [], arguments: "", usage: null, route: null };
  for await (const chunk of chunks) {
    if (chunk.usage) found.usage = chunk.usage.total_tokens > 0;
    found.route = chunk.mesh?.route ?? found.route;
    for (const choice of chunk.choices) {
      found.text += choice.delta.content ?? "";
      found.finish = choice.finish_reason ?? found.finish;
      for (const call of choice.delta.tool_calls ?? []) {
        if (call.function.name) found.names.push(call.function.name);
        found.arguments += call.function.arguments ?? "";
      }
    }
  }
  return found;
}

async function failed(ask) {
  try {
    await ask();
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    const { status, code, type, param } = error;
    return { class: error.constructor.name, status, code, type, param };
  }
  return { class: null };
}

const create = (fields = {}) => client.chat.completions.create({ ...BASE, ...fields });
const schema = { type: "json_schema", json_schema: { name: "city", schema: CITY } };
show("plain", chosen(await create()));
show("again", chosen(await create()));
show("streamed", await streamed(await create({ stream: true })));
show("streamed with usage", await streamed(await create({ stream: true, stream_options: { include_usage: true } })));
show("stop", chosen(await create({ stop: ["r"] })));
show("short", chosen(await create({ max_completion_tokens: 1 })));
show("json", chosen(await create({ response_format: { type: "json_object" }, max_tokens: 40 })));
show("schema", chosen(await create({ response_format: schema, max_tokens: 40 })));
const called = { tools: [TOOL], max_tokens: 40 };
show("tools", await failed(async () => show("tools called", chosen(await create(called)))));
const stream = { ...called, stream: true };
show("tools streamed", await failed(async () => show("stream", await streamed(await create(stream)))));
show("no model", await failed(() => create({ model: "nobody" })));
show("no messages", await failed(() => create({ messages: [] })));
show("a wrong field", await failed(() => create({ temperature: 9 })));
show("a wrong hint", await failed(() => create({ mesh: { prioritty: "best" } })));
show("a tier that is not there", await failed(() => create({ mesh: { deny: ["nobody"] } })));
show("no model streamed", await failed(() => create({ model: "nobody", stream: true })));
const models = [];
for await (const model of client.models.list()) models.push(model.id);
show("models", { ids: models.sort() });
show("one model", { id: (await client.models.retrieve(graph)).id });
show("no such model", await failed(() => client.models.retrieve("nobody")));
