/** The chat: a conversation kept in this browser, answers that stream in, and what to do with each message. */

import { $, announce, copy, h, remember, remembered, seconds, whole } from "./dom.js";
import { markdown } from "./markdown.js";
import { stream } from "./server.js";
import { tokens } from "./tokens.js";

const SUGGESTIONS = [
  "Explain how a dovetail joint holds without glue.",
  "Write a haiku about the first snow of the year.",
  "Make a table of three sorting algorithms and their costs.",
  "Write a Python function that reverses the words of a sentence.",
];
const FOLLOWS = 80; // pixels from the end within which new text keeps the end in sight

let messages = remembered("messages", []);
let model = null;
let running = null; // of the answer that streams: AbortController
const views = new WeakMap(); // message -> its element

// --- what the frame calls -------------------------------------------------------------------------------------------

export function served(found) {
  model = found;
  if (!messages.length) draw();
}

export function explained(plan) {
  const form = $("sampling");
  const known = { temperature: 1, top_p: 1, top_k: "off", ...plan.sampling_defaults };
  for (const name of ["temperature", "top_p", "top_k"]) {
    form.elements[name].placeholder = String(known[name]);
    const range = form.querySelector(`[data-for="${name}"]`);
    if (range && form.elements[name].value === "") range.value = known[name];
  }
}

export function enter() {
  fit();
  if (matchMedia("(hover: hover)").matches) $("prompt").focus({ preventScroll: true });
}

export function leave() {
  // An answer goes on in the background.
}

// --- drawing --------------------------------------------------------------------------------------------------------

function draw() {
  const list = $("messages");
  list.replaceChildren();
  if (!messages.length) list.append(empty());
  for (const message of messages) list.append(drawn(message));
  list.scrollTop = list.scrollHeight;
}

function empty() {
  const use = (text) => {
    $("prompt").value = text;
    send();
  };
  return h(
    "div.empty",
    {},
    h("img", { src: "icon.svg", alt: "", width: 52, height: 52 }),
    h("h1", {}, "What shall we talk about?"),
    h("p", {}, model ? h("span", {}, "You are talking to ", h("strong", {}, model.id), ", on this server alone.") : "Waiting for the server."),
    h("div.suggestions", {}, SUGGESTIONS.map((text) => h("button", { type: "button", onclick: () => use(text) }, text))),
  );
}

function drawn(message) {
  const mine = message.role === "user";
  const body = h(`div.${mine ? "said" : "answer"}`);
  const element = h(`article.message.${message.role}`, { "aria-label": mine ? "You" : "Answer" }, body, h("div.meta"));
  views.set(message, element);
  refresh(message);
  return element;
}

function refresh(message) {
  const element = views.get(message);
  if (!element) return;
  const [body, meta] = element.children;
  const streaming = running?.message === message;
  if (message.role === "user") body.textContent = message.content;
  else {
    const shown = message.tokens?.length && message.shaded ? tokens(message.tokens) : markdown(message.content);
    const thought = message.reasoning ? h("details.thought", {}, h("summary", {}, "Reasoning"), h("div", {}, markdown(message.reasoning))) : "";
    const waits = streaming && !message.content && !message.reasoning ? h("span.waits", { "aria-label": "Waiting for the first token" }, h("i"), h("i"), h("i")) : "";
    body.replaceChildren(thought, shown, waits, message.error ? failure(message) : "");
    body.classList.toggle("streams", Boolean(streaming && message.content));
  }
  meta.replaceChildren(...(streaming ? [] : tools(message)));
}

function failure(message) {
  return h("div.failure", { role: "alert" }, h("strong", {}, "The server says"), h("p", {}, message.error));
}

function tools(message) {
  const button = (text, does, more = {}) => h("button", { type: "button", onclick: (event) => does(event.currentTarget), ...more }, text);
  if (message.role === "user")
    return [button("Copy", (self) => copy(message.content, self)), button("Edit", () => edit(message))];
  const last = message === messages.at(-1);
  return [
    message.content && button("Copy", (self) => copy(message.content, self)),
    last && button(message.error && !message.content ? "Try again" : "Regenerate", () => again(message)),
    message.tokens?.length &&
      button("Probabilities", () => ((message.shaded = !message.shaded), refresh(message), save()), {
        "aria-pressed": String(Boolean(message.shaded)),
      }),
    message.figures && h("span.figures", {}, message.figures),
  ].filter(Boolean);
}

function edit(message) {
  const element = views.get(message);
  const area = h("textarea", { value: message.content, rows: Math.min(12, message.content.split("\n").length + 1), "aria-label": "Edit the message" });
  const done = () => {
    const text = area.value.trim();
    if (!text) return;
    messages = messages.slice(0, messages.indexOf(message));
    messages.push({ role: "user", content: text });
    draw();
    answer();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") refresh(message);
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      done();
    }
  });
  element.children[0].replaceChildren(area);
  element.children[1].replaceChildren(
    h("button.strong", { type: "button", onclick: done }, "Send again"),
    h("button", { type: "button", onclick: () => refresh(message) }, "Cancel"),
  );
  area.focus();
}

function again(message) {
  if (running) return;
  messages = messages.slice(0, messages.indexOf(message));
  draw();
  answer();
}

function save() {
  remember("messages", messages);
}

// --- asking ---------------------------------------------------------------------------------------------------------

