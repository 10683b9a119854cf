/** The dashboard: the server's figures, asked for every second while they are looked at, and the plan they come from. */

import { $, h, seconds, svg, whole } from "./dom.js";
import { getJson } from "./server.js";

const PERIOD = 1000; // milliseconds
const WINDOW = 60; // looks that rates and percentiles are of
const CELLS = 320; // most squares of the map of pages

let looks = [];
let timer = 0;
let built = null;

export async function enter() {
  built ??= build();
  clearTimeout(timer);
  loadPlan();
  await look();
}

export function leave() {
  clearTimeout(timer);
  timer = 0;
}

async function look() {
  clearTimeout(timer);
  try {
    const figures = await getJson("dashboard/live");
    looks.push({ at: performance.now(), ...figures });
    if (looks.length > 1 && looks.at(-1).engine.steps < looks.at(-2).engine.steps) looks = looks.slice(-1); // the engine began anew
    looks = looks.slice(-WINDOW - 1);
    show();
    state(figures.up ? "" : "The engine does not answer; these are its last figures.");
  } catch (error) {
    state(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
  }
  if (!$("view-dashboard").hidden) timer = setTimeout(look, PERIOD);
}

function state(text) {
  built.state.textContent = text;
  built.state.hidden = text === "";
}

// --- the page -------------------------------------------------------------------------------------------------------

function card(name, title, ...more) {
  const value = h("p.value", { id: `live-${name}` }, "–");
  const note = h("p.note", { id: `live-${name}-note` });
  return h(`section.card.card-${name}`, { "aria-label": title }, h("h2", {}, title), value, note, ...more);
}

function build() {
  const line = svg("path", { class: "line" });
  const area = svg("path", { class: "area" });
  const chart = svg("svg", { class: "chart", viewBox: "0 0 600 120", preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  const ended = h("dl.ended", { "aria-label": "Ended, by reason" });
  const map = h("div.map", { role: "img" });
  const state = h("p.banner", { role: "alert", hidden: true });
  const plan = h("div.plan");
  $("view-dashboard").replaceChildren(
    h("div.page", {},
      h("header.head", {}, h("h1", {}, "Dashboard"), h("p", { id: "live-uptime" })),
      state,
      h("div.cards", {},
        card("speed", "Tokens per second", chart),
        card("requests", "Requests", ended),
        card("first", "Time to first token"),
        card("inter", "Between two tokens"),
        card("hits", "Prefix hit rate"),
        card("preemptions", "Preemptions"),
        h("section.card.card-pages", { "aria-label": "Cache pages" }, h("h2", {}, "Cache pages"), map, h("div.legend", {},
          h("span", {}, h("i.cell.used"), "used ", h("b", { id: "pages-used" })),
          h("span", {}, h("i.cell.kept"), "kept for reuse ", h("b", { id: "pages-kept" })),
          h("span", {}, h("i.cell"), "free ", h("b", { id: "pages-free" })),
          h("span.note", { id: "pages-note" }),
        )),
      ),
      h("h2.section", {}, "What is composed, and why"),
      plan,
    ),
  );
  return { line, area, ended, map, state, plan, cells: [] };
}

// --- figures --------------------------------------------------------------------------------------------------------

function show() {
  const now = looks.at(-1);
  const first = looks[0];
  const engine = now.engine;
  const rate = (one, other) => (other.at > one.at ? (other.engine.generation_tokens - one.engine.generation_tokens) / ((other.at - one.at) / 1000) : 0);
  const rates = looks.slice(1).map((each, index) => rate(looks[index], each));
  put("speed", amount(rates.at(-1) ?? 0), `${whole.format(engine.generation_tokens)} tokens since the start${rates.some(Boolean) ? `, at most ${amount(Math.max(...rates))} a second in the last minute` : ""}`);
  put("requests", `${engine.num_running} running`, `${engine.num_waiting} waiting`);
  reasons(engine.requests_finished);
  latency("first", "first_token", first, now);
  latency("inter", "inter_token", first, now);
  const asked = engine.prompt_tokens;
  put("hits", asked ? `${((100 * engine.cached_prompt_tokens) / asked).toFixed(0)} %` : "–", asked ? `${whole.format(engine.cached_prompt_tokens)} of ${whole.format(asked)} prompt tokens` : "no prompt yet");
  put("preemptions", whole.format(engine.preemptions), engine.draft_tokens
    ? `${whole.format(engine.accepted_draft_tokens)} of ${whole.format(engine.draft_tokens)} guessed tokens were right`
    : "requests put back because pages ran out");
  $("live-uptime").textContent = `Up for ${duration(now.uptime_seconds)}, ${whole.format(engine.steps)} steps`;
  draw(rates);
  pages(engine);
}

function put(name, value, note) {
  $(`live-${name}`).textContent = value;
  $(`live-${name}-note`).textContent = note;
}

const REASONS = { stop: "ended by themselves", length: "cut at their limit", abort: "stopped by their client", error: "failed" };

function reasons(finished) {
  const rows = Object.entries(finished).map(([reason, count]) => [h("dt", {}, REASONS[reason] ?? reason), h("dd", {}, whole.format(count))]);
  built.ended.replaceChildren(...rows.flat());
}

function amount(value) {
  return value >= 100 ? whole.format(value) : value.toFixed(1);
}

const sum = (list) => list.reduce((total, each) => total + each, 0);

function latency(name, key, first, now) {
  const all = now.latencies[key];
  const recent = all.counts.map((count, index) => count - first.latencies[key].counts[index]);
  const fresh = sum(recent) > 0;
  const counts = fresh ? recent : all.counts;
  if (!sum(counts)) return put(name, "–", "nothing measured yet");
  const at = (share) => seconds(percentile(all.upper, counts, share));
  return put(name, at(0.5), `95 %: ${at(0.95)} · 99 %: ${at(0.99)} · ${fresh ? "last minute" : "since the start"}`);
}

/** Linear inside a bucket; in the last one, which has no bound, its lower one. */
function percentile(upper, counts, share) {
  let left = share * sum(counts);
  for (const [index, count] of counts.entries()) {
    const lower = index ? upper[index - 1] : 0;
    if (left <= count && count) return upper[index] === null ? lower : lower + (upper[index] - lower) * (left / count);
    left -= count;
  }
  return upper.at(-2);
}

function duration(value) {
  const [days, hours, minutes] = [Math.floor(value / 86400), Math.floor(value / 3600) % 24, Math.floor(value / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(value)} s`;
}

function draw(rates) {
  const most = Math.max(1, ...rates);
  const step = 600 / (WINDOW - 1);
  const minute = [...Array(WINDOW - rates.length).fill(0), ...rates];
  const points = minute.map((rate, index) => [index * step, 117 - (105 * rate) / most]);
  const path = points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  built.line.setAttribute("d", path);
  built.area.setAttribute("d", `${path}L600 120L0 120Z`);
}

function pages({ pages_total: total, pages_free: free, pages_cached: kept }) {
  const used = Math.max(0, total - free - kept);
  const each = Math.max(1, Math.ceil(total / CELLS));
  const count = Math.ceil(total / each);
  if (built.cells.length !== count) {
    built.cells = Array.from({ length: count }, () => h("i.cell"));
    built.map.replaceChildren(...built.cells);
  }
  const bound = [used ? Math.max(1, Math.round(used / each)) : 0, kept ? Math.max(1, Math.round(kept / each)) : 0];
  built.cells.forEach((cell, index) => {
    const name = index < bound[0] ? "cell used" : index < bound[0] + bound[1] ? "cell kept" : "cell";
    if (cell.className !== name) cell.className = name;
  });
  $("pages-used").textContent = whole.format(used);
  $("pages-kept").textContent = whole.format(kept);
  $("pages-free").textContent = whole.format(free);
  $("pages-note").textContent = each > 1 ? `a square is ${each} pages` : "a square is a page";
  built.map.setAttribute("aria-label", `${used} pages used, ${kept} kept for reuse, ${free} free, of ${total}`);
}

// --- the plan -------------------------------------------------------------------------------------------------------

async function loadPlan() {
  try {
    const plan = await getJson("dashboard/plan");
    const why = (row) => [row.origin, row.why].filter(Boolean).join(": ");
    const choices = plan.choices.map((row) => [words(row.kind), h("strong", {}, row.name), h("span", { title: row.provenance }, row.plugin), why(row)]);
    const rows = (list) => list.map((row) => [h("code", {}, row.name), row.value, why(row)]);
    built.plan.replaceChildren(
      ...plan.warnings.map((each) => h("p.banner", {}, each.what)),
      table("Choices", ["kind", "chosen", "plugin", "why"], choices),
      fold("Facts of the machine and the model", table("Facts", ["fact", "value", "why"], rows(plan.facts))),
      fold("Settings", table("Settings", ["setting", "value", "set by"], rows(plan.settings))),
      fold("Settings of plugins", table("Settings of plugins", ["setting", "value", "set by"], rows(plan.sections))),
    );
  } catch (error) {
    built.plan.replaceChildren(h("p.note", {}, error.message));
  }
}

export const words = (text) => text.replaceAll("_", " ");

export function table(title, head, rows) {
  return h("div.table", { tabIndex: 0, role: "region", "aria-label": title },
    h("table", {}, h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))));
}

function fold(title, ...content) {
  return h("details.fold", {}, h("summary", {}, title), ...content);
}
