// Answers of classifiers and regressions, computed in a browser with what the server's /onnx hands out.
//
// The graph of a base and its tokenizer are fetched once; an adapter is some kilobytes of the graph's inputs. Before an
// adapter answers here, the tokens and the answer of the server's own examples are compared.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";

ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins

const EXACT = 1e-3; // of a probability, and of a number as a share of it
const ODD = /[\p{No}\p{Nl}\ufeff\u0085]/u; // JavaScript has other digits and white space than Rust
const TYPES = { F32: ["float32", Float32Array], I64: ["int64", BigInt64Array] };
const opened = new Map(); // adapters by the names of their models
let graph = { sha256: "", session: null };
let tokenizer = { key: "", tokenizer: null };
let turn = Promise.resolve();

/** Do work after all that was asked before: a session computes one pass at a time. */
function inTurn(work) {
  const done = turn.then(work);
  turn = done.catch(() => {});
  return done;
}

/**
 * Load what a model's name means now, unless it is loaded already.
 *
 * @param {string} model As in requests.
 * @param {(path: string) => Promise<Response>} get Fetches a path of the server. Throws what the server refuses, with
 *   its `status`, and an error that `isAway` where the server does not answer.
 */
export const open = (model, get) => inTurn(() => load(model, get));

/**
 * Answer a row in the shape of /classify, with the last adapter while the server is away.
 *
 * @param {string[]} texts One for each of the model's columns.
 */
export const classify = (model, texts, get) => inTurn(async () => {
  const adapter = await load(model, get).catch((error) => {
    if (error.isAway && opened.has(model)) return opened.get(model);
    throw error;
  });
  if (!texts.join("").trim()) throw new Error("There is no text to read.");
  if (!adapter.readsOdd && ODD.test(texts.join(""))) throw new Error("Only the server reads a text with such characters.");
  const ids = tokens(adapter, texts);
  if (!ids.length) throw new Error("The text gives no token.");
  return { data: [await run(adapter, ids)], system_fingerprint: adapter.about.digest };
});

async function load(model, get, again = true) {
  const of = `model=${encodeURIComponent(model)}`;
  const about = await (await get(`onnx?${of}`)).json();
  const known = opened.get(model);
  if (known && same(known.about, about)) return known;
  const file = async (name) => (await get(`onnx/${about.files[name]}?${of}`)).arrayBuffer();
  try {
    const inputs = fromSafetensors(await file("adapter.safetensors"));
    await useTokenizer(about, async (name) => JSON.parse(new TextDecoder().decode(await file(name))));
    await useGraph(about.files["model.onnx"], () => file("model.onnx"));
    const adapter = { about, inputs, tokenizer: tokenizer.tokenizer, session: graph.session };
    adapter.readsOdd = await check(adapter);
    opened.set(model, adapter);
    return adapter;
  } catch (error) {
    if (error.status === 404 && again) return load(model, get, false); // another champion since
    throw error;
  }
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

async function useTokenizer(about, json) {
  const names = ["tokenizer.json", "tokenizer_config.json"], key = names.map((name) => about.files[name]).join();
  if (tokenizer.key !== key) tokenizer = { key, tokenizer: new Tokenizer(await json(names[0]), await json(names[1])) };
}

async function useGraph(sha256, bytes) {
  if (graph.sha256 === sha256) return;
  await graph.session?.release(); // two graphs may be more than a page's memory
  graph = { sha256: "", session: null };
  opened.clear();
  graph = { sha256, session: await ort.InferenceSession.create(await bytes()) };
}

/** Throw unless this browser reads and computes the server's examples as it does; return whether it reads odd ones so. */
async function check(adapter) {
  const { examples: [odd, ...examples], answer, labels } = adapter.about;
  const differ = (what) => { throw new Error(`This browser ${what} otherwise than the server does.`); };
  const asRead = ({ texts, input_ids }) => same(tokens(adapter, texts).map(([id]) => id), input_ids);
  if (!examples.every(asRead)) differ("reads texts");
  const own = await run(adapter, tokens(adapter, examples[0].texts));
  const near = (one, other) => Math.abs(one - other) <= EXACT * Math.max(1, Math.abs(other));
  const [ours, theirs] = labels.length ? [own.probs, answer.probs] : [[own.score], [answer.score]];
  if (!ours.every((value, i) => near(value, theirs[i]))) differ("computes");
  return asRead(odd);
}

// ---- a text as tokens -----------------------------------------------------------------------------------------------
/** Return [token, type] of each token of a row, cut to the task's max_length as the tokenizers of Hugging Face cut. */
export function tokens({ about, tokenizer }, texts) {
  const read = (text) => tokenizer.encode(text, { add_special_tokens: false }).ids;
  const [a, b] = texts.map((text, i) => read(i ? about.separator + text : text));
  const space = about.max_length - about.template.filter(([part]) => typeof part === "number").length;
  const [some, others] = lengths(a, b, space), kept = { a: cut(a, some, about), b: b && cut(b, others, about) };
  return about.template.flatMap(([part, type]) => (kept[part] ?? [part]).map((id) => [id, type]));
}

function cut(ids, length, { truncation_side }) {
  return truncation_side === "left" ? ids.slice(Math.max(0, ids.length - length)) : ids.slice(0, length);
}

/** Return how many tokens two texts keep: the longer one is cut first, then both to halves. */
function lengths(a, b, space) {
  if (!b) return [Math.min(a.length, space)];
  if (a.length + b.length <= space) return [a.length, b.length];
  const short = Math.min(a.length, b.length), half = Math.floor(space / 2);
  const [few, many] = 2 * short > space ? [half, space - half] : [short, space - short];
  return a.length > b.length ? [many, few] : [few, many];
}

// ---- tokens as an answer --------------------------------------------------------------------------------------------
async function run({ about, inputs, session }, ids) {
  const whole = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
  const given = {
    input_ids: () => whole(ids.map(([id]) => id)),
    attention_mask: () => whole(ids.map(() => 1)),
    token_type_ids: () => whole(ids.map(([, type]) => type)),
  };
  const feeds = { ...inputs, ...Object.fromEntries(about.token_inputs.map((name) => [name, given[name]()])) };
  const { logits } = await session.run(feeds);
  const { labels } = about, numbers = Array.from(logits.data).slice(0, labels.length || 1);
  if (!numbers.every(Number.isFinite)) throw new Error("Logits must be finite, but some are NaN or infinite.");
  if (!labels.length) return { label: null, score: numbers[0], probs: null };
  const most = Math.max(...numbers), weights = numbers.map((number) => Math.exp(number - most));
  const sum = weights.reduce((one, other) => one + other), best = numbers.indexOf(most);
  const probs = weights.map((weight) => weight / sum);
  return { label: labels[best], score: probs[best], probs };
}

/** Return the tensors of a file, each with a first axis of one row. */
function fromSafetensors(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true)), start = 8 + size;
  const { __metadata__, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  return Object.fromEntries(Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
    const [type, Values] = TYPES[dtype];
    return [name, new ort.Tensor(type, new Values(buffer.slice(start + from, start + to)), [1, ...shape])];
  }));
}