function asked(message) {
  const form = new FormData($("sampling"));
  const system = form.get("system").trim();
  const earlier = messages.slice(0, messages.indexOf(message)).filter((each) => each.content);
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...earlier.map(({ role, content }) => ({ role, content }))],
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    const value = form.get(name);
    if (value !== "") body[name] = Number(value);
  }
  if (form.get("logprobs")) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", tokens: [] };
  messages.push(message);
  const controller = new AbortController();
  running = { controller, message };
  message.shaded = $("sampling").elements.logprobs.checked;
  $("messages").append(drawn(message));
  follow(true);
  buttons();
  announce("Answering");
  const began = performance.now();
  let first = null;
  let usage = null;
  let reason = "";
  const repaint = paced(() => (refresh(message), follow()));
  try {
    for await (const chunk of stream("v1/chat/completions", asked(message), controller.signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      const { content, reasoning_content: thought } = choice.delta ?? {};
      if ((content || thought) && first === null) first = performance.now();
      message.content += content ?? "";
      message.reasoning += thought ?? "";
      for (const each of choice.logprobs?.content ?? [])
        message.tokens.push([each.token, each.logprob, each.top_logprobs.map((top) => [top.token, top.logprob])]);
      reason = choice.finish_reason ?? reason;
      repaint();
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else message.error = error.message;
  }
  const now = performance.now();
  const count = usage?.completion_tokens;
  message.figures = [
    count && `${whole.format(count)} tokens`,
    count > 1 && first !== null && now > first && `${((count - 1) / ((now - first) / 1000)).toFixed(1)} tokens/s`,
    first !== null && `first after ${seconds((first - began) / 1000)}`,
    { length: "cut at the limit", stopped: "stopped" }[reason],
  ]
    .filter(Boolean)
    .join(" · ");
  running = null;
  repaint.now();
  buttons();
  save();
  announce(message.error ? `The server says: ${message.error}` : reason === "stopped" ? "Stopped" : "The answer is complete");
}

/** At most a repaint a frame, and none too many where markdown is long. */
function paced(paint) {
  let waits = 0;
  let last = 0;
  const run = () => {
    waits = 0;
    const before = performance.now();
    paint();
    last = performance.now() - before;
  };
  const later = () => {
    waits ||= setTimeout(() => requestAnimationFrame(run), Math.min(400, 3 * last));
  };
  later.now = () => {
    clearTimeout(waits);
    paint();
  };
  return later;
}

function follow(anyway = false) {
  const list = $("messages");
  if (anyway || list.scrollHeight - list.scrollTop - list.clientHeight < FOLLOWS) list.scrollTop = list.scrollHeight;
}

function buttons() {
  $("send-button").hidden = running !== null;
  $("stop-button").hidden = running === null;
  if (running === null && document.activeElement === document.body) $("prompt").focus({ preventScroll: true });
}

function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  if (!messages.length) $("messages").replaceChildren();
  const previous = messages.at(-1);
  const message = { role: "user", content: text };
  messages.push(message);
  if (previous) refresh(previous);
  $("messages").append(drawn(message));
  $("prompt").value = "";
  fit();
  answer();
}

function stop() {
  running?.controller.abort();
}

function fit() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, innerHeight * 0.4)}px`;
}

// --- wiring ---------------------------------------------------------------------------------------------------------

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("stop-button").addEventListener("click", stop);
$("new-button").addEventListener("click", () => {
  stop();
  messages = [];
  save();
  draw();
  announce("New chat");
  $("prompt").focus();
});
addEventListener("keydown", (event) => {
  if ($("view-chat").hidden || $("key-dialog").open) return;
  if (event.key === "Escape" && running) stop();
  else if (event.key === "Escape" && !$("options").hidden && matchMedia("(max-width: 900px)").matches) options(false);
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    $("prompt").focus();
  }
});

function options(open) {
  $("options").hidden = !open;
  $("options-button").setAttribute("aria-expanded", String(open));
  remember("options", open);
  if (open && matchMedia("(max-width: 900px)").matches) $("options-close").focus();
  else if (!open) $("options-button").focus({ preventScroll: true });
}

$("options-button").addEventListener("click", () => options($("options").hidden));
$("options-close").addEventListener("click", () => options(false));

const sampling = $("sampling");
const kept = remembered("sampling", {});
for (const [name, value] of Object.entries(kept)) {
  const field = sampling.elements[name];
  if (field?.type === "checkbox") field.checked = Boolean(value);
  else if (field) field.value = value;
}
for (const range of sampling.querySelectorAll("[data-for]")) {
  const field = sampling.elements[range.dataset.for];
  if (field.value !== "") range.value = field.value;
  range.addEventListener("input", () => (field.value = range.value));
  field.addEventListener("input", () => (range.value = field.value === "" ? field.placeholder || 1 : field.value));
}
const keep = () => remember("sampling", Object.fromEntries(new FormData(sampling)));
sampling.addEventListener("input", keep);
sampling.addEventListener("submit", (event) => event.preventDefault());
sampling.addEventListener("reset", () =>
  setTimeout(() => {
    for (const range of sampling.querySelectorAll("[data-for]")) range.value = sampling.elements[range.dataset.for].placeholder || 1;
    keep();
  }),
);
if (remembered("options", false) && matchMedia("(min-width: 901px)").matches) {
  $("options").hidden = false;
  $("options-button").setAttribute("aria-expanded", "true");
}
draw();
